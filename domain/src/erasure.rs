//! A person is forgotten: what is sealed under their key opens no more, for anybody, for ever.
//!
//! ```text
//! (nothing) ──erase──▶ erased
//! ```
//!
//! The event says that it was asked for, by whom and under which reference, and nothing about the person. The database
//! destroys the key in the transaction that records it. What cannot do without the key has to be over first: a
//! withdrawal, which needs to know where to pay, and video jobs, whose prompts workers are given.

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Label, WithdrawalAllowance, WithdrawalId, video_job::VideoSlots};

/// Who wants a person to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ErasureAskedBy)]
#[serde(rename_all = "snake_case")]
pub enum AskedBy {
    /// The person.
    Person,
    /// A court or an authority.
    Authority,
    /// We ourselves: nothing is to be kept for longer.
    Platform,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Command {
    /// Who wants it.
    pub asked_by: AskedBy,
    /// Where that is on file, such as a ticket's number: nothing that says who it is about.
    pub reference: Label,
}

/// What happened. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The person's key was destroyed.
    Erased {
        /// Who wanted it.
        asked_by: AskedBy,
        /// Where that is on file.
        reference: Label,
    },
}

/// Why a person cannot be forgotten now, or why something cannot be done for one who is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Whoever pays has to know where to.
    #[error(
        "withdrawal {0} is open: it has to be paid, cancelled, rejected or resolved first, since nobody could pay it afterwards"
    )]
    WithdrawalOpen(WithdrawalId),
    /// Whoever makes them has their prompts.
    #[error("{jobs} video jobs are in flight: cancel them, or wait until they are over")]
    JobsInFlight {
        /// How many.
        jobs: usize,
    },
    /// Nothing can be kept for this person any more.
    #[error("what belonged to this person was erased")]
    Erased,
}

/// Whether a person is forgotten, folded from the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    erased: bool,
}

impl Erasure {
    /// Whether the person is forgotten.
    pub const fn is_erased(&self) -> bool {
        self.erased
    }

    /// That something can be kept for the person.
    ///
    /// # Errors
    /// [`Refusal::Erased`].
    pub const fn allows_more(&self) -> Result<(), Refusal> {
        if self.erased { Err(Refusal::Erased) } else { Ok(()) }
    }

    /// What a command records: nothing, when the person is forgotten already.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(
        &self,
        command: &Command,
        allowance: &WithdrawalAllowance,
        slots: &VideoSlots,
    ) -> Result<Vec<Event>, Refusal> {
        if self.erased {
            return Ok(Vec::new());
        }
        if let Some(withdrawal) = allowance.open() {
            return Err(Refusal::WithdrawalOpen(withdrawal));
        }
        match slots.taken().len() {
            0 => Ok(vec![Event::Erased { asked_by: command.asked_by, reference: command.reference.clone() }]),
            jobs => Err(Refusal::JobsInFlight { jobs }),
        }
    }

    /// Fold one event in.
    pub const fn apply(&mut self, event: &Event) {
        match event {
            Event::Erased { asked_by: _, reference: _ } => self.erased = true,
        }
    }

    /// Memory beside itself.
    pub const fn heap_bytes(&self) -> usize {
        0
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`. The database knows it by this name, and the aggregate by its own: it destroys the key of
    /// whoever this event is about.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Erased { .. } => "erased",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for Erasure {
    const TYPE: &'static str = "erasure";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = ();

    async fn handle(&mut self, command: Command, (): &(), sink: &EventSink<Self>) -> Result<(), Refusal> {
        for event in self.decide(&command, &WithdrawalAllowance::default(), &VideoSlots::default())? {
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
    use uuid::Uuid;

    use super::*;
    use crate::{JobId, Points, video_job::slots, withdrawal::allowance};

    fn command(reference: &str) -> Command {
        Command { asked_by: AskedBy::Person, reference: reference.parse().unwrap() }
    }

    fn erased(reference: &str) -> Event {
        Event::Erased { asked_by: AskedBy::Person, reference: reference.parse().unwrap() }
    }

    #[test]
    fn a_person_is_forgotten_once_and_not_while_the_key_is_needed() {
        let withdrawal = WithdrawalId(Uuid::from_u128(7));
        let used = allowance::Event::Used { withdrawal, day: Default::default(), points: Points::ZERO };
        let taken = slots::Event::Taken { job: JobId(Uuid::from_u128(8)) };
        let allowance = |events: &[allowance::Event]| {
            let mut allowance = WithdrawalAllowance::default();
            events.iter().for_each(|event| allowance.apply(event));
            allowance
        };
        let slots = |events: &[slots::Event]| {
            let mut slots = VideoSlots::default();
            events.iter().for_each(|event| slots.apply(event));
            slots
        };
        let freed = slots::Event::Freed { job: JobId(Uuid::from_u128(8)) };
        let closed = allowance::Event::Closed { withdrawal };
        let table = [
            (vec![], vec![], Ok(vec![erased("t-1")])),
            (vec![used.clone()], vec![], Err(Refusal::WithdrawalOpen(withdrawal))),
            (vec![], vec![taken.clone()], Err(Refusal::JobsInFlight { jobs: 1 })),
            (vec![used, closed], vec![taken, freed], Ok(vec![erased("t-1")])),
        ];
        for (of_allowance, of_slots, then) in table {
            let decided = Erasure::default().decide(&command("t-1"), &allowance(&of_allowance), &slots(&of_slots));
            assert_eq!(decided, then, "{of_allowance:?} {of_slots:?}");
        }
        let mut forgotten = Erasure::default();
        assert_eq!(forgotten.allows_more(), Ok(()));
        forgotten.apply(&erased("t-1"));
        assert_eq!(forgotten.decide(&command("t-2"), &allowance(&[]), &slots(&[])), Ok(vec![]));
        assert_eq!(forgotten.allows_more(), Err(Refusal::Erased));
    }

    #[test]
    fn stored_events_keep_their_shape() {
        let stored = r#"{"erased":{"asked_by":"person","reference":"ticket-4711"}}"#;
        assert_eq!(serde_json::to_string(&erased("ticket-4711")).unwrap(), stored);
        assert_eq!(serde_json::from_str::<Event>(stored).unwrap(), erased("ticket-4711"));
        assert_eq!((Erasure::TYPE, erased("x").name()), ("erasure", "erased"));
    }
}
