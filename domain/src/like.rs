//! One user's like of one work.
//!
//! ```text
//! not liked ──like──▶ liked
//!     ◀────unlike──────┘
//! ```
//!
//! A stream for each pair, in the shard of the user: so a work that everybody likes has no stream that everybody
//! writes. How many likes a work has is a read model's to say.
//!
//! Whoever made a work may like it, once, as anybody may.

use std::convert::Infallible;

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};

/// What is asked of a like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Command {
    /// The user likes the work.
    Like,
    /// No longer.
    Unlike,
}

/// What happened to a like. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// It was given.
    Liked {},
    /// It was taken back.
    Unliked {},
}

/// A like, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Like {
    stands: bool,
}

impl Like {
    /// What a command records: nothing, when all is as asked already. There is nothing to refuse.
    pub fn decide(&self, command: Command) -> Vec<Event> {
        match (self.stands, command) {
            (false, Command::Like) => vec![Event::Liked {}],
            (true, Command::Unlike) => vec![Event::Unliked {}],
            (true, Command::Like) | (false, Command::Unlike) => Vec::new(),
        }
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        self.stands = match event {
            Event::Liked {} => true,
            Event::Unliked {} => false,
        };
    }

    /// Whether it is given and not taken back.
    pub const fn stands(&self) -> bool {
        self.stands
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
            Self::Liked {} => "liked",
            Self::Unliked {} => "unliked",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for Like {
    const TYPE: &'static str = "like";
    type Command = Command;
    type Event = Event;
    type Error = Infallible;
    type Services = ();

    async fn handle(&mut self, command: Command, (): &(), sink: &EventSink<Self>) -> Result<(), Infallible> {
        for event in self.decide(command) {
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

    #[test]
    fn likes_once_until_it_is_taken_back() {
        let (liked, unliked) = (|| Event::Liked {}, || Event::Unliked {});
        let table = [
            (vec![], Command::Like, vec![liked()]),
            (vec![], Command::Unlike, vec![]),
            (vec![liked()], Command::Like, vec![]),
            (vec![liked()], Command::Unlike, vec![unliked()]),
            (vec![liked(), unliked()], Command::Like, vec![liked()]),
            (vec![liked(), unliked()], Command::Unlike, vec![]),
        ];
        for (given, when, then) in table {
            TestFramework::<Like>::with(()).given(given).when(when).then_expect_events(then);
        }
    }

    #[test]
    fn stored_events_keep_their_shape() {
        for (event, stored) in [(Event::Liked {}, r#"{"liked":{}}"#), (Event::Unliked {}, r#"{"unliked":{}}"#)] {
            assert_eq!(serde_json::to_string(&event).unwrap(), stored);
            assert_eq!(serde_json::from_str::<Event>(stored).unwrap(), event);
        }
    }
}
