//! The events themselves, for those who count and compare: from any position, filtered, resumable, live.
//!
//! What is personal is masked ([`exported`]). A stream is read from the event store's replicas where there are some
//! ([`log`]), in pages, no faster than its client takes it (`stream`), and its [`cursor`] goes on where it ended.

pub mod cursor;
pub mod exported;
pub mod filter;
pub mod log;
mod rows;
mod stream;

use std::{collections::BTreeSet, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skyriff_domain::{CommandId, Position, ShardId, UserId};
use skyriff_edge::{Caller, Kind, Problem, Query, Right, problem::ProblemBody};
use utoipa::{IntoParams, ToSchema};

use self::{
    cursor::Positions,
    stream::{Format, Wanted},
};
pub use self::{
    exported::{Exported, Masks},
    filter::Filter,
    log::EventLogs,
    rows::{ByShard, OtherForm, Row, Rows},
};

use crate::replicas::AtLeast;

const HEARTBEAT_S_DEFAULT: u32 = 10;
const HEARTBEAT_S_MAX: u32 = 60;
const LIMIT_MAX: u64 = 1_000_000_000;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Proxies that know it pass a stream on as it comes.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Only this shard, in its order; all of them, unless given.
    #[param(minimum = 0, maximum = 1023, example = 3)]
    #[serde(default)]
    shard: Option<u16>,
    /// After this position of the shard; from the first event, unless given.
    #[param(minimum = 0, example = 1042)]
    #[serde(default)]
    after: Option<i64>,
    /// Go on after this cursor of an earlier stream; in place of `shard` and `after`.
    #[serde(default)]
    cursor: Option<String>,
    /// Only these types, written `aggregate.event`, with commas between them.
    #[param(example = "points_account.checked_in,points_account.spent")]
    #[serde(default)]
    r#type: Option<String>,
    /// Only events of these kinds of aggregate, with commas between them.
    #[param(example = "points_account")]
    #[serde(default)]
    aggregate: Option<String>,
    /// Only events of this user's streams; reads only the user's shard, unless a cursor is given.
    #[serde(default)]
    user: Option<UserId>,
    /// Only what happened (`occurred_at`) at this time or later.
    #[serde(default)]
    from: Option<DateTime<Utc>>,
    /// Only what happened before this time.
    #[serde(default)]
    to: Option<DateTime<Utc>>,
    /// Stay, and send what is recorded from now on.
    #[param(default = false)]
    #[serde(default)]
    follow: bool,
    /// No more than so many events.
    #[param(minimum = 1, maximum = 1_000_000_000)]
    #[serde(default)]
    limit: Option<u64>,
    /// A cursor is sent at least so often, in seconds, also when nothing happens.
    #[param(minimum = 1, maximum = 60, default = 10)]
    #[serde(default)]
    heartbeat_s: Option<u32>,
}

/// One line of the stream: an event.
#[derive(Serialize, ToSchema)]
#[schema(as = EventLine)]
struct EventBody {
    /// Where it is, and what it can be told apart by.
    #[schema(example = "3:1042")]
    id: String,
    /// The kind of aggregate, and what happened to it.
    #[schema(example = "points_account.checked_in")]
    r#type: String,
    /// Of the type's form.
    #[schema(example = "1")]
    version: String,
    shard: u16,
    /// In the shard: 1, 2, 3 … without a gap.
    position: i64,
    /// The kind of aggregate, and its id.
    #[schema(example = "points_account/959de6e1-d9ef-5a29-a884-f19f971b9c27")]
    stream: String,
    /// Which of the stream's events, from 1.
    sequence: i64,
    /// When it happened.
    occurred_at: DateTime<Utc>,
    /// When it was recorded.
    recorded_at: DateTime<Utc>,
    /// In which role its command was sent.
    #[schema(example = "user")]
    actor: String,
    command_id: CommandId,
    /// The event that made a process send the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    causation: Option<String>,
    /// What its type says; members that are personal are null.
    #[schema(value_type = Object, example = json!({"day": "2026-01-31", "days_in_a_row": 1, "points": 10, "expires_at": "2027-02-01T00:00:00Z"}))]
    data: Value,
}

/// One line of the stream: how far it is.
#[derive(Serialize, ToSchema)]
#[schema(as = CursorLine)]
struct CursorBody {
    /// Everything before this line is included, and nothing after it.
    cursor: String,
    /// On the last line: `complete`, when all that was there at the start was sent; `limit`; `stopping`, when this server
    /// stops, and the stream can be gone on with at another. A stream without it was cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
}

/// A line is one or the other.
#[derive(Serialize, ToSchema)]
#[schema(as = EventStreamLine)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is written by hand")]
enum LineBody {
    Event(EventBody),
    Cursor(CursorBody),
}

