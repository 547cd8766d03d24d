//! Two nodes on one database: whoever is first wins, and nobody decides on what is no longer so.

use futures::future::join_all;

use crate::store::{Store, assert_in_log, available, earn, insufficient, once, some_user, spend};

#[tokio::test]
async fn no_update_is_lost_and_no_point_is_spent_twice() {
    let store = Store::create().await;
    let nodes = [store.node(), store.node()];
    let users: Vec<_> = (0..3).map(|_| some_user()).collect();
    let mut running = Vec::new();
    for worker in 0..24_usize {
        let (commands, user) = (nodes[worker % 2].commands.clone(), users[worker % 3]);
        running.push(async move {
            let mut results = Vec::new();
            for turn in 0..25 {
                // Spending more than is earned, so that refusals come all the time.
                let (action, amount) = if turn % 2 == 0 { (earn(2), 2) } else { (spend(3), -3) };
                results.push((user, amount, commands.execute(once(user, action)).await));
            }
            results
        });
    }
    let results: Vec<_> = join_all(running).await.into_iter().flatten().collect();
    let log = store.log().await;
    for user in &users {
        let of_user = results.iter().filter(|(of, ..)| of == user);
        let sum: i64 = of_user.filter(|(_, _, result)| result.is_ok()).map(|(_, amount, _)| amount).sum();
        assert_eq!(available(&log, *user), sum);
        assert!((0..3).contains(&sum) || sum >= 0, "never below zero");
    }
    for (_, _, result) in &results {
        match result {
            Ok(receipt) => assert_in_log(&log, receipt),
            Err(_) => assert!(insufficient(result), "{result:?}"),
        }
    }
    assert_eq!(log.len(), results.iter().filter(|(_, _, result)| result.is_ok()).count());
}

#[tokio::test]
async fn a_node_decides_on_what_the_other_has_done_since() {
    let store = Store::create().await;
    let (one, other) = (store.node(), store.node());
    let user = some_user();
    // Both have the account in memory.
    one.commands.execute(once(user, earn(10))).await.unwrap();
    assert!(insufficient(&other.commands.execute(once(user, spend(11))).await));
    for _ in 0..5 {
        one.commands.execute(once(user, spend(10))).await.unwrap();
        assert!(insufficient(&other.commands.execute(once(user, spend(1))).await), "spent by the other node");
        one.commands.execute(once(user, earn(10))).await.unwrap();
        other.commands.execute(once(user, spend(10))).await.expect("earned on the other node");
        assert!(insufficient(&one.commands.execute(once(user, spend(1))).await), "spent by the other node");
        other.commands.execute(once(user, earn(10))).await.unwrap();
    }
    assert_eq!(available(&store.log().await, user), 10);
}

#[tokio::test]
async fn a_node_that_the_other_has_left_far_behind_catches_up() {
    let store = Store::create().await;
    let (one, other) = (store.node(), store.node());
    let user = some_user();
    other.commands.execute(once(user, earn(1))).await.unwrap();
    // More than a node reads to catch up.
    for _ in 0..3 {
        let earnings = (0..4_000).map(|_| one.commands.execute(once(user, earn(1))));
        join_all(earnings).await.into_iter().for_each(|result| drop(result.unwrap()));
    }
    other.commands.execute(once(user, spend(12_001))).await.unwrap();
    assert!(insufficient(&one.commands.execute(once(user, spend(1))).await));
}
