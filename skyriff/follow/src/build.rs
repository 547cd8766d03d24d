//! Fills another version of a read model from the log, beside whoever keeps the live one.
//!
//! ```text
//! for each shard, several at once: read a page ─▶ fill and move the checkpoint, while the next page is read ─▶ again
//! ```
//!
//! Checkpoints decide, as with a runner: what is interrupted goes on where it was, and two that fill the same version
//! waste each other's time and nothing else.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use skyriff_domain::{LogPosition, Position, RecordedEvent, ShardId};
use sqlx::{ConnectOptions, PgConnection};
use tokio::task::JoinSet;

use crate::{
    checkpoints::{self, OpenError},
    follower::{ApplyError, Follower},
    log::{self, LogError},
    runner::{LogDatabase, TableDatabase, is_about_the_connection},
};

/// A failure that says nothing about the events is tried again so often, with growing waits in between.
const ATTEMPTS: u32 = 8;
const BACK_OFF: Duration = Duration::from_millis(100);

/// Tables that follow from the log and from nothing else, and that nothing else follows from: so they may be built anew
/// from position 1.
///
/// A follower that makes somebody do something is none: what a process has yet to do, payouts among it, would be done
/// again. So only what says that it is one can be given to a [`Builder`]:
///
/// ```compile_fail,E0277
/// use skyriff_follow::{ApplyError, Batch, Builder, Follower};
///
/// /// Writes down who has to be paid.
/// #[derive(Clone, Copy)]
/// struct Payouts;
///
/// impl Follower for Payouts {
///     fn name(self) -> &'static str { "payouts" }
///     fn version(self) -> i32 { 1 }
///     async fn apply(self, _: &Batch, _: &mut sqlx::PgConnection) -> Result<(), ApplyError> { Ok(()) }
/// }
///
/// fn pay_everybody_again(builder: Builder<Payouts>) {}
/// ```
pub trait ReadModel: Follower {
    /// Its tables, in the order in which a switch of versions locks them.
    fn tables(self) -> &'static [&'static str];

    /// The condition, in SQL, for a row of one of its tables to be of the shards that are bound as `$1`. Deleting table
    /// by table in their order, it holds for each until its turn comes.
    fn of_shards(self, table: &str) -> &'static str;

    /// As [`Follower::apply`], with the same result, in large batches and for tables that nobody reads yet.
    ///
    /// # Errors
    /// As [`Follower::apply`].
    fn fill(
        self,
        batch: &[RecordedEvent],
        transaction: &mut PgConnection,
    ) -> impl Future<Output = Result<(), ApplyError>> + Send {
        self.apply(batch, transaction)
    }
}

/// A version could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The database of the tables said no, or is gone.
    #[error("the database of the tables cannot be reached")]
    Tables(#[from] sqlx::Error),
    /// See there.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// See there.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An event does not fit.
    #[error("the event at {at} cannot be applied")]
    Apply {
        /// Where.
        at: LogPosition,
        /// Why.
        source: ApplyError,
    },
    /// The log is shorter than it was.
    #[error("the log of shard {shard} ends at {end}, and {wanted} was in it")]
    Ends {
        /// Which shard.
        shard: ShardId,
        /// Where it ends.
        end: Position,
        /// What was looked for.
        wanted: Position,
    },
    /// A worker has panicked.
    #[error("a worker ended badly")]
    Worker(#[from] tokio::task::JoinError),
}

impl BuildError {
    fn is_about_the_connection(&self) -> bool {
        match self {
            Self::Tables(error) | Self::Open(OpenError::Database(error)) | Self::Log(LogError::Database(error)) => {
                is_about_the_connection(error)
            }
            Self::Apply { source: ApplyError::Database(error), .. } => is_about_the_connection(error),
            Self::Open(OpenError::OtherVersion { .. })
            | Self::Log(_)
            | Self::Apply { source: ApplyError::Misfit(_), .. }
            | Self::Ends { .. }
            | Self::Worker(_) => false,
        }
    }
}

/// How much is done at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Shards that are filled at the same time, each with two connections.
    pub workers: usize,
    /// Events of one shard in one transaction.
    pub batch: u16,
}

/// Fills one version in one database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Builder<M: ReadModel> {
    model: M,
    logs: Arc<Vec<LogDatabase>>,
    tables: Arc<TableDatabase>,
    limits: Limits,
    applied: Arc<AtomicU64>,
}

impl<M: ReadModel> Builder<M> {
    /// Fill the tables that these options find first in their search path, for these shards.
    pub fn new(model: M, logs: Vec<LogDatabase>, tables: TableDatabase, limits: Limits) -> Self {
        Self { model, logs: logs.into(), tables: tables.into(), limits, applied: Arc::default() }
    }

