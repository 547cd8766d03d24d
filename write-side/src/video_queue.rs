//! Which video job is whose turn: workers are given jobs, kept alive by their heartbeats, and noticed when they are dead.
//!
//! ```text
//! log ─▶ keeper ─▶ table video_queue ─▶ dispatcher: claim, for all workers that wait ─▶ Lease commands ─▶ log
//!                       ▲    └─▶ sweeper: leases that are over, jobs that waited too long ─▶ commands ─▶ log
//!                       └── heartbeats
//! ```
//!
//! # What must hold
//! * The log decides. The table is a hint: a job that it offers wrongly is refused by the job's own stream, so an attempt
//!   is given to one worker only, whatever nodes do at once.
//! * Nothing of it is needed after a crash: a claim is over after a while, a lease after another, and the table can be
//!   emptied and built again from the log.
//! * Workers that ask cost one statement together, not one each, and no row is locked that another node waits for.
//!
//! # Whose turn it is
//! The job whose *turn* is oldest: when it was submitted, minus [`Limits::aging`] for each step of its priority. A job of
//! priority 3 passes those of priority 0 that came up to three times the aging before it, and none that has waited for
//! longer; a job that is tried again keeps its turn.

mod absence;
mod dispatcher;
mod heartbeats;
mod keeper;
mod made;
mod outlook;
mod sweeper;
mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skyriff_domain::{Label, ShardCount, ShardId, UserId, shard_of};
use skyriff_follow::{Followers, LogDatabase, TableDatabase};
use skyriff_vault::Vault;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Commands, commands::EventDatabase, processes::ProcessDatabase};

pub use dispatcher::{Ask, LeasedJob};
pub use heartbeats::Beat;
pub use outlook::Outlook;
pub use watch::{Change, NotWatched, Watched};

/// The numbers of the queue.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a worker may go without being heard of.
    pub lease: Duration,
    /// How long an attempt may take, however often its worker is heard of; longer than any worker lets one take.
    pub attempt_max: Duration,
    /// How much earlier one more step of priority makes a job's turn.
    pub aging: Duration,
    /// Jobs that have not been made this long after they were submitted expire.
    pub waiting_max: Duration,
    /// How many jobs a provider may have in flight at once, over all databases, each of which has its part and at least one;
    /// any number when it is not here.
    pub provider_caps: BTreeMap<Label, u32>,
    /// When a provider that fails is paused. Each database counts, and pauses, for itself.
    pub breaker: Breaker,
    /// Workers that may wait for jobs at one node.
    pub asks_max: usize,
    /// Heartbeats that may wait at one node.
    pub beats_max: usize,
    /// Clients that may watch jobs at one node, of one user at most 32.
    pub watchers_max: usize,
}

/// When a provider that fails is paused, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    /// So many failures within the window, and at least as many as successes, pause it.
    pub failures_min: u32,
    /// How long an outcome counts.
    pub window: Duration,
    /// The first pause; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// Jobs in flight after a pause, until one of them has an outcome.
    pub trial_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            attempt_max: Duration::from_secs(3_600),
            aging: Duration::from_secs(60),
            waiting_max: Duration::from_secs(24 * 3_600),
            provider_caps: BTreeMap::new(),
            breaker: Breaker {
                failures_min: 5,
                window: Duration::from_secs(60),
                pause: Duration::from_secs(30),
                pause_max: Duration::from_secs(600),
                trial_max: 1,
            },
            asks_max: 4_096,
            beats_max: 16_384,
            watchers_max: 4_096,
        }
    }
}

/// The node has as many waiting already as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has as many waiting as it takes")]
pub struct Busy;

/// Connections of a node to one database for the queue.
const CONNECTIONS_MAX: u32 = 6;
/// A statement that takes longer is given up.
const STATEMENT_MAX: Duration = Duration::from_secs(5);

/// Where workers ask for jobs, and clients for news of theirs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VideoQueue {
    places: Arc<[Place]>,
    shard_count: ShardCount,
    limits: Arc<Limits>,
    asks: dispatcher::Asks,
    beats: heartbeats::Beats,
    watches: watch::Watches,
    close: CancellationToken,
}

/// One database of the event store.
#[derive(Clone, Debug)]
struct Place {
    /// As in metrics.
    name: String,
    pool: PgPool,
    shards: Vec<ShardId>,
}

