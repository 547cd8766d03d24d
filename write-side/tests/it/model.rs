//! Whatever is sent, in whatever order, through one node or two: the log reads as if the commands had come one at a
//! time, and every answer was right at some moment between question and answer.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
};

use chrono::TimeDelta;
use futures::{StreamExt, stream};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use skyriff_domain::{
    Bucket, Event, HoldId, Intent, OrderId, Policy, Refusal, SpendId, State, StreamId, Streams, UserId,
    points_account::{Action, Direction},
};
use skyriff_write_side::{Failure, Receipt, Recorded, Submission, commands::Limits};
use uuid::Uuid;

use crate::store::{Logged, Store, assert_in_log, command, noon, points, recharge, some_user};

pub(crate) const USERS: usize = 3;

/// A command, but for whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    pub(crate) user: usize,
    /// Some are later than others, and some so late that everything is over.
    pub(crate) hours: i64,
    /// Sent once more, this many commands later.
    pub(crate) again_after: Option<usize>,
    pub(crate) wish: Wish,
}

/// With small numbers for ids, so that commands meet.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    CheckIn,
    Earn(Bucket, i64),
    Recharge(u128, i64),
    Spend(u128, i64),
    Refund(u128, Option<i64>),
    Hold(u128, i64, Option<u32>),
    Capture(u128, Option<i64>),
    Release(u128),
    Expire,
    Adjust(Bucket, bool, i64),
}

pub(crate) fn sketch() -> impl Strategy<Value = Sketch> {
    let bucket = || proptest::sample::select(Bucket::ALL.to_vec());
    let wish = prop_oneof![
        Just(Wish::CheckIn),
        Just(Wish::Expire),
        (bucket(), 0..60_i64).prop_map(|(bucket, points)| Wish::Earn(bucket, points)),
        (0..4_u128, 1..3_i64).prop_map(|(order, points)| Wish::Recharge(order, points)),
        (0..8_u128, 0..80_i64).prop_map(|(spend, points)| Wish::Spend(spend, points)),
        (0..8_u128, option::of(0..80_i64)).prop_map(|(spend, points)| Wish::Refund(spend, points)),
        (0..4_u128, 0..80_i64, option::of(0..100_000_u32)).prop_map(|(hold, points, s)| Wish::Hold(hold, points, s)),
        (0..4_u128, option::of(0..80_i64)).prop_map(|(hold, points)| Wish::Capture(hold, points)),
        (0..4_u128).prop_map(Wish::Release),
        (bucket(), any::<bool>(), 0..40_i64).prop_map(|(bucket, up, points)| Wish::Adjust(bucket, up, points)),
    ];
    let hours = prop_oneof![20 => 0..72_i64, 1 => Just(24 * 400)];
    (0..USERS, hours, option::weighted(0.2, 0..20_usize), wish).prop_map(|(user, hours, again_after, wish)| Sketch {
        user,
        hours,
        again_after,
        wish,
    })
}

pub(crate) fn submission(sketch: &Sketch, key: usize, users: &[UserId]) -> Submission {
    let user = users[sketch.user];
    let (key, at) = (format!("{user} {key}"), noon() + TimeDelta::hours(sketch.hours));
    let id = |number: u128| Uuid::from_u128(user.0.as_u128().wrapping_add(number));
    let action = match &sketch.wish {
        Wish::Recharge(order, amount) => {
            let intent = recharge(OrderId(id(*order)), *amount);
            return command(&key, user, at, intent);
        }
        Wish::CheckIn => Action::CheckIn,
        Wish::Expire => Action::Expire,
        Wish::Earn(bucket, amount) => {
            Action::Earn { bucket: *bucket, points: points(*amount), reason: "task".parse().unwrap() }
        }
        Wish::Spend(spend, amount) => {
            Action::Spend { spend: SpendId(id(*spend)), points: points(*amount), product: "video".parse().unwrap() }
        }
        Wish::Refund(spend, amount) => Action::Refund { spend: SpendId(id(*spend)), points: amount.map(points) },
        Wish::Hold(hold, amount, lifetime_s) => Action::Hold {
            hold: HoldId(id(*hold)),
            points: points(*amount),
            lifetime_s: *lifetime_s,
            reason: "video".parse().unwrap(),
        },
        Wish::Capture(hold, amount) => Action::Capture { hold: HoldId(id(*hold)), points: amount.map(points) },
        Wish::Release(hold) => Action::Release { hold: HoldId(id(*hold)) },
        Wish::Adjust(bucket, up, amount) => Action::Adjust {
            bucket: *bucket,
            direction: if *up { Direction::Credit } else { Direction::Debit },
            points: points(*amount),
            reason: "test".to_owned().try_into().unwrap(),
        },
    };
    command(&key, user, at, Intent::Points(action))
}

