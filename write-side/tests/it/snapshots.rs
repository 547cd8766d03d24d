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
async fn a_snapshot_that_does_not_hold_is_never_trusted() {
    let store = Store::create().await;
    let users = [some_user(), some_user()];
    let mut has = earn_until_snapped(&store, &users).await;
    let mut owner = store.owner().await;
    owner.execute("CREATE TABLE sound AS TABLE snapshots").await.unwrap();
    let damages = [
        r#"UPDATE snapshots SET state = regexp_replace(state, '"income":\d+', '"income":1000000')"#,
        "UPDATE snapshots SET state = ''",
        "UPDATE snapshots SET state = 'null'",
        "UPDATE snapshots SET checksum = ''",
        "UPDATE snapshots SET checksum = set_byte(checksum, 0, (get_byte(checksum, 0) + 1) % 256)",
        "UPDATE snapshots SET sequence = sequence + 1000",
        "UPDATE snapshots SET sequence = sequence - 1",
        "UPDATE snapshots SET sequence = 1",
        "UPDATE snapshots SET state_version = state_version + 1",
        "UPDATE snapshots SET state_version = 0, state = ''",
        // Each other's.
        "UPDATE snapshots s SET state = o.state, checksum = o.checksum, sequence = o.sequence
         FROM sound o WHERE o.aggregate_id <> s.aggregate_id",
    ];
    for damage in damages {
        owner.execute("TRUNCATE snapshots").await.unwrap();
        owner.execute("INSERT INTO snapshots TABLE sound").await.unwrap();
        assert_eq!(owner.execute(damage).await.unwrap().rows_affected(), 2, "{damage}");
        // Never a new snapshot, so that the damaged one stays.
        let node = store.node_with(&Limits { snapshot_every: i64::MAX, ..Limits::default() });
        for user in users {
            assert!(insufficient(&node.commands.execute(once(user, spend(has + 1))).await), "{damage}");
            let all = node.commands.execute(once(user, spend(has))).await;
            assert!(all.is_ok(), "{damage}: {all:?}");
            node.commands.execute(once(user, earn(has + 1))).await.unwrap();
        }
        has += 1;
        node.stop().await;
    }
    let log = store.log().await;
    assert!(users.iter().all(|user| available(&log, *user) == has));
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
