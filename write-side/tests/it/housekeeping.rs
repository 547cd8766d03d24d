//! Command ids are kept for as long as they are promised, and forgotten by dropping partitions.

use std::time::Duration;

use skyriff_postgres::databases;
use skyriff_write_side::event_store::keep_commands;
use sqlx::{Connection, Executor};

use crate::store::{Store, earn, on_account, some_user};

const KEEP: Duration = Duration::from_secs(72 * 3_600);

#[tokio::test]
async fn old_command_ids_go_with_their_partition_and_young_ones_stay() {
    let store = Store::create().await;
    let node = store.node();
    let user = some_user();
    node.commands.execute(on_account("young", user, earn(1))).await.unwrap();
    let mut command = store.connect(databases::COMMAND).await;
    let mut owner = store.owner().await;
    keep_commands(&mut command, KEEP).await.unwrap();
    // A partition of long ago, with an id in it.
    owner
        .execute(
            "CREATE TABLE commands_old PARTITION OF commands
                 FOR VALUES FROM (now() - interval '30 days') TO (now() - interval '20 days');
             INSERT INTO command_partitions VALUES ('commands_old', now() - interval '30 days', now() - interval '20 days');
             INSERT INTO commands SELECT gen_random_uuid(), gen_random_uuid(), 0, 1, 0, now() - interval '25 days'",
        )
        .await
        .unwrap();
    keep_commands(&mut command, KEEP).await.unwrap();
    keep_commands(&mut command, KEEP).await.unwrap();
    let (ids, partitions, rest): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM commands), (SELECT count(*) FROM command_partitions),
                (SELECT count(*) FROM commands_rest)",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!((ids, partitions, rest), (1, 1, 0), "the young id, in the one partition that is due");
    assert!(node.commands.execute(on_account("young", user, earn(1))).await.unwrap().replayed);
    assert!(keep_commands(&mut command, Duration::from_secs(60)).await.is_err(), "a minute is no promise");
    owner.close().await.unwrap();
}
