//! Reading the log of an event-store database: bounded, in order, without a gap.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use skyriff_domain::{Event, LogPosition, Position, RecordedEvent, ShardId, StreamId, stream::DecodeError};
use sqlx::{
    PgConnection, Row,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgRow},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::source::Behind;

/// The wait before listening again after the connection was lost.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database said no, or is gone.
    #[error("the event log cannot be read")]
    Database(#[from] sqlx::Error),
    /// The next position is not there, but a later one is: events are missing, and nothing may be skipped.
    #[error("the log of shard {} has a gap: {} comes after {after}", .found.shard, .found.position)]
    Gap {
        /// What was read.
        found: LogPosition,
        /// What was read before it.
        after: Position,
    },
    /// A stored event is not one of ours: written by a newer binary, or damaged.
    #[error("the event at {at} cannot be read")]
    Unreadable {
        /// Where.
        at: LogPosition,
        /// Why.
        source: DecodeError,
    },
    /// What should carry an event is not formed as ours are.
    #[error("what is read of shard {shard} is not one of our events: {why}")]
    Malformed {
        /// Of which shard.
        shard: ShardId,
        /// What is wrong with it, and where it is.
        why: String,
    },
    /// Whatever brings the events does not any more.
    #[error("no more events come: {0}")]
    Ended(&'static str),
}

impl LogError {
    /// The shard that cannot go on, when it is only one.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Self::Database(_) | Self::Ended(_) => None,
            Self::Gap { found, .. } => Some(found.shard),
            Self::Unreadable { at, .. } => Some(at.shard),
            Self::Malformed { shard, .. } => Some(*shard),
        }
    }
}

/// What was read of one shard: events in order, and why it did not go further when it should have.
#[derive(Debug, Default)]
pub struct ShardEvents {
    /// In order, without a gap.
    pub events: Vec<RecordedEvent>,
    /// What follows them cannot be read.
    pub stopped_by: Option<LogError>,
}

/// Read the events after each shard's position, at most `limit` of each.
///
/// # Errors
/// Only [`LogError::Database`]; what is wrong with one shard's events is in its [`ShardEvents`].
pub async fn read_after(
    connection: &mut PgConnection,
    after: &BTreeMap<ShardId, Position>,
    limit: i64,
) -> Result<BTreeMap<ShardId, ShardEvents>, LogError> {
    let (numbers, positions) = columns(after);
    let rows = sqlx::query(
        "SELECT e.* FROM unnest($1::smallint[], $2::bigint[]) AS s (shard, after)
         CROSS JOIN LATERAL (
             SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                    payload::text AS payload, occurred_at, recorded_at
             FROM events e WHERE e.shard = s.shard AND e.position > s.after ORDER BY e.position LIMIT $3
         ) e ORDER BY e.shard, e.position",
    )
    .bind(numbers)
    .bind(positions)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let mut shards: BTreeMap<_, _> = after.keys().map(|shard| (*shard, ShardEvents::default())).collect();
    for row in &rows {
        let shard = shard_id(row.try_get("shard")?);
        let Some(read) = shards.get_mut(&shard) else { continue };
        if read.stopped_by.is_some() {
            continue;
        }
        let last = read.events.last().map(|event| event.at.position);
        let last = last.or_else(|| after.get(&shard).copied()).unwrap_or_default();
        let found = LogPosition { shard, position: Position(row.try_get("position")?) };
        if found.position != last.next() {
            read.stopped_by = Some(LogError::Gap { found, after: last });
            continue;
        }
        match event(row, found)? {
            Ok(event) => read.events.push(event),
            Err(source) => read.stopped_by = Some(LogError::Unreadable { at: found, source }),
        }
    }
    Ok(shards)
}

/// How far shards at these positions are behind the heads of the log.
///
/// # Errors
/// Only [`LogError::Database`].
pub async fn behind(
    connection: &mut PgConnection,
    after: &BTreeMap<ShardId, Position>,
) -> Result<BTreeMap<ShardId, Behind>, LogError> {
    let (numbers, positions) = columns(after);
    // The oldest event that is not there yet tells how old what readers see may be.
    let rows: Vec<(i16, i64, Option<DateTime<Utc>>)> = sqlx::query_as(
        "SELECT h.shard, h.position - c.position, e.recorded_at
         FROM unnest($1::smallint[], $2::bigint[]) AS c (shard, position)
         JOIN heads h ON h.shard = c.shard
         LEFT JOIN events e ON e.shard = c.shard AND e.position = c.position + 1",
    )
    .bind(numbers)
    .bind(positions)
    .fetch_all(connection)
    .await?;
    let of = |(shard, events, oldest_recorded_at)| (shard_id(shard), Behind { events, oldest_recorded_at });
    Ok(rows.into_iter().map(of).collect())
}

