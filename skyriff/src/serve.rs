//! `skyriff serve`: roles of the backend on databases that exist.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use axum::serve::ListenerExt;
use clap::{Args, ValueEnum};
use skyriff_edge::{Tokens, request};
use skyriff_follow::{Follower, Followers, LogDatabase};
use skyriff_kafka::{KafkaSource, Relay, topic};
use skyriff_postgres::databases;
use skyriff_projections::Projection;
use skyriff_read_side::{EventLogs, Replicas, Stories};
use skyriff_seal::Sealer;
use skyriff_storage::Links;
use skyriff_vault::MasterKeys;
use skyriff_write_side::{
    CommandSide, commands, event_store,
    http::{PayoutCallbacks, VideoApi},
    processes::{self, ProcessSide, Services},
    video_queue::{VideoKeeperSide, VideoQueueSide},
};
use sqlx::{ConnectOptions, Connection, postgres::PgPoolOptions};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Served},
    config::{DatabaseArguments, Databases, KafkaArguments, PolicyArguments, VideoQueueArguments},
    erase, group,
    ledger_watch::LedgerWatch,
    master_key::{self, MasterKeyArguments},
    outputs::{LinkArguments, Stored},
    payouts::{self, PayoutArguments},
    seal::{SealArguments, Sealing},
    storage::Sweeps,
    telemetry,
    token::SecretArguments,
};

/// How long requests in hand may take after we were told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// As which projections connect to the databases.
const PROJECTOR: &str = "skyriff project";

/// What a process may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// The command API: decides and appends.
    Command,
    /// The query API: reads replicas.
    Query,
    /// Projections: read models from the log.
    Project,
    /// Processes: what events ask for beyond their own shard, or beyond this system.
    Process,
    /// The relay: the log to Kafka.
    Relay,
    /// The sealer: trees over the log, signed.
    Seal,
}

impl Role {
    /// All that need no more than the databases.
    pub const ALL: [Self; 5] = [Self::Command, Self::Query, Self::Project, Self::Process, Self::Seal];
}

/// Where projections take events from. They may change between the two at any time: the checkpoints are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EventsFrom {
    /// The log of the event store.
    #[default]
    Log,
    /// The topic that the relay fills.
    Kafka,
}

/// Where events come from and go to, other than the databases.
#[derive(Args, Clone, Debug)]
pub struct Streams {
    /// Where projections take events from.
    #[arg(long, env = "SKYRIFF_FROM", value_enum, default_value_t)]
    from: EventsFrom,
    #[command(flatten)]
    kafka: KafkaArguments,
}

impl Streams {
    /// Whether there is a Kafka cluster to use.
    pub fn kafka_is_named(&self) -> bool {
        self.kafka.settings().is_ok()
    }
}

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
    #[command(flatten)]
    secret: SecretArguments,
    #[command(flatten)]
    master_key: MasterKeyArguments,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    streams: Streams,
    /// Which roles this process has.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "command,query,project,process,seal")]
    roles: Vec<Role>,
}

