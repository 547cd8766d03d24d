//! Pays withdrawals, each once.
//!
//! | event | what is done |
//! |---|---|
//! | withdrawal requested, approved | once it needs no more reviews: start the payout, with the provider of this node |
//! | payout started | ask the provider what it knows; pay if it knows nothing; settle, fail, or look again later |
//!
//! That a payout starts before its provider is asked is not a matter of care: only the recorded start makes anybody ask.
//! There is one such event for each withdrawal, so its task is the one place that asks. The task ends when the
//! withdrawal has ended, whoever said so; until then it looks again, ever more rarely. When too much time passes, or the
//! provider speaks of something else under the same key, the withdrawal needs attention: from then on nothing is sent
//! any more, since a person may be paying by hand, and the provider is only asked what it knows.
//!
//! What may happen, and what comes of it:
//!
//! | event | what happens |
//! |---|---|
//! | a crash anywhere | the task is claimed again when its lease is over, and begins with a look-up |
//! | two reactions at once, on one node or two | both ask under the same key; the streams take one answer and repeat it |
//! | no connection, no answer, half an answer, any status but the ones of the protocol | nobody knows: looked up later, paid again under the same key only when the provider does not know it |
//! | the provider cannot be asked what it knows | nothing is sent |
//! | pending | looked up again, with back-off |
//! | another user, amount or currency under the key | needs attention at once |
//! | the person was erased | needs attention: whether it was paid before that, the provider knows |
//! | the payout was started with a provider that this node does not have | nothing is sent; another node may have it; needs attention in time |
//! | nothing decided in time | needs attention; an error is logged once, and the metric of waiting persons counts it |
//! | the provider says so after all, in a look-up or a callback, or an operator does | it is settled or fails |
//! | the provider contradicts what is recorded | recorded stays recorded; an error is logged and counted |

use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::Rng;
use skyriff_domain::{
    Event, Intent, Label, RecordedEvent, Reference, Refusal, StreamId, WithdrawalId,
    withdrawal::{self, Request, Status, Step, steps::What},
};
use skyriff_vault::{Error as VaultError, destination::Destination};

use super::{Process, Reaction, Services};
use crate::{
    Failure,
    payouts::{Doubt, Payout, Payouts, Said, contradiction, note},
};

pub(super) fn concerns(event: &RecordedEvent) -> bool {
    asks(event).is_some()
}

/// What an event asks for.
enum Asks {
    /// To start the payout, if it may start by now.
    Start,
    /// To see a started one to its end.
    Finish { provider: Label },
}

fn asks(event: &RecordedEvent) -> Option<(WithdrawalId, Asks)> {
    use withdrawal::Event as E;
    let (StreamId::Withdrawal(withdrawal), Event::Withdrawal(happened)) = (&event.stream, &event.event) else {
        return None;
    };
    let asks = match happened {
        E::Requested(request) if request.reviews_needed == 0 => Asks::Start,
        E::Approved { reviewer: _ } => Asks::Start,
        E::PayoutStarted { provider } => Asks::Finish { provider: provider.clone() },
        E::Requested(_)
        | E::Rejected { .. }
        | E::Cancelled {}
        | E::Paid { .. }
        | E::Failed { .. }
        | E::AttentionNeeded { .. } => return None,
    };
    Some((*withdrawal, asks))
}

pub(super) async fn react(event: &RecordedEvent, with: &Services) -> Reaction {
    let Some((withdrawal, asks)) = asks(event) else { return Reaction::Done };
    let Some(payouts) = &with.payouts else { return Reaction::later("this node pays nothing") };
    let found = match payouts.records.find(event.at.shard, withdrawal).await {
        Ok(found) => found,
        Err(error) => return Reaction::later(error),
    };
    let (Some(request), Some(status)) = (found.request(), found.status()) else {
        return Reaction::later("the withdrawal cannot be found in the log");
    };
    let it = Withdrawal { cause: event, with, payouts, withdrawal, request };
    match asks {
        Asks::Start => it.start(status).await,
        Asks::Finish { provider } => it.finish(&provider, status).await,
    }
}

/// The withdrawal in hand.
struct Withdrawal<'a> {
    cause: &'a RecordedEvent,
    with: &'a Services,
    payouts: &'a Payouts,
    withdrawal: WithdrawalId,
    request: &'a Request,
}

