//! How much one user may still withdraw, and whether a withdrawal is open.
//!
//! ```text
//! use ──▶ open ──give back──▶ as before
//!           └─────close─────▶ used
//! ```
//!
//! One stream for each user, in the same append as the withdrawal and the account: so the limits hold however many
//! requests arrive at once, and through whichever node.

use std::collections::BTreeMap;

use chrono::{Datelike, NaiveDate};
use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};

use super::WithdrawalPolicy;
use crate::{Points, WithdrawalId};

/// What is asked of an allowance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A withdrawal is requested.
    Use {
        /// Which.
        withdrawal: WithdrawalId,
        /// The UTC day of its business time.
        day: NaiveDate,
        /// How many points.
        points: Points,
    },
    /// It did not come about.
    GiveBack {
        /// Which.
        withdrawal: WithdrawalId,
    },
    /// It was paid.
    Close {
        /// Which.
        withdrawal: WithdrawalId,
    },
}

/// What happened to an allowance. Kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A withdrawal took its part.
    Used {
        /// Which.
        withdrawal: WithdrawalId,
        /// Of which day.
        day: NaiveDate,
        /// How many points.
        points: Points,
    },
    /// It did not come about, and its part is there again.
    GivenBack {
        /// Which.
        withdrawal: WithdrawalId,
    },
    /// It was paid; another may be requested.
    Closed {
        /// Which.
        withdrawal: WithdrawalId,
    },
}

/// Why an allowance said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// One at a time.
    #[error("withdrawal {0} is still open; one at a time")]
    OneIsOpen(WithdrawalId),
    /// The day's limit.
    #[error("{left} of {max} points a day are left")]
    DailyLimit {
        /// The policy's limit.
        max: Points,
        /// What may still be withdrawn on that day.
        left: Points,
    },
    /// The month's limit.
    #[error("{left} of {max} points a month are left")]
    MonthlyLimit {
        /// The policy's limit.
        max: Points,
        /// What may still be withdrawn in that month.
        left: Points,
    },
    /// Another withdrawal is open, or none is.
    #[error("withdrawal {0} is not open")]
    NotOpen(WithdrawalId),
}

/// An allowance, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawalAllowance {
    open: Option<(WithdrawalId, NaiveDate, Points)>,
    /// What was used, by UTC day; only of the last days that any was.
    used: BTreeMap<NaiveDate, Points>,
}

/// Of how many days an allowance remembers what was used: two months of days on each of which there was a withdrawal.
const DAYS_MAX: usize = 62;

impl WithdrawalAllowance {
    /// The withdrawal that is open.
    pub fn open(&self) -> Option<WithdrawalId> {
        self.open.map(|(withdrawal, ..)| withdrawal)
    }

    /// What a command records.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn decide(&self, command: &Command, policy: &WithdrawalPolicy) -> Result<Vec<Event>, Refusal> {
        match *command {
            Command::Use { withdrawal, day, points } => {
                if let Some(open) = self.open() {
                    return Err(Refusal::OneIsOpen(open));
                }
                let (max, left) = (policy.points_per_day, self.left(policy.points_per_day, |used| used == day));
                if points > left {
                    return Err(Refusal::DailyLimit { max, left });
                }
                let in_month = |used: NaiveDate| (used.year(), used.month()) == (day.year(), day.month());
                let (max, left) = (policy.points_per_month, self.left(policy.points_per_month, in_month));
                if points > left {
                    return Err(Refusal::MonthlyLimit { max, left });
                }
                Ok(vec![Event::Used { withdrawal, day, points }])
            }
            Command::GiveBack { withdrawal } if self.open() == Some(withdrawal) => {
                Ok(vec![Event::GivenBack { withdrawal }])
            }
            Command::Close { withdrawal } if self.open() == Some(withdrawal) => Ok(vec![Event::Closed { withdrawal }]),
            Command::GiveBack { withdrawal } | Command::Close { withdrawal } => Err(Refusal::NotOpen(withdrawal)),
        }
    }

    fn left(&self, max: Points, counts: impl Fn(NaiveDate) -> bool) -> Points {
        let used = self.used.iter().filter(|(day, _)| counts(**day));
        used.fold(max, |left, (_, points)| left.checked_sub(*points).unwrap_or_default())
    }

    /// Fold one event in.
    pub fn apply(&mut self, event: &Event) {
        match *event {
            Event::Used { withdrawal, day, points } => {
                self.open = Some((withdrawal, day, points));
                let used = self.used.entry(day).or_default();
                *used = used.checked_add(points).unwrap_or(*used);
                while self.used.len() > DAYS_MAX {
                    self.used.pop_first();
                }
            }
            Event::GivenBack { withdrawal: _ } => {
                if let Some((_, day, points)) = self.open.take()
                    && let Some(used) = self.used.get_mut(&day)
                {
                    *used = used.checked_sub(points).unwrap_or_default();
                    if used.is_zero() {
                        self.used.remove(&day);
                    }
                }
            }
            Event::Closed { withdrawal: _ } => self.open = None,
        }
    }

    /// Memory beside itself.
    pub fn heap_bytes(&self) -> usize {
        24 * self.used.len()
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Used { .. } => "used",
            Self::GivenBack { .. } => "given_back",
            Self::Closed { .. } => "closed",
        }
    }
}

crate::stored::stored_by_name!(Event);

impl Aggregate for WithdrawalAllowance {
    const TYPE: &'static str = "withdrawal_allowance";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = WithdrawalPolicy;

    async fn handle(
        &mut self,
        command: Command,
        policy: &WithdrawalPolicy,
        sink: &EventSink<Self>,
    ) -> Result<(), Refusal> {
        for event in self.decide(&command, policy)? {
            sink.write(event, self).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        Self::apply(self, &event);
    }
}
