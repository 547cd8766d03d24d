//! Connections that die at the worst moment: nothing is lost, nothing is done twice, and an answer is never a guess.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use skyriff_domain::UserId;
use skyriff_postgres::databases::COMMAND;
use skyriff_write_side::{CommandSide, Failure, commands::Limits};
use sqlx::Executor;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    proxy::{APPEND, COMMIT, Fate, LOAD, Proxy},
    store::{LONG, Store, assert_in_log, available, earn, insufficient, node, on_account, once, spend, user_of_shard},
};

async fn behind_proxy(store: &Store, limits: &Limits) -> (Proxy, CommandSide) {
    let options = store.options(COMMAND);
    let proxy = Proxy::start(&options).await;
    let node = node(proxy.options(options), limits);
    (proxy, node)
}

fn impatient() -> Limits {
    Limits { patience: Duration::from_millis(300), ..Limits::default() }
}

#[tokio::test]
async fn an_append_that_is_cut_off_is_found_or_done_again_and_answered_as_if_nothing_were() {
    let store = Store::create().await;
    let (proxy, node) = behind_proxy(&store, &Limits::default()).await;
    let user = user_of_shard(0);
    node.commands.execute(once(user, earn(1))).await.unwrap();
    for fates in [
        vec![Fate::CutBefore],
        vec![Fate::CutUnderway],
        vec![Fate::CutAfter],
        vec![Fate::CutAfter, Fate::CutBefore, Fate::CutAfter],
        vec![Fate::CutBefore, Fate::CutUnderway, Fate::CutAfter],
    ] {
        fates.into_iter().for_each(|fate| proxy.next(APPEND, fate));
        // More than one batch, with commands that are refused among them, of which one depends on what was cut off.
        let take_all = spend(available(&store.log().await, user) + 2);
        let mut commands = vec![once(user, earn(1)), once(user, earn(1)), once(user, take_all), once(user, spend(1))];
        commands.extend((0..20).map(|_| once(user_of_shard(2), earn(1))));
        let results = join_all(commands.into_iter().map(|command| node.commands.execute(command))).await;
        assert!(proxy.script_is_done());
        let log = store.log().await;
        for (number, result) in results.into_iter().enumerate() {
            if number == 3 {
                assert!(insufficient(&result), "{result:?}");
                continue;
            }
            let receipt = result.unwrap();
            assert!(!receipt.replayed);
            assert_in_log(&log, &receipt);
        }
        node.commands.execute(once(user, earn(1))).await.unwrap();
    }
    assert_eq!(store.log().await.len(), 1 + 5 * 24);
}