fn columns(after: &BTreeMap<ShardId, Position>) -> (Vec<i16>, Vec<i64>) {
    let numbers = after.keys().map(|shard| i16::try_from(shard.0).unwrap_or(i16::MAX));
    (numbers.collect(), after.values().map(|position| position.0).collect())
}

fn shard_id(number: i16) -> ShardId {
    ShardId(u16::try_from(number).unwrap_or_default())
}

/// The events at these positions; those that are not there are left out.
///
/// # Errors
/// [`LogError`], for an event that cannot be read as well.
pub async fn read_at(connection: &mut PgConnection, at: &[LogPosition]) -> Result<Vec<RecordedEvent>, LogError> {
    let rows = sqlx::query(
        "SELECT e.shard, e.position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                payload::text AS payload, occurred_at, recorded_at
         FROM unnest($1::smallint[], $2::bigint[]) AS a (shard, position) JOIN events e USING (shard, position)",
    )
    .bind(at.iter().map(|at| i16::try_from(at.shard.0).unwrap_or(i16::MAX)).collect::<Vec<_>>())
    .bind(at.iter().map(|at| at.position.0).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let events = rows.iter().map(|row| {
        let shard = shard_id(row.try_get("shard")?);
        let at = LogPosition { shard, position: Position(row.try_get("position")?) };
        event(row, at)?.map_err(|source| LogError::Unreadable { at, source })
    });
    events.collect()
}

/// Events of one stream that are read: more than any has that is read like this.
const STREAM_MAX: i64 = 1_000;

/// A stream from its beginning, for streams that stay short; a longer one is cut off after its first thousand events.
///
/// # Errors
/// [`LogError`], for an event that cannot be read as well.
pub async fn read_stream(
    connection: &mut PgConnection,
    shard: ShardId,
    stream: &StreamId,
) -> Result<Vec<RecordedEvent>, LogError> {
    let rows = sqlx::query(
        "SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                payload::text AS payload, occurred_at, recorded_at
         FROM events WHERE aggregate_type = $1 AND aggregate_id = $2 AND shard = $3 ORDER BY sequence LIMIT $4",
    )
    .bind(stream.aggregate_type())
    .bind(stream.aggregate_id())
    .bind(i16::try_from(shard.0).unwrap_or(i16::MAX))
    .bind(STREAM_MAX)
    .fetch_all(connection)
    .await?;
    let events = rows.iter().map(|row| {
        let at = LogPosition { shard, position: Position(row.try_get("position")?) };
        event(row, at)?.map_err(|source| LogError::Unreadable { at, source })
    });
    events.collect()
}

fn event(row: &PgRow, at: LogPosition) -> Result<Result<RecordedEvent, DecodeError>, sqlx::Error> {
    let stream = match StreamId::decode(row.try_get("aggregate_type")?, row.try_get("aggregate_id")?) {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error)),
    };
    let (event_type, version) = (row.try_get("event_type")?, row.try_get("event_version")?);
    let event = match Event::decode(&stream, event_type, version, row.try_get("payload")?) {
        Ok(event) => event,
        Err(error) => return Ok(Err(error)),
    };
    let (sequence, occurred_at, recorded_at) =
        (row.try_get("sequence")?, row.try_get("occurred_at")?, row.try_get("recorded_at")?);
    Ok(Ok(RecordedEvent { at, stream, sequence, event, occurred_at, recorded_at }))
}

/// Wake these whenever something was appended, until told to stop. Notifications may be lost with their connection, so
/// look now and then all the same.
pub async fn listen(options: PgConnectOptions, wakers: Vec<Arc<Notify>>, stop: CancellationToken) {
    let notified = async {
        loop {
            let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
            let listened: sqlx::Result<()> = async {
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen("skyriff_events").await?;
                loop {
                    listener.recv().await?;
                    wakers.iter().for_each(|waker| waker.notify_one());
                }
            }
            .await;
            if let Err(error) = listened {
                tracing::debug!(%error, "not listening for appends; connecting again");
            }
            tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
        }
    };
    tokio::select! {
        () = notified => {}
        () = stop.cancelled() => {}
    }
}