/// How much this process takes on.
#[derive(Args, Clone, Debug)]
pub struct Tuning {
    /// Where HTTP listens; port 0 takes a free one.
    #[arg(long, env = "SKYRIFF_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Every request comes through a proxy of ours, which says in X-Real-IP from where. Otherwise it comes from whoever
    /// connects.
    #[arg(long, env = "SKYRIFF_BEHIND_PROXY")]
    behind_proxy: bool,
    /// Executors for each database of the event store.
    #[arg(long, env = "SKYRIFF_EXECUTORS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    executors: u16,
    /// Commands that may wait for one executor before more are turned away. Those of bulk requests may have half of it,
    /// and an atomic batch no more commands than that.
    #[arg(long, env = "SKYRIFF_QUEUE_MAX", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    queue_max: u32,
    /// Commands in one append, unless one atomic batch alone has more.
    #[arg(long, env = "SKYRIFF_BATCH_MAX", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_max: u32,
    /// Memory for streams, in MiB.
    #[arg(long, env = "SKYRIFF_CACHE_MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    cache_mib: u32,
    #[command(flatten)]
    policy: PolicyArguments,
    #[command(flatten)]
    pub payouts: PayoutArguments,
    #[command(flatten)]
    videos: VideoQueueArguments,
    #[command(flatten)]
    pub links: LinkArguments,
    #[command(flatten)]
    pub seal: SealArguments,
    /// How often outputs older than a day that no job names are deleted, in seconds, by the role process; 0 for never.
    #[arg(long, env = "SKYRIFF_SWEEP_EVERY_S", default_value_t = 86_400, value_parser = clap::value_parser!(u32).range(0..=366 * 86_400))]
    sweep_every_s: u32,
    /// For how many hours an idempotency key is remembered at least.
    #[arg(long, env = "SKYRIFF_KEEP_KEYS_HOURS", default_value_t = 72, value_parser = clap::value_parser!(u32).range(1..=24 * 366))]
    keep_keys_hours: u32,
    /// Answer a command, and seal, only what a synchronous standby has too: then an answer means that two machines have it.
    /// Refuses to append where Postgres' synchronous_standby_names is not set.
    #[arg(long, env = "SKYRIFF_REQUIRE_STANDBY")]
    pub require_standby: bool,
    /// How long a query waits on one database to become as fresh as asked, in milliseconds.
    #[arg(long, env = "SKYRIFF_FRESHNESS_WAIT_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    freshness_wait_ms: u32,
    /// Streams of events that may be open at a time.
    #[arg(long, env = "SKYRIFF_EVENT_STREAMS_MAX", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    event_streams_max: u16,
}

impl Tuning {
    fn command_limits(&self) -> commands::Limits {
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        commands::Limits {
            executors_per_database: usize::from(self.executors),
            queue_max: number(self.queue_max),
            batch_max: number(self.batch_max),
            keep_commands: Duration::from_secs(u64::from(self.keep_keys_hours) * 3_600),
            require_standby: self.require_standby,
            cache_bytes_max: number(self.cache_mib).saturating_mul(1_024 * 1_024),
            ..commands::Limits::default()
        }
    }
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let databases = arguments.databases.clone().databases()?;
    let stop = on_signal()?;
    let Arguments { secret, master_key, tuning, streams, roles, .. } = &arguments;
    let pays = roles.contains(&Role::Process) && tuning.payouts.pays();
    let seals_or_opens = roles.contains(&Role::Command) || roles.contains(&Role::Query) || pays;
    let master_keys = seals_or_opens.then(|| master_key.keys(secret.folder())).transpose()?;
    let tokens = secret.tokens()?;
    let links = tuning.links.links(secret.folder(), &tokens)?;
    let sealing = tuning.seal.sealing(roles, links.storage(), secret.folder(), tuning.require_standby)?;
    let (keys, links, sealing) = (master_keys.as_ref(), Some(links), Some(&sealing));
    let running = Running::start(&databases, &tokens, keys, links, sealing, tuning, streams, roles).await?;
    println!("SkyRiff listens on http://{}", running.address);
    running.until(stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// A token that is cancelled by the first SIGINT or SIGTERM. A second one ends the process at once.
pub fn on_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        stopped.cancel();
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        std::process::exit(130);
    });
    Ok(stop)
}

/// The roles of this process, running.
pub struct Running {
    pub address: SocketAddr,
    http: tokio::task::JoinHandle<std::io::Result<()>>,
    close: CancellationToken,
    commands: Option<CommandSide>,
    projector: Option<Followers>,
    ledger_watch: Option<LedgerWatch>,
    relay: Option<Relay>,
    processes: Option<ProcessSide>,
    videos: Option<VideoQueueSide>,
    video_keeper: Option<VideoKeeperSide>,
    sweeps: Option<Sweeps>,
    sealer: Option<Sealer>,
}

