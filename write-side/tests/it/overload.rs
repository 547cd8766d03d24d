//! A full queue says so at once, and what was taken on is answered, also by a node that stops.

use std::time::Duration;

use futures::{FutureExt, future::join_all};
use skyriff_postgres::databases::COMMAND;
use skyriff_write_side::{
    CommandSide, Failure, Receipt, Submission,
    commands::{Limits, NotTogether},
};
use sqlx::{Executor, PgConnection};
use tokio::time::timeout;

use crate::store::{LONG, Logged, Store, earn, once, some_user, user_of_shard};

pub(crate) async fn wait_for_a_blocked_append(watcher: &mut PgConnection) {
    let blocked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                                  AND wait_event_type = 'Lock' AND query LIKE '%append(%')";
    let wait = async {
        while !sqlx::query_scalar::<_, bool>(blocked).fetch_one(&mut *watcher).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, wait).await.expect("the append waits for the lock");
}

/// Nobody appends to shard 0 until the connection rolls back.
async fn block(store: &Store) -> PgConnection {
    let mut blocker = store.connect(COMMAND).await;
    blocker.execute("BEGIN").await.unwrap();
    blocker.execute("SELECT lock_shards('{0}')").await.unwrap();
    blocker
}

fn patient(limits: Limits) -> Limits {
    Limits { append_timeout: LONG, patience: LONG, ..limits }
}

fn some(number: usize) -> Vec<Submission> {
    (0..number).map(|_| once(user_of_shard(0), earn(1))).collect()
}

/// A command on its own, handed in: an answer if there is one at once.
fn hand_in(node: &CommandSide) -> Result<impl Future<Output = Result<Receipt, Failure>>, Result<Receipt, Failure>> {
    let mut waiting = Box::pin(node.commands.execute(once(user_of_shard(0), earn(1))));
    match waiting.as_mut().now_or_never() {
        Some(answer) => Err(answer),
        None => Ok(waiting),
    }
}

/// How many commands each append had, each having recorded one event: an append's events have one time.
fn appends(log: &[Logged]) -> Vec<usize> {
    log.chunk_by(|one, next| one.recorded_at == next.recorded_at).map(<[_]>::len).collect()
}

#[tokio::test]
async fn bulk_waits_in_its_share_and_leaves_single_commands_theirs() {
    let store = Store::create().await;
    let node = store.node_with(&patient(Limits { queue_max: 8, ..Limits::default() }));
    let (mut blocker, mut watcher) = (block(&store).await, store.connect(COMMAND).await);
    let mut single = vec![hand_in(&node).unwrap()];
    wait_for_a_blocked_append(&mut watcher).await;

    // What is for the other executor does not wait for what comes before it.
    let mut first = some(20);
    first.push(once(user_of_shard(1), earn(1)));
    let mut bulk = [first, some(20)].map(|commands| Box::pin(node.commands.execute_each(commands)));
    assert!(bulk.iter_mut().all(|bulk| bulk.as_mut().now_or_never().is_none()));
    let passed_by = async {
        let recorded = "SELECT position > 0 FROM heads WHERE shard = 1";
        while !sqlx::query_scalar::<_, bool>(recorded).fetch_one(&mut watcher).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, passed_by).await.expect("it does not wait");
    single.extend((0..4).map(|_| hand_in(&node).unwrap_or_else(|answer| panic!("there is room: {answer:?}"))));
    assert_eq!(hand_in(&node).err(), Some(Err(Failure::Overloaded)));

    blocker.execute("ROLLBACK").await.unwrap();
    let served = timeout(LONG, async { tokio::join!(join_all(single), join_all(bulk)) }).await.unwrap();
    assert!(served.0.iter().chain(served.1.iter().flatten()).all(Result::is_ok), "{served:?}");
    assert_eq!(store.log().await.len(), 5 + 41);
}

#[tokio::test]
async fn bulk_that_waits_for_room_is_told_when_the_node_stops() {
    let store = Store::create().await;
    let node = store.node_with(&patient(Limits { queue_max: 2, ..Limits::default() }));
    let commands = node.commands.clone();
    let (mut blocker, mut watcher) = (block(&store).await, store.connect(COMMAND).await);
    let mut first = Box::pin(commands.execute(once(user_of_shard(0), earn(1))));
    assert!(first.as_mut().now_or_never().is_none());
    wait_for_a_blocked_append(&mut watcher).await;

    let mut bulk = Box::pin(commands.execute_each(some(3)));
    assert!(bulk.as_mut().now_or_never().is_none());
    let all = async { tokio::join!(first, bulk, node.stop(), blocker.execute("ROLLBACK")) };
    let (first, bulk, ..) = timeout(LONG, all).await.unwrap();
    first.unwrap();
    assert!(bulk[0].is_ok(), "it was taken on: {bulk:?}");
    assert_eq!(bulk[1..], [Err(Failure::Unavailable), Err(Failure::Unavailable)]);
    assert_eq!(store.log().await.len(), 2);
}

#[tokio::test]
async fn single_commands_get_through_while_bulk_never_stops() {
    let store = Store::create().await;
    let node = store.node_with(&Limits { queue_max: 16, ..Limits::default() });
    let user = user_of_shard(0);
    let flood = join_all((0..4).map(|_| async { while node.commands.execute_each(some(100)).await.len() == 100 {} }));
    let singles = async {
        for _ in 0..100 {
            node.commands.execute(once(user, earn(1))).await.unwrap();
        }
    };
    tokio::select! {
        done = timeout(LONG, singles) => done.expect("in time"),
        _ = flood => unreachable!("it never ends by itself"),
    }
}

