//! The books by time: the same rows whatever batches they came in, and what remains of every hold.

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use skyriff_domain::{
    Event, LogPosition, Position, RecordedEvent, ShardId, StreamId, UserId, points_account, video_job,
};
use skyriff_follow::{Follower, ReadModel};
use skyriff_postgres::testing::TestDatabases;
use skyriff_projections::{Projection, ledger_check};
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::{
    books::{assert_sums_are_of_the_entries, connect},
    log::noon,
};

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    /// Mostly now, sometimes up to years ago, also at the very edge of a day and a month.
    fn business_time(&mut self, recorded_at: DateTime<Utc>) -> DateTime<Utc> {
        match self.below(4) {
            0 => recorded_at - TimeDelta::minutes(i64::try_from(self.below(3 * 365 * 24 * 60)).unwrap()),
            1 => {
                Utc.with_ymd_and_hms(2024, 2, 29, 0, 0, 0).unwrap()
                    - TimeDelta::microseconds(i64::try_from(self.below(2)).unwrap())
            }
            _ => recorded_at,
        }
    }
}

fn user(number: u64) -> UserId {
    UserId(Uuid::from_u128(u128::from(number) + 1))
}

fn recorded(
    shard: u16,
    position: i64,
    stream: StreamId,
    event: Event,
    occurred_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
) -> RecordedEvent {
    let at = LogPosition { shard: ShardId(shard), position: Position(position) };
    RecordedEvent { at, stream, sequence: position, event, occurred_at, recorded_at }
}

fn on_account(stored: serde_json::Value) -> Event {
    Event::PointsAccount(serde_json::from_value::<points_account::Event>(stored).unwrap())
}

/// Events of a few users in two shards, recorded over some weeks, of business times of years. Their order is a log's, and no
/// account could have decided them all; the books do not mind.
fn some_events(dice: &mut Dice, count: i64) -> Vec<RecordedEvent> {
    let mut events = Vec::new();
    for shard in [3_u16, 7] {
        let (mut recorded_at, mut open) = (noon(), Vec::new());
        for position in 1..=count {
            recorded_at += TimeDelta::minutes(i64::try_from(dice.below(300)).unwrap());
            let occurred_at = dice.business_time(recorded_at);
            let (who, points) = (user(dice.below(4) + 10 * u64::from(shard)), dice.below(90) + 10);
            let account = StreamId::PointsAccount(who);
            let (stream, event) = match dice.below(6) {
                0 => (account, serde_json::json!({ "recharged": { "order": Uuid::nil(), "points": points } })),
                1 => {
                    let hold = Uuid::from_u128(
                        u128::from(dice.below(u64::MAX >> 34)) << 32 | u128::from(position.unsigned_abs()),
                    );
                    open.push((who, hold, points));
                    (
                        account,
                        serde_json::json!({ "held": { "hold": hold, "taken": { "paid": points }, "reason": "render" } }),
                    )
                }
                2 if !open.is_empty() => {
                    let (who, hold, left) = open.pop().unwrap();
                    let part = dice.below(left) + 1;
                    if part < left {
                        open.push((who, hold, left - part));
                    }
                    let captured = serde_json::json!({ "captured": { "hold": hold, "taken": { "paid": part }, "revenue": "render" } });
                    (StreamId::PointsAccount(who), captured)
                }
                3 => {
                    let spent = serde_json::json!({ "spent": {
                        "spend": Uuid::nil(), "taken": { "paid": points }, "product": "poster",
                        "refundable_until": noon(), "revenue": (points % 2 == 0).then_some("poster"),
                    } });
                    (account, spent)
                }
                4 => {
                    let cost = serde_json::json!({ "failed": { "attempt": 1, "reason": "broke", "retryable": false, "cost": { "micros": points, "currency": "usd" } } });
                    let failed: video_job::Event = serde_json::from_value(cost).unwrap();
                    let job = StreamId::decode("video_job", &Uuid::from_u128(9).to_string()).unwrap();
                    events.push(recorded(shard, position, job, Event::VideoJob(failed), occurred_at, recorded_at));
                    continue;
                }
                _ => (account, serde_json::json!({ "earned": { "credited": { "income": points }, "reason": "task" } })),
            };
            events.push(recorded(shard, position, stream, on_account(event), occurred_at, recorded_at));
        }
    }
    events
}

