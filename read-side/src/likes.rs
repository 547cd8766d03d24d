//! Which of some works a user likes: what an app draws hearts from.

use std::collections::HashMap;

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use skyriff_domain::{LogPosition, Position, ShardId, UserId, WorkId};
use skyriff_edge::{Caller, Path, Problem, Query, Right, problem::ProblemBody};
use sqlx::{FromRow, PgPool};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    balance::{POSITION, present},
    replicas::{self, AtLeast, Fresh, Replicas},
};

/// Works in one question.
const WORKS_MAX: usize = 100;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Which works: 1 to 100 ids, separated by commas.
    #[param(value_type = Vec<WorkId>, style = Form, explode = false, min_items = 1, max_items = 100)]
    #[serde(deserialize_with = "separated_by_commas")]
    works: Vec<WorkId>,
}

fn separated_by_commas<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WorkId>, D::Error> {
    let text = String::deserialize(deserializer)?;
    // One more than may be is enough to know that there are too many.
    let works = text.split(',').take(WORKS_MAX + 1).map(str::parse).collect::<Result<Vec<_>, _>>();
    let works = works.map_err(|error| D::Error::custom(format!("works are ids, separated by commas: {error}")))?;
    if works.len() > WORKS_MAX {
        return Err(D::Error::custom(format!("works are 1 to {WORKS_MAX}")));
    }
    Ok(works)
}

/// Whether a user likes some works, in the order in which they were asked for.
#[derive(Serialize, ToSchema)]
struct Likes {
    likes: Vec<OfWork>,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

/// Whether a user likes a work.
#[derive(Serialize, ToSchema)]
struct OfWork {
    work: WorkId,
    liked: bool,
    /// Since when, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    liked_at: Option<DateTime<Utc>>,
}

/// Which of up to a hundred works a user likes.
#[utoipa::path(get, path = "/v1/users/{user}/likes", tag = "likes",
    params(("user" = UserId, Path), Asked, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = Likes, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 500, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32))),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn likes(
    State(replicas): State<Replicas>,
    Path(user): Path<UserId>,
    Query(Asked { works }): Query<Asked>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let shard = replicas.shard_of(user);
    let query = LikesOf { shard, user, works };
    let fresh = replicas.read(shard, &at_least, &query).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let of_work = |work: WorkId| {
        let liked_at = fresh.rows.get(&work.0).copied();
        OfWork { work, liked: liked_at.is_some(), liked_at }
    };
    let body = Likes { likes: query.works.into_iter().map(of_work).collect(), position: position.clone() };
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(body)))
}

struct LikesOf {
    shard: ShardId,
    user: UserId,
    works: Vec<WorkId>,
}

#[derive(FromRow)]
struct Row {
    checkpoint: i64,
    work_id: Option<Uuid>,
    liked_at: Option<DateTime<Utc>>,
}

impl replicas::Query for LikesOf {
    type Rows = HashMap<Uuid, DateTime<Utc>>;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Self::Rows>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT c.position AS checkpoint, l.work_id, l.liked_at FROM checkpoints c
             LEFT JOIN likes l ON l.user_id = $1 AND l.work_id = ANY ($2)
             WHERE c.projection = 'likes' AND c.shard = $3",
        )
        .bind(self.user.0)
        .bind(self.works.iter().map(|work| work.0).collect::<Vec<_>>())
        .bind(i16::try_from(self.shard.0).unwrap_or(i16::MAX))
        .fetch_all(pool)
        .await?;
        let position = Position(rows.first().map_or(0, |row| row.checkpoint));
        Ok(Fresh { position, rows: rows.into_iter().filter_map(|row| row.work_id.zip(row.liked_at)).collect() })
    }
}
