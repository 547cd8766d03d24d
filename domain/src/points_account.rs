//! One user's points: what is available, what is held, and what may still be refunded.
//!
//! ```text
//!  check in, earn ─┐                        ┌─ spend ──▶ spent ── refund ─┐
//!  recharge ───────┼──▶ available ──────────┤                             ├──▶ available
//!  adjust ─────────┘        │               └─ hold ───▶ held ── release ─┘
//!                           ▼                             └──── capture ──▶ spent for good
//!                        expired
//! ```
//!
//! Every command first expires what is due at its time: holds past their end are released, promo points past theirs
//! are expired. What is due is recorded with the command that noticed it, or not at all if that one is refused.
//!
//! Deliberately absent: idempotency keys (the event store has them), prices, and who may do what (the HTTP edge).

mod policy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use cqrs_es::{Aggregate, DomainEvent, event_sink::EventSink};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use policy::PointsPolicy;

use crate::{Bucket, HoldId, Label, Note, OrderId, Points, Purse, SpendId, points::POINTS_MAX};

/// What is asked of an account, and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The business time. It decides what is due, and the day of a check-in.
    pub at: DateTime<Utc>,
    /// What is asked.
    pub action: Action,
}

/// What an account can be asked to do. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Once a UTC day; every so many days in a row earn a bonus.
    CheckIn,
    /// Points from the platform: promo for tasks, income for a creator's earnings.
    Earn {
        /// Promo or income; paid points only come from a recharge.
        bucket: Bucket,
        /// How many; not zero.
        points: Points,
        /// For what.
        reason: Label,
    },
    /// Points bought with a payment. That an order is credited once is the order's own stream to see to.
    Recharge {
        /// The payment.
        order: OrderId,
        /// How many; not zero.
        points: Points,
    },
    /// Points for a product, at once; may be refunded for a while.
    Spend {
        /// Chosen by the caller.
        spend: SpendId,
        /// How many; not zero.
        points: Points,
        /// For what.
        product: Label,
    },
    /// Points set aside until captured, released or over.
    Hold {
        /// Chosen by the caller.
        hold: HoldId,
        /// How many; not zero.
        points: Points,
        /// For how long, in seconds; the policy's default unless given.
        lifetime_s: Option<u32>,
        /// For what.
        reason: Label,
    },
    /// Spend a hold, or part of it; the rest stays held.
    Capture {
        /// Which.
        hold: HoldId,
        /// All that is left unless given.
        points: Option<Points>,
    },
    /// Give back all that is left of a hold.
    Release {
        /// Which.
        hold: HoldId,
    },
    /// Give back a spend, or part of it, into the buckets that it came from.
    Refund {
        /// Which.
        spend: SpendId,
        /// All that is left unless given.
        points: Option<Points>,
    },
    /// Only expire what is due.
    Expire,
    /// Correct by hand.
    Adjust {
        /// Which points.
        bucket: Bucket,
        /// Up or down.
        direction: Direction,
        /// How many; not zero.
        points: Points,
        /// Why, for whoever reads the books.
        reason: Note,
    },
}

/// Whether an adjustment gives or takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Points are given.
    Credit,
    /// Points are taken.
    Debit,
}

