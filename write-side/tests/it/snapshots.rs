//! Snapshots save reading and never decide.

use skyriff_domain::UserId;
use skyriff_write_side::commands::Limits;
use sqlx::Executor;
use tokio::time::timeout;

use crate::store::{LONG, Store, available, earn, insufficient, once, some_user, spend};

fn often() -> Limits {
    Limits { snapshot_every: 5, ..Limits::default() }
}

/// Give users points one by one until each has a snapshot; what each then has.
async fn earn_until_snapped(store: &Store, users: &[UserId]) -> i64 {
    let node = store.node_with(&often());
    let mut owner = store.owner().await;
    let mut earned = 0;
    let until_snapped = async {
        loop {
            for user in users {
                node.commands.execute(once(*user, earn(1))).await.unwrap();
            }
            earned += 1;
            let snapped: i64 = sqlx::query_scalar("SELECT count(*) FROM snapshots WHERE sequence >= 5")
                .fetch_one(&mut owner)
                .await
                .unwrap();
            if usize::try_from(snapped).unwrap() == users.len() {
                return;
            }
        }
    };
    timeout(LONG, until_snapped).await.expect("snapshots appear");
    node.stop().await;
    earned
}

#[tokio::test]
async fn a_stream_is_read_from_its_snapshot() {
    let store = Store::create().await;
    let user = some_user();
    let earned = earn_until_snapped(&store, &[user]).await;
    // What the snapshot covers is not even read any more.
    store.owner().await.execute("DELETE FROM events e USING snapshots s WHERE e.sequence < s.sequence").await.unwrap();
    let node = store.node_with(&often());
    assert!(insufficient(&node.commands.execute(once(user, spend(earned + 1))).await));
    node.commands.execute(once(user, spend(earned))).await.unwrap();
}

#[tokio::test]
async fn streams_that_are_put_out_of_memory_all_the_time_are_the_same_streams() {
    let store = Store::create().await;
    let node = store.node_with(&Limits { cache_bytes_max: 0, snapshot_every: 3, ..Limits::default() });
    let users: Vec<_> = (0..10).map(|_| some_user()).collect();
    for round in 0..30 {
        for user in &users {
            node.commands.execute(once(*user, earn(2))).await.unwrap();
            assert!(insufficient(&node.commands.execute(once(*user, spend(round + 3))).await));
            node.commands.execute(once(*user, spend(1))).await.unwrap();
        }
    }
    let log = store.log().await;
    assert!(users.iter().all(|user| available(&log, *user) == 30));
}
