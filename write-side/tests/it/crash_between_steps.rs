//! Wherever a command over several streams is interrupted, it is done whole or not at all, and once.
//!
//! The steps are the messages between executor and server, from connecting to the answer, as [`crate::steps`] counts
//! them. The same is done again and again, and each time it ends one message later: until it no longer ends before all
//! is answered. Ending is a cut connection, a killed server process or a node that is killed and never comes back.

use std::collections::{HashMap, HashSet};

use futures::future::{Either, join_all, select};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use skyriff_domain::{StreamId, UserId};
use skyriff_postgres::databases::COMMAND;
use skyriff_write_side::{CommandSide, Commands, Failure, Receipt, Submission, commands::Limits};
use sqlx::PgConnection;
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};

use crate::{
    model::{Model, Sketch, USERS, Wish, answered, sketch, submission},
    steps::{End, Steps},
    store::{LONG, Logged, Store, assert_in_log, available, earn, node, on_account, once, spend, user_of_shard},
};

type Answer = Result<Receipt, Failure>;
/// Commands that are recorded together or not at all.
type Request = Vec<Submission>;

/// One way to be interrupted, in a shard of its own.
#[derive(Clone, Copy, Debug)]
struct Lane {
    shard: u16,
    end: End,
    /// Whether the node has connected and has the accounts in memory.
    warm: bool,
    /// The messages after which it ends: this many, and two more each time.
    first: usize,
    /// One recharge, or among other requests.
    alone: bool,
}

fn lanes(alone: bool) -> Vec<Lane> {
    let ends = [End::Cut, End::BackendEnded, End::NodeGone].into_iter();
    let ways =
        ends.flat_map(|end| [(end, true), (end, false)]).flat_map(|(end, warm)| [(end, warm, 0), (end, warm, 1)]);
    // Connecting is the same whatever comes after it.
    let ways = ways.map(|(end, warm, first)| (end, warm || !alone, first));
    (0..).zip(ways).map(|(shard, (end, warm, first))| Lane { shard, end, warm, first, alone }).collect()
}

/// A node that can be killed: it has a runtime of its own.
struct Node {
    runtime: Option<Runtime>,
    side: CommandSide,
}

impl Node {
    fn start(steps: &Steps, limits: &Limits) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let side = {
            let _inside = runtime.enter();
            node(steps.options(), limits)
        };
        Self { runtime: Some(runtime), side }
    }

    /// Hand in all requests in one go, so that they are one batch if it takes that many.
    fn ask(&self, requests: &[Request]) -> mpsc::UnboundedReceiver<(usize, Vec<Answer>)> {
        let (tell, told) = mpsc::unbounded_channel();
        let (commands, requests) = (self.side.commands.clone(), requests.to_vec());
        let runtime = self.runtime.as_ref().expect("not killed yet");
        runtime.spawn(async move {
            let asked = requests.iter().enumerate();
            join_all(asked.map(async |(place, request)| tell.send((place, ask(&commands, request).await)))).await
        });
        told
    }

    /// Every task ends where it stands.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn ask(commands: &Commands, request: &[Submission]) -> Vec<Answer> {
    match request {
        [one] => vec![commands.execute(one.clone()).await],
        several => commands.execute_together(several.to_vec()).await.unwrap(),
    }
}

fn limits() -> Limits {
    // Few enough commands in a batch that several requests are several batches.
    Limits { executors_per_database: 1, batch_max: 3, ..Limits::default() }
}

/// The same for the same lane and number of messages, but for whose they are.
fn requests(lane: Lane, messages: usize, users: &[UserId]) -> Vec<Request> {
    let recharge = (0..USERS, 0..4_u128, 1..3_i64).prop_map(|(user, order, points)| Sketch {
        user,
        hours: 0,
        again_after: None,
        wish: Wish::Recharge(order, points),
    });
    let sketches = if lane.alone {
        vec(vec(recharge, 1), 1).boxed()
    } else {
        let together = (vec(prop_oneof![sketch(), recharge.clone()], 2..6), 0..5_usize, proptest::bool::weighted(0.3));
        let together = together.prop_map(|(mut sketches, place, refused)| {
            if refused {
                let place = place % sketches.len();
                sketches[place].wish = Wish::Spend(99, 1_000_000);
            }
            sketches
        });
        let single = vec(prop_oneof![sketch(), recharge.clone()], 1);
        let others = vec(prop_oneof![single, together], 4);
        (others, vec(recharge, 1))
            .prop_map(|(others, recharge)| [others, vec![recharge]].concat())
            .prop_shuffle()
            .boxed()
    };
    let seed = [lane.shard.to_be_bytes().to_vec(), messages.to_be_bytes().to_vec(), vec![0; 22]].concat();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let sketches = sketches.new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).unwrap().current();
    let mut key = 0;
    let mut submission = |sketch: &Sketch| {
        key += 1;
        submission(sketch, key, users)
    };
    sketches.iter().map(|request| request.iter().map(&mut submission).collect()).collect()
}

