//! Events that the brokers do not take for what they are: larger than the topic allows, as a rule.
//!
//! A producer that was refused a batch cannot go on: what comes after it would get there without it. So the session ends,
//! and its successors know: the first refusal has every event go in a batch of its own (a batch may be refused for the
//! sum of its events), and the next one is then about one event. Its shard is sent up to there and stands still, and the
//! event is tried again alone, with back-off and a producer of its own, so the other shards go on. What is known here is
//! forgotten with the process; another relay finds out by itself.

use std::collections::BTreeMap;

use skyriff_domain::{Position, ShardId};

use super::producer::Refused;

/// Across the sessions of a relay.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    one_by_one: bool,
    refused: BTreeMap<ShardId, Position>,
}

impl Refusals {
    /// Whether every event goes in a batch of its own.
    pub(super) fn one_by_one(&self) -> bool {
        self.one_by_one
    }

    /// A session has ended with this.
    pub(super) fn add(&mut self, refused: Refused) {
        let Refused { shard, position, why } = refused;
        if self.one_by_one {
            self.refused.insert(shard, position);
            return;
        }
        self.one_by_one = true;
        tracing::warn!(
            %shard,
            %position,
            error = why,
            "the brokers refuse a batch that begins here; each event goes alone from now on, until this process ends"
        );
    }

    /// The event that a shard cannot get past.
    pub(super) fn of(&self, shard: ShardId) -> Option<Position> {
        self.refused.get(&shard).copied()
    }

    pub(super) fn all(&self) -> Vec<(ShardId, Position)> {
        self.refused.iter().map(|(shard, position)| (*shard, *position)).collect()
    }

    /// The topic has everything of the shard up to there.
    pub(super) fn passed(&mut self, shard: ShardId, upto: Position) {
        if self.of(shard).is_some_and(|refused| refused <= upto) {
            self.refused.remove(&shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(3);

    fn refused(position: i64) -> Refused {
        Refused { shard: SHARD, position: Position(position), why: "too large".to_owned() }
    }

    #[test]
    fn the_first_refusal_is_about_a_batch_and_the_next_about_an_event_until_it_is_passed() {
        let mut refusals = Refusals::default();
        assert!(!refusals.one_by_one());
        refusals.add(refused(11));
        assert!(refusals.one_by_one());
        assert_eq!(refusals.of(SHARD), None);
        refusals.add(refused(14));
        assert_eq!((refusals.of(SHARD), refusals.of(ShardId(4))), (Some(Position(14)), None));
        refusals.passed(SHARD, Position(13));
        assert_eq!(refusals.all(), [(SHARD, Position(14))]);
        refusals.passed(SHARD, Position(14));
        assert_eq!(refusals.all(), []);
    }
}
