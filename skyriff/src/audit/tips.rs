//! The two ends of each tip, which may be in two shards, and what stands on the transit account of one.

use std::collections::HashMap;

use skyriff_domain::{
    State, StreamId, TipId,
    ledger::Account,
    tip::{Terms, Tip, receipt::Answer},
};

use super::{findings::Findings, fold::Shard};

/// What one end of a tip says of it.
#[derive(Clone, Debug)]
pub enum End {
    /// The sender's.
    Sent(Tip),
    /// The receiver's.
    Received(Terms, Answer),
}

/// The ends of a shard's tips, which are kept when its streams are let go.
pub fn ends(shard: &Shard) -> Vec<(TipId, End)> {
    let end = |(stream, folded): (&StreamId, &super::fold::Folded)| match (stream, &folded.state) {
        (StreamId::Tip(tip), State::Tip(state)) => Some((*tip, End::Sent(state.clone()))),
        (StreamId::TipReceipt(tip), State::TipReceipt(receipt)) => {
            receipt.answer().map(|(terms, answer)| (*tip, End::Received(terms.clone(), answer)))
        }
        _ => None,
    };
    shard.streams.iter().filter_map(end).collect()
}

/// What stands on a shard's transit account is what its senders have paid less what its receivers were credited with.
pub fn check_transit(shard: &Shard, ends: &[(TipId, End)], findings: &mut Findings) {
    let in_transit = |end: &End| match end {
        End::Sent(Tip::Delivered(terms)) => terms.points.get(),
        End::Sent(Tip::Nothing | Tip::Offered(_) | Tip::Returned(_)) | End::Received(_, Answer::Declined) => 0,
        End::Received(terms, Answer::Credited) => -terms.points.get(),
    };
    let expected: i64 = ends.iter().map(|(_, end)| in_transit(end)).sum();
    let transit = shard.ledger.get(&Account::Transit).copied().unwrap_or_default();
    if transit != expected {
        findings.of(shard.id, format!("{transit} points stand on transit, and its tips come to {expected}"));
    }
}

/// Ends whose other end was not seen yet.
#[derive(Default)]
pub struct Ends {
    waiting: HashMap<TipId, End>,
    under_way: u64,
}

impl Ends {
    /// Those of one shard. What two ends say of a tip must not contradict each other.
    pub fn add(&mut self, ends: Vec<(TipId, End)>, findings: &mut Findings) {
        for (tip, end) in ends {
            self.under_way += u64::from(matches!(end, End::Sent(Tip::Offered(_))));
            let Some(other) = self.waiting.remove(&tip) else {
                self.waiting.insert(tip, end);
                continue;
            };
            if contradict(&end, &other) || contradict(&other, &end) {
                findings.of_all(format!("tip {tip} and its receipt contradict each other"));
            }
        }
    }

    /// Tips that are offered and not settled yet. One with an end in a shard that was read earlier is among them, and so a
    /// missing end is no problem by itself.
    pub fn under_way(&self) -> u64 {
        self.under_way
    }
}

fn contradict(sent: &End, received: &End) -> bool {
    let (End::Sent(tip), End::Received(terms, answer)) = (sent, received) else { return false };
    let other_end = match (tip, answer) {
        (Tip::Delivered(_), Answer::Declined) | (Tip::Returned(_), Answer::Credited) => true,
        (
            Tip::Nothing | Tip::Offered(_) | Tip::Delivered(_) | Tip::Returned(_),
            Answer::Credited | Answer::Declined,
        ) => false,
    };
    other_end || tip.terms() != Some(terms)
}