#[tokio::test]
async fn an_atomic_batch_takes_a_place_for_each_of_its_commands() {
    let store = Store::create().await;
    let limits = Limits { queue_max: 8, ..Limits::default() };
    assert_eq!(limits.bulk_queue_max(), 4);
    let node = store.node_with(&patient(limits));
    let (mut blocker, mut watcher) = (block(&store).await, store.connect(COMMAND).await);
    let mut single = vec![hand_in(&node).unwrap()];
    wait_for_a_blocked_append(&mut watcher).await;

    let together = |number| Box::pin(node.commands.execute_together(some(number)));
    // The second finds no room in the share, and so takes none from anybody.
    let mut batches = [together(3), together(2)];
    assert!(batches.iter_mut().all(|batch| batch.as_mut().now_or_never().is_none()));
    single.extend((0..5).map(|_| hand_in(&node).unwrap_or_else(|answer| panic!("there is room: {answer:?}"))));
    assert_eq!(hand_in(&node).err(), Some(Err(Failure::Overloaded)));
    // One that would never find room is told so.
    assert_eq!(together(5).now_or_never(), Some(Err(NotTogether::TooMany { max: 4 })));

    blocker.execute("ROLLBACK").await.unwrap();
    let (singles, batches) = timeout(LONG, async { tokio::join!(join_all(single), join_all(batches)) }).await.unwrap();
    assert!(singles.iter().chain(batches.iter().flat_map(|batch| batch.as_ref().unwrap())).all(Result::is_ok));
    assert_eq!(store.log().await.len(), 6 + 5);
}

#[tokio::test]
async fn an_append_has_so_many_commands_and_an_atomic_batch_is_never_split() {
    let store = Store::create().await;
    let node = store.node_with(&patient(Limits { batch_max: 5, ..Limits::default() }));
    let (mut blocker, mut watcher) = (block(&store).await, store.connect(COMMAND).await);
    let first = hand_in(&node).unwrap();
    wait_for_a_blocked_append(&mut watcher).await;

    let mut batches = [3, 3, 7].map(|number| Box::pin(node.commands.execute_together(some(number))));
    assert!(batches.iter_mut().all(|batch| batch.as_mut().now_or_never().is_none()));
    let singles: Vec<_> = (0..6).map(|_| hand_in(&node).unwrap_or_else(|_| panic!("there is room"))).collect();
    blocker.execute("ROLLBACK").await.unwrap();
    let all = async { tokio::join!(first, join_all(singles), join_all(batches)) };
    timeout(LONG, all).await.unwrap().0.unwrap();
    assert_eq!(appends(&store.log().await), [1, 3, 3, 7, 5, 1]);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_serves_what_it_took() {
    let store = Store::create().await;
    let node = store.node_with(&patient(Limits { queue_max: 4, ..Limits::default() }));
    let (mut blocker, mut watcher) = (block(&store).await, store.connect(COMMAND).await);

    let send = || Box::pin(node.commands.execute(once(user_of_shard(0), earn(1))));
    let mut taken = vec![send()];
    assert!(taken[0].as_mut().now_or_never().is_none());
    wait_for_a_blocked_append(&mut watcher).await;
    for _ in 0..4 {
        let mut waiting = send();
        assert!(waiting.as_mut().now_or_never().is_none());
        taken.push(waiting);
    }
    for _ in 0..3 {
        assert_eq!(send().now_or_never(), Some(Err(Failure::Overloaded)));
    }
    // The other executor's shards do not wait for this one.
    timeout(LONG, node.commands.execute(once(user_of_shard(1), earn(1)))).await.unwrap().unwrap();

    blocker.execute("ROLLBACK").await.unwrap();
    let served = timeout(LONG, join_all(taken)).await.unwrap();
    assert!(served.iter().all(Result::is_ok), "{served:?}");
    assert_eq!(store.log().await.len(), 6);
}

#[tokio::test]
async fn a_node_that_stops_answers_what_it_took_and_takes_no_more() {
    let store = Store::create().await;
    let node = store.node_with(&Limits { batch_max: 7, ..Limits::default() });
    let commands = node.commands.clone();
    let mut taken: Vec<_> = (0..100).map(|_| Box::pin(commands.execute(once(some_user(), earn(1))))).collect();
    for waiting in &mut taken {
        assert!(waiting.as_mut().now_or_never().is_none());
    }
    let (served, ()) = timeout(LONG, async { tokio::join!(join_all(taken), node.stop()) }).await.unwrap();
    assert!(served.iter().all(Result::is_ok));
    assert_eq!(store.log().await.len(), 100);
    assert_eq!(commands.execute(once(some_user(), earn(1))).await, Err(Failure::Unavailable));
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_unavailable_and_then_served() {
    let store = Store::create().await;
    let limits = Limits { patience: Duration::from_millis(200), ..Limits::default() };
    let nowhere = tempfile::tempdir().unwrap();
    let node = crate::store::node(store.options(COMMAND).socket(nowhere.path()), &limits);
    let results = join_all((0..10).map(|_| node.commands.execute(once(some_user(), earn(1))))).await;
    assert!(results.iter().all(|result| *result == Err(Failure::Unavailable)), "{results:?}");
    assert_eq!(store.commands_recorded().await, (0, 0));
}
