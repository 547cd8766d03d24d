//! What each step of a withdrawal records, on the withdrawal itself, on the user's allowance and on the account.

use serde::Serialize;

use super::{Command, Outcome, Status, allowance};
use crate::{
    Event, HoldId, Label, Note, Points, Policy, Reference, Refusal, Sealed, StreamId, Streams, UserId, WithdrawalId,
    Words,
    command::Decision,
    points_account::{Action, Source},
};

/// One step of a withdrawal. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which.
    pub withdrawal: WithdrawalId,
    /// What is to happen.
    pub what: What,
}

/// What is to happen to a withdrawal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum What {
    /// Its owner wants it: the points are held.
    Request {
        /// How many points, the fee included.
        points: Points,
        /// Where the money goes.
        destination: Sealed,
    },
    /// A reviewer says yes.
    Approve {
        /// Who.
        reviewer: UserId,
    },
    /// A reviewer says no: the points go back.
    Reject {
        /// Who.
        reviewer: UserId,
        /// Why.
        reason: Words,
    },
    /// Its owner no longer wants it: the points go back.
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
    /// The provider has not paid and will not: the points go back.
    Fail {
        /// Why.
        reason: Note,
    },
    /// A person has to find out.
    NeedAttention {
        /// Why.
        reason: Note,
    },
    /// A person has found out: as if the provider had said it.
    Resolve {
        /// Who.
        operator: UserId,
        /// What.
        outcome: Outcome,
    },
}

impl Step {
    /// What `user`'s step reads, and may record on.
    pub(crate) fn streams(&self, user: UserId) -> Vec<StreamId> {
        let withdrawal = StreamId::Withdrawal(self.withdrawal);
        match self.what {
            What::NeedAttention { .. } => vec![withdrawal],
            What::StartPayout { .. } => vec![withdrawal, StreamId::PointsAccount(user)],
            What::Request { .. } => vec![
                withdrawal,
                StreamId::WithdrawalAllowance(user),
                StreamId::PointsAccount(user),
                StreamId::Erasure(user),
            ],
            What::Approve { .. }
            | What::Reject { .. }
            | What::Cancel
            | What::Settle { .. }
            | What::Fail { .. }
            | What::Resolve { .. } => {
                vec![withdrawal, StreamId::WithdrawalAllowance(user), StreamId::PointsAccount(user)]
            }
        }
    }

    pub(crate) fn decide(
        &self,
        user: UserId,
        decision: &mut Decision<'_, impl Streams>,
        policy: &Policy,
    ) -> Result<(), Refusal> {
        let withdrawal = self.withdrawal;
        // A withdrawal lives with its owner: in whoever else's name it is asked for, there is none.
        if decision.withdrawal(withdrawal).request().is_some_and(|request| request.user != user) {
            return Err(super::Refusal::NotRequested.into());
        }
        let before = decision.withdrawal(withdrawal).status();
        // A retry of what was recorded before is no new request.
        if before.is_none() && matches!(self.what, What::Request { .. }) {
            decision.erasure(user).allows_more()?;
        }
        let events = decision.withdrawal(withdrawal).decide(&self.command(user), &policy.withdrawals)?;
        decision.record(StreamId::Withdrawal(withdrawal), events.into_iter().map(Event::Withdrawal));
        let after = decision.withdrawal(withdrawal).status();
        if before == after {
            return Ok(());
        }
        let hold = HoldId(withdrawal.0);
        let Some(request) = decision.withdrawal(withdrawal).request().cloned() else { return Ok(()) };
        if before.is_none() {
            let (points, purpose) = (request.points, Label::of("withdrawal"));
            let used = allowance::Command::Use { withdrawal, day: decision.at().date_naive(), points };
            on_allowance(decision, user, &used, policy)?;
            return decision.on_account(user, Action::Reserve { hold, points, from: Source::Income, purpose });
        }
        match after {
            None | Some(Status::UnderReview | Status::Approved | Status::NeedsAttention) => Ok(()),
            Some(Status::Rejected | Status::Cancelled) => {
                on_allowance(decision, user, &allowance::Command::GiveBack { withdrawal }, policy)?;
                decision.on_account(user, Action::Undo { hold })
            }
            Some(Status::Paying) => decision.on_account(user, Action::StartPayout { withdrawal }),
            Some(Status::Paid) => {
                on_allowance(decision, user, &allowance::Command::Close { withdrawal }, policy)?;
                decision.on_account(user, Action::FinishPayout { withdrawal, fee: request.fee })
            }
            Some(Status::Failed) => {
                on_allowance(decision, user, &allowance::Command::GiveBack { withdrawal }, policy)?;
                decision.on_account(user, Action::ReturnPayout { withdrawal })
            }
        }
    }

    fn command(&self, user: UserId) -> Command {
        match self.what.clone() {
            What::Request { points, destination } => Command::Request { user, points, destination },
            What::Approve { reviewer } => Command::Approve { reviewer },
            What::Reject { reviewer, reason } => Command::Reject { reviewer, reason },
            What::Cancel => Command::Cancel,
            What::StartPayout { provider } => Command::StartPayout { provider },
            What::Settle { reference } => Command::Settle { reference },
            What::Fail { reason } => Command::Fail { reason },
            What::NeedAttention { reason } => Command::NeedAttention { reason },
            What::Resolve { operator, outcome } => Command::Resolve { operator, outcome },
        }
    }
}

fn on_allowance(
    decision: &mut Decision<'_, impl Streams>,
    user: UserId,
    command: &allowance::Command,
    policy: &Policy,
) -> Result<(), Refusal> {
    let events = decision.withdrawal_allowance(user).decide(command, &policy.withdrawals)?;
    decision.record(StreamId::WithdrawalAllowance(user), events.into_iter().map(Event::WithdrawalAllowance));
    Ok(())
}