/// The streams of one user, without anything around them.
#[derive(Clone, Default)]
pub(crate) struct Model(pub(crate) HashMap<StreamId, State>);

impl Streams for Model {
    fn state(&self, stream: &StreamId) -> &State {
        self.0.get(stream).expect("named")
    }
}

impl Model {
    pub(crate) fn decide(&self, submission: &Submission) -> Result<Vec<(StreamId, Event)>, Refusal> {
        let mut named = self.clone();
        for stream in submission.command.streams() {
            named.0.entry(stream).or_insert_with(|| stream.empty());
        }
        submission.command.decide(&named, &Policy::default())
    }

    /// What a command should be answered: what it records, stream by stream, or why not.
    pub(crate) fn answer(&self, submission: &Submission) -> Result<Vec<(StreamId, String)>, Failure> {
        let events = self.decide(submission).map_err(Failure::Refused)?;
        Ok(events.into_iter().map(|(stream, event)| (stream, event.payload().unwrap())).collect())
    }

    pub(crate) fn apply(&mut self, events: &[(StreamId, Event)]) {
        for (stream, event) in events {
            self.0.entry(*stream).or_insert_with(|| stream.empty()).apply(event);
        }
    }
}

/// What a command was answered, as [`Model::answer`] has it.
pub(crate) fn answered(answer: Result<Receipt, Failure>) -> Result<Vec<(StreamId, String)>, Failure> {
    Ok(answer?.recorded.into_iter().map(|recorded| (recorded.stream, recorded.payload)).collect())
}

/// A command, when it was sent and answered (in ticks of one clock), and what the answer was.
struct Asked {
    submission: Submission,
    sent: u64,
    answered: u64,
    answer: Result<Receipt, Failure>,
}

fn check_user(log: &[Logged], user: UserId, asked: &[&Asked]) -> Result<(), TestCaseError> {
    let mut recorded: BTreeMap<_, (Uuid, Vec<(StreamId, Event)>)> = BTreeMap::new();
    for logged in log {
        let of_user = asked.iter().any(|asked| asked.submission.id.0 == logged.command());
        if of_user {
            let first = recorded.last_entry().filter(|last| last.get().0 == logged.command());
            match first {
                Some(mut last) => last.get_mut().1.push((logged.stream(), logged.event())),
                None => {
                    recorded.insert(logged.at(), (logged.command(), vec![(logged.stream(), logged.event())]));
                }
            }
        }
    }
    // The user's state after each of the commands that recorded something.
    let mut states = vec![Model::default()];
    let mut places = HashMap::new();
    for (id, events) in recorded.into_values() {
        let asked = asked.iter().find(|asked| asked.submission.id.0 == id).unwrap();
        let mut state = states.last().unwrap().clone();
        prop_assert_eq!(state.decide(&asked.submission), Ok(events.clone()), "{:?}", asked.submission.command);
        state.apply(&events);
        states.push(state);
        places.insert(id, states.len() - 1);
    }
    for one in asked {
        let id = one.submission.id.0;
        let said = match &one.answer {
            Ok(receipt) if receipt.recorded.is_empty() && receipt.replayed => continue,
            Ok(receipt) if receipt.recorded.is_empty() => Ok(Vec::new()),
            Ok(receipt) => {
                assert_in_log(log, receipt);
                prop_assert!(places.contains_key(&id));
                continue;
            }
            Err(Failure::RefusedBefore(_)) => continue,
            Err(Failure::Refused(refusal)) => Err(refusal.clone()),
            Err(failure) => return Err(TestCaseError::fail(format!("{user}: {failure}"))),
        };
        let place = |other: &&Asked| places.get(&other.submission.id.0).copied();
        let before = asked.iter().filter(|other| other.answered < one.sent && other.answer.is_ok());
        let earliest = before.filter_map(place).max().unwrap_or_default();
        let latest = asked.iter().filter(|other| other.sent < one.answered).filter_map(place).max().unwrap_or_default();
        prop_assert!(!places.contains_key(&id), "refused, and recorded: {:?}", one.submission.command);
        let right = states[earliest..=latest.max(earliest)].iter().any(|state| state.decide(&one.submission) == said);
        prop_assert!(right && earliest <= latest, "{:?} was answered {said:?}", one.submission.command);
    }
    Ok(())
}

