//! Where to go on in a shard, by its checkpoint and by what the topic and the log have.

use std::collections::BTreeMap;

use rdkafka::error::KafkaError;
use skyriff_domain::{Position, ShardId};
use sqlx::PgConnection;

use super::{number, shard_id};
use crate::{
    message::{Identity, StoredEvent},
    probe::Probe,
    settings::Settings,
};

/// Where to go on in a shard.
#[derive(Debug)]
pub(super) struct Start {
    /// After this: the checkpoint, unless the topic ends before it.
    pub(super) after: Position,
    /// The last event of ours that the topic has, as far as known.
    last: Option<Identity>,
}

/// Ask the topic.
pub(super) async fn find(
    settings: &Settings,
    checkpoints: &BTreeMap<ShardId, Position>,
) -> Result<BTreeMap<ShardId, Start>, KafkaError> {
    let (settings, checkpoints) = (settings.clone(), checkpoints.clone());
    let found = tokio::task::spawn_blocking(move || look(&settings, checkpoints)).await;
    found.unwrap_or(Err(KafkaError::Canceled))
}

fn look(settings: &Settings, checkpoints: BTreeMap<ShardId, Position>) -> Result<BTreeMap<ShardId, Start>, KafkaError> {
    let probe = Probe::new(settings)?;
    let mut starts = BTreeMap::new();
    for (shard, checkpoint) in checkpoints {
        let extent = probe.extent(shard)?;
        let last = probe.last(shard, extent)?;
        let after = match &last {
            Some(last) => checkpoint.min(last.at.position),
            // Never written to, or made anew.
            None if extent.1 == 0 => Position::default(),
            // What was there is too old to be kept, or not ours.
            None => checkpoint,
        };
        if after < checkpoint {
            tracing::warn!(%shard, %checkpoint, topic_ends_at = %after, "the topic has lost events; sending them again");
        }
        starts.insert(shard, Start { after, last });
    }
    Ok(starts)
}

/// The shards of which the topic has what the log has not, with the reason: the log has lost events that were sent, as
/// when a primary is replaced by a standby that was behind. It gives their positions to others then, which everybody who
/// follows the topic would drop as repeats.
pub(super) async fn parted(
    connection: &mut PgConnection,
    starts: &BTreeMap<ShardId, Start>,
) -> sqlx::Result<BTreeMap<ShardId, String>> {
    let shards: Vec<_> = starts.keys().copied().map(number).collect();
    let heads: Vec<(i16, i64)> = sqlx::query_as("SELECT shard, position FROM heads WHERE shard = ANY ($1)")
        .bind(&shards)
        .fetch_all(&mut *connection)
        .await?;
    let heads: BTreeMap<_, _> = heads.into_iter().map(|(shard, head)| (shard_id(shard), Position(head))).collect();
    let lasts: Vec<_> = starts.values().filter_map(|start| start.last.as_ref()).collect();
    let ours: Vec<StoredEvent> = sqlx::query_as(
        "SELECT e.shard, e.position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                payload::text AS payload, metadata::text AS metadata, occurred_at, recorded_at
         FROM unnest($1::smallint[], $2::bigint[]) AS t (shard, position) JOIN events e USING (shard, position)",
    )
    .bind(lasts.iter().map(|last| number(last.at.shard)).collect::<Vec<_>>())
    .bind(lasts.iter().map(|last| last.at.position.0).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let ours: BTreeMap<_, _> = ours.iter().map(StoredEvent::identity).map(|event| (event.at.shard, event)).collect();
    let reason = |(shard, start): (&ShardId, &Start)| {
        let head = heads.get(shard).copied().unwrap_or_default();
        Some((*shard, why_parted(start, head, ours.get(shard))?))
    };
    Ok(starts.iter().filter_map(reason).collect())
}

/// `ours` is what the log has where the topic has its last event.
fn why_parted(start: &Start, head: Position, ours: Option<&Identity>) -> Option<String> {
    let sent = start.last.as_ref().map_or(start.after, |last| last.at.position.max(start.after));
    let what = match &start.last {
        _ if sent > head => format!("events up to {sent} were sent, and the log ends at {head}"),
        Some(last) if ours != Some(last) => format!("at {} the topic has another event than the log", last.at),
        _ => return None,
    };
    Some(format!("the log and the topic have parted: {what}; README.md says what to do (\"The log has lost events\")"))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use skyriff_domain::LogPosition;

    use super::*;

    fn event(position: i64, recorded_at: i64) -> Identity {
        Identity {
            at: LogPosition { shard: ShardId(3), position: Position(position) },
            stream: "points_account/1".to_owned(),
            kind: "skyriff.points_account.earned.v1".to_owned(),
            sequence: position,
            recorded_at: DateTime::<Utc>::from_timestamp(recorded_at, 0).unwrap(),
        }
    }

    #[test]
    fn a_log_that_is_shorter_or_other_than_the_topic_has_parted_from_it() {
        let start = |after, last| Start { after: Position(after), last };
        let table = [
            ("nothing was sent", start(0, None), 0, None, None),
            ("all was sent", start(10, Some(event(10, 1))), 10, Some(event(10, 1)), None),
            ("there is more to send", start(8, Some(event(10, 1))), 12, Some(event(10, 1)), None),
            ("the topic was made anew", start(0, None), 8, None, None),
            (
                "the log ends before",
                start(10, Some(event(10, 1))),
                8,
                None,
                Some("up to 10 were sent, and the log ends at 8"),
            ),
            ("and the checkpoint too", start(8, Some(event(10, 1))), 8, None, Some("up to 10")),
            ("and the topic keeps nothing", start(10, None), 8, None, Some("up to 10")),
            (
                "the log went on",
                start(10, Some(event(10, 1))),
                11,
                Some(event(10, 2)),
                Some("at 3:10 the topic has another"),
            ),
        ];
        for (case, start, head, ours, expected) in table {
            let why = why_parted(&start, Position(head), ours.as_ref());
            match expected {
                None => assert_eq!(why, None, "{case}"),
                Some(words) => assert!(why.as_ref().is_some_and(|why| why.contains(words)), "{case}: {why:?}"),
            }
        }
    }
}
