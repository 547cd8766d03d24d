//! A batch is all right or each command alone; a command on two streams is on both or on neither.

use futures::future::join_all;
use skyriff_domain::{OrderId, Refusal, StreamId, recharge_order};
use skyriff_write_side::Failure;
use uuid::Uuid;

use crate::store::{
    Store, available, command, earn, insufficient, noon, on_account, once, recharge, some_user, spend, user_of_shard,
};

const MISMATCH: Failure = Failure::Refused(Refusal::RechargeOrder(recharge_order::Refusal::OrderMismatch));

#[tokio::test]
async fn a_refused_command_records_no_event_and_harms_no_neighbour() {
    let store = Store::create().await;
    let node = store.node();
    let user = user_of_shard(4);
    let neighbours: Vec<_> = [4, 4, 6, 0].map(user_of_shard).into();
    let mut commands = vec![once(user, earn(10))];
    for _ in 0..10 {
        commands.push(once(user, spend(3)));
        commands.extend(neighbours.iter().map(|neighbour| once(*neighbour, earn(1))));
    }
    let results = join_all(commands.into_iter().map(|command| node.commands.execute(command))).await;
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(accepted, 1 + 3 + 40);
    assert!(results.iter().all(|result| result.is_ok() || insufficient(result)));

    let log = store.log().await;
    assert_eq!((log.len(), store.commands_recorded().await), (44, (44, 7)));
    assert_eq!(available(&log, user), 1);
    assert!(neighbours.iter().all(|neighbour| available(&log, *neighbour) == 10));
}

#[tokio::test]
async fn a_recharge_is_on_the_order_and_on_the_account_or_on_neither() {
    let store = Store::create().await;
    let node = store.node();
    let (user, order, refused) = (some_user(), OrderId(Uuid::new_v4()), OrderId(Uuid::new_v4()));
    let done = node.commands.execute(command("pay", user, noon(), recharge(order, 50))).await.unwrap();
    let streams: Vec<_> = done.recorded.iter().map(|recorded| recorded.stream).collect();
    assert_eq!(streams, [StreamId::RechargeOrder(order), StreamId::PointsAccount(user)]);
    let too_much = command("too much", user, noon(), recharge(refused, 2_000_000_000));
    assert!(matches!(node.commands.execute(too_much).await, Err(Failure::Refused(Refusal::Points(_)))));

    // Under another key it is the same payment: nothing to do, or a mistake.
    let again = node.commands.execute(command("pay again", user, noon(), recharge(order, 50))).await.unwrap();
    assert_eq!((again.recorded.len(), again.replayed), (0, false));
    assert_eq!(node.commands.execute(command("pay more", user, noon(), recharge(order, 51))).await, Err(MISMATCH));
    let log = store.log().await;
    assert_eq!((log.len(), available(&log, user)), (2, 50));
    // The order that was refused is as free as before.
    node.commands.execute(command("less", user, noon(), recharge(refused, 1))).await.unwrap();
}

#[tokio::test]
async fn an_order_for_two_users_is_credited_once() {
    let store = Store::create().await;
    let (one, other) = (store.node(), store.node());
    for round in 0..20 {
        let order = OrderId(Uuid::new_v4());
        // In one executor, in two of one node, in two nodes; in one shard, in two.
        let (first, second) = [(0, 0), (0, 2), (0, 1), (1, 0)][round % 4];
        let users = [user_of_shard(first), user_of_shard(second)];
        let second_node = if round % 2 == 0 { &one } else { &other };
        let neighbour = user_of_shard(first);
        let pay = |user| command(&Uuid::new_v4().to_string(), user, noon(), recharge(order, 5));
        let (here, there, beside) = tokio::join!(
            one.commands.execute(pay(users[0])),
            second_node.commands.execute(pay(users[1])),
            one.commands.execute(once(neighbour, earn(1))),
        );
        beside.unwrap();
        assert!(here.is_ok() != there.is_ok(), "{here:?} {there:?}");
        assert_eq!(here.and(there), Err(MISMATCH));
        // Also later, when both remember the order as they saw it.
        for (node, user) in [(&one, users[0]), (&other, users[0]), (&one, users[1]), (&other, users[1])] {
            let again = node.commands.execute(pay(user)).await;
            assert!(again.as_ref().is_ok_and(|receipt| receipt.recorded.is_empty()) || again == Err(MISMATCH));
        }
        let log = store.log().await;
        assert_eq!(users.map(|user| available(&log, user)).into_iter().sum::<i64>(), 5);
    }
}

#[tokio::test]
async fn a_command_that_the_database_cannot_keep_harms_no_neighbour() {
    use chrono::{DateTime, Utc};
    use skyriff_domain::Intent;
    let store = Store::create().await;
    let node = store.node();
    let users: Vec<_> = (0..10).map(|_| user_of_shard(0)).collect();
    // No timestamp of Postgres is that early.
    let early = command("early", users[0], DateTime::<Utc>::MIN_UTC, Intent::Points(earn(1)));
    let good = users.iter().map(|user| once(*user, earn(1)));
    let commands: Vec<_> = [early].into_iter().chain(good).collect();
    let results = join_all(commands.into_iter().map(|command| node.commands.execute(command))).await;
    assert!(matches!(results[0], Err(Failure::Fault(_))), "{:?}", results[0]);
    assert!(results[1..].iter().all(Result::is_ok));
    assert_eq!(store.log().await.len(), 10);
    node.commands.execute(on_account("early", users[0], earn(1))).await.unwrap();
}
