//! Commands that are recorded together or not at all.

use futures::FutureExt;
use skyriff_write_side::{Failure, commands::NotTogether};

use crate::store::{Store, assert_in_log, available, earn, insufficient, on_account, once, spend, user_of_shard};

#[tokio::test]
async fn commands_of_one_shard_are_recorded_together_or_not_at_all() {
    let store = Store::create().await;
    let (node, other) = (store.node(), store.node());
    let (one, two) = (user_of_shard(3), user_of_shard(3));
    let together = async |commands| node.commands.execute_together(commands).await.unwrap();
    let first = || vec![on_account("a", one, earn(5)), on_account("b", two, earn(1)), on_account("c", one, earn(1))];
    let done = together(first()).await;
    let log = store.log().await;
    done.iter().for_each(|result| assert_in_log(&log, result.as_ref().unwrap()));

    // Each is decided on what the ones before it did; one that is refused takes all with it.
    let refused = together(vec![once(one, spend(6)), once(two, earn(1)), once(one, spend(1))]).await;
    assert_eq!(refused[..2], [Err(Failure::RefusedTogether), Err(Failure::RefusedTogether)]);
    assert!(insufficient(&refused[2]));
    together(vec![once(one, earn(1)), once(one, spend(7))]).await.into_iter().for_each(|result| drop(result.unwrap()));
    assert!(insufficient(&other.commands.execute(once(one, spend(1))).await));

    // All again, here and elsewhere: the first answers.
    for node in [&node, &other] {
        let again = node.commands.execute_together(first()).await.unwrap();
        assert!(again.iter().zip(&done).all(|(again, done)| {
            let (again, done) = (again.as_ref().unwrap(), done.as_ref().unwrap());
            again.replayed && again.recorded == done.recorded
        }));
    }
    let log = store.log().await;
    assert_eq!((log.len(), available(&log, one), available(&log, two)), (5, 0, 1));
    let mixed = node.commands.execute_together(vec![once(one, earn(1)), once(user_of_shard(4), earn(1))]).await;
    assert_eq!(mixed, Err(NotTogether::SeveralShards));
    let twice = once(one, earn(1));
    let repeated = node.commands.execute_together(vec![twice.clone(), once(one, earn(1)), twice.clone()]);
    assert_eq!(repeated.now_or_never(), Some(Err(NotTogether::Repeated(twice.id))), "at once");

    // A key of another command spoils the whole batch, and nothing of it is recorded.
    let reused = together(vec![on_account("a", one, earn(9)), once(one, earn(1))]).await;
    assert_eq!(reused, [Err(Failure::KeyReused), Err(Failure::RefusedTogether)]);
    assert_eq!(store.log().await.len(), 5);
}
