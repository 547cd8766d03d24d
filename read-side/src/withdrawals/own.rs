//! One user's withdrawals.

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use serde::Serialize;
use skyriff_domain::{LogPosition, Position, ShardId, UserId, WithdrawalId};
use skyriff_edge::{Caller, Kind, Path, Problem, Query, Right, problem::ProblemBody};
use sqlx::PgPool;
use utoipa::ToSchema;

use super::{Page, Row, Withdrawal, Withdrawals, paged, shown};
use crate::{
    balance::{POSITION, present},
    replicas::{self, AtLeast, Fresh},
};

/// A page of a user's withdrawals, newest first.
#[derive(Serialize, ToSchema)]
struct WithdrawalsOfUser {
    withdrawals: Vec<Withdrawal>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

/// A user's withdrawals, newest first, in pages. Where the money goes is shown masked, to owners and reviewers only.
#[utoipa::path(get, path = "/v1/users/{user}/withdrawals", tag = "withdrawals",
    params(("user" = UserId, Path), Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = WithdrawalsOfUser, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn withdrawals(
    State(Withdrawals { replicas, vault }): State<Withdrawals>,
    Path(user): Path<UserId>,
    Query(page): Query<Page>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let (limit, before) = page.read(|text| text.parse::<i64>().ok())?;
    let shard = replicas.shard_of(user);
    let query = OfUser { shard, user, one: None, before: before.unwrap_or(i64::MAX), limit: limit + 1 };
    let fresh = replicas.read(shard, &at_least, &query).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let (rows, next) = paged(fresh.rows, limit, |row| row.requested_position.to_string());
    let withdrawals = shown(&vault, &caller, rows).await;
    let body = WithdrawalsOfUser { withdrawals, next, position: position.clone() };
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(body)))
}

/// One withdrawal.
#[utoipa::path(get, path = "/v1/users/{user}/withdrawals/{withdrawal}", tag = "withdrawals",
    params(("user" = UserId, Path), ("withdrawal" = WithdrawalId, Path),
           ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = Withdrawal, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 404, description = "This user has no such withdrawal", body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn withdrawal(
    State(Withdrawals { replicas, vault }): State<Withdrawals>,
    Path((user, withdrawal)): Path<(UserId, WithdrawalId)>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let shard = replicas.shard_of(user);
    let query = OfUser { shard, user, one: Some(withdrawal), before: i64::MAX, limit: 1 };
    let fresh = replicas.read(shard, &at_least, &query).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let found = shown(&vault, &caller, fresh.rows).await.pop().ok_or(Problem::new(&Kind::NOT_FOUND))?;
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(found)))
}

struct OfUser {
    shard: ShardId,
    user: UserId,
    /// This one only.
    one: Option<WithdrawalId>,
    /// Requested before this position.
    before: i64,
    limit: i64,
}

impl replicas::Query for OfUser {
    type Rows = Vec<Row>;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Vec<Row>>> {
        let Self { shard, user, one, before, limit } = self;
        let found: Option<(i64, sqlx::types::Json<Vec<Row>>)> = sqlx::query_as(
            "SELECT c.position, (
                 SELECT coalesce(json_agg(w ORDER BY w.requested_position DESC), '[]') FROM (
                     SELECT w.*, to_json(r) AS risk FROM withdrawals w LEFT JOIN risk_facts r USING (user_id)
                     WHERE w.user_id = $1 AND w.requested_position < $2 AND ($3::uuid IS NULL OR w.withdrawal_id = $3)
                     ORDER BY w.requested_position DESC LIMIT $4
                 ) w)
             FROM checkpoints c WHERE c.projection = 'withdrawals' AND c.shard = $5",
        )
        .bind(user.0)
        .bind(before)
        .bind(one.map(|one| one.0))
        .bind(limit)
        .bind(i16::try_from(shard.0).unwrap_or(i16::MAX))
        .fetch_optional(pool)
        .await?;
        let (position, rows) = found.unwrap_or_default();
        Ok(Fresh { position: Position(position), rows: rows.0 })
    }
}
