//! Rules as tables: what was, when and what is asked, what is recorded. What always holds, as properties.
//!
//! Day 0 is 2026-01-01, so promo points given on day `d` end with day `d + 365`: at `midnight(d + 366)`.

use std::{
    ops::Range,
    pin::pin,
    task::{Context, Poll, Waker},
};

use cqrs_es::{DomainEvent, test::TestFramework};
use proptest::{collection::vec, option, prelude::*, sample::select};
use uuid::Uuid;

use super::{
    Action::{CheckIn, Expire},
    Direction::*,
    Refusal::*,
    ReleaseCause::*,
    *,
};
use crate::{
    Bucket::*,
    Label, Note, OrderId, StreamId, TipId, UserId,
    ledger::{Account, Standing, postings},
    points::POINTS_MAX,
};

const SECOND: TimeDelta = TimeDelta::seconds(1);

fn midnight(day: i64) -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::days(day)
}

fn noon(day: i64) -> DateTime<Utc> {
    midnight(day) + TimeDelta::hours(12)
}

fn points(points: i64) -> Points {
    points.try_into().unwrap()
}

/// Promo lots by the day on whose midnight they expire, paid points, income points.
fn purse<const LOTS: usize>(lots: [(i64, i64); LOTS], paid: i64, income: i64) -> Purse {
    let promo = lots.into_iter().map(|(day, lot)| (midnight(day), points(lot))).collect();
    Purse { promo, paid: points(paid), income: points(income) }
}

fn promo<const LOTS: usize>(lots: [(i64, i64); LOTS]) -> Purse {
    purse(lots, 0, 0)
}

fn paid(amount: i64) -> Purse {
    purse([], amount, 0)
}

fn income(amount: i64) -> Purse {
    purse([], 0, amount)
}

fn id<Id>(of: fn(Uuid) -> Id, number: u128) -> Id {
    of(Uuid::from_u128(number))
}

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

fn note() -> Note {
    Note::try_from("goodwill".to_owned()).unwrap()
}

// What is asked.

fn earn(bucket: Bucket, amount: i64) -> Action {
    Action::Earn { bucket, points: points(amount), reason: label("task") }
}
fn recharge(amount: i64) -> Action {
    Action::Recharge { order: id(OrderId, 1), points: points(amount) }
}
fn spend(spend: u128, amount: i64) -> Action {
    Action::Spend { spend: id(SpendId, spend), points: points(amount), product: label("video") }
}
fn hold(hold: u128, amount: i64, lifetime_s: impl Into<Option<u32>>) -> Action {
    let (points, lifetime_s) = (points(amount), lifetime_s.into());
    Action::Hold { hold: id(HoldId, hold), points, lifetime_s, reason: label("render") }
}
fn capture(hold: u128, amount: impl Into<Option<i64>>) -> Action {
    Action::Capture { hold: id(HoldId, hold), points: amount.into().map(points) }
}
fn release(hold: u128) -> Action {
    Action::Release { hold: id(HoldId, hold) }
}
fn refund(spend: u128, amount: impl Into<Option<i64>>) -> Action {
    Action::Refund { spend: id(SpendId, spend), points: amount.into().map(points) }
}
fn adjust(bucket: Bucket, direction: Direction, amount: i64) -> Action {
    Action::Adjust { bucket, direction, points: points(amount), reason: note().into() }
}

fn reserve(number: u128, amount: i64, from: Source) -> Action {
    Action::Reserve { hold: id(HoldId, number), points: points(amount), from, purpose: label("tip") }
}
fn undo(number: u128) -> Action {
    Action::Undo { hold: id(HoldId, number) }
}
fn use_up(number: u128, amount: i64) -> Action {
    Action::Use { hold: id(HoldId, number), points: points(amount), product: label("render") }
}
fn pay_tip(tip: u128) -> Action {
    Action::PayTip { tip: id(TipId, tip), to: id(UserId, 8) }
}
fn receive_tip(tip: u128, income: i64, share: i64) -> Action {
    Action::ReceiveTip { tip: id(TipId, tip), from: id(UserId, 8), income: points(income), share: points(share) }
}
fn start_payout(withdrawal: u128) -> Action {
    Action::StartPayout { withdrawal: id(WithdrawalId, withdrawal) }
}
fn finish_payout(withdrawal: u128, fee: i64) -> Action {
    Action::FinishPayout { withdrawal: id(WithdrawalId, withdrawal), fee: points(fee) }
}
fn return_payout(withdrawal: u128) -> Action {
    Action::ReturnPayout { withdrawal: id(WithdrawalId, withdrawal) }
}

// What is recorded.

fn reserved(number: u128, taken: Purse) -> Event {
    Event::Held { hold: id(HoldId, number), taken, reason: label("tip"), expires_at: None }
}
fn tip_paid(tip: u128, taken: Purse) -> Event {
    Event::TipPaid { tip: id(TipId, tip), to: id(UserId, 8), taken }
}
fn tip_received(tip: u128, income: i64, share: i64) -> Event {
    Event::TipReceived { tip: id(TipId, tip), from: id(UserId, 8), income: points(income), share: points(share) }
}
fn payout_started(withdrawal: u128, taken: Purse) -> Event {
    Event::PayoutStarted { withdrawal: id(WithdrawalId, withdrawal), taken }
}
fn paid_out(withdrawal: u128, out: i64, fee: i64) -> Event {
    Event::PaidOut { withdrawal: id(WithdrawalId, withdrawal), points: points(out), fee: points(fee) }
}
fn payout_returned(withdrawal: u128, returned: Purse) -> Event {
    Event::PayoutReturned { withdrawal: id(WithdrawalId, withdrawal), returned }
}