/// Events from any position on, for analysts.
///
/// One JSON object a line (`application/x-ndjson`): events, and now and then `{"cursor": …}`, which says how far the stream
/// is. Send the last one that you got as `cursor`, with the same filters, to go on there; events that came after it come
/// again, and their `id` tells. The last line has `end`; a stream without one was cut off.
///
/// Of one shard events come in its order, which is the order in which they were recorded. Of all shards each one's events
/// come in its order, and between shards by `recorded_at` as far as that is possible: clocks differ, and what a stream that
/// follows has sent it cannot take back.
///
/// With `Accept: text/event-stream` the same comes as server-sent events, whose ids are cursors: after a break, clients send
/// the last one as `Last-Event-ID` by themselves. The last event is named `end`.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(Asked, ("Last-Event-ID" = Option<String>, Header, description = "go on after this cursor; goes before `cursor`, `shard` and `after`"),
           ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "read where the log has come at least so far")),
    responses((status = 200, description = "A stream of lines", content((LineBody = "application/x-ndjson"), (String = "text/event-stream"))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn events(
    State(logs): State<EventLogs>,
    caller: Caller,
    Query(asked): Query<Asked>,
    at_least: AtLeast,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.may_everywhere(Right::ReadEvents)?;
    let wanted = wanted(asked, at_least, &headers, &logs)?;
    let (format, follow) = (wanted.format, wanted.follow);
    let permit = logs.streams().try_acquire_owned();
    let permit = permit.map_err(|_| Problem::new(&Kind::TOO_MANY_STREAMS).retry_after_s(10))?;
    let body = stream::start(logs, wanted, permit).await.map_err(|error| match error {
        log::ReadError::Unavailable | log::ReadError::Database(_) => {
            Problem::new(&Kind::READS_UNAVAILABLE).retry_after_s(2)
        }
        log::ReadError::NotYet { newest } => {
            Problem::new(&Kind::NOT_YET).retry_after_s(1).with("newest", newest.to_string())
        }
        log::ReadError::Gap { .. } | log::ReadError::Form(_) => Problem::fault(&error),
    })?;
    let content_type = match format {
        Format::Ndjson => "application/x-ndjson",
        Format::Sse => "text/event-stream",
    };
    let mut response = body.into_response();
    let mut set = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, content_type);
    set(header::CACHE_CONTROL, "no-store");
    if follow {
        set(BUFFERING, "no");
        // Compressing would hold events back until enough of them are together.
        set(header::CONTENT_ENCODING, "identity");
    }
    Ok(response)
}

fn wanted(asked: Asked, at_least: AtLeast, headers: &HeaderMap, logs: &EventLogs) -> Result<Wanted, Problem> {
    let malformed = |detail: &str| Problem::new(&Kind::MALFORMED).detail(detail.to_owned());
    let heartbeat_s = asked.heartbeat_s.unwrap_or(HEARTBEAT_S_DEFAULT);
    if !(1..=HEARTBEAT_S_MAX).contains(&heartbeat_s) {
        return Err(malformed(&format!("heartbeat_s is 1 to {HEARTBEAT_S_MAX}")));
    }
    if asked.limit.is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit)) {
        return Err(malformed(&format!("limit is 1 to {LIMIT_MAX}")));
    }
    let filter = Filter {
        types: asked.r#type.as_deref().map_or(Ok(BTreeSet::new()), filter::list).map_err(|error| malformed(&error))?,
        aggregates: asked
            .aggregate
            .as_deref()
            .map_or(Ok(BTreeSet::new()), filter::list)
            .map_err(|error| malformed(&error))?,
        user: asked.user,
        from: asked.from,
        to: asked.to,
    };
    filter.check().map_err(malformed)?;
    let last = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?").to_owned());
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(Wanted {
        filter,
        after: after(&asked, last, logs)?,
        at_least,
        format: if accepts.contains("text/event-stream") { Format::Sse } else { Format::Ndjson },
        follow: asked.follow,
        limit: asked.limit,
        heartbeat: Duration::from_secs(u64::from(heartbeat_s)),
    })
}

/// Which shards, and from where.
fn after(asked: &Asked, last: Option<String>, logs: &EventLogs) -> Result<Positions, Problem> {
    let malformed = |detail: &'static str| Problem::new(&Kind::MALFORMED).detail(detail);
    let shards = logs.shard_count();
    if asked.cursor.is_some() && (asked.shard.is_some() || asked.after.is_some()) {
        return Err(malformed("a cursor says the shards and positions, so shard and after do not go with it"));
    }
    if asked.shard.is_some_and(|shard| shard >= shards.get()) {
        return Err(malformed("there is no such shard"));
    }
    if asked.after.is_some_and(|after| after < 0 || asked.shard.is_none()) {
        return Err(malformed("after is a position of one shard, 0 or more, and needs shard"));
    }
    let of_user = asked.user.map(|user| skyriff_domain::shard_of(user, shards));
    if let Some(text) = last.as_ref().or(asked.cursor.as_ref()) {
        let after = cursor::decode(text, shards).ok_or(malformed("the cursor is not one of ours"))?;
        if of_user.is_some_and(|of_user| !after.contains_key(&of_user)) {
            return Err(malformed("the cursor is of other shards than the user's"));
        }
        return Ok(after);
    }
    let one = asked.shard.map(ShardId);
    if of_user.zip(one).is_some_and(|(of_user, one)| of_user != one) {
        return Err(malformed("the user's events are on another shard"));
    }
    let one = one.or(of_user);
    Ok(match one {
        Some(shard) => Positions::from([(shard, Position(asked.after.unwrap_or_default()))]),
        None => shards.shards().map(|shard| (shard, Position::START)).collect(),
    })
}