/// What was said to a command, and whether it was said for the first time.
fn first_answer(answer: &Result<Receipt, Failure>) -> (Result<&[Recorded], Failure>, bool) {
    match answer {
        Ok(receipt) => (Ok(&receipt.recorded), !receipt.replayed),
        Err(Failure::RefusedBefore(refusal)) => (Err(Failure::Refused(refusal.clone())), false),
        Err(failure) => (Err(failure.clone()), true),
    }
}

async fn run_case(
    store: &Store,
    sketches: &[Sketch],
    nodes: usize,
    in_flight: usize,
    forgetful: bool,
) -> Result<(), TestCaseError> {
    let users: Vec<_> = (0..USERS).map(|_| some_user()).collect();
    let limits = if forgetful {
        Limits { cache_bytes_max: 0, snapshot_every: 2, batch_max: 5, ..Limits::default() }
    } else {
        Limits::default()
    };
    let nodes: Vec<_> = (0..nodes).map(|_| store.node_with(&limits)).collect();
    let mut order: Vec<_> = (0..sketches.len()).map(|key| (2 * key, key)).collect();
    let again =
        sketches.iter().enumerate().filter_map(|(key, sketch)| Some((2 * (key + sketch.again_after?) + 1, key)));
    order.extend(again);
    order.sort_unstable();

    let clock = Cell::new(0_u64);
    let tick = || {
        clock.set(clock.get() + 1);
        clock.get()
    };
    let (nodes, users) = (&nodes, &users);
    let asked: Vec<_> = stream::iter(order.into_iter().enumerate())
        .map(|(number, (_, key))| async move {
            let submission = submission(&sketches[key], key, users);
            let sent = tick();
            let answer = nodes[number % nodes.len()].commands.execute(submission.clone()).await;
            Asked { submission, sent, answered: tick(), answer }
        })
        .buffer_unordered(in_flight)
        .collect()
        .await;
    let log = store.log().await;
    for user in users {
        let of_user: Vec<_> = asked.iter().filter(|asked| asked.submission.command.user == *user).collect();
        check_user(&log, *user, &of_user)?;
    }
    for one in &asked {
        let alike = |other: &&Asked| other.submission.id == one.submission.id;
        let answers: Vec<_> = asked.iter().filter(alike).map(|other| first_answer(&other.answer)).collect();
        prop_assert_eq!(answers.iter().filter(|(_, first)| *first).count(), 1, "one answer is the first");
        prop_assert!(answers.windows(2).all(|pair| pair[0].0 == pair[1].0), "{:?}", answers);
    }
    Ok(())
}

#[test]
fn the_log_and_every_answer_are_as_if_commands_came_one_at_a_time() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(Store::create());
    let cases = (vec(sketch(), 1..120), 1..3_usize, 1..60_usize, any::<bool>());
    let config = Config { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&cases, |(sketches, nodes, in_flight, forgetful)| {
        runtime.block_on(run_case(&store, &sketches, nodes, in_flight, forgetful))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
