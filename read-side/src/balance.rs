//! What a user has.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::IntoResponse,
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use skyriff_domain::{LogPosition, Position, ShardId, UserId};
use skyriff_edge::{Caller, Path, Problem, Right, problem::ProblemBody};
use sqlx::{FromRow, PgPool};
use utoipa::ToSchema;

use crate::replicas::{AtLeast, Fresh, Query, Replicas};

/// Promo points that expire within this time are pointed out.
const SOON_DAYS: i64 = 30;
/// On every answer: the position of the log that it includes.
pub(crate) const POSITION: HeaderName = HeaderName::from_static("skyriff-position");

/// A user's points. A user that nothing is known of has none.
#[derive(Serialize, ToSchema)]
struct Balance {
    user: UserId,
    /// What can be spent or held now.
    available: Buckets,
    /// What is set aside.
    held: Buckets,
    expiring_soon: ExpiringSoon,
    /// Promo points whose time is over and that the account's next command will expire; not in `available`.
    lapsed: i64,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

#[derive(Serialize, ToSchema)]
struct Buckets {
    promo: i64,
    paid: i64,
    income: i64,
    total: i64,
}

/// Available promo points that expire soon.
#[derive(Serialize, ToSchema)]
struct ExpiringSoon {
    within_days: i64,
    points: i64,
    /// What expires first comes first.
    lots: Vec<Lot>,
}

#[derive(Serialize, ToSchema)]
struct Lot {
    expires_at: DateTime<Utc>,
    points: i64,
}

#[derive(Default, FromRow)]
struct Row {
    position: i64,
    available_promo: i64,
    available_paid: i64,
    available_income: i64,
    held_promo: i64,
    held_paid: i64,
    held_income: i64,
    lots_expire_at: Vec<DateTime<Utc>>,
    lots_points: Vec<i64>,
}

/// A user's points by bucket, with what is held and what expires soon.
#[utoipa::path(get, path = "/v1/users/{user}/balance", tag = "points",
    params(("user" = UserId, Path), ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = Balance, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn balance(
    State(replicas): State<Replicas>,
    Path(user): Path<UserId>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let shard = replicas.shard_of(user);
    let fresh = replicas.read(shard, &at_least, &BalanceOf { shard, user }).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let body = body(user, &fresh.rows, position.clone(), Utc::now());
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(body)))
}

/// Positions are digits and a colon; such a header cannot fail.
pub(crate) fn present((name, value): (HeaderName, Option<HeaderValue>)) -> (HeaderName, HeaderValue) {
    (name, value.unwrap_or_else(|| HeaderValue::from_static("")))
}

struct BalanceOf {
    shard: ShardId,
    user: UserId,
}

impl Query for BalanceOf {
    type Rows = Row;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Row>> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT c.position,
                coalesce(b.available_promo, 0) AS available_promo, coalesce(b.available_paid, 0) AS available_paid,
                coalesce(b.available_income, 0) AS available_income, coalesce(b.held_promo, 0) AS held_promo,
                coalesce(b.held_paid, 0) AS held_paid, coalesce(b.held_income, 0) AS held_income,
                ARRAY(SELECT expires_at FROM promo_lots WHERE user_id = $1 ORDER BY expires_at) AS lots_expire_at,
                ARRAY(SELECT points FROM promo_lots WHERE user_id = $1 ORDER BY expires_at) AS lots_points
         FROM checkpoints c LEFT JOIN balances b ON b.user_id = $1
         WHERE c.projection = 'balances' AND c.shard = $2",
        )
        .bind(self.user.0)
        .bind(i16::try_from(self.shard.0).unwrap_or(i16::MAX))
        .fetch_optional(pool)
        .await?;
        let row = row.unwrap_or_default();
        Ok(Fresh { position: Position(row.position), rows: row })
    }
}

fn body(user: UserId, row: &Row, position: String, now: DateTime<Utc>) -> Balance {
    let lots = || row.lots_expire_at.iter().zip(&row.lots_points);
    let lapsed = lots().filter(|(expires_at, _)| **expires_at <= now).map(|(_, points)| points).sum();
    let soon = now + TimeDelta::days(SOON_DAYS);
    let soon: Vec<_> = lots()
        .filter(|(expires_at, _)| **expires_at > now && **expires_at <= soon)
        .map(|(expires_at, points)| Lot { expires_at: *expires_at, points: *points })
        .collect();
    let buckets = |promo, paid, income| Buckets { promo, paid, income, total: promo + paid + income };
    Balance {
        user,
        available: buckets(row.available_promo - lapsed, row.available_paid, row.available_income),
        held: buckets(row.held_promo, row.held_paid, row.held_income),
        expiring_soon: ExpiringSoon {
            within_days: SOON_DAYS,
            points: soon.iter().map(|lot| lot.points).sum(),
            lots: soon,
        },
        lapsed,
        position,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn lapsed_points_are_not_available_and_soon_ends_after_thirty_days() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1_000);
        let row = Row {
            available_promo: 15,
            available_paid: 7,
            held_income: 3,
            lots_expire_at: [-1, 0, 1, 30, 31].map(|days| now + TimeDelta::days(days)).to_vec(),
            lots_points: vec![1, 2, 3, 4, 5],
            ..Row::default()
        };
        let balance = body(UserId(Uuid::nil()), &row, "0:1".to_owned(), now);
        assert_eq!((balance.lapsed, balance.available.promo, balance.available.total), (3, 12, 19));
        assert_eq!((balance.expiring_soon.points, balance.held.total), (7, 3));
    }
}
