//! Tips from shard to shard: whatever is interrupted, repeated or away, each tip arrives or goes back, once, and when none
//! is under way nothing stands on the transit account.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::{Either, join_all, select};
use metrics_exporter_prometheus::PrometheusBuilder;
use rand::{Rng, SeedableRng, rngs::StdRng};
use skyriff_domain::{
    Bucket, Event, Intent, Note, Policy, ShardCount, ShardId, StreamId, TipId, UserId,
    ledger::{Account, postings},
    points::POINTS_MAX,
    points_account::{Action, Direction, PointsAccount},
    shard_of,
    tip::{self, Step},
};
use skyriff_postgres::databases::{COMMAND, PROCESS};
use skyriff_write_side::{
    CommandSide, Commands, Receipt,
    commands::{EventDatabase, Limits},
    processes::{self, ProcessDatabase, ProcessSide, Services},
};
use sqlx::{Executor, PgConnection, postgres::PgConnectOptions};
use tokio::{
    runtime::Runtime,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::{
    proxy::Proxy,
    steps::{EXECUTORS_AND_PROCESSES, End, Steps},
    store::{LONG, Logged, Store, command, noon, once, points, some_user, user_of_shard},
};

/// An account can be filled with one command.
fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.points.amount_max = points(POINTS_MAX);
    policy
}

/// A place in the event store, and the shards that live there.
type Home = (PgConnectOptions, Vec<ShardId>);

fn everything(options: PgConnectOptions) -> Vec<Home> {
    vec![(options, ShardCount::default().shards().collect())]
}

fn commands(homes: &[Home], limits: &Limits) -> CommandSide {
    let database =
        |(options, shards): &Home| EventDatabase { options: options.clone().username(COMMAND), shards: shards.clone() };
    let databases: Vec<_> = homes.iter().map(database).collect();
    CommandSide::start(&databases, ShardCount::default(), &policy(), limits)
}

fn process(homes: &[Home], commands: &Commands, limits: &processes::Limits) -> ProcessSide {
    let database = |(options, shards): &Home| ProcessDatabase {
        options: options.clone().username(PROCESS),
        shards: shards.clone(),
    };
    let databases: Vec<_> = homes.iter().map(database).collect();
    ProcessSide::start(&databases, &Services::new(commands.clone(), ShardCount::default()), limits)
}

/// So short that what was in the hands of the dead is soon somebody else's.
fn impatient() -> processes::Limits {
    processes::Limits {
        reaction_timeout: Duration::from_millis(300),
        back_off_max: Duration::from_millis(50),
        ..processes::Limits::default()
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let look = async {
        while !is_so().await {
            sleep(Duration::from_millis(3)).await;
        }
    };
    timeout(LONG, look).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// All that the log asks for has been found, and done.
async fn is_idle(owner: &mut PgConnection, shards: &[ShardId]) -> bool {
    let shards: Vec<_> = shards.iter().map(|shard| i16::try_from(shard.0).unwrap()).collect();
    sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT FROM tasks)
            AND NOT EXISTS (SELECT FROM heads h LEFT JOIN checkpoints c ON c.projection = 'tips' AND c.shard = h.shard
                            WHERE h.shard = ANY ($1) AND coalesce(c.position, 0) < h.position)",
    )
    .bind(shards)
    .fetch_one(owner)
    .await
    .unwrap()
}

async fn until_idle(store: &Store) {
    let mut owner = store.owner().await;
    let shards: Vec<_> = ShardCount::default().shards().collect();
    until("the process has nothing left to do", async || is_idle(&mut owner, &shards).await).await;
}

fn credit(bucket: Bucket, amount: i64) -> Action {
    let reason = Note::try_from("test".to_owned()).unwrap();
    Action::Adjust { bucket, direction: Direction::Credit, points: points(amount), reason: reason.into() }
}

async fn give(commands: &Commands, user: UserId, amount: i64) {
    commands.execute(once(user, credit(Bucket::Paid, amount))).await.unwrap();
}

