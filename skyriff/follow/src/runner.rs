//! Keeps the tables of one follower in one database up with the log, or with another source of its events.
//!
//! ```text
//! wait for more (or a second) ─▶ read after the checkpoints ─▶ apply and move the checkpoints ─▶ again
//! ```
//!
//! # What must hold
//! * A checkpoint only moves from where it was when the events after it were read: two runners on the same shards
//!   waste each other's time and nothing else.
//! * An event that cannot be applied stops its shard, right before itself, and says so in the checkpoint, the log and
//!   a metric. It is tried again with back-off, never skipped; the other shards go on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::metrics::{counter, gauge, histogram};
use chrono::Utc;
use skyriff_domain::{Position, RecordedEvent, ShardId};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoints::{self, OpenError, number},
    follower::{ApplyError, Follower},
    log::{self, LogError, ShardEvents},
    source::{Behind, LogSource, Source},
};

/// Events of one shard in one batch.
const BATCH_PER_SHARD: u16 = 1_000;
/// A notification may be lost with its connection; after this time the source is read anyway.
const READ_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// A step that takes longer is given up, with its connections; the transaction that it was in rolls back.
const STEP_MAX: Duration = Duration::from_secs(60);
/// The wait after a failure, and its growth.
const BACK_OFF: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Events that the log has and the tables have not, by `follower` and `shard`; NaN while that is not known.
const LAG_EVENTS: &str = "skyriff_follower_lag_events";
/// Seconds since the oldest event that is not applied yet was recorded; 0 when there is none, NaN while that is not known.
const LAG_SECONDS: &str = "skyriff_follower_lag_seconds";
/// 1 while a shard stands still before an event that cannot be applied.
const STOPPED: &str = "skyriff_follower_stopped";
/// Events applied.
const EVENTS: &str = "skyriff_follower_events_total";
/// Seconds to apply and commit a batch.
const BATCH_SECONDS: &str = "skyriff_follower_batch_seconds";

/// One database of the event store.
#[derive(Clone, Debug)]
pub struct LogDatabase {
    /// How to connect, as the role that may read events.
    pub options: PgConnectOptions,
    /// Its shards.
    pub shards: Vec<ShardId>,
}

/// One database of the tables that follow, on the primary that takes its writes.
#[derive(Clone, Debug)]
pub struct TableDatabase {
    /// How to connect, as the role that may write them.
    pub options: PgConnectOptions,
    /// Its shards.
    pub shards: Vec<ShardId>,
}

/// Followers, running.
#[derive(Debug)]
pub struct Followers {
    tasks: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Followers {
    /// Follow the log itself: a runner for every follower and every pair of a database of the log and one of tables that
    /// share shards.
    pub fn start<F: Follower>(
        followers: &[F],
        program: &'static str,
        logs: &[LogDatabase],
        places: &[TableDatabase],
    ) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        for events in logs {
            let mut wakers = Vec::new();
            for tables in places {
                let shards: Vec<_> =
                    tables.shards.iter().filter(|shard| events.shards.contains(shard)).copied().collect();
                if shards.is_empty() {
                    continue;
                }
                for follower in followers.iter().copied() {
                    let waker = Arc::new(Notify::new());
                    wakers.push(Arc::clone(&waker));
                    let source = LogSource::new(events.options.clone().application_name(program), waker);
                    let tables = tables.options.clone().application_name(program);
                    let runner = Runner { follower, shards: shards.clone(), tables };
                    tasks.push(tokio::spawn(runner.run(source, stop.clone())));
                }
            }
            tasks.push(tokio::spawn(log::listen(events.options.clone(), wakers, stop.clone())));
        }
        Self { tasks, stop }
    }

    /// Follow another source of the same events: a runner, with a source of its own, for every follower and every
    /// database of tables. Checkpoints are the same as with the log, so it goes on where that one stopped, and the
    /// other way round.
    pub fn start_from<F: Follower, S: Source>(
        followers: &[F],
        program: &'static str,
        places: &[TableDatabase],
        source: impl Fn(F, &TableDatabase) -> S,
    ) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        for tables in places {
            for follower in followers.iter().copied() {
                let source = source(follower, tables);
                let options = tables.options.clone().application_name(program);
                let runner = Runner { follower, shards: tables.shards.clone(), tables: options };
                tasks.push(tokio::spawn(runner.run(source, stop.clone())));
            }
        }
        Self { tasks, stop }
    }

    /// Finish the batches in hand and end.
    pub async fn stop(self) {
        self.stop.cancel();
        // One that has ended was awaited already, by `failed`, or has nothing left to say.
        for task in self.tasks.into_iter().filter(|task| !task.is_finished()) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a follower ended badly");
            }
        }
    }

    /// Ends when a runner ended although nobody stopped it: a bug, and the process should end too.
    pub async fn failed(&mut self) -> String {
        let (ended, ..) = futures::future::select_all(self.tasks.iter_mut()).await;
        match ended {
            Ok(()) => "a follower ended by itself".to_owned(),
            Err(error) => format!("a follower ended badly: {error}"),
        }
    }
}

