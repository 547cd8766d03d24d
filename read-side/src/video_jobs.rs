//! A user's video jobs. The prompt is stored as it is in its event, sealed, and is opened for its owner only.

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{
    JobId, LogPosition, Position, Sealed, ShardId, UserId,
    video_job::{Kind as What, Resolution, Status},
};
use skyriff_edge::{Caller, Kind, Path, Problem, Query, Right, Role, problem::ProblemBody};
use skyriff_vault::{Column, Purpose, Vault};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    balance::{POSITION, present},
    replicas::{self, AtLeast, Fresh, Replicas},
};

const LIMIT_DEFAULT: i64 = 20;
const LIMIT_MAX: i64 = 100;

/// What these queries need: who answers, and who opens what is sealed.
#[derive(Clone, Debug)]
pub(crate) struct VideoJobs {
    pub(crate) replicas: Replicas,
    pub(crate) vault: Vault,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Only jobs that are this; all, unless given.
    #[serde(default)]
    state: Option<Status>,
    /// How many jobs.
    #[param(minimum = 1, maximum = 100, default = 20)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// A page of a user's video jobs, newest first.
#[derive(Serialize, ToSchema)]
struct VideoJobsOfUser {
    jobs: Vec<VideoJob>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

/// A video or speech that was ordered.
#[derive(Serialize, ToSchema)]
struct VideoJob {
    job: JobId,
    user: UserId,
    state: Status,
    kind: What,
    /// How long it is to be, at most.
    seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution: Option<Resolution>,
    #[serde(skip_serializing_if = "Option::is_none")]
    voice: Option<String>,
    /// For its owner only.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    priority: i16,
    /// What it is made with, or what the order named.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// How often it was tried.
    attempts: i64,
    /// What was held for it when it was ordered.
    held: i64,
    /// What was paid in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<i64>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// It is tried again, not before.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<VideoOutput>,
    submitted_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// What was made.
#[derive(Serialize, ToSchema)]
struct VideoOutput {
    /// Its name in the object storage.
    object: String,
    seconds: i64,
    bytes: i64,
    /// In hexadecimal digits.
    sha256: String,
    content_type: String,
}

#[derive(Deserialize)]
struct Row {
    job: Uuid,
    user_id: Uuid,
    status: Status,
    kind: What,
    seconds: i64,
    resolution: Option<Resolution>,
    voice: Option<String>,
    wanted: Option<String>,
    provider: Option<String>,
    prompt: String,
    priority: i16,
    attempt: i64,
    held: i64,
    used: Option<i64>,
    reason: Option<String>,
    retry_at: Option<DateTime<Utc>>,
    object: Option<String>,
    output_seconds: Option<i64>,
    bytes: Option<i64>,
    sha256: Option<String>,
    content_type: Option<String>,
    submitted_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    submitted_position: i64,
}

/// A user's video jobs, newest first, in pages.
#[utoipa::path(get, path = "/v1/users/{user}/video-jobs", tag = "videos",
    params(("user" = UserId, Path), Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = VideoJobsOfUser, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn video_jobs(
    State(VideoJobs { replicas, vault }): State<VideoJobs>,
    Path(user): Path<UserId>,
    Query(page): Query<Page>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let malformed = |detail: String| Problem::new(&Kind::MALFORMED).detail(detail);
    let limit = page.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(malformed(format!("limit is 1 to {LIMIT_MAX}")));
    }
    let before = match &page.cursor {
        None => i64::MAX,
        Some(cursor) => cursor.parse().map_err(|_| malformed("cursor is not one of ours".to_owned()))?,
    };
    let shard = replicas.shard_of(user);
    let query = OfUser { shard, user, one: None, state: page.state, before, limit: limit + 1 };
    let fresh = replicas.read(shard, &at_least, &query).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let mut rows = fresh.rows;
    let length = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > length;
    rows.truncate(length);
    let next = rows.last().filter(|_| more).map(|row| row.submitted_position.to_string());
    let jobs = shown(&vault, &caller, rows).await;
    let body = VideoJobsOfUser { jobs, next, position: position.clone() };
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(body)))
}

/// One video job.
#[utoipa::path(get, path = "/v1/users/{user}/video-jobs/{job}", tag = "videos",
    params(("user" = UserId, Path), ("job" = JobId, Path),
           ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = VideoJob, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 404, description = "This user has no such job", body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn video_job(
    State(VideoJobs { replicas, vault }): State<VideoJobs>,
    Path((user, job)): Path<(UserId, JobId)>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let shard = replicas.shard_of(user);
    let query = OfUser { shard, user, one: Some(job), state: None, before: i64::MAX, limit: 1 };
    let fresh = replicas.read(shard, &at_least, &query).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let found = shown(&vault, &caller, fresh.rows).await.pop().ok_or(Problem::new(&Kind::NOT_FOUND))?;
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(found)))
}