/// Everything that the read model has.
async fn dump(reads: &mut PgConnection) -> Vec<String> {
    let mut rows = Vec::new();
    for table in Projection::LedgerEntries.tables() {
        let of_table: Vec<String> =
            sqlx::query_scalar(&format!("SELECT '{table} ' || t::text FROM {table} t ORDER BY 1"))
                .fetch_all(&mut *reads)
                .await
                .unwrap();
        rows.extend(of_table);
    }
    rows
}

#[tokio::test]
async fn the_rows_are_the_same_whatever_batches_they_came_in_and_are_what_the_entries_sum_to() {
    let mut dice = Dice(11);
    let events = some_events(&mut dice, 150);
    let mut first: Option<Vec<String>> = None;
    for batch_max in [1_u64, 2, 7, 40, 1_000] {
        let databases = TestDatabases::create().await;
        let mut reads = connect(&databases).await;
        let mut rest = &events[..];
        while !rest.is_empty() {
            let size = usize::try_from(dice.below(batch_max) + 1).unwrap().min(rest.len());
            let (batch, later) = rest.split_at(size);
            let mut transaction = reads.begin().await.unwrap();
            // As the projector does it, and as a table is filled that is built anew.
            if batch_max % 2 == 0 {
                Projection::LedgerEntries.fill(batch, &mut transaction).await.unwrap();
            } else {
                Projection::LedgerEntries.apply(batch, &mut transaction).await.unwrap();
            }
            transaction.commit().await.unwrap();
            rest = later;
        }
        assert_sums_are_of_the_entries(&mut reads).await;
        checkpoints(&mut reads).await;
        let shards = [ShardId(3), ShardId(7)];
        assert_eq!(ledger_check::quick(&mut reads, &shards).await.unwrap(), []);
        assert_eq!(ledger_check::thorough(&mut reads, &shards, 10).await.unwrap(), []);
        let rows = dump(&mut reads).await;
        assert!(rows.iter().any(|row| row.starts_with("ledger_holds")));
        assert_eq!(*first.get_or_insert_with(|| rows.clone()), rows, "{batch_max}");
    }
}

