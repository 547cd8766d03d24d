//! A withdrawal turns a user's income into money, once, after review.
//!
//! ```text
//! request ──▶ under review ──approve──▶ approved ──start──▶ paying ──settle──▶ paid
//!    │           │    └──reject──▶ rejected  ▲                │ │ └────fail────▶ failed
//!    │           └──cancel──▶ cancelled      │                │ └──need attention──▶ needs attention
//!    └───────── small enough ────────────────┘                │          (settle or fail, by an operator
//!                                                             │           or when the provider says after all)
//! ```
//!
//! Rejected, cancelled and failed give the points back. Small amounts need no review, large ones two different
//! reviewers, and nobody decides what is their own. A withdrawal has one payout, whose idempotency key is the
//! withdrawal's own id, at one provider: so whatever is lost on the way, it can only be asked for again, never be paid
//! again. An operator says what came of it only when it needs attention: before, the provider may still be paying.
//!
//! What each command does on the account and on the user's allowance is in [`steps`]; the limits are in [`allowance`].

pub mod allowance;
mod policy;
pub mod steps;

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use allowance::WithdrawalAllowance;
pub use policy::{Money, WithdrawalPolicy};
pub use steps::{Step, What};

use crate::{Label, Note, Points, Reference, Sealed, UserId, Words};

/// What is asked of a withdrawal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Its owner wants it.
    Request {
        /// Whose.
        user: UserId,
        /// How many points.
        points: Points,
        /// Where the money goes, for whoever has the person's key.
        destination: Sealed,
    },
    /// A reviewer says yes.
    Approve {
        /// Who.
        reviewer: UserId,
    },
    /// A reviewer says no.
    Reject {
        /// Who.
        reviewer: UserId,
        /// Why.
        reason: Words,
    },
    /// Its owner no longer wants it.
    Cancel,
    /// The payout is about to be asked for.
    StartPayout {
        /// Of which provider.
        provider: Label,
    },
    /// The provider has paid.
    Settle {
        /// What the provider calls it.
        reference: Reference,
    },
    /// The provider has not paid and will not.
    Fail {
        /// Why.
        reason: Note,
    },
    /// Nobody can tell whether the provider has paid: a person has to find out.
    NeedAttention {
        /// Why.
        reason: Note,
    },
    /// A person has found out.
    Resolve {
        /// Who.
        operator: UserId,
        /// What.
        outcome: Outcome,
    },
}

/// What came of a payout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The provider has paid.
    Paid {
        /// What the provider calls it.
        reference: Reference,
    },
    /// The provider has not paid and will not.
    Failed {
        /// Why.
        reason: Words,
    },
}

/// What happened to a withdrawal. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The points are held.
    Requested(Request),
    /// A reviewer said yes.
    Approved {
        /// Who.
        reviewer: UserId,
    },
    /// A reviewer said no, and the points went back.
    Rejected {
        /// Who.
        reviewer: UserId,
        /// Why.
        reason: Note,
        /// The same, when a person has said it: for whoever has the key of the person whom it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Sealed>,
    },
    /// Its owner took it back, and the points with it.
    Cancelled {},
    /// The provider is about to be asked.
    PayoutStarted {
        /// Which provider.
        provider: Label,
    },
    /// The money has gone.
    Paid {
        /// What the provider calls it.
        reference: Reference,
    },
    /// The money has not gone, and the points went back.
    Failed {
        /// Why.
        reason: Note,
        /// The same, when a person has said it: for whoever has the key of the person whom it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Sealed>,
    },
    /// A person has to find out.
    AttentionNeeded {
        /// Why.
        reason: Note,
    },
}

/// What a withdrawal is about; fixed when it is requested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Whose.
    pub user: UserId,
    /// How many points, the fee included.
    pub points: Points,
    /// What the platform keeps of them.
    pub fee: Points,
    /// What is paid for the others.
    pub money: Money,
    /// Where it goes, for whoever has the person's key.
    pub destination: Sealed,
    /// How many different reviewers have to approve.
    pub reviews_needed: u8,
}

/// Why a withdrawal said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Fewer points than are worth a payout, or more than any limit lets through.
    #[error("a withdrawal is {min} to {max} points")]
    AmountOutOfRange {
        /// The policy's.
        min: Points,
        /// The policy's.
        max: Points,
    },
    /// The amount is too small to come to any money, at the policy's rate.
    #[error("{points} points come to no money")]
    WorthNothing {
        /// What was asked for.
        points: Points,
    },
    /// The id is another withdrawal's.
    #[error("this withdrawal was requested before, with other contents")]
    Mismatch,
    /// No such withdrawal.
    #[error("there is no such withdrawal")]
    NotRequested,
    /// Four eyes: nobody decides what is their own.
    #[error("nobody decides their own withdrawal")]
    OwnRequest,
    /// Four eyes: a second yes has to come from somebody else.
    #[error("this reviewer has approved already; another one has to")]
    SameReviewer,
    /// Its payout is with another provider, and may be paid there.
    #[error("the payout is with the provider {provider}")]
    OtherProvider {
        /// Which.
        provider: Label,
    },
    /// It is not in a state in which this can be asked.
    #[error("the withdrawal is {state}, and this can no longer be done, or not yet")]
    NotNow {
        /// What it is.
        state: Status,
    },
}

