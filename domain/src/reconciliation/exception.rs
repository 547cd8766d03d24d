//! What a provider's file and the ledger do not agree on: one stream for each payment and provider.
//!
//! ```text
//! find ──▶ open ──resolve──▶ resolved ──┐
//!           ▲ └────explain──▶ explained ─┤
//!           └──────── find, with other figures; of an explained one, with any
//! ```
//!
//! Found again with the same figures, as overlapping files do, an open one stays open and a resolved one resolved. A
//! person resolves with a reason, and never what is about themselves; who brought the file does not matter, since bringing
//! it decides nothing.
//!
//! A line by which both sides say that it was paid, and agree, explains an open one by itself ([`Agreement`]); a file that is
//! older, or of another payment for the same thing, does not:
//!
//! | what was found | what explains it |
//! |---|---|
//! | missing in the file | any such line |
//! | paid, under a name | one that was said no earlier, under the same name: another name is another payment |
//! | paid, without a name; or not paid | one that was said no earlier |
//! | more than once, or at a time that was not kept | none: it may have been paid twice, and a file with one payment does not undo the other |

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Kind;
use crate::{ExceptionId, Label, Note, ReconciliationId, Reference, Sealed, UserId, Words};

/// What is asked of an exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Command {
    /// A run has found that something does not agree.
    Find(Found),
    /// A run has found that it agrees.
    Explain {
        /// Which.
        run: ReconciliationId,
        /// By which line of its file.
        by: Agreement,
    },
    /// A person has found out why.
    Resolve {
        /// Who.
        operator: UserId,
        /// What came of it.
        outcome: Outcome,
        /// Why.
        reason: Words,
    },
}

/// A line of a file that says that it was paid, as the ledger does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// When the provider said so.
    pub at: DateTime<Utc>,
    /// What the provider calls the payment; nothing of recharges.
    pub reference: Option<Reference>,
}

/// What does not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// What was compared.
    pub kind: Kind,
    /// With whose file.
    pub provider: Label,
    /// In which run.
    pub run: ReconciliationId,
    /// The withdrawal or the order.
    #[schema(value_type = String, format = "uuid")]
    pub subject: Uuid,
    /// Whose it is; none when the ledger does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// How they differ.
    pub difference: Difference,
    /// What the ledger says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ours: Option<Figures>,
    /// What the file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub theirs: Option<Figures>,
    /// On which line of the file, from 1, the header counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// When the provider said what stands there; events from before this was kept do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
}

/// How a file and the ledger differ about one payment. The first that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The file has it more than once, or has what a file of other days has had already.
    Repeated,
    /// The file says that it was paid, and the ledger does not know it, or not with this provider.
    MissingInLedger,
    /// The ledger says that it was paid on these days, and the file does not know it.
    MissingInFile,
    /// Another currency.
    Currency,
    /// Another amount.
    Amount,
    /// Only one of them says that it was paid.
    Status,
    /// Both say that it was paid, under different names.
    Reference,
}

impl Difference {
    /// As in columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Repeated => "repeated",
            Self::MissingInLedger => "missing_in_ledger",
            Self::MissingInFile => "missing_in_file",
            Self::Currency => "currency",
            Self::Amount => "amount",
            Self::Status => "status",
            Self::Reference => "reference",
        }
    }
}

/// The one status that says that money has moved.
pub const PAID: &str = "paid";

/// What one side says of a payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// In the currency's smallest unit, or in points when there is none.
    pub amount: i64,
    /// ISO 4217, in small letters; none of points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<Label>,
    /// What became of it, in that side's word.
    pub status: Label,
    /// What the provider calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// What came of looking into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The ledger was wrong, and was corrected by a command of its own.
    CorrectedHere,
    /// The provider was wrong, and has corrected it, or will.
    CorrectedThere,
    /// It stays as it is.
    Accepted,
}

impl Outcome {
    /// As in columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CorrectedHere => "corrected_here",
            Self::CorrectedThere => "corrected_there",
            Self::Accepted => "accepted",
        }
    }
}

/// What happened to an exception. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// Something does not agree.
    Found(Found),
    /// A later file agrees.
    Explained {
        /// Which run found that.
        run: ReconciliationId,
    },
    /// A person has found out why.
    Resolved {
        /// Who.
        operator: UserId,
        /// What came of it.
        outcome: Outcome,
        /// Why.
        reason: Note,
        /// The same, when it is about somebody: for whoever has the key of the person whom it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Sealed>,
    },
}

/// Why an exception said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No such exception.
    #[error("there is no such exception")]
    NotFound,
    /// It is resolved or explained.
    #[error("the exception is {state}: it is resolved while it is open, once")]
    NotOpen {
        /// What it is.
        state: State,
    },
    /// Four eyes: nobody resolves what is about themselves.
    #[error("nobody resolves what is about their own payments")]
    OwnException,
}

/// What an exception is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for somebody.
    Open,
    /// A later file agrees.
    Explained,
    /// A person has found out why.
    Resolved,
}