/// A tip under a key of its own.
async fn offer(
    commands: &Commands,
    from: UserId,
    to: UserId,
    amount: i64,
) -> Result<TipId, skyriff_write_side::Failure> {
    let tip = TipId(Uuid::new_v4());
    let beside = commands.shard_of(from) == commands.shard_of(to);
    let intent = Intent::Tip(Step::Offer { tip, to, points: points(amount), work: None, beside });
    let offered: Result<Receipt, _> = commands.execute(command(&tip.to_string(), from, noon(), intent)).await;
    offered.map(|_| tip)
}

/// What the log says of tips.
#[derive(Default)]
struct Books {
    tips: BTreeMap<TipId, tip::Tip>,
    accounts: BTreeMap<UserId, PointsAccount>,
    transit: i64,
}

/// Nothing happens twice to a tip, and the books sum to zero.
fn books<'a>(log: impl IntoIterator<Item = &'a Logged>) -> Books {
    let mut books = Books::default();
    let mut seen = BTreeSet::new();
    let mut sum = 0;
    for logged in log {
        let (stream, event) = (logged.stream(), logged.event());
        for posting in postings(&stream, &event) {
            sum += posting.amount;
            if posting.account == Account::Transit {
                books.transit += posting.amount;
            }
        }
        if let (StreamId::Tip(tip), Event::Tip(event)) = (stream, &event) {
            assert!(seen.insert((stream, event.name())), "twice: {logged:?}");
            books.tips.entry(tip).or_default().apply(event);
        }
        if let Event::TipReceipt(_) = &event {
            assert!(seen.insert((stream, "received")), "twice: {logged:?}");
        }
        if let (StreamId::PointsAccount(user), Event::PointsAccount(event)) = (stream, &event) {
            books.accounts.entry(user).or_default().apply(event);
        }
    }
    assert_eq!(sum, 0, "the ledger sums to zero");
    books
}

impl Books {
    #[track_caller]
    fn all_have_ended(&self) {
        let under_way: Vec<_> = self.tips.iter().filter(|(_, tip)| matches!(tip, tip::Tip::Offered(_))).collect();
        assert!(under_way.is_empty(), "{under_way:?}");
        assert_eq!(self.transit, 0);
        assert!(self.accounts.values().all(|account| account.holds().is_empty()));
    }

    /// Paid, income.
    fn has(&self, user: UserId) -> (i64, i64) {
        let available = self.accounts.get(&user).map(|account| account.available().clone()).unwrap_or_default();
        (available.paid.get(), available.income.get())
    }
}

/// Commands and process on a runtime of its own, so that they can be killed as a node is.
struct Node {
    runtime: Option<Runtime>,
    _commands: CommandSide,
    _process: ProcessSide,
}