/// What a withdrawal is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(as = WithdrawalStatus)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for reviewers.
    UnderReview,
    /// Waits for its payout.
    Approved,
    /// With the provider.
    Paying,
    /// With the provider, and a person has to find out.
    NeedsAttention,
    /// Over: the money has gone.
    Paid,
    /// Over: a reviewer said no.
    Rejected,
    /// Over: its owner took it back.
    Cancelled,
    /// Over: the provider did not pay.
    Failed,
}

impl Status {
    /// All of them, in the order in which they come.
    pub const ALL: [Self; 8] = [
        Self::UnderReview,
        Self::Approved,
        Self::Paying,
        Self::NeedsAttention,
        Self::Paid,
        Self::Rejected,
        Self::Cancelled,
        Self::Failed,
    ];

    /// As in columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnderReview => "under_review",
            Self::Approved => "approved",
            Self::Paying => "paying",
            Self::NeedsAttention => "needs_attention",
            Self::Paid => "paid",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A withdrawal, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    requested: Option<Requested>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Requested {
    request: Request,
    status: Status,
    /// Who has approved.
    reviewers: Vec<UserId>,
    /// Who was asked to pay.
    provider: Option<Label>,
    /// What the provider calls the payout.
    reference: Option<Reference>,
}

impl Withdrawal {
    /// What it is about.
    pub fn request(&self) -> Option<&Request> {
        self.requested.as_ref().map(|requested| &requested.request)
    }

    /// What it is; nothing before it is requested.
    pub fn status(&self) -> Option<Status> {
        self.requested.as_ref().map(|requested| requested.status)
    }

    /// Which provider was asked to pay; nothing before.
    pub fn provider(&self) -> Option<&Label> {
        self.requested.as_ref()?.provider.as_ref()
    }

