//! How many jobs one user has in flight.
//!
//! One stream for each user, in the same append as the job and the account: so the limit holds however many orders
//! arrive at once, and through whichever node.

use std::collections::BTreeSet;

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};

use super::VideoPolicy;
use crate::JobId;

/// What is asked of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A job is submitted.
    Take {
        /// Which.
        job: JobId,
    },
    /// It is over.
    Free {
        /// Which.
        job: JobId,
    },
}

/// What happened to the slots. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A job is in flight.
    Taken {
        /// Which.
        job: JobId,
    },
    /// It is over.
    Freed {
        /// Which.
        job: JobId,
    },
}

/// Why there is no slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// All are taken.
    #[error("{max} jobs are in flight, which is the limit")]
    TooManyInFlight {
        /// The policy's limit.
        max: u32,
    },
}

/// The slots, folded from their events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoSlots {
    taken: BTreeSet<JobId>,
}

impl VideoSlots {
    /// The jobs in flight.
    pub const fn taken(&self) -> &BTreeSet<JobId> {
        &self.taken
    }

    /// What a command records: nothing, when all is as asked already.
    ///
    /// # Errors
    /// [`Refusal::TooManyInFlight`].
    pub fn decide(&self, command: Command, policy: &VideoPolicy) -> Result<Vec<Event>, Refusal> {
        match command {
            Command::Take { job } if self.taken.contains(&job) => Ok(Vec::new()),
            Command::Take { job } => {
                let max = policy.in_flight_max;
                if u32::try_from(self.taken.len()).unwrap_or(u32::MAX) >= max {
                    return Err(Refusal::TooManyInFlight { max });
                }
                Ok(vec![Event::Taken { job }])
            }
            Command::Free { job } if self.taken.contains(&job) => Ok(vec![Event::Freed { job }]),
            Command::Free { .. } => Ok(Vec::new()),
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Taken { job } => self.taken.insert(*job),
            Event::Freed { job } => self.taken.remove(job),
        };
    }

    /// Memory beside itself.
    pub fn heap_bytes(&self) -> usize {
        32 * self.taken.len()
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "taken",
            Self::Freed { .. } => "freed",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for VideoSlots {
    const TYPE: &'static str = "video_slots";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = VideoPolicy;

    async fn handle(&mut self, command: Command, policy: &VideoPolicy, sink: &EventSink<Self>) -> Result<(), Refusal> {
        for event in self.decide(command, policy)? {
            sink.write(event, self).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        Self::apply(self, &event);
    }
}
