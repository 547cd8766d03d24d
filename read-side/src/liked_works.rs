//! What a user likes, newest first.

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, Position, ShardId, UserId, WorkId};
use skyriff_edge::{Caller, Kind, Path, Problem, Query, Right, problem::ProblemBody};
use sqlx::{FromRow, PgPool};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    balance::{POSITION, present},
    replicas::{self, AtLeast, Fresh, Replicas},
};

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 200;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// How many works.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// A page of the works that a user likes, what was liked last first.
#[derive(Serialize, ToSchema)]
struct LikedWorks {
    works: Vec<LikedWork>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

/// A work that a user likes.
#[derive(Serialize, ToSchema)]
struct LikedWork {
    work: WorkId,
    liked_at: DateTime<Utc>,
}

/// The last work of a page. Opaque to clients: what is in it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    liked_at: DateTime<Utc>,
    position: i64,
}

impl Cursor {
    fn encode(self) -> String {
        let Self { liked_at, position } = self;
        URL_SAFE_NO_PAD.encode(format!("{}.{position}", liked_at.timestamp_micros()))
    }

    fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (liked_at, position) = text.split_once('.')?;
        let liked_at = DateTime::from_timestamp_micros(liked_at.parse().ok()?)?;
        // Only such times are a timestamp to Postgres as well.
        let is_time = (DateTime::UNIX_EPOCH..=latest()).contains(&liked_at);
        is_time.then_some(Self { liked_at, position: position.parse().ok()? })
    }
}

/// Later than any business time, and still a timestamp to Postgres.
fn latest() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// What a user likes, newest first, in pages.
#[utoipa::path(get, path = "/v1/users/{user}/liked-works", tag = "likes",
    params(("user" = UserId, Path), Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = LikedWorks, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 500, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32))),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn liked_works(
    State(replicas): State<Replicas>,
    Path(user): Path<UserId>,
    Query(page): Query<Page>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let limit = page.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::new(&Kind::MALFORMED).detail(format!("limit is 1 to {LIMIT_MAX}")));
    }
    let after = match &page.cursor {
        None => Cursor { liked_at: latest(), position: i64::MAX },
        Some(text) => Cursor::decode(text).ok_or(Problem::new(&Kind::MALFORMED).detail("cursor is not one of ours"))?,
    };
    let shard = replicas.shard_of(user);
    let fresh = replicas.read(shard, &at_least, &WorksOf { shard, user, after, limit }).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let body = body(&fresh.rows, limit, position.clone());
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(body)))
}

struct WorksOf {
    shard: ShardId,
    user: UserId,
    after: Cursor,
    limit: i64,
}

#[derive(FromRow)]
struct Row {
    checkpoint: i64,
    work_id: Option<Uuid>,
    liked_at: Option<DateTime<Utc>>,
    position: Option<i64>,
}

impl replicas::Query for WorksOf {
    type Rows = Vec<Row>;

    /// One more than the page holds, to know whether there is a next.
    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Vec<Row>>> {
        let Self { shard, user, after, limit } = self;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT c.position AS checkpoint, l.* FROM checkpoints c
             LEFT JOIN LATERAL (
                 SELECT work_id, liked_at, position FROM likes
                 WHERE user_id = $1 AND (liked_at, position) < ($2, $3)
                 ORDER BY liked_at DESC, position DESC LIMIT $4
             ) l ON true
             WHERE c.projection = 'likes' AND c.shard = $5
             ORDER BY l.liked_at DESC, l.position DESC",
        )
        .bind(user.0)
        .bind(after.liked_at)
        .bind(after.position)
        .bind(limit + 1)
        .bind(i16::try_from(shard.0).unwrap_or(i16::MAX))
        .fetch_all(pool)
        .await?;
        let position = Position(rows.first().map_or(0, |row| row.checkpoint));
        Ok(Fresh { position, rows })
    }
}

fn body(rows: &[Row], limit: i64, position: String) -> LikedWorks {
    // A user who likes nothing still has the row that tells the checkpoint.
    let rows = rows.iter().filter_map(|row| {
        let (work, liked_at, position) = (row.work_id?, row.liked_at?, row.position?);
        Some((LikedWork { work: WorkId(work), liked_at }, Cursor { liked_at, position }))
    });
    let (mut works, cursors): (Vec<_>, Vec<_>) = rows.unzip();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = (works.len() > limit).then(|| cursors.get(limit - 1).map(|cursor| cursor.encode())).flatten();
    works.truncate(limit);
    LikedWorks { works, next, position }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back_and_others_are_refused() {
        let cursor = Cursor { liked_at: DateTime::UNIX_EPOCH, position: 7 };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        let texts =
            ["1.2.3", "a.b", "1", "-1.1", "999999999999999999.1", "1."].map(|text| URL_SAFE_NO_PAD.encode(text));
        for bad in ["", "x", "MC4x="].into_iter().chain(texts.iter().map(String::as_str)) {
            assert_eq!(Cursor::decode(bad), None, "{bad}");
        }
    }
}
