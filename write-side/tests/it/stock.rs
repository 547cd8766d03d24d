//! What we write, the stock repository of postgres-es reads as it is.

use cqrs_es::{AggregateContext, EventStore, persist::PersistedEventStore};
use postgres_es::PostgresEventRepository;
use skyriff_domain::{
    Bucket, HoldId, OrderId,
    points_account::{Action, Direction, PointsAccount},
    recharge_order::RechargeOrder,
};
use skyriff_postgres::{databases::QUERY, testing::TestDatabases};
use uuid::Uuid;

use crate::store::{Store, account, command, earn, noon, once, points, recharge, some_user, spend};

#[tokio::test]
async fn the_stock_event_store_folds_our_events_to_the_same_state() {
    let store = Store::create().await;
    let node = store.node();
    let (user, order, hold) = (some_user(), OrderId(Uuid::new_v4()), HoldId(Uuid::new_v4()));
    let held = Action::Hold { hold, points: points(30), lifetime_s: None, reason: "video".parse().unwrap() };
    let corrected = Action::Adjust {
        bucket: Bucket::Paid,
        direction: Direction::Debit,
        points: points(1),
        reason: "Grüße, \"quoted\" 你好".to_owned().try_into().unwrap(),
    };
    let actions =
        [Action::CheckIn, earn(40), held, Action::Capture { hold, points: Some(points(10)) }, spend(3), corrected];
    node.commands.execute(command("pay", user, noon(), recharge(order, 100))).await.unwrap();
    for action in actions {
        node.commands.execute(once(user, action)).await.unwrap();
    }
    let log = store.log().await;

    let repository = || PostgresEventRepository::new(TestDatabases::pool(store.options(QUERY)));
    let stock = PersistedEventStore::<_, PointsAccount>::new_event_store(repository());
    let mut loaded = stock.load_aggregate(&user.to_string()).await.unwrap();
    assert_eq!(*loaded.aggregate(), account(&log, user));
    let events = stock.load_events(&user.to_string()).await.unwrap();
    assert_eq!(events.iter().map(|event| event.sequence).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
    let actors: Vec<_> = events.iter().filter_map(|event| event.metadata.get("actor")).collect();
    assert_eq!(actors, vec!["service:test"; 7]);

    let orders = PersistedEventStore::<_, RechargeOrder>::new_event_store(repository());
    assert_eq!(orders.load_events(&order.to_string()).await.unwrap().len(), 1);
    assert_ne!(*orders.load_aggregate(&order.to_string()).await.unwrap().aggregate(), RechargeOrder::default());
}
