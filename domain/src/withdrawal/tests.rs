//! Rules as tables: what was, what is asked, what is recorded. What always holds of whole steps, as a property beside a
//! model that is written in another way.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use cqrs_es::test::TestFramework;
use proptest::{collection::vec, prelude::*, sample::select};
use uuid::Uuid;

use super::{allowance::WithdrawalAllowance, *};
use crate::{
    Bucket, Intent, Policy, SpendId, State, StreamId, Streams, WithdrawalId,
    ledger::{Account, Payouts, Standing, postings},
    points_account::Action,
};

const OWNER: UserId = UserId(Uuid::from_u128(1));
const FIRST: UserId = UserId(Uuid::from_u128(2));
const SECOND: UserId = UserId(Uuid::from_u128(3));

fn points(points: i64) -> Points {
    points.try_into().unwrap()
}

fn note(text: &str) -> Note {
    text.to_owned().try_into().unwrap()
}

fn reference(text: &str) -> Reference {
    text.to_owned().try_into().unwrap()
}

fn sealed(text: &str) -> Sealed {
    text.to_owned().try_into().unwrap()
}

fn local() -> Label {
    Label::of("local")
}

/// 10 to 100 points; from 30 on reviewed by one, from 60 on by two; a tenth is kept.
fn policy() -> WithdrawalPolicy {
    WithdrawalPolicy {
        points_min: points(10),
        points_per_day: points(100),
        points_per_month: points(150),
        review_from: points(30),
        two_reviews_from: points(60),
        fee_permille: 100,
        minor_per_100_points: 200,
        currency: Label::of("cny"),
    }
}

fn request(amount: i64) -> Command {
    Command::Request { user: OWNER, points: points(amount), destination: sealed("c2VhbGVk") }
}

fn requested(amount: i64) -> Event {
    let (fee, minor, reviews_needed) = match amount {
        20 => (2, 36, 0),
        30 => (3, 54, 1),
        60 => (6, 108, 2),
        other => panic!("{other} is not in the tables"),
    };
    Event::Requested(Request {
        user: OWNER,
        points: points(amount),
        fee: points(fee),
        money: Money { minor, currency: Label::of("cny") },
        destination: sealed("c2VhbGVk"),
        reviews_needed,
    })
}

fn approve(reviewer: UserId) -> Command {
    Command::Approve { reviewer }
}
fn approved(reviewer: UserId) -> Event {
    Event::Approved { reviewer }
}
fn reject(reviewer: UserId) -> Command {
    Command::Reject { reviewer, reason: note("looks odd").into() }
}
fn rejected(reviewer: UserId) -> Event {
    Event::Rejected { reviewer, reason: note("looks odd"), words: None }
}
fn start(provider: &'static str) -> Command {
    Command::StartPayout { provider: Label::of(provider) }
}
fn started(provider: &'static str) -> Event {
    Event::PayoutStarted { provider: Label::of(provider) }
}
fn settle(text: &str) -> Command {
    Command::Settle { reference: reference(text) }
}
fn paid(text: &str) -> Event {
    Event::Paid { reference: reference(text) }
}
fn fail(text: &str) -> Command {
    Command::Fail { reason: note(text) }
}
fn failed(text: &str) -> Event {
    Event::Failed { reason: note(text), words: None }
}
fn need_attention() -> Command {
    Command::NeedAttention { reason: note("no answer") }
}
fn attention_needed() -> Event {
    Event::AttentionNeeded { reason: note("no answer") }
}
fn resolve_paid(operator: UserId, text: &str) -> Command {
    Command::Resolve { operator, outcome: Outcome::Paid { reference: reference(text) } }
}
fn resolve_failed(operator: UserId) -> Command {
    Command::Resolve { operator, outcome: Outcome::Failed { reason: note("closed account").into() } }
}

