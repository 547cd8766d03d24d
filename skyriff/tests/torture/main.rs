//! Clients against two command nodes on one store, while a nemesis kills, stops and cuts what it can reach; then a
//! checker reads the log and compares it with what the clients were told.
//!
//! `TORTURE_SECONDS` says for how long (60), `TORTURE_SEED` what the nemesis and the clients do; the seed is printed, and
//! a failing one can be run again. The same seed makes the same plan; how it falls between two steps of the servers is
//! up to the machine. With an even seed the commits wait for a standby, and the nemesis reaches that too.

#![expect(unreachable_pub, reason = "a test exports nothing")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on should stop")]

mod accounts;
mod ask;
mod checker;
mod client;
mod flood;
mod history;
mod housekeeping;
mod log;
mod moves;
mod nemesis;
mod nodes;
mod proxy;
mod read_models;
mod refusals;
mod signals;
mod tally;
mod wire;

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use skyriff_domain::ShardCount;
use skyriff_postgres::{Cluster, Durability, Server, Servers, databases};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use self::{client::Client, log::Log, nemesis::Nemesis, nodes::Nodes, proxy::Proxy, tally::Tally, wire::Wire};

const CLIENTS: u64 = 24;
const EVENTS: &str = "torture_events";
const READS: &str = "torture_reads";
/// How long the system may take to be well again after the nemesis has gone.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// How long processes may take to finish then: a task of a node that was killed is claimed again after its lease, and one
/// that failed often after the longest back-off.
const IDLE_MAX: Duration = Duration::from_secs(180);
/// In a run of this length each kind of thing has to go wrong at least once.
const ALL_HAPPENS_IN: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TORTURE_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let time = Duration::from_secs(number("TORTURE_SECONDS").unwrap_or(60));
    println!("torture: seed {seed}, {time:?}; again with TORTURE_SEED={seed}");
    match torture(seed, time).await {
        Ok(()) => {
            println!("test result: ok. 1 passed; 0 failed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED with seed {seed}: {error:#}\ntest result: FAILED. 0 passed; 1 failed");
            ExitCode::FAILURE
        }
    }
}

async fn torture(seed: u64, time: Duration) -> Result<()> {
    let with_standby = seed.is_multiple_of(2);
    let (servers, durability) = if with_standby {
        (Servers::PrimaryAndReplica, Durability::OnReplicaToo)
    } else {
        (Servers::Primary, Durability::Full)
    };
    let folder = std::env::temp_dir().join(format!("skyriff-torture-{}", std::process::id()));
    let cluster = Cluster::start(&folder, servers, durability, |_| {}).await?;
    let result = torture_on(&cluster, &folder, seed, time, with_standby).await;
    cluster.stop().await?;
    if result.is_ok() {
        std::fs::remove_dir_all(&folder)?;
    } else {
        println!("data, logs and history are kept in {}", folder.display());
    }
    result
}

async fn torture_on(cluster: &Cluster, folder: &Path, seed: u64, time: Duration, with_standby: bool) -> Result<()> {
    let server = cluster.primary();
    databases::create(server, &[EVENTS, READS]).await?;
    let count = ShardCount::default();
    let shards: Vec<_> = count.shards().collect();
    databases::migrate_event_store(&server.options(databases::OWNER, EVENTS), count, &shards).await?;
    databases::migrate_read_models(&server.options(databases::OWNER, READS)).await?;

    let proxies = [Proxy::start(folder, 0, server)?, Proxy::start(folder, 1, server)?];
    let nodes = Arc::new(Mutex::new(Nodes::start(folder, &proxies, server, with_standby).await?));
    let addresses = nodes.lock().await.addresses();
    let wire = Wire::new();
    well_again(&mut *nodes.lock().await, &wire).await?;

    let end = Instant::now() + time;
    let clients = (0..CLIENTS).map(|number| {
        let random = StdRng::seed_from_u64(seed.wrapping_mul(1_000) + number);
        tokio::spawn(Client::new(number, random, addresses, wire.clone()).work_until(end))
    });
    let clients: Vec<_> = clients.collect();
    let nemesis = Nemesis {
        random: StdRng::seed_from_u64(seed),
        folder: folder.to_owned(),
        server: server.clone(),
        with_standby,
        nodes: Arc::clone(&nodes),
        proxies,
        wire: wire.clone(),
    };
    let mut deeds = nemesis.work_until(end).await?;

    let mut rested = Vec::new();
    for client in clients {
        rested.push(client.await?);
    }
    let mut nodes = Arc::into_inner(nodes).context("the nemesis has gone")?.into_inner();
    well_again(&mut nodes, &wire).await?;
    let mut history = std::mem::take(&mut deeds.history);
    for client in rested {
        history.extend(client.finish().await);
    }
    processes_are_idle(server, &mut nodes).await?;
    let tally = Tally::new(&history, &deeds, wire.overloaded(), with_standby);
    println!("{}", tally.text());

    // Deleted with the folder when all is well.
    let lines: String = history.iter().map(|entry| format!("{entry:?}\n")).collect();
    std::fs::write(folder.join("history.txt"), lines)?;
    let log = Log::read(server).await?;
    checker::check(&log, &history)?;
    let audit = nodes.audit().await?;
    ensure!(
        audit.status.success(),
        "audit: {}{}",
        String::from_utf8_lossy(&audit.stdout),
        String::from_utf8_lossy(&audit.stderr)
    );
    read_models::check_balances(server, &log.accounts).await?;
    nodes.stop().await?;
    if with_standby {
        read_models::wait_for_standby(server, cluster.replica()).await?;
        read_models::check_standby(cluster.replica(), &history).await?;
        read_models::check_balances(cluster.replica(), &log.accounts).await?;
    }
    println!(
        "checked: {} events, every answer, every account{}",
        log.events,
        if with_standby { ", the standby" } else { "" }
    );
    tally.ensure_overload_is_told_fast()?;
    if time >= ALL_HAPPENS_IN {
        tally.ensure_all_was_tried()?;
    }
    Ok(())
}

/// Wait until all that the log asks of processes is done.
async fn processes_are_idle(server: &Server, nodes: &mut Nodes) -> Result<()> {
    let end = Instant::now() + IDLE_MAX;
    loop {
        nodes.restart_dead().await?;
        let mut connection = server.superuser(EVENTS).await?;
        let (tasks, behind): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM tasks),
                    (SELECT count(*) FROM heads h LEFT JOIN checkpoints c ON c.projection = 'tips' AND c.shard = h.shard
                     WHERE coalesce(c.position, 0) < h.position)",
        )
        .fetch_one(&mut connection)
        .await?;
        if (tasks, behind) == (0, 0) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "after {IDLE_MAX:?} there are {tasks} tasks, and {behind} shards not read");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Wait until both nodes take commands.
async fn well_again(nodes: &mut Nodes, wire: &Wire) -> Result<()> {
    let end = Instant::now() + RECOVERY_MAX;
    for address in nodes.addresses() {
        while let Err(reason) = wire.is_taking_commands(address).await {
            ensure!(Instant::now() < end, "the node at {address} is not well again after {RECOVERY_MAX:?}: {reason}");
            nodes.restart_dead().await?;
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
