//! What each step of a job records, on the job itself, on the user's slots and on the account.

use serde::Serialize;

use super::{Action, Command, Cost, Kind, Order, Output, Resolution, Status, slots};
use crate::{
    Event, HoldId, JobId, Label, Points, Policy, Refusal, Sealed, StreamId, Streams, UserId, Words,
    command::Decision,
    points_account::{self, Source},
};

/// One step of a job. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which.
    pub job: JobId,
    /// What is to happen.
    pub what: What,
}

/// What is to happen to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum What {
    /// Its owner wants it: the points are reserved.
    Submit {
        /// What is to be made.
        kind: Kind,
        /// How long it is to be, at most, in seconds.
        seconds: u32,
        /// Of a video.
        resolution: Option<Resolution>,
        /// Of speech.
        voice: Option<Label>,
        /// What it is to be made with.
        provider: Option<Label>,
        /// What it is to show or say.
        prompt: Sealed,
        /// Higher ones come first.
        priority: u8,
    },
    /// A worker takes it.
    Lease {
        /// Which.
        worker: Label,
        /// What it will be made with.
        provider: Label,
    },
    /// The attempt's worker has made it: what was used is paid, the rest goes back.
    Complete {
        /// Which attempt.
        attempt: u32,
        /// What was made.
        output: Output,
        /// What the provider wants for it.
        cost: Cost,
    },
    /// The attempt did not work: when it was the last, the points go back.
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
    /// Its owner no longer wants it: the points go back.
    Cancel,
    /// It has waited for too long: the points go back.
    Expire,
}

impl Step {
    /// What `user`'s step reads, and may record on.
    pub(crate) fn streams(&self, user: UserId) -> Vec<StreamId> {
        let job = StreamId::VideoJob(self.job);
        match self.what {
            What::Lease { .. } => vec![job],
            What::Submit { .. } => {
                vec![job, StreamId::VideoSlots(user), StreamId::PointsAccount(user), StreamId::Erasure(user)]
            }
            What::Complete { .. } | What::FailAttempt { .. } | What::Cancel | What::Expire => {
                vec![job, StreamId::VideoSlots(user), StreamId::PointsAccount(user)]
            }
        }
    }

    pub(crate) fn decide(
        &self,
        user: UserId,
        decision: &mut Decision<'_, impl Streams>,
        policy: &Policy,
    ) -> Result<(), Refusal> {
        let job = self.job;
        // A job lives with its owner: in whoever else's name it is asked for, there is none.
        if decision.video_job(job).order().is_some_and(|order| order.user != user) {
            return Err(match self.what {
                What::Submit { .. } => super::Refusal::Mismatch,
                What::Lease { .. } | What::Complete { .. } | What::FailAttempt { .. } | What::Cancel | What::Expire => {
                    super::Refusal::NotSubmitted
                }
            }
            .into());
        }
        let before = decision.video_job(job).status();
        // A retry of what was recorded before is no new order.
        if before.is_none() && matches!(self.what, What::Submit { .. }) {
            decision.erasure(user).allows_more()?;
        }
        let command = Command { at: decision.at(), action: self.action(user) };
        let events = decision.video_job(job).decide(&command, &policy.videos)?;
        let used = events.iter().find_map(|event| match event {
            super::Event::Succeeded { used, .. } => Some(*used),
            super::Event::Submitted(_)
            | super::Event::Leased { .. }
            | super::Event::AttemptFailed { .. }
            | super::Event::Failed { .. }
            | super::Event::Cancelled {}
            | super::Event::Expired {} => None,
        });
        decision.record(StreamId::VideoJob(job), events.into_iter().map(Event::VideoJob));
        let after = decision.video_job(job).status();
        if before == after {
            return Ok(());
        }
        let hold = HoldId(job.0);
        if before.is_none() {
            let points = decision.video_job(job).order().map(Order::price).unwrap_or_default();
            on_slots(decision, user, slots::Command::Take { job }, policy)?;
            let reserve =
                points_account::Action::Reserve { hold, points, from: Source::Any, purpose: Label::of("video_job") };
            return decision.on_account(user, reserve);
        }
        match after {
            None | Some(Status::Queued | Status::Leased) => Ok(()),
            Some(Status::Succeeded) => {
                on_slots(decision, user, slots::Command::Free { job }, policy)?;
                let points = used.unwrap_or_default();
                let product = decision.video_job(job).order().map(|order| Label::of(order.kind.as_str()));
                let product = product.ok_or(super::Refusal::NotSubmitted)?;
                decision.on_account(user, points_account::Action::Use { hold, points, product })
            }
            Some(Status::Failed | Status::Cancelled | Status::Expired) => {
                on_slots(decision, user, slots::Command::Free { job }, policy)?;
                decision.on_account(user, points_account::Action::Undo { hold })
            }
        }
    }

    fn action(&self, user: UserId) -> Action {
        match self.what.clone() {
            What::Submit { kind, seconds, resolution, voice, provider, prompt, priority } => Action::Submit(Order {
                user,
                kind,
                seconds,
                resolution,
                voice,
                provider,
                prompt,
                priority,
                per_second: Points::ZERO,
            }),
            What::Lease { worker, provider } => Action::Lease { worker, provider },
            What::Complete { attempt, output, cost } => Action::Complete { attempt, output, cost },
            What::FailAttempt { attempt, reason, retryable, cost } => {
                Action::FailAttempt { attempt, reason, retryable, cost }
            }
            What::Cancel => Action::Cancel,
            What::Expire => Action::Expire,
        }
    }
}

fn on_slots(
    decision: &mut Decision<'_, impl Streams>,
    user: UserId,
    command: slots::Command,
    policy: &Policy,
) -> Result<(), Refusal> {
    let events = decision.video_slots(user).decide(command, &policy.videos)?;
    decision.record(StreamId::VideoSlots(user), events.into_iter().map(Event::VideoSlots));
    Ok(())
}
