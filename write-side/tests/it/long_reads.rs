//! Appends cost the same however long others read: they leave no dead rows that a long read would keep alive.

use sqlx::Executor;

use crate::store::{Store, earn, insufficient, once, spend, user_of_shard};

#[tokio::test]
async fn an_append_neither_changes_nor_locks_a_row_that_is_there() {
    let store = Store::create().await;
    let (one, other) = (store.node(), store.node());
    let mut reader = store.owner().await;
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    reader.execute("SELECT count(*) FROM events").await.unwrap();
    for shard in [0, 0, 1, 0] {
        let user = user_of_shard(shard);
        for node in [&one, &other] {
            node.commands.execute(once(user, earn(1))).await.unwrap();
        }
        one.commands.execute(once(user, spend(2))).await.unwrap();
        assert!(insufficient(&other.commands.execute(once(user, spend(1))).await));
    }
    let mut owner = store.owner().await;
    for table in ["events", "commands", "shards", "store"] {
        // Set by whatever deletes, updates or locks a row.
        let touched = format!("SELECT count(*) FROM {table} WHERE xmax <> '0'");
        let touched: i64 = sqlx::query_scalar(&touched).fetch_one(&mut owner).await.unwrap();
        assert_eq!(touched, 0, "rows of {table}");
    }
}
