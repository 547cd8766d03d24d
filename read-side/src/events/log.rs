//! Reading the log for export: pages of several shards at once, from the first database that answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::metrics::counter;
use futures::TryStreamExt;
use skyriff_domain::{LogPosition, Position, ShardCount, ShardId};
use sqlx::{PgConnection, PgPool};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    cursor::Positions,
    filter::{Filter, Range},
    rows::{ByShard, OtherForm, Row, Rows},
};
use crate::replicas::{AtLeast, ReadDatabase};

/// Pages of the log that were read, by `from`: replica, primary.
const PAGES: &str = "skyriff_event_pages_total";
/// A database that does not answer within this time is passed over.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// The event store, to be read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventLogs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shard_count: ShardCount,
    databases: Vec<ReadDatabase>,
    next: AtomicUsize,
    /// A permit for each stream that may be open.
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

/// The log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No database of these shards answers.
    #[error("no database of the event store answers")]
    Unavailable,
    /// The databases of these shards that answer have not come as far as was asked for.
    #[error("the log is at {newest} here, which is before what was asked for")]
    NotYet {
        /// How far the one is that has come furthest.
        newest: LogPosition,
    },
    /// Events are missing, and nothing may be skipped.
    #[error("the log of shard {} has a gap: {} comes after {after}", .found.shard, .found.position)]
    Gap {
        /// What was read, or should have been.
        found: LogPosition,
        /// What was read before it.
        after: Position,
    },
    /// A row has other columns than the log's.
    #[error(transparent)]
    Form(#[from] OtherForm),
    /// The database said no, or is gone.
    #[error("the event log cannot be read")]
    Database(#[from] sqlx::Error),
}

/// What was read at once, beside the rows.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Up to where each shard was read, whether or not anything passed the filter.
    pub(super) read: Positions,
    /// The last position that the database has of each shard.
    pub(super) heads: Positions,
}

impl EventLogs {
    /// Read from these, for at most `streams_max` clients at a time, until `stop`.
    pub fn new(
        shard_count: ShardCount,
        databases: Vec<ReadDatabase>,
        streams_max: usize,
        stop: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(streams_max));
        Self(Arc::new(Inner { shard_count, databases, next: AtomicUsize::new(0), streams, stop }))
    }

    pub(super) fn shard_count(&self) -> ShardCount {
        self.0.shard_count
    }

    pub(super) fn streams(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.streams)
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// The events after these positions, of at most `each` positions of each shard, from databases that have come at least so
    /// far, in place of what `rows` has of these shards. A connection that is given up in the middle is closed: the pool
    /// finds rows on it where it expects none.
    pub(super) async fn read(
        &self,
        filter: &Filter,
        after: &Positions,
        at_least: &AtLeast,
        each: i64,
        rows: &mut ByShard,
    ) -> Result<Page, ReadError> {
        let mut page = Page::default();
        for database in &self.0.databases {
            let of_it = after.iter().filter(|(shard, _)| database.shards.contains(shard));
            let of_it: Positions = of_it.map(|(shard, position)| (*shard, *position)).collect();
            if !of_it.is_empty() {
                let read = self.read_database(database, filter, &of_it, at_least, each, rows).await?;
                page.read.extend(read.read);
                page.heads.extend(read.heads);
            }
        }
        Ok(page)
    }

    async fn read_database(
        &self,
        database: &ReadDatabase,
        filter: &Filter,
        after: &Positions,
        at_least: &AtLeast,
        each: i64,
        rows: &mut ByShard,
    ) -> Result<Page, ReadError> {
        let first = self.0.next.fetch_add(1, Ordering::Relaxed);
        let count = database.replicas.len();
        let turns = (0..count).filter_map(|turn| database.replicas.get((first + turn) % count));
        let pools = turns.map(|pool| (pool, "replica")).chain([(&database.primary, "primary")]);
        let mut furthest: Option<LogPosition> = None;
        for (pool, from) in pools {
            match timeout(ANSWER_MAX, read_pool(pool, filter, after, at_least, each, rows)).await {
                Ok(Ok(page)) => {
                    counter!(PAGES, "from" => from).increment(1);
                    return Ok(page);
                }
                Ok(Err(ReadError::Database(error))) => {
                    tracing::warn!(from, %error, "an event store's database does not answer; trying the next");
                }
                Ok(Err(ReadError::NotYet { newest })) => furthest = furthest.max(Some(newest)),
                Ok(Err(error @ (ReadError::Unavailable | ReadError::Gap { .. } | ReadError::Form(_)))) => {
                    return Err(error);
                }
                Err(_) => tracing::warn!(from, "an event store's database takes too long; trying the next"),
            }
        }
        Err(furthest.map_or(ReadError::Unavailable, |newest| ReadError::NotYet { newest }))
    }
}