/// What serves workers and watchers on a node that takes commands.
#[derive(Debug)]
pub struct VideoQueueSide {
    /// Where workers ask.
    pub queue: VideoQueue,
    tasks: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl VideoQueueSide {
    /// Start it. It connects when it is first needed. Requests that wait are answered when `close` is cancelled.
    pub fn start(
        databases: &[EventDatabase],
        shard_count: ShardCount,
        commands: &Commands,
        vault: &Vault,
        limits: &Limits,
        close: CancellationToken,
    ) -> Self {
        let stop = CancellationToken::new();
        let place = |database: &EventDatabase| Place {
            name: database.options.get_database().unwrap_or("events").to_owned(),
            pool: PgPoolOptions::new()
                .max_connections(CONNECTIONS_MAX)
                .acquire_timeout(STATEMENT_MAX)
                .connect_lazy_with(database.options.clone().application_name("skyriff video queue")),
            shards: database.shards.clone(),
        };
        let places: Arc<[Place]> = databases.iter().map(place).collect();
        let limits = Arc::new(limits.clone());
        let (asks, dispatcher) =
            dispatcher::start(Arc::clone(&places), commands.clone(), vault.clone(), Arc::clone(&limits), stop.clone());
        let (beats, heart) = heartbeats::start(Arc::clone(&places), shard_count, Arc::clone(&limits), stop.clone());
        let (watches, watchers) = watch::start(Arc::clone(&places), limits.watchers_max, stop.clone());
        let queue = VideoQueue { places, shard_count, limits, asks, beats, watches, close };
        let tasks = [dispatcher, heart, watchers].into_iter().flatten().collect();
        Self { queue, tasks, stop }
    }

    /// Finish what is in hand and end.
    pub async fn stop(self) {
        self.stop.cancel();
        drop(self.queue);
        end(self.tasks).await;
    }

    /// Ends when a task ended although nobody stopped it: a bug, and the process should end too.
    pub async fn failed(&mut self) -> String {
        let (ended, ..) = futures::future::select_all(self.tasks.iter_mut()).await;
        format!("a task of the video queue ended by itself: {ended:?}")
    }
}

/// What keeps the queue up with the log, and notices what is over.
#[derive(Debug)]
pub struct VideoKeeperSide {
    followers: Followers,
    sweepers: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl VideoKeeperSide {
    /// Start it. It connects by itself, and again whenever a connection is lost.
    pub fn start(databases: &[ProcessDatabase], commands: &Commands, limits: &Limits) -> Self {
        let stop = CancellationToken::new();
        let keeper = keeper::Keeper { lease: limits.lease, aging: limits.aging, breaker: limits.breaker };
        let (logs, tables): (Vec<_>, Vec<_>) = databases
            .iter()
            .map(|place| {
                let (options, shards) = (place.options.clone(), place.shards.clone());
                (LogDatabase { options: options.clone(), shards: shards.clone() }, TableDatabase { options, shards })
            })
            .unzip();
        let followers = Followers::start(&[keeper], "skyriff video keeper", &logs, &tables);
        let sweeper = |place: &ProcessDatabase| {
            let options = place.options.clone().application_name("skyriff video sweeper");
            let sweeper = sweeper::Sweeper { options, commands: commands.clone(), limits: limits.clone() };
            tokio::spawn(sweeper.run(stop.clone()))
        };
        let sweepers = databases.iter().map(sweeper).collect();
        Self { followers, sweepers, stop }
    }

    /// Finish what is in hand and end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.followers.stop().await;
        end(self.sweepers).await;
    }

    /// Ends when a task ended although nobody stopped it: a bug, and the process should end too.
    pub async fn failed(&mut self) -> String {
        tokio::select! {
            reason = self.followers.failed() => reason,
            (ended, ..) = futures::future::select_all(self.sweepers.iter_mut()) => {
                format!("a sweeper of video jobs ended by itself: {ended:?}")
            }
        }
    }
}

impl VideoQueue {
    /// How long a worker may go without being heard of.
    pub fn lease_time(&self) -> Duration {
        self.limits.lease
    }

    /// Cancelled when the node is told to stop: whoever waits is to be answered.
    pub fn closing(&self) -> &CancellationToken {
        &self.close
    }

    fn place_of(&self, user: UserId) -> Option<&Place> {
        let shard = shard_of(user, self.shard_count);
        self.places.iter().find(|place| place.shards.contains(&shard))
    }
}

async fn end(tasks: Vec<JoinHandle<()>>) {
    for task in tasks.into_iter().filter(|task| !task.is_finished()) {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the video queue ended badly");
        }
    }
}

async fn within<T>(statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(STATEMENT_MAX, statement).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}