/// What happened to an account. Kept for ever: a changed shape is a new version with an upcaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The day's points were given.
    CheckedIn {
        /// The UTC day.
        day: NaiveDate,
        /// Days in a row, this one included.
        days_in_a_row: u32,
        /// Base and bonus together.
        points: Points,
        /// When they expire.
        expires_at: DateTime<Utc>,
    },
    /// Points came from the platform.
    Earned {
        /// With the lot's end, when promo.
        credited: Purse,
        /// For what.
        reason: Label,
    },
    /// Points were bought.
    Recharged {
        /// The payment.
        order: OrderId,
        /// How many.
        points: Points,
    },
    /// Points went for a product.
    Spent {
        /// Which spend.
        spend: SpendId,
        /// From where.
        taken: Purse,
        /// For what.
        product: Label,
        /// A refund is possible before this moment.
        refundable_until: DateTime<Utc>,
    },
    /// Points were set aside.
    Held {
        /// Which hold.
        hold: HoldId,
        /// From where.
        taken: Purse,
        /// For what.
        reason: Label,
        /// Released at this moment unless captured before.
        expires_at: DateTime<Utc>,
    },
    /// Held points were spent.
    Captured {
        /// Which hold.
        hold: HoldId,
        /// The part.
        taken: Purse,
    },
    /// What was left of a hold went back.
    Released {
        /// Which hold.
        hold: HoldId,
        /// All that was left.
        returned: Purse,
        /// Why.
        cause: ReleaseCause,
    },
    /// A spend, or part of it, went back.
    Refunded {
        /// Which spend.
        spend: SpendId,
        /// Into where.
        returned: Purse,
    },
    /// Promo points reached their end.
    Expired {
        /// The lots.
        lots: Purse,
    },
    /// Corrected by hand.
    Adjusted {
        /// Up or down.
        direction: Direction,
        /// Which points.
        moved: Purse,
        /// Why.
        reason: Note,
    },
}

/// Why a hold ended without being captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseCause {
    /// Somebody asked.
    Requested,
    /// Its time was over.
    Expired,
}

/// Why an account said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// One check-in a UTC day.
    #[error("already checked in on {day}")]
    AlreadyCheckedIn {
        /// The day asked for.
        day: NaiveDate,
    },
    /// Days are checked in from the past to the future.
    #[error("{day} is before the last check-in, on {last}")]
    CheckInBeforeLast {
        /// The day asked for.
        day: NaiveDate,
        /// The last one.
        last: NaiveDate,
    },
    /// Not that many available, after what was due has expired.
    #[error("{asked} points asked for, {available} available")]
    InsufficientPoints {
        /// How many were asked for.
        asked: Points,
        /// How many there are.
        available: Points,
    },
    /// Zero, or more than one command may move.
    #[error("an amount is 1 to {max} points")]
    AmountOutOfRange {
        /// The policy's limit.
        max: Points,
    },
    /// The account would pass [`POINTS_MAX`].
    #[error("an account holds at most {POINTS_MAX} points")]
    AccountFull,
    /// Paid points only come from a recharge.
    #[error("points are earned as promo or income, never as paid")]
    EarnedAsPaid,
    /// The id is taken by a hold that is still open.
    #[error("hold {0} is open already")]
    HoldExists(HoldId),
    /// No such open hold: never opened, captured whole, released or expired.
    #[error("no open hold {0}")]
    HoldNotFound(HoldId),
    /// More was asked of a hold than is left.
    #[error("{asked} points asked of a hold of {left}")]
    HoldTooSmall {
        /// How many were asked for.
        asked: Points,
        /// How many are left.
        left: Points,
    },
    /// Open holds are bounded.
    #[error("{max} holds are open, which is the limit")]
    TooManyHolds {
        /// The policy's limit.
        max: u32,
    },
    /// A hold lasts at least a second, and no longer than the policy says.
    #[error("a hold lasts 1 to {max_s} seconds")]
    HoldLifetimeOutOfRange {
        /// The policy's limit.
        max_s: u32,
    },
    /// The id is taken by a spend that the account still remembers for refunds.
    #[error("spend {0} exists already")]
    SpendExists(SpendId),
    /// No such refundable spend: never made, refunded whole, or too long ago.
    #[error("no refundable spend {0}")]
    SpendNotFound(SpendId),
    /// More was asked back than was spent.
    #[error("{asked} points asked back of a spend of {left}")]
    SpendTooSmall {
        /// How many were asked for.
        asked: Points,
        /// How many are left to refund.
        left: Points,
    },
    /// The time is outside what the calendar can say.
    #[error("the time is out of range")]
    TimeOutOfRange,
}

/// An account, folded from its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointsAccount {
    available: Purse,
    holds: BTreeMap<HoldId, Hold>,
    spends: BTreeMap<SpendId, Spend>,
    /// Refundable spends, oldest first: the oldest is forgotten when there are too many.
    spends_by_age: VecDeque<(DateTime<Utc>, SpendId)>,
    last_check_in: Option<(NaiveDate, u32)>,
}