    /// What a command records: nothing, when all is as asked already.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(&self, command: &Command, policy: &WithdrawalPolicy) -> Result<Vec<Event>, Refusal> {
        let Some(requested) = &self.requested else {
            return match command {
                Command::Request { user, points, destination } => {
                    Ok(vec![Event::Requested(policy.request(*user, *points, destination.clone())?)])
                }
                Command::Approve { .. }
                | Command::Reject { .. }
                | Command::Cancel
                | Command::StartPayout { .. }
                | Command::Settle { .. }
                | Command::Fail { .. }
                | Command::NeedAttention { .. }
                | Command::Resolve { .. } => Err(Refusal::NotRequested),
            };
        };
        let Requested { request, status, reviewers, provider: asked, reference: paid_as } = requested;
        let not_now = Err(Refusal::NotNow { state: *status });
        match command {
            Command::Request { user, points, destination } => {
                let same = (request.user, request.points, &request.destination) == (*user, *points, destination);
                if same { Ok(Vec::new()) } else { Err(Refusal::Mismatch) }
            }
            Command::Approve { reviewer } | Command::Reject { reviewer, .. } if *reviewer == request.user => {
                Err(Refusal::OwnRequest)
            }
            Command::Resolve { operator, .. } if *operator == request.user => Err(Refusal::OwnRequest),
            Command::Approve { reviewer } => match status {
                Status::UnderReview if reviewers.contains(reviewer) => Err(Refusal::SameReviewer),
                Status::UnderReview => Ok(vec![Event::Approved { reviewer: *reviewer }]),
                Status::Approved
                | Status::Paying
                | Status::NeedsAttention
                | Status::Paid
                | Status::Rejected
                | Status::Cancelled
                | Status::Failed => not_now,
            },
            Command::Reject { reviewer, reason } => match status {
                Status::UnderReview => {
                    let (reason, words) = reason.clone().into_members();
                    Ok(vec![Event::Rejected { reviewer: *reviewer, reason, words }])
                }
                Status::Approved
                | Status::Paying
                | Status::NeedsAttention
                | Status::Paid
                | Status::Rejected
                | Status::Cancelled
                | Status::Failed => not_now,
            },
            Command::Cancel => match status {
                Status::UnderReview => Ok(vec![Event::Cancelled {}]),
                Status::Cancelled => Ok(Vec::new()),
                Status::Approved
                | Status::Paying
                | Status::NeedsAttention
                | Status::Paid
                | Status::Rejected
                | Status::Failed => not_now,
            },
            Command::StartPayout { provider } => match status {
                Status::Approved => Ok(vec![Event::PayoutStarted { provider: provider.clone() }]),
                Status::Paying | Status::NeedsAttention | Status::Paid | Status::Failed => match asked {
                    Some(asked) if asked != provider => Err(Refusal::OtherProvider { provider: asked.clone() }),
                    Some(_) | None => Ok(Vec::new()),
                },
                Status::UnderReview | Status::Rejected | Status::Cancelled => not_now,
            },
            Command::Settle { reference } => match status {
                Status::Paying | Status::NeedsAttention => Ok(vec![Event::Paid { reference: reference.clone() }]),
                Status::Paid if paid_as.as_ref() == Some(reference) => Ok(Vec::new()),
                Status::Paid
                | Status::UnderReview
                | Status::Approved
                | Status::Rejected
                | Status::Cancelled
                | Status::Failed => not_now,
            },
            Command::Fail { reason } => match status {
                Status::Paying | Status::NeedsAttention => {
                    Ok(vec![Event::Failed { reason: reason.clone(), words: None }])
                }
                Status::Failed => Ok(Vec::new()),
                Status::UnderReview | Status::Approved | Status::Paid | Status::Rejected | Status::Cancelled => not_now,
            },
            Command::Resolve { operator: _, outcome } => match (status, outcome) {
                (Status::NeedsAttention, Outcome::Paid { reference }) => {
                    Ok(vec![Event::Paid { reference: reference.clone() }])
                }
                (Status::NeedsAttention, Outcome::Failed { reason }) => {
                    let (reason, words) = reason.clone().into_members();
                    Ok(vec![Event::Failed { reason, words }])
                }
                (Status::Paid, Outcome::Paid { reference }) if paid_as.as_ref() == Some(reference) => Ok(Vec::new()),
                (Status::Failed, Outcome::Failed { .. }) => Ok(Vec::new()),
                (
                    Status::UnderReview
                    | Status::Approved
                    | Status::Paying
                    | Status::Paid
                    | Status::Rejected
                    | Status::Cancelled
                    | Status::Failed,
                    Outcome::Paid { .. } | Outcome::Failed { .. },
                ) => not_now,
            },
            Command::NeedAttention { reason } => match status {
                Status::Paying => Ok(vec![Event::AttentionNeeded { reason: reason.clone() }]),
                Status::NeedsAttention => Ok(Vec::new()),
                Status::UnderReview
                | Status::Approved
                | Status::Paid
                | Status::Rejected
                | Status::Cancelled
                | Status::Failed => not_now,
            },
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        if let Event::Requested(request) = event {
            let status = if request.reviews_needed == 0 { Status::Approved } else { Status::UnderReview };
            let request = request.clone();
            let reviewers = Vec::new();
            self.requested = Some(Requested { request, status, reviewers, provider: None, reference: None });
            return;
        }
        let Some(requested) = &mut self.requested else { return };
        match event {
            Event::Requested(_) => {}
            Event::Approved { reviewer } => {
                requested.reviewers.push(*reviewer);
                if requested.reviewers.len() >= usize::from(requested.request.reviews_needed) {
                    requested.status = Status::Approved;
                }
            }
            Event::Rejected { .. } => requested.status = Status::Rejected,
            Event::Cancelled {} => requested.status = Status::Cancelled,
            Event::PayoutStarted { provider } => {
                requested.provider = Some(provider.clone());
                requested.status = Status::Paying;
            }
            Event::Paid { reference } => {
                requested.reference = Some(reference.clone());
                requested.status = Status::Paid;
            }
            Event::Failed { reason: _, words: _ } => requested.status = Status::Failed,
            Event::AttentionNeeded { reason: _ } => requested.status = Status::NeedsAttention,
        }
    }

    /// Memory beside itself.
    pub fn heap_bytes(&self) -> usize {
        self.requested.as_ref().map_or(0, |requested| requested.request.destination.as_str().len() + 256)
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Requested(_) => "requested",
            Self::Approved { .. } => "approved",
            Self::Rejected { .. } => "rejected",
            Self::Cancelled {} => "cancelled",
            Self::PayoutStarted { .. } => "payout_started",
            Self::Paid { .. } => "paid",
            Self::Failed { .. } => "failed",
            Self::AttentionNeeded { .. } => "attention_needed",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for Withdrawal {
    const TYPE: &'static str = "withdrawal";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = WithdrawalPolicy;

    async fn handle(
        &mut self,
        command: Command,
        policy: &WithdrawalPolicy,
        sink: &EventSink<Self>,
    ) -> Result<(), Refusal> {
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
