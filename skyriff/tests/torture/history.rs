//! What was sent, and what its client was told.

use chrono::{DateTime, Utc};
use skyriff_domain::{CommandId, LogPosition};

use crate::ask::Ask;

/// In what kind of request a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    Single,
    Bulk,
    Atomic,
    Stream,
    Flood,
}

/// One answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged, with these events.
    Ok(Vec<LogPosition>),
    /// Refused by a rule: the end of the problem's type.
    Refused(String),
    /// What nothing here should make the server say.
    Fault(String),
    /// A 503 that says that nothing was recorded by this attempt.
    NotDone,
    /// No answer, half of one, or one that says that the outcome is unknown.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok(Vec<LogPosition>),
    Refused(String),
    Fault(String),
    Unknown,
}

/// One command, and what became of it as far as its client knows.
#[derive(Debug)]
pub struct Entry {
    pub command_id: CommandId,
    pub ask: Ask,
    pub via: Via,
    /// Names the atomic batch that it was part of.
    pub together: Option<String>,
    /// Fewer available points than this, and it is rightly refused.
    pub needs: i64,
    pub outcome: Outcome,
    /// Whether there was an attempt that may have been recorded although nobody said so.
    pub maybe_recorded: bool,
    /// A second answer that contradicts the first.
    pub contradiction: Option<String>,
    pub attempts: u32,
    /// How often it was sent again after it was unknown, refused, acknowledged.
    pub again: [u32; 3],
    /// When the first attempt was sent, and the one that made the outcome known was answered.
    pub sent_at: DateTime<Utc>,
    pub answered_at: DateTime<Utc>,
}

impl Entry {
    pub fn new(command_id: CommandId, ask: Ask, via: Via, together: Option<String>, needs: i64) -> Self {
        let now = Utc::now();
        Self {
            command_id,
            ask,
            via,
            together,
            needs,
            outcome: Outcome::Unknown,
            maybe_recorded: false,
            contradiction: None,
            attempts: 0,
            again: [0; 3],
            sent_at: now,
            answered_at: now,
        }
    }

    pub fn is_unknown(&self) -> bool {
        self.outcome == Outcome::Unknown
    }

    pub fn is_refused(&self) -> bool {
        matches!(self.outcome, Outcome::Refused(_))
    }

    pub fn hear(&mut self, answer: Answer, sent_at: DateTime<Utc>) {
        if self.attempts == 0 {
            self.sent_at = sent_at;
        } else {
            let before = match self.outcome {
                Outcome::Unknown => 0,
                Outcome::Refused(_) => 1,
                Outcome::Ok(_) | Outcome::Fault(_) => 2,
            };
            self.again[before] += 1;
        }
        self.attempts += 1;
        let heard = match answer {
            Answer::Ok(positions) => Outcome::Ok(positions),
            Answer::Refused(kind) => Outcome::Refused(kind),
            Answer::Fault(what) => Outcome::Fault(what),
            Answer::NotDone => return,
            Answer::Lost => {
                self.maybe_recorded = true;
                return;
            }
        };
        match (&self.outcome, &heard) {
            (Outcome::Unknown, _) | (_, Outcome::Fault(_)) => {
                self.outcome = heard;
                self.answered_at = Utc::now();
            }
            (Outcome::Refused(_), Outcome::Refused(_)) => {}
            (first, second) if first == second => {}
            (first, second) => self.contradiction = Some(format!("first {first:?}, then {second:?}")),
        }
    }
}