fn checked_in(day: i64, days_in_a_row: u32, amount: i64) -> Event {
    let (expires_at, day) = (midnight(day + 366), midnight(day).date_naive());
    Event::CheckedIn { day, days_in_a_row, points: points(amount), expires_at }
}
fn earned(credited: Purse) -> Event {
    Event::Earned { credited, reason: label("task") }
}
fn recharged(amount: i64) -> Event {
    Event::Recharged { order: id(OrderId, 1), points: points(amount) }
}
fn spent(spend: u128, taken: Purse, refundable_until: DateTime<Utc>) -> Event {
    let (product, revenue) = (label("video"), Some(label("video")));
    Event::Spent { spend: id(SpendId, spend), taken, product, refundable_until, revenue }
}
fn held(hold: u128, taken: Purse, expires_at: DateTime<Utc>) -> Event {
    Event::Held { hold: id(HoldId, hold), taken, reason: label("render"), expires_at: Some(expires_at) }
}
fn captured(hold: u128, taken: Purse) -> Event {
    Event::Captured { hold: id(HoldId, hold), taken, revenue: Some(label("render")) }
}
fn released(hold: u128, returned: Purse, cause: ReleaseCause) -> Event {
    Event::Released { hold: id(HoldId, hold), returned, cause }
}
fn refunded(spend: u128, returned: Purse) -> Event {
    Event::Refunded { spend: id(SpendId, spend), returned, revenue: Some(label("video")) }
}
fn expired<const LOTS: usize>(lots: [(i64, i64); LOTS]) -> Event {
    Event::Expired { lots: purse(lots, 0, 0) }
}
fn adjusted(direction: Direction, moved: Purse) -> Event {
    Event::Adjusted { direction, moved, reason: note(), words: None }
}

// Given that, when this, then that.

type Events = Vec<Event>;

/// The stock numbers, with limits that a table can reach.
fn policy() -> PointsPolicy {
    PointsPolicy { open_holds_max: 2, amount_max: points(1_000), ..PointsPolicy::default() }
}

#[track_caller]
fn check(policy: PointsPolicy, given: &[Event], at: DateTime<Utc>, action: Action, then: Result<Events, Refusal>) {
    let when = Command { at, action };
    let framework = TestFramework::<PointsAccount>::with(policy).given(given.to_vec());
    assert_eq!(framework.when(when.clone()).inspect_result(), then, "{when:?}");
}

#[track_caller]
fn records(given: &[Event], at: DateTime<Utc>, action: Action, then: &[Event]) {
    check(policy(), given, at, action, Ok(then.to_vec()));
}

#[track_caller]
fn refuses(given: &[Event], at: DateTime<Utc>, action: Action, then: Refusal) {
    check(policy(), given, at, action, Err(then));
}

fn and(given: &[Event], then: Event) -> Events {
    given.iter().cloned().chain([then]).collect()
}

fn insufficient(asked: i64, available: i64) -> Refusal {
    Refusal::InsufficientPoints { asked: points(asked), available: points(available) }
}

#[test]
fn checks_in_once_a_utc_day() {
    let (today, yesterday) = (midnight(1).date_naive(), midnight(0).date_naive());
    records(&[], noon(1), CheckIn, &[checked_in(1, 1, 10)]);
    records(&[checked_in(0, 1, 10)], midnight(1), CheckIn, &[checked_in(1, 2, 10)]);
    refuses(&[checked_in(0, 1, 10)], midnight(1) - SECOND, CheckIn, AlreadyCheckedIn { day: yesterday });
    let before_last = CheckInBeforeLast { day: yesterday, last: today };
    refuses(&[checked_in(1, 1, 10)], noon(0), CheckIn, before_last);
}

#[test]
fn every_seventh_day_in_a_row_earns_the_bonus() {
    records(&[checked_in(5, 6, 10)], noon(6), CheckIn, &[checked_in(6, 7, 40)]);
    records(&[checked_in(6, 7, 40)], noon(7), CheckIn, &[checked_in(7, 8, 10)]);
    records(&[checked_in(12, 13, 10)], noon(13), CheckIn, &[checked_in(13, 14, 40)]);
    records(&[checked_in(5, 6, 10)], noon(7), CheckIn, &[checked_in(7, 1, 10)]);
    let never = PointsPolicy { streak_days: 0, ..policy() };
    check(never, &[checked_in(5, 6, 10)], noon(6), CheckIn, Ok(vec![checked_in(6, 7, 10)]));
}

#[test]
fn promo_points_expire_at_the_midnight_that_ends_their_last_day() {
    for at in [midnight(0), noon(0), midnight(1) - SECOND] {
        records(&[], at, CheckIn, &[checked_in(0, 1, 10)]);
        records(&[], at, earn(Promo, 5), &[earned(promo([(366, 5)]))]);
        records(&[], at, adjust(Promo, Credit, 5), &[adjusted(Credit, promo([(366, 5)]))]);
    }
    let given = [earned(promo([(366, 5)])), earned(promo([(367, 6)])), recharged(7)];
    records(&given, midnight(366) - SECOND, Expire, &[]);
    records(&given, midnight(366), Expire, &[expired([(366, 5)])]);
    records(&given, midnight(367), Expire, &[expired([(366, 5), (367, 6)])]);
}

