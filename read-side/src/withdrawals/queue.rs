//! The withdrawals that wait for somebody, over all shards.

use std::collections::BTreeMap;

use axum::{extract::State, http::HeaderValue, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, Position, ShardId, withdrawal::Status};
use skyriff_edge::{Caller, Problem, Query, Right, problem::ProblemBody};
use sqlx::{PgPool, types::Json};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Page, Row, Withdrawal, Withdrawals, paged, shown};
use crate::{
    balance::{POSITION, present},
    replicas::{AT_LEAST_MAX, AtLeast, FreshParts, QueryEverywhere},
};

/// What a withdrawal may wait for.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Waits {
    /// For reviewers.
    #[default]
    UnderReview,
    /// For operators: nobody can tell whether it was paid.
    NeedsAttention,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// What they wait for: reviewers see the ones under review, operators the ones that need attention.
    #[serde(default)]
    #[param(inline, default = "under_review")]
    status: Waits,
    #[serde(default)]
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// A page of withdrawals that wait, oldest first.
#[derive(Serialize, ToSchema)]
struct WithdrawalQueue {
    withdrawals: Vec<Withdrawal>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The withdrawals that wait for somebody, oldest first, over all users; for reviewers with what is known of each person.
#[utoipa::path(get, path = "/v1/withdrawals", tag = "withdrawals",
    params(Which, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than these positions")),
    responses((status = 200, body = WithdrawalQueue, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn queue(
    State(Withdrawals { replicas, vault }): State<Withdrawals>,
    Query(Which { status, limit, cursor }): Query<Which>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    let (right, status) = match status {
        Waits::UnderReview => (Right::Review, Status::UnderReview),
        Waits::NeedsAttention => (Right::ResolvePayout, Status::NeedsAttention),
    };
    caller.may_at_all(right)?;
    let (limit, after) = Page { limit, cursor }.read(Place::decode)?;
    let query = Waiting { status, after: after.unwrap_or(Place::START), limit: limit + 1 };
    let parts = replicas.read_everywhere(&at_least, &query).await?;
    let mut positions = BTreeMap::new();
    let mut rows = Vec::new();
    for part in parts {
        positions.extend(part.positions);
        rows.extend(part.rows);
    }
    rows.sort_by_key(|row: &Row| (row.requested_at, row.withdrawal_id));
    let (rows, next) = paged(rows, limit, |row| Place::of(row).encode());
    let withdrawals = shown(&vault, &caller, rows).await;
    let positions = positions.into_iter().take(AT_LEAST_MAX);
    let positions = positions.map(|(shard, position)| LogPosition { shard, position }.to_string()).collect::<Vec<_>>();
    let position = HeaderValue::try_from(positions.join(",")).ok();
    Ok(([(POSITION, position)].map(present), axum::Json(WithdrawalQueue { withdrawals, next })))
}

/// Where a withdrawal stands in the queue. Two may be of the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    requested_at: DateTime<Utc>,
    withdrawal: Uuid,
}

impl Place {
    /// Before every withdrawal there can be: nothing happened before 1970.
    const START: Self = Self { requested_at: DateTime::UNIX_EPOCH, withdrawal: Uuid::nil() };

    fn of(row: &Row) -> Self {
        Self { requested_at: row.requested_at, withdrawal: row.withdrawal_id }
    }

    fn encode(self) -> String {
        format!("{}.{}", self.requested_at.timestamp_micros(), self.withdrawal)
    }

    fn decode(text: &str) -> Option<Self> {
        let (micros, withdrawal) = text.split_once('.')?;
        let requested_at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
        // Later than any business time, and not always a timestamp to Postgres.
        (requested_at.timestamp() < 253_402_300_800 && requested_at >= DateTime::UNIX_EPOCH)
            .then_some(Self { requested_at, withdrawal: withdrawal.parse().ok()? })
    }
}

struct Waiting {
    status: Status,
    after: Place,
    limit: i64,
}

impl QueryEverywhere for Waiting {
    type Rows = Vec<Row>;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Vec<Row>>> {
        let Self { status, after, limit } = self;
        let numbers: Vec<_> = shards.iter().filter_map(|shard| i16::try_from(shard.0).ok()).collect();
        // The list of statuses is for the planner: it is the condition of the index.
        type Answer = (Json<Vec<(u16, i64)>>, Json<Vec<Row>>);
        let (checkpoints, rows): Answer = sqlx::query_as(
            "SELECT (
                 SELECT coalesce(json_agg(json_build_array(c.shard, c.position)), '[]') FROM checkpoints c
                 WHERE c.projection = 'withdrawals' AND c.shard = ANY ($5)
             ), (
                 SELECT coalesce(json_agg(w ORDER BY w.requested_at, w.withdrawal_id), '[]') FROM (
                     SELECT w.*, to_json(r) AS risk FROM withdrawals w LEFT JOIN risk_facts r USING (user_id)
                     WHERE w.status = $1 AND w.status IN ('under_review', 'needs_attention')
                       AND (w.requested_at, w.withdrawal_id) > ($2, $3) AND w.shard = ANY ($5)
                     ORDER BY w.requested_at, w.withdrawal_id LIMIT $4
                 ) w)",
        )
        .bind(status.as_str())
        .bind(after.requested_at)
        .bind(after.withdrawal)
        .bind(limit)
        .bind(numbers)
        .fetch_one(pool)
        .await?;
        let positions = checkpoints.0.into_iter().map(|(shard, position)| (ShardId(shard), Position(position)));
        Ok(FreshParts { positions: positions.collect(), rows: rows.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_back_and_others_are_refused() {
        let place =
            Place { requested_at: DateTime::from_timestamp_micros(1_234_567).unwrap(), withdrawal: Uuid::max() };
        assert_eq!(Place::decode(&place.encode()), Some(place));
        assert_eq!(Place::decode(&Place::START.encode()), Some(Place::START));
        for bad in [
            "",
            "1",
            "1.",
            ".1",
            "-1.00000000-0000-0000-0000-000000000000",
            "999999999999999999.00000000-0000-0000-0000-000000000000",
        ] {
            assert_eq!(Place::decode(bad), None, "{bad}");
        }
    }
}
