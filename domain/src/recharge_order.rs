//! One payment: credited to one user, once.
//!
//! ```text
//! (nothing) ──credit──▶ credited
//! ```
//!
//! The account itself cannot remember every payment for ever; a stream of its own for each can. It is written in the
//! same append as the account's credit, and its uniqueness is the database's.

use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};

use crate::{Points, UserId};

/// What is asked of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The payment arrived.
    Credit {
        /// Whose account.
        user: UserId,
        /// How many points were bought.
        points: Points,
    },
}

/// What happened to an order. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The points went to a user's account.
    Credited {
        /// Whose.
        user: UserId,
        /// How many.
        points: Points,
    },
}

/// Why an order said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The order was credited before, to another user or with another amount.
    #[error("this order was credited before, to another user or with another amount")]
    OrderMismatch,
}

/// An order, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RechargeOrder {
    credited: Option<(UserId, Points)>,
}

impl RechargeOrder {
    /// What a command records. Crediting the same order again records nothing and succeeds.
    ///
    /// # Errors
    /// [`Refusal::OrderMismatch`].
    pub fn decide(&self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let Command::Credit { user, points } = *command;
        match self.credited {
            None => Ok(vec![Event::Credited { user, points }]),
            Some(before) if before == (user, points) => Ok(Vec::new()),
            Some(_) => Err(Refusal::OrderMismatch),
        }
    }

    /// Memory beside itself.
    pub const fn heap_bytes(&self) -> usize {
        0
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        let Event::Credited { user, points } = *event;
        self.credited = Some((user, points));
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Credited { .. } => "credited",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for RechargeOrder {
    const TYPE: &'static str = "recharge_order";
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
    use uuid::Uuid;

    use super::*;

    fn user(user: u128) -> UserId {
        UserId(Uuid::from_u128(user))
    }

    fn points(points: i64) -> Points {
        points.try_into().unwrap()
    }

    #[test]
    fn credits_once() {
        let credited = || Event::Credited { user: user(1), points: points(50) };
        let table = [
            (vec![], user(1), 50, Ok(vec![credited()])),
            (vec![credited()], user(1), 50, Ok(vec![])),
            (vec![credited()], user(1), 51, Err(Refusal::OrderMismatch)),
            (vec![credited()], user(2), 50, Err(Refusal::OrderMismatch)),
        ];
        for (given, who, amount, then) in table {
            let when = Command::Credit { user: who, points: points(amount) };
            let result = TestFramework::<RechargeOrder>::with(()).given(given).when(when).inspect_result();
            assert_eq!(result, then);
        }
    }

    #[test]
    fn stored_events_keep_their_shape() {
        let event = Event::Credited { user: user(1), points: points(50) };
        let stored = r#"{"credited":{"user":"00000000-0000-0000-0000-000000000001","points":50}}"#;
        assert_eq!(serde_json::to_string(&event).unwrap(), stored);
        assert_eq!(serde_json::from_str::<Event>(stored).unwrap(), event);
    }
}