/// A column for everything that a withdrawal can be, a row for everything that can be asked. `+` records the event,
/// `.` records nothing and is accepted; `x` not now, `0` never requested, `o` one's own, `s` the same reviewer again,
/// `p` another provider, `m` other contents.
#[test]
fn every_command_meets_every_state() {
    let paying = || vec![requested(20), started("local")];
    let then = |mut given: Vec<Event>, event| {
        given.push(event);
        given
    };
    let states = [
        vec![],
        vec![requested(30)],
        vec![requested(60), approved(FIRST)],
        vec![requested(30), approved(FIRST)],
        paying(),
        then(paying(), attention_needed()),
        then(paying(), paid("po_1")),
        vec![requested(30), rejected(FIRST)],
        vec![requested(30), Event::Cancelled {}],
        then(paying(), failed("closed")),
    ];
    let names = states.clone().map(|events| events.iter().fold(Withdrawal::default(), folded).status());
    assert_eq!(names[0], None);
    let all: BTreeSet<_> = names.into_iter().flatten().collect();
    assert_eq!(all, Status::ALL.into_iter().collect(), "every status has a column");

    let table = [
        ("0ooooooooo", approve(OWNER), None),
        ("0+sxxxxxxx", approve(FIRST), Some(approved(FIRST))),
        ("0++xxxxxxx", approve(SECOND), Some(approved(SECOND))),
        ("0ooooooooo", reject(OWNER), None),
        ("0++xxxxxxx", reject(FIRST), Some(rejected(FIRST))),
        ("0++xxxxx.x", Command::Cancel, Some(Event::Cancelled {})),
        ("0xx+...xx.", start("local"), Some(started("local"))),
        ("0xx+pppxxp", start("http"), Some(started("http"))),
        ("0xxx++.xxx", settle("po_1"), Some(paid("po_1"))),
        ("0xxx++xxxx", settle("po_2"), Some(paid("po_2"))),
        ("0xxx++xxx.", fail("closed"), Some(failed("closed"))),
        ("0xxx++xxx.", fail("for another reason"), Some(failed("for another reason"))),
        ("0xxx+.xxxx", need_attention(), Some(attention_needed())),
        ("0ooooooooo", resolve_paid(OWNER, "po_1"), None),
        ("0ooooooooo", resolve_failed(OWNER), None),
        ("0xxxx+.xxx", resolve_paid(FIRST, "po_1"), Some(paid("po_1"))),
        ("0xxxx+xxxx", resolve_paid(FIRST, "po_2"), Some(paid("po_2"))),
        ("0xxxx+xxx.", resolve_failed(FIRST), Some(failed("closed account"))),
    ];
    for (codes, when, event) in table {
        for (code, given) in codes.chars().zip(&states) {
            let state = given.iter().fold(Withdrawal::default(), folded).status();
            let then = match code {
                '+' => Ok(vec![event.clone().expect("the row has an event")]),
                '.' => Ok(vec![]),
                'x' => Err(Refusal::NotNow { state: state.expect("requested") }),
                '0' => Err(Refusal::NotRequested),
                'o' => Err(Refusal::OwnRequest),
                's' => Err(Refusal::SameReviewer),
                'p' => Err(Refusal::OtherProvider { provider: local() }),
                other => panic!("{other} is no code"),
            };
            check(given.clone(), when.clone(), then);
        }
    }
    // Asked for again it is the same withdrawal, whatever has become of it; with other contents it is none.
    for given in &states[1..] {
        let Event::Requested(Request { points: amount, .. }) = given[0] else { panic!("{given:?}") };
        check(given.clone(), request(amount.get()), Ok(vec![]));
        let other_points = Command::Request { user: OWNER, points: points(21), destination: sealed("c2VhbGVk") };
        let other_user = Command::Request { user: FIRST, points: amount, destination: sealed("c2VhbGVk") };
        let elsewhere = Command::Request { user: OWNER, points: amount, destination: sealed("b3RoZXI") };
        for other in [other_points, other_user, elsewhere] {
            check(given.clone(), other, Err(Refusal::Mismatch));
        }
    }
}

fn folded(mut withdrawal: Withdrawal, event: &Event) -> Withdrawal {
    withdrawal.apply(event);
    withdrawal
}

#[track_caller]
fn check(given: Vec<Event>, when: Command, then: Result<Vec<Event>, Refusal>) {
    let shown = format!("{given:?} {when:?}");
    let result = TestFramework::<Withdrawal>::with(policy()).given(given).when(when).inspect_result();
    assert_eq!(result, then, "{shown}");
}

#[test]
fn as_many_different_reviewers_approve_as_the_amount_asks_for() {
    let status = |events: &[Event]| events.iter().fold(Withdrawal::default(), folded).status().unwrap();
    assert_eq!(status(&[requested(20)]), Status::Approved);
    assert_eq!(status(&[requested(30)]), Status::UnderReview);
    assert_eq!(status(&[requested(30), approved(FIRST)]), Status::Approved);
    assert_eq!(status(&[requested(60), approved(FIRST)]), Status::UnderReview);
    assert_eq!(status(&[requested(60), approved(FIRST), approved(SECOND)]), Status::Approved);
    // Who has approved may still say no before a second one has.
    check(vec![requested(60), approved(FIRST)], reject(FIRST), Ok(vec![rejected(FIRST)]));
}

