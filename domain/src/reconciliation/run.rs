//! One file of a provider, compared once.
//!
//! ```text
//! start ──▶ started ──finish──▶ finished
//! ```
//!
//! Its id is made of the file and of what it is compared with, so the same file is the same run, whoever brings it and
//! however often. Interrupted, it is started again, which records nothing, and goes on.

use chrono::NaiveDate;
use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Kind;
use crate::Label;

/// What is asked of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Command {
    /// A file is there.
    Start(File),
    /// All of it was compared.
    Finish(Counts),
}

/// A file, and what it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What is compared.
    pub kind: Kind,
    /// Whose file it is.
    pub provider: Label,
    /// The first UTC day that it covers.
    pub from: NaiveDate,
    /// The day after the last.
    pub to: NaiveDate,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: Label,
    /// How many lines it has, the header not counted.
    pub lines: u64,
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Lines that agree with the ledger.
    pub matched: u64,
    /// Lines of which the ledger knows nothing.
    pub missing_in_ledger: u64,
    /// What the ledger has of these days and the file has not.
    pub missing_in_file: u64,
    /// What both have, differently.
    pub different: u64,
    /// What the file has more than once.
    pub repeated: u64,
    /// Exceptions of earlier files that this one explains.
    pub explained: u64,
}

/// What happened to a run. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A file is compared.
    Started(File),
    /// It was.
    Finished(Counts),
}

/// Why a run said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No such run.
    #[error("there is no such reconciliation")]
    NotStarted,
    /// The id is another file's.
    #[error("this reconciliation is of another file")]
    Mismatch,
}

/// A run, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciliation {
    file: Option<File>,
    finished: Option<Counts>,
}

impl Reconciliation {
    /// What came of it, once it is over.
    pub const fn finished(&self) -> Option<Counts> {
        self.finished
    }

    /// What a command records: nothing, when all is as asked already. What came of a run is said once; said again, the
    /// first stands.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(&self, command: &Command) -> Result<Vec<Event>, Refusal> {
        match (command, &self.file) {
            (Command::Start(file), None) => Ok(vec![Event::Started(file.clone())]),
            (Command::Start(file), Some(of)) if file == of => Ok(Vec::new()),
            (Command::Start(_), Some(_)) => Err(Refusal::Mismatch),
            (Command::Finish(_), None) => Err(Refusal::NotStarted),
            (Command::Finish(_), Some(_)) if self.finished.is_some() => Ok(Vec::new()),
            (Command::Finish(counts), Some(_)) => Ok(vec![Event::Finished(*counts)]),
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Started(file) => self.file = Some(file.clone()),
            Event::Finished(counts) => self.finished = Some(*counts),
        }
    }

    /// Memory beside itself.
    pub const fn heap_bytes(&self) -> usize {
        128
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Finished(_) => "finished",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for Reconciliation {
    const TYPE: &'static str = "reconciliation";
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
mod tests {
    use cqrs_es::test::TestFramework;

    use super::*;

    fn file(lines: u64) -> File {
        let day = |day| NaiveDate::from_ymd_opt(2026, 1, day).unwrap();
        let (provider, sha256) = ("acme".parse().unwrap(), "ab12".parse().unwrap());
        File { kind: Kind::Payouts, provider, from: day(1), to: day(2), sha256, lines }
    }

    #[test]
    fn a_file_is_compared_once_and_what_came_of_it_is_said_once() {
        let counts = |matched| Counts { matched, ..Counts::default() };
        let started = || Event::Started(file(3));
        let table = [
            (vec![], Command::Start(file(3)), Ok(vec![started()])),
            (vec![started()], Command::Start(file(3)), Ok(vec![])),
            (vec![started()], Command::Start(file(4)), Err(Refusal::Mismatch)),
            (vec![], Command::Finish(counts(1)), Err(Refusal::NotStarted)),
            (vec![started()], Command::Finish(counts(1)), Ok(vec![Event::Finished(counts(1))])),
            (vec![started(), Event::Finished(counts(1))], Command::Finish(counts(2)), Ok(vec![])),
        ];
        for (given, when, then) in table {
            let result = TestFramework::<Reconciliation>::with(()).given(given).when(when).inspect_result();
            assert_eq!(result, then);
        }
    }

    #[test]
    fn stored_events_keep_their_shape() {
        let counts =
            Counts { matched: 1, missing_in_ledger: 2, missing_in_file: 3, different: 4, repeated: 5, explained: 6 };
        let table = [
            (
                Event::Started(file(3)),
                r#"{"started":{"kind":"payouts","provider":"acme","from":"2026-01-01","to":"2026-01-02","sha256":"ab12","lines":3}}"#,
            ),
            (
                Event::Finished(counts),
                r#"{"finished":{"matched":1,"missing_in_ledger":2,"missing_in_file":3,"different":4,"repeated":5,"explained":6}}"#,
            ),
        ];
        for (event, stored) in table {
            assert_eq!(serde_json::to_string(&event).unwrap(), stored);
            assert_eq!(serde_json::from_str::<Event>(stored).unwrap(), event);
        }
    }
}