#[test]
fn what_is_due_is_recorded_with_the_next_command_or_not_at_all() {
    let given = [earned(promo([(366, 5)])), recharged(7)];
    records(&given, midnight(366), spend(1, 7), &[expired([(366, 5)]), spent(1, paid(7), midnight(396))]);
    records(&given, midnight(366), earn(Income, 1), &[expired([(366, 5)]), earned(income(1))]);
    refuses(&given, midnight(366), spend(1, 8), insufficient(8, 7));
    refuses(&given, midnight(366), adjust(Promo, Debit, 1), insufficient(1, 0));
}

#[test]
fn a_hold_past_its_end_is_released_and_its_due_lots_expire_with_it() {
    let (first, second) = (promo([(366, 5)]), purse([(366, 1), (367, 2)], 3, 4));
    let given = [
        earned(promo([(366, 9), (367, 2)])),
        recharged(3),
        earned(income(4)),
        held(1, first.clone(), midnight(366)),
        held(2, second.clone(), noon(366)),
    ];
    let table = [
        (midnight(366) - SECOND, vec![]),
        (midnight(366), vec![released(1, first.clone(), Expired), expired([(366, 8)])]),
        (noon(366), vec![released(1, first, Expired), released(2, second, Expired), expired([(366, 9)])]),
    ];
    for (at, then) in table {
        records(&given, at, Expire, &then);
    }
    refuses(&given, noon(366), capture(2, None), HoldNotFound(id(HoldId, 2)));
    let kept = [earned(promo([(366, 5)])), held(1, promo([(366, 5)]), noon(400))];
    records(&kept, noon(366), capture(1, 2), &[captured(1, promo([(366, 2)]))]);
}

#[test]
fn spends_and_holds_promo_then_paid_then_income() {
    let given = [recharged(7), earned(income(4)), earned(promo([(367, 10)])), earned(promo([(366, 5)]))];
    let table = [
        (4, promo([(366, 4)])),
        (8, promo([(366, 5), (367, 3)])),
        (17, purse([(366, 5), (367, 10)], 2, 0)),
        (26, purse([(366, 5), (367, 10)], 7, 4)),
    ];
    for (amount, taken) in table {
        records(&given, noon(0), spend(1, amount), &[spent(1, taken.clone(), noon(30))]);
        records(&given, noon(0), hold(1, amount, None), &[held(1, taken.clone(), noon(1))]);
        records(&given, noon(0), hold(1, amount, 1), &[held(1, taken, noon(0) + SECOND)]);
    }
    refuses(&given, noon(0), spend(1, 27), insufficient(27, 26));
    refuses(&given, noon(0), hold(1, 27, None), insufficient(27, 26));
}

#[test]
fn captures_a_hold_whole_or_in_parts_and_no_more_than_is_left() {
    let given = vec![recharged(7), earned(promo([(366, 5)])), held(1, purse([(366, 5)], 5, 0), noon(1))];
    let in_part = and(&given, captured(1, purse([(366, 5)], 1, 0)));
    let whole = and(&in_part, captured(1, paid(4)));
    records(&given, noon(0), capture(1, 6), &[captured(1, purse([(366, 5)], 1, 0))]);
    records(&given, noon(0), capture(1, None), &[captured(1, purse([(366, 5)], 5, 0))]);
    records(&in_part, noon(0), capture(1, 4), &[captured(1, paid(4))]);
    records(&in_part, noon(0), capture(1, None), &[captured(1, paid(4))]);
    for (given, asked, left) in [(given, 11, 10), (in_part, 5, 4)] {
        refuses(&given, noon(0), capture(1, asked), HoldTooSmall { asked: points(asked), left: points(left) });
    }
    refuses(&whole, noon(0), capture(1, None), HoldNotFound(id(HoldId, 1)));
}

#[test]
fn releases_all_that_is_left_of_a_hold_once() {
    let given = [recharged(7), held(1, paid(5), noon(1)), captured(1, paid(2))];
    let done = and(&given, released(1, paid(3), Requested));
    records(&given, noon(1) - SECOND, release(1), &[released(1, paid(3), Requested)]);
    refuses(&given, noon(1), release(1), HoldNotFound(id(HoldId, 1)));
    refuses(&done, noon(0), release(1), HoldNotFound(id(HoldId, 1)));
    refuses(&done, noon(0), capture(1, 1), HoldNotFound(id(HoldId, 1)));
    records(&done, noon(0), spend(1, 5), &[spent(1, paid(5), noon(30))]);
    refuses(&done, noon(0), spend(1, 6), insufficient(6, 5));
}

#[test]
fn refunds_into_the_buckets_that_a_spend_came_from_while_the_window_is_open() {
    let taken = purse([(366, 5), (367, 1)], 3, 2);
    let bought = [earned(promo([(366, 5), (367, 1)])), recharged(3), earned(income(2))];
    let given = and(&bought, spent(1, taken.clone(), noon(30)));
    let in_part = and(&given, refunded(1, purse([], 2, 2)));
    let whole = and(&in_part, refunded(1, purse([(366, 5), (367, 1)], 1, 0)));
    records(&given, noon(0), refund(1, None), &[refunded(1, taken)]);
    records(&given, noon(0), refund(1, 4), &[refunded(1, purse([], 2, 2))]);
    records(&given, noon(0), refund(1, 7), &[refunded(1, purse([(366, 1), (367, 1)], 3, 2))]);
    records(&in_part, noon(0), refund(1, 3), &[refunded(1, purse([(366, 1), (367, 1)], 1, 0))]);
    records(&in_part, noon(30) - SECOND, refund(1, None), &[refunded(1, purse([(366, 5), (367, 1)], 1, 0))]);
    for (given, asked, left) in [(given, 12, 11), (in_part.clone(), 8, 7)] {
        refuses(&given, noon(0), refund(1, asked), SpendTooSmall { asked: points(asked), left: points(left) });
    }
    for (given, at) in [(vec![], noon(0)), (in_part, noon(30)), (whole.clone(), noon(0))] {
        refuses(&given, at, refund(1, None), SpendNotFound(id(SpendId, 1)));
    }
    records(&whole, noon(0), spend(2, 11), &[spent(2, purse([(366, 5), (367, 1)], 3, 2), noon(30))]);
}

