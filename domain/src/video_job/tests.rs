//! Rules as tables: what was, what is asked, what is recorded. What always holds of whole steps, as a property beside a
//! model that is written in another way.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use cqrs_es::test::TestFramework;
use proptest::{collection::vec, prelude::*};
use uuid::Uuid;

use super::{slots, steps::What, *};
use crate::{
    Bucket, HoldId, Intent, JobId, Policy, Reference, Sealed, State, StreamId, Streams, UserId, ledger::postings,
    points_account::Action as OnAccount,
};

const OWNER: UserId = UserId(Uuid::from_u128(1));
const OTHER: UserId = UserId(Uuid::from_u128(2));

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

fn at(second: i64) -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(second)
}

/// Three attempts, 5 and 10 seconds apart; at most three jobs of at most a minute.
fn policy() -> VideoPolicy {
    VideoPolicy::default()
}

/// As asked: without a price.
fn asked() -> Order {
    Order {
        user: OWNER,
        kind: Kind::TextToVideo,
        seconds: 8,
        resolution: Some(Resolution::P720),
        voice: None,
        provider: None,
        prompt: sealed("c2VhbGVk"),
        priority: 0,
        per_second: Points::ZERO,
    }
}

fn order() -> Order {
    Order { per_second: points(5), ..asked() }
}

fn output(seconds: u32) -> Output {
    Output {
        object: reference("outputs/1.mp4"),
        seconds,
        bytes: 1_000,
        sha256: reference("ab"),
        content_type: reference("video/mp4"),
    }
}

fn cost(micros: u64) -> Cost {
    Cost { micros, currency: Label::of("usd") }
}

fn submitted() -> Event {
    Event::Submitted(order())
}

fn leased(attempt: u32) -> Event {
    Event::Leased { attempt, worker: Label::of("w-1"), provider: Label::of("local") }
}

fn succeeded(attempt: u32, seconds: u32, used: i64) -> Event {
    Event::Succeeded { attempt, output: output(seconds), used: points(used), cost: cost(7) }
}

fn attempt_failed(attempt: u32, retry_at: DateTime<Utc>) -> Event {
    Event::AttemptFailed { attempt, reason: note("broke"), words: None, retry_at, cost: cost(3) }
}

fn failed(attempt: u32, retryable: bool) -> Event {
    Event::Failed { attempt, reason: note("broke"), words: None, retryable, cost: cost(3) }
}

fn submit(order: Order) -> Action {
    Action::Submit(order)
}

fn lease() -> Action {
    Action::Lease { worker: Label::of("w-1"), provider: Label::of("local") }
}

fn complete(attempt: u32, seconds: u32) -> Action {
    Action::Complete { attempt, output: output(seconds), cost: cost(7) }
}

fn fail(attempt: u32, retryable: bool) -> Action {
    Action::FailAttempt { attempt, reason: note("broke").into(), retryable, cost: cost(3) }
}

#[track_caller]
fn check<const GIVEN: usize>(given: [Event; GIVEN], action: Action, expected: Result<Vec<Event>, Refusal>) {
    let result = TestFramework::<VideoJob>::with(policy()).given(given.to_vec()).when(Command { at: at(100), action });
    match expected {
        Ok(events) => result.then_expect_events(events),
        Err(refusal) => result.then_expect_error(refusal),
    }
}

/// Every state that a job can be in, with the history that leads there.
fn histories() -> Vec<(Option<Status>, Vec<Event>)> {
    vec![
        (None, vec![]),
        (Some(Status::Queued), vec![submitted()]),
        (Some(Status::Leased), vec![submitted(), leased(1)]),
        (Some(Status::Queued), vec![submitted(), leased(1), attempt_failed(1, at(5))]),
        (Some(Status::Leased), vec![submitted(), leased(1), attempt_failed(1, at(5)), leased(2)]),
        (Some(Status::Succeeded), vec![submitted(), leased(1), succeeded(1, 8, 40)]),
        (Some(Status::Failed), vec![submitted(), leased(1), failed(1, false)]),
        (Some(Status::Cancelled), vec![submitted(), Event::Cancelled {}]),
        (Some(Status::Cancelled), vec![submitted(), leased(1), Event::Cancelled {}]),
        (Some(Status::Expired), vec![submitted(), Event::Expired {}]),
    ]
}

fn fold(events: &[Event]) -> VideoJob {
    let mut job = VideoJob::default();
    events.iter().for_each(|event| job.apply(event));
    job
}

