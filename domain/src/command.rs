//! What one request may change at once: the streams of one user, decided together and appended together.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    Event, OrderId, Points, PointsPolicy, StreamId, Streams, UserId, points_account, points_account::Action,
    recharge_order,
};

/// One thing asked for one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Whose shard decides.
    pub user: UserId,
    /// The business time, fixed when the command arrived: deciding it again gives the same.
    pub at: DateTime<Utc>,
    /// What is asked.
    pub intent: Intent,
}

/// What can be asked. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Intent {
    /// Anything that concerns the account alone.
    Points(Action),
    /// A payment arrived: the order is marked as credited, and the account gets the points, or neither.
    Recharge {
        /// The payment.
        order: OrderId,
        /// How many points were bought.
        points: Points,
    },
}

/// Why a command was refused. Kept as JSON for as long as the command's key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// By the account.
    #[error(transparent)]
    Points(#[from] points_account::Refusal),
    /// By the order.
    #[error(transparent)]
    RechargeOrder(#[from] recharge_order::Refusal),
}

impl Command {
    /// The streams that the decision reads, and of which it may record events.
    pub fn streams(&self) -> Vec<StreamId> {
        match self.intent {
            Intent::Points(_) => vec![StreamId::PointsAccount(self.user)],
            Intent::Recharge { order, .. } => {
                vec![StreamId::RechargeOrder(order), StreamId::PointsAccount(self.user)]
            }
        }
    }

    /// What the command records, stream by stream. All of it is appended together, or none.
    ///
    /// # Errors
    /// [`Refusal`], and then nothing is recorded on any stream.
    pub fn decide(&self, streams: &impl Streams, policy: &PointsPolicy) -> Result<Vec<(StreamId, Event)>, Refusal> {
        let account = |action| points_account::Command { at: self.at, action };
        match &self.intent {
            Intent::Points(action) => {
                let events = streams.points_account(self.user).decide(&account(action.clone()), policy)?;
                Ok(self.on_account(events).collect())
            }
            Intent::Recharge { order, points } => {
                let credit = recharge_order::Command::Credit { user: self.user, points: *points };
                let credited = streams.recharge_order(*order).decide(&credit)?;
                if credited.is_empty() {
                    return Ok(Vec::new());
                }
                let recharge = account(Action::Recharge { order: *order, points: *points });
                let recharged = streams.points_account(self.user).decide(&recharge, policy)?;
                let on_order = |event| (StreamId::RechargeOrder(*order), Event::RechargeOrder(event));
                Ok(credited.into_iter().map(on_order).chain(self.on_account(recharged)).collect())
            }
        }
    }

    fn on_account(&self, events: Vec<points_account::Event>) -> impl Iterator<Item = (StreamId, Event)> {
        let stream = StreamId::PointsAccount(self.user);
        events.into_iter().map(move |event| (stream, Event::PointsAccount(event)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use uuid::Uuid;

    use super::*;
    use crate::{State, points_account::PointsAccount, recharge_order::RechargeOrder};

    /// Panics on a stream that the command did not name: so every decision here also proves its `streams()`.
    struct Named(HashMap<StreamId, State>);

    impl Streams for Named {
        fn points_account(&self, user: UserId) -> &PointsAccount {
            match &self.0[&StreamId::PointsAccount(user)] {
                State::PointsAccount(account) => account,
                State::RechargeOrder(_) => unreachable!("stored under its own name"),
            }
        }

        fn recharge_order(&self, order: OrderId) -> &RechargeOrder {
            match &self.0[&StreamId::RechargeOrder(order)] {
                State::RechargeOrder(order) => order,
                State::PointsAccount(_) => unreachable!("stored under its own name"),
            }
        }
    }

    fn decide(command: &Command, given: &[(StreamId, Event)]) -> Result<Vec<(StreamId, Event)>, Refusal> {
        let mut streams: HashMap<_, _> = command.streams().into_iter().map(|id| (id, id.empty())).collect();
        for (id, event) in given {
            streams.entry(*id).and_modify(|state| state.apply(event));
        }
        command.decide(&Named(streams), &PointsPolicy::default())
    }

    #[test]
    fn a_recharge_is_on_the_order_and_on_the_account_or_on_neither() {
        let (user, order) = (UserId(Uuid::from_u128(1)), OrderId(Uuid::from_u128(2)));
        let recharge = |points: i64| Command {
            user,
            at: DateTime::UNIX_EPOCH,
            intent: Intent::Recharge { order, points: points.try_into().unwrap() },
        };
        let first = decide(&recharge(50), &[]).unwrap();
        let names: Vec<_> = first.iter().map(|(id, event)| (id.aggregate_type(), event.event_type())).collect();
        assert_eq!(names, [("recharge_order", "credited"), ("points_account", "recharged")]);

        assert_eq!(decide(&recharge(50), &first), Ok(vec![]), "the same order again records nothing");
        assert_eq!(decide(&recharge(51), &first), Err(Refusal::RechargeOrder(recharge_order::Refusal::OrderMismatch)));
        let too_much =
            Err(Refusal::Points(points_account::Refusal::AmountOutOfRange { max: PointsPolicy::default().amount_max }));
        assert_eq!(decide(&recharge(2_000_000_000), &[]), too_much, "the account's refusal leaves the order alone");
    }
    /// Refusals are kept beside their keys, so a node must read what another version has written.
    #[test]
    fn refusals_keep_their_json() {
        let insufficient = points_account::Refusal::InsufficientPoints {
            asked: 50.try_into().unwrap(),
            available: 7.try_into().unwrap(),
        };
        let refusals = [
            (insufficient.into(), r#"{"points":{"insufficient_points":{"asked":50,"available":7}}}"#),
            (points_account::Refusal::AccountFull.into(), r#"{"points":"account_full"}"#),
            (recharge_order::Refusal::OrderMismatch.into(), r#"{"recharge_order":"order_mismatch"}"#),
        ];
        for (refusal, json) in refusals {
            let refusal: Refusal = refusal;
            assert_eq!(serde_json::to_string(&refusal).unwrap(), json);
            assert_eq!(serde_json::from_str::<Refusal>(json).unwrap(), refusal);
        }
    }
}
