//! A video job: somebody asks for a video or for speech, a worker makes it, and it is paid for with points.
//!
//! ```text
//! submit ──▶ queued ──lease──▶ leased (attempt n) ──complete──▶ succeeded
//!             ▲  │  │             │  │   │
//!             │  │  └──expire──┐  │  │   └──fail, for good or too often──▶ failed
//!             │  └──cancel──┐  │  │  │
//!             │             │  │  │  └──cancel──▶ cancelled
//!             └─────────────┼──┼──┘ fail, or the lease is over: again after a while
//!                           │  └──▶ expired
//!                           └─────▶ cancelled
//! ```
//!
//! The points are reserved before the job opens, and what happens to them is in [`steps`]: succeeded takes what was used
//! and gives the rest back, every other end gives all of it back. The attempt's number is the fencing token: whoever
//! still works on an attempt that is over is told so, and changes nothing.
//!
//! Deliberately absent: heartbeats and progress (they are of no interest once the job is over), and which job is whose
//! turn (the queue's).

mod fault;
mod order;
mod policy;
pub mod slots;
pub mod steps;

use chrono::{DateTime, TimeDelta, Utc};
use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use fault::WorkerFault;
pub use order::{Cost, Kind, Order, Output, Resolution};
pub use policy::VideoPolicy;
pub use slots::VideoSlots;
pub use steps::Step;

use crate::{Label, Note, Points, Sealed, Words};

/// What is asked of a job, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The business time.
    pub at: DateTime<Utc>,
    /// What is asked.
    pub action: Action,
}

/// What a job can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its owner wants it.
    Submit(Order),
    /// A worker takes it.
    Lease {
        /// Which.
        worker: Label,
        /// What it will be made with.
        provider: Label,
    },
    /// The attempt's worker has made it.
    Complete {
        /// Which attempt.
        attempt: u32,
        /// What was made.
        output: Output,
        /// What the provider wants for it.
        cost: Cost,
    },
    /// The attempt did not work, or its worker has not been heard of for too long.
    FailAttempt {
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: Words,
        /// Whether another attempt may work.
        retryable: bool,
        /// What the provider wants for it all the same.
        cost: Cost,
    },
    /// Its owner no longer wants it.
    Cancel,
    /// It has waited for too long.
    Expire,
}

/// What happened to a job. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The points are reserved, and it waits for a worker.
    Submitted(Order),
    /// A worker has taken it.
    Leased {
        /// The how-manieth time, from 1.
        attempt: u32,
        /// Which worker.
        worker: Label,
        /// What it is made with.
        provider: Label,
    },
    /// It was made.
    Succeeded {
        /// Which attempt.
        attempt: u32,
        /// What was made.
        output: Output,
        /// What its owner paid.
        used: Points,
        /// What the provider wants for it.
        cost: Cost,
    },
    /// An attempt did not work, and it waits for another.
    AttemptFailed {
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: Note,
        /// The same, when a person has said it: for whoever has the key of the person whom it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Sealed>,
        /// Not before.
        retry_at: DateTime<Utc>,
        /// What the provider wants for it all the same.
        cost: Cost,
    },
    /// It did not work, and will not be tried again.
    Failed {
        /// The last attempt.
        attempt: u32,
        /// Why.
        reason: Note,
        /// The same, when a person has said it: for whoever has the key of the person whom it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Sealed>,
        /// Whether another attempt might have worked: then it was tried too often, else it cannot be made.
        retryable: bool,
        /// What the provider wants for the last attempt all the same.
        cost: Cost,
    },
    /// Its owner took it back.
    Cancelled {},
    /// It waited for too long.
    Expired {},
}

/// Why a job said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Too short or too long.
    #[error("a job is 1 to {max} seconds")]
    SecondsOutOfRange {
        /// The policy's limit.
        max: u32,
    },
    /// Nothing of this kind and resolution is sold.
    #[error("there is no price for this kind and resolution")]
    NotSold,
    /// The id is another job's.
    #[error("this job was submitted before, with other contents")]
    Mismatch,
    /// No such job.
    #[error("there is no such job")]
    NotSubmitted,
    /// The attempt is over: it was given to somebody else, or the job has ended.
    #[error("attempt {attempt} is over; the job is {state}")]
    StaleAttempt {
        /// Which.
        attempt: u32,
        /// What the job is.
        state: Status,
    },
    /// What was made is nothing: it has no length or no size.
    #[error("what was made is at least a second and a byte")]
    NothingMade,
    /// It is not in a state in which this can be asked.
    #[error("the job is {state}, and this can no longer be done, or not yet")]
    NotNow {
        /// What it is.
        state: Status,
    },
    /// The time is outside what the calendar can say.
    #[error("the time is out of range")]
    TimeOutOfRange,
}

/// What a job is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(as = VideoJobStatus)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for a worker.
    Queued,
    /// A worker is at it.
    Leased,
    /// Over: it was made.
    Succeeded,
    /// Over: it did not work.
    Failed,
    /// Over: its owner took it back.
    Cancelled,
    /// Over: it waited for too long.
    Expired,
}

impl Status {
    /// All of them, in the order in which they come.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Leased, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Expired];

