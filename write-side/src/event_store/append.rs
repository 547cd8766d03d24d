//! Append a batch: one call of the SQL function `append`, which says in its own words what it promises.

use chrono::{DateTime, Utc};
use skyriff_domain::{CommandId, Position, ShardId, StreamId};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::StoreError;
use crate::{Fingerprint, Refused};

/// What one append writes and relies on.
#[derive(Debug, Default)]
pub struct Batch {
    /// The shards it decided on, ascending, with the head up to which the caller knows each.
    pub shards: Vec<(ShardId, Position)>,
    /// Every stream it read, and how far; also the ones it only refused on.
    pub streams: Vec<(StreamId, i64)>,
    /// What the commands came to, each one once.
    pub outcomes: Vec<Outcome>,
    /// What the accepted ones recorded.
    pub events: Vec<NewEvent>,
}

impl Batch {
    /// How many events the batch has for one of its shards.
    pub fn last_offset(&self, shard: usize) -> i64 {
        self.events.iter().rev().find(|event| event.shard == shard).map_or(0, |event| event.offset)
    }
}

/// What a command came to, to be recorded under its id.
#[derive(Debug)]
pub struct Outcome {
    /// Its id.
    pub id: CommandId,
    /// Tells a retry from another command.
    pub fingerprint: Fingerprint,
    /// Its place in [`Batch::shards`].
    pub shard: usize,
    /// The last of its events, counted from 1 in the batch's events of its shard.
    pub last_offset: i64,
    /// How many events it records.
    pub events: i32,
    /// Why it was refused; then it records none.
    pub refused: Option<Refused>,
}

/// An event to append.
#[derive(Debug)]
pub struct NewEvent {
    /// Its place in [`Batch::shards`].
    pub shard: usize,
    /// Its number in the batch's events of its shard, from 1.
    pub offset: i64,
    /// Of which stream.
    pub stream: StreamId,
    /// Which of the stream's events.
    pub sequence: i64,
    /// As stored.
    pub event_type: &'static str,
    /// As stored.
    pub event_version: &'static str,
    /// As stored.
    pub payload: String,
    /// As stored.
    pub metadata: String,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
}

/// What came of an append.
#[derive(Debug)]
pub enum Appended {
    /// It is durable.
    Done {
        /// The heads of [`Batch::shards`] before it: an event is at head + offset.
        heads: Vec<Position>,
        /// The database's time.
        recorded_at: DateTime<Utc>,
    },
    /// Streams have moved on since they were read. Nothing was written.
    Stale {
        /// The heads of [`Batch::shards`] now.
        heads: Vec<Position>,
        /// Places in [`Batch::streams`].
        streams: Vec<usize>,
    },
    /// Commands were recorded before. Nothing was written.
    Repeated {
        /// Which.
        commands: Vec<CommandId>,
    },
}

const APPEND: &str = "SELECT outcome, heads, stale, repeated, recorded_at FROM append(\
     $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)";

/// Append a batch, all or nothing. `Ok` is an answer of the database; `Err(Lost)` means that nobody knows.
///
/// # Errors
/// [`StoreError`].
pub async fn append(connection: &mut PgConnection, batch: &Batch) -> Result<Appended, StoreError> {
    let Batch { shards, streams, outcomes, events } = batch;
    let refusals = outcomes.iter().map(|command| command.refused.as_ref().map(Refused::encode));
    let refusals = refusals.map(Option::transpose).collect::<Result<Vec<_>, _>>().map_err(unwritable)?;
    let stream_ids: Vec<_> = streams.iter().map(|(stream, _)| stream.aggregate_id()).collect();
    let event_stream_ids: Vec<_> = events.iter().map(|event| event.stream.aggregate_id()).collect();

    let row = sqlx::query(APPEND)
        .bind(shards.iter().map(|(shard, _)| number(*shard)).collect::<Vec<_>>())
        .bind(shards.iter().map(|(_, head)| head.0).collect::<Vec<_>>())
        .bind(streams.iter().map(|(stream, _)| stream.aggregate_type()).collect::<Vec<_>>())
        .bind(stream_ids)
        .bind(streams.iter().map(|(_, sequence)| *sequence).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|command| command.id.0).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|command| command.fingerprint.0).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|command| index(command.shard)).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|command| command.last_offset).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|command| command.events).collect::<Vec<_>>())
        .bind(refusals)
        .bind(events.iter().map(|event| index(event.shard)).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.offset).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.stream.aggregate_type()).collect::<Vec<_>>())
        .bind(event_stream_ids)
        .bind(events.iter().map(|event| event.sequence).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event_type).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event_version).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.payload.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.metadata.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.occurred_at).collect::<Vec<_>>())
        .fetch_one(connection)
        .await?;

    let heads = || -> Result<Vec<_>, sqlx::Error> {
        Ok(row.try_get::<Vec<i64>, _>("heads")?.into_iter().map(Position).collect())
    };
    match row.try_get("outcome")? {
        "appended" => Ok(Appended::Done { heads: heads()?, recorded_at: row.try_get("recorded_at")? }),
        "stale" => {
            let stale: Vec<i64> = row.try_get("stale")?;
            // Indexes count from 1 in SQL.
            let streams = stale.into_iter().filter_map(|index| usize::try_from(index - 1).ok()).collect();
            Ok(Appended::Stale { heads: heads()?, streams })
        }
        "repeated" => {
            let repeated: Vec<Uuid> = row.try_get("repeated")?;
            Ok(Appended::Repeated { commands: repeated.into_iter().map(CommandId).collect() })
        }
        outcome => Err(sqlx::Error::Decode(format!("append answered {outcome:?}").into()).into()),
    }
}

/// In SQL, places count from 1.
fn index(place: usize) -> i32 {
    i32::try_from(place).map_or(i32::MAX, |place| place.saturating_add(1))
}

fn unwritable(error: serde_json::Error) -> StoreError {
    sqlx::Error::Encode(error.into()).into()
}

/// Shards fit: there are at most [`skyriff_domain::shard::SHARD_COUNT_MAX`].
pub(super) fn number(shard: ShardId) -> i16 {
    i16::try_from(shard.0).unwrap_or(i16::MAX)
}
