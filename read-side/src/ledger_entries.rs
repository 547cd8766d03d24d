//! What moved a user's points, newest first.

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, Position, ShardId, UserId};
use skyriff_edge::{Caller, Kind, Path, Problem, Query, Right, problem::ProblemBody};
use skyriff_vault::{Column, Purpose, Vault};
use sqlx::{FromRow, PgPool};
use utoipa::{IntoParams, ToSchema};

use crate::{
    balance::{POSITION, present},
    opening::Opening,
    replicas::{self, AtLeast, Fresh},
};

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 200;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// How many entries.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// A page of a user's ledger, newest business time first.
#[derive(Serialize, ToSchema)]
struct LedgerEntries {
    entries: Vec<LedgerEntry>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042")]
    position: String,
}

/// One posting on one of the user's accounts.
#[derive(Serialize, ToSchema)]
struct LedgerEntry {
    /// The event that moved the points.
    #[schema(example = "3:1042")]
    position: String,
    /// Which of the event's postings.
    line: i16,
    #[schema(example = "user:available:promo")]
    account: String,
    /// What came (positive) or went (negative).
    amount: i64,
    #[schema(example = "checked_in")]
    event_type: String,
    /// What it was about: a day, an order, a spend, a hold, a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    occurred_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
}

/// The last entry of a page. Opaque to clients: what is in it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    occurred_at: DateTime<Utc>,
    position: i64,
    line: i16,
}

impl Cursor {
    /// After every entry there can be.
    const END: Self = Self { occurred_at: DateTime::<Utc>::MAX_UTC, position: i64::MAX, line: i16::MAX };

    fn encode(self) -> String {
        let Self { occurred_at, position, line } = self;
        URL_SAFE_NO_PAD.encode(format!("{}.{position}.{line}", occurred_at.timestamp_micros()))
    }

    fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = text.split('.');
        let occurred_at = DateTime::from_timestamp_micros(parts.next()?.parse().ok()?)?;
        let (position, line) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { occurred_at, position, line })
    }
}

#[derive(FromRow)]
struct Row {
    checkpoint: i64,
    position: Option<i64>,
    line: Option<i16>,
    account: Option<String>,
    amount: Option<i64>,
    event_type: Option<String>,
    reference: Option<String>,
    occurred_at: Option<DateTime<Utc>>,
    recorded_at: Option<DateTime<Utc>>,
}

/// What moved a user's points, newest first, in pages.
#[utoipa::path(get, path = "/v1/users/{user}/ledger-entries", tag = "points",
    params(("user" = UserId, Path), Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position")),
    responses((status = 200, body = LedgerEntries, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn ledger_entries(
    State(Opening { replicas, vault }): State<Opening>,
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
        None => Cursor::END,
        Some(text) => Cursor::decode(text).ok_or(Problem::new(&Kind::MALFORMED).detail("cursor is not one of ours"))?,
    };
    let shard = replicas.shard_of(user);
    let fresh = replicas.read(shard, &at_least, &EntriesOf { shard, user, after, limit }).await?;
    let position = LogPosition { shard, position: fresh.position }.to_string();
    let mut body = body(shard, fresh.rows, limit, position.clone());
    open_references(&vault, user, &mut body.entries).await;
    Ok(([(POSITION, HeaderValue::try_from(position).ok())].map(present), Json(body)))
}

/// Why points were corrected stands sealed where other entries have an id or a day.
async fn open_references(vault: &Vault, user: UserId, entries: &mut [LedgerEntry]) {
    let texts: Vec<_> = entries.iter().map(|entry| entry.reference.clone().unwrap_or_default()).collect();
    let columns: Vec<_> = texts
        .iter()
        .map(|text| Column { person: user, purpose: Purpose::AdjustmentReason, thing: user.0, text })
        .collect();
    let opened = vault.open_columns(&columns).await;
    for (entry, opened) in entries.iter_mut().zip(opened) {
        entry.reference = entry.reference.take().and(opened);
    }
}

struct EntriesOf {
    shard: ShardId,
    user: UserId,
    after: Cursor,
    limit: i64,
}

impl replicas::Query for EntriesOf {
    type Rows = Vec<Row>;

    /// One more than the page holds, to know whether there is a next.
    async fn run(&self, pool: &PgPool) -> sqlx::Result<Fresh<Vec<Row>>> {
        let Self { shard, user, after, limit } = self;
        // The first condition on occurred_at is for the planner: it leaves out the partitions of later months.
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT c.position AS checkpoint, e.* FROM checkpoints c
         LEFT JOIN LATERAL (
             SELECT position, line, account, amount, event_type, reference, occurred_at, recorded_at
             FROM ledger_entries
             WHERE user_id = $1 AND occurred_at <= $2 AND (occurred_at, position, line) < ($2, $3, $4)
             ORDER BY occurred_at DESC, position DESC, line DESC LIMIT $5
         ) e ON true
         WHERE c.projection = 'ledger_entries' AND c.shard = $6
         ORDER BY e.occurred_at DESC, e.position DESC, e.line DESC",
        )
        .bind(user.0)
        .bind(after.occurred_at.min(latest()))
        .bind(after.position)
        .bind(after.line)
        .bind(limit + 1)
        .bind(i16::try_from(shard.0).unwrap_or(i16::MAX))
        .fetch_all(pool)
        .await?;
        let position = Position(rows.first().map_or(0, |row| row.checkpoint));
        Ok(Fresh { position, rows })
    }
}

/// Later than any business time, and still a timestamp to Postgres.
fn latest() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn body(shard: ShardId, rows: Vec<Row>, limit: i64, position: String) -> LedgerEntries {
    let mut cursors = Vec::new();
    let mut entries = Vec::new();
    for row in rows {
        // A shard without entries of the user still has the row that tells its checkpoint.
        let (Some(at), Some(line), Some(account), Some(amount), Some(event_type), Some(occurred_at), Some(recorded_at)) =
            (row.position, row.line, row.account, row.amount, row.event_type, row.occurred_at, row.recorded_at)
        else {
            continue;
        };
        cursors.push(Cursor { occurred_at, position: at, line });
        let position = LogPosition { shard, position: Position(at) }.to_string();
        let reference = row.reference;
        entries.push(LedgerEntry { position, line, account, amount, event_type, reference, occurred_at, recorded_at });
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = (entries.len() > limit).then(|| cursors.get(limit - 1).map(|cursor| cursor.encode())).flatten();
    entries.truncate(limit);
    LedgerEntries { entries, next, position }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back_and_others_are_refused() {
        let cursor = Cursor { occurred_at: DateTime::UNIX_EPOCH, position: 7, line: 2 };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        for bad in ["", "x", "MC4x", &URL_SAFE_NO_PAD.encode("1.2.3.4"), &URL_SAFE_NO_PAD.encode("a.b.c")] {
            assert_eq!(Cursor::decode(bad), None, "{bad}");
        }
    }
}
