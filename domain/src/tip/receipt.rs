//! What the receiver's shard said to a tip: credited or declined, once, whoever asks how often.
//!
//! ```text
//! (nothing) ──receive──▶ credited, or declined
//! ```
//!
//! The receiver's account cannot remember every tip for ever; a stream for each can, beyond the time for which command
//! ids are kept. A no is remembered as well: the sender's points go back on it, so it must never become a yes.

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};

use super::Terms;
use crate::Note;

/// What is asked of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The tip is here, and this is what the receiver's account says.
    Receive {
        /// What it is about.
        terms: Terms,
        /// Why the account cannot be credited, if it cannot.
        declined: Option<Note>,
    },
}

/// What happened to a receipt. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The receiver has the points.
    Credited(Terms),
    /// The receiver cannot have them.
    Declined {
        /// What it was about.
        terms: Terms,
        /// Why.
        reason: Note,
    },
}

/// Why a receipt said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The id is another tip's.
    #[error("this tip was received before, with other contents")]
    Mismatch,
}

/// A receipt, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TipReceipt {
    received: Option<(Terms, Answer)>,
}

/// What the shard said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The receiver has the points.
    Credited,
    /// The receiver cannot have them.
    Declined,
}

impl TipReceipt {
    /// Whether the shard has said yes or no already.
    pub const fn is_given(&self) -> bool {
        self.received.is_some()
    }

    /// What the shard has said, and to what.
    pub fn answer(&self) -> Option<(&Terms, Answer)> {
        self.received.as_ref().map(|(terms, answer)| (terms, *answer))
    }

    /// What a command records: nothing, when the answer was given before.
    ///
    /// # Errors
    /// [`Refusal::Mismatch`].
    pub fn decide(&self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let Command::Receive { terms, declined } = command;
        match &self.received {
            Some((received, _)) if received == terms => Ok(Vec::new()),
            Some(_) => Err(Refusal::Mismatch),
            None => Ok(vec![match declined {
                None => Event::Credited(terms.clone()),
                Some(reason) => Event::Declined { terms: terms.clone(), reason: reason.clone() },
            }]),
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        self.received = Some(match event {
            Event::Credited(terms) => (terms.clone(), Answer::Credited),
            Event::Declined { terms, reason: _ } => (terms.clone(), Answer::Declined),
        });
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
            Self::Credited(_) => "credited",
            Self::Declined { .. } => "declined",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for TipReceipt {
    const TYPE: &'static str = "tip_receipt";
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