/// What each state answers to each action, as one table of names. `-` is nothing to record.
#[test]
fn every_state_has_an_answer_to_everything() {
    let actions = [
        ("submit", submit(asked())),
        ("lease", lease()),
        ("complete 1", complete(1, 8)),
        ("fail 1", fail(1, true)),
        ("cancel", Action::Cancel),
        ("expire", Action::Expire),
    ];
    #[rustfmt::skip]
    let table = [
        //                       submit       lease          complete 1     fail 1            cancel           expire
        (0, ["submitted", "NotSubmitted", "NotSubmitted", "NotSubmitted", "NotSubmitted", "NotSubmitted"]),
        (1, ["-", "leased", "StaleAttempt", "StaleAttempt", "cancelled", "expired"]),
        (2, ["-", "NotNow", "succeeded", "attempt_failed", "cancelled", "NotNow"]),
        (3, ["-", "leased", "StaleAttempt", "StaleAttempt", "cancelled", "expired"]),
        (4, ["-", "NotNow", "StaleAttempt", "StaleAttempt", "cancelled", "NotNow"]),
        (5, ["-", "NotNow", "-", "StaleAttempt", "NotNow", "NotNow"]),
        (6, ["-", "NotNow", "StaleAttempt", "StaleAttempt", "NotNow", "NotNow"]),
        (7, ["-", "NotNow", "StaleAttempt", "StaleAttempt", "-", "NotNow"]),
        (8, ["-", "NotNow", "StaleAttempt", "StaleAttempt", "-", "NotNow"]),
        (9, ["-", "NotNow", "StaleAttempt", "StaleAttempt", "NotNow", "-"]),
    ];
    let histories = histories();
    assert_eq!(histories.len(), table.len());
    for (row, expected) in table {
        let (status, history) = &histories[row];
        let job = fold(history);
        assert_eq!(job.status(), *status);
        for ((name, action), expected) in actions.iter().zip(expected) {
            let decided = job.decide(&Command { at: at(100), action: action.clone() }, &policy());
            let told = match &decided {
                Ok(events) if events.is_empty() => "-".to_owned(),
                Ok(events) => events.iter().map(Event::name).collect::<Vec<_>>().join(","),
                Err(refusal) => format!("{refusal:?}").split([' ', '{']).next().unwrap().to_owned(),
            };
            assert_eq!(told, expected, "{name} after {history:?}");
        }
    }
}

#[test]
fn an_order_is_priced_when_it_is_submitted_and_is_the_same_again_whatever_it_costs_by_then() {
    check([], submit(asked()), Ok(vec![submitted()]));
    let dearer = VideoPolicy { video_per_second: BTreeMap::from([(Resolution::P720, points(50))]), ..policy() };
    let again = fold(&[submitted()]).decide(&Command { at: at(0), action: submit(asked()) }, &dearer);
    assert_eq!(again, Ok(vec![]));
    for other in [
        Order { seconds: 9, ..asked() },
        Order { prompt: sealed("b3RoZXI"), ..asked() },
        Order { user: OTHER, ..asked() },
        Order { priority: 1, ..asked() },
        Order { provider: Some(Label::of("local")), ..asked() },
    ] {
        check([submitted()], submit(other), Err(Refusal::Mismatch));
    }
    for (resolution, per_second) in [(Resolution::P480, 3), (Resolution::P720, 5), (Resolution::P1080, 9)] {
        let order = Order { resolution: Some(resolution), ..asked() };
        check([], submit(order.clone()), Ok(vec![Event::Submitted(Order { per_second: points(per_second), ..order })]));
    }
    let speech = Order { kind: Kind::TextToSpeech, resolution: None, voice: Some(Label::of("en")), ..asked() };
    check([], submit(speech.clone()), Ok(vec![Event::Submitted(Order { per_second: points(1), ..speech.clone() })]));

    for seconds in [0, 61, u32::MAX] {
        check([], submit(Order { seconds, ..asked() }), Err(Refusal::SecondsOutOfRange { max: 60 }));
    }
    check([], submit(Order { resolution: None, ..asked() }), Err(Refusal::NotSold));
    check([], submit(Order { resolution: Some(Resolution::P480), ..speech.clone() }), Err(Refusal::NotSold));
    let free = VideoPolicy { speech_per_second: Points::ZERO, video_per_second: BTreeMap::new(), ..policy() };
    for order in [asked(), speech] {
        let refused = VideoJob::default().decide(&Command { at: at(0), action: submit(order) }, &free);
        assert_eq!(refused, Err(Refusal::NotSold), "what costs nothing is not sold");
    }
}

