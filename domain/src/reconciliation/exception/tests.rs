//! Rules as tables.

use cqrs_es::test::TestFramework;

use super::*;

const OWNER: UserId = UserId(Uuid::from_u128(1));
const OPERATOR: UserId = UserId(Uuid::from_u128(2));
const OTHER: UserId = UserId(Uuid::from_u128(3));

fn run(run: u128) -> ReconciliationId {
    ReconciliationId(Uuid::from_u128(run))
}

fn figures(amount: i64) -> Figures {
    let reference = Some(reference("po_1"));
    Figures { amount, currency: Some("cny".parse().unwrap()), status: PAID.parse().unwrap(), reference }
}

fn differs(in_run: u128, ours: i64) -> Found {
    Found {
        kind: Kind::Payouts,
        provider: "acme".parse().unwrap(),
        run: run(in_run),
        subject: Uuid::from_u128(9),
        user: Some(OWNER),
        difference: Difference::Amount,
        ours: Some(figures(ours)),
        theirs: Some(figures(100)),
        line: Some(2),
        at: Some(day(2)),
    }
}

fn day(day: u32) -> DateTime<Utc> {
    chrono::NaiveDate::from_ymd_opt(2026, 1, day).unwrap().and_time(chrono::NaiveTime::MIN).and_utc()
}

fn reference(name: &str) -> Reference {
    Reference::try_from(name.to_owned()).unwrap()
}

fn explain_by(of_day: u32, name: &str) -> Command {
    Command::Explain { run: run(2), by: Agreement { at: day(of_day), reference: Some(reference(name)) } }
}

/// As the provider said it: the finding of before.
fn as_said(of_day: u32, status: &str, name: Option<&str>) -> Found {
    let theirs = Figures { status: status.parse().unwrap(), reference: name.map(reference), ..figures(100) };
    Found { difference: Difference::Status, theirs: Some(theirs), at: Some(day(of_day)), ..differs(1, 90) }
}

fn resolve(operator: UserId, outcome: Outcome) -> Command {
    Command::Resolve { operator, outcome, reason: Note::of("a typing mistake").into() }
}

fn resolved() -> Event {
    let reason = Note::of("a typing mistake");
    Event::Resolved { operator: OPERATOR, outcome: Outcome::Accepted, reason, words: None }
}

#[test]
fn it_is_open_until_a_person_resolves_it_once_or_a_later_file_explains_it() {
    use Outcome::{Accepted, CorrectedHere};
    let found = |in_run, ours| Event::Found(differs(in_run, ours));
    let find = |in_run, ours| Command::Find(differs(in_run, ours));
    let explain = || explain_by(2, "po_1");
    let explained = || Event::Explained { run: run(2) };
    let not_open = |state| Err(Refusal::NotOpen { state });
    let table = [
        (vec![], find(1, 90), Ok(vec![found(1, 90)])),
        (vec![], explain(), Ok(vec![])),
        (vec![], resolve(OPERATOR, Accepted), Err(Refusal::NotFound)),
        // The same in an overlapping file, and other figures in a later one.
        (vec![found(1, 90)], find(2, 90), Ok(vec![])),
        (vec![found(1, 90)], find(2, 91), Ok(vec![found(2, 91)])),
        (vec![found(1, 90)], explain(), Ok(vec![explained()])),
        (vec![found(1, 90)], resolve(OPERATOR, Accepted), Ok(vec![resolved()])),
        (vec![found(1, 90)], resolve(OWNER, Accepted), Err(Refusal::OwnException)),
        (vec![found(1, 90), resolved()], find(2, 90), Ok(vec![])),
        (vec![found(1, 90), resolved()], find(2, 91), Ok(vec![found(2, 91)])),
        (vec![found(1, 90), resolved()], explain(), Ok(vec![])),
        (vec![found(1, 90), resolved()], resolve(OPERATOR, Accepted), Ok(vec![])),
        (vec![found(1, 90), resolved()], resolve(OPERATOR, CorrectedHere), not_open(State::Resolved)),
        (vec![found(1, 90), resolved()], resolve(OTHER, Accepted), not_open(State::Resolved)),
        (vec![found(1, 90), explained()], find(3, 90), Ok(vec![found(3, 90)])),
        (vec![found(1, 90), explained()], explain(), Ok(vec![])),
        (vec![found(1, 90), explained()], resolve(OPERATOR, Accepted), not_open(State::Explained)),
        // Open again: what was said before no longer counts.
        (vec![found(1, 90), resolved(), found(2, 91)], resolve(OPERATOR, Accepted), Ok(vec![resolved()])),
        (
            vec![found(1, 90), resolved(), found(2, 91), explained()],
            resolve(OPERATOR, Accepted),
            not_open(State::Explained),
        ),
    ];
    for (given, when, then) in table {
        let told = format!("{given:?} {when:?}");
        let result = TestFramework::<ReconciliationException>::with(()).given(given).when(when).inspect_result();
        assert_eq!(result, then, "{told}");
    }
}

