//! How many likes a work has.
//!
//! Its likes are with the users who gave them, so every read database has a part of the count, and the answer is the
//! sum. The parts are of slightly different moments, as the positions say; each is exact up to its own.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue},
    response::IntoResponse,
};
use serde::Serialize;
use skyriff_domain::{LogPosition, Position, ShardId, WorkId};
use skyriff_edge::{Caller, Path, Problem, Right, problem::ProblemBody};
use sqlx::PgPool;
use utoipa::ToSchema;

use crate::{
    balance::POSITION,
    replicas::{AT_LEAST_MAX, AtLeast, FreshParts, QueryEverywhere, Replicas},
};

/// How often a work is liked. A work that nobody has liked has no likes, be there such a work or not.
#[derive(Serialize, ToSchema)]
struct WorkLikes {
    work: WorkId,
    #[schema(minimum = 0)]
    likes: i64,
    /// The answer includes the log of every shard up to here, separated by commas; left out where there are more than 64
    /// shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "0:17,1:9,2:1042")]
    position: Option<String>,
}

/// How many likes a work has, of all users.
#[utoipa::path(get, path = "/v1/works/{work}/likes", tag = "likes",
    params(("work" = WorkId, Path), ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, body = WorkLikes, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 500, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32))),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn work_likes(
    State(replicas): State<Replicas>,
    Path(work): Path<WorkId>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_at_all(Right::ReadWorks)?;
    let parts = replicas.read_everywhere(&at_least, &LikesOf(work)).await?;
    let likes = parts.iter().map(|part| part.rows).sum();
    let positions: BTreeMap<_, _> = parts.into_iter().flat_map(|part| part.positions).collect();
    let position = (positions.len() <= AT_LEAST_MAX).then(|| {
        let places = positions.into_iter().map(|(shard, position)| LogPosition { shard, position }.to_string());
        places.collect::<Vec<_>>().join(",")
    });
    let header = position.as_ref().and_then(|position| HeaderValue::try_from(position).ok());
    let headers: HeaderMap = header.map(|value| (POSITION, value)).into_iter().collect();
    Ok((headers, Json(WorkLikes { work, likes, position })))
}

struct LikesOf(WorkId);

impl QueryEverywhere for LikesOf {
    type Rows = i64;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<i64>> {
        let numbers: Vec<_> = shards.iter().map(|shard| i16::try_from(shard.0).unwrap_or(i16::MAX)).collect();
        let (likes, shards, positions): (i64, Vec<i16>, Vec<i64>) = sqlx::query_as(
            "SELECT coalesce((SELECT sum(likes)::bigint FROM work_likes WHERE work_id = $1 AND shard = ANY ($2)), 0),
                    coalesce(array_agg(shard), '{}'), coalesce(array_agg(position), '{}')
             FROM checkpoints WHERE projection = 'likes' AND shard = ANY ($2)",
        )
        .bind(self.0.0)
        .bind(numbers)
        .fetch_one(pool)
        .await?;
        let shards = shards.into_iter().map(|shard| ShardId(u16::try_from(shard).unwrap_or_default()));
        Ok(FreshParts { positions: shards.zip(positions.into_iter().map(Position)).collect(), rows: likes })
    }
}
