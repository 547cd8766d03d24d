//! One user's points: what is available, what is held, and what may still be refunded.
//!
//! ```text
//!  check in, earn ─┐                        ┌─ spend ──▶ spent ── refund ─┐
//!  recharge ───────┼──▶ available ──────────┤                             ├──▶ available
//!  adjust ─────────┘        │               └─ hold ───▶ held ── release ─┘
//!  receive a tip ──┘        ▼                             └──── capture ──▶ spent for good
//!                        expired
//!
//!  available ── reserve ──▶ held until its owner ends it ── undo ──▶ available
//!                             ├─ pay tip ──▶ gone to another account
//!                             └─ start payout ──▶ with the provider ── finish ──▶ paid out
//!                                                                   └─ return ──▶ available
//! ```
//!
//! Every command first expires what is due at its time: holds past their end are released, promo points past theirs
//! are expired. What is due is recorded with the command that noticed it, or not at all if that one is refused.
//!
//! Deliberately absent: idempotency keys (the event store has them), prices, and who may do what (the HTTP edge).

mod action;
mod event;
mod policy;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use cqrs_es::{Aggregate, event_sink::EventSink};
use serde::{Deserialize, Serialize};

pub use action::{Action, Direction, Source};
pub use event::{Event, ReleaseCause};
pub use policy::PointsPolicy;
pub use refusal::Refusal;

use crate::{Bucket, HoldId, Label, Points, Purse, SpendId, WithdrawalId};

/// What is asked of an account, and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The business time. It decides what is due, and the day of a check-in.
    pub at: DateTime<Utc>,
    /// What is asked.
    pub action: Action,
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
    /// What is with the payout provider.
    payouts: BTreeMap<WithdrawalId, Purse>,
}

