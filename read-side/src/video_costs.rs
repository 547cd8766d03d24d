//! What making videos cost and brought in, by day, provider and kind; for operators and analysts.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use chrono::{NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{Label, LogPosition, Position, ShardId, video_job::Kind as What};
use skyriff_edge::{Caller, Kind, Problem, Query, Right, problem::ProblemBody};
use sqlx::{PgPool, types};
use utoipa::{IntoParams, ToSchema};

use crate::{
    balance::{POSITION, present},
    replicas::{AtLeast, FreshParts, QueryEverywhere, Replicas},
};

/// The longest time that one answer covers, in days.
const DAYS_MAX: i64 = 366;
const DAYS_DEFAULT: i64 = 30;

/// What these queries need: who answers, and what a point is worth in each currency, in millionths of its unit.
#[derive(Clone, Debug)]
pub(crate) struct VideoCosts {
    pub(crate) replicas: Replicas,
    pub(crate) point_worth: BTreeMap<Label, u64>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Days {
    /// The first UTC day; thirty days ago, unless given.
    #[serde(default)]
    from: Option<NaiveDate>,
    /// The last UTC day; today, unless given.
    #[serde(default)]
    to: Option<NaiveDate>,
}

/// What making videos cost and brought in.
#[derive(Serialize, ToSchema)]
struct VideoCostsOfDays {
    costs: Vec<VideoCost>,
}

/// Of one day, provider, kind and currency.
#[derive(Serialize, ToSchema)]
struct VideoCost {
    /// The UTC day on which attempts ended.
    day: NaiveDate,
    provider: String,
    kind: What,
    /// What the provider was paid in.
    #[schema(example = "usd")]
    currency: String,
    succeeded: i64,
    failed_attempts: i64,
    /// What the owners paid.
    points: i64,
    /// What the provider wanted, in millionths of the currency's unit.
    cost_micros: i64,
    /// What the points are worth; none when nobody has said what a point is worth in this currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    worth_micros: Option<i64>,
    /// What is left of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    margin_micros: Option<i64>,
}

/// What making videos cost and brought in, by day, provider and kind.
#[utoipa::path(get, path = "/v1/video-costs", tag = "videos",
    params(Days, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = VideoCostsOfDays, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn video_costs(
    State(VideoCosts { replicas, point_worth }): State<VideoCosts>,
    Query(Days { from, to }): Query<Days>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_at_all(Right::ReadVideoCosts)?;
    let to = to.unwrap_or_else(|| Utc::now().date_naive());
    let from = from.or_else(|| to.checked_sub_signed(TimeDelta::days(DAYS_DEFAULT - 1))).unwrap_or(to);
    if !(0..DAYS_MAX).contains(&to.signed_duration_since(from).num_days()) {
        return Err(Problem::new(&Kind::MALFORMED).detail(format!("from to to is 1 to {DAYS_MAX} days")));
    }
    let parts = replicas.read_everywhere(&at_least, &OfDays { from, to }).await?;
    let mut sums = BTreeMap::<_, Row>::new();
    let mut positions = BTreeMap::new();
    for part in parts {
        positions.extend(part.positions);
        for row in part.rows {
            let key = (row.day, row.provider.clone(), row.kind, row.currency.clone());
            let sum = sums.entry(key).or_insert_with(|| Row {
                succeeded: 0,
                failed_attempts: 0,
                points: 0,
                cost_micros: 0,
                ..row.clone()
            });
            sum.succeeded += row.succeeded;
            sum.failed_attempts += row.failed_attempts;
            sum.points += row.points;
            sum.cost_micros = sum.cost_micros.saturating_add(row.cost_micros);
        }
    }
    let costs = sums.into_values().rev().map(|row| cost(row, &point_worth)).collect();
    let positions = positions.into_iter().map(|(shard, position)| LogPosition { shard, position }.to_string());
    let position = HeaderValue::try_from(positions.take(64).collect::<Vec<_>>().join(",")).ok();
    Ok(([(POSITION, position)].map(present), Json(VideoCostsOfDays { costs })))
}

fn cost(row: Row, point_worth: &BTreeMap<Label, u64>) -> VideoCost {
    let worth = point_worth.iter().find(|(currency, _)| currency.as_str() == row.currency);
    let worth = worth.and_then(|(_, worth)| row.points.checked_mul(i64::try_from(*worth).ok()?));
    let Row { day, provider, kind, currency, succeeded, failed_attempts, points, cost_micros } = row;
    let margin_micros = worth.and_then(|worth| worth.checked_sub(cost_micros));
    let worth_micros = worth;
    VideoCost {
        day,
        provider,
        kind,
        currency,
        succeeded,
        failed_attempts,
        points,
        cost_micros,
        worth_micros,
        margin_micros,
    }
}

#[derive(Clone, Deserialize)]
struct Row {
    day: NaiveDate,
    provider: String,
    kind: What,
    currency: String,
    succeeded: i64,
    failed_attempts: i64,
    points: i64,
    cost_micros: i64,
}

struct OfDays {
    from: NaiveDate,
    to: NaiveDate,
}

impl QueryEverywhere for OfDays {
    type Rows = Vec<Row>;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Vec<Row>>> {
        type Answer = (types::Json<Vec<(u16, i64)>>, types::Json<Vec<Row>>);
        let numbers: Vec<_> = shards.iter().filter_map(|shard| i16::try_from(shard.0).ok()).collect();
        let (checkpoints, rows): Answer = sqlx::query_as(
            "SELECT (
                 SELECT coalesce(json_agg(json_build_array(c.shard, c.position)), '[]') FROM checkpoints c
                 WHERE c.projection = 'video_jobs' AND c.shard = ANY ($3)
             ), (
                 SELECT coalesce(json_agg(s), '[]') FROM (
                     SELECT day, provider, kind, currency, sum(succeeded)::bigint AS succeeded,
                            sum(failed_attempts)::bigint AS failed_attempts, sum(points)::bigint AS points,
                            sum(cost_micros)::bigint AS cost_micros
                     FROM video_costs WHERE day BETWEEN $1 AND $2 AND shard = ANY ($3)
                     GROUP BY day, provider, kind, currency
                 ) s)",
        )
        .bind(self.from)
        .bind(self.to)
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
    fn the_margin_is_told_only_where_a_point_is_worth_something() {
        let row = |currency: &str| Row {
            day: NaiveDate::default(),
            provider: "local".to_owned(),
            kind: What::TextToVideo,
            currency: currency.to_owned(),
            succeeded: 1,
            failed_attempts: 1,
            points: 40,
            cost_micros: 250_000,
        };
        let worth = BTreeMap::from([("usd".parse().unwrap(), 10_000)]);
        let dollars = cost(row("usd"), &worth);
        assert_eq!((dollars.worth_micros, dollars.margin_micros), (Some(400_000), Some(150_000)));
        let euros = cost(row("eur"), &worth);
        assert_eq!((euros.worth_micros, euros.margin_micros), (None, None));
    }
}