    /// As in columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether nothing happens to it any more.
    pub const fn is_over(self) -> bool {
        match self {
            Self::Queued | Self::Leased => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired => true,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A job, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoJob {
    submitted: Option<Submitted>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Submitted {
    order: Order,
    status: Status,
    /// The one that runs, or the last one; 0 before the first.
    attempt: u32,
    /// What came of it.
    output: Option<Output>,
}

/// The reason of an attempt that ended because its worker was not heard of any more: it says nothing about the provider.
pub fn worker_lost() -> Note {
    WorkerFault::Lost.reason()
}

impl VideoJob {
    /// What was asked for.
    pub fn order(&self) -> Option<&Order> {
        self.submitted.as_ref().map(|submitted| &submitted.order)
    }

    /// What it is; nothing before it is submitted.
    pub fn status(&self) -> Option<Status> {
        self.submitted.as_ref().map(|submitted| submitted.status)
    }

    /// What was made.
    pub fn output(&self) -> Option<&Output> {
        self.submitted.as_ref().and_then(|submitted| submitted.output.as_ref())
    }

    /// What a command records: nothing, when all is as asked already.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(&self, command: &Command, policy: &VideoPolicy) -> Result<Vec<Event>, Refusal> {
        let Some(Submitted { order, status, attempt: current, output: made }) = &self.submitted else {
            return match &command.action {
                Action::Submit(order) => Ok(vec![Event::Submitted(policy.order(order.clone())?)]),
                Action::Lease { .. }
                | Action::Complete { .. }
                | Action::FailAttempt { .. }
                | Action::Cancel
                | Action::Expire => Err(Refusal::NotSubmitted),
            };
        };
        let not_now = Err(Refusal::NotNow { state: *status });
        let is_running = |attempt: u32| *status == Status::Leased && attempt == *current;
        match &command.action {
            Action::Submit(asked) => {
                // The price is the policy's of then, not what is asked.
                let same = Order { per_second: order.per_second, ..asked.clone() } == *order;
                if same { Ok(Vec::new()) } else { Err(Refusal::Mismatch) }
            }
            Action::Lease { worker, provider } => match status {
                Status::Queued => Ok(vec![Event::Leased {
                    attempt: current.saturating_add(1),
                    worker: worker.clone(),
                    provider: provider.clone(),
                }]),
                Status::Leased | Status::Succeeded | Status::Failed | Status::Cancelled | Status::Expired => not_now,
            },
            Action::Complete { attempt, output, cost } => {
                if *status == Status::Succeeded && attempt == current && made.as_ref() == Some(output) {
                    return Ok(Vec::new());
                }
                if !is_running(*attempt) {
                    return Err(Refusal::StaleAttempt { attempt: *attempt, state: *status });
                }
                if output.seconds == 0 || output.bytes == 0 {
                    return Err(Refusal::NothingMade);
                }
                let used = order.price_of(output.seconds);
                let (output, cost) = (output.clone(), cost.clone());
                Ok(vec![Event::Succeeded { attempt: *attempt, output, used, cost }])
            }
            Action::FailAttempt { attempt, reason, retryable, cost } => {
                if !is_running(*attempt) {
                    return Err(Refusal::StaleAttempt { attempt: *attempt, state: *status });
                }
                let (attempt, cost) = (*attempt, cost.clone());
                let (reason, words) = reason.clone().into_members();
                if *retryable && attempt < policy.attempts_max {
                    let wait = TimeDelta::seconds(i64::from(policy.back_off_s(attempt)));
                    let retry_at = command.at.checked_add_signed(wait).ok_or(Refusal::TimeOutOfRange)?;
                    Ok(vec![Event::AttemptFailed { attempt, reason, words, retry_at, cost }])
                } else {
                    Ok(vec![Event::Failed { attempt, reason, words, retryable: *retryable, cost }])
                }
            }
            Action::Cancel => match status {
                Status::Queued | Status::Leased => Ok(vec![Event::Cancelled {}]),
                Status::Cancelled => Ok(Vec::new()),
                Status::Succeeded | Status::Failed | Status::Expired => not_now,
            },
            Action::Expire => match status {
                Status::Queued => Ok(vec![Event::Expired {}]),
                Status::Expired => Ok(Vec::new()),
                Status::Leased | Status::Succeeded | Status::Failed | Status::Cancelled => not_now,
            },
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        if let Event::Submitted(order) = event {
            let order = order.clone();
            self.submitted = Some(Submitted { order, status: Status::Queued, attempt: 0, output: None });
            return;
        }
        let Some(submitted) = &mut self.submitted else { return };
        match event {
            Event::Submitted(_) => {}
            Event::Leased { attempt, worker: _, provider: _ } => {
                submitted.attempt = *attempt;
                submitted.status = Status::Leased;
            }
            Event::Succeeded { output, .. } => {
                submitted.output = Some(output.clone());
                submitted.status = Status::Succeeded;
            }
            Event::AttemptFailed { .. } => submitted.status = Status::Queued,
            Event::Failed { .. } => submitted.status = Status::Failed,
            Event::Cancelled {} => submitted.status = Status::Cancelled,
            Event::Expired {} => submitted.status = Status::Expired,
        }
    }

    /// Memory beside itself.
    pub fn heap_bytes(&self) -> usize {
        self.submitted.as_ref().map_or(0, |submitted| submitted.order.prompt.as_str().len() + 256)
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Submitted(_) => "submitted",
            Self::Leased { .. } => "leased",
            Self::Succeeded { .. } => "succeeded",
            Self::AttemptFailed { .. } => "attempt_failed",
            Self::Failed { .. } => "failed",
            Self::Cancelled {} => "cancelled",
            Self::Expired {} => "expired",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for VideoJob {
    const TYPE: &'static str = "video_job";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = VideoPolicy;

    async fn handle(&mut self, command: Command, policy: &VideoPolicy, sink: &EventSink<Self>) -> Result<(), Refusal> {
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