    /// Events applied so far, by this one and its clones.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Make the checkpoints that are not there, and say how far each shard is.
    ///
    /// # Errors
    /// [`BuildError::Open`], [`BuildError::Tables`].
    pub async fn positions(&self) -> Result<BTreeMap<ShardId, Position>, BuildError> {
        let mut tables = self.tables.options.connect().await?;
        checkpoints::open(self.model, &self.tables.shards, &mut tables).await?;
        Ok(checkpoints::read(self.model, &self.tables.shards, &mut tables).await?)
    }

    /// The ends of the log.
    ///
    /// # Errors
    /// [`BuildError::Log`].
    pub async fn heads(&self) -> Result<BTreeMap<ShardId, Position>, BuildError> {
        let mut heads = BTreeMap::new();
        for log in self.logs.iter() {
            let of_it = log.shards.iter().filter(|shard| self.tables.shards.contains(shard));
            let start: BTreeMap<_, _> = of_it.map(|shard| (*shard, Position::START)).collect();
            let mut events = log.options.connect().await.map_err(LogError::from)?;
            let behind = log::behind(&mut events, &start).await?;
            heads.extend(behind.into_iter().map(|(shard, behind)| (shard, Position(behind.events))));
        }
        Ok(heads)
    }

    /// Apply everything up to these positions, several shards at once; how many events that were. Shards that are there
    /// already are left as they are.
    ///
    /// # Errors
    /// [`BuildError`], for the first shard that has one; what was applied until then stays.
    pub async fn catch_up(&self, upto: &BTreeMap<ShardId, Position>) -> Result<u64, BuildError> {
        let before = self.applied();
        let positions = self.positions().await?;
        let mut behind: Vec<_> = upto.iter().filter(|(shard, head)| positions.get(shard) < Some(head)).collect();
        // The longest first, so that no worker has a long one left when the others are done.
        behind.sort_by_key(|(shard, head)| positions.get(shard).map_or(0, |position| position.0 - head.0));
        let queue: VecDeque<_> = behind.into_iter().map(|(shard, head)| (*shard, *head)).collect();
        let workers = self.limits.workers.clamp(1, queue.len().max(1));
        let queue = Arc::new(Mutex::new(queue));
        let mut running = JoinSet::new();
        for _ in 0..workers {
            let (this, queue) = (self.clone(), Arc::clone(&queue));
            running.spawn(async move {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some((shard, head)) = next() {
                    this.fill_shard(shard, head).await?;
                }
                Ok::<_, BuildError>(())
            });
        }
        while let Some(worker) = running.join_next().await {
            worker??;
        }
        Ok(self.applied() - before)
    }

    /// Connections for [`Feeder::feed`], opened ahead of the moment in which somebody waits for it.
    ///
    /// # Errors
    /// [`BuildError::Log`], [`BuildError::Tables`].
    pub async fn feeder(&self) -> Result<Feeder<M>, BuildError> {
        let mut parts = Vec::new();
        for log in self.logs.iter() {
            let of_it = |shard: &&ShardId| self.tables.shards.contains(shard);
            let shards = log.shards.iter().filter(of_it).copied().collect();
            let (events, tables) = self.connect(log).await?;
            parts.push(Part { shards, events, tables });
        }
        Ok(Feeder { model: self.model, parts, batch: self.limits.batch })
    }

    async fn connect(&self, log: &LogDatabase) -> Result<(PgConnection, PgConnection), BuildError> {
        let events = log.options.connect().await.map_err(LogError::from)?;
        Ok((events, self.tables.options.connect().await?))
    }

    /// With another try when it was the connection.
    async fn fill_shard(&self, shard: ShardId, upto: Position) -> Result<(), BuildError> {
        let Some(log) = self.logs.iter().find(|log| log.shards.contains(&shard)) else { return Ok(()) };
        let mut failures = 0;
        loop {
            let before = self.applied();
            let error = match self.try_to_fill_shard(log, shard, upto).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_about_the_connection() => error,
                Err(error) => return Err(error),
            };
            failures = if self.applied() > before { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(%shard, error = %error, "building waits for its databases");
            tokio::time::sleep(BACK_OFF * 2_u32.pow(failures)).await;
        }
    }

    async fn try_to_fill_shard(&self, log: &LogDatabase, shard: ShardId, upto: Position) -> Result<(), BuildError> {
        let (mut events, mut tables) = self.connect(log).await?;
        loop {
            let at = checkpoints::read(self.model, &[shard], &mut tables).await?;
            let Some(mut after) = at.get(&shard).copied().filter(|after| *after < upto) else { return Ok(()) };
            let mut page = self.page(&mut events, shard, after, upto).await?;
            while let Some(last) = page.last().map(|event| event.at.position) {
                let at = BTreeMap::from([(shard, after)]);
                let (applied, next) =
                    tokio::join!(apply(self.model, &mut tables, &at, &page), self.page(&mut events, shard, last, upto));
                if !applied? {
                    // Somebody else fills it as well; go on from where that one got.
                    break;
                }
                self.applied.fetch_add(u64::try_from(page.len()).unwrap_or(0), Ordering::Relaxed);
                after = last;
                page = next?;
            }
        }
    }