impl Running {
    #[expect(clippy::too_many_arguments, reason = "what the roles of a process need, each its own")]
    pub async fn start(
        databases: &Databases,
        tokens: &Tokens,
        master_keys: Option<&MasterKeys>,
        links: Option<Links>,
        sealing: Option<&Sealing>,
        tuning: &Tuning,
        streams: &Streams,
        roles: &[Role],
    ) -> Result<Self> {
        let listener = TcpListener::bind(tuning.listen).await.with_context(|| {
            format!("cannot listen on {}; is something else there? --listen takes another address", tuning.listen)
        })?;
        let metrics = telemetry::metrics()?;
        // Queries need no event store: they go on, and start, without it.
        let needs_event_store = roles.iter().any(|role| *role != Role::Query);
        if needs_event_store {
            check(
                databases,
                tuning.require_standby && roles.iter().any(|role| matches!(role, Role::Command | Role::Process)),
            )
            .await?;
        }

        let close = CancellationToken::new();
        let (policy, video_limits) = (tuning.policy.policy()?, tuning.videos.limits()?);
        // Processes send commands too, through executors of their own where no API is served.
        let decides = roles.contains(&Role::Command) || roles.contains(&Role::Process);
        let commands = decides.then(|| {
            let limits = tuning.command_limits();
            CommandSide::start(&databases.to_append(), databases.shard_count, &policy, &limits)
        });
        let projector = match roles.contains(&Role::Project) {
            true => Some(projector(databases, streams).await?),
            false => None,
        };
        let ledger_watch = roles.contains(&Role::Project).then(|| LedgerWatch::start(databases.to_project()));
        let relay = match roles.contains(&Role::Relay) {
            true => Some(relay(databases, &streams.kafka).await?),
            false => None,
        };
        let sealer = sealing.map(|sealing| sealing.sealer(databases)).transpose()?.flatten();
        let processes = match commands.as_ref().filter(|_| roles.contains(&Role::Process)) {
            None => None,
            Some(side) => {
                let payouts = tuning.payouts.payouts(databases, master_keys)?;
                if payouts.is_none() {
                    tracing::warn!("SKYRIFF_PAYOUT_PROVIDER names nobody: this process pays no withdrawals");
                }
                let erasures = links.as_ref().map(|links| erase::erasures(databases, links.storage()));
                let services = Services::new(side.commands.clone(), databases.shard_count);
                let services = services.with_payouts(payouts).with_erasures(erasures);
                Some(ProcessSide::start(&databases.to_react(), &services, &processes::Limits::default()))
            }
        };
        let serves_commands = commands.as_ref().filter(|_| roles.contains(&Role::Command));
        let callbacks_of = tuning.payouts.callbacks()?;
        let payout_callbacks = serves_commands.map(|side| PayoutCallbacks {
            commands: side.commands.clone(),
            shards: databases.shard_count,
            records: payouts::records(databases, databases::COMMAND),
            provider: callbacks_of,
        });
        let video_keeper = commands
            .as_ref()
            .filter(|_| roles.contains(&Role::Process))
            .map(|side| VideoKeeperSide::start(&databases.to_react(), &side.commands, &video_limits));
        let sweeps_every = Duration::from_secs(u64::from(tuning.sweep_every_s));
        let sweeps = links
            .as_ref()
            .filter(|_| roles.contains(&Role::Process) && !sweeps_every.is_zero())
            .map(|links| Sweeps::start(databases, links.storage().clone(), sweeps_every));
        let (video_side, videos) = serves_commands
            .zip(master_keys)
            .zip(links.as_ref())
            .map(|((side, keys), links)| {
                let (places, count) = (databases.to_append(), databases.shard_count);
                let (commands, vault) = (side.commands.clone(), master_key::vault(databases, databases::COMMAND, keys));
                let side = VideoQueueSide::start(&places, count, &commands, &vault, &video_limits, close.clone());
                let queue = side.queue.clone();
                (side, VideoApi { commands, queue, vault, outputs: Arc::new(Stored(links.storage().clone())) })
            })
            .unzip();
        let queries = roles.contains(&Role::Query).then(|| {
            let patience = Duration::from_millis(u64::from(tuning.freshness_wait_ms));
            Replicas::new(databases.shard_count, databases.to_query(), patience)
        });
        let logs = databases.to_stream();
        let stories = roles.contains(&Role::Query).then(|| Stories::new(logs.clone()));
        let events = roles.contains(&Role::Query).then(|| {
            let streams_max = usize::from(tuning.event_streams_max);
            EventLogs::new(databases.shard_count, logs, streams_max, close.clone())
        });
        let proofs = match roles.contains(&Role::Query) {
            true => sealing.and_then(|sealing| sealing.proofs(databases)),
            false => None,
        };
        if roles.contains(&Role::Query) && proofs.is_none() {
            tracing::warn!("SKYRIFF_SEAL_PUBLIC_KEYS says nothing: this process answers no auditor with proofs");
        }
        let probe = |place: &crate::config::Place| {
            let options = place.primary.as_role(databases::QUERY).application_name("skyriff health");
            PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(2)).connect_lazy_with(options)
        };
        let router = api::router(Served {
            sealing: master_keys.map(|keys| master_key::vault(databases, databases::COMMAND, keys)),
            opening: master_keys.map(|keys| master_key::vault(databases, databases::QUERY, keys)),
            payout_callbacks,
            commands: serves_commands.map(|side| side.commands.clone()),
            videos,
            links,
            point_worth: tuning.videos.point_worth(),
            queries,
            events,
            proofs,
            stories,
            tokens: tokens.clone(),
            limits: request::Limits::default(),
            behind_proxy: tuning.behind_proxy,
            metrics,
            event_store: databases.event_store.iter().filter(|_| needs_event_store).map(probe).collect(),
        });
        let address = listener.local_addr()?;
        let closed = close.clone();
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
        });
        let router = router.into_make_service_with_connect_info::<std::net::SocketAddr>();
        let serve = axum::serve(listener, router).with_graceful_shutdown(async move { closed.cancelled().await });
        let http = tokio::spawn(serve.into_future());
        Ok(Self {
            address,
            http,
            close,
            commands,
            projector,
            ledger_watch,
            processes,
            relay,
            videos: video_side,
            video_keeper,
            sweeps,
            sealer,
        })
    }

    /// Serve until told to stop, then finish what is in hand: requests first, then what they need.
    pub async fn until(mut self, stop: CancellationToken) -> Result<()> {
        let ended = {
            let commands = async {
                match &mut self.commands {
                    Some(side) => side.failed().await,
                    None => std::future::pending().await,
                }
            };
            let projector = async {
                match &mut self.projector {
                    Some(projector) => projector.failed().await,
                    None => std::future::pending().await,
                }
            };
            let relay = async {
                match &mut self.relay {
                    Some(relay) => relay.failed().await,
                    None => std::future::pending().await,
                }
            };
            let processes = async {
                match &mut self.processes {
                    Some(processes) => processes.failed().await,
                    None => std::future::pending().await,
                }
            };
            let videos = async {
                match &mut self.videos {
                    Some(videos) => videos.failed().await,
                    None => std::future::pending().await,
                }
            };
            let video_keeper = async {
                match &mut self.video_keeper {
                    Some(keeper) => keeper.failed().await,
                    None => std::future::pending().await,
                }
            };
            let sweeps = async {
                match &mut self.sweeps {
                    Some(sweeps) => sweeps.failed().await,
                    None => std::future::pending().await,
                }
            };
            let sealer = async {
                match &mut self.sealer {
                    Some(sealer) => sealer.failed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => None,
                reason = sealer => Some(anyhow!(reason)),
                reason = sweeps => Some(anyhow!(reason)),
                reason = relay => Some(anyhow!(reason)),
                reason = commands => Some(anyhow!(reason)),
                reason = projector => Some(anyhow!(reason)),
                reason = processes => Some(anyhow!(reason)),
                reason = videos => Some(anyhow!(reason)),
                reason = video_keeper => Some(anyhow!(reason)),
                result = &mut self.http => Some(anyhow!("HTTP ended by itself: {result:?}")),
            }
        };
        tracing::info!("stopping: answering what is in hand");
        self.close.cancel();
        if ended.is_none() && tokio::time::timeout(DRAIN_MAX, &mut self.http).await.is_err() {
            tracing::warn!("requests still in hand after {DRAIN_MAX:?} are cut off");
        }
        self.http.abort();
        if let Some(videos) = self.videos {
            videos.stop().await;
        }
        if let Some(sweeps) = self.sweeps {
            sweeps.stop().await;
        }
        if let Some(keeper) = self.video_keeper {
            keeper.stop().await;
        }
        if let Some(processes) = self.processes {
            processes.stop().await;
        }
        if let Some(side) = self.commands {
            side.stop().await;
        }
        if let Some(watch) = self.ledger_watch {
            watch.stop().await;
        }
        if let Some(projector) = self.projector {
            projector.stop().await;
        }
        if let Some(relay) = self.relay {
            relay.stop().await;
        }
        if let Some(sealer) = self.sealer {
            sealer.stop().await;
        }
        ended.map_or(Ok(()), Err)
    }
}