impl Node {
    fn start(homes: &[Home]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (commands, process) = {
            let _inside = runtime.enter();
            let side = commands(homes, &Limits { executors_per_database: 1, ..Limits::default() });
            let process = process(homes, &side.commands, &impatient());
            (side, process)
        };
        Self { runtime: Some(runtime), _commands: commands, _process: process }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One way to be interrupted, in a store of its own.
#[derive(Clone, Copy, Debug)]
struct Lane {
    end: End,
    /// Whether the node was connected before the tip was offered.
    warm: bool,
    /// Whether the receiver has room.
    room: bool,
    /// The messages after which it ends: this many, and `stride` more each time.
    first: usize,
    stride: usize,
}

/// Whether the tip was through before so many messages.
async fn interrupt(store: &Store, other: &CommandSide, lane: Lane, messages: usize) -> bool {
    let (from, to) = (user_of_shard(1), user_of_shard(2));
    give(&other.commands, from, 10).await;
    if !lane.room {
        give(&other.commands, to, POINTS_MAX).await;
    }
    let steps = Steps::of(EXECUTORS_AND_PROCESSES, &store.options(COMMAND)).await;
    let node = Node::start(&everything(steps.options()));
    if lane.warm {
        until_idle(store).await;
    }
    let reached = steps.end_after(messages, lane.end);
    let tip = offer(&other.commands, from, to, 10).await.unwrap();
    let through = std::pin::pin!(until_idle(store));
    let interrupted = match select(reached, through).await {
        Either::Left(_) => true,
        Either::Right(((), mut reached)) => reached.try_recv().is_ok(),
    };
    let node = if lane.end == End::NodeGone && interrupted {
        drop(node);
        drop(steps);
        Node::start(&everything(store.options(COMMAND)))
    } else {
        node
    };
    until_idle(store).await;
    drop(node);

    let log = store.log().await;
    let books = books(&log);
    books.all_have_ended();
    let delivered = matches!(books.tips[&tip], tip::Tip::Delivered(_));
    let has = (books.has(from), books.has(to));
    if lane.room {
        assert_eq!((delivered, has), (true, ((0, 0), (0, 7))), "{lane:?} after {messages} messages");
    } else {
        assert_eq!((delivered, has), (false, ((10, 0), (POINTS_MAX, 0))), "{lane:?} after {messages} messages");
    }
    !interrupted
}

async fn interrupt_everywhere(lanes: Vec<Lane>) {
    let lengths = join_all(lanes.into_iter().map(|lane| async move {
        let store = Store::create().await;
        let other = commands(&everything(store.options(COMMAND)), &Limits::default());
        for messages in (lane.first..).step_by(lane.stride) {
            if interrupt(&store, &other, lane, messages).await {
                return (lane, messages);
            }
        }
        unreachable!("it takes some number of messages")
    }))
    .await;
    for (lane, messages) in lengths {
        println!("{lane:?}: {messages} messages");
        assert!(messages > 60, "{lane:?} was over after {messages} messages");
    }
}

#[tokio::test]
async fn a_tip_arrives_once_wherever_a_node_that_works_is_interrupted() {
    let lane = |end, first| Lane { end, warm: true, room: true, first, stride: 13 };
    interrupt_everywhere(vec![lane(End::Cut, 0), lane(End::BackendEnded, 4), lane(End::NodeGone, 8)]).await;
}

#[tokio::test]
async fn a_tip_arrives_once_wherever_a_node_that_starts_is_interrupted() {
    let lane = |end, first| Lane { end, warm: false, room: true, first, stride: 31 };
    interrupt_everywhere(vec![lane(End::Cut, 0), lane(End::BackendEnded, 5), lane(End::NodeGone, 11)]).await;
}

#[tokio::test]
async fn a_tip_goes_back_once_wherever_a_node_is_interrupted() {
    let lane = |end, first| Lane { end, warm: true, room: false, first, stride: 29 };
    interrupt_everywhere(vec![lane(End::Cut, 0), lane(End::BackendEnded, 3), lane(End::NodeGone, 6)]).await;
}

/// Many tips of few users, in all directions; how many were accepted.
async fn many_tips(commands: &Commands, users: &[UserId], seed: u64) -> BTreeSet<TipId> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut accepted = BTreeSet::new();
    for _ in 0..20 {
        let some: Vec<_> = (0..15)
            .map(|_| {
                let from = users[random.random_range(0..users.len())];
                let to = users[random.random_range(0..users.len())];
                (from, to, random.random_range(1..40))
            })
            .collect();
        let answers = join_all(some.into_iter().map(|(from, to, amount)| offer(commands, from, to, amount))).await;
        accepted.extend(answers.into_iter().flatten());
    }
    accepted
}

#[tokio::test]
async fn several_processes_that_take_each_other_s_tasks_repeat_nothing() {
    let store = Store::create().await;
    let homes = everything(store.options(COMMAND));
    let sides = [commands(&homes, &Limits::default()), commands(&homes, &Limits::default())];
    let users: Vec<_> = (0..8).map(|_| some_user()).collect();
    for user in &users {
        give(&sides[0].commands, *user, 3_000).await;
    }
    // A lease that is over before the reaction is: every task is several workers' at once.
    let hasty = processes::Limits { reaction_timeout: Duration::from_millis(4), ..impatient() };
    let hasty: Vec<_> = sides.iter().map(|side| process(&homes, &side.commands, &hasty)).collect();
    let patient = process(&homes, &sides[0].commands, &impatient());
    let (one, other) = tokio::join!(many_tips(&sides[0].commands, &users, 1), many_tips(&sides[1].commands, &users, 2));
    until_idle(&store).await;
    for side in hasty {
        side.stop().await;
    }
    let log = store.log().await;
    let after = books(&log);
    after.all_have_ended();
    let accepted: BTreeSet<_> = one.union(&other).copied().collect();
    assert_eq!(after.tips.keys().copied().collect::<BTreeSet<_>>(), accepted);
    assert!(after.tips.values().all(|tip| matches!(tip, tip::Tip::Delivered(_))) && accepted.len() > 200);

    // Everything again, when every command id is forgotten: the streams remember.
    let mut owner = store.owner().await;
    owner.execute("DELETE FROM commands").await.unwrap();
    let again = "INSERT INTO tasks (process, shard, position)
                 SELECT 'tips', shard, position FROM events WHERE event_type IN ('offered', 'credited', 'declined')";
    assert!(owner.execute(again).await.unwrap().rows_affected() > 400);
    owner.execute("SELECT pg_notify('skyriff_tasks', '')").await.unwrap();
    until_idle(&store).await;
    let heads: i64 = sqlx::query_scalar("SELECT sum(position)::bigint FROM heads").fetch_one(&mut owner).await.unwrap();
    assert_eq!(usize::try_from(heads).unwrap(), log.len(), "nothing was recorded");
    // And when the whole log is looked through again.
    owner.execute("DELETE FROM commands; DELETE FROM checkpoints").await.unwrap();
    let mut restarted = Vec::new();
    patient.stop().await;
    restarted.push(process(&homes, &sides[1].commands, &impatient()));
    until_idle(&store).await;
    let heads: i64 = sqlx::query_scalar("SELECT sum(position)::bigint FROM heads").fetch_one(&mut owner).await.unwrap();
    assert_eq!(usize::try_from(heads).unwrap(), log.len(), "nothing was recorded");
}

#[tokio::test]
async fn a_tip_that_is_on_offer_leaves_transit_alone_until_it_is_credited() {
    let store = Store::create().await;
    let homes = everything(store.options(COMMAND));
    let side = commands(&homes, &Limits::default());
    let (from, to) = (user_of_shard(1), user_of_shard(2));
    give(&side.commands, from, 10).await;
    let tip = offer(&side.commands, from, to, 10).await.unwrap();
    assert_eq!(books(&store.log().await).transit, 0, "offered");
    let tip::Tip::Offered(terms) = books(&store.log().await).tips[&tip].clone() else { panic!("just offered") };
    let receive = Intent::Tip(Step::Receive { tip, terms });
    side.commands.execute(command("receive", to, noon(), receive)).await.unwrap();
    let credited = books(&store.log().await);
    assert_eq!((credited.transit, credited.has(to)), (-10, (0, 7)), "credited and not settled");
    let _process = process(&homes, &side.commands, &impatient());
    until_idle(&store).await;
    books(&store.log().await).all_have_ended();
}

/// Two databases of events: the first half of the shards, and the second behind a proxy.
struct TwoHomes {
    here: Store,
    there: Store,
    proxy: Proxy,
    homes: Vec<Home>,
}

impl TwoHomes {
    async fn create() -> Self {
        let (here, there) = (Store::create().await, Store::create().await);
        let proxy = Proxy::start(&there.options(COMMAND)).await;
        let (low, high) = ShardCount::default().shards().partition(|shard| shard.0 < 8);
        let homes = vec![(here.options(COMMAND), low), (proxy.options(there.options(COMMAND)), high)];
        Self { here, there, proxy, homes }
    }