#[test]
fn attempts_are_numbered_and_what_was_used_is_never_more_than_was_ordered() {
    check([submitted()], lease(), Ok(vec![leased(1)]));
    check([submitted(), leased(1), attempt_failed(1, at(5))], lease(), Ok(vec![leased(2)]));
    check([submitted(), leased(1)], complete(1, 0), Err(Refusal::NothingMade));
    let nothing = Action::Complete { attempt: 1, output: Output { bytes: 0, ..output(8) }, cost: cost(7) };
    check([submitted(), leased(1)], nothing, Err(Refusal::NothingMade));
    for (seconds, used) in [(1, 5), (8, 40), (9, 40), (u32::MAX, 40)] {
        check([submitted(), leased(1)], complete(1, seconds), Ok(vec![succeeded(1, seconds, used)]));
    }
    let stale = |attempt, state| Err(Refusal::StaleAttempt { attempt, state });
    let second = [submitted(), leased(1), attempt_failed(1, at(5)), leased(2)];
    check(second.clone(), complete(1, 8), stale(1, Status::Leased));
    check(second.clone(), complete(3, 8), stale(3, Status::Leased));
    check(second.clone(), fail(1, true), stale(1, Status::Leased));
    check(second, complete(2, 8), Ok(vec![succeeded(2, 8, 40)]));
    let over = [submitted(), leased(1), succeeded(1, 8, 40)];
    check(over.clone(), complete(1, 8), Ok(vec![]));
    check(over, complete(1, 7), stale(1, Status::Succeeded));
}

#[test]
fn an_attempt_that_fails_is_tried_again_later_and_later_until_it_was_too_often() {
    check([submitted(), leased(1)], fail(1, true), Ok(vec![attempt_failed(1, at(105))]));
    check([submitted(), leased(2)], fail(2, true), Ok(vec![attempt_failed(2, at(110))]));
    check([submitted(), leased(3)], fail(3, true), Ok(vec![failed(3, true)]));
    check([submitted(), leased(1)], fail(1, false), Ok(vec![failed(1, false)]));
    let waits: Vec<_> = (1..=9).map(|attempt| policy().back_off_s(attempt)).collect();
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(policy().back_off_s(u32::MAX), 300);
    let job = fold(&[submitted(), leased(1)]);
    let end_of_time = Command { at: DateTime::<Utc>::MAX_UTC, action: fail(1, true) };
    assert_eq!(job.decide(&end_of_time, &policy()), Err(Refusal::TimeOutOfRange));
}

#[test]
fn slots_are_taken_once_and_freed_once() {
    let job = |number: u128| JobId(Uuid::from_u128(number));
    let taken = |number| slots::Event::Taken { job: job(number) };
    let check = |given: Vec<slots::Event>, command, expected: Result<Vec<slots::Event>, slots::Refusal>| {
        let result = TestFramework::<VideoSlots>::with(policy()).given(given).when(command);
        match expected {
            Ok(events) => result.then_expect_events(events),
            Err(refusal) => result.then_expect_error(refusal),
        }
    };
    let (take, free) =
        (|number| slots::Command::Take { job: job(number) }, |number| slots::Command::Free { job: job(number) });
    check(vec![], take(1), Ok(vec![taken(1)]));
    check(vec![taken(1)], take(1), Ok(vec![]));
    check(vec![taken(1), taken(2), taken(3)], take(4), Err(slots::Refusal::TooManyInFlight { max: 3 }));
    check(vec![taken(1), taken(2), taken(3)], take(3), Ok(vec![]));
    check(vec![taken(1)], free(1), Ok(vec![slots::Event::Freed { job: job(1) }]));
    check(vec![], free(1), Ok(vec![]));
    let freed = slots::Event::Freed { job: job(1) };
    check(vec![taken(1), taken(2), taken(3), freed], take(4), Ok(vec![taken(4)]));
}