impl Withdrawal<'_> {
    async fn start(&self, status: Status) -> Reaction {
        match status {
            Status::Approved => {
                let provider = self.payouts.provider.name().clone();
                match self.command("start", What::StartPayout { provider }).await {
                    Ok(_) => Reaction::Done,
                    Err(failure) => Reaction::later(failure),
                }
            }
            // The approval that completes it is an event of its own, with a task of its own.
            Status::UnderReview => Reaction::Done,
            Status::Paying
            | Status::NeedsAttention
            | Status::Paid
            | Status::Rejected
            | Status::Cancelled
            | Status::Failed => Reaction::Done,
        }
    }

    async fn finish(&self, provider: &Label, status: Status) -> Reaction {
        let payout = Payout::of(self.withdrawal, self.request);
        if provider != self.payouts.provider.name() {
            if matches!(status, Status::Paid | Status::Failed) {
                return Reaction::Done;
            }
            let reason = format!("its payout is with the provider {provider}, which this node does not have");
            return self.undecided(status, &reason, None).await;
        }
        let known = self.payouts.provider.look_up(&payout).await;
        let said = match (known, status) {
            (known, Status::Paid | Status::Failed) => {
                self.compare(&payout, status, known);
                return Reaction::Done;
            }
            (Ok(Some(said)), _) => Ok(said),
            (Ok(None), Status::Paying) => match self.destination().await {
                Ok(destination) => self.payouts.provider.pay(&payout, &destination).await,
                Err(Closed::ForEver(reason)) => return self.attention(&reason).await,
                Err(Closed::Now(reason)) => return self.undecided(status, &reason, None).await,
            },
            (Ok(None), Status::NeedsAttention) => {
                return self.undecided(status, "the provider does not know it, and a person has to decide", None).await;
            }
            (Ok(None), Status::UnderReview | Status::Approved | Status::Rejected | Status::Cancelled) => {
                return Reaction::later(format!("its payout has started, and it is {status}"));
            }
            (Err(doubt), _) => Err(doubt),
        };
        match said {
            Ok(Said::Paid { reference }) => self.settle(&payout, reference).await,
            Ok(Said::Declined { reason }) => {
                let failed = self.command(&format!("fail {}", reason.as_str()), What::Fail { reason }).await;
                self.recorded(&payout, "the provider has declined it", failed)
            }
            Ok(Said::Pending) => self.undecided(status, "the provider says that it is pending", None).await,
            Err(Doubt::Mismatch { reason }) => {
                self.attention(&format!("the provider has another payout under its key: {reason}")).await
            }
            Err(Doubt::Unknown { reason, retry_after }) => self.undecided(status, &reason, retry_after).await,
        }
    }

    async fn settle(&self, payout: &Payout, reference: Reference) -> Reaction {
        let what = format!("the provider has paid it as {}", reference.as_str());
        let settled = self.command(&format!("settle {}", reference.as_str()), What::Settle { reference }).await;
        self.recorded(payout, &what, settled)
    }

    /// After the provider's last word was handed in.
    fn recorded(&self, payout: &Payout, said: &str, outcome: Result<bool, Failure>) -> Reaction {
        match outcome {
            Ok(_) => Reaction::Done,
            Err(
                Failure::Refused(refusal @ Refusal::Withdrawal(_))
                | Failure::RefusedBefore(refusal @ Refusal::Withdrawal(_)),
            ) => {
                contradiction(self.payouts.provider.name(), payout, &format!("{said}, and {refusal}"));
                Reaction::Done
            }
            Err(failure) => Reaction::later(failure),
        }
    }

    /// It has ended, by a callback or an operator: whether the provider says the same.
    fn compare(&self, payout: &Payout, status: Status, known: Result<Option<Said>, Doubt>) {
        let what = match (known, status) {
            (Ok(Some(Said::Paid { reference })), Status::Failed) => {
                format!("the provider has paid it as {}, and it is recorded as failed", reference.as_str())
            }
            (Ok(Some(Said::Declined { .. })), Status::Paid) => {
                "the provider has declined it, and it is recorded as paid".to_owned()
            }
            (Err(Doubt::Mismatch { reason }), _) => reason,
            (Ok(_) | Err(Doubt::Unknown { .. }), _) => return,
        };
        contradiction(self.payouts.provider.name(), payout, &what);
    }

    async fn destination(&self) -> Result<Destination, Closed> {
        let opened = self.payouts.vault.open_destination(self.request.user, self.withdrawal, &self.request.destination);
        opened.await.map_err(|error| match error {
            VaultError::Erased | VaultError::Damaged => Closed::ForEver(format!("nobody knows where to pay: {error}")),
            VaultError::NoKey | VaultError::UnknownMasterKey(_) | VaultError::Unavailable(_) => {
                Closed::Now(error.to_string())
            }
        })
    }

    /// Look again later, or have a person look when that has gone on for too long.
    async fn undecided(&self, status: Status, reason: &str, retry_after: Option<Duration>) -> Reaction {
        let patience = &self.payouts.patience;
        let age = since(self.cause.recorded_at);
        let left = patience.attention_after.saturating_sub(age);
        match status {
            Status::Paying if left.is_zero() => self.attention(reason).await,
            Status::NeedsAttention => self.waiting_for_a_person(reason),
            Status::Paying
            | Status::UnderReview
            | Status::Approved
            | Status::Paid
            | Status::Rejected
            | Status::Cancelled
            | Status::Failed => {
                let wait = (age / 2).max(retry_after.unwrap_or_default());
                let wait = wait.clamp(patience.look_again_min, patience.look_again_max.max(patience.look_again_min));
                let wait = wait.mul_f64(rand::rng().random_range(0.75..=1.0)).min(left);
                Reaction::Later { after: Some(wait), reason: reason.to_owned() }
            }
        }
    }

    async fn attention(&self, reason: &str) -> Reaction {
        let what = What::NeedAttention { reason: note(reason) };
        match self.command(&format!("attention {reason}"), what).await {
            Ok(news) => {
                if news {
                    let (withdrawal, user) = (self.withdrawal, self.request.user);
                    tracing::error!(%withdrawal, %user, reason, "a withdrawal needs attention");
                }
                self.waiting_for_a_person(reason)
            }
            // It has ended meanwhile: the next look sees it.
            Err(failure) => Reaction::later(failure),
        }
    }

    fn waiting_for_a_person(&self, reason: &str) -> Reaction {
        Reaction::NeedsAttention { look_again: self.payouts.patience.look_again_max, reason: reason.to_owned() }
    }

    /// Whether it recorded something now.
    async fn command(&self, step: &str, what: What) -> Result<bool, Failure> {
        let intent = Intent::Withdrawal(Step { withdrawal: self.withdrawal, what });
        let sent = self.with.command_now(Process::Payouts, self.cause, step, self.request.user, intent).await?;
        Ok(!sent.recorded.is_empty() && !sent.replayed)
    }
}

/// Why a destination is not known.
enum Closed {
    ForEver(String),
    Now(String),
}

/// A clock that is behind the database's makes it no time at all.
fn since(at: DateTime<Utc>) -> Duration {
    (Utc::now() - at).to_std().unwrap_or_default()
}
