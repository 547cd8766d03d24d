//! Where events land: positions without a gap, exactly where the receipt says.

use futures::future::join_all;

use crate::store::{Store, assert_in_log, available, earn, on_account, once, some_user};

#[tokio::test]
async fn every_event_is_where_its_receipt_says_and_no_position_is_left_out() {
    let store = Store::create().await;
    let node = store.node();
    let hot = some_user();
    let users: Vec<_> = (0..40).map(|_| some_user()).collect();
    let commands = (0..1_000_usize).map(|number| {
        let user = if number % 2 == 0 { hot } else { users[number % users.len()] };
        node.commands.execute(once(user, earn(1)))
    });
    let receipts: Vec<_> = join_all(commands).await.into_iter().map(Result::unwrap).collect();

    let log = store.log().await;
    assert_eq!(log.len(), 1_000);
    receipts.iter().for_each(|receipt| assert_in_log(&log, receipt));
    let mut places: Vec<_> =
        receipts.iter().flat_map(|receipt| &receipt.recorded).map(|event| event.position).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 1_000, "no two receipts share a position");
    assert_eq!(available(&log, hot), 500);
    node.stop().await;
}

#[tokio::test]
async fn a_receipt_without_events_names_the_head_of_the_shard() {
    use skyriff_domain::points_account::Action;
    let store = Store::create().await;
    let node = store.node();
    let user = some_user();
    let nothing = node.commands.execute(once(user, Action::Expire)).await.unwrap();
    assert_eq!((nothing.position.position.0, nothing.recorded.len()), (0, 0));
    let earned = node.commands.execute(on_account("earn", user, earn(1))).await.unwrap();
    let nothing = node.commands.execute(once(user, Action::Expire)).await.unwrap();
    assert_eq!((nothing.position, nothing.recorded.len()), (earned.position, 0));
}
