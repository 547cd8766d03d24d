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
use skyriff_edge::{Caller, Tokens};
use skyriff_postgres::{Cluster, Durability, Server, Servers, databases};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    config::{Databases, Place},
    master_key, migrate, seal, serve,
    serve::{Role, Streams, Tuning},
    token, worker,
};

#[derive(Args)]
pub struct Arguments {
    /// Where everything is kept: data, logs, the secret that signs tokens. Delete it to start anew.
    #[arg(long, default_value = token::FOLDER)]
    folder: PathBuf,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    streams: Streams,
    /// Which roles this process has. With a Kafka cluster given, relay is one of them unless it is said otherwise.
    #[arg(long, value_enum, value_delimiter = ',')]
    roles: Option<Vec<Role>>,
    /// Make no videos here: `skyriff worker` does.
    #[arg(long)]
    no_worker: bool,
}

/// The file in the folder that holds [`environment`].
const ENVIRONMENT: &str = "databases.env";
/// The folder in it with the payment files.
const PAYOUTS: &str = "payouts";
/// The event store's database.
const EVENTS: &str = "skyriff_events";
/// The read models': two, so that sharding is real from the first day.
const READS: [&str; 2] = ["skyriff_reads_0", "skyriff_reads_1"];

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { folder, mut tuning, streams, roles, no_worker } = arguments;
    tuning.payouts = tuning.payouts.or_local(&folder.join(PAYOUTS));
    let roles = roles.unwrap_or_else(|| {
        let relay = streams.kafka_is_named().then_some(Role::Relay);
        Role::ALL.into_iter().chain(relay).collect()
    });
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
        let databases = prepare(&folder, &cluster, &tuning.links.storage_address(&folder)?).await?;
        let tokens = token::secret_of(&folder)?;
        let master_keys = master_key::keys_of(&folder)?;
        seal::make_keys_in(&folder)?;
        let links = tuning.links.links(&folder, &tokens)?;
        let sealing = tuning.seal.sealing(&roles, links.storage(), &folder, tuning.require_standby)?;
        let storage = links.storage().clone();
        let running = {
            let (keys, links, sealing) = (Some(&master_keys), Some(links), Some(&sealing));
            serve::Running::start(&databases, &tokens, keys, links, sealing, &tuning, &streams, &roles).await?
        };
        let worker = match no_worker || !roles.contains(&Role::Command) {
            true => None,
            false => worker::inside_dev(&folder, running.address, &tokens, storage, stop.clone())?,
        };
        welcome(&folder, &running.address.to_string(), &tokens, &databases)?;
        // The worker gives back what it has in hand while the API can still be told.
        let (stop_serving, stopped) = (CancellationToken::new(), stop.clone());
        let worked = stop_serving.clone().drop_guard();
        tokio::spawn(async move {
            stopped.cancelled().await;
            if let Some(Err(error)) = futures::future::OptionFuture::from(worker).await {
                tracing::warn!(%error, "the worker did not end well");
            }
            drop(worked);
        });
        // The servers are only stopped after the last request, so their end is a failure.
        let until = running.until(stop_serving);
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

async fn prepare(folder: &Path, cluster: &Cluster, storage: &str) -> Result<Databases> {
    let (primary, replica) = (cluster.primary(), cluster.replica());
    let names: Vec<_> = [EVENTS].into_iter().chain(READS).collect();
    databases::create(primary, &names).await?;
    let shard_count = ShardCount::default();
    let all: Vec<_> = shard_count.shards().collect();
    // The role is chosen where the address is used.
    let place = |shards: &[ShardId], database| Place {
        shards: shards.to_vec(),
        primary: primary.options(databases::QUERY, database).into(),
        replicas: vec![replica.options(databases::QUERY, database).into()],
    };
    let halves = all.chunks(all.len().div_ceil(READS.len()));
    let databases = Databases {
        shard_count,
        event_store: vec![place(&all, EVENTS)],
        read_models: halves.zip(READS).map(|(shards, database)| place(shards, database)).collect(),
    };
    migrate::migrate(&databases).await?;
    fs::write(folder.join(ENVIRONMENT), environment(folder, primary, replica, &databases, storage)?)?;
    Ok(databases)
}

/// What `serve` and `audit` need to work on the same databases from another process.
fn environment(
    folder: &Path,
    primary: &Server,
    replica: &Server,
    databases: &Databases,
    storage: &str,
) -> Result<String> {
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
    let master_key = std::path::absolute(master_key::file_of(folder))?;
    let (seal_key, seal_keys) = (seal::file_of(folder), seal::public_file_of(folder));
    let (seal_key, seal_keys) = (std::path::absolute(seal_key)?, std::path::absolute(seal_keys)?);
    Ok(format!(
        "SKYRIFF_EVENT_STORE='{events}'\nSKYRIFF_READ_MODELS='{reads}'\nSKYRIFF_MASTER_KEY_FILE='{}'\n\
         SKYRIFF_SEAL_KEY_FILE='{}'\nSKYRIFF_SEAL_PUBLIC_KEYS_FILE='{}'\nSKYRIFF_STORAGE='{storage}'\n",
        master_key.display(),
        seal_key.display(),
        seal_keys.display(),
    ))
}

/// A few lines that say where to go next.
fn welcome(folder: &Path, address: &str, tokens: &Tokens, databases: &Databases) -> Result<()> {
    let user = demo_user(folder)?;
    let token = tokens.mint(&Caller { role: skyriff_edge::Role::User, id: user }, Utc::now(), TimeDelta::days(30))?;
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