/// As they may be shown to this caller.
async fn shown(vault: &Vault, caller: &Caller, rows: Vec<Row>) -> Vec<VideoJob> {
    let is_owner = |row: &Row| caller.role == Role::User && caller.id == row.user_id;
    let sealed: Vec<_> =
        rows.iter().map(|row| Sealed::try_from(row.prompt.clone()).ok().filter(|_| is_owner(row))).collect();
    let asked: Vec<_> = rows
        .iter()
        .zip(&sealed)
        .filter_map(|(row, sealed)| Some((UserId(row.user_id), JobId(row.job), sealed.as_ref()?)))
        .collect();
    // Everything else is shown when the keys cannot be reached, or are no more.
    let mut opened = vault.open_prompts(&asked).await.into_iter();
    let prompts: Vec<_> = sealed.iter().map(|sealed| sealed.as_ref().and_then(|_| opened.next()?.ok())).collect();
    let columns: Vec<_> = rows
        .iter()
        .map(|row| Column {
            person: UserId(row.user_id),
            purpose: Purpose::AttemptReason,
            thing: row.job,
            text: row.reason.as_deref().unwrap_or_default(),
        })
        .collect();
    let reasons = vault.open_columns(&columns).await;
    let rows = rows.into_iter().zip(reasons).map(|(row, opened)| Row { reason: row.reason.and(opened), ..row });
    rows.zip(prompts).map(|(row, prompt)| show(row, prompt)).collect()
}

fn show(row: Row, prompt: Option<String>) -> VideoJob {
    let output = (|| {
        Some(VideoOutput {
            object: row.object?,
            seconds: row.output_seconds?,
            bytes: row.bytes?,
            sha256: row.sha256?,
            content_type: row.content_type?,
        })
    })();
    VideoJob {
        job: JobId(row.job),
        user: UserId(row.user_id),
        state: row.status,
        kind: row.kind,
        seconds: row.seconds,
        resolution: row.resolution,
        voice: row.voice,
        prompt,
        priority: row.priority,
        provider: row.provider.or(row.wanted),
        attempts: row.attempt,
        held: row.held,
        used: row.used,
        reason: row.reason,
        retry_at: row.retry_at,
        output,
        submitted_at: row.submitted_at,
        updated_at: row.updated_at,
    }
}

struct OfUser {
    shard: ShardId,
    user: UserId,
    /// This one only.
    one: Option<JobId>,
    /// In this state only.
    state: Option<Status>,
    /// Submitted before this position.
    before: i64,
    limit: i64,
}

impl replicas::Query for OfUser {
    type Rows = Vec<Row>;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Vec<Row>>> {
        let Self { shard, user, one, state, before, limit } = self;
        let found: Option<(i64, sqlx::types::Json<Vec<Row>>)> = sqlx::query_as(
            "SELECT c.position, (
                 SELECT coalesce(json_agg(j ORDER BY j.submitted_position DESC), '[]') FROM (
                     SELECT * FROM video_jobs
                     WHERE user_id = $1 AND submitted_position < $2 AND ($3::uuid IS NULL OR job = $3)
                       AND ($4::text IS NULL OR status = $4)
                     ORDER BY submitted_position DESC LIMIT $5
                 ) j)
             FROM checkpoints c WHERE c.projection = 'video_jobs' AND c.shard = $6",
        )
        .bind(user.0)
        .bind(before)
        .bind(one.map(|one| one.0))
        .bind(state.map(Status::as_str))
        .bind(limit)
        .bind(i16::try_from(shard.0).unwrap_or(i16::MAX))
        .fetch_optional(pool)
        .await?;
        let (position, rows) = found.unwrap_or_default();
        Ok(Fresh { position: Position(position), rows: rows.0 })
    }
}