async fn read_pool(
    pool: &PgPool,
    filter: &Filter,
    after: &Positions,
    at_least: &AtLeast,
    each: i64,
    rows: &mut ByShard,
) -> Result<Page, ReadError> {
    let mut connection = pool.acquire().await?;
    // On the same connection, so that the rows are of a database that has come at least this far.
    let heads = heads(&mut connection).await?;
    let mut page = Page::default();
    let mut ranges = Vec::new();
    for (shard, after) in after {
        let head = heads.get(shard).copied().unwrap_or_default();
        if head < at_least.of(*shard) {
            return Err(ReadError::NotYet { newest: LogPosition { shard: *shard, position: head } });
        }
        page.heads.insert(*shard, head);
        let upto = Position(after.0.saturating_add(each)).min(head);
        if upto > *after {
            let number = i16::try_from(shard.0).unwrap_or(i16::MAX);
            ranges.push(Range { shard: number, after: after.0, upto: upto.0 });
            page.read.insert(*shard, upto);
        }
    }
    if ranges.is_empty() {
        return Ok(page);
    }
    if let Err(error) = read_ranges(&mut connection, filter, &ranges, rows).await {
        // What the database still has to say about it would be taken for the answer to the next question.
        drop(connection.detach());
        return Err(error);
    }
    for (shard, upto) in &page.read {
        let start = after.get(shard).copied().unwrap_or_default();
        let mut order = Order::new(filter, *shard, start);
        for row in rows.get(shard).into_iter().flat_map(Rows::iter) {
            order.check(row.at)?;
        }
        order.end(*upto)?;
    }
    Ok(page)
}

/// The events of these ranges that pass, by shard and in order of their positions, in place of what `rows` has of these
/// shards. Of each shard at most one range.
///
/// # Errors
/// [`ReadError::Form`] and [`ReadError::Database`]; what is in `rows` is not to be used then.
pub async fn read_ranges(
    connection: &mut PgConnection,
    filter: &Filter,
    ranges: &[Range],
    rows: &mut ByShard,
) -> Result<(), ReadError> {
    for range in ranges {
        let rows = rows.entry(ShardId(u16::try_from(range.shard).unwrap_or_default())).or_default();
        rows.clear();
        if filter.is_everything() {
            rows.reserve(usize::try_from(range.upto - range.after).unwrap_or_default());
        }
    }
    let mut sent = connection.copy_out_raw(&filter.copy(ranges)).await?;
    while let Some(message) = sent.try_next().await? {
        if let Some(row) = Row::in_message(&message)? {
            rows.entry(row.at.shard).or_default().push(row);
        }
    }
    rows.values_mut().for_each(Rows::order);
    Ok(())
}

/// For connections that read the log. Told that a range is a guess of many rows, the planner would look through the whole
/// table for each, or compile a program for it.
pub const BY_RANGE: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];

/// The last position of each shard that the database has.
///
/// # Errors
/// As sqlx's.
pub async fn heads(connection: &mut PgConnection) -> sqlx::Result<Positions> {
    let heads: Vec<(i16, i64)> = sqlx::query_as("SELECT shard, position FROM heads").fetch_all(connection).await?;
    let heads = heads.into_iter();
    Ok(heads.filter_map(|(shard, head)| Some((ShardId(u16::try_from(shard).ok()?), Position(head)))).collect())
}

/// Holds what is read of a shard against the log's promise: 1, 2, 3 … When a filter leaves some out, what is left
/// ascends.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    shard: ShardId,
    last: Position,
    whole: bool,
}

impl Order {
    /// What follows `after` through this filter.
    pub fn new(filter: &Filter, shard: ShardId, after: Position) -> Self {
        Self { shard, last: after, whole: filter.is_everything() }
    }

    /// The next that was read.
    ///
    /// # Errors
    /// [`ReadError::Gap`].
    pub fn check(&mut self, found: LogPosition) -> Result<(), ReadError> {
        let follows = if self.whole { found.position == self.last.next() } else { found.position > self.last };
        if !follows || found.shard != self.shard {
            return Err(ReadError::Gap { found, after: self.last });
        }
        self.last = found.position;
        Ok(())
    }

    /// Nothing more was read, and this position is known to be there.
    ///
    /// # Errors
    /// [`ReadError::Gap`].
    pub fn end(&self, upto: Position) -> Result<(), ReadError> {
        if self.whole && self.last != upto {
            let found = LogPosition { shard: self.shard, position: upto };
            return Err(ReadError::Gap { found, after: self.last });
        }
        Ok(())
    }
}