/// Points set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// What is left of it.
    pub left: Purse,
    /// When it is released by itself; never, when it is reserved.
    pub expires_at: Option<DateTime<Utc>>,
    /// For what.
    pub reason: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Spend {
    left: Purse,
    refundable_until: DateTime<Utc>,
    /// Where a refund comes from.
    revenue: Option<Label>,
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

    /// Roughly how much memory the account takes beside itself, in bytes, for caches that are bounded.
    pub fn heap_bytes(&self) -> usize {
        let lots = self.available.promo.len() + self.holds.values().map(|hold| hold.left.promo.len()).sum::<usize>();
        // Of a spend only a lot or two: counting them all would cost more than it is worth.
        48 * lots + 200 * (self.holds.len() + self.payouts.len()) + 340 * self.spends.len()
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
        for (hold, Hold { left, expires_at, reason: _ }) in &self.holds {
            if expires_at.is_some_and(|expires_at| expires_at <= at) {
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
                let revenue = Some(product.clone());
                Event::Spent { spend: *spend, taken, product: product.clone(), refundable_until, revenue }
            }

            Action::Hold { hold, points, lifetime_s, reason } => {
                self.may_open(*hold, policy)?;
                let lifetime_s = lifetime_s.unwrap_or(policy.hold_lifetime_s);
                if lifetime_s == 0 || lifetime_s > policy.hold_lifetime_max_s {
                    return Err(Refusal::HoldLifetimeOutOfRange { max_s: policy.hold_lifetime_max_s });
                }
                let taken = self.to_spend(policy.amount(*points)?)?;
                Event::Held { hold: *hold, taken, reason: reason.clone(), expires_at: Some(after(at, lifetime_s)?) }
            }

            Action::Capture { hold, points } => {
                let Hold { left, reason, .. } = self.open_hold(*hold)?;
                let asked = points.map_or(Ok(left.total()), |points| policy.amount(points))?;
                let too_small = Refusal::HoldTooSmall { asked, left: left.total() };
                let taken = left.part_to_spend(asked).ok_or(too_small)?;
                Event::Captured { hold: *hold, taken, revenue: Some(reason.clone()) }
            }

            Action::Release { hold } => {
                let returned = self.open_hold(*hold)?.left.clone();
                let late = returned.due(at);
                let released = Event::Released { hold: *hold, returned, cause: ReleaseCause::Requested };
                return Ok(with_late(released, late));
            }

            Action::Refund { spend, points } => {
                let spent = self.spends.get(spend).ok_or(Refusal::SpendNotFound(*spend))?;
                let Spend { left, refundable_until, revenue } = spent;
                if *refundable_until <= at {
                    return Err(Refusal::SpendNotFound(*spend));
                }
                let asked = points.map_or(Ok(left.total()), |points| policy.amount(points))?;
                let too_small = Refusal::SpendTooSmall { asked, left: left.total() };
                let returned = left.part_to_return(asked).ok_or(too_small)?;
                self.has_room_for(asked)?;
                let late = returned.due(at);
                let refunded = Event::Refunded { spend: *spend, returned, revenue: revenue.clone() };
                return Ok(with_late(refunded, late));
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
                let (reason, words) = reason.clone().into_members();
                Event::Adjusted { direction: *direction, moved, reason, words }
            }

            Action::Reserve { hold, points, from, purpose } => {
                self.may_open(*hold, policy)?;
                let asked = policy.amount(*points)?;
                let usable = self.usable(*from);
                let too_few = Refusal::InsufficientPoints { asked, available: usable.total() };
                let taken = usable.part_to_spend(asked).ok_or(too_few)?;
                Event::Held { hold: *hold, taken, reason: purpose.clone(), expires_at: None }
            }

            Action::Undo { hold } => {
                let returned = self.reserve(*hold)?.clone();
                let late = returned.due(at);
                let released = Event::Released { hold: *hold, returned, cause: ReleaseCause::Undone };
                return Ok(with_late(released, late));
            }

            Action::Use { hold, points, product } => {
                let reserved = self.reserve(*hold)?;
                let too_small = Refusal::HoldTooSmall { asked: *points, left: reserved.total() };
                let taken = reserved.part_to_spend(*points).ok_or(too_small)?;
                let mut returned = reserved.clone();
                returned.take(&taken);
                let late = returned.due(at);
                let revenue = Some(product.clone());
                let captured = (!taken.is_empty()).then_some(Event::Captured { hold: *hold, taken, revenue });
                let rest = (!returned.is_empty())
                    .then(|| with_late(Event::Released { hold: *hold, returned, cause: ReleaseCause::Undone }, late));
                return Ok(captured.into_iter().chain(rest.into_iter().flatten()).collect());
            }

            Action::PayTip { tip, to } => {
                Event::TipPaid { tip: *tip, to: *to, taken: self.reserve(HoldId(tip.0))?.clone() }
            }

            Action::ReceiveTip { tip, from, income, share } => {
                self.has_room_for(*income)?;
                Event::TipReceived { tip: *tip, from: *from, income: *income, share: *share }
            }

            Action::StartPayout { withdrawal } => {
                if self.payouts.contains_key(withdrawal) {
                    return Err(Refusal::HoldExists(HoldId(withdrawal.0)));
                }
                let taken = self.reserve(HoldId(withdrawal.0))?.clone();
                Event::PayoutStarted { withdrawal: *withdrawal, taken }
            }

            Action::FinishPayout { withdrawal, fee } => {
                let paid = self.payout(*withdrawal)?.total();
                let too_small = Refusal::HoldTooSmall { asked: *fee, left: paid };
                let points = paid.checked_sub(*fee).ok_or(too_small)?;
                Event::PaidOut { withdrawal: *withdrawal, points, fee: *fee }
            }

            Action::ReturnPayout { withdrawal } => {
                let returned = self.payout(*withdrawal)?.clone();
                let late = returned.due(at);
                return Ok(with_late(Event::PayoutReturned { withdrawal: *withdrawal, returned }, late));
            }
        };
        Ok(vec![event])
    }

    fn may_open(&self, hold: HoldId, policy: &PointsPolicy) -> Result<(), Refusal> {
        if self.holds.contains_key(&hold) {
            return Err(Refusal::HoldExists(hold));
        }
        let max = policy.open_holds_max;
        if u32::try_from(self.holds.len()).unwrap_or(u32::MAX) >= max {
            return Err(Refusal::TooManyHolds { max });
        }
        Ok(())
    }

    /// A hold that anybody with the right may capture or release.
    fn open_hold(&self, hold: HoldId) -> Result<&Hold, Refusal> {
        let open = self.holds.get(&hold).filter(|hold| hold.expires_at.is_some());
        open.ok_or(Refusal::HoldNotFound(hold))
    }

    /// What is left of a hold that only what it is for may end.
    fn reserve(&self, hold: HoldId) -> Result<&Purse, Refusal> {
        let reserve = self.holds.get(&hold).filter(|hold| hold.expires_at.is_none());
        reserve.map(|hold| &hold.left).ok_or(Refusal::HoldNotFound(hold))
    }

    fn payout(&self, withdrawal: WithdrawalId) -> Result<&Purse, Refusal> {
        self.payouts.get(&withdrawal).ok_or(Refusal::HoldNotFound(HoldId(withdrawal.0)))
    }

    fn usable(&self, from: Source) -> Purse {
        match from {
            Source::Any => self.available.clone(),
            Source::NotPromo => Purse { promo: BTreeMap::new(), ..self.available.clone() },
            Source::Income => Purse::income(self.available.income),
        }
    }

    fn to_spend(&self, asked: Points) -> Result<Purse, Refusal> {
        let too_few = Refusal::InsufficientPoints { asked, available: self.available.total() };
        self.available.part_to_spend(asked).ok_or(too_few)
    }

    /// Refundable points are not counted: they are the platform's until a refund asks for room again.
    fn has_room_for(&self, points: Points) -> Result<(), Refusal> {
        let with_provider = self.payouts.values().try_fold(Points::ZERO, |sum, payout| sum.checked_add(payout.total()));
        let have = self.available.total().checked_add(self.held().total());
        let have = have.zip(with_provider).and_then(|(have, with_provider)| have.checked_add(with_provider));
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
            Event::Spent { spend, taken, product: _, refundable_until, revenue } => {
                self.available.take(taken);
                let (left, refundable_until) = (taken.clone(), *refundable_until);
                self.remember_spend(*spend, Spend { left, refundable_until, revenue: revenue.clone() });
            }
            Event::Held { hold, taken, reason, expires_at } => {
                self.available.take(taken);
                let (left, reason) = (taken.clone(), reason.clone());
                self.holds.insert(*hold, Hold { left, expires_at: *expires_at, reason });
            }
            Event::Captured { hold, taken, revenue: _ } => self.take_from_hold(*hold, taken),
            Event::TipPaid { tip, to: _, taken } => self.take_from_hold(HoldId(tip.0), taken),
            Event::TipReceived { tip: _, from: _, income, share: _ } => self.available.put(&Purse::income(*income)),
            Event::PayoutStarted { withdrawal, taken } => {
                self.take_from_hold(HoldId(withdrawal.0), taken);
                self.payouts.insert(*withdrawal, taken.clone());
            }
            Event::PaidOut { withdrawal, points: _, fee: _ } => {
                self.payouts.remove(withdrawal);
            }
            Event::PayoutReturned { withdrawal, returned } => {
                self.payouts.remove(withdrawal);
                self.available.put(returned);
            }
            Event::Released { hold, returned, cause: _ } => {
                self.take_from_hold(*hold, returned);
                self.available.put(returned);
            }
            Event::Refunded { spend, returned, revenue: _ } => {
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
            Event::Adjusted { direction: Direction::Credit, moved, reason: _, words: _ } => self.available.put(moved),
            Event::Adjusted { direction: Direction::Debit, moved, reason: _, words: _ } => self.available.take(moved),
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
    fn remember_spend(&mut self, spend: SpendId, spent: Spend) {
        if self.spends_by_age.len() >= REFUNDABLE_SPENDS_MAX
            && let Some((_, oldest)) = self.spends_by_age.pop_front()
        {
            self.spends.remove(&oldest);
        }
        self.spends_by_age.push_back((spent.refundable_until, spend));
        self.spends.insert(spend, spent);
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
