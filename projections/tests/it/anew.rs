//! What is built anew is what is there.

use skyriff_domain::{
    Bucket,
    points_account::{Action, Direction},
};
use skyriff_follow::ReadModel;
use skyriff_projections::Projection;
use sqlx::{Connection, Executor, PgConnection};

use crate::{
    books::{balance, caught_up, checkpoints, connect, projector, until},
    log::{Log, earn, noon, points, some_user},
};

async fn rows(reads: &mut PgConnection, table: &str) -> Vec<String> {
    let mut rows: Vec<String> =
        sqlx::query_scalar(&format!("SELECT t::text FROM {table} t")).fetch_all(reads).await.unwrap();
    rows.sort();
    rows
}

#[tokio::test]
async fn filling_gives_the_rows_that_applying_gives_whatever_texts_are_in_them() {
    let mut log = Log::create().await;
    let user = some_user();
    log.on_account(user, noon(), earn(Bucket::Income, 100)).await;
    for reason in ["plain", "tab\tand\nline\r", r"back\slash \N \. \\", "\u{1F3A5} ü"] {
        // Some of these are no reason that anybody may give.
        let Ok(reason) = reason.to_owned().try_into() else { continue };
        let action = Action::Adjust { bucket: Bucket::Income, direction: Direction::Debit, points: points(1), reason };
        log.on_account(user, noon(), action).await;
    }
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    caught_up(&log, &mut reads).await;
    projector.stop().await;
    let events = log.events().await;
    for projection in Projection::ALL {
        let mut before = Vec::new();
        for table in projection.tables() {
            before.push(rows(&mut reads, table).await);
        }
        let mut transaction = reads.begin().await.unwrap();
        let tables = projection.tables().join(", ");
        transaction.execute(format!("TRUNCATE {tables}").as_str()).await.unwrap();
        projection.fill(&events, &mut transaction).await.unwrap();
        transaction.commit().await.unwrap();
        for (table, before) in projection.tables().iter().zip(before) {
            assert_eq!(rows(&mut reads, table).await, before, "{table}");
        }
    }
    assert!(rows(&mut reads, "ledger_entries").await.iter().any(|row| row.contains('\\')));
}

#[tokio::test]
async fn tables_of_another_version_are_left_alone_until_they_are_built_anew() {
    let mut log = Log::create().await;
    let user = some_user();
    log.earn(user, 3).await;
    let mut reads = connect(&log.databases).await;
    let first = projector(&log);
    caught_up(&log, &mut reads).await;
    first.stop().await;
    reads.execute("UPDATE checkpoints SET version = 0 WHERE projection = 'balances'").await.unwrap();
    log.earn(user, 4).await;
    let second = projector(&log);
    until("another read model goes on", async || {
        let entries = checkpoints(&mut reads, Projection::LedgerEntries).await;
        log.heads().iter().all(|(shard, head)| entries.get(shard) == Some(&(*head, None)))
    })
    .await;
    assert_eq!(balance(&mut reads, user).await, Some([0, 0, 3, 0, 0, 0].into()));
    reads.execute("UPDATE checkpoints SET version = 1 WHERE projection = 'balances'").await.unwrap();
    caught_up(&log, &mut reads).await;
    assert_eq!(balance(&mut reads, user).await, Some([0, 0, 7, 0, 0, 0].into()));
    second.stop().await;
}