/// Points set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// What is left of it.
    pub left: Purse,
    /// When it is released by itself.
    pub expires_at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Spend {
    left: Purse,
    refundable_until: DateTime<Utc>,
}

/// How many spends an account remembers for refunds; older ones are forgotten first.
pub const REFUNDABLE_SPENDS_MAX: usize = 1_000;

impl PointsAccount {
    /// What may be spent or held, by bucket.
    pub fn available(&self) -> &Purse {
        &self.available
    }

    /// The open holds.
    pub fn holds(&self) -> &BTreeMap<HoldId, Hold> {
        &self.holds
    }

    /// What is held, by bucket.
    pub fn held(&self) -> Purse {
        self.holds.values().fold(Purse::default(), |mut held, hold| {
            held.put(&hold.left);
            held
        })
    }

    /// Roughly how much memory the account takes, in bytes, for caches that are bounded.
    pub fn weight(&self) -> usize {
        let lots = self.available.promo.len() + self.holds.values().map(|hold| hold.left.promo.len()).sum::<usize>();
        // Of a spend only a lot or two: counting them all would cost more than it is worth.
        size_of::<Self>() + 48 * lots + 160 * self.holds.len() + 300 * self.spends.len()
    }

    /// What a command records: nothing, when all is as asked already.
    ///
    /// # Errors
    /// [`Refusal`], and then nothing is recorded, not even what was due.
    pub fn decide(&self, command: &Command, policy: &PointsPolicy) -> Result<Vec<Event>, Refusal> {
        let due = self.due(command.at);
        if due.is_empty() {
            return self.decide_when_nothing_is_due(command, policy);
        }
        let mut current = self.clone();
        for event in &due {
            current.apply(event);
        }
        let decided = current.decide_when_nothing_is_due(command, policy)?;
        Ok(due.into_iter().chain(decided).collect())
    }

    /// Holds first, since what they give back may be due itself.
    fn due(&self, at: DateTime<Utc>) -> Vec<Event> {
        let mut events = Vec::new();
        let mut lots = self.available.due(at);
        for (hold, Hold { left, expires_at }) in &self.holds {
            if *expires_at <= at {
                lots.put(&left.due(at));
                let (hold, returned, cause) = (*hold, left.clone(), ReleaseCause::Expired);
                events.push(Event::Released { hold, returned, cause });
            }
        }
        if !lots.is_empty() {
            events.push(Event::Expired { lots });
        }
        events
    }

