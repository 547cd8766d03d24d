//! Brings a tip from the sender's shard to the receiver's and the answer back.
//!
//! | event | in | command | to |
//! |---|---|---|---|
//! | tip offered | the sender's shard | receive | the receiver |
//! | receipt credited | the receiver's shard | settle | the sender |
//! | receipt declined | the receiver's shard | return | the sender |
//!
//! Every step records nothing when it has been done: so each may be repeated, for ever. A tip within one shard is
//! decided at once and asks for nothing here.

use skyriff_domain::{
    Event, Intent, RecordedEvent, ShardCount, StreamId, TipId, UserId, shard_of,
    tip::{self, Step, receipt},
};

use super::{Process, Reaction, Services};

pub(super) fn concerns(event: &RecordedEvent, shards: ShardCount) -> bool {
    next(event).is_some_and(|(_, user, _)| shard_of(user, shards) != event.at.shard)
}

pub(super) async fn react(event: &RecordedEvent, with: &Services) -> Reaction {
    let Some((name, user, step)) = next(event) else { return Reaction::Done };
    match with.command(Process::Tips, event, name, user, Intent::Tip(step)).await {
        Ok(_) => Reaction::Done,
        Err(failure) => Reaction::later(failure),
    }
}

/// The step after an event: what it is called, whose it is, and what it asks for.
fn next(event: &RecordedEvent) -> Option<(&'static str, UserId, Step)> {
    let tip = tip_of(&event.stream)?;
    match &event.event {
        Event::Tip(tip::Event::Offered(terms)) => {
            Some(("receive", terms.to, Step::Receive { tip, terms: terms.clone() }))
        }
        Event::TipReceipt(receipt::Event::Credited(terms)) => Some(("settle", terms.from, Step::Settle { tip })),
        Event::TipReceipt(receipt::Event::Declined { terms, reason }) => {
            Some(("return", terms.from, Step::Return { tip, reason: reason.clone() }))
        }
        Event::Tip(tip::Event::Delivered {} | tip::Event::Returned { .. })
        | Event::PointsAccount(_)
        | Event::RechargeOrder(_)
        | Event::Like(_)
        | Event::Withdrawal(_)
        | Event::WithdrawalAllowance(_)
        | Event::VideoJob(_)
        | Event::VideoSlots(_)
        | Event::Work(_)
        | Event::Erasure(_)
        | Event::Reconciliation(_)
        | Event::ReconciliationException(_) => None,
    }
}

const fn tip_of(stream: &StreamId) -> Option<TipId> {
    match stream {
        StreamId::Tip(tip) | StreamId::TipReceipt(tip) => Some(*tip),
        StreamId::PointsAccount(_)
        | StreamId::RechargeOrder(_)
        | StreamId::Like(_)
        | StreamId::Withdrawal(_)
        | StreamId::WithdrawalAllowance(_)
        | StreamId::VideoJob(_)
        | StreamId::VideoSlots(_)
        | StreamId::Work(_)
        | StreamId::Erasure(_)
        | StreamId::Reconciliation(_)
        | StreamId::ReconciliationException(_) => None,
    }
}