/// Projections, from wherever they take events.
async fn projector(databases: &Databases, streams: &Streams) -> Result<Followers> {
    let places = databases.to_project();
    Ok(match streams.from {
        EventsFrom::Log => Followers::start(&Projection::ALL, PROJECTOR, &databases.to_follow(), &places),
        EventsFrom::Kafka => {
            let settings = streams.kafka.settings()?;
            check_topic(&settings, databases).await?;
            let logs: Vec<_> = databases.to_follow().into_iter().map(as_projector).collect();
            Followers::start_from(&Projection::ALL, PROJECTOR, &places, |projection, tables| {
                let group = group::name(streams.kafka.group(), projection.name(), projection.version(), tables);
                KafkaSource::start(&settings, group, &tables.shards, &logs)
            })
        }
    })
}

fn as_projector(log: LogDatabase) -> LogDatabase {
    LogDatabase { options: log.options.application_name(PROJECTOR), ..log }
}

async fn relay(databases: &Databases, kafka: &KafkaArguments) -> Result<Relay> {
    let settings = kafka.settings()?;
    check_topic(&settings, databases).await?;
    Ok(Relay::start(&settings, databases.shard_count, &databases.to_relay()))
}

/// Refuse a topic of another shape. A cluster that is not reached is waited for, by whoever needs it.
async fn check_topic(settings: &skyriff_kafka::Settings, databases: &Databases) -> Result<()> {
    match topic::check(settings, databases.shard_count).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_about_the_topic() => Err(error.into()),
        Err(error) => {
            tracing::warn!(
                error = format!("{:#}", anyhow!(error)),
                "Kafka is not reached; going on without it until it is"
            );
            Ok(())
        }
    }
}

/// Refuse to start on a store of another shape.
async fn check(databases: &Databases, require_standby: bool) -> Result<()> {
    for place in &databases.event_store {
        let options = place.primary.as_role(databases::QUERY);
        let mut connection = options.connect().await.context("cannot reach the event store")?;
        databases::check_shard_count(&mut connection, databases.shard_count).await?;
        ensure!(
            !require_standby || event_store::commits_on_a_standby(&mut connection).await?,
            "a standby is required, and the event store commits without one: set synchronous_standby_names in Postgres"
        );
        connection.close().await?;
    }
    Ok(())
}