    fn decide_when_nothing_is_due(&self, command: &Command, policy: &PointsPolicy) -> Result<Vec<Event>, Refusal> {
        let at = command.at;
        let event = match &command.action {
            Action::CheckIn => {
                let day = at.date_naive();
                let days_in_a_row = match self.last_check_in {
                    Some((last, _)) if last == day => return Err(Refusal::AlreadyCheckedIn { day }),
                    Some((last, _)) if last > day => return Err(Refusal::CheckInBeforeLast { day, last }),
                    Some((last, days)) if last.succ_opt() == Some(day) => days.saturating_add(1),
                    Some(_) | None => 1,
                };
                let points = policy.check_in_points(days_in_a_row);
                self.has_room_for(points)?;
                Event::CheckedIn { day, days_in_a_row, points, expires_at: promo_end(at, policy)? }
            }

            Action::Earn { bucket, points, reason } => {
                let credited = match bucket {
                    Bucket::Promo => Purse::promo(*points, promo_end(at, policy)?),
                    Bucket::Income => Purse::income(*points),
                    Bucket::Paid => return Err(Refusal::EarnedAsPaid),
                };
                self.has_room_for(policy.amount(*points)?)?;
                Event::Earned { credited, reason: reason.clone() }
            }

            Action::Recharge { order, points } => {
                self.has_room_for(policy.amount(*points)?)?;
                Event::Recharged { order: *order, points: *points }
            }

            Action::Spend { spend, points, product } => {
                if self.spends.contains_key(spend) {
                    return Err(Refusal::SpendExists(*spend));
                }
                let taken = self.to_spend(policy.amount(*points)?)?;
                let refundable_until = after(at, policy.refund_window_s)?;
                Event::Spent { spend: *spend, taken, product: product.clone(), refundable_until }
            }

            Action::Hold { hold, points, lifetime_s, reason } => {
                if self.holds.contains_key(hold) {
                    return Err(Refusal::HoldExists(*hold));
                }
                let max = policy.open_holds_max;
                if u32::try_from(self.holds.len()).unwrap_or(u32::MAX) >= max {
                    return Err(Refusal::TooManyHolds { max });
                }
                let lifetime_s = lifetime_s.unwrap_or(policy.hold_lifetime_s);
                if lifetime_s == 0 || lifetime_s > policy.hold_lifetime_max_s {
                    return Err(Refusal::HoldLifetimeOutOfRange { max_s: policy.hold_lifetime_max_s });
                }
                let taken = self.to_spend(policy.amount(*points)?)?;
                Event::Held { hold: *hold, taken, reason: reason.clone(), expires_at: after(at, lifetime_s)? }
            }

            Action::Capture { hold, points } => {
                let left = &self.holds.get(hold).ok_or(Refusal::HoldNotFound(*hold))?.left;
                let asked = points.map_or(Ok(left.total()), |points| policy.amount(points))?;
                let too_small = Refusal::HoldTooSmall { asked, left: left.total() };
                Event::Captured { hold: *hold, taken: left.part_to_spend(asked).ok_or(too_small)? }
            }

            Action::Release { hold } => {
                let returned = self.holds.get(hold).ok_or(Refusal::HoldNotFound(*hold))?.left.clone();
                let late = returned.due(at);
                let released = Event::Released { hold: *hold, returned, cause: ReleaseCause::Requested };
                return Ok(with_late(released, late));
            }

            Action::Refund { spend, points } => {
                let Spend { left, refundable_until } = self.spends.get(spend).ok_or(Refusal::SpendNotFound(*spend))?;
                if *refundable_until <= at {
                    return Err(Refusal::SpendNotFound(*spend));
                }
                let asked = points.map_or(Ok(left.total()), |points| policy.amount(points))?;
                let too_small = Refusal::SpendTooSmall { asked, left: left.total() };
                let returned = left.part_to_return(asked).ok_or(too_small)?;
                self.has_room_for(asked)?;
                let late = returned.due(at);
                return Ok(with_late(Event::Refunded { spend: *spend, returned }, late));
            }

            Action::Expire => return Ok(Vec::new()),

            Action::Adjust { bucket, direction, points, reason } => {
                let points = policy.amount(*points)?;
                let moved = match direction {
                    Direction::Credit => {
                        self.has_room_for(points)?;
                        match bucket {
                            Bucket::Promo => Purse::promo(points, promo_end(at, policy)?),
                            Bucket::Paid => Purse::paid(points),
                            Bucket::Income => Purse::income(points),
                        }
                    }
                    Direction::Debit => {
                        let available = self.available.of(*bucket);
                        let too_few = Refusal::InsufficientPoints { asked: points, available };
                        self.available.part_of(*bucket, points).ok_or(too_few)?
                    }
                };
                Event::Adjusted { direction: *direction, moved, reason: reason.clone() }
            }
        };
        Ok(vec![event])
    }

    fn to_spend(&self, asked: Points) -> Result<Purse, Refusal> {
        let too_few = Refusal::InsufficientPoints { asked, available: self.available.total() };
        self.available.part_to_spend(asked).ok_or(too_few)
    }

    /// Refundable points are not counted: they are the platform's until a refund asks for room again.
    fn has_room_for(&self, points: Points) -> Result<(), Refusal> {
        let have = self.available.total().checked_add(self.held().total());
        have.and_then(|have| have.checked_add(points)).map(|_| ()).ok_or(Refusal::AccountFull)
    }

