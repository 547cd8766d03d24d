//! Entries of the books, by account, user, event and either time.

mod listing;

use axum::{Json, extract::State, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, Position, ShardId, UserId, words};
use skyriff_edge::{Caller, Problem, Query, Right, problem::ProblemBody};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};

use super::{ANSWER_MAX, Scope, balance::Of};
use crate::{
    page,
    replicas::{AtLeast, FreshParts, QueryEverywhere, Replicas},
    work::moment,
};

pub(super) use self::listing::{Axis, EntryPlace, Listing, Order, Row, merge};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Of this account; of all, unless given.
    #[param(example = "platform:issuance:recharge")]
    #[serde(default)]
    account: Option<String>,
    /// On this user's accounts.
    #[serde(default)]
    user: Option<UserId>,
    /// Only in this shard.
    #[param(minimum = 0, maximum = 1023)]
    #[serde(default)]
    shard: Option<u16>,
    /// What this event has posted, and nothing else may be asked for with it.
    #[param(example = "3:1042", pattern = "^[0-9]{1,4}:[0-9]{1,18}$")]
    #[serde(default)]
    event: Option<String>,
    /// Which time `from`, `to` and the order are about.
    #[param(inline, default = "occurred")]
    #[serde(default)]
    time: Option<Axis>,
    /// At this time or later.
    #[serde(default)]
    from: Option<DateTime<Utc>>,
    /// Before this time.
    #[serde(default)]
    to: Option<DateTime<Utc>>,
    /// Which comes first.
    #[param(inline, default = "newest")]
    #[serde(default)]
    order: Option<Order>,
    /// How many.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before, asked for in the same way.
    #[serde(default)]
    cursor: Option<String>,
}

/// A page of entries.
#[derive(Serialize, ToSchema)]
struct BookEntries {
    entries: Vec<BookEntry>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The answer includes the log up to here.
    #[schema(example = json!(["3:1042"]))]
    positions: Vec<String>,
}

/// One posting of one event.
#[derive(Serialize, ToSchema)]
pub(super) struct BookEntry {
    /// The event.
    #[schema(example = "3:1042")]
    pub(super) event: String,
    /// Which of the event's postings.
    pub(super) line: i16,
    /// Whose account it is, if a user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<UserId>,
    #[schema(example = "user:available:promo")]
    pub(super) account: String,
    #[schema(example = "points")]
    pub(super) unit: String,
    /// What came (positive) or went (negative).
    pub(super) amount: i64,
    #[schema(example = "checked_in")]
    pub(super) event_type: String,
    /// What it was about: a day, an order, a spend, a hold, a job, a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<String>,
    pub(super) occurred_at: DateTime<Utc>,
    pub(super) recorded_at: DateTime<Utc>,
}

impl From<Row> for BookEntry {
    fn from(row: Row) -> Self {
        let shard = ShardId(u16::try_from(row.shard).unwrap_or_default());
        Self {
            event: LogPosition { shard, position: Position(row.position) }.to_string(),
            line: row.line,
            user: row.user_id.map(UserId),
            unit: super::unit(&row.account),
            account: row.account,
            amount: row.amount,
            event_type: row.event_type,
            reference: row.reference.map(words::without_sealed),
            occurred_at: row.occurred_at,
            recorded_at: row.recorded_at,
        }
    }
}

/// Entries of any accounts, newest or oldest first by either time, in pages; or those of one event.
#[utoipa::path(get, path = "/v1/ledger/entries", tag = "ledger",
    params(Asked, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, body = BookEntries, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn entries(
    State(replicas): State<Replicas>,
    caller: Caller,
    Query(asked): Query<Asked>,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_everywhere(Right::ReadLedger)?;
    if asked.event.is_some() {
        return of_event(&replicas, &at_least, &asked).await;
    }
    if let Some(account) = &asked.account {
        super::account(account, asked.user)?;
    }
    let scope = Scope::of(&replicas, asked.shard, asked.user)?;
    let (limit, after) = page::bounds(asked.limit, asked.cursor.as_deref())?;
    let (from, to) = (super::time(asked.from)?, super::time(asked.to)?);
    let of = Of::new(asked.user, asked.account);
    let (axis, order) = (asked.time.unwrap_or_default(), asked.order.unwrap_or_default());
    let listing = Listing { of, axis, order, from, to, after, known_at: None, upto: None, limit: limit + 1 };
    let (positions, parts) = scope.read(&replicas, &at_least, &listing).await?;
    let found = merge(parts, axis, order);
    let (rows, next) = page::cut(found, limit, |row| row.place(axis));
    let entries = rows.into_iter().map(BookEntry::from).collect();
    Ok((super::header(&positions), Json(BookEntries { entries, next, positions: super::told(&positions) })))
}

async fn of_event(
    replicas: &Replicas,
    at_least: &AtLeast,
    asked: &Asked,
) -> Result<([(axum::http::HeaderName, axum::http::HeaderValue); 1], Json<BookEntries>), Problem> {
    let Asked { account, user, shard, event: _, time, from, to, order, limit, cursor } = asked;
    let is_of_others = account.is_some() || user.is_some() || shard.is_some();
    let is_of_times = time.is_some() || from.is_some() || to.is_some();
    if is_of_others || is_of_times || order.is_some() || limit.is_some() || cursor.is_some() {
        return Err(super::malformed("nothing else may be asked for with an event"));
    }
    let event = asked.event.as_deref().and_then(|event| event.parse::<LogPosition>().ok());
    let event = event.ok_or(super::malformed("an event is shard:position, as in 3:1042"))?;
    let scope = Scope::of(replicas, Some(event.shard.0), None)?;
    let (positions, parts) = scope.read(replicas, at_least, &OfEvent(event.position)).await?;
    let entries = parts.into_iter().flatten().map(BookEntry::from).collect();
    Ok((super::header(&positions), Json(BookEntries { entries, next: None, positions: super::told(&positions) })))
}

struct OfEvent(Position);

impl QueryEverywhere for OfEvent {
    type Rows = Vec<Row>;

    const ANSWER_MAX: std::time::Duration = ANSWER_MAX;
    const IS_ASKED_ONCE: bool = true;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Vec<Row>>> {
        let mut moment = moment(pool).await?;
        let positions = super::positions(&mut moment, shards).await?;
        let rows =
            sqlx::query_as("SELECT * FROM ledger_entries WHERE shard = ANY ($1) AND position = $2 ORDER BY line")
                .bind(crate::work::numbers(shards))
                .bind(self.0.0)
                .fetch_all(&mut *moment)
                .await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows })
    }
}
