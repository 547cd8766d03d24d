//! What a provider's file says, beside what the ledger says.
//!
//! A file is reconciled by a *run* ([`run`]); whatever does not agree is an *exception* ([`exception`]), which stays until a
//! person has resolved it or a later file explains it. Lines that agree are counted and leave no event, since a file may
//! have a million of them.
//!
//! Deliberately absent: changing anything in the books. Whoever finds a mistake of ours corrects it with the commands there
//! are, and says so when resolving the exception.

pub mod exception;
pub mod run;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Event, ExceptionId, ReconciliationId, Refusal, StreamId, Streams, UserId, command::Decision};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(as = ReconciliationKind)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What a payout provider has paid, with withdrawals.
    Payouts,
    /// What a payment provider was paid, with recharges.
    Recharges,
}

impl Kind {
    /// As in columns, ids and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Payouts => "payouts",
            Self::Recharges => "recharges",
        }
    }
}

/// One step of a reconciliation. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Step {
    /// Of a run, which lives by its own id.
    Run {
        /// Which.
        run: ReconciliationId,
        /// What is asked.
        command: run::Command,
    },
    /// Of an exception, which lives with the user whom it is about, or by its own id when it is about nobody that is known.
    Exception {
        /// Which.
        exception: ExceptionId,
        /// What is asked.
        command: exception::Command,
    },
}

impl Step {
    /// What it reads, and may record on.
    pub(crate) fn streams(&self) -> Vec<StreamId> {
        match self {
            Self::Run { run, .. } => vec![StreamId::Reconciliation(*run)],
            Self::Exception { exception, .. } => vec![StreamId::ReconciliationException(*exception)],
        }
    }

    pub(crate) fn decide(&self, user: UserId, decision: &mut Decision<'_, impl Streams>) -> Result<(), Refusal> {
        match self {
            Self::Run { run, command } => {
                let events = decision.reconciliation(*run).decide(command)?;
                decision.record(StreamId::Reconciliation(*run), events.into_iter().map(Event::Reconciliation));
            }
            Self::Exception { exception, command } => {
                let state = decision.reconciliation_exception(*exception);
                // In whoever else's name it is asked for, there is none.
                if state.home(*exception).is_some_and(|home| home != user) {
                    return Err(exception::Refusal::NotFound.into());
                }
                let events = state.decide(command)?;
                let stream = StreamId::ReconciliationException(*exception);
                decision.record(stream, events.into_iter().map(Event::ReconciliationException));
            }
        }
        Ok(())
    }
}