#[test]
fn only_a_line_of_the_same_payment_that_was_said_no_earlier_explains() {
    let missing =
        || Found { difference: Difference::MissingInFile, theirs: None, line: None, at: None, ..differs(1, 90) };
    let repeated = || Found { difference: Difference::Repeated, ..differs(1, 90) };
    let undated = || Found { at: None, ..differs(1, 90) };
    let paid = |of_day, name| as_said(of_day, PAID, Some(name));
    let table = [
        (vec![missing()], (1, "po_1"), true),
        (vec![paid(2, "po_1")], (2, "po_1"), true),
        (vec![paid(2, "po_1")], (3, "po_1"), true),
        (vec![paid(2, "po_1")], (1, "po_1"), false),
        // Paid twice.
        (vec![paid(2, "po_2")], (3, "po_1"), false),
        (vec![paid(2, "po_2"), paid(3, "po_1")], (4, "po_1"), false),
        // What it was called before it was paid is no payment.
        (vec![as_said(2, "declined", Some("po_2"))], (3, "po_1"), true),
        (vec![as_said(2, "declined", None)], (1, "po_1"), false),
        // An older file was found after a newer one.
        (vec![paid(3, "po_1"), as_said(1, "pending", None)], (2, "po_1"), false),
        (vec![repeated()], (9, "po_1"), false),
        (vec![repeated(), missing()], (9, "po_1"), false),
        (vec![undated()], (9, "po_1"), false),
    ];
    for (given, (of_day, name), is_explained) in table {
        let told = format!("{given:?} {of_day} {name}");
        let given = given.into_iter().map(Event::Found).collect();
        let when = explain_by(of_day, name);
        let result = TestFramework::<ReconciliationException>::with(()).given(given).when(when).inspect_result();
        assert_eq!(result.unwrap().len(), usize::from(is_explained), "{told}");
    }
    // What was said before it was over last does not count any more.
    let found = |found| Event::Found(found);
    let given = vec![found(repeated()), resolved(), found(paid(3, "po_1"))];
    let result = TestFramework::<ReconciliationException>::with(());
    let result = result.given(given).when(explain_by(3, "po_1")).inspect_result();
    assert_eq!(result, Ok(vec![Event::Explained { run: run(2) }]));
    // The same, said again later, is kept while it is open: what was said in between explains nothing.
    for (given, when, then) in [
        (vec![found(paid(2, "po_1"))], paid(4, "po_1"), vec![found(paid(4, "po_1"))]),
        (vec![found(paid(4, "po_1"))], paid(2, "po_1"), vec![]),
        (vec![found(paid(2, "po_1")), resolved()], paid(4, "po_1"), vec![]),
    ] {
        let result = TestFramework::<ReconciliationException>::with(());
        let result = result.given(given).when(Command::Find(when)).inspect_result();
        assert_eq!(result, Ok(then));
    }
}

#[test]
fn stored_events_keep_their_shape() {
    let unknown = Found {
        user: None,
        ours: None,
        line: None,
        at: None,
        difference: Difference::MissingInLedger,
        theirs: Some(Figures { currency: None, reference: None, ..figures(5) }),
        ..differs(1, 1)
    };
    let before = Found { at: None, ..differs(7, 90) };
    let table = [
        (
            Event::Found(before),
            r#"{"found":{"kind":"payouts","provider":"acme","run":"00000000-0000-0000-0000-000000000007","subject":"00000000-0000-0000-0000-000000000009","user":"00000000-0000-0000-0000-000000000001","difference":"amount","ours":{"amount":90,"currency":"cny","status":"paid","reference":"po_1"},"theirs":{"amount":100,"currency":"cny","status":"paid","reference":"po_1"},"line":2}}"#,
        ),
        (
            Event::Found(differs(7, 90)),
            r#"{"found":{"kind":"payouts","provider":"acme","run":"00000000-0000-0000-0000-000000000007","subject":"00000000-0000-0000-0000-000000000009","user":"00000000-0000-0000-0000-000000000001","difference":"amount","ours":{"amount":90,"currency":"cny","status":"paid","reference":"po_1"},"theirs":{"amount":100,"currency":"cny","status":"paid","reference":"po_1"},"line":2,"at":"2026-01-02T00:00:00Z"}}"#,
        ),
        (
            Event::Found(unknown),
            r#"{"found":{"kind":"payouts","provider":"acme","run":"00000000-0000-0000-0000-000000000001","subject":"00000000-0000-0000-0000-000000000009","difference":"missing_in_ledger","theirs":{"amount":5,"status":"paid"}}}"#,
        ),
        (Event::Explained { run: run(2) }, r#"{"explained":{"run":"00000000-0000-0000-0000-000000000002"}}"#),
        (
            resolved(),
            r#"{"resolved":{"operator":"00000000-0000-0000-0000-000000000002","outcome":"accepted","reason":"a typing mistake"}}"#,
        ),
    ];
    for (event, stored) in table {
        assert_eq!(serde_json::to_string(&event).unwrap(), stored);
        assert_eq!(serde_json::from_str::<Event>(stored).unwrap(), event);
    }
}