    async fn go_away(&self) {
        self.proxy.set_down(true);
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = current_user";
        for role in [COMMAND, PROCESS] {
            self.there.connect(role).await.execute(end).await.unwrap();
        }
    }

    async fn until_idle(&self, store: &Store) {
        let of = if std::ptr::eq(store, &raw const self.here) { 0 } else { 1 };
        let mut owner = store.owner().await;
        until("nothing is left to do", async || is_idle(&mut owner, &self.homes[of].1).await).await;
    }
}

#[tokio::test]
async fn while_one_database_is_away_the_tips_of_the_others_go_on() {
    let two = TwoHomes::create().await;
    // A command for the database that is away waits for two seconds, in one of four places.
    let side = commands(&two.homes, &Limits { patience: Duration::from_secs(2), ..Limits::default() });
    let few = processes::Limits { reactions_max: 4, back_off_max: Duration::from_millis(50), ..Default::default() };
    let process = process(&two.homes, &side.commands, &few);
    let (from, near, far) = (user_of_shard(1), user_of_shard(2), user_of_shard(9));
    give(&side.commands, from, 1_000).await;
    give(&side.commands, far, 1_000).await;
    let warm = offer(&side.commands, from, far, 1).await.unwrap();
    two.until_idle(&two.here).await;
    two.until_idle(&two.there).await;

    two.go_away().await;
    // All of them together fewer than the holds that an account may have open.
    let mut to_far = Vec::new();
    for _ in 0..40 {
        to_far.push(offer(&side.commands, from, far, 1).await.unwrap());
    }
    let mut to_near = Vec::new();
    for _ in 0..40 {
        to_near.push(offer(&side.commands, from, near, 1).await.unwrap());
    }
    until("the tips that do not go there have arrived", async || {
        let books = books(&two.here.log().await);
        to_near.iter().all(|tip| matches!(books.tips[tip], tip::Tip::Delivered(_)))
    })
    .await;
    let meanwhile = books(&two.here.log().await);
    assert!(
        to_far.iter().all(|tip| matches!(meanwhile.tips[tip], tip::Tip::Offered(_))),
        "held for as long as it takes"
    );
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks WHERE error IS NOT NULL")
        .fetch_one(&mut two.here.owner().await)
        .await
        .unwrap();
    assert!(waiting > 0, "and their tasks say why");

    two.proxy.set_down(false);
    // The answers come from there, so this side has work until the other side has none.
    until("all have arrived", async || {
        let books = books(&two.here.log().await);
        to_far.iter().all(|tip| matches!(books.tips[tip], tip::Tip::Delivered(_)))
    })
    .await;
    two.until_idle(&two.here).await;
    two.until_idle(&two.there).await;
    let (here, there) = (two.here.log().await, two.there.log().await);
    let both = books(here.iter().chain(&there));
    both.all_have_ended();
    assert!(matches!(both.tips[&warm], tip::Tip::Delivered(_)));
    assert_eq!((both.has(from), both.has(near), both.has(far)), ((919, 0), (0, 40), (1_000, 41)));
    process.stop().await;
}

#[tokio::test]
async fn a_task_that_fails_again_and_again_shows_in_the_metrics() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    // Everything of this test runs on this thread.
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    let two = TwoHomes::create().await;
    let side = commands(&two.homes, &Limits { patience: Duration::from_millis(300), ..Limits::default() });
    let _process = process(&two.homes, &side.commands, &impatient());
    let (from, far) = (user_of_shard(1), user_of_shard(9));
    give(&side.commands, from, 10).await;
    two.until_idle(&two.here).await;
    two.go_away().await;
    offer(&side.commands, from, far, 10).await.unwrap();
    let gauge = |name: &str| {
        let text = metrics.render();
        let of_tips = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.contains("process=\"tips\""));
        // There is one for each database.
        let values = text.lines().filter(of_tips).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.reduce(|sum, value| sum + value)
    };
    until("the alarm", async || gauge("skyriff_process_stuck_tasks") == Some(1.0)).await;
    assert_eq!(gauge("skyriff_process_tasks"), Some(1.0));
    assert!(gauge("skyriff_process_lag_seconds").unwrap() > 0.0);
    assert!(metrics.render().contains("skyriff_process_reactions_total{process=\"tips\",outcome=\"later\"}"));
    let (attempts, error): (i32, String) =
        sqlx::query_as("SELECT attempts, error FROM tasks").fetch_one(&mut two.here.owner().await).await.unwrap();
    assert!(attempts >= 10 && !error.is_empty(), "{attempts}: {error}");
    two.proxy.set_down(false);
    until("all is well", async || gauge("skyriff_process_stuck_tasks") == Some(0.0)).await;
    two.until_idle(&two.here).await;
    let alone = shard_of(from, ShardCount::default());
    assert_eq!(alone, ShardId(1));
}
