//! One work.
//!
//! Its id does not say whose it is, so every read database is asked; the one that has it answers. Its likes are counted
//! in the same breath, since every database has a part of them.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Serialize;
use skyriff_domain::{JobId, Position, ShardId, UserId, WorkId, work::Visibility};
use skyriff_edge::{Caller, Kind, Path, Problem, Right, problem::ProblemBody};
use skyriff_vault::{Column, Purpose, Vault};
use sqlx::{FromRow, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    opening::Opening,
    replicas::{AtLeast, FreshParts, QueryEverywhere},
};

/// A work that is shown.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct Work {
    pub(crate) work: WorkId,
    /// Who made it.
    pub(crate) creator: UserId,
    /// What made it; none when it was made elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<JobId>,
    /// What its maker calls it; none while nobody can open it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    pub(crate) visibility: Visibility,
    /// When it was first shown.
    pub(crate) published_at: DateTime<Utc>,
}

/// A work, and how often it is liked.
#[derive(Serialize, ToSchema)]
struct WorkAndLikes {
    #[serde(flatten)]
    work: Work,
    #[schema(minimum = 0)]
    likes: i64,
}

/// As stored.
#[derive(FromRow)]
pub(crate) struct Row {
    work_id: Uuid,
    creator: Uuid,
    job: Option<Uuid>,
    title: String,
    visibility: String,
    published_at: DateTime<Utc>,
}

impl From<Row> for Work {
    fn from(row: Row) -> Self {
        let visibility = if row.visibility == "public" { Visibility::Public } else { Visibility::Unlisted };
        Self {
            work: WorkId(row.work_id),
            creator: UserId(row.creator),
            job: row.job.map(JobId),
            title: Some(row.title),
            visibility,
            published_at: row.published_at,
        }
    }
}

/// A work that is shown, with its likes. Unlisted ones are found by whoever knows their id.
#[utoipa::path(get, path = "/v1/works/{work}", tag = "works",
    params(("work" = WorkId, Path), ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, body = WorkAndLikes),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 404, description = "No such work is shown", body = ProblemBody, content_type = "application/problem+json"),
              (status = 500, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32))),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn work(
    State(Opening { replicas, vault }): State<Opening>,
    Path(work): Path<WorkId>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl axum::response::IntoResponse, Problem> {
    caller.may_at_all(Right::ReadWorks)?;
    let parts = replicas.read_everywhere(&at_least, &WorkOf(work)).await?;
    let likes = parts.iter().map(|part| part.rows.1).sum();
    let shown = parts.into_iter().find_map(|part| part.rows.0);
    let mut shown: Vec<_> = shown.into_iter().collect();
    open_titles(&vault, &mut shown).await;
    let work = shown.pop().ok_or_else(|| Problem::new(&Kind::NOT_FOUND).detail("no such work is shown"))?;
    Ok(Json(WorkAndLikes { work, likes }))
}

/// Titles in the clear. As the tables have them they never leave.
pub(crate) async fn open_titles(vault: &Vault, works: &mut [Work]) {
    let columns: Vec<_> = works
        .iter()
        .map(|work| Column {
            person: work.creator,
            purpose: Purpose::WorkTitle,
            thing: work.work.0,
            text: work.title.as_deref().unwrap_or_default(),
        })
        .collect();
    let opened = vault.open_columns(&columns).await;
    works.iter_mut().zip(opened).for_each(|(work, title)| work.title = title);
}

struct WorkOf(WorkId);

impl QueryEverywhere for WorkOf {
    type Rows = (Option<Work>, i64);

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Self::Rows>> {
        let mut moment = moment(pool).await?;
        let positions = positions(&mut moment, shards, &["works", "likes"]).await?;
        let numbers = numbers(shards);
        let likes: Option<i64> =
            sqlx::query_scalar("SELECT sum(likes)::bigint FROM work_likes WHERE work_id = $1 AND shard = ANY ($2)")
                .bind(self.0.0)
                .bind(&numbers)
                .fetch_one(&mut *moment)
                .await?;
        let row: Option<Row> = sqlx::query_as(
            "SELECT work_id, creator, job, title, visibility, published_at FROM works
             WHERE work_id = $1 AND shown AND shard = ANY ($2)",
        )
        .bind(self.0.0)
        .bind(&numbers)
        .fetch_optional(&mut *moment)
        .await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows: (row.map(Work::from), likes.unwrap_or_default()) })
    }
}

/// A transaction in which all statements see the same moment.
///
/// The table that says how fresh things are is locked before the moment is fixed: what a switch of versions has done is
/// either seen in rows and names of tables, or in neither.
pub(crate) async fn moment(pool: &PgPool) -> sqlx::Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE checkpoints IN ACCESS SHARE MODE";
    pool.begin_with(begin).await
}

/// Shards as the tables have them.
pub(crate) fn numbers(shards: &[ShardId]) -> Vec<i16> {
    shards.iter().map(|shard| i16::try_from(shard.0).unwrap_or(i16::MAX)).collect()
}

/// How far all of these projections have come, shard by shard.
pub(crate) async fn positions(
    connection: &mut sqlx::PgConnection,
    shards: &[ShardId],
    projections: &[&str],
) -> sqlx::Result<std::collections::BTreeMap<ShardId, Position>> {
    let rows: Vec<(i16, i64)> = sqlx::query_as(
        "SELECT shard, min(position) FROM checkpoints
         WHERE projection = ANY ($1) AND shard = ANY ($2) GROUP BY shard",
    )
    .bind(projections)
    .bind(numbers(shards))
    .fetch_all(connection)
    .await?;
    let of = |(shard, position): (i16, i64)| (ShardId(u16::try_from(shard).unwrap_or_default()), Position(position));
    Ok(rows.into_iter().map(of).collect())
}