/// What has been appended to a shard after a position, in one look.
async fn log_after(owner: &mut PgConnection, shard: u16, position: i64) -> Vec<Logged> {
    let log: Vec<Logged> = sqlx::query_as(
        "SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                payload::text AS payload, metadata, occurred_at, recorded_at
         FROM events WHERE shard = $1 AND position > $2 ORDER BY position",
    )
    .bind(i16::try_from(shard).unwrap())
    .bind(position)
    .fetch_all(owner)
    .await
    .unwrap();
    let mut sequences = HashMap::<_, i64>::new();
    for (logged, expected) in log.iter().zip(position + 1..) {
        assert_eq!(logged.position, expected, "positions have no gap");
        let sequence = sequences.entry(logged.stream()).or_default();
        *sequence += 1;
        assert_eq!(logged.sequence, *sequence, "sequences of {:?} have no gap", logged.stream());
    }
    log
}

/// Every request is in the log whole or not at all, once, as it should have been decided there, and as it was answered
/// if it was. What the log comes to.
fn check(log: &[Logged], requests: &[Request], answers: &HashMap<usize, Vec<Answer>>) -> Model {
    let mut recorded = HashSet::new();
    let mut states = vec![Model::default()];
    let mut rest = log;
    while let Some(first) = rest.first() {
        let is_in = |request: &&Request| request.iter().any(|submission| submission.id.0 == first.command());
        let request = requests.iter().find(is_in).expect("only what was asked for is in the log");
        let mut state = states.last().unwrap().clone();
        for submission in request {
            let events = state.decide(submission).expect("what is in the log was not refused");
            let (own, others) = rest.split_at_checked(events.len()).expect("the last request is whole");
            let logged: Vec<_> = own.iter().map(|logged| (logged.stream(), logged.event())).collect();
            assert_eq!(logged, events, "{:?}", submission.command);
            assert!(own.iter().all(|logged| logged.command() == submission.id.0), "{:?}", submission.command);
            assert!(events.is_empty() || recorded.insert(submission.id), "recorded twice: {:?}", submission.command);
            state.apply(&events);
            rest = others;
        }
        states.push(state);
    }
    for (place, answers) in answers {
        for (submission, answer) in requests[*place].iter().zip(answers) {
            let is_recorded = recorded.contains(&submission.id);
            match answer {
                Ok(receipt) => {
                    assert_in_log(log, receipt);
                    assert_eq!(is_recorded, !receipt.recorded.is_empty(), "{:?}: {receipt:?}", submission.command);
                }
                Err(Failure::Refused(refusal)) if answers.len() == 1 => {
                    let refused = |state: &Model| state.decide(submission).as_ref() == Err(refusal);
                    assert!(!is_recorded && states.iter().any(refused), "{:?}: {refusal}", submission.command);
                }
                Err(Failure::Refused(_) | Failure::RefusedTogether) => {
                    assert!(!is_recorded, "{:?}", submission.command)
                }
                Err(failure) => panic!("{:?}: {failure}", submission.command),
            }
        }
    }
    states.pop().unwrap()
}

async fn until_backend_is_gone(owner: &mut PgConnection, backend: i32) {
    let is_there = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
    while sqlx::query_scalar(is_there).bind(backend).fetch_one(&mut *owner).await.unwrap() {
        tokio::task::yield_now().await;
    }
}