#[tokio::test]
async fn a_hold_knows_what_went_from_it_and_when() {
    let databases = TestDatabases::create().await;
    let mut reads = connect(&databases).await;
    let (who, hold) = (user(1), Uuid::from_u128(5));
    let later = |hours: i64| noon() + TimeDelta::hours(hours);
    let stories = [
        serde_json::json!({ "held": { "hold": hold, "taken": { "paid": 9 }, "reason": "render", "expires_at": later(50) } }),
        serde_json::json!({ "captured": { "hold": hold, "taken": { "paid": 4 }, "revenue": "render" } }),
        serde_json::json!({ "released": { "hold": hold, "returned": { "paid": 5 }, "cause": "requested" } }),
        // The id is free again.
        serde_json::json!({ "held": { "hold": hold, "taken": { "income": 7 }, "reason": "tip" } }),
        serde_json::json!({ "tip_paid": { "tip": hold, "to": user(2), "taken": { "income": 7 } } }),
        serde_json::json!({ "held": { "hold": hold, "taken": { "income": 3 }, "reason": "withdrawal" } }),
    ];
    // The release happened before the capture, as somebody said afterwards.
    let hours = [0, 4, 2, 5, 6, 7];
    let events: Vec<_> = (1..)
        .zip(stories)
        .zip(hours)
        .map(|((position, stored), hour)| {
            recorded(3, position, StreamId::PointsAccount(who), on_account(stored), later(hour), later(position))
        })
        .collect();
    for batch in [&events[..1], &events[1..]] {
        let mut transaction = reads.begin().await.unwrap();
        Projection::LedgerEntries.apply(batch, &mut transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }
    type Row = (i64, String, i64, i64, Option<DateTime<Utc>>, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT position, reason, points, remaining, expires_at, closed_at, closed_recorded_at FROM ledger_holds ORDER BY 1",
    )
    .fetch_all(&mut reads)
    .await
    .unwrap();
    let expected = [
        (1, "render".to_owned(), 9, 0, Some(later(50)), Some(later(4)), Some(later(3))),
        (4, "tip".to_owned(), 7, 0, None, Some(later(6)), Some(later(5))),
        (6, "withdrawal".to_owned(), 3, 3, None, None, None),
    ];
    assert_eq!(rows, expected);
    let nothing = recorded(3, 7, StreamId::PointsAccount(user(3)), events[1].event.clone(), later(8), later(8));
    let mut transaction = reads.begin().await.unwrap();
    let misfit = Projection::LedgerEntries.apply(&[nothing], &mut transaction).await.unwrap_err();
    assert!(misfit.to_string().contains("no open hold"), "{misfit}");
}

async fn checkpoints(reads: &mut PgConnection) {
    sqlx::query("INSERT INTO checkpoints (projection, version, shard) SELECT $1, $2, shard FROM generate_series(0, 15) AS shard")
        .bind(Projection::LedgerEntries.name())
        .bind(Projection::LedgerEntries.version())
        .execute(reads)
        .await
        .unwrap();
}

#[tokio::test]
async fn damage_is_found_and_named() {
    let databases = TestDatabases::create().await;
    let mut reads = connect(&databases).await;
    checkpoints(&mut reads).await;
    let events = some_events(&mut Dice(4), 60);
    let mut transaction = reads.begin().await.unwrap();
    Projection::LedgerEntries.apply(&events, &mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let shards: Vec<_> = (0..16).map(ShardId).collect();
    // What is done, what the quick look finds, and what the thorough one does.
    let table = [
        (
            "UPDATE ledger_sums SET amount = amount + 1 WHERE shard = 7 AND account = 'platform:revenue:poster' AND grain = 'dd'",
            "by day",
            "ledger_sums",
        ),
        (
            "UPDATE ledger_sums SET amount = amount + 1 WHERE ctid = (SELECT min(ctid) FROM ledger_sums WHERE shard = 7 AND grain = 'mm' AND account LIKE 'user:%')",
            "its points sum to 1",
            "ledger_sums",
        ),
        (
            "DELETE FROM ledger_entries WHERE shard = 7 AND position = (SELECT max(position) FROM ledger_entries WHERE shard = 7)",
            "",
            "ledger_sums: kept",
        ),
        ("UPDATE ledger_user_sums SET entries = entries + 1 WHERE shard = 7", "", "ledger_user_sums"),
        (
            "UPDATE ledger_holds SET remaining = remaining + 1, points = points + 1 WHERE shard = 7 AND remaining > 0",
            "",
            "ledger_holds",
        ),
    ];
    for (damage, quick, thorough) in table {
        let mut transaction = reads.begin().await.unwrap();
        assert!(transaction.execute(damage).await.unwrap().rows_affected() > 0, "{damage}");
        let looked = [
            (ledger_check::quick(&mut transaction, &shards).await.unwrap(), quick),
            (ledger_check::thorough(&mut transaction, &shards, 10).await.unwrap(), thorough),
        ];
        for (found, expected) in looked {
            let named = found.iter().any(|wrong| wrong.what.contains(expected));
            assert!(found.is_empty() && expected.is_empty() || named, "{damage}: {found:?}");
            assert!(found.iter().all(|wrong| wrong.shard == ShardId(7)), "{damage}: {found:?}");
        }
        transaction.rollback().await.unwrap();
    }
}