/// A follower could not go on for now.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("the database of the tables cannot be reached")]
    Tables(#[from] sqlx::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("a database does not answer")]
    Late,
}

struct Runner<F> {
    follower: F,
    shards: Vec<ShardId>,
    tables: PgConnectOptions,
}

/// A shard that stands still.
struct Stopped {
    again_at: Instant,
    back_off: Duration,
}

impl<F: Follower> Runner<F> {
    async fn run<S: Source>(self, mut source: S, stop: CancellationToken) {
        let mut tables = None;
        let mut stopped = BTreeMap::new();
        let mut back_off = BACK_OFF;
        while !stop.is_cancelled() {
            let step = tokio::select! {
                step = tokio::time::timeout(STEP_MAX, self.step(&mut source, &mut tables, &mut stopped)) => step,
                () = stop.cancelled() => break,
            };
            let wait = match step.unwrap_or(Err(RunError::Late)) {
                Ok(more) => {
                    back_off = BACK_OFF;
                    if more { Duration::ZERO } else { READ_AT_LEAST_EVERY }
                }
                Err(error) => {
                    source.reset();
                    tables = None;
                    self.show_lag(&BTreeMap::new());
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                    tracing::warn!(
                        follower = self.follower.name(),
                        error = chain(&error),
                        "a follower waits for its databases"
                    );
                    back_off
                }
            };
            if !wait.is_zero() {
                tokio::select! {
                    () = source.more(), if tables.is_some() => {}
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        source.close().await;
    }

    /// Apply one batch; whether there may be more to do at once.
    async fn step<S: Source>(
        &self,
        source: &mut S,
        tables: &mut Option<PgConnection>,
        stopped: &mut BTreeMap<ShardId, Stopped>,
    ) -> Result<bool, RunError> {
        let tables = match tables {
            Some(open) => open,
            closed => closed.insert(self.connect().await?),
        };
        let now = Instant::now();
        stopped.retain(|shard, _| {
            let ours = source.has(*shard);
            if !ours {
                self.gauge(STOPPED, *shard).set(0.0);
            }
            ours
        });
        let waits = |shard: &ShardId| stopped.get(shard).is_some_and(|stopped| stopped.again_at > now);
        let mut checkpoints = self.checkpoints(tables).await?;
        checkpoints.retain(|shard, _| !waits(shard));
        let mut read = source.read_after(&checkpoints, BATCH_PER_SHARD).await?;
        let full = read.values().any(|shard| shard.events.len() >= usize::from(BATCH_PER_SHARD));

        let whole: Vec<_> = read.values_mut().flat_map(|shard| std::mem::take(&mut shard.events)).collect();
        let mut failed = match self.apply(tables, &checkpoints, &whole).await {
            Ok(()) => BTreeMap::new(),
            Err(error) if error.is_about_the_connection() => return Err(error),
            // One shard's event must not stop the others: each on its own, and the one up to the event.
            Err(_) => self.apply_shard_by_shard(tables, &checkpoints, &whole).await?,
        };
        let known: Vec<_> = read.keys().copied().collect();
        for (shard, ShardEvents { stopped_by, .. }) in read {
            if let Some(error) = stopped_by {
                failed.entry(shard).or_insert(RunError::Log(error));
            }
        }
        for (shard, error) in &failed {
            self.stand_still(tables, stopped, *shard, error).await?;
        }
        for shard in known {
            if stopped.contains_key(&shard) && !failed.contains_key(&shard) {
                self.go_on(tables, stopped, shard).await?;
            }
        }
        self.report(source, tables).await?;
        Ok(full)
    }

    /// Apply events of several shards and move their checkpoints, or neither.
    async fn apply(
        &self,
        tables: &mut PgConnection,
        checkpoints: &BTreeMap<ShardId, Position>,
        events: &[RecordedEvent],
    ) -> Result<(), RunError> {
        if events.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let moved = checkpoints::begin_move(self.follower, tables, checkpoints, events).await?;
        // Without it another runner has been here; the next step starts from where it got.
        let Some(mut transaction) = moved else { return Ok(()) };
        self.follower.apply(events, &mut transaction).await?;
        transaction.commit().await?;
        counter!(EVENTS, "follower" => self.follower.name()).increment(u64::try_from(events.len()).unwrap_or(0));
        histogram!(BATCH_SECONDS, "follower" => self.follower.name()).record(started.elapsed());
        Ok(())
    }

    /// Each shard alone; of a shard that fails, as many events as go.
    async fn apply_shard_by_shard(
        &self,
        tables: &mut PgConnection,
        checkpoints: &BTreeMap<ShardId, Position>,
        events: &[RecordedEvent],
    ) -> Result<BTreeMap<ShardId, RunError>, RunError> {
        let mut failed = BTreeMap::new();
        for of_shard in events.chunk_by(|one, next| one.at.shard == next.at.shard) {
            let mut checkpoints = checkpoints.clone();
            let mut rest = of_shard;
            let mut size = rest.len();
            while let (Some(first), true) = (rest.first(), size > 0) {
                let (now, later) = rest.split_at(size.min(rest.len()));
                match self.apply(tables, &checkpoints, now).await {
                    Ok(()) => {
                        checkpoints.extend(now.last().map(|event| (event.at.shard, event.at.position)));
                        rest = later;
                    }
                    Err(error) if error.is_about_the_connection() => return Err(error),
                    Err(error) if size == 1 => {
                        failed.insert(first.at.shard, error);
                        break;
                    }
                    Err(_) => size = size.div_ceil(2),
                }
            }
        }
        Ok(failed)
    }

    async fn connect(&self) -> Result<PgConnection, RunError> {
        let mut tables = self.tables.connect().await?;
        checkpoints::open(self.follower, &self.shards, &mut tables).await?;
        Ok(tables)
    }

    async fn checkpoints(&self, tables: &mut PgConnection) -> Result<BTreeMap<ShardId, Position>, sqlx::Error> {
        checkpoints::read(self.follower, &self.shards, tables).await
    }

    async fn stand_still(
        &self,
        tables: &mut PgConnection,
        stopped: &mut BTreeMap<ShardId, Stopped>,
        shard: ShardId,
        error: &RunError,
    ) -> Result<(), sqlx::Error> {
        let back_off = stopped.get(&shard).map_or(BACK_OFF, |before| (before.back_off * 2).min(BACK_OFF_MAX));
        let reason = chain(error);
        if !stopped.contains_key(&shard) {
            tracing::error!(follower = self.follower.name(), %shard, error = reason, "a shard of a follower stands still");
        }
        stopped.insert(shard, Stopped { again_at: Instant::now() + back_off, back_off });
        self.gauge(STOPPED, shard).set(1.0);
        self.say_stopped(tables, shard, Some(&reason)).await
    }

    async fn go_on(
        &self,
        tables: &mut PgConnection,
        stopped: &mut BTreeMap<ShardId, Stopped>,
        shard: ShardId,
    ) -> Result<(), sqlx::Error> {
        tracing::info!(follower = self.follower.name(), %shard, "a shard of a follower goes on");
        stopped.remove(&shard);
        self.gauge(STOPPED, shard).set(0.0);
        self.say_stopped(tables, shard, None).await
    }

    async fn say_stopped(
        &self,
        tables: &mut PgConnection,
        shard: ShardId,
        reason: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE checkpoints SET stopped = $4 WHERE projection = $1 AND version = $2 AND shard = $3")
            .bind(self.follower.name())
            .bind(self.follower.version())
            .bind(number(shard))
            .bind(reason)
            .execute(tables)
            .await?;
        Ok(())
    }

    /// How far behind each shard is, whoever follows it at the moment.
    async fn report<S: Source>(&self, source: &mut S, tables: &mut PgConnection) -> Result<(), RunError> {
        let checkpoints = self.checkpoints(tables).await?;
        self.show_lag(&source.behind(&checkpoints).await?);
        Ok(())
    }

    /// What is not known is not zero: that would say that all is well.
    fn show_lag(&self, behind: &BTreeMap<ShardId, Behind>) {
        for shard in &self.shards {
            let (events, seconds) = behind.get(shard).map_or((f64::NAN, f64::NAN), |behind| {
                let oldest = behind.oldest_recorded_at.filter(|_| behind.events > 0);
                let age = oldest.map_or(0, |recorded_at| (Utc::now() - recorded_at).num_seconds());
                (float(behind.events), float(age))
            });
            self.gauge(LAG_EVENTS, *shard).set(events);
            self.gauge(LAG_SECONDS, *shard).set(seconds);
        }
    }

    fn gauge(&self, name: &'static str, shard: ShardId) -> ::metrics::Gauge {
        gauge!(name, "follower" => self.follower.name(), "shard" => shard.to_string())
    }
}

impl RunError {
    /// Such failures say nothing about the events; everything waits and tries again.
    fn is_about_the_connection(&self) -> bool {
        match self {
            Self::Late | Self::Open(_) | Self::Log(LogError::Ended(_)) => true,
            Self::Tables(error) | Self::Apply(ApplyError::Database(error)) | Self::Log(LogError::Database(error)) => {
                is_about_the_connection(error)
            }
            Self::Apply(ApplyError::Misfit(_)) | Self::Log(_) => false,
        }
    }
}

/// Whether a failure is about the database and not about what it was asked.
pub(crate) fn is_about_the_connection(error: &sqlx::Error) -> bool {
    match error.as_database_error().and_then(sqlx::error::DatabaseError::code) {
        // Shutdown, lock and statement timeouts, deadlocks, full disks, too many connections; a replica.
        Some(code) => ["57", "55", "40", "53", "08", "25"].iter().any(|class| code.starts_with(class)),
        None => !matches!(error, sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }),
    }
}

fn float(number: i64) -> f64 {
    i32::try_from(number).map_or(f64::from(i32::MAX), f64::from)
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
