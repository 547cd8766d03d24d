//! Shards whose event store cannot be reached.
//!
//! A command for one waits for as long as the executor's patience lasts, and the reaction that sent it takes a place all
//! that time. So when one has come back with nothing, only one at a time goes there to ask whether the shard is back, and
//! the others are told at once: the places are for those that can get through.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skyriff_domain::ShardId;

use crate::Failure;

/// At most as many as there are shards. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct AbsentShards(Arc<Mutex<HashMap<ShardId, Absence>>>);

#[derive(Clone, Copy, Debug)]
struct Absence {
    /// Somebody is there to ask.
    asked: bool,
}

/// The right to send a command to a shard.
pub(super) struct Pass {
    shards: AbsentShards,
    shard: ShardId,
    /// Whether this is the one that asks.
    asks: bool,
}

impl AbsentShards {
    fn all(&self) -> MutexGuard<'_, HashMap<ShardId, Absence>> {
        // Nothing is half done in here when somebody panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None while the shard is absent and somebody asks already.
    pub(super) fn enter(&self, shard: ShardId) -> Option<Pass> {
        let asks = match self.all().get_mut(&shard) {
            None => false,
            Some(Absence { asked: true }) => return None,
            Some(absence) => {
                absence.asked = true;
                true
            }
        };
        Some(Pass { shards: self.clone(), shard, asks })
    }
}

impl Pass {
    /// What came of the command says whether the shard is there.
    pub(super) fn came_back_with<T>(mut self, result: &Result<T, Failure>) {
        let is_absent = matches!(result, Err(Failure::Unavailable | Failure::OutcomeUnknown));
        let mut all = self.shards.all();
        match (is_absent, self.asks) {
            (true, true) => drop(all.insert(self.shard, Absence { asked: false })),
            // Whoever asks knows better than one that left before.
            (true, false) => drop(all.entry(self.shard).or_insert(Absence { asked: false })),
            (false, _) => drop(all.remove(&self.shard)),
        }
        drop(all);
        self.asks = false;
    }
}

/// One that is given up has learned nothing; another may ask.
impl Drop for Pass {
    fn drop(&mut self) {
        if self.asks
            && let Some(absence) = self.shards.all().get_mut(&self.shard)
        {
            absence.asked = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: ShardId = ShardId(1);

    #[test]
    fn one_at_a_time_asks_for_an_absent_shard_until_it_is_back() {
        let shards = AbsentShards::default();
        let back = |pass: Option<Pass>, result: Result<(), Failure>| pass.expect("may go").came_back_with(&result);
        let first = shards.enter(HERE);
        let second = shards.enter(HERE);
        back(first, Err(Failure::Unavailable));
        let asks = shards.enter(HERE);
        assert!(asks.is_some() && shards.enter(HERE).is_none(), "one asks, the others wait");
        assert!(shards.enter(ShardId(2)).is_some(), "other shards are not concerned");
        back(second, Err(Failure::OutcomeUnknown));
        assert!(shards.enter(HERE).is_none(), "one that left before does not make room for another");
        drop(asks);
        let asks = shards.enter(HERE);
        assert!(asks.is_some() && shards.enter(HERE).is_none(), "one that was given up makes room");
        back(asks, Err(Failure::Unavailable));
        back(shards.enter(HERE), Err(Failure::Overloaded));
        let all: Vec<_> = (0..3).map(|_| shards.enter(HERE)).collect();
        assert!(all.iter().all(Option::is_some), "it has answered, so it is there");
    }
}
