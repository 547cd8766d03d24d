//! A full queue says so at once, and what was taken on is answered, also by a node that stops.

use std::time::Duration;

use futures::{FutureExt, future::join_all};
use skyriff_postgres::databases::COMMAND;
use skyriff_write_side::{Failure, commands::Limits};
use sqlx::{Executor, PgConnection};
use tokio::time::timeout;

use crate::store::{LONG, Store, earn, once, some_user, user_of_shard};

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

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_serves_what_it_took() {
    let store = Store::create().await;
    let node = store.node_with(&Limits { queue_max: 4, append_timeout: LONG, patience: LONG, ..Limits::default() });
    let (mut blocker, mut watcher) = (store.connect(COMMAND).await, store.connect(COMMAND).await);
    blocker.execute("BEGIN").await.unwrap();
    blocker.execute("SELECT lock_shards('{0}')").await.unwrap();

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
