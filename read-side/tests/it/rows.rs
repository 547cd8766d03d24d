//! Rows as the projections write them.

use chrono::{DateTime, Utc};
use skyriff_domain::{LogPosition, Position, ShardCount, UserId, shard_of};
use skyriff_postgres::{databases::OWNER, testing::TestDatabases};
use sqlx::{ConnectOptions, PgConnection};
use uuid::Uuid;

pub(crate) fn some_user() -> UserId {
    UserId(Uuid::new_v4())
}

/// A place in the log of the user's shard.
pub(crate) fn place(user: UserId, position: i64) -> LogPosition {
    LogPosition { shard: shard_of(user, ShardCount::default()), position: Position(position) }
}

fn number(at: LogPosition) -> i16 {
    at.shard.0.try_into().unwrap()
}

pub(crate) async fn connect(databases: &TestDatabases) -> PgConnection {
    databases.read_models(OWNER).connect().await.unwrap()
}

/// The projections have read up to here, and the user has this much income.
pub(crate) async fn write(rows: &mut PgConnection, user: UserId, position: i64, income: i64) {
    let at = place(user, position);
    sqlx::query(
        "WITH balance AS (
             INSERT INTO balances VALUES ($1, $2, 0, 0, $4, 0, 0, 0, $3)
             ON CONFLICT (user_id) DO UPDATE SET available_income = $4, position = $3
         )
         INSERT INTO checkpoints (projection, version, shard, position)
         SELECT name, 1, $2, $3 FROM unnest('{balances,ledger_entries,likes,tips,works}'::text[]) AS name
         ON CONFLICT (projection, version, shard) DO UPDATE SET position = $3",
    )
    .bind(user.0)
    .bind(number(at))
    .bind(position)
    .bind(income)
    .execute(rows)
    .await
    .unwrap();
}

pub(crate) async fn entry(rows: &mut PgConnection, user: UserId, position: i64, line: i16, at: DateTime<Utc>) {
    sqlx::query("SELECT ensure_ledger_month($1)").bind(at.date_naive()).execute(&mut *rows).await.unwrap();
    sqlx::query(
        "INSERT INTO ledger_entries VALUES ($1, $2, $3, $4, 'user:available:income', $2, 'earned', 'task', $5, $5)",
    )
    .bind(number(place(user, position)))
    .bind(position)
    .bind(line)
    .bind(user.0)
    .bind(at)
    .execute(rows)
    .await
    .unwrap();
}

/// A like as the projection keeps it: the row, and what it adds to the counts.
pub(crate) async fn like(rows: &mut PgConnection, user: UserId, work: Uuid, position: i64, at: DateTime<Utc>) {
    sqlx::query("INSERT INTO likes VALUES ($1, $2, $3, $4, $5)")
        .bind(user.0)
        .bind(work)
        .bind(at)
        .bind(number(place(user, position)))
        .bind(position)
        .execute(&mut *rows)
        .await
        .unwrap();
    liked_in(rows, number(place(user, position)), work, at, 1).await;
}

/// So many likes of a work in an hour, by users of a shard.
pub(crate) async fn liked_in(rows: &mut PgConnection, shard: i16, work: Uuid, at: DateTime<Utc>, likes: i64) {
    sqlx::query(
        "WITH total AS (
             INSERT INTO work_likes (work_id, shard, likes) VALUES ($1, $4, $3)
             ON CONFLICT (work_id, shard) DO UPDATE SET likes = work_likes.likes + excluded.likes
         )
         INSERT INTO work_likes_by_hour (hour, work_id, shard, likes) VALUES (date_trunc('hour', $2, 'UTC'), $1, $4, $3)
         ON CONFLICT (hour, work_id, shard) DO UPDATE SET likes = work_likes_by_hour.likes + excluded.likes",
    )
    .bind(work)
    .bind(at)
    .bind(likes)
    .bind(shard)
    .execute(rows)
    .await
    .unwrap();
}

/// A row of a tip of the user, in `state`.
pub(crate) async fn tip(
    rows: &mut PgConnection,
    user: UserId,
    direction: &str,
    state: &str,
    position: i64,
    at: DateTime<Utc>,
) -> Uuid {
    let tip = Uuid::new_v4();
    sqlx::query("INSERT INTO tips VALUES ($1, $2, $3, $4, $5, 10, 3, NULL, $6, $7, $8, $9)")
        .bind(tip)
        .bind(direction)
        .bind(user.0)
        .bind(Uuid::from_u128(1))
        .bind(number(place(user, position)))
        .bind(state)
        .bind((state == "returned").then_some("full"))
        .bind(at)
        .bind(position)
        .execute(rows)
        .await
        .unwrap();
    tip
}
