//! What moved a user's points, newest first.

use axum::{Json, extract::State, http::HeaderValue, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::Serialize;
use skyriff_domain::{LogPosition, Position, ShardId, UserId};
use skyriff_edge::{Caller, Path, Problem, Query, Right, problem::ProblemBody};
use skyriff_vault::{Column, Purpose, Vault};
use sqlx::{FromRow, PgPool};
use utoipa::ToSchema;

use crate::{
    balance::{POSITION, present},
    opening::Opening,
    page::{self, Page, Place},
    replicas::{self, AtLeast, Fresh},
};

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

/// Where an entry is in a user's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EntryPlace {
    occurred_at: DateTime<Utc>,
    position: i64,
    line: i16,
}

impl EntryPlace {
    /// After every entry there can be.
    fn end() -> Self {
        Self { occurred_at: page::latest(), position: i64::MAX, line: i16::MAX }
    }
}

impl Place for EntryPlace {
    fn text(&self) -> String {
        let Self { occurred_at, position, line } = self;
        format!("{}.{position}.{line}", occurred_at.timestamp_micros())
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let occurred_at = page::time(parts.next()?)?;
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
    let (limit, after) = page.bounds_of::<EntryPlace>()?;
    let after = after.unwrap_or(EntryPlace::end());
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
    after: EntryPlace,
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
        .bind(after.occurred_at)
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

fn body(shard: ShardId, rows: Vec<Row>, limit: i64, position: String) -> LedgerEntries {
    let mut entries = Vec::new();
    for row in rows {
        // A shard without entries of the user still has the row that tells its checkpoint.
        let (Some(at), Some(line), Some(account), Some(amount), Some(event_type), Some(occurred_at), Some(recorded_at)) =
            (row.position, row.line, row.account, row.amount, row.event_type, row.occurred_at, row.recorded_at)
        else {
            continue;
        };
        let place = EntryPlace { occurred_at, position: at, line };
        let position = LogPosition { shard, position: Position(at) }.to_string();
        let reference = row.reference;
        let entry = LedgerEntry { position, line, account, amount, event_type, reference, occurred_at, recorded_at };
        entries.push((place, entry));
    }
    let (entries, next) = page::cut(entries, limit, |(place, _)| *place);
    LedgerEntries { entries: entries.into_iter().map(|(_, entry)| entry).collect(), next, position }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    #[test]
    fn cursors_are_read_back_and_others_are_refused() {
        let cursor = EntryPlace { occurred_at: DateTime::UNIX_EPOCH, position: 7, line: 2 };
        assert_eq!(EntryPlace::decode(&cursor.encode()), Some(cursor));
        for bad in ["", "x", "MC4x", &URL_SAFE_NO_PAD.encode("1.2.3.4"), &URL_SAFE_NO_PAD.encode("a.b.c")] {
            assert_eq!(EntryPlace::decode(bad), None, "{bad}");
        }
    }
}