#[test]
fn points_given_back_after_their_end_expire_at_once() {
    let given = [earned(promo([(366, 5)])), spent(1, promo([(366, 5)]), noon(380))];
    let back = [refunded(1, promo([(366, 5)])), expired([(366, 5)])];
    records(&given, noon(370), refund(1, None), &back);
    let after: Vec<_> = given.into_iter().chain(back).collect();
    refuses(&after, noon(370), spend(2, 1), insufficient(1, 0));
    records(&after, noon(370), Expire, &[]);
}

#[test]
fn credits_go_into_the_bucket_that_is_asked_for_and_debits_come_out_of_it() {
    let given = [earned(promo([(366, 6)])), recharged(6), earned(income(6))];
    for (bucket, moved) in [(Promo, promo([(366, 5)])), (Paid, paid(5)), (Income, income(5))] {
        records(&[], noon(0), adjust(bucket, Credit, 5), &[adjusted(Credit, moved.clone())]);
        records(&given, noon(0), adjust(bucket, Debit, 5), &[adjusted(Debit, moved.clone())]);
        refuses(&given, noon(0), adjust(bucket, Debit, 7), insufficient(7, 6));
        let debited = and(&given, adjusted(Debit, moved.clone()));
        refuses(&debited, noon(0), adjust(bucket, Debit, 2), insufficient(2, 1));
        records(&[adjusted(Credit, moved.clone())], noon(0), spend(1, 5), &[spent(1, moved, noon(30))]);
    }
    records(&[], noon(0), recharge(5), &[recharged(5)]);
    records(&[], noon(0), earn(Income, 5), &[earned(income(5))]);
    refuses(&[], noon(0), earn(Paid, 5), EarnedAsPaid);
}

#[test]
fn one_command_moves_at_least_a_point_and_no_more_than_the_limit() {
    let given = [recharged(5), held(1, paid(2), noon(1)), spent(1, paid(2), noon(30))];
    let actions: [fn(i64) -> Action; 11] = [
        |amount| earn(Promo, amount),
        |amount| earn(Income, amount),
        recharge,
        |amount| spend(2, amount),
        |amount| hold(2, amount, None),
        |amount| capture(1, amount),
        |amount| refund(1, amount),
        |amount| adjust(Promo, Credit, amount),
        |amount| adjust(Paid, Credit, amount),
        |amount| adjust(Paid, Debit, amount),
        |amount| adjust(Income, Debit, amount),
    ];
    for action in actions {
        refuses(&given, noon(0), action(0), AmountOutOfRange { max: points(1_000) });
        refuses(&given, noon(0), action(1_001), AmountOutOfRange { max: points(1_000) });
    }
    records(&[], noon(0), recharge(1), &[recharged(1)]);
    records(&[], noon(0), recharge(1_000), &[recharged(1_000)]);
}

#[test]
fn an_account_is_full_at_its_limit_with_what_is_held_but_not_with_what_is_spent() {
    let had = [recharged(POINTS_MAX), held(1, paid(20), noon(1)), spent(1, paid(9), noon(30))];
    let actions = [
        CheckIn,
        earn(Promo, 10),
        earn(Income, 10),
        recharge(10),
        adjust(Promo, Credit, 10),
        adjust(Paid, Credit, 10),
        adjust(Income, Credit, 10),
    ];
    for action in actions {
        refuses(&had, noon(0), action, AccountFull);
    }
    records(&had, noon(0), recharge(9), &[recharged(9)]);
    records(&had, noon(0), refund(1, None), &[refunded(1, paid(9))]);
    let filled = and(&had, recharged(1));
    refuses(&filled, noon(0), refund(1, 9), AccountFull);
    records(&filled, noon(0), refund(1, 8), &[refunded(1, paid(8))]);
    records(&filled, noon(0), release(1), &[released(1, paid(20), Requested)]);
}

#[test]
fn open_holds_are_bounded_in_number_and_in_time() {
    let given = [recharged(9), held(1, paid(1), noon(1)), held(2, paid(1), noon(2))];
    let freed = and(&given, captured(1, paid(1)));
    refuses(&given, noon(0), hold(3, 1, None), TooManyHolds { max: 2 });
    records(&freed, noon(0), hold(3, 1, None), &[held(3, paid(1), noon(1))]);
    records(&given, noon(1), hold(3, 1, None), &[released(1, paid(1), Expired), held(3, paid(1), noon(2))]);

    let max_s = 30 * 86_400;
    records(&[recharged(1)], noon(0), hold(1, 1, max_s), &[held(1, paid(1), noon(30))]);
    for lifetime_s in [0, max_s + 1] {
        refuses(&[recharged(1)], noon(0), hold(1, 1, lifetime_s), HoldLifetimeOutOfRange { max_s });
    }
}

