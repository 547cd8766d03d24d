//! `skyriff dev`: everything on this machine, with a private Postgres primary and streaming replica.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use clap::Args;
use skyriff_domain::{ShardCount, ShardId};
use skyriff_edge::{Caller, Role, Tokens};
use skyriff_postgres::{Cluster, Durability, Server, Servers, databases};
use uuid::Uuid;

use crate::{
    config::{Databases, Place},
    migrate, serve,
    serve::Tuning,
    token,
};

#[derive(Args)]
pub struct Arguments {
    /// Where everything is kept: data, logs, the secret that signs tokens. Delete it to start anew.
    #[arg(long, default_value = token::FOLDER)]
    folder: PathBuf,
    #[command(flatten)]
    tuning: Tuning,
}

/// The file in the folder that holds [`environment`].
const ENVIRONMENT: &str = "databases.env";
/// The event store's database.
const EVENTS: &str = "skyriff_events";
/// The read models': two, so that sharding is real from the first day.
const READS: [&str; 2] = ["skyriff_reads_0", "skyriff_reads_1"];

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { folder, tuning } = arguments;
    let stop = serve::on_signal()?;
    ensure!(
        tuning.listen.port() == 0 || std::net::TcpListener::bind(tuning.listen).is_ok(),
        "cannot listen on {}: another program is there, or this machine does not have that address; \
         stop it, or choose another with --listen 127.0.0.1:0 (0 takes a free port)",
        tuning.listen
    );
    let durability = if tuning.require_standby { Durability::OnReplicaToo } else { Durability::Full };
    // Never cut short: what it has started must be stopped again. A second Ctrl-C does not wait for that.
    let say = |line: &str| eprintln!("· {line}");
    let mut cluster = Cluster::start(&folder, Servers::PrimaryAndReplica, durability, say).await?;
    let served = async {
        if stop.is_cancelled() {
            return Ok(());
        }
        let databases = prepare(&folder, &cluster).await?;
        let tokens = token::secret_of(&folder)?;
        let running = serve::Running::start(&databases, &tokens, &tuning, &serve::Role::ALL).await?;
        welcome(&folder, &running.address.to_string(), &tokens, &databases)?;
        // The servers are only stopped after the last request, so their end is a failure.
        let until = running.until(stop.clone());
        tokio::pin!(until);
        tokio::select! {
            result = &mut until => result,
            error = cluster.failed() => {
                stop.cancel();
                tokio::time::timeout(Duration::from_secs(30), until).await.ok();
                Err(error)
            }
        }
    }
    .await;
    eprintln!("· stopping Postgres");
    let stopped = cluster.stop().await;
    served.and(stopped)?;
    Ok(ExitCode::SUCCESS)
}

async fn prepare(folder: &Path, cluster: &Cluster) -> Result<Databases> {
    let (primary, replica) = (cluster.primary(), cluster.replica());
    let names: Vec<_> = [EVENTS].into_iter().chain(READS).collect();
    databases::create(primary, &names).await?;
    let shard_count = ShardCount::default();
    let all: Vec<_> = shard_count.shards().collect();
    // The role is chosen where the address is used.
    let place = |shards: &[ShardId], database| Place {
        shards: shards.to_vec(),
        primary: primary.options(databases::QUERY, database),
        replicas: vec![replica.options(databases::QUERY, database)],
    };
    let halves = all.chunks(all.len().div_ceil(READS.len()));
    let databases = Databases {
        shard_count,
        event_store: vec![place(&all, EVENTS)],
        read_models: halves.zip(READS).map(|(shards, database)| place(shards, database)).collect(),
    };
    migrate::migrate(&databases).await?;
    fs::write(folder.join(ENVIRONMENT), environment(primary, replica, &databases))?;
    Ok(databases)
}

/// What `serve` and `audit` need to work on the same databases from another process.
fn environment(primary: &Server, replica: &Server, databases: &Databases) -> String {
    let shards = |place: &Place| match (place.shards.first(), place.shards.last()) {
        (Some(first), Some(last)) => format!("{first}-{last}"),
        _ => String::new(),
    };
    let reads = databases.read_models.iter().zip(READS);
    let reads = reads.map(|(place, name)| format!("{}={}|{}", shards(place), primary.url(name), replica.url(name)));
    let reads = reads.collect::<Vec<_>>().join(";");
    let events = databases.event_store.iter();
    let events = events.map(|place| format!("{}={}|{}", shards(place), primary.url(EVENTS), replica.url(EVENTS)));
    let events = events.collect::<Vec<_>>().join(";");
    format!("SKYRIFF_EVENT_STORE='{events}'\nSKYRIFF_READ_MODELS='{reads}'\n")
}

/// A few lines that say where to go next.
fn welcome(folder: &Path, address: &str, tokens: &Tokens, databases: &Databases) -> Result<()> {
    let user = demo_user(folder)?;
    let token = tokens.mint(&Caller { role: Role::User, id: user }, Utc::now(), TimeDelta::days(30))?;
    let today = Utc::now().date_naive();
    let auth = format!("-H 'Authorization: Bearer {token}'");
    let count = databases.shard_count.get();
    println!(
        "\nSkyRiff is running at http://{address}: {count} shards, read models in {} databases, read from a replica.\n\
         The API's description: http://{address}/v1/docs   Metrics: http://{address}/metrics   Ctrl-C stops it.\n\n\
         A token for the user {user}, good for 30 days:\n\n  {token}\n\n\
         Check in, then read the balance and the ledger:\n\n  \
         curl -i -w '\\n' -X POST http://{address}/v1/users/{user}/check-ins {auth} -H 'Idempotency-Key: check-in-{today}'\n\n  \
         curl -w '\\n' http://{address}/v1/users/{user}/balance {auth}\n\n  \
         curl -w '\\n' http://{address}/v1/users/{user}/ledger-entries {auth}\n",
        databases.read_models.len(),
    );
    Ok(())
}

/// The same at every start, so that pasted commands go on where they left off.
fn demo_user(folder: &Path) -> Result<Uuid> {
    let file = folder.join("demo-user");
    if !file.exists() {
        fs::write(&file, Uuid::new_v4().to_string())?;
    }
    fs::read_to_string(&file)?.trim().parse().with_context(|| format!("{} does not hold a UUID", file.display()))
}