/// Events are kept for ever: these are read in every version to come.
#[test]
fn events_keep_their_json() {
    let id = "00000000-0000-0000-0000-000000000001";
    let full = Order {
        voice: Some(Label::of("en")),
        provider: Some(Label::of("local")),
        kind: Kind::TextToSpeech,
        resolution: None,
        ..order()
    };
    let table = [
        (
            submitted(),
            format!(r#"{{"submitted":{{"user":"{id}","kind":"text_to_video","seconds":8,"resolution":"720p","prompt":"c2VhbGVk","priority":0,"per_second":5}}}}"#),
        ),
        (
            Event::Submitted(full),
            format!(r#"{{"submitted":{{"user":"{id}","kind":"text_to_speech","seconds":8,"voice":"en","provider":"local","prompt":"c2VhbGVk","priority":0,"per_second":5}}}}"#),
        ),
        (leased(1), r#"{"leased":{"attempt":1,"worker":"w-1","provider":"local"}}"#.to_owned()),
        (
            succeeded(1, 8, 40),
            r#"{"succeeded":{"attempt":1,"output":{"object":"outputs/1.mp4","seconds":8,"bytes":1000,"sha256":"ab","content_type":"video/mp4"},"used":40,"cost":{"micros":7,"currency":"usd"}}}"#.to_owned(),
        ),
        (
            attempt_failed(1, at(5)),
            r#"{"attempt_failed":{"attempt":1,"reason":"broke","retry_at":"2026-01-01T00:00:05Z","cost":{"micros":3,"currency":"usd"}}}"#.to_owned(),
        ),
        (
            failed(1, false),
            r#"{"failed":{"attempt":1,"reason":"broke","retryable":false,"cost":{"micros":3,"currency":"usd"}}}"#.to_owned(),
        ),
        (Event::Cancelled {}, r#"{"cancelled":{}}"#.to_owned()),
        (Event::Expired {}, r#"{"expired":{}}"#.to_owned()),
    ];
    for (event, json) in table {
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        assert!(json.starts_with(&format!(r#"{{"{}""#, event.name())));
    }
    let job = JobId(Uuid::from_u128(1));
    for (event, json) in [
        (slots::Event::Taken { job }, format!(r#"{{"taken":{{"job":"{id}"}}}}"#)),
        (slots::Event::Freed { job }, format!(r#"{{"freed":{{"job":"{id}"}}}}"#)),
    ] {
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<slots::Event>(&json).unwrap(), event);
    }
    assert_eq!(worker_lost().as_str(), "its worker was not heard of for too long");
}

/// Panics on a stream that the command did not name: so every decision here also proves its `streams()`.
struct Named<'a>(HashMap<StreamId, &'a State>);

impl Streams for Named<'_> {
    fn state(&self, stream: &StreamId) -> &State {
        self.0[stream]
    }
}

/// One thing that may happen, to one of a few jobs.
#[derive(Clone, Debug)]
enum Move {
    Submit { seconds: u32 },
    Lease,
    Complete { attempt: u32, seconds: u32 },
    Fail { attempt: u32, retryable: bool },
    Cancel,
    Expire,
}

fn moves() -> impl Strategy<Value = Vec<(u8, Move)>> {
    let attempt = 0_u32..5;
    let one = prop_oneof![
        3 => (1_u32..=10).prop_map(|seconds| Move::Submit { seconds }),
        4 => Just(Move::Lease),
        3 => (attempt.clone(), 0_u32..12).prop_map(|(attempt, seconds)| Move::Complete { attempt, seconds }),
        3 => (attempt, any::<bool>()).prop_map(|(attempt, retryable)| Move::Fail { attempt, retryable }),
        1 => Just(Move::Cancel),
        1 => Just(Move::Expire),
    ];
    vec((0_u8..5, one), 0..80)
}

/// A job as a person would keep it on paper.
#[derive(Clone, Debug)]
struct OnPaper {
    seconds: u32,
    running: Option<u32>,
    attempts: u32,
    /// What it ended with: points paid.
    over: Option<i64>,
    made: Option<(u32, u32)>,
}

proptest! {
    /// Whatever is asked in whatever order, however often, and by whichever attempt: slots, holds and money are as on
    /// paper.
    #[test]
    fn steps_are_as_on_paper(moves in moves(), start in 0_i64..200) {
        let policy = Policy::default();
        let mut streams = HashMap::<StreamId, State>::new();
        let mut paper = BTreeMap::<u8, OnPaper>::new();
        let mut balance = start;
        let mut sum = 0_i64;
        let account = StreamId::PointsAccount(OWNER);
        let mut run = |streams: &mut HashMap<StreamId, State>, command: &crate::Command| {
            for stream in command.streams() {
                streams.entry(stream).or_insert_with(|| stream.empty());
            }
            let named = Named(command.streams().into_iter().map(|stream| (stream, &streams[&stream])).collect());
            let decided = command.decide(&named, &policy);
            if let Ok(events) = &decided {
                for (stream, event) in events {
                    for posting in postings(stream, event) {
                        sum += posting.amount;
                    }
                    assert_eq!(sum, 0);
                    streams.get_mut(stream).unwrap().apply(event);
                }
            }
            decided
        };
        if start > 0 {
            let earn = OnAccount::Earn { bucket: Bucket::Income, points: points(start), reason: Label::of("views") };
            run(&mut streams, &crate::Command { user: OWNER, at: at(0), intent: Intent::Points(earn) }).unwrap();
        }
        for (second, (number, asked)) in (1..).zip(moves) {
            let job = JobId(Uuid::from_u128(u128::from(number) + 10));
            let what = match asked.clone() {
                Move::Submit { seconds } => What::Submit {
                    kind: Kind::TextToVideo, seconds, resolution: Some(Resolution::P720), voice: None, provider: None,
                    prompt: sealed("c2VhbGVk"), priority: 0,
                },
                Move::Lease => What::Lease { worker: Label::of("w"), provider: Label::of("p") },
                Move::Complete { attempt, seconds } => What::Complete { attempt, output: output(seconds), cost: cost(1) },
                Move::Fail { attempt, retryable } => What::FailAttempt { attempt, reason: note("broke").into(), retryable, cost: cost(1) },
                Move::Cancel => What::Cancel,
                Move::Expire => What::Expire,
            };
            let command = |user| crate::Command { user, at: at(second), intent: Intent::VideoJob(Step { job, what: what.clone() }) };
            // In another's name nothing happens to a job that there is.
            if paper.contains_key(&number) {
                prop_assert!(run(&mut streams, &command(OTHER)).is_err());
            }
            let accepted = run(&mut streams, &command(OWNER)).is_ok();

            let open = paper.values().filter(|paper| paper.over.is_none()).count();
            let expected = match (paper.get_mut(&number), asked) {
                (None, Move::Submit { seconds }) => {
                    let fits = open < 3 && i64::from(seconds) * 5 <= balance;
                    if fits {
                        balance -= i64::from(seconds) * 5;
                        paper.insert(number, OnPaper { seconds, running: None, attempts: 0, over: None, made: None });
                    }
                    fits
                }
                (None, _) => false,
                (Some(paper), Move::Submit { seconds }) => seconds == paper.seconds,
                (Some(paper), Move::Lease) => {
                    let waits = paper.over.is_none() && paper.running.is_none();
                    if waits {
                        paper.attempts += 1;
                        paper.running = Some(paper.attempts);
                    }
                    waits
                }
                (Some(paper), Move::Complete { attempt, seconds }) => {
                    if paper.running == Some(attempt) && seconds > 0 {
                        let paid = i64::from(seconds.min(paper.seconds)) * 5;
                        balance += i64::from(paper.seconds) * 5 - paid;
                        (paper.running, paper.over, paper.made) = (None, Some(paid), Some((attempt, seconds)));
                        true
                    } else {
                        paper.made == Some((attempt, seconds))
                    }
                }
                (Some(paper), Move::Fail { attempt, retryable }) => {
                    let runs = paper.running == Some(attempt);
                    if runs {
                        paper.running = None;
                        if !retryable || attempt >= 3 {
                            balance += i64::from(paper.seconds) * 5;
                            paper.over = Some(0);
                        }
                    }
                    runs
                }
                (Some(paper), Move::Cancel | Move::Expire) if paper.over.is_none() => {
                    let ends = matches!(what, What::Cancel) || paper.running.is_none();
                    if ends {
                        balance += i64::from(paper.seconds) * 5;
                        (paper.running, paper.over) = (None, Some(0));
                    }
                    ends
                }
                // Taken back, or expired, already: said again it is the same, said otherwise it is refused.
                (Some(_), Move::Cancel | Move::Expire) => accepted,
            };
            prop_assert_eq!(accepted, expected);

            let jobs = || paper.iter().filter(|(_, paper)| paper.over.is_none());
            let name = |number: &u8| JobId(Uuid::from_u128(u128::from(*number) + 10));
            if let Some(State::VideoSlots(slots)) = streams.get(&StreamId::VideoSlots(OWNER)) {
                prop_assert_eq!(slots.taken().clone(), jobs().map(|(number, _)| name(number)).collect::<BTreeSet<_>>());
            }
            if let Some(State::PointsAccount(account)) = streams.get(&account) {
                prop_assert_eq!(account.available().total().get(), balance);
                let holds: BTreeMap<_, _> = account.holds().iter().map(|(hold, held)| (*hold, held.left.total().get())).collect();
                let open: BTreeMap<_, _> = jobs().map(|(number, paper)| (HoldId(name(number).0), i64::from(paper.seconds) * 5)).collect();
                prop_assert_eq!(holds, open);
                let paid: i64 = paper.values().filter_map(|paper| paper.over).sum();
                prop_assert_eq!(account.available().total().get() + account.held().total().get() + paid, start);
            }
        }
    }
}