#[test]
fn an_id_is_taken_while_its_hold_is_open_or_its_spend_refundable() {
    let given = [recharged(9), held(1, paid(1), noon(1)), spent(1, paid(1), noon(30))];
    refuses(&given, noon(0), hold(1, 1, None), HoldExists(id(HoldId, 1)));
    refuses(&given, noon(0), spend(1, 1), SpendExists(id(SpendId, 1)));
    records(&and(&given, captured(1, paid(1))), noon(0), hold(1, 1, None), &[held(1, paid(1), noon(1))]);
    records(&and(&given, refunded(1, paid(1))), noon(0), spend(1, 1), &[spent(1, paid(1), noon(30))]);
}

#[test]
fn the_oldest_spend_is_forgotten_when_too_many_are_remembered() {
    let last = u128::try_from(REFUNDABLE_SPENDS_MAX).unwrap();
    let one_by_one = |spends: Range<u128>| spends.map(|number| spent(number, paid(1), noon(30)));
    let bought = || [recharged(1_001)].into_iter();
    let given: Events = bought().chain(one_by_one(0..last + 1)).collect();
    refuses(&given, noon(0), refund(0, None), SpendNotFound(id(SpendId, 0)));
    records(&given, noon(0), refund(1, None), &[refunded(1, paid(1))]);
    records(&given, noon(0), refund(last, None), &[refunded(last, paid(1))]);

    let settled = bought().chain(one_by_one(0..last)).chain([refunded(7, paid(1))]);
    let given: Events = settled.chain(one_by_one(last..last + 1)).collect();
    records(&given, noon(0), refund(0, None), &[refunded(0, paid(1))]);
}

#[test]
fn a_time_without_an_end_on_the_calendar_is_refused() {
    let actions = [CheckIn, earn(Promo, 1), adjust(Promo, Credit, 1), spend(1, 1), hold(1, 1, None), hold(1, 1, 1)];
    for action in actions {
        refuses(&[recharged(1)], DateTime::<Utc>::MAX_UTC, action, TimeOutOfRange);
    }
    records(&[], DateTime::<Utc>::MAX_UTC, recharge(1), &[recharged(1)]);
}