impl State {
    /// As in columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Explained => "explained",
            Self::Resolved => "resolved",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An exception, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconciliationException {
    found: Option<(Found, State)>,
    /// By whom it was resolved, how and why.
    resolved: Option<(UserId, Outcome, Words)>,
    /// Everything that was found since it was open.
    said: Said,
}

/// What files have said of a payment that is open, all findings together: the last one alone may be of an older file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    /// The latest time at which the provider said any of it.
    last_at: Option<DateTime<Utc>>,
    /// What it called what it has paid.
    paid_as: BTreeSet<Reference>,
    /// Something of which no line can tell that it is over.
    is_for_a_person: bool,
}

impl Said {
    fn add(&mut self, found: &Found) {
        let Some(theirs) = &found.theirs else { return };
        self.last_at = self.last_at.max(found.at);
        if theirs.status.as_str() == PAID {
            self.paid_as.extend(theirs.reference.clone());
        }
        self.is_for_a_person |= found.difference == Difference::Repeated || found.at.is_none();
    }

    fn is_explained_by(&self, by: &Agreement) -> bool {
        let is_older = self.last_at.is_some_and(|last| by.at < last);
        let is_other = self.paid_as.iter().any(|reference| Some(reference) != by.reference.as_ref());
        !is_older && !is_other && !self.is_for_a_person
    }
}

impl Found {
    /// Whose shard has the exception.
    pub fn home(&self, exception: ExceptionId) -> UserId {
        self.user.unwrap_or(UserId(exception.0))
    }

    /// Whether another run has found the same.
    fn is_as(&self, other: &Self) -> bool {
        (self.difference, &self.ours, &self.theirs) == (other.difference, &other.ours, &other.theirs)
    }

    /// Whether the provider said it later than another time: what is between the two does not explain it.
    fn is_later_than(&self, said: &Said) -> bool {
        self.at.is_some() && self.at > said.last_at
    }
}

impl ReconciliationException {
    fn is_open(&self) -> bool {
        self.found.as_ref().is_some_and(|(_, state)| *state == State::Open)
    }

    /// Whose shard has it; none before it is found.
    pub(crate) fn home(&self, exception: ExceptionId) -> Option<UserId> {
        self.found.as_ref().map(|(found, _)| found.home(exception))
    }

    /// What a command records: nothing, when all is as asked already.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(&self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let Some((known, state)) = &self.found else {
            return match command {
                Command::Find(found) => Ok(vec![Event::Found(found.clone())]),
                // Nothing was to be explained.
                Command::Explain { .. } => Ok(Vec::new()),
                Command::Resolve { .. } => Err(Refusal::NotFound),
            };
        };
        match (command, state) {
            (Command::Find(found), State::Open) if found.is_as(known) && !found.is_later_than(&self.said) => {
                Ok(Vec::new())
            }
            (Command::Find(found), State::Resolved) if found.is_as(known) => Ok(Vec::new()),
            (Command::Find(found), State::Open | State::Explained | State::Resolved) => {
                Ok(vec![Event::Found(found.clone())])
            }
            (Command::Explain { run, by }, State::Open) if self.said.is_explained_by(by) => {
                Ok(vec![Event::Explained { run: *run }])
            }
            (Command::Explain { .. }, State::Open | State::Explained | State::Resolved) => Ok(Vec::new()),
            (Command::Resolve { operator, .. }, _) if known.user == Some(*operator) => Err(Refusal::OwnException),
            (Command::Resolve { operator, outcome, reason }, State::Open) => {
                let (reason, words) = reason.clone().into_members();
                Ok(vec![Event::Resolved { operator: *operator, outcome: *outcome, reason, words }])
            }
            (Command::Resolve { operator, outcome, reason }, State::Explained | State::Resolved) => {
                let same =
                    self.resolved.as_ref().is_some_and(|(by, how, why)| (by, how, why) == (operator, outcome, reason));
                if same && *state == State::Resolved { Ok(Vec::new()) } else { Err(Refusal::NotOpen { state: *state }) }
            }
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        if let Event::Found(found) = event {
            if !self.is_open() {
                self.said = Said::default();
            }
            self.said.add(found);
            (self.found, self.resolved) = (Some((found.clone(), State::Open)), None);
            return;
        }
        let Some((_, state)) = &mut self.found else { return };
        match event {
            Event::Found(_) => {}
            Event::Explained { run: _ } => *state = State::Explained,
            Event::Resolved { operator, outcome, reason, words } => {
                *state = State::Resolved;
                self.resolved = Some((*operator, *outcome, Words::of_members(reason.clone(), words.clone())));
            }
        }
    }

    /// Memory beside itself.
    pub fn heap_bytes(&self) -> usize {
        let said = self.said.paid_as.len() * 128;
        self.found.as_ref().map_or(0, |_| 512)
            + said
            + self.resolved.as_ref().map_or(0, |(.., words)| words.heap_bytes())
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Found(_) => "found",
            Self::Explained { .. } => "explained",
            Self::Resolved { .. } => "resolved",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for ReconciliationException {
    const TYPE: &'static str = "reconciliation_exception";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = ();

    async fn handle(&mut self, command: Command, (): &(), sink: &EventSink<Self>) -> Result<(), Refusal> {
        for event in self.decide(&command)? {
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
