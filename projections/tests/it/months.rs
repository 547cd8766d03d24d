//! The ledger's partitions come with the events.

use chrono::{TimeZone, Utc};
use skyriff_domain::Bucket;
use skyriff_postgres::databases::PROJECT;
use sqlx::{ConnectOptions, Executor};

use crate::{
    books::{assert_equal_to_the_fold, caught_up, connect, projector},
    log::{Log, earn, some_user},
};

#[tokio::test]
async fn every_month_has_a_partition_with_its_own_entries() {
    let mut log = Log::create().await;
    let user = some_user();
    let times = [
        (2025, 12, 31, 23, 59, 59),
        (2026, 1, 1, 0, 0, 0),
        (2024, 2, 29, 12, 0, 0),
        (2026, 1, 31, 23, 59, 59),
        (1999, 7, 4, 0, 0, 0),
    ];
    for (year, month, day, hour, minute, second) in times {
        let at = Utc.with_ymd_and_hms(year, month, day, hour, minute, second).unwrap();
        log.on_account(user, at, earn(Bucket::Income, 1)).await;
    }
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    caught_up(&log, &mut reads).await;
    assert_equal_to_the_fold(&log, &mut reads).await;
    let months: Vec<(String, i64)> =
        sqlx::query_as("SELECT tableoid::regclass::text, count(*) FROM ledger_entries GROUP BY 1 ORDER BY 1")
            .fetch_all(&mut reads)
            .await
            .unwrap();
    let months: Vec<_> = months.iter().map(|(name, entries)| (name.as_str(), *entries)).collect();
    let expected = [
        ("ledger_entries_1999_07", 2),
        ("ledger_entries_2024_02", 2),
        ("ledger_entries_2025_12", 2),
        ("ledger_entries_2026_01", 4),
    ];
    assert_eq!(months, expected);
    projector.stop().await;
}

#[tokio::test]
async fn the_projector_makes_these_tables_and_no_others() {
    let log = Log::create().await;
    let mut project = log.databases.read_models(PROJECT).connect().await.unwrap();
    project.execute("SELECT ensure_ledger_month('2026-03-05'), ensure_ledger_month('2026-03-31')").await.unwrap();
    let denied = [
        "CREATE TABLE mine (x int)",
        "CREATE TABLE mine PARTITION OF ledger_entries FOR VALUES FROM ('2026-04-01') TO ('2026-05-01')",
        "DROP TABLE ledger_entries_2026_03",
        "UPDATE ledger_entries_2026_03 SET amount = 1",
        "DELETE FROM ledger_entries_2026_03",
        "TRUNCATE ledger_entries_2026_03",
        "ALTER TABLE ledger_entries DETACH PARTITION ledger_entries_2026_03",
    ];
    for statement in denied {
        let error = project.execute(statement).await.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
}