/// Many commands of one user in one append, which meets its fate; how many commands each append that went through had.
async fn appends_of(limits: &Limits, commands: usize, slow: bool, fates: Vec<Fate>) -> Vec<usize> {
    let store = Store::create().await;
    let (proxy, node) = behind_proxy(&store, limits).await;
    let (user, neighbour) = (user_of_shard(0), user_of_shard(0));
    if slow {
        // An append of more than two events takes longer than anybody waits.
        let mut owner = store.owner().await;
        owner
            .execute(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF (SELECT count(*) FROM new) > 2 THEN PERFORM pg_sleep(60); END IF;
                     RETURN NULL;
                 END $$;
                 CREATE TRIGGER slow AFTER INSERT ON events REFERENCING NEW TABLE AS new
                     FOR EACH STATEMENT EXECUTE FUNCTION slow()",
            )
            .await
            .unwrap();
    }
    // They gather while the one before them is under way.
    let ((started, has_started), (go, wait)) = (oneshot::channel(), oneshot::channel());
    let wait = async move {
        started.send(()).unwrap();
        wait.await.unwrap()
    };
    proxy.next(APPEND, Fate::First(wait.boxed()));
    fates.into_iter().for_each(|fate| proxy.next(APPEND, fate));
    let mut first = Box::pin(node.commands.execute(once(neighbour, earn(1))));
    assert!(first.as_mut().now_or_never().is_none());
    has_started.await.unwrap();
    let mut gathered: Vec<_> = (0..commands)
        .map(|number| Box::pin(node.commands.execute(on_account(&number.to_string(), user, earn(1)))))
        .collect();
    assert!(gathered.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
    go.send(()).unwrap();
    first.await.unwrap();
    let results = timeout(LONG, join_all(gathered)).await.expect("answered in time");
    assert!(proxy.script_is_done());

    let log = store.log().await;
    assert_eq!(log.len(), 1 + commands, "each is recorded once");
    for (sequence, result) in (1..).zip(results) {
        let receipt = result.unwrap();
        assert!(!receipt.replayed);
        assert_in_log(&log, &receipt);
        assert_eq!(receipt.recorded[0].sequence, sequence, "nothing overtakes");
    }
    log[1..].chunk_by(|one, next| one.recorded_at == next.recorded_at).map(<[_]>::len).collect()
}

#[tokio::test]
async fn what_was_cut_off_is_tried_again_half_as_much_at_a_time_and_then_more_again() {
    let limits = Limits::default();
    assert_eq!(appends_of(&limits, 8, false, vec![Fate::CutBefore]).await, [4, 4]);
    assert_eq!(appends_of(&limits, 8, false, vec![Fate::CutUnderway]).await.iter().sum::<usize>(), 8);
    assert_eq!(appends_of(&limits, 8, false, vec![Fate::CutAfter]).await, [8]);
    assert_eq!(appends_of(&limits, 12, false, vec![Fate::CutBefore, Fate::CutBefore]).await, [3, 4, 5]);
    assert_eq!(appends_of(&limits, 9, false, vec![Fate::CutBefore, Fate::CutAfter]).await, [4, 4, 1]);
}

#[tokio::test]
async fn an_append_that_is_too_large_for_its_time_becomes_smaller() {
    let limits = Limits { append_timeout: Duration::from_millis(500), patience: LONG, ..Limits::default() };
    assert_eq!(appends_of(&limits, 8, true, vec![]).await, [2, 1, 2, 1, 2]);
}

#[tokio::test]
async fn a_database_that_stays_away_leaves_an_outcome_unknown_only_where_it_is() {
    let store = Store::create().await;
    let (proxy, node) = behind_proxy(&store, &impatient()).await;
    let user = user_of_shard(0);
    let send = |key: &str| node.commands.execute(on_account(key, user, earn(1)));
    send("warm").await.unwrap();

    for (key, fate, recorded) in [("before", Fate::CutBefore, false), ("after", Fate::CutAfter, true)] {
        proxy.next(APPEND, fate);
        proxy.set_down(true);
        let unknown = timeout(LONG, send(key)).await.unwrap();
        assert_eq!(unknown, Err(Failure::OutcomeUnknown), "{key}");
        assert_eq!(timeout(LONG, send("never sent")).await.unwrap(), Err(Failure::Unavailable));
        proxy.set_down(false);
        let found = send(key).await.unwrap();
        assert_eq!(found.replayed, recorded, "{key}");
        assert_in_log(&store.log().await, &found);
    }
    assert!(!send("never sent").await.unwrap().replayed);
    assert_eq!(store.log().await.len(), 4);
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_given_up() {
    let store = Store::create().await;
    let limits = Limits { append_timeout: Duration::from_millis(300), ..Limits::default() };
    let (proxy, node) = behind_proxy(&store, &limits).await;
    let user = user_of_shard(0);
    node.commands.execute(once(user, earn(1))).await.unwrap();
    proxy.next(APPEND, Fate::Silence);
    let receipt = timeout(LONG, node.commands.execute(once(user, earn(1)))).await;
    assert!(!receipt.expect("answered in time").unwrap().replayed);
    assert!(proxy.script_is_done());
    assert_eq!(store.log().await.len(), 2);
}

#[tokio::test]
async fn an_append_that_was_given_up_is_ended_before_anything_is_decided_again() {
    let store = Store::create().await;
    let limits = Limits { executors_per_database: 1, append_timeout: Duration::from_millis(300), ..Limits::default() };
    let (proxy, node) = behind_proxy(&store, &limits).await;
    let user = user_of_shard(0);
    node.commands.execute(once(user, earn(1))).await.unwrap();
    let executors = "SELECT pid FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'skyriff command'";
    let mut watcher = store.connect(COMMAND).await;
    let given_up: i32 = sqlx::query_scalar(executors).fetch_one(&mut watcher).await.unwrap();

    // Held up on its way for ever, by something that keeps the connection to the server open.
    proxy.next(APPEND, Fate::First(pending().boxed()));
    let (tell, told) = oneshot::channel();
    let look = async move { tell.send(sqlx::query_scalar(executors).fetch_all(&mut watcher).await.unwrap()).unwrap() };
    proxy.next(LOAD, Fate::First(look.boxed()));
    let receipt = timeout(LONG, node.commands.execute(once(user, earn(1)))).await.expect("answered in time").unwrap();
    assert!(!receipt.replayed);
    assert!(proxy.script_is_done());
    let left: Vec<i32> = told.await.unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!left.contains(&given_up), "{given_up} is still there");
    assert_eq!(store.log().await.len(), 2);
}

/// What makes a batch lose races until it takes the locks first: another node is faster every time.
fn outrun(proxy: &Proxy, other: &Arc<CommandSide>, user: UserId) {
    for _ in 0..2 {
        let other = Arc::clone(other);
        let faster = async move { drop(other.commands.execute(once(user, earn(1))).await.unwrap()) };
        proxy.next(APPEND, Fate::First(faster.boxed()));
    }
}

#[tokio::test]
async fn a_batch_that_keeps_losing_races_takes_the_locks_and_survives_a_cut_there_too() {
    let store = Store::create().await;
    let (proxy, node) = behind_proxy(&store, &Limits::default()).await;
    let other = Arc::new(store.node());
    let user = user_of_shard(0);
    node.commands.execute(once(user, earn(1))).await.unwrap();

    let cuts: [Vec<(&str, Fate)>; 6] = [
        vec![],
        vec![(APPEND, Fate::CutBefore)],
        vec![(APPEND, Fate::CutAfter)],
        vec![(COMMIT, Fate::CutBefore)],
        vec![(COMMIT, Fate::CutUnderway)],
        vec![(COMMIT, Fate::CutAfter)],
    ];
    let rounds = i64::try_from(cuts.len()).unwrap();
    for cuts in cuts {
        outrun(&proxy, &other, user);
        cuts.into_iter().for_each(|(statement, fate)| proxy.next(statement, fate));
        let key = uuid::Uuid::new_v4().to_string();
        let receipt = timeout(LONG, node.commands.execute(on_account(&key, user, earn(1)))).await.unwrap().unwrap();
        assert!(proxy.script_is_done());
        assert!(!receipt.replayed);
        assert_in_log(&store.log().await, &receipt);
        // A command that is found to be repeated only under the locks, and one that is refused there.
        outrun(&proxy, &other, user);
        let again = node.commands.execute(on_account(&key, user, earn(1))).await.unwrap();
        assert_eq!((again.replayed, again.recorded), (true, receipt.recorded));
        outrun(&proxy, &other, user);
        assert!(insufficient(&node.commands.execute(once(user, spend(1_000))).await));
        proxy.forget_script();
    }
    assert!(available(&store.log().await, user) > rounds * 3);
}

#[tokio::test]
async fn locks_that_cannot_be_had_in_time_are_tried_for_again() {
    let store = Store::create().await;
    let limits = Limits { append_timeout: Duration::from_millis(300), ..Limits::default() };
    let (proxy, node) = behind_proxy(&store, &limits).await;
    let other = Arc::new(store.node());
    let user = user_of_shard(0);
    node.commands.execute(once(user, earn(1))).await.unwrap();

    outrun(&proxy, &other, user);
    let (mut blocker, mut watcher) = (store.connect(COMMAND).await, store.connect(COMMAND).await);
    // A little longer than a lock may take: until the wait has failed once.
    let block = async move {
        blocker.execute("BEGIN").await.unwrap();
        blocker.execute("SELECT lock_shards('{0}')").await.unwrap();
        tokio::spawn(async move {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                         AND wait_event_type = 'Lock'";
            for wanted in [1, 0] {
                while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watcher).await.unwrap() != wanted {
                    tokio::task::yield_now().await;
                }
            }
            blocker.execute("ROLLBACK").await.unwrap();
        });
    };
    proxy.next("BEGIN", Fate::First(block.boxed()));
    let receipt = timeout(LONG, node.commands.execute(once(user, earn(1)))).await.expect("answered in time").unwrap();
    assert!(proxy.script_is_done());
    assert_in_log(&store.log().await, &receipt);
    node.commands.execute(once(user, earn(1))).await.unwrap();
}

