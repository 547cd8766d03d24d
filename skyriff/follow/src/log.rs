//! Reading the log of an event-store database: bounded, in order, without a gap.

use std::collections::BTreeMap;

use skyriff_domain::{Event, LogPosition, Position, RecordedEvent, ShardId, StreamId, stream::DecodeError};
use sqlx::{PgConnection, Row, postgres::PgRow};

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
}

impl LogError {
    /// The shard that cannot go on, when it is only one.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Self::Database(_) => None,
            Self::Gap { found, .. } => Some(found.shard),
            Self::Unreadable { at, .. } => Some(at.shard),
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
    let numbers: Vec<_> = after.keys().map(|shard| i16::try_from(shard.0).unwrap_or(i16::MAX)).collect();
    let positions: Vec<_> = after.values().map(|position| position.0).collect();
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
        let shard = ShardId(u16::try_from(row.try_get::<i16, _>("shard")?).unwrap_or_default());
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
        let shard = ShardId(u16::try_from(row.try_get::<i16, _>("shard")?).unwrap_or_default());
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