#[test]
fn stored_events_keep_their_shape() {
    let stored = r#"
{"checked_in":{"day":"2026-01-01","days_in_a_row":7,"points":40,"expires_at":"2027-01-02T00:00:00Z"}}
{"earned":{"credited":{"promo":{"2026-01-02T00:00:00Z":5,"2026-01-03T00:00:00Z":6},"paid":3,"income":2},"reason":"task"}}
{"recharged":{"order":"00000000-0000-0000-0000-000000000001","points":50}}
{"spent":{"spend":"00000000-0000-0000-0000-000000000002","taken":{"paid":3},"product":"video","refundable_until":"2026-01-31T12:00:00Z","revenue":"video"}}
{"held":{"hold":"00000000-0000-0000-0000-000000000003","taken":{"income":2},"reason":"render","expires_at":"2026-01-02T12:00:01Z"}}
{"captured":{"hold":"00000000-0000-0000-0000-000000000003","taken":{"income":2},"revenue":"render"}}
{"released":{"hold":"00000000-0000-0000-0000-000000000003","returned":{"income":2},"cause":"requested"}}
{"released":{"hold":"00000000-0000-0000-0000-000000000003","returned":{"paid":3},"cause":"expired"}}
{"refunded":{"spend":"00000000-0000-0000-0000-000000000002","returned":{"paid":3},"revenue":"video"}}
{"expired":{"lots":{"promo":{"2026-01-02T00:00:00Z":5}}}}
{"adjusted":{"direction":"credit","moved":{"paid":3},"reason":"goodwill"}}
{"adjusted":{"direction":"debit","moved":{"income":2},"reason":"goodwill"}}
{"held":{"hold":"00000000-0000-0000-0000-000000000003","taken":{"income":2},"reason":"tip"}}
{"released":{"hold":"00000000-0000-0000-0000-000000000003","returned":{"paid":3},"cause":"undone"}}
{"tip_paid":{"tip":"00000000-0000-0000-0000-000000000003","to":"00000000-0000-0000-0000-000000000008","taken":{"paid":3}}}
{"tip_received":{"tip":"00000000-0000-0000-0000-000000000003","from":"00000000-0000-0000-0000-000000000008","income":7,"share":3}}
{"payout_started":{"withdrawal":"00000000-0000-0000-0000-000000000003","taken":{"income":2}}}
{"paid_out":{"withdrawal":"00000000-0000-0000-0000-000000000003","points":7,"fee":2}}
{"payout_returned":{"withdrawal":"00000000-0000-0000-0000-000000000003","returned":{"income":2}}}
"#;
    let events = [
        checked_in(0, 7, 40),
        earned(purse([(1, 5), (2, 6)], 3, 2)),
        recharged(50),
        spent(2, paid(3), noon(30)),
        held(3, income(2), noon(1) + SECOND),
        captured(3, income(2)),
        released(3, income(2), Requested),
        released(3, paid(3), Expired),
        refunded(2, paid(3)),
        expired([(1, 5)]),
        adjusted(Credit, paid(3)),
        adjusted(Debit, income(2)),
        reserved(3, income(2)),
        released(3, paid(3), Undone),
        tip_paid(3, paid(3)),
        tip_received(3, 7, 3),
        payout_started(3, income(2)),
        paid_out(3, 7, 2),
        payout_returned(3, income(2)),
    ];
    let written = events.each_ref().map(|event| serde_json::to_string(event).unwrap());
    assert_eq!(written.join("\n"), stored.trim());
    let read = stored.trim().lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    assert_eq!(read.collect::<Vec<_>>(), events);
    for (event, line) in events.iter().zip(stored.trim().lines()) {
        assert!(line.starts_with(&format!(r#"{{"{}":"#, event.event_type())) && event.event_version() == "1", "{line}");
    }
}

#[test]
fn what_was_recorded_before_revenue_was_kept_by_product_stays_together() {
    let read = |stored: &str| serde_json::from_str::<Event>(stored).unwrap();
    let before = [
        recharged(9),
        read(
            r#"{"spent":{"spend":"00000000-0000-0000-0000-000000000002","taken":{"paid":3},"product":"video","refundable_until":"2026-01-31T12:00:00Z"}}"#,
        ),
        held(3, paid(2), noon(1)),
    ];
    // A refund goes back to where the spend's revenue is, and what is captured now is the product's.
    let back = r#"{"refunded":{"spend":"00000000-0000-0000-0000-000000000002","returned":{"paid":3}}}"#;
    records(&before, noon(0), refund(2, None), &[read(back)]);
    records(&before, noon(0), capture(3, None), &[captured(3, paid(2))]);
    read(r#"{"captured":{"hold":"00000000-0000-0000-0000-000000000003","taken":{"paid":2}}}"#);
    let stream = StreamId::PointsAccount(id(UserId, 1));
    let booked = [before[1].clone(), read(back)].map(crate::Event::PointsAccount);
    let revenue = booked.iter().flat_map(|event| postings(&stream, event));
    let revenue: Vec<_> = revenue.filter(|posting| posting.account.user().is_none()).collect();
    assert!(revenue.iter().all(|posting| posting.account == Account::Revenue(None)));
    assert_eq!(revenue.iter().map(|posting| posting.amount).sum::<i64>(), 0);
}

#[test]
fn a_reserve_takes_only_the_points_that_it_may_and_ends_only_as_what_it_is_for() {
    let given = [earned(promo([(366, 5)])), recharged(4), earned(income(3))];
    records(&given, noon(0), reserve(1, 6, Source::Any), &[reserved(1, purse([(366, 5)], 1, 0))]);
    records(&given, noon(0), reserve(1, 6, Source::NotPromo), &[reserved(1, purse([], 4, 2))]);
    records(&given, noon(0), reserve(1, 3, Source::Income), &[reserved(1, income(3))]);
    refuses(&given, noon(0), reserve(1, 8, Source::NotPromo), insufficient(8, 7));
    refuses(&given, noon(0), reserve(1, 4, Source::Income), insufficient(4, 3));

    let given = and(&given, reserved(1, purse([], 4, 2)));
    refuses(&given, noon(0), reserve(1, 1, Source::Any), HoldExists(id(HoldId, 1)));
    for action in [capture(1, 1), release(1), start_payout(2), pay_tip(2), undo(2)] {
        let of = if matches!(action, Action::Capture { .. } | Action::Release { .. }) { 1 } else { 2 };
        refuses(&given, noon(0), action, HoldNotFound(id(HoldId, of)));
    }
    records(&given, noon(10_000), Expire, &[expired([(366, 5)])]);
    let undone = |returned| Event::Released { hold: id(HoldId, 1), returned, cause: Undone };
    records(&given, noon(0), undo(1), &[undone(purse([], 4, 2))]);
    records(&given, noon(0), pay_tip(1), &[tip_paid(1, purse([], 4, 2))]);
    refuses(&[recharged(2), held(1, paid(2), noon(1))], noon(0), undo(1), HoldNotFound(id(HoldId, 1)));

    let with_promo = [earned(promo([(366, 5)])), reserved(1, promo([(366, 5)]))];
    records(&with_promo, noon(370), undo(1), &[undone(promo([(366, 5)])), expired([(366, 5)])]);
}

#[test]
fn what_is_used_of_a_reserve_is_paid_and_the_rest_comes_back() {
    let given = [earned(promo([(366, 5)])), recharged(4), reserved(1, purse([(366, 5)], 4, 0))];
    let undone = |returned| Event::Released { hold: id(HoldId, 1), returned, cause: Undone };
    let used = [captured(1, purse([(366, 5)], 1, 0)), undone(paid(3))];
    records(&given, noon(0), use_up(1, 6), &used);
    records(&given, noon(0), use_up(1, 9), &[captured(1, purse([(366, 5)], 4, 0))]);
    records(&given, noon(0), use_up(1, 0), &[undone(purse([(366, 5)], 4, 0))]);
    refuses(&given, noon(0), use_up(1, 10), HoldTooSmall { asked: points(10), left: points(9) });
    refuses(&and(&given, undone(purse([(366, 5)], 4, 0))), noon(0), use_up(1, 1), HoldNotFound(id(HoldId, 1)));
    let used = [captured(1, promo([(366, 2)])), undone(purse([(366, 3)], 4, 0)), expired([(366, 3)])];
    records(&given, noon(370), use_up(1, 2), &used);
}

#[test]
fn reserves_count_as_open_holds() {
    let given = [recharged(9), reserved(1, paid(1)), held(2, paid(1), noon(2))];
    refuses(&given, noon(0), reserve(3, 1, Source::Any), TooManyHolds { max: 2 });
    records(&and(&given, tip_paid(1, paid(1))), noon(0), reserve(3, 1, Source::Any), &[reserved(3, paid(1))]);
}

#[test]
fn a_tip_arrives_as_income_if_there_is_room() {
    records(&[], noon(0), receive_tip(1, 7, 3), &[tip_received(1, 7, 3)]);
    records(&[tip_received(1, 7, 3)], noon(0), spend(1, 7), &[spent(1, income(7), noon(30))]);
    let payout = [earned(income(POINTS_MAX)), reserved(1, income(9)), payout_started(1, income(9))];
    refuses(&payout, noon(0), receive_tip(1, 1, 0), AccountFull);
    records(&and(&payout, paid_out(1, 8, 1)), noon(0), receive_tip(1, 9, 0), &[tip_received(1, 9, 0)]);
}

#[test]
fn a_payout_ends_once_paid_or_returned() {
    let given = [earned(income(9)), reserved(1, income(9))];
    records(&given, noon(0), start_payout(1), &[payout_started(1, income(9))]);
    refuses(&given, noon(0), finish_payout(1, 1), HoldNotFound(id(HoldId, 1)));
    let started = and(&given, payout_started(1, income(9)));
    refuses(&started, noon(0), undo(1), HoldNotFound(id(HoldId, 1)));
    records(&started, noon(0), finish_payout(1, 2), &[paid_out(1, 7, 2)]);
    refuses(&started, noon(0), finish_payout(1, 10), HoldTooSmall { asked: points(10), left: points(9) });
    records(&started, noon(0), return_payout(1), &[payout_returned(1, income(9))]);
    for ended in [paid_out(1, 7, 2), payout_returned(1, income(9))] {
        let ended = and(&started, ended);
        refuses(&ended, noon(0), finish_payout(1, 2), HoldNotFound(id(HoldId, 1)));
        refuses(&ended, noon(0), return_payout(1), HoldNotFound(id(HoldId, 1)));
    }
    let again = [earned(income(9)), reserved(1, income(4)), payout_started(1, income(4)), reserved(1, income(5))];
    refuses(&again, noon(0), start_payout(1), HoldExists(id(HoldId, 1)));
}

// What always holds.

/// Rules whose ends and limits a short sequence reaches.
fn short_policy() -> PointsPolicy {
    PointsPolicy {
        streak_days: 2,
        promo_lifetime_days: 1,
        hold_lifetime_s: 6 * 3_600,
        open_holds_max: 2,
        refund_window_s: 36 * 3_600,
        amount_max: points(POINTS_MAX),
        ..PointsPolicy::default()
    }
}

/// Few ids, and amounts that mostly fit and sometimes fill the account.
fn action() -> impl Strategy<Value = Action> {
    let amount = || prop_oneof![40 => 0..30_i64, 1 => POINTS_MAX - 30..=POINTS_MAX];
    let part = || option::of(0..8_i64);
    let bucket = || select(Bucket::ALL.to_vec());
    let lifetime_s = || option::of(0..200_000_u32);
    prop_oneof![
        1 => Just(CheckIn),
        2 => (bucket(), amount()).prop_map(|(bucket, points)| earn(bucket, points)),
        1 => amount().prop_map(recharge),
        2 => (0..3_u128, amount()).prop_map(|(number, points)| spend(number, points)),
        3 => (0..3_u128, amount(), lifetime_s()).prop_map(|(number, points, s)| hold(number, points, s)),
        3 => (0..3_u128, part()).prop_map(|(number, points)| capture(number, points)),
        1 => (0..3_u128).prop_map(release),
        3 => (0..3_u128, part()).prop_map(|(number, points)| refund(number, points)),
        1 => Just(Expire),
        2 => (0..3_u128, amount(), select(vec![Source::Any, Source::NotPromo, Source::Income]))
            .prop_map(|(number, points, from)| reserve(number, points, from)),
        1 => (0..3_u128).prop_map(undo),
        1 => (0..3_u128, 0..8_i64).prop_map(|(number, points)| use_up(number, points)),
        1 => (0..3_u128).prop_map(pay_tip),
        1 => (0..3_u128, 1..30_i64, 0..9_i64).prop_map(|(number, income, share)| receive_tip(number, income, share)),
        2 => (0..3_u128).prop_map(start_payout),
        1 => (0..3_u128, 0..9_i64).prop_map(|(number, fee)| finish_payout(number, fee)),
        1 => (0..3_u128).prop_map(return_payout),
        1 => (bucket(), select(vec![Credit, Debit]), amount()).prop_map(|(bucket, way, points)| adjust(bucket, way, points)),
    ]
}

/// Time goes on by hours, sometimes by days, and sometimes goes back.
fn commands() -> impl Strategy<Value = Vec<Command>> {
    let hours = prop_oneof![20 => 0..4_i64, 1 => 24..100_i64, 2 => -6..0_i64];
    vec((hours, action()), 1..100).prop_map(|steps| {
        let mut at = midnight(0);
        let later = |(hours, action)| {
            at += TimeDelta::hours(hours);
            Command { at, action }
        };
        steps.into_iter().map(later).collect()
    })
}

/// Handles a command as the stock repository does. The aggregate waits for nothing, so one poll is enough.
fn handle(account: &mut PointsAccount, command: Command) -> Result<Events, Refusal> {
    let policy = short_policy();
    let handling = pin!(async {
        let sink = EventSink::default();
        account.handle(command, &policy, &sink).await?;
        Ok(sink.collect().await)
    });
    match handling.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("an aggregate waits for nothing"),
    }
}

/// The account after all commands, and all that was recorded.
fn live(commands: Vec<Command>) -> (PointsAccount, Events) {
    let mut account = PointsAccount::default();
    let recorded = commands.into_iter().filter_map(|command| handle(&mut account, command).ok()).flatten().collect();
    (account, recorded)
}

/// By bucket, in the order of [`Bucket::ALL`]; signed, so that nothing is hidden by a limit.
fn amounts(purse: &Purse) -> [i64; 3] {
    Bucket::ALL.map(|bucket| purse.of(bucket).get())
}

proptest! {
    #[test]
    fn the_books_say_what_the_account_says(commands in commands()) {
        let user = id(UserId, 9);
        let mut balances = BTreeMap::<Account, i64>::new();
        let mut account = PointsAccount::default();
        for command in commands {
            for event in handle(&mut account, command).unwrap_or_default() {
                let entry = postings(&StreamId::PointsAccount(user), &crate::Event::PointsAccount(event));
                prop_assert_eq!(entry.iter().map(|posting| posting.amount).sum::<i64>(), 0);
                for posting in entry {
                    *balances.entry(posting.account).or_default() += posting.amount;
                }
            }
            for (standing, purse) in [(Standing::Available, account.available()), (Standing::Held, &account.held())] {
                let balance = |bucket| *balances.get(&Account::User { user, standing, bucket }).unwrap_or(&0);
                prop_assert_eq!(Bucket::ALL.map(balance), amounts(purse));
            }
            let users = balances.iter().filter(|(account, _)| account.user().is_some()).map(|(_, balance)| *balance);
            prop_assert!(users.clone().all(|balance| balance >= 0) && users.sum::<i64>() <= POINTS_MAX);
        }
    }

    #[test]
    fn holds_and_spends_give_back_no_more_than_they_took(commands in commands()) {
        let (account, recorded) = live(commands);
        let mut left = BTreeMap::<(&str, Uuid), [i64; 3]>::new();
        for event in &recorded {
            let (of, sign, moved) = match event {
                Event::Held { hold, taken, .. } => (("hold", hold.0), 1, taken),
                Event::Captured { hold, taken, .. } => (("hold", hold.0), -1, taken),
                Event::Released { hold, returned, .. } => (("hold", hold.0), -1, returned),
                Event::Spent { spend, taken, .. } => (("spend", spend.0), 1, taken),
                Event::Refunded { spend, returned, .. } => (("spend", spend.0), -1, returned),
                Event::TipPaid { tip, taken, .. } => (("hold", tip.0), -1, taken),
                Event::PayoutStarted { withdrawal, taken } => {
                    let payout = left.entry(("payout", withdrawal.0)).or_default();
                    prop_assert_eq!(*payout, [0; 3], "a payout starts once");
                    *payout = amounts(taken);
                    (("hold", withdrawal.0), -1, taken)
                }
                Event::PaidOut { withdrawal, points, fee } => {
                    let payout = left.insert(("payout", withdrawal.0), [0; 3]).unwrap_or_default();
                    prop_assert_eq!(payout.iter().sum::<i64>(), points.get() + fee.get());
                    continue;
                }
                Event::PayoutReturned { withdrawal, returned } => {
                    let payout = left.insert(("payout", withdrawal.0), [0; 3]).unwrap_or_default();
                    prop_assert_eq!(payout, amounts(returned));
                    continue;
                }
                Event::CheckedIn { .. } | Event::Earned { .. } | Event::Recharged { .. } => continue,
                Event::TipReceived { .. } => continue,
                Event::Expired { .. } | Event::Adjusted { .. } => continue,
            };
            for (left, amount) in left.entry(of).or_default().iter_mut().zip(amounts(moved)) {
                *left += sign * amount;
                prop_assert!(*left >= 0, "{event:?}");
            }
        }
        left.retain(|(of, _), left| *of == "hold" && *left != [0; 3]);
        let held = [0, 1, 2].map(|bucket| left.values().map(|left| left[bucket]).sum::<i64>());
        prop_assert_eq!(amounts(&account.held()), held);
        let open = account.holds().iter().map(|(hold, Hold { left, .. })| (("hold", hold.0), amounts(left)));
        prop_assert_eq!(open.collect::<BTreeMap<_, _>>(), left);
    }

    #[test]
    fn a_refused_command_changes_nothing_and_an_accepted_one_leaves_nothing_that_expires_twice(
        commands in commands()
    ) {
        let mut account = PointsAccount::default();
        for command in commands {
            let (before, expire) = (account.clone(), Command { at: command.at, action: Expire });
            if handle(&mut account, command).is_err() {
                prop_assert_eq!(&account, &before);
            } else {
                handle(&mut account, expire.clone()).unwrap();
                prop_assert_eq!(handle(&mut account, expire), Ok(vec![]));
            }
        }
    }

    #[test]
    fn an_account_is_the_fold_of_what_was_stored_and_survives_a_snapshot(commands in commands()) {
        let (account, recorded) = live(commands);
        let mut folded = PointsAccount::default();
        for event in recorded {
            let stored = serde_json::to_string(&event).unwrap();
            folded.apply(&serde_json::from_str(&stored).unwrap());
        }
        prop_assert_eq!(&folded, &account);
        let snapshot = serde_json::to_string(&account).unwrap();
        prop_assert_eq!(serde_json::from_str::<PointsAccount>(&snapshot).unwrap(), account);
    }
}
