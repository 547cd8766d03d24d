//! Reading rows of the log as they are stored: what a leaf is made of is text, and is not parsed here.

use std::{borrow::Cow, collections::BTreeMap};

use chrono::{DateTime, Utc};
use skyriff_domain::{LogPosition, Position, ShardId};
use skyriff_proof::EventRow;
use sqlx::{FromRow, PgPool};

/// One database of the event store, to be read.
#[derive(Clone, Debug)]
pub struct LogPlace {
    /// Its shards.
    pub shards: Vec<ShardId>,
    /// Where it is written.
    pub primary: PgPool,
    /// Its copies, which are asked first.
    pub replicas: Vec<PgPool>,
}

/// A part of a shard's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) shard: ShardId,
    /// From here on.
    pub(crate) first: Position,
    pub(crate) limit: i64,
}

#[derive(FromRow)]
struct Row {
    shard: i16,
    position: i64,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: String,
    metadata: String,
    occurred_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
}

impl From<Row> for EventRow<'static> {
    fn from(row: Row) -> Self {
        Self {
            shard: ShardId(u16::try_from(row.shard).unwrap_or_default()),
            position: Position(row.position),
            aggregate_type: Cow::Owned(row.aggregate_type),
            aggregate_id: Cow::Owned(row.aggregate_id),
            sequence: row.sequence,
            event_type: Cow::Owned(row.event_type),
            event_version: Cow::Owned(row.event_version),
            payload: Cow::Owned(row.payload),
            metadata: Cow::Owned(row.metadata),
            occurred_at_us: row.occurred_at.timestamp_micros(),
            recorded_at_us: row.recorded_at.timestamp_micros(),
        }
    }
}

/// What a database has of these parts, in order.
pub(crate) async fn read(pool: &PgPool, parts: &[Part]) -> sqlx::Result<BTreeMap<ShardId, Vec<EventRow<'static>>>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT e.* FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS p (shard, first, wanted)
         CROSS JOIN LATERAL (
             SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                    payload::text AS payload, metadata::text AS metadata, occurred_at, recorded_at
             FROM events e WHERE e.shard = p.shard AND e.position >= p.first ORDER BY e.position LIMIT p.wanted
         ) e ORDER BY e.shard, e.position",
    )
    .bind(parts.iter().map(|part| number(part.shard)).collect::<Vec<_>>())
    .bind(parts.iter().map(|part| part.first.0).collect::<Vec<_>>())
    .bind(parts.iter().map(|part| part.limit).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    let mut shards: BTreeMap<ShardId, Vec<EventRow<'static>>> = BTreeMap::new();
    for row in rows {
        let row: EventRow<'static> = row.into();
        shards.entry(row.shard).or_default().push(row);
    }
    Ok(shards)
}

/// One row; nothing when the database does not have it.
///
/// # Errors
/// As sqlx's.
pub async fn read_at(pool: &PgPool, at: LogPosition) -> sqlx::Result<Option<EventRow<'static>>> {
    let part = Part { shard: at.shard, first: at.position, limit: 1 };
    let found = read(pool, &[part]).await?.remove(&at.shard).and_then(|mut rows| rows.pop());
    Ok(found.filter(|row| row.at() == at))
}

/// As the column has it. There are at most 1,024 shards.
pub(crate) fn number(shard: ShardId) -> i16 {
    i16::try_from(shard.0).unwrap_or(i16::MAX)
}
