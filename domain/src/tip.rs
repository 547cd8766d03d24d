//! A tip: points from one user to another, of which the platform keeps a share.
//!
//! ```text
//! the sender's shard:     offer ──▶ offered ──settle──▶ delivered
//!                                      └─────return──▶ returned
//! the receiver's shard:   receive ──▶ credited, or declined
//! ```
//!
//! The two may live in different shards, so a tip goes in steps, each safe to repeat: the sender's points are reserved
//! (offer), the receiver's shard credits them or declines, once and for ever ([`receipt`]), and the sender's shard hands
//! the points over (settle) or gives them back (return). Between two steps what was credited stands on the books'
//! transit account. When both live in one shard, all steps are one decision ([`steps`]).

pub mod receipt;
pub mod steps;

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};

pub use receipt::TipReceipt;
pub use steps::Step;

use crate::{Note, Points, UserId, WorkId};

/// The numbers of tips, from configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TipPolicy {
    /// What the platform keeps, in thousandths; at most 1,000.
    pub share_permille: u16,
    /// The largest tip.
    pub points_max: Points,
}

impl Default for TipPolicy {
    fn default() -> Self {
        Self { share_permille: 300, points_max: Points::try_from(100_000).unwrap_or_default() }
    }
}

impl TipPolicy {
    /// What the platform keeps of a tip: rounded down to whole points, in favour of the receiver.
    pub fn share_of(&self, points: Points) -> Points {
        let share = points.get() / 1_000 * i64::from(self.share_permille)
            + points.get() % 1_000 * i64::from(self.share_permille) / 1_000;
        Points::try_from(share).unwrap_or_default().min(points)
    }
}

/// What a tip is about; fixed when it is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Who gives.
    pub from: UserId,
    /// Who gets.
    pub to: UserId,
    /// What the sender pays.
    pub points: Points,
    /// What the platform keeps of that.
    pub share: Points,
    /// For which work, if for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkId>,
}

/// What is asked of a tip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A user wants to give it.
    Offer(Terms),
    /// The receiver has it.
    Settle,
    /// The receiver cannot have it.
    Return {
        /// Why.
        reason: Note,
    },
}

/// What happened to a tip. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The points are reserved.
    Offered(Terms),
    /// The receiver has them.
    Delivered {},
    /// The sender has them again.
    Returned {
        /// Why.
        reason: Note,
    },
}

/// Why a tip was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nobody tips themselves.
    #[error("a tip goes to somebody else")]
    ToOneself,
    /// Zero, or more than the policy allows.
    #[error("a tip is 1 to {max} points")]
    AmountOutOfRange {
        /// The policy's limit.
        max: Points,
    },
    /// The sender has not that many points of the kinds that may be given.
    #[error("{asked} points asked for, {available} can be given: promo points cannot")]
    InsufficientPoints {
        /// How many were asked for.
        asked: Points,
        /// How many paid and income points there are.
        available: Points,
    },
    /// The receiver lives in the same shard, and the account there says no.
    #[error("the receiver cannot have this tip: {}", reason.as_str())]
    Declined {
        /// Why.
        reason: Note,
    },
    /// The id is another tip's.
    #[error("this tip was offered before, with other contents")]
    Mismatch,
    /// No such tip.
    #[error("this tip was never offered")]
    NotOffered,
    /// It ended the other way.
    #[error("this tip has ended already")]
    Ended,
}

/// A tip, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tip {
    /// Never offered.
    #[default]
    Nothing,
    /// The points are reserved.
    Offered(Terms),
    /// The receiver has them.
    Delivered(Terms),
    /// The sender has them again.
    Returned(Terms),
}

impl Tip {
    /// What a command records: nothing, when all is as asked already.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(&self, command: &Command, policy: &TipPolicy) -> Result<Vec<Event>, Refusal> {
        match (command, self) {
            (Command::Offer(terms), Self::Nothing) => {
                if terms.from == terms.to {
                    return Err(Refusal::ToOneself);
                }
                if terms.points.is_zero() || terms.points > policy.points_max {
                    return Err(Refusal::AmountOutOfRange { max: policy.points_max });
                }
                Ok(vec![Event::Offered(terms.clone())])
            }
            // The share is the policy's of then, not what is asked.
            (Command::Offer(asked), Self::Offered(terms) | Self::Delivered(terms) | Self::Returned(terms)) => {
                let same = Terms { share: terms.share, ..asked.clone() } == *terms;
                if same { Ok(Vec::new()) } else { Err(Refusal::Mismatch) }
            }
            (Command::Settle, Self::Offered(_)) => Ok(vec![Event::Delivered {}]),
            (Command::Return { reason }, Self::Offered(_)) => Ok(vec![Event::Returned { reason: reason.clone() }]),
            (Command::Settle, Self::Delivered(_)) | (Command::Return { .. }, Self::Returned(_)) => Ok(Vec::new()),
            (Command::Settle | Command::Return { .. }, Self::Nothing) => Err(Refusal::NotOffered),
            (Command::Settle, Self::Returned(_)) | (Command::Return { .. }, Self::Delivered(_)) => Err(Refusal::Ended),
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        *self = match (std::mem::take(self), event) {
            (_, Event::Offered(terms)) => Self::Offered(terms.clone()),
            (Self::Offered(terms), Event::Delivered {}) => Self::Delivered(terms),
            (Self::Offered(terms), Event::Returned { .. }) => Self::Returned(terms),
            (other, Event::Delivered {} | Event::Returned { .. }) => other,
        };
    }

    /// What it is about.
    pub const fn terms(&self) -> Option<&Terms> {
        match self {
            Self::Nothing => None,
            Self::Offered(terms) | Self::Delivered(terms) | Self::Returned(terms) => Some(terms),
        }
    }

    /// Memory beside itself.
    pub const fn heap_bytes(&self) -> usize {
        0
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Offered(_) => "offered",
            Self::Delivered {} => "delivered",
            Self::Returned { .. } => "returned",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for Tip {
    const TYPE: &'static str = "tip";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = TipPolicy;

    async fn handle(&mut self, command: Command, policy: &TipPolicy, sink: &EventSink<Self>) -> Result<(), Refusal> {
        for event in self.decide(&command, policy)? {
            sink.write(event, self).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        Self::apply(self, &event);
    }
}

#[cfg(test)]
mod tests;