    /// Fold one event in. Total: a decided event always fits.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::CheckedIn { day, days_in_a_row, points, expires_at } => {
                self.last_check_in = Some((*day, *days_in_a_row));
                self.available.put(&Purse::promo(*points, *expires_at));
            }
            Event::Earned { credited, reason: _ } => self.available.put(credited),
            Event::Recharged { order: _, points } => self.available.put(&Purse::paid(*points)),
            Event::Spent { spend, taken, product: _, refundable_until } => {
                self.available.take(taken);
                self.remember_spend(*spend, taken.clone(), *refundable_until);
            }
            Event::Held { hold, taken, reason: _, expires_at } => {
                self.available.take(taken);
                self.holds.insert(*hold, Hold { left: taken.clone(), expires_at: *expires_at });
            }
            Event::Captured { hold, taken } => self.take_from_hold(*hold, taken),
            Event::Released { hold, returned, cause: _ } => {
                self.take_from_hold(*hold, returned);
                self.available.put(returned);
            }
            Event::Refunded { spend, returned } => {
                self.available.put(returned);
                if let Some(Spend { left, .. }) = self.spends.get_mut(spend) {
                    left.take(returned);
                    if left.is_empty() {
                        self.spends.remove(spend);
                        self.spends_by_age.retain(|(_, remembered)| remembered != spend);
                    }
                }
            }
            Event::Expired { lots } => self.available.take(lots),
            Event::Adjusted { direction: Direction::Credit, moved, reason: _ } => self.available.put(moved),
            Event::Adjusted { direction: Direction::Debit, moved, reason: _ } => self.available.take(moved),
        }
    }

    fn take_from_hold(&mut self, hold: HoldId, part: &Purse) {
        if let Some(Hold { left, .. }) = self.holds.get_mut(&hold) {
            left.take(part);
            if left.is_empty() {
                self.holds.remove(&hold);
            }
        }
    }

    /// Bounded: the oldest is forgotten when there are too many.
    fn remember_spend(&mut self, spend: SpendId, left: Purse, refundable_until: DateTime<Utc>) {
        if self.spends_by_age.len() >= REFUNDABLE_SPENDS_MAX
            && let Some((_, oldest)) = self.spends_by_age.pop_front()
        {
            self.spends.remove(&oldest);
        }
        self.spends_by_age.push_back((refundable_until, spend));
        self.spends.insert(spend, Spend { left, refundable_until });
    }
}

/// Promo points are good for the policy's number of whole UTC days after the day on which they were given, and expire
/// at the midnight that ends the last. Whole days keep an account at one lot a day, however much it earns.
fn promo_end(at: DateTime<Utc>, policy: &PointsPolicy) -> Result<DateTime<Utc>, Refusal> {
    at.date_naive()
        .checked_add_days(Days::new(u64::from(policy.promo_lifetime_days) + 1))
        .and_then(|day| day.and_hms_opt(0, 0, 0))
        .map(|midnight| midnight.and_utc())
        .ok_or(Refusal::TimeOutOfRange)
}

/// Lots that were over before they came back expire with the event that brought them.
fn with_late(event: Event, late: Purse) -> Vec<Event> {
    let expired = (!late.is_empty()).then_some(Event::Expired { lots: late });
    [event].into_iter().chain(expired).collect()
}

fn after(at: DateTime<Utc>, seconds: u32) -> Result<DateTime<Utc>, Refusal> {
    at.checked_add_signed(TimeDelta::seconds(i64::from(seconds))).ok_or(Refusal::TimeOutOfRange)
}

impl DomainEvent for Event {
    fn event_type(&self) -> String {
        self.name().to_owned()
    }

    fn event_version(&self) -> String {
        Self::VERSION.to_owned()
    }
}

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CheckedIn { .. } => "checked_in",
            Self::Earned { .. } => "earned",
            Self::Recharged { .. } => "recharged",
            Self::Spent { .. } => "spent",
            Self::Held { .. } => "held",
            Self::Captured { .. } => "captured",
            Self::Released { .. } => "released",
            Self::Refunded { .. } => "refunded",
            Self::Expired { .. } => "expired",
            Self::Adjusted { .. } => "adjusted",
        }
    }
}

impl Aggregate for PointsAccount {
    const TYPE: &'static str = "points_account";
    type Command = Command;
    type Event = Event;
    type Error = Refusal;
    type Services = PointsPolicy;

    async fn handle(&mut self, command: Command, policy: &PointsPolicy, sink: &EventSink<Self>) -> Result<(), Refusal> {
        for event in self.decide(&command, policy)? {
            sink.write(event, self).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        Self::apply(self, &event);
    }
}
