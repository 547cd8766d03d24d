//! The same key is the same command: done once, answered alike for ever.

use chrono::TimeDelta;
use futures::future::join_all;
use skyriff_domain::{Intent, points_account::Action};
use skyriff_postgres::databases::COMMAND;
use skyriff_write_side::{Failure, Receipt};
use sqlx::Executor;

use crate::{
    overload::wait_for_a_blocked_append,
    store::{
        Store, assert_in_log, command, earn, insufficient, insufficient_before, noon, on_account, once, some_user,
        spend, user_of_shard,
    },
};

fn replay_of(first: &Receipt) -> Receipt {
    Receipt { replayed: true, ..first.clone() }
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_and_records_nothing() {
    let store = Store::create().await;
    let node = store.node();
    let user = some_user();
    let first = node.commands.execute(on_account("key", user, earn(5))).await.unwrap();
    assert!(!first.replayed);
    node.commands.execute(once(user, earn(1))).await.unwrap();
    assert_eq!(node.commands.execute(on_account("key", user, earn(5))).await, Ok(replay_of(&first)));
    assert_eq!(store.log().await.len(), 2);
}

#[tokio::test]
async fn a_retry_that_would_be_refused_by_now_still_gets_the_first_answer() {
    let store = Store::create().await;
    let node = store.node();
    let user = some_user();
    let check_in =
        |key, minutes| command(key, user, noon() + TimeDelta::minutes(minutes), Intent::Points(Action::CheckIn));
    let first = node.commands.execute(check_in("first", 0)).await.unwrap();
    assert_eq!(node.commands.execute(check_in("first", 10)).await, Ok(replay_of(&first)));
    assert!(matches!(node.commands.execute(check_in("second", 20)).await, Err(Failure::Refused(_))));

    node.commands.execute(once(user, earn(90))).await.unwrap();
    let all = spend(100);
    let first = node.commands.execute(on_account("all", user, all.clone())).await.unwrap();
    assert!(insufficient(&node.commands.execute(once(user, spend(1))).await));
    assert_eq!(node.commands.execute(on_account("all", user, all)).await, Ok(replay_of(&first)));
    assert_eq!(store.log().await.len(), 3);
}

/// Whoever was told no on one node is not charged by an older attempt that was stuck on another.
#[tokio::test]
async fn a_refused_command_stays_refused_under_its_key_on_every_node() {
    let store = Store::create().await;
    let (one, other) = (store.node(), store.node());
    let user = some_user();
    let buy = spend(5);
    assert!(insufficient(&one.commands.execute(on_account("buy", user, buy.clone())).await));
    other.commands.execute(once(user, earn(5))).await.unwrap();
    for node in [&other, &one] {
        assert!(insufficient_before(&node.commands.execute(on_account("buy", user, buy.clone())).await));
        assert_eq!(node.commands.execute(on_account("buy", user, spend(4))).await, Err(Failure::KeyReused));
    }
    assert_eq!((store.log().await.len(), store.commands_recorded().await), (1, (1, 1)));
    one.commands.execute(on_account("buy again", user, buy)).await.unwrap();
}

#[tokio::test]
async fn many_retries_of_a_refused_command_on_two_nodes_agree() {
    let store = Store::create().await;
    let (one, other) = (store.node(), store.node());
    let user = user_of_shard(1);
    for round in 0..20 {
        let key = format!("buy {round}");
        let buy = spend(1);
        let attempts = (0..6).map(|number| {
            let node = if number % 2 == 0 { &one } else { &other };
            // The points arrive in the middle of it, and are spent again by whichever attempt comes after.
            let command = if number == 3 { once(user, earn(1)) } else { on_account(&key, user, buy.clone()) };
            node.commands.execute(command)
        });
        let mut answers = join_all(attempts).await;
        answers.remove(3).unwrap();
        let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!(accepted == 0 || accepted == answers.len(), "{answers:?}");
        let first = answers.iter().filter(|answer| insufficient(answer) || answer.as_ref().is_ok_and(|r| !r.replayed));
        assert_eq!(first.count(), 1, "{answers:?}");
        if accepted == 0 {
            one.commands.execute(once(user, spend(1))).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_same_key_for_another_command_is_refused() {
    let store = Store::create().await;
    let node = store.node();
    let user = user_of_shard(0);
    node.commands.execute(on_account("key", user, earn(5))).await.unwrap();
    let others = [
        on_account("key", user, earn(6)),
        on_account("key", user, Action::CheckIn),
        // Refusable by itself: that is not what the caller has to learn.
        on_account("key", user, spend(1_000)),
        on_account("key", user_of_shard(0), earn(5)),
        on_account("key", user_of_shard(1), earn(5)),
    ];
    for other in others {
        assert_eq!(node.commands.execute(other).await, Err(Failure::KeyReused));
    }
    assert_eq!(store.log().await.len(), 1);
}

#[tokio::test]
async fn one_key_for_two_shards_at_once_is_done_for_one_of_them() {
    let store = Store::create().await;
    let node = store.node();
    for round in 0..20 {
        let key = format!("key {round}");
        let (even, odd) = (user_of_shard(2), user_of_shard(5));
        let (even, odd) = tokio::join!(
            node.commands.execute(on_account(&key, even, earn(1))),
            node.commands.execute(on_account(&key, odd, earn(1))),
        );
        let refused = [&even, &odd].into_iter().filter(|result| **result == Err(Failure::KeyReused)).count();
        assert_eq!((refused, even.is_ok() != odd.is_ok()), (1, true), "{even:?} {odd:?}");
    }
    assert_eq!(store.log().await.len(), 20);
}

#[tokio::test]
async fn many_retries_at_once_on_two_nodes_are_done_once() {
    let store = Store::create().await;
    let (one, other) = (store.node(), store.node());
    let user = some_user();
    let retries = (0..100).map(|number| {
        let node = if number % 2 == 0 { &one } else { &other };
        node.commands.execute(on_account("key", user, earn(7)))
    });
    let receipts: Vec<_> = join_all(retries).await.into_iter().map(Result::unwrap).collect();
    let log = store.log().await;
    assert_eq!(log.len(), 1);
    assert_in_log(&log, &receipts[0]);
    assert_eq!(receipts.iter().filter(|receipt| !receipt.replayed).count(), 1);
    assert!(receipts.iter().all(|receipt| replay_of(receipt) == replay_of(&receipts[0])));
}

#[tokio::test]
async fn another_node_replays_what_this_one_did() {
    let store = Store::create().await;
    let one = store.node();
    let user = some_user();
    let first = one.commands.execute(on_account("key", user, earn(7))).await.unwrap();
    one.stop().await;
    let other = store.node();
    assert_eq!(other.commands.execute(on_account("key", user, earn(7))).await, Ok(replay_of(&first)));
    assert_eq!(store.log().await.len(), 1);
}

#[tokio::test]
async fn a_command_that_changed_nothing_is_remembered_as_well() {
    let store = Store::create().await;
    let node = store.node();
    let user = some_user();
    let expire = |days| command("expire", user, noon() + TimeDelta::days(days), Intent::Points(Action::Expire));
    let earn_promo = Action::CheckIn;
    node.commands.execute(once(user, earn_promo)).await.unwrap();
    let first = node.commands.execute(expire(0)).await.unwrap();
    assert!(first.recorded.is_empty());
    // By then there is something to expire; but the command has been done.
    assert_eq!(node.commands.execute(expire(1_000)).await, Ok(replay_of(&first)));
    assert_eq!(node.commands.execute(on_account("expire", user, earn(1))).await, Err(Failure::KeyReused));
    assert_eq!(store.log().await.len(), 1);
}

#[tokio::test]
async fn a_retry_is_found_also_while_command_ids_move_to_another_partition() {
    let store = Store::create().await;
    let user = some_user();
    let one = store.node();
    let first = one.commands.execute(on_account("key", user, earn(7))).await.unwrap();
    one.stop().await;
    // Beyond the partitions there are, so that housekeeping will have to move it.
    let (mut owner, mut watcher) = (store.owner().await, store.connect(COMMAND).await);
    owner.execute("UPDATE commands SET recorded_at = recorded_at + interval '10 days'").await.unwrap();
    owner.execute("BEGIN").await.unwrap();
    owner.execute("SELECT keep_commands('20 days')").await.unwrap();
    let other = store.node();
    let (again, ()) = tokio::join!(other.commands.execute(on_account("key", user, earn(7))), async {
        wait_for_a_blocked_append(&mut watcher).await;
        owner.execute("COMMIT").await.unwrap();
    });
    assert_eq!(again, Ok(replay_of(&first)));
    assert_eq!(store.log().await.len(), 1);
}