#[test]
fn a_request_fixes_fee_money_and_reviews() {
    let outside = |policy: &WithdrawalPolicy| {
        let max = policy.points_per_day.min(policy.points_per_month);
        Err(Refusal::AmountOutOfRange { min: policy.points_min, max })
    };
    let free = || WithdrawalPolicy { fee_permille: 0, ..policy() };
    let all_kept = || WithdrawalPolicy { fee_permille: 1_000, ..policy() };
    let cheap = || WithdrawalPolicy { minor_per_100_points: 5, ..policy() };
    let no_minimum = || WithdrawalPolicy { points_min: Points::ZERO, ..policy() };
    let month_first = || WithdrawalPolicy { points_per_month: points(90), ..policy() };
    let without_limit = || WithdrawalPolicy {
        points_per_day: points(900_000_000_000_000),
        points_per_month: points(900_000_000_000_000),
        minor_per_100_points: u32::MAX,
        ..policy()
    };
    // Policy, points; fee, money, reviews.
    let table = [
        (policy(), 10, Ok((1, 18, 0))),
        (policy(), 19, Ok((1, 36, 0))),
        (policy(), 29, Ok((2, 54, 0))),
        (policy(), 30, Ok((3, 54, 1))),
        (policy(), 59, Ok((5, 108, 1))),
        (policy(), 60, Ok((6, 108, 2))),
        (policy(), 100, Ok((10, 180, 2))),
        (policy(), 9, outside(&policy())),
        (policy(), 0, outside(&policy())),
        (policy(), 101, outside(&policy())),
        (month_first(), 91, outside(&month_first())),
        (no_minimum(), 0, outside(&no_minimum())),
        (no_minimum(), 1, Ok((0, 2, 0))),
        (free(), 10, Ok((0, 20, 0))),
        (all_kept(), 10, Err(Refusal::WorthNothing { points: points(10) })),
        (cheap(), 20, Err(Refusal::WorthNothing { points: points(20) })),
        (cheap(), 23, Ok((2, 1, 0))),
        (without_limit(), 900_000_000_000_000, outside(&without_limit())),
    ];
    for (policy, amount, then) in table {
        let decided = Withdrawal::default().decide(&request(amount), &policy);
        let decided = decided.map(|events| match events.as_slice() {
            [Event::Requested(Request { fee, money, reviews_needed, user: OWNER, points: asked, .. })] => {
                assert_eq!(*asked, points(amount));
                (fee.get(), money.minor, *reviews_needed)
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(decided, then, "{amount} {policy:?}");
    }
}

fn withdrawal(number: u128) -> WithdrawalId {
    WithdrawalId(Uuid::from_u128(number))
}

fn day(month: u32, day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, month, day).unwrap()
}

#[test]
fn one_is_open_at_a_time_and_days_and_months_have_their_limits() {
    use allowance::{Command as C, Event as E, Refusal as R};
    let use_ = |number, day, amount| C::Use { withdrawal: withdrawal(number), day, points: points(amount) };
    let used = |number, day, amount| E::Used { withdrawal: withdrawal(number), day, points: points(amount) };
    let give_back = |number| C::GiveBack { withdrawal: withdrawal(number) };
    let given_back = |number| E::GivenBack { withdrawal: withdrawal(number) };
    let close = |number| C::Close { withdrawal: withdrawal(number) };
    let closed = |number| E::Closed { withdrawal: withdrawal(number) };
    let daily = |left| Err(R::DailyLimit { max: points(100), left: points(left) });
    let monthly = |left| Err(R::MonthlyLimit { max: points(150), left: points(left) });
    let jan = |d| day(1, d);
    let paid = |number, on, amount| vec![used(number, on, amount), closed(number)];
    let in_january = || [paid(1, jan(1), 100), paid(2, jan(31), 40)].concat();

    let table = [
        (vec![], use_(1, jan(1), 100), Ok(vec![used(1, jan(1), 100)])),
        (vec![], use_(1, jan(1), 101), daily(100)),
        (vec![used(1, jan(1), 10)], use_(2, jan(1), 10), Err(R::OneIsOpen(withdrawal(1)))),
        (vec![used(1, jan(1), 10)], use_(1, jan(1), 10), Err(R::OneIsOpen(withdrawal(1)))),
        (vec![used(1, jan(1), 10)], give_back(1), Ok(vec![given_back(1)])),
        (vec![used(1, jan(1), 10)], close(1), Ok(vec![closed(1)])),
        (vec![used(1, jan(1), 10)], give_back(2), Err(R::NotOpen(withdrawal(2)))),
        (vec![used(1, jan(1), 10)], close(2), Err(R::NotOpen(withdrawal(2)))),
        (vec![], close(1), Err(R::NotOpen(withdrawal(1)))),
        (paid(1, jan(1), 60), give_back(1), Err(R::NotOpen(withdrawal(1)))),
        (paid(1, jan(1), 60), use_(2, jan(1), 40), Ok(vec![used(2, jan(1), 40)])),
        (paid(1, jan(1), 60), use_(2, jan(1), 41), daily(40)),
        (paid(1, jan(1), 60), use_(2, jan(2), 90), Ok(vec![used(2, jan(2), 90)])),
        (paid(1, jan(1), 60), use_(2, jan(2), 91), monthly(90)),
        // What did not come about counts for nothing.
        (vec![used(1, jan(1), 60), given_back(1)], use_(2, jan(1), 100), Ok(vec![used(2, jan(1), 100)])),
        (in_january(), use_(3, jan(15), 10), Ok(vec![used(3, jan(15), 10)])),
        (in_january(), use_(3, jan(15), 11), monthly(10)),
        (in_january(), use_(3, day(2, 1), 100), Ok(vec![used(3, day(2, 1), 100)])),
        // The same month of another year is another month.
        (
            in_january(),
            use_(3, day(1, 1).with_year(2027).unwrap(), 100),
            Ok(vec![used(3, day(1, 1).with_year(2027).unwrap(), 100)]),
        ),
    ];
    for (given, when, then) in table {
        let shown = format!("{given:?} {when:?}");
        let result = TestFramework::<WithdrawalAllowance>::with(policy()).given(given).when(when).inspect_result();
        assert_eq!(result, then, "{shown}");
    }
}

/// Two months of days with a withdrawal each are remembered, which is more than a limit looks at; no more.
#[test]
fn an_allowance_stays_small() {
    let mut allowance = WithdrawalAllowance::default();
    let mut largest = 0;
    for number in 0..400 {
        let day = day(1, 1).checked_add_days(chrono::Days::new(number)).unwrap();
        let id = withdrawal(u128::from(number));
        for event in [
            allowance::Event::Used { withdrawal: id, day, points: points(1) },
            allowance::Event::Closed { withdrawal: id },
        ] {
            allowance.apply(&event);
        }
        largest = largest.max(allowance.heap_bytes());
    }
    assert_eq!(allowance.heap_bytes(), largest);
    assert!(largest <= 24 * 62);
    let last_month = day(1, 1).checked_add_days(chrono::Days::new(399)).unwrap();
    let use_ = allowance::Command::Use { withdrawal: withdrawal(999), day: last_month, points: points(100) };
    assert_eq!(
        allowance.decide(&use_, &policy()).unwrap_err(),
        allowance::Refusal::DailyLimit { max: points(100), left: points(99) }
    );
}

/// Events are kept for ever, and refusals for as long as keys are.
#[test]
fn stored_events_and_refusals_keep_their_shape() {
    let events = [
        (
            requested(60),
            r#"{"requested":{"user":"00000000-0000-0000-0000-000000000001","points":60,"fee":6,"money":{"minor":108,"currency":"cny"},"destination":"c2VhbGVk","reviews_needed":2}}"#,
        ),
        (approved(FIRST), r#"{"approved":{"reviewer":"00000000-0000-0000-0000-000000000002"}}"#),
        (rejected(FIRST), r#"{"rejected":{"reviewer":"00000000-0000-0000-0000-000000000002","reason":"looks odd"}}"#),
        (Event::Cancelled {}, r#"{"cancelled":{}}"#),
        (started("local"), r#"{"payout_started":{"provider":"local"}}"#),
        (paid("po_1"), r#"{"paid":{"reference":"po_1"}}"#),
        (failed("closed"), r#"{"failed":{"reason":"closed"}}"#),
        (attention_needed(), r#"{"attention_needed":{"reason":"no answer"}}"#),
    ];
    for (event, json) in events {
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<Event>(json).unwrap(), event);
        assert!(json.starts_with(&format!(r#"{{"{}":"#, event.name())));
    }
    let id = withdrawal(1);
    let of_allowance = [
        (
            allowance::Event::Used { withdrawal: id, day: day(1, 31), points: points(60) },
            r#"{"used":{"withdrawal":"00000000-0000-0000-0000-000000000001","day":"2026-01-31","points":60}}"#,
        ),
        (
            allowance::Event::GivenBack { withdrawal: id },
            r#"{"given_back":{"withdrawal":"00000000-0000-0000-0000-000000000001"}}"#,
        ),
        (
            allowance::Event::Closed { withdrawal: id },
            r#"{"closed":{"withdrawal":"00000000-0000-0000-0000-000000000001"}}"#,
        ),
    ];
    for (event, json) in of_allowance {
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<allowance::Event>(json).unwrap(), event);
        assert!(json.starts_with(&format!(r#"{{"{}":"#, event.name())));
    }
    let (max, left) = (points(100), points(7));
    let refusals: [(crate::Refusal, &str); 11] = [
        (
            Refusal::AmountOutOfRange { min: points(10), max }.into(),
            r#"{"withdrawal":{"amount_out_of_range":{"min":10,"max":100}}}"#,
        ),
        (Refusal::WorthNothing { points: left }.into(), r#"{"withdrawal":{"worth_nothing":{"points":7}}}"#),
        (Refusal::Mismatch.into(), r#"{"withdrawal":"mismatch"}"#),
        (Refusal::NotRequested.into(), r#"{"withdrawal":"not_requested"}"#),
        (Refusal::OwnRequest.into(), r#"{"withdrawal":"own_request"}"#),
        (Refusal::SameReviewer.into(), r#"{"withdrawal":"same_reviewer"}"#),
        (
            Refusal::OtherProvider { provider: local() }.into(),
            r#"{"withdrawal":{"other_provider":{"provider":"local"}}}"#,
        ),
        (
            Refusal::NotNow { state: Status::NeedsAttention }.into(),
            r#"{"withdrawal":{"not_now":{"state":"needs_attention"}}}"#,
        ),
        (
            allowance::Refusal::OneIsOpen(id).into(),
            r#"{"withdrawal_allowance":{"one_is_open":"00000000-0000-0000-0000-000000000001"}}"#,
        ),
        (
            allowance::Refusal::DailyLimit { max, left }.into(),
            r#"{"withdrawal_allowance":{"daily_limit":{"max":100,"left":7}}}"#,
        ),
        (
            allowance::Refusal::MonthlyLimit { max, left }.into(),
            r#"{"withdrawal_allowance":{"monthly_limit":{"max":100,"left":7}}}"#,
        ),
    ];
    for (refusal, json) in refusals {
        assert_eq!(serde_json::to_string(&refusal).unwrap(), json);
        assert_eq!(serde_json::from_str::<crate::Refusal>(json).unwrap(), refusal);
    }
    for status in Status::ALL {
        assert_eq!(serde_json::to_string(&status).unwrap(), format!("\"{status}\""));
    }
}

// Whole steps: what each records on the withdrawal, on the allowance and on the account, beside a model.

/// Panics on a stream that the command did not name: so every decision here also proves its `streams()`.
struct Named<'a>(&'a HashMap<StreamId, State>, BTreeSet<StreamId>);

impl Streams for Named<'_> {
    fn state(&self, stream: &StreamId) -> &State {
        assert!(self.1.contains(stream), "{stream:?} was not named");
        &self.0[stream]
    }
}

/// All streams there are, and the books.
#[derive(Default)]
struct Store {
    streams: HashMap<StreamId, State>,
    books: BTreeMap<Account, i64>,
}

impl Store {
    /// What it records: the names of the events.
    fn execute(&mut self, command: &crate::Command) -> Result<Vec<&'static str>, crate::Refusal> {
        let named: BTreeSet<_> = command.streams().into_iter().collect();
        for stream in &named {
            self.streams.entry(*stream).or_insert_with(|| stream.empty());
        }
        let policy = Policy { withdrawals: policy(), ..Policy::default() };
        let recorded = command.decide(&Named(&self.streams, named), &policy)?;
        for (stream, event) in &recorded {
            self.streams.get_mut(stream).unwrap().apply(event);
            let entry = postings(stream, event);
            assert_eq!(entry.iter().map(|posting| posting.amount).sum::<i64>(), 0, "{event:?}");
            for posting in entry {
                *self.books.entry(posting.account).or_default() += posting.amount;
            }
        }
        Ok(recorded.iter().map(|(_, event)| event.event_type()).collect())
    }

    fn book(&self, account: &Account) -> i64 {
        self.books.get(account).copied().unwrap_or_default()
    }
}

fn at(days: i64) -> DateTime<Utc> {
    "2026-01-10T12:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::days(days)
}

fn step(user: UserId, days: i64, number: u128, what: What) -> crate::Command {
    crate::Command { user, at: at(days), intent: Intent::Withdrawal(Step { withdrawal: withdrawal(number), what }) }
}

fn earn(amount: i64) -> Action {
    Action::Earn { bucket: Bucket::Income, points: points(amount), reason: Label::of("task") }
}

fn on_account(days: i64, action: Action) -> crate::Command {
    crate::Command { user: OWNER, at: at(days), intent: Intent::Points(action) }
}

fn wanted(amount: i64) -> What {
    What::Request { points: points(amount), destination: sealed("c2VhbGVk") }
}

#[test]
fn every_step_moves_the_points_along_with_the_withdrawal() {
    let what = |what| move |store: &mut Store| store.execute(&step(OWNER, 0, 1, what));
    let start = || What::StartPayout { provider: local() };
    let settle = || What::Settle { reference: reference("po_1") };
    let fail = || What::Fail { reason: note("closed") };
    let approve = |reviewer| What::Approve { reviewer };
    let table: Vec<(Vec<What>, Vec<&[&str]>)> = vec![
        (
            vec![wanted(20), start(), settle(), settle()],
            vec![&["requested", "used", "held"], &["payout_started"; 2], &["paid", "closed", "paid_out"], &[]],
        ),
        (
            vec![wanted(60), approve(FIRST), approve(SECOND), start(), fail(), fail()],
            vec![
                &["requested", "used", "held"],
                &["approved"],
                &["approved"],
                &["payout_started"; 2],
                &["failed", "given_back", "payout_returned"],
                &[],
            ],
        ),
        (
            vec![wanted(30), What::Reject { reviewer: FIRST, reason: note("odd").into() }],
            vec![&["requested", "used", "held"], &["rejected", "given_back", "released"]],
        ),
        (
            vec![wanted(30), What::Cancel, What::Cancel],
            vec![&["requested", "used", "held"], &["cancelled", "given_back", "released"], &[]],
        ),
        (
            vec![
                wanted(20),
                start(),
                What::NeedAttention { reason: note("no answer") },
                What::Resolve { operator: FIRST, outcome: Outcome::Paid { reference: reference("po_1") } },
            ],
            vec![
                &["requested", "used", "held"],
                &["payout_started"; 2],
                &["attention_needed"],
                &["paid", "closed", "paid_out"],
            ],
        ),
    ];
    for (steps, recorded) in table {
        let mut store = Store::default();
        store.execute(&on_account(0, earn(100))).unwrap();
        for (step, recorded) in steps.into_iter().zip(recorded) {
            let shown = format!("{step:?}");
            assert_eq!(what(step)(&mut store).unwrap(), recorded, "{shown}");
        }
    }
}

/// Income only: points that were bought or given cannot be turned into money.
#[test]
fn only_income_is_withdrawn() {
    let mut store = Store::default();
    for bucket in [Bucket::Promo, Bucket::Paid] {
        let direction = crate::points_account::Direction::Credit;
        let adjust = Action::Adjust { bucket, direction, points: points(500), reason: note("goodwill").into() };
        store.execute(&on_account(0, adjust)).unwrap();
    }
    store.execute(&on_account(0, earn(19))).unwrap();
    let too_few = crate::points_account::Refusal::InsufficientPoints { asked: points(20), available: points(19) };
    assert_eq!(store.execute(&step(OWNER, 0, 1, wanted(20))), Err(too_few.into()));
    store.execute(&on_account(0, earn(1))).unwrap();
    assert!(store.execute(&step(OWNER, 0, 1, wanted(20))).is_ok());
    let income = Account::User { user: OWNER, standing: Standing::Available, bucket: Bucket::Income };
    assert_eq!(store.book(&income), 0);
}

/// What a withdrawal is, written down in another way than the domain does.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Review { missing: usize, approved: BTreeSet<UserId> },
    Ready,
    With { provider: Label, unclear: bool },
    Paid(Reference),
    Over(&'static str, Option<Label>),
}

#[derive(Debug, Default)]
struct Model {
    available: i64,
    phases: BTreeMap<u128, (i64, Phase)>,
    /// Day and points of every withdrawal that counts.
    used: BTreeMap<u128, (NaiveDate, i64)>,
}

/// What is to come of it.
#[derive(Debug, PartialEq)]
enum Verdict {
    Changes,
    Nothing,
    No,
}

impl Model {
    fn open(&self) -> bool {
        self.phases.values().any(|(_, phase)| !matches!(phase, Phase::Paid(_) | Phase::Over(..)))
    }

    fn sum(&self, of: impl Fn(&Phase) -> bool) -> i64 {
        self.phases.values().filter(|(_, phase)| of(phase)).map(|(points, _)| points).sum()
    }

    fn request(&mut self, number: u128, day: NaiveDate, amount: i64) -> Verdict {
        if let Some((points, _)) = self.phases.get(&number) {
            return if *points == amount { Verdict::Nothing } else { Verdict::No };
        }
        let on = |counts: &dyn Fn(NaiveDate) -> bool| {
            self.used.values().filter(|(day, _)| counts(*day)).map(|(_, points)| points).sum::<i64>()
        };
        let day_left = 100 - on(&|used| used == day);
        let month_left = 150 - on(&|used| used.month() == day.month());
        if self.open() || !(10..=100).contains(&amount) || amount > day_left.min(month_left).min(self.available) {
            return Verdict::No;
        }
        let missing = if amount < 30 { 0 } else { 1 + usize::from(amount >= 60) };
        let phase = if missing == 0 { Phase::Ready } else { Phase::Review { missing, approved: BTreeSet::new() } };
        self.phases.insert(number, (amount, phase));
        self.used.insert(number, (day, amount));
        self.available -= amount;
        Verdict::Changes
    }

    fn step(&mut self, number: u128, what: &What) -> Verdict {
        let Some((points, phase)) = self.phases.get_mut(&number) else { return Verdict::No };
        let mut back = false;
        let verdict = match (what, &mut *phase) {
            (What::Approve { reviewer } | What::Reject { reviewer, .. }, _) if *reviewer == OWNER => Verdict::No,
            (What::Resolve { operator, .. }, _) if *operator == OWNER => Verdict::No,
            (What::Approve { reviewer }, Phase::Review { missing, approved }) => {
                if !approved.insert(*reviewer) {
                    return Verdict::No;
                }
                *missing -= 1;
                if *missing == 0 {
                    *phase = Phase::Ready;
                }
                Verdict::Changes
            }
            (What::Reject { .. }, Phase::Review { .. }) => {
                (*phase, back) = (Phase::Over("rejected", None), true);
                Verdict::Changes
            }
            (What::Cancel, Phase::Review { .. }) => {
                (*phase, back) = (Phase::Over("cancelled", None), true);
                Verdict::Changes
            }
            (What::Cancel, Phase::Over("cancelled", _)) => Verdict::Nothing,
            (What::StartPayout { provider }, Phase::Ready) => {
                *phase = Phase::With { provider: provider.clone(), unclear: false };
                Verdict::Changes
            }
            (
                What::StartPayout { provider: asked },
                Phase::With { provider, .. } | Phase::Over("failed", Some(provider)),
            ) => {
                if asked == provider {
                    Verdict::Nothing
                } else {
                    Verdict::No
                }
            }
            // One provider only is asked here; the table above has two.
            (What::StartPayout { .. }, Phase::Paid(_)) => Verdict::Nothing,
            (What::Settle { reference }, Phase::With { .. })
            | (What::Resolve { outcome: Outcome::Paid { reference }, .. }, Phase::With { unclear: true, .. }) => {
                *phase = Phase::Paid(reference.clone());
                Verdict::Changes
            }
            (
                What::Settle { reference } | What::Resolve { outcome: Outcome::Paid { reference }, .. },
                Phase::Paid(paid),
            ) => {
                if reference == paid {
                    Verdict::Nothing
                } else {
                    Verdict::No
                }
            }
            (What::Fail { .. }, Phase::With { provider, .. })
            | (What::Resolve { outcome: Outcome::Failed { .. }, .. }, Phase::With { provider, unclear: true }) => {
                (*phase, back) = (Phase::Over("failed", Some(provider.clone())), true);
                Verdict::Changes
            }
            (What::Fail { .. } | What::Resolve { outcome: Outcome::Failed { .. }, .. }, Phase::Over("failed", _)) => {
                Verdict::Nothing
            }
            (What::NeedAttention { .. }, Phase::With { unclear, .. }) => {
                if std::mem::replace(unclear, true) {
                    Verdict::Nothing
                } else {
                    Verdict::Changes
                }
            }
            _ => Verdict::No,
        };
        if back {
            self.available += *points;
            self.used.remove(&number);
        }
        verdict
    }
}

#[derive(Clone, Debug)]
enum Move {
    Earn(i64),
    Spend(i64),
    Step(UserId, u128, What),
}

fn moves() -> impl Strategy<Value = Vec<(i64, Move)>> {
    let who = || select(vec![OWNER, FIRST, SECOND]);
    let amount = select(vec![9, 10, 20, 29, 30, 59, 60, 99, 100, 101]);
    let text = || select(vec!["po_1", "po_2"]);
    let outcome = prop_oneof![
        text().prop_map(|text| Outcome::Paid { reference: reference(text) }),
        Just(Outcome::Failed { reason: note("closed").into() }),
    ];
    let what = prop_oneof![
        4 => amount.prop_map(wanted),
        4 => who().prop_map(|reviewer| What::Approve { reviewer }),
        1 => who().prop_map(|reviewer| What::Reject { reviewer, reason: note("odd").into() }),
        1 => Just(What::Cancel),
        4 => Just(What::StartPayout { provider: local() }),
        3 => text().prop_map(|text| What::Settle { reference: reference(text) }),
        1 => Just(What::Fail { reason: note("closed") }),
        2 => Just(What::NeedAttention { reason: note("no answer") }),
        2 => (who(), outcome).prop_map(|(operator, outcome)| What::Resolve { operator, outcome }),
    ];
    // Mostly in the owner's name; in another's there is nothing to be found.
    let user = prop_oneof![9 => Just(OWNER), 1 => Just(FIRST)];
    let step =
        (user, 1..4_u128, what).prop_filter_map("nobody else makes the owner's withdrawals", |(user, number, what)| {
            let own = user == OWNER || !matches!(what, What::Request { .. });
            own.then_some(Move::Step(user, number, what))
        });
    let moves = prop_oneof![
        2 => (1..150_i64).prop_map(Move::Earn),
        1 => (1..50_i64).prop_map(Move::Spend),
        12 => step,
    ];
    vec((0..40_i64, moves), 1..80)
}

proptest! {
    /// Commands in any order and repeated: what is accepted, what the account has, what the books say.
    #[test]
    fn whole_steps_do_what_the_model_does(moves in moves()) {
        let (mut store, mut model) = (Store::default(), Model::default());
        let mut spends = 0;
        for (days, asked) in moves {
            let (command, verdict) = match &asked {
                Move::Earn(amount) => {
                    model.available += amount;
                    (on_account(days, earn(*amount)), Verdict::Changes)
                }
                Move::Spend(amount) => {
                    spends += 1;
                    let spend = SpendId(Uuid::from_u128(spends));
                    let enough = *amount <= model.available;
                    model.available -= if enough { *amount } else { 0 };
                    let action = Action::Spend { spend, points: points(*amount), product: Label::of("video") };
                    (on_account(days, action), if enough { Verdict::Changes } else { Verdict::No })
                }
                Move::Step(user, number, what) => {
                    let verdict = if *user != OWNER {
                        Verdict::No
                    } else if let What::Request { points, .. } = what {
                        model.request(*number, at(days).date_naive(), points.get())
                    } else {
                        model.step(*number, what)
                    };
                    (step(*user, days, *number, what.clone()), verdict)
                }
            };
            let decided = match store.execute(&command) {
                Ok(recorded) if recorded.is_empty() => Verdict::Nothing,
                Ok(_) => Verdict::Changes,
                Err(_) => Verdict::No,
            };
            prop_assert_eq!(decided, verdict, "{:?} {:?}", asked, model);

            // The account, the books and the model agree on where every point is.
            let account = StreamId::PointsAccount(OWNER);
            let empty = account.empty();
            let State::PointsAccount(account) = store.streams.get(&account).unwrap_or(&empty) else { unreachable!() };
            let user = |standing| store.book(&Account::User { user: OWNER, standing, bucket: Bucket::Income });
            let held = model.sum(|phase| matches!(phase, Phase::Review { .. } | Phase::Ready));
            let pending = model.sum(|phase| matches!(phase, Phase::With { .. }));
            let paid = model.sum(|phase| matches!(phase, Phase::Paid(_)));
            prop_assert_eq!([account.available().total().get(), account.held().total().get()], [model.available, held]);
            prop_assert_eq!([user(Standing::Available), user(Standing::Held)], [model.available, held]);
            prop_assert_eq!(store.book(&Account::Payouts(Payouts::Pending)), pending);
            let out = store.book(&Account::Payouts(Payouts::Paid)) + store.book(&Account::WithdrawalFee);
            prop_assert_eq!(out, paid);
            prop_assert_eq!(store.books.values().sum::<i64>(), 0);

            let allowance = StreamId::WithdrawalAllowance(OWNER);
            if let Some(State::WithdrawalAllowance(allowance)) = store.streams.get(&allowance) {
                prop_assert_eq!(allowance.open().is_some(), model.open());
            }
            // Nothing is paid that too few others have approved.
            for number in model.phases.keys() {
                let State::Withdrawal(withdrawal) = &store.streams[&StreamId::Withdrawal(withdrawal(*number))] else { unreachable!() };
                let reviewed = &withdrawal.requested.as_ref().unwrap();
                let reviewers: BTreeSet<_> = reviewed.reviewers.iter().filter(|reviewer| **reviewer != OWNER).collect();
                let gone_on = !matches!(reviewed.status, Status::UnderReview | Status::Rejected | Status::Cancelled);
                prop_assert!(!gone_on || reviewers.len() >= usize::from(reviewed.request.reviews_needed));
            }
        }
    }
}
