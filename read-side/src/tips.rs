//! What became of a user's tips: one, or those sent or received, newest first.

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, Position, ShardId, TipId, UserId, WorkId};
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

/// Whether the user gave it or got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TipDirection)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    /// The user gave it.
    Sent,
    /// The user got it.
    Received,
}

impl Direction {
    /// As in the table.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// How far a tip is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TipState {
    /// The sender's points are reserved; the receiver gets them soon, or the sender gets them back.
    Offered,
    /// The receiver has them.
    Delivered,
    /// The receiver could not have them; the sender has them again.
    Returned,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Which of the user's tips.
    direction: Direction,
    /// How many.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// A tip, as one of its two users sees it.
#[derive(Serialize, ToSchema)]
struct Tip {
    tip: TipId,
    /// Seen from the user in the address.
    direction: Direction,
    from: UserId,
    to: UserId,
    /// What the sender pays.
    points: i64,
    /// What the platform keeps of that; the rest is the receiver's income.
    share: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    work: Option<WorkId>,
    state: TipState,
    /// Why it was returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    occurred_at: DateTime<Utc>,
}

/// One tip, and how fresh the answer is.
#[derive(Serialize, ToSchema)]
struct OneTip {
    #[serde(flatten)]
    tip: Tip,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

/// A page of a user's tips, newest business time first.
#[derive(Serialize, ToSchema)]
struct Tips {
    tips: Vec<Tip>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

/// The last tip of a page. Opaque to clients: what is in it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    occurred_at: DateTime<Utc>,
    position: i64,
}

impl Cursor {
    fn encode(self) -> String {
        let Self { occurred_at, position } = self;
        URL_SAFE_NO_PAD.encode(format!("{}.{position}", occurred_at.timestamp_micros()))
    }

    fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (occurred_at, position) = text.split_once('.')?;
        let occurred_at = DateTime::from_timestamp_micros(occurred_at.parse().ok()?)?;
        (occurred_at <= latest()).then_some(Self { occurred_at, position: position.parse().ok()? })
    }
}

/// Later than any business time, and still a timestamp to Postgres.
fn latest() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// A tip that the user gave or got.
///
/// Right after it was offered, ask with the `Skyriff-Position` of that answer as `Skyriff-At-Least`. While it is on its way
/// its state is `offered`, and only its sender sees it.
#[utoipa::path(get, path = "/v1/users/{user}/tips/{tip}", tag = "tips",
    params(("user" = UserId, Path), ("tip" = TipId, Path), ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = OneTip, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 404, description = "No such tip of this user, as far as is known by now", body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn tip(
    State(replicas): State<Replicas>,
    Path((user, tip)): Path<(UserId, TipId)>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may(Right::ReadAccount, user)?;
    let shard = replicas.shard_of(user);
    let fresh = replicas.read(shard, &at_least, &OneOf { shard, user, tip }).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let found = fresh.rows.into_iter().find_map(|row| row.tip(user));
    let (tip, _) = found.ok_or(Problem::new(&Kind::NOT_FOUND))?;
    let header = HeaderValue::try_from(&position).ok();
    Ok(([(POSITION, header)].map(present), Json(OneTip { tip, position })))
}

/// The tips that a user gave, or those that the user got, newest first, in pages.
#[utoipa::path(get, path = "/v1/users/{user}/tips", tag = "tips",
    params(("user" = UserId, Path), Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = Tips, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn tips(
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
        None => Cursor { occurred_at: latest(), position: i64::MAX },
        Some(text) => Cursor::decode(text).ok_or(Problem::new(&Kind::MALFORMED).detail("cursor is not one of ours"))?,
    };
    let shard = replicas.shard_of(user);
    let wanted = PageOf { shard, user, direction: page.direction, after, limit };
    let fresh = replicas.read(shard, &at_least, &wanted).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let (mut tips, cursors): (Vec<_>, Vec<_>) = fresh.rows.into_iter().filter_map(|row| row.tip(user)).unzip();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = (tips.len() > limit).then(|| cursors.get(limit - 1).map(|cursor| cursor.encode())).flatten();
    tips.truncate(limit);
    let header = HeaderValue::try_from(&position).ok();
    Ok(([(POSITION, header)].map(present), Json(Tips { tips, next, position })))
}

#[derive(FromRow)]
struct Row {
    checkpoint: i64,
    tip_id: Option<Uuid>,
    direction: Option<String>,
    other_id: Option<Uuid>,
    points: Option<i64>,
    share: Option<i64>,
    work_id: Option<Uuid>,
    state: Option<String>,
    reason: Option<String>,
    occurred_at: Option<DateTime<Utc>>,
    position: Option<i64>,
}

impl Row {
    /// None when the row only tells the checkpoint.
    fn tip(self, user: UserId) -> Option<(Tip, Cursor)> {
        let (other, occurred_at) = (UserId(self.other_id?), self.occurred_at?);
        let direction = match self.direction?.as_str() {
            "sent" => Direction::Sent,
            _ => Direction::Received,
        };
        let (from, to) = match direction {
            Direction::Sent => (user, other),
            Direction::Received => (other, user),
        };
        let state = match self.state?.as_str() {
            "offered" => TipState::Offered,
            "delivered" => TipState::Delivered,
            _ => TipState::Returned,
        };
        let tip = Tip {
            tip: TipId(self.tip_id?),
            direction,
            from,
            to,
            points: self.points?,
            share: self.share?,
            work: self.work_id.map(WorkId),
            state,
            reason: self.reason,
            occurred_at,
        };
        Some((tip, Cursor { occurred_at, position: self.position? }))
    }
}

fn fresh(rows: Vec<Row>) -> Fresh<Vec<Row>> {
    Fresh { position: Position(rows.first().map_or(0, |row| row.checkpoint)), rows }
}

struct OneOf {
    shard: ShardId,
    user: UserId,
    tip: TipId,
}

impl replicas::Query for OneOf {
    type Rows = Vec<Row>;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Vec<Row>>> {
        let rows = sqlx::query_as(
            "SELECT c.position AS checkpoint, t.tip_id, t.direction, t.other_id, t.points, t.share, t.work_id, t.state,
                    t.reason, t.occurred_at, t.position
             FROM checkpoints c LEFT JOIN tips t ON t.tip_id = $1 AND t.user_id = $2
             WHERE c.projection = 'tips' AND c.shard = $3",
        )
        .bind(self.tip.0)
        .bind(self.user.0)
        .bind(i16::try_from(self.shard.0).unwrap_or(i16::MAX))
        .fetch_all(pool)
        .await?;
        Ok(fresh(rows))
    }
}

struct PageOf {
    shard: ShardId,
    user: UserId,
    direction: Direction,
    after: Cursor,
    limit: i64,
}

impl replicas::Query for PageOf {
    type Rows = Vec<Row>;

    /// One more than the page holds, to know whether there is a next.
    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Vec<Row>>> {
        let rows = sqlx::query_as(
            "SELECT c.position AS checkpoint, t.* FROM checkpoints c
             LEFT JOIN LATERAL (
                 SELECT tip_id, direction, other_id, points, share, work_id, state, reason, occurred_at, position
                 FROM tips
                 WHERE user_id = $1 AND direction = $2 AND (occurred_at, position) < ($3, $4)
                 ORDER BY occurred_at DESC, position DESC LIMIT $5
             ) t ON true
             WHERE c.projection = 'tips' AND c.shard = $6
             ORDER BY t.occurred_at DESC, t.position DESC",
        )
        .bind(self.user.0)
        .bind(self.direction.as_str())
        .bind(self.after.occurred_at)
        .bind(self.after.position)
        .bind(self.limit + 1)
        .bind(i16::try_from(self.shard.0).unwrap_or(i16::MAX))
        .fetch_all(pool)
        .await?;
        Ok(fresh(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back_and_others_are_refused() {
        let cursor = Cursor { occurred_at: DateTime::UNIX_EPOCH, position: 7 };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        let too_late = URL_SAFE_NO_PAD.encode(format!("{}.1", DateTime::<Utc>::MAX_UTC.timestamp_micros()));
        for bad in ["", "x", "MC4x", &URL_SAFE_NO_PAD.encode("1"), &URL_SAFE_NO_PAD.encode("1.a"), &too_late] {
            assert!(Cursor::decode(bad).is_none_or(|cursor| cursor.encode() == bad), "{bad}");
        }
        assert_eq!(Cursor::decode(&too_late), None, "Postgres has no such time");
    }
}