#[tokio::test]
async fn killed_backends_lose_nothing_and_repeat_nothing() {
    let store = Store::create().await;
    let node = store.node();
    let users: Vec<_> = (0..8).map(user_of_shard).collect();
    let done = &AtomicUsize::new(0);
    let load = async {
        let node = &node;
        let workers = users.iter().map(|user| async move {
            let mut receipts = Vec::new();
            for number in 0..100 {
                let key = format!("{user} {number}");
                receipts.push(node.commands.execute(on_account(&key, *user, earn(1))).await.unwrap());
                done.fetch_add(1, Ordering::Relaxed);
            }
            receipts
        });
        join_all(workers).await
    };
    let killing = async {
        let mut killer = store.connect(COMMAND).await;
        for kill in 1.. {
            // Each time at another moment of the work.
            while done.load(Ordering::Relaxed) < kill * 37 {
                tokio::task::yield_now().await;
            }
            let backends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                            WHERE datname = current_database() AND application_name = 'skyriff command'";
            killer.execute(backends).await.unwrap();
        }
    };
    let receipts = tokio::select! {
        receipts = load => receipts,
        () = killing => unreachable!("it never ends by itself"),
    };
    let log = store.log().await;
    assert_eq!(log.len(), 8 * 100);
    for receipt in receipts.iter().flatten() {
        assert!(!receipt.replayed);
        assert_in_log(&log, receipt);
    }
    assert!(users.iter().all(|user| available(&log, *user) == 100));
}
