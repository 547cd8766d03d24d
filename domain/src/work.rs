//! A work: a finished video that its maker shows.
//!
//! ```text
//! publish ──▶ published ──unpublish──▶ unpublished
//!                 ▲────────publish─────────┘
//! ```
//!
//! It lives where its maker does. Works that were made elsewhere are imported: they name no job.

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JobId, Note, Sealed, UserId, Words};

/// Who may see a work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Everybody, and it is listed.
    Public,
    /// Whoever knows its id.
    Unlisted,
}

/// What is asked of a work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Command {
    /// Its maker shows it.
    Publish {
        /// Who made it.
        creator: UserId,
        /// Of which job it came; none when it was made elsewhere.
        job: Option<JobId>,
        /// What it is called.
        title: Words,
        /// Who may see it.
        visibility: Visibility,
    },
    /// Its maker no longer shows it.
    Unpublish {
        /// Who made it.
        creator: UserId,
    },
}

/// What happened to a work. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// It can be seen.
    Published {
        /// Who made it.
        creator: UserId,
        /// Of which job it came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<JobId>,
        /// What it is called.
        title: Note,
        /// The same, when its maker has said it: for whoever has the maker's key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Sealed>,
        /// Who may see it.
        visibility: Visibility,
    },
    /// It can no longer be seen.
    Unpublished {},
}

/// Why a work said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Made by somebody else, or of another job.
    #[error("this work is another's, or of another job")]
    Mismatch,
    /// No such work.
    #[error("there is no such work")]
    NotPublished,
    /// The job that it is said to come of has made nothing.
    #[error("the job has not succeeded, so there is nothing to publish")]
    NothingMade,
}

/// A work, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    known: Option<Known>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    creator: UserId,
    job: Option<JobId>,
    title: Words,
    visibility: Visibility,
    shown: bool,
}

impl Work {
    /// What a command records: nothing, when all is as asked already.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(&self, command: &Command) -> Result<Vec<Event>, Refusal> {
        match (command, &self.known) {
            (Command::Publish { creator, job, .. }, Some(known)) if (*creator, *job) != (known.creator, known.job) => {
                Err(Refusal::Mismatch)
            }
            (Command::Publish { creator, job, title, visibility }, known) => {
                let (creator, job, visibility) = (*creator, *job, *visibility);
                let asked = Known { creator, job, title: title.clone(), visibility, shown: true };
                if known.as_ref() == Some(&asked) {
                    return Ok(Vec::new());
                }
                let (title, words) = asked.title.into_members();
                Ok(vec![Event::Published { creator, job, title, words, visibility }])
            }
            (Command::Unpublish { creator }, Some(known)) if *creator == known.creator => {
                Ok(if known.shown { vec![Event::Unpublished {}] } else { Vec::new() })
            }
            (Command::Unpublish { .. }, Some(_) | None) => Err(Refusal::NotPublished),
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Published { creator, job, title, words, visibility } => {
                let (creator, job, visibility) = (*creator, *job, *visibility);
                let title = Words::of_members(title.clone(), words.clone());
                self.known = Some(Known { creator, job, title, visibility, shown: true });
            }
            Event::Unpublished {} => {
                if let Some(known) = &mut self.known {
                    known.shown = false;
                }
            }
        }
    }

    /// Memory beside itself.
    pub fn heap_bytes(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.title.heap_bytes())
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Published { .. } => "published",
            Self::Unpublished {} => "unpublished",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for Work {
    const TYPE: &'static str = "work";
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
