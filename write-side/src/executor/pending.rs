//! Commands on their way through an executor.

use std::collections::HashSet;

use ::metrics::counter;
use skyriff_domain::{CommandId, ShardId, StreamId};
use tokio::{sync::oneshot, time::Instant};

use crate::{Failure, Receipt, Submission, metrics};

/// Commands that wait for their answers: one, or several that are recorded together or not at all.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(super) items: Vec<Item>,
    pub(super) shard: ShardId,
    pub(super) arrived: Instant,
    /// Whether an append that had them was cut off, and may have gone through.
    pub(super) attempted: bool,
}

/// One command and whoever waits for its answer.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) submission: Submission,
    pub(crate) answer: oneshot::Sender<Result<Receipt, Failure>>,
}

impl Pending {
    /// Commands of one request arrive at one moment, so that they also run out of time at one: none is given up before
    /// one that came after it.
    pub(crate) fn new(items: Vec<Item>, shard: ShardId, arrived: Instant) -> Self {
        Self { items, shard, arrived, attempted: false }
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.shard
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.items.iter().flat_map(|item| item.submission.command.streams())
    }

    /// The same failure for every command.
    pub(super) fn fail(self, failure: &Failure) {
        self.items.into_iter().for_each(|item| item.answer(Err(failure.clone())));
    }
}

impl Item {
    pub(super) fn id(&self) -> CommandId {
        self.submission.id
    }

    /// Whoever asked may have gone; the answer is then for their retry to find.
    pub(super) fn answer(self, answer: Result<Receipt, Failure>) {
        let outcome = match &answer {
            Ok(Receipt { replayed: false, .. }) => "accepted",
            Ok(Receipt { replayed: true, .. }) => "replayed",
            Err(Failure::Refused(_) | Failure::RefusedTogether) => "refused",
            Err(Failure::RefusedBefore(_)) => "refused_before",
            Err(Failure::KeyReused) => "key_reused",
            Err(Failure::Conflict) => "conflict",
            Err(Failure::Unavailable | Failure::Overloaded) => "unavailable",
            Err(Failure::OutcomeUnknown) => "unknown",
            Err(Failure::Fault(_)) => "fault",
        };
        counter!(metrics::COMMANDS, "outcome" => outcome).increment(1);
        self.answer.send(answer).ok();
    }
}

/// Take the first command of each id out; a second one with the same id waits for the first one's answer to be found.
pub(super) fn take_first_of_each(todo: &mut Vec<Pending>) -> Vec<Pending> {
    let mut seen = HashSet::with_capacity(todo.len());
    let is_first = |pending: &Pending| pending.items.iter().all(|item| seen.insert(item.id()));
    let (first, later): (Vec<_>, Vec<_>) = todo.drain(..).partition(is_first);
    *todo = later;
    first
}
