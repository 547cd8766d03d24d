//! Lists of works: the newest of all, and those of one maker.

use axum::{Json, extract::State};
use serde::Serialize;
use skyriff_domain::{LogPosition, Position, ShardId, UserId};
use skyriff_edge::{Caller, Path, Problem, Query, Right, problem::ProblemBody};
use skyriff_vault::Vault;
use sqlx::PgPool;
use utoipa::ToSchema;

use crate::{
    opening::Opening,
    page::{self, Cursor, Page},
    replicas::{self, AtLeast, Fresh, FreshParts, QueryEverywhere},
    work::{Row, Work, moment, numbers, open_titles, positions},
};

/// A page of works, newest first.
#[derive(Serialize, ToSchema)]
struct Works {
    works: Vec<Work>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Works {
    async fn of(vault: &Vault, found: Vec<Work>, limit: i64) -> Self {
        let (mut works, next) = page::cut(found, limit, |work| Cursor { at: work.published_at, id: work.work.0 });
        open_titles(vault, &mut works).await;
        Self { works, next }
    }
}

/// The newest works of all users that are public.
#[utoipa::path(get, path = "/v1/works", tag = "works",
    params(Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, body = Works),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 500, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32))),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn newest(
    State(Opening { replicas, vault }): State<Opening>,
    Query(page): Query<Page>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl axum::response::IntoResponse, Problem> {
    caller.may_at_all(Right::ReadWorks)?;
    let (limit, after) = page.bounds()?;
    let parts = replicas.read_everywhere(&at_least, &Newest { after, limit }).await?;
    let mut found: Vec<_> = parts.into_iter().flat_map(|part| part.rows).collect();
    found.sort_by_key(|work| std::cmp::Reverse((work.published_at, work.work)));
    Ok(Json(Works::of(&vault, found, limit).await))
}

struct Newest {
    after: Cursor,
    limit: i64,
}

impl QueryEverywhere for Newest {
    type Rows = Vec<Work>;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Vec<Work>>> {
        let mut moment = moment(pool).await?;
        let positions = positions(&mut moment, shards, &["works"]).await?;
        // The first condition on the time is for the planner: it leaves out the partitions of later months.
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT w.work_id, w.creator, w.job, w.title, w.visibility, w.published_at
             FROM newest_works n JOIN works w USING (work_id)
             WHERE n.published_at <= $1 AND (n.published_at, n.work_id) < ($1, $2) AND w.shard = ANY ($4)
             ORDER BY n.published_at DESC, n.work_id DESC LIMIT $3",
        )
        .bind(self.after.at)
        .bind(self.after.id)
        .bind(self.limit + 1)
        .bind(numbers(shards))
        .fetch_all(&mut *moment)
        .await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows: rows.into_iter().map(Work::from).collect() })
    }
}

/// The works that a user shows, newest first; unlisted ones only to the user.
#[utoipa::path(get, path = "/v1/users/{user}/works", tag = "works",
    params(("user" = UserId, Path), Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = Works),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 500, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32))),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn of_user(
    State(Opening { replicas, vault }): State<Opening>,
    Path(user): Path<UserId>,
    Query(page): Query<Page>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl axum::response::IntoResponse, Problem> {
    caller.may_at_all(Right::ReadWorks)?;
    let (limit, after) = page.bounds()?;
    let shard = replicas.shard_of(user);
    let unlisted_too = caller.may(Right::ReadAccount, user).is_ok();
    let fresh = replicas.read(shard, &at_least, &OfUser { shard, user, unlisted_too, after, limit }).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let header = axum::http::HeaderValue::try_from(position).ok();
    let headers = [(crate::balance::POSITION, header)].map(crate::balance::present);
    Ok((headers, Json(Works::of(&vault, fresh.rows, limit).await)))
}

struct OfUser {
    shard: ShardId,
    user: UserId,
    unlisted_too: bool,
    after: Cursor,
    limit: i64,
}

impl replicas::Query for OfUser {
    type Rows = Vec<Work>;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Vec<Work>>> {
        let mut moment = moment(pool).await?;
        let positions = positions(&mut moment, &[self.shard], &["works"]).await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT work_id, creator, job, title, visibility, published_at FROM works
             WHERE creator = $1 AND shown AND (visibility = 'public' OR $2) AND (published_at, work_id) < ($3, $4)
             ORDER BY published_at DESC, work_id DESC LIMIT $5",
        )
        .bind(self.user.0)
        .bind(self.unlisted_too)
        .bind(self.after.at)
        .bind(self.after.id)
        .bind(self.limit + 1)
        .fetch_all(&mut *moment)
        .await?;
        moment.commit().await?;
        let position = positions.get(&self.shard).copied().unwrap_or(Position::START);
        Ok(Fresh { position, rows: rows.into_iter().map(Work::from).collect() })
    }
}