    /// Events after a position, none beyond `upto`; none at all when that is reached.
    async fn page(
        &self,
        events: &mut PgConnection,
        shard: ShardId,
        after: Position,
        upto: Position,
    ) -> Result<Vec<RecordedEvent>, BuildError> {
        let limit = i64::from(self.limits.batch).min(upto.0 - after.0);
        if limit <= 0 {
            return Ok(Vec::new());
        }
        let page = read(events, &BTreeMap::from([(shard, after)]), limit).await?;
        if page.is_empty() {
            return Err(BuildError::Ends { shard, end: after, wanted: upto });
        }
        Ok(page)
    }
}

/// Brings a version that is a few events behind to given positions, on connections that are open.
#[derive(Debug)]
pub struct Feeder<M> {
    model: M,
    parts: Vec<Part>,
    batch: u16,
}

/// One database of the log, and the tables.
#[derive(Debug)]
struct Part {
    shards: Vec<ShardId>,
    events: PgConnection,
    tables: PgConnection,
}

impl<M: ReadModel> Feeder<M> {
    /// How far each shard is.
    ///
    /// # Errors
    /// [`BuildError::Tables`].
    pub async fn positions(&mut self) -> Result<BTreeMap<ShardId, Position>, BuildError> {
        let mut positions = BTreeMap::new();
        for Part { shards, tables, .. } in &mut self.parts {
            positions.extend(checkpoints::read(self.model, shards, tables).await?);
        }
        Ok(positions)
    }

    /// Apply everything up to these positions; shards that are further are left as they are.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn feed(&mut self, upto: &BTreeMap<ShardId, Position>) -> Result<(), BuildError> {
        for Part { shards, events, tables } in &mut self.parts {
            loop {
                let mut at = checkpoints::read(self.model, shards, tables).await?;
                at.retain(|shard, after| upto.get(shard).is_some_and(|upto| *after < *upto));
                if at.is_empty() {
                    break;
                }
                let mut page = read(events, &at, i64::from(self.batch)).await?;
                page.retain(|event| upto.get(&event.at.shard).is_some_and(|upto| event.at.position <= *upto));
                if let (true, Some((shard, end))) = (page.is_empty(), at.first_key_value()) {
                    let wanted = upto.get(shard).copied().unwrap_or_default();
                    return Err(BuildError::Ends { shard: *shard, end: *end, wanted });
                }
                apply(self.model, tables, &at, &page).await?;
            }
        }
        Ok(())
    }
}

/// The events after these positions; what is wrong with them is an error.
async fn read(
    events: &mut PgConnection,
    after: &BTreeMap<ShardId, Position>,
    limit: i64,
) -> Result<Vec<RecordedEvent>, BuildError> {
    let mut page = Vec::new();
    for of_shard in log::read_after(events, after, limit).await?.into_values() {
        // What could be read is applied first: the next read begins with what stopped this one.
        if let (true, Some(error)) = (of_shard.events.is_empty(), of_shard.stopped_by) {
            return Err(error.into());
        }
        page.extend(of_shard.events);
    }
    Ok(page)
}

/// Apply a batch, in halves when it fails, down to the event that does not fit; whether the checkpoints were there.
async fn apply<M: ReadModel>(
    model: M,
    tables: &mut PgConnection,
    checkpoints: &BTreeMap<ShardId, Position>,
    events: &[RecordedEvent],
) -> Result<bool, BuildError> {
    let (mut checkpoints, mut rest, mut size) = (checkpoints.clone(), events, events.len());
    while let (Some(first), true) = (rest.first(), size > 0) {
        let (now, later) = rest.split_at(size.min(rest.len()));
        match apply_at_once(model, tables, &checkpoints, now).await {
            Ok(true) => {
                checkpoints.extend(now.iter().map(|event| (event.at.shard, event.at.position)));
                rest = later;
            }
            Ok(false) => return Ok(false),
            Err(source) => {
                let error = BuildError::Apply { at: first.at, source };
                if size == 1 || error.is_about_the_connection() {
                    return Err(error);
                }
                size = size.div_ceil(2);
            }
        }
    }
    Ok(true)
}

async fn apply_at_once<M: ReadModel>(
    model: M,
    tables: &mut PgConnection,
    checkpoints: &BTreeMap<ShardId, Position>,
    events: &[RecordedEvent],
) -> Result<bool, ApplyError> {
    let Some(mut transaction) = checkpoints::begin_move(model, tables, checkpoints, events).await? else {
        return Ok(false);
    };
    model.fill(events, &mut transaction).await?;
    transaction.commit().await?;
    Ok(true)
}
