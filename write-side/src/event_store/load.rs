//! Read streams: from their snapshots and the events after them, all streams of a batch in one query.

use futures::TryStreamExt;
use skyriff_domain::{Event, Position, ShardId, State, StreamId};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{StoreError, append::number, snapshot};

/// A stream as it is now.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Which.
    pub stream: StreamId,
    /// Its last event; 0 when it has none.
    pub sequence: i64,
    /// Up to where a snapshot stands, 0 without one.
    pub snapshot_sequence: i64,
    /// Folded.
    pub state: State,
}

/// A snapshot counts only if the log has its last event: one from another log, or from after a restore, does not.
const LOAD: &str = "
WITH wanted AS MATERIALIZED (
    SELECT w.type, w.id, w.index FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (type, id, index)
), snapped AS MATERIALIZED (
    SELECT w.index, s.sequence, s.state, s.checksum
    FROM wanted w JOIN snapshots s ON s.aggregate_type = w.type AND s.aggregate_id = w.id
    WHERE $3 AND s.state_version = $4
      AND EXISTS (SELECT FROM events e WHERE e.aggregate_type = w.type AND e.aggregate_id = w.id
                                         AND e.sequence = s.sequence)
)
SELECT index, sequence, NULL AS event_type, NULL AS event_version, state AS payload, checksum FROM snapped
UNION ALL
SELECT w.index, e.sequence, e.event_type, e.event_version, e.payload::text, NULL
FROM wanted w LEFT JOIN snapped s ON s.index = w.index
JOIN LATERAL (
    SELECT e.sequence, e.event_type, e.event_version, e.payload FROM events e
    WHERE e.aggregate_type = w.type AND e.aggregate_id = w.id AND e.sequence > coalesce(s.sequence, 0)
) e ON true
ORDER BY index, sequence";

/// Load streams, in the order asked for.
///
/// # Errors
/// [`StoreError`].
pub async fn load(connection: &mut PgConnection, streams: &[StreamId]) -> Result<Vec<Loaded>, StoreError> {
    let mut loaded = fold(connection, streams, true).await?;
    // Damaged snapshots are not trusted: those streams are folded from their first event.
    let damaged: Vec<_> = loaded.iter().enumerate().filter(|(_, stream)| stream.is_none()).map(|(at, _)| at).collect();
    if !damaged.is_empty() {
        ::metrics::counter!(crate::metrics::SNAPSHOTS_REJECTED).increment(u64::try_from(damaged.len()).unwrap_or(0));
        let again: Vec<_> = damaged.iter().filter_map(|at| streams.get(*at).copied()).collect();
        for (at, stream) in damaged.into_iter().zip(fold(connection, &again, false).await?) {
            if let Some(slot) = loaded.get_mut(at) {
                *slot = stream;
            }
        }
    }
    Ok(loaded.into_iter().flatten().collect())
}

/// `None` for a stream whose snapshot does not hold.
async fn fold(
    connection: &mut PgConnection,
    streams: &[StreamId],
    with_snapshots: bool,
) -> Result<Vec<Option<Loaded>>, StoreError> {
    let empty =
        |stream: &StreamId| Some(Loaded { stream: *stream, sequence: 0, snapshot_sequence: 0, state: stream.empty() });
    let mut loaded: Vec<_> = streams.iter().map(empty).collect();
    let mut rows = sqlx::query(LOAD)
        .bind(streams.iter().map(StreamId::aggregate_type).collect::<Vec<_>>())
        .bind(streams.iter().map(StreamId::aggregate_id).collect::<Vec<_>>())
        .bind(with_snapshots)
        .bind(State::VERSION)
        .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        // Indexes count from 1 in SQL.
        let place = usize::try_from(row.try_get::<i64, _>("index")? - 1).unwrap_or(usize::MAX);
        if let Some(slot) = loaded.get_mut(place) {
            *slot = match slot.take() {
                Some(stream) => add(stream, &row)?,
                None => None,
            };
        }
    }
    Ok(loaded)
}

fn add(mut stream: Loaded, row: &PgRow) -> Result<Option<Loaded>, StoreError> {
    let sequence: i64 = row.try_get("sequence")?;
    let payload: &str = row.try_get("payload")?;
    if let Some(checksum) = row.try_get::<Option<&[u8]>, _>("checksum")? {
        return Ok(snapshot::restore(&stream.stream, sequence, payload, checksum).map(|state| Loaded {
            sequence,
            snapshot_sequence: sequence,
            state,
            ..stream
        }));
    }
    if sequence != stream.sequence + 1 {
        // Not contiguous with the snapshot, or the log is damaged; without the snapshot the reader finds out which.
        let expected = stream.sequence + 1;
        if stream.snapshot_sequence > 0 {
            return Ok(None);
        }
        let gap = format!("{:?} has sequence {sequence} where {expected} belongs", stream.stream);
        return Err(sqlx::Error::Decode(gap.into()).into());
    }
    let event = Event::decode(&stream.stream, row.try_get("event_type")?, row.try_get("event_version")?, payload)?;
    stream.state.apply(&event);
    stream.sequence = sequence;
    Ok(Some(stream))
}

/// The heads of shards, in the order asked for; `None` where this database does not hold the shard.
///
/// # Errors
/// [`StoreError`].
pub async fn heads(connection: &mut PgConnection, shards: &[ShardId]) -> Result<Vec<Option<Position>>, StoreError> {
    let numbers: Vec<_> = shards.iter().map(|shard| number(*shard)).collect();
    let rows: Vec<(Option<i64>,)> = sqlx::query_as(
        "SELECT h.position FROM unnest($1::smallint[]) WITH ORDINALITY AS s (shard, place)
         LEFT JOIN heads h USING (shard) ORDER BY place",
    )
    .bind(numbers)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(position,)| position.map(Position)).collect())
}

/// The events of a shard in `(after, up_to]`, each with its stream and sequence.
///
/// # Errors
/// [`StoreError`].
pub async fn catch_up(
    connection: &mut PgConnection,
    shard: ShardId,
    after: Position,
    up_to: Position,
) -> Result<Vec<(StreamId, i64, Event)>, StoreError> {
    let rows = sqlx::query(
        "SELECT aggregate_type, aggregate_id, sequence, event_type, event_version, payload::text AS payload FROM events
         WHERE shard = $1 AND position > $2 AND position <= $3 ORDER BY position",
    )
    .bind(number(shard))
    .bind(after.0)
    .bind(up_to.0)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let stream = StreamId::decode(row.try_get("aggregate_type")?, row.try_get("aggregate_id")?)?;
            let (event_type, version) = (row.try_get("event_type")?, row.try_get("event_version")?);
            let event = Event::decode(&stream, event_type, version, row.try_get("payload")?)?;
            Ok((stream, row.try_get("sequence")?, event))
        })
        .collect()
}
