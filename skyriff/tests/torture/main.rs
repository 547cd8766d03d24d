//! Clients against two command nodes on one store, while a nemesis kills, stops and cuts what it can reach; then a
//! checker reads the log and compares it with what the clients were told.
//!
//! `TORTURE_SECONDS` says for how long (60), `TORTURE_SEED` what the nemesis and the clients do; the seed is printed, and
//! a failing one can be run again. The same seed makes the same plan; how it falls between two steps of the servers is
//! up to the machine.

#![expect(unreachable_pub, reason = "a test exports nothing")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on should stop")]

mod checker;
mod client;
mod nemesis;
mod nodes;
mod proxy;

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use skyriff_domain::ShardCount;
use skyriff_postgres::{Cluster, Durability, Servers, databases};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use self::{client::Client, nemesis::Nemesis, nodes::Nodes, proxy::Proxy};

const CLIENTS: u64 = 24;
const EVENTS: &str = "torture_events";
const READS: &str = "torture_reads";
/// How long the system may take to be well again after the nemesis has gone.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TORTURE_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let time = Duration::from_secs(number("TORTURE_SECONDS").unwrap_or(60));
    println!("torture: seed {seed}, {time:?}; again with TORTURE_SEED={seed}");
    match torture(seed, time).await {
        Ok(summary) => {
            println!("{summary}\ntest result: ok. 1 passed; 0 failed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED with seed {seed}: {error:#}\ntest result: FAILED. 0 passed; 1 failed");
            ExitCode::FAILURE
        }
    }
}

async fn torture(seed: u64, time: Duration) -> Result<String> {
    let folder = std::env::temp_dir().join(format!("skyriff-torture-{}", std::process::id()));
    let cluster = Cluster::start(&folder, Servers::Primary, Durability::Full, |_| {}).await?;
    let result = torture_on(&cluster, &folder, seed, time).await;
    cluster.stop().await?;
    if result.is_ok() {
        std::fs::remove_dir_all(&folder)?;
    } else {
        println!("data and logs are kept in {}", folder.display());
    }
    result
}

async fn torture_on(cluster: &Cluster, folder: &Path, seed: u64, time: Duration) -> Result<String> {
    let server = cluster.primary();
    databases::create(server, &[EVENTS, READS]).await?;
    let count = ShardCount::default();
    let shards: Vec<_> = count.shards().collect();
    databases::migrate_event_store(&server.options(databases::OWNER, EVENTS), count, &shards).await?;
    databases::migrate_read_models(&server.options(databases::OWNER, READS)).await?;

    let proxies = [Proxy::start(folder, 0, server)?, Proxy::start(folder, 1, server)?];
    let nodes = Arc::new(Mutex::new(Nodes::start(folder, &proxies, server).await?));
    let addresses = nodes.lock().await.addresses();

    let end = Instant::now() + time;
    let clients = (0..CLIENTS).map(|number| {
        let client = Client::new(number, StdRng::seed_from_u64(seed.wrapping_mul(1_000) + number), addresses);
        tokio::spawn(client.work_until(end))
    });
    let clients: Vec<_> = clients.collect();
    let nemesis = Nemesis::new(StdRng::seed_from_u64(seed), folder.to_owned(), Arc::clone(&nodes), proxies);
    let deeds = nemesis.work_until(end).await?;

    let mut history = Vec::new();
    for client in clients {
        history.extend(client.await?);
    }
    let mut nodes = Arc::into_inner(nodes).context("the nemesis has gone")?.into_inner();
    well_again(&mut nodes).await?;
    let summary = checker::check(server, &history).await?;
    let audit = nodes.audit().await?;
    nodes.stop().await?;
    ensure!(
        audit.status.success(),
        "audit: {}{}",
        String::from_utf8_lossy(&audit.stdout),
        String::from_utf8_lossy(&audit.stderr)
    );
    Ok(format!("nemesis: {deeds}\n{summary}"))
}

/// Wait until both nodes take commands.
async fn well_again(nodes: &mut Nodes) -> Result<()> {
    let end = Instant::now() + RECOVERY_MAX;
    for address in nodes.addresses() {
        while let Err(reason) = client::is_taking_commands(address).await {
            ensure!(Instant::now() < end, "the node at {address} is not well again after {RECOVERY_MAX:?}: {reason}");
            nodes.restart_dead().await?;
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
