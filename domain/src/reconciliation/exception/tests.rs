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
    let reference = Some(Reference::try_from("po_1".to_owned()).unwrap());
    Figures { amount, currency: Some("cny".parse().unwrap()), status: "paid".parse().unwrap(), reference }
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
    }
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
    let explain = || Command::Explain { run: run(2) };
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
fn stored_events_keep_their_shape() {
    let unknown = Found {
        user: None,
        ours: None,
        line: None,
        difference: Difference::MissingInLedger,
        theirs: Some(Figures { currency: None, reference: None, ..figures(5) }),
        ..differs(1, 1)
    };
    let table = [
        (
            Event::Found(differs(7, 90)),
            r#"{"found":{"kind":"payouts","provider":"acme","run":"00000000-0000-0000-0000-000000000007","subject":"00000000-0000-0000-0000-000000000009","user":"00000000-0000-0000-0000-000000000001","difference":"amount","ours":{"amount":90,"currency":"cny","status":"paid","reference":"po_1"},"theirs":{"amount":100,"currency":"cny","status":"paid","reference":"po_1"},"line":2}}"#,
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
