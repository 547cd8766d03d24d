//! What was decided for the commands of a batch, and the answers that follow from it once it is appended.

use chrono::{DateTime, Utc};
use skyriff_domain::{LogPosition, Position, ShardId};

use super::pending::Pending;
use crate::{Failure, Receipt, Recorded, Refused, event_store::Batch};

/// What was decided for one command: its last event and how many it records, or why it was refused.
pub(super) type Decided = Result<(LogOffset, usize), Refused>;

/// A place in the batch: which of its shards, and how many of the batch's events there are up to it.
#[derive(Clone, Copy)]
pub(super) struct LogOffset {
    pub(super) shard: usize,
    pub(super) offset: i64,
}

/// Tell everybody what came of their command.
pub(super) fn answer(
    waiting: Vec<Pending>,
    decided: Vec<Vec<Decided>>,
    batch: Batch,
    heads: &[Position],
    recorded_at: DateTime<Utc>,
) {
    let position = |at: LogOffset| {
        let (shard, head) = (batch.shards.get(at.shard), heads.get(at.shard));
        LogPosition {
            shard: shard.map_or(ShardId(0), |(shard, _)| *shard),
            position: Position(head.copied().unwrap_or_default().0 + at.offset),
        }
    };
    let mut new_events = batch.events.into_iter();
    let items = waiting.into_iter().flat_map(|pending| pending.items);
    for (item, decided) in items.zip(decided.into_iter().flatten()) {
        item.answer(match decided {
            Ok((last, events)) => {
                let recorded = new_events.by_ref().take(events).map(|event| Recorded {
                    position: position(LogOffset { shard: event.shard, offset: event.offset }),
                    stream: event.stream,
                    sequence: event.sequence,
                    payload: event.payload,
                    occurred_at: event.occurred_at,
                    recorded_at,
                });
                let recorded = recorded.collect();
                Ok(Receipt { position: position(last), recorded, replayed: false })
            }
            Err(Refused::ByRule(refusal)) => Err(Failure::Refused(refusal)),
            Err(Refused::Together) => Err(Failure::RefusedTogether),
        });
    }
}
