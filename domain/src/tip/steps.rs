//! What each step of a tip records, on all the streams that it concerns.

use serde::Serialize;

use super::{Command, Terms, receipt};
use crate::{
    Event, HoldId, Note, Points, Policy, Refusal, StreamId, Streams, TipId, UserId, WorkId,
    command::Decision,
    points_account::{self, Action, Source},
};

/// One step of a tip. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Step {
    /// The sender, in the sender's shard: reserve the points. When the receiver lives there too, everything.
    Offer {
        /// Which.
        tip: TipId,
        /// To whom.
        to: UserId,
        /// How many points.
        points: Points,
        /// For which work.
        work: Option<WorkId>,
        /// Whether the receiver lives in the same shard.
        beside: bool,
    },
    /// The receiver, in the receiver's shard: be credited, or not.
    Receive {
        /// Which.
        tip: TipId,
        /// As it was offered.
        terms: Terms,
    },
    /// The sender: the receiver has the points.
    Settle {
        /// Which.
        tip: TipId,
    },
    /// The sender: the receiver cannot have them.
    Return {
        /// Which.
        tip: TipId,
        /// Why.
        reason: Note,
    },
}

impl Step {
    /// What `user`'s step reads, and may record on.
    pub(crate) fn streams(&self, user: UserId) -> Vec<StreamId> {
        let account = StreamId::PointsAccount(user);
        match self {
            Self::Offer { tip, beside: false, .. } | Self::Settle { tip } | Self::Return { tip, .. } => {
                vec![StreamId::Tip(*tip), account]
            }
            Self::Offer { tip, to, beside: true, .. } => {
                let mut streams = vec![StreamId::Tip(*tip), account, StreamId::TipReceipt(*tip)];
                // A tip to oneself is refused, and until then the account is one stream and not two.
                streams.extend((*to != user).then_some(StreamId::PointsAccount(*to)));
                streams
            }
            Self::Receive { tip, .. } => vec![StreamId::TipReceipt(*tip), account],
        }
    }

    pub(crate) fn decide(
        &self,
        user: UserId,
        decision: &mut Decision<'_, impl Streams>,
        policy: &Policy,
    ) -> Result<(), Refusal> {
        match self {
            Self::Offer { tip, to, points, work, beside } => {
                let share = policy.tips.share_of(*points);
                let terms = Terms { from: user, to: *to, points: *points, share, work: *work };
                if !on_tip(decision, *tip, &Command::Offer(terms.clone()), policy)? {
                    return Ok(());
                }
                let reserve = Action::Reserve {
                    hold: HoldId(tip.0),
                    points: *points,
                    from: Source::NotPromo,
                    purpose: purpose(),
                };
                decision.on_account(user, reserve).map_err(short_of_points)?;
                if *beside {
                    // Nothing has been recorded yet, so a no is a refusal, and not a tip that is returned.
                    receive(decision, *tip, &terms).map_err(declined)?;
                    on_tip(decision, *tip, &Command::Settle, policy)?;
                    decision.on_account(user, Action::PayTip { tip: *tip, to: *to })?;
                }
                Ok(())
            }
            Self::Receive { tip, terms } => {
                if decision.tip_receipt(*tip).is_given() {
                    return on_receipt(decision, *tip, terms, None);
                }
                // Only what the account itself has against it is an answer for ever; the account is as it was then.
                match receive(decision, *tip, terms) {
                    Err(Refusal::Points(refusal)) => on_receipt(decision, *tip, terms, Some(reason(&refusal))),
                    other => other,
                }
            }
            Self::Settle { tip } => {
                let to = decision.tip(*tip).terms().map(|terms| terms.to);
                if on_tip(decision, *tip, &Command::Settle, policy)?
                    && let Some(to) = to
                {
                    decision.on_account(user, Action::PayTip { tip: *tip, to })?;
                }
                Ok(())
            }
            Self::Return { tip, reason } => {
                if on_tip(decision, *tip, &Command::Return { reason: reason.clone() }, policy)? {
                    decision.on_account(user, Action::Undo { hold: HoldId(tip.0) })?;
                }
                Ok(())
            }
        }
    }
}

/// The account says how many points it has of those that may be given: that promo points are none of them has to be said.
fn short_of_points(refusal: Refusal) -> Refusal {
    let Refusal::Points(points_account::Refusal::InsufficientPoints { asked, available }) = refusal else {
        return refusal;
    };
    super::Refusal::InsufficientPoints { asked, available }.into()
}

/// The receiver's account, not the sender's, has something against it.
fn declined(refusal: Refusal) -> Refusal {
    let Refusal::Points(refusal) = refusal else { return refusal };
    super::Refusal::Declined { reason: reason(&refusal) }.into()
}

fn reason(refusal: &points_account::Refusal) -> Note {
    Note::try_from(refusal.to_string()).unwrap_or_else(|_| unsaid())
}

/// Whether anything was recorded.
fn on_tip(
    decision: &mut Decision<'_, impl Streams>,
    tip: TipId,
    command: &Command,
    policy: &Policy,
) -> Result<bool, Refusal> {
    let events = decision.tip(tip).decide(command, &policy.tips)?;
    let recorded = !events.is_empty();
    decision.record(StreamId::Tip(tip), events.into_iter().map(Event::Tip));
    Ok(recorded)
}

/// The account first: nothing may be on the receipt when it says no.
fn receive(decision: &mut Decision<'_, impl Streams>, tip: TipId, terms: &Terms) -> Result<(), Refusal> {
    let income = terms.points.checked_sub(terms.share).unwrap_or_default();
    let action = Action::ReceiveTip { tip, from: terms.from, income, share: terms.share };
    decision.on_account(terms.to, action)?;
    on_receipt(decision, tip, terms, None)
}

fn on_receipt(
    decision: &mut Decision<'_, impl Streams>,
    tip: TipId,
    terms: &Terms,
    declined: Option<Note>,
) -> Result<(), Refusal> {
    let command = receipt::Command::Receive { terms: terms.clone(), declined };
    let events = decision.tip_receipt(tip).decide(&command)?;
    decision.record(StreamId::TipReceipt(tip), events.into_iter().map(Event::TipReceipt));
    Ok(())
}

/// Why the points are held.
fn purpose() -> crate::Label {
    crate::Label::of("tip")
}

/// For a reason that would not fit; none is that long.
fn unsaid() -> Note {
    Note::of("the account cannot be credited")
}