/// Whether all was answered before so many messages.
async fn interrupt(store: &Store, other: &CommandSide, owner: &mut PgConnection, lane: Lane, messages: usize) -> bool {
    let users: Vec<_> = (0..USERS).map(|_| user_of_shard(lane.shard)).collect();
    let head = "SELECT position FROM heads WHERE shard = $1";
    let shard = i16::try_from(lane.shard).unwrap();
    let head: i64 = sqlx::query_scalar(head).bind(shard).fetch_one(&mut *owner).await.unwrap();
    let steps = Steps::start(&store.options(COMMAND)).await;
    let mut node = Node::start(&steps, &limits());
    let before: Vec<_> =
        users.iter().map(|user| vec![on_account(&format!("{user} before"), *user, earn(100))]).collect();
    let by = if lane.warm { &node.side } else { other };
    for request in &before {
        ask(&by.commands, request).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    }

    let asked = requests(lane, messages, &users);
    let all = [asked.clone(), before].concat();
    let reached = steps.end_after(messages, lane.end);
    let mut told = node.ask(&asked);
    let mut answers = HashMap::new();
    let collect = async {
        while let Some((place, answer)) = told.recv().await {
            answers.insert(place, answer);
        }
    };
    let interrupted = match select(std::pin::pin!(collect), reached).await {
        Either::Left(((), _)) => false,
        Either::Right((_, rest)) => {
            if lane.end == End::NodeGone {
                node.kill();
            }
            rest.await;
            true
        }
    };
    let mut backend_is_gone = true;
    if lane.end == End::NodeGone {
        node.kill();
        let backend = steps.backend();
        drop(steps);
        // What was under way is over, or goes on while the retry comes in.
        backend_is_gone = messages % 2 == 0;
        if backend_is_gone {
            until_backend_is_gone(owner, backend).await;
        }
        // Nobody is left to hear this.
        answers.retain(|_, answers| !answers.contains(&Err(Failure::OutcomeUnknown)));
    } else {
        assert_eq!(answers.len(), asked.len(), "everything is answered");
        assert!(answers.values().flatten().flatten().all(|receipt| !receipt.replayed), "{answers:?}");
    }
    let log = log_after(owner, lane.shard, head).await;
    check(&log, &all, &answers);

    let fresh = (lane.end == End::NodeGone).then(|| store.node_with(&limits()));
    let retried_at = fresh.as_ref().unwrap_or(other);
    let again = join_all(asked.iter().map(|request| ask(&retried_at.commands, request))).await;
    let again: HashMap<_, _> = again.into_iter().enumerate().collect();
    let log_now = log_after(owner, lane.shard, head).await;
    let now = check(&log_now, &all, &again);
    for (place, request) in asked.iter().enumerate() {
        for (item, (submission, again)) in request.iter().zip(&again[&place]).enumerate() {
            let first = answers.get(&place).map(|answers| &answers[item]);
            if let Some(Ok(first)) = first {
                assert_eq!(again, &Ok(Receipt { replayed: true, ..first.clone() }), "{:?}", submission.command);
            }
            if let Ok(again) = again
                && !again.recorded.is_empty()
                && backend_is_gone
            {
                let was_there = log.iter().any(|logged| logged.command() == submission.id.0);
                assert_eq!(again.replayed, was_there, "{:?}", submission.command);
            }
        }
    }
    assert_eq!(
        log_now[..log.len()].iter().map(Logged::at).collect::<Vec<_>>(),
        log.iter().map(Logged::at).collect::<Vec<_>>()
    );

    // Whoever goes on from here knows the balances.
    let survivor = fresh.as_ref().unwrap_or(&node.side);
    for user in users {
        let has = available(&log_now, user);
        if lane.alone && has > 100 {
            let orders = log_now.iter().filter(|logged| matches!(logged.stream(), StreamId::RechargeOrder(_))).count();
            assert_eq!((orders, log_now.len()), (1, USERS + 2), "one order, credited once");
        }
        let mut now = now.clone();
        for amount in [has, 1] {
            let spend = once(user, spend(amount));
            assert_eq!(answered(survivor.commands.execute(spend.clone()).await), now.answer(&spend));
            if let Ok(events) = now.decide(&spend) {
                now.apply(&events);
            }
        }
    }
    !interrupted
}

async fn interrupt_everywhere(lanes: Vec<Lane>) {
    let store = &Store::create().await;
    let other = &store.node();
    let lengths = join_all(lanes.into_iter().map(|lane| async move {
        let mut owner = store.owner().await;
        for messages in (lane.first..).step_by(2) {
            let run = interrupt(store, other, &mut owner, lane, messages);
            let all_was_answered = timeout(LONG, run).await.unwrap_or_else(|_| panic!("{lane:?} hangs at {messages}"));
            if all_was_answered {
                return (lane, messages);
            }
        }
        unreachable!("it takes some number of messages")
    }))
    .await;
    for (lane, messages) in lengths {
        println!("{lane:?}: {messages}");
        assert!(messages > if lane.warm { 10 } else { 40 }, "{lane:?} was over after {messages} messages");
    }
    store.log().await;
}

#[tokio::test]
async fn a_recharge_is_credited_once_on_both_streams_wherever_it_is_interrupted() {
    interrupt_everywhere(lanes(true)).await;
}

#[tokio::test]
async fn requests_of_one_and_of_several_commands_are_whole_and_once_wherever_they_are_interrupted() {
    interrupt_everywhere(lanes(false)).await;
}
