//! Statements: what stood on an account before a period, every entry in it, and what stands on it afterwards; for programs
//! (JSON, CSV) and for people (HTML that prints well).
//!
//! Both balances, and which part of the log the statement is of, are read at one moment; entries follow in pages that are
//! held to that part, so a statement is of one moment however long it is and however slowly it is taken. The entries are
//! added up on the way, and a statement that does not come to its closing balance breaks off.

mod csv;
mod html;
mod json;
mod stream;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use skyriff_domain::{ShardId, UserId};
use skyriff_edge::{Caller, Kind, Problem, Query, Right, problem::ProblemBody};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use utoipa::{IntoParams, ToSchema};

use super::{
    ANSWER_MAX, Ledger, Positions, Scope,
    as_of::{AsOf, Sum},
    balance::{Of, Sums},
    complete::{Completeness, completeness},
};
use crate::{
    replicas::{AtLeast, FreshParts, QueryEverywhere},
    work::moment,
};

/// Entries of one statement. A longer period is asked for in parts.
const ENTRIES_MAX: i64 = 1_000_000;
/// Statements that are being written at a time.
const STATEMENTS_MAX: usize = 8;
/// On every statement, since not each form has a place for it.
const COMPLETE: HeaderName = HeaderName::from_static("skyriff-complete");

/// What statements need.
#[derive(Clone, Debug)]
pub(crate) struct Statements {
    ledger: Ledger,
    places: Arc<Semaphore>,
}

impl Statements {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self { ledger, places: Arc::new(Semaphore::new(STATEMENTS_MAX)) }
    }
}

/// How a statement is written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
    /// For people.
    Html,
}

impl Format {
    /// What the client takes, if it says so in the words that we know.
    fn accepted(headers: &HeaderMap) -> Self {
        let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let known = [("text/csv", Self::Csv), ("text/html", Self::Html), ("application/json", Self::Json)];
        let first = known.into_iter().filter_map(|(name, format)| Some((accepts.find(name)?, format)));
        first.min_by_key(|(place, _)| *place).map_or(Self::Json, |(_, format)| format)
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Of this account; may be left out with a user, whose accounts it is then of.
    #[param(example = "platform:issuance:recharge")]
    #[serde(default)]
    account: Option<String>,
    /// Of this user alone; of all users together, unless given.
    #[serde(default)]
    user: Option<UserId>,
    /// Only what is in this shard.
    #[param(minimum = 0, maximum = 1023)]
    #[serde(default)]
    shard: Option<u16>,
    /// The period begins with this moment; with the first entry, unless given.
    #[serde(default)]
    from: Option<DateTime<Utc>>,
    /// The period ends before this moment; with the last entry, unless given.
    #[serde(default)]
    to: Option<DateTime<Utc>>,
    /// What was recorded by then.
    #[serde(default)]
    known_at: Option<DateTime<Utc>>,
    /// Goes before `Accept`.
    #[param(inline)]
    #[serde(default)]
    format: Option<Format>,
}

/// What is on a statement, apart from its entries.
struct Statement {
    account: Option<String>,
    user: Option<UserId>,
    shard: Option<u16>,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    known_at: Option<DateTime<Utc>>,
    /// By account; those that nothing was ever posted to are not named.
    opening: BTreeMap<String, i64>,
    closing: BTreeMap<String, i64>,
    entries: i64,
    positions: Positions,
    completeness: Completeness,
}

/// A statement of an account, or of all accounts of a user, over a period of the business time.
///
/// As JSON, as CSV (`Accept: text/csv` or `format=csv`), or as a page that prints well (`text/html`). Entries are in the
/// order of the business time, each with the balance of its account after it. A statement has at most a million entries.
/// One that is cut off breaks the connection, so nobody takes it for complete. `Skyriff-Complete` says, in each form,
/// whether everything is in it that was recorded by `known_at`; without that, until ten seconds ago.
#[utoipa::path(get, path = "/v1/ledger/statement", tag = "ledger",
    params(Asked, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, content((json::StatementBody = "application/json"), (String = "text/csv"), (String = "text/html")), headers(("Skyriff-Position" = String), ("Skyriff-Complete" = bool))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 422, description = "The period has too many entries", body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn statement(
    State(Statements { ledger: Ledger { replicas, log }, places }): State<Statements>,
    caller: Caller,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    at_least: AtLeast,
) -> Result<Response, Problem> {
    caller.may_everywhere(Right::ReadLedger)?;
    match &asked.account {
        Some(account) => drop(super::account(account, asked.user)?),
        None if asked.user.is_some() => {}
        None => return Err(super::malformed("a statement is of an account, of a user, or of both")),
    }
    let (from, to, known_at) = (super::time(asked.from)?, super::time(asked.to)?, super::time(asked.known_at)?);
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return Err(super::malformed("from must be before to"));
    }
    let scope = Scope::of(&replicas, asked.shard, asked.user)?;
    let place = places.try_acquire_owned();
    let place = place.map_err(|_| Problem::new(&Kind::TOO_MANY_STREAMS).retry_after_s(10))?;
    let of = Of::new(asked.user, asked.account.clone());
    let query = Balances { of: of.clone(), from, to, known_at };
    let (positions, parts) = scope.read(&replicas, &at_least, &query).await?;
    let (mut opening, mut closing, mut entries) = (BTreeMap::new(), BTreeMap::new(), 0);
    for (of_opening, of_closing) in parts {
        for Sum { account, amount, entries: before, .. } in of_opening {
            *opening.entry(account).or_insert(0) += amount;
            entries -= before;
        }
        for Sum { account, amount, entries: by_then, .. } in of_closing {
            *closing.entry(account).or_insert(0) += amount;
            entries += by_then;
        }
    }
    if entries > ENTRIES_MAX {
        let detail =
            format!("the period has {entries} entries, and a statement at most {ENTRIES_MAX}: ask for parts of it");
        return Err(Problem::new(&Kind::OUT_OF_RANGE).detail(detail));
    }
    let format = asked.format.unwrap_or_else(|| Format::accepted(&headers));
    let header = super::header(&positions);
    let completeness = completeness(&log, &positions, known_at).await;
    let complete = HeaderValue::from_static(if completeness.complete { "true" } else { "false" });
    let (account, user, shard) = (asked.account, asked.user, asked.shard);
    let statement =
        Statement { account, user, shard, from, to, known_at, opening, closing, entries, positions, completeness };
    let body: Body = stream::start(replicas, scope, of, statement, format, place);
    let mut response = (header, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response.headers_mut().insert(COMPLETE, complete);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What stood there before the period, and what stands there after it, at one moment.
struct Balances {
    of: Of,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    known_at: Option<DateTime<Utc>>,
}

impl QueryEverywhere for Balances {
    type Rows = (Vec<Sum>, Vec<Sum>);

    const ANSWER_MAX: std::time::Duration = ANSWER_MAX;
    const IS_ASKED_ONCE: bool = true;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Self::Rows>> {
        let mut moment = moment(pool).await?;
        let positions = super::positions(&mut moment, shards).await?;
        let sums = |as_of| Sums { of: self.of.clone(), as_of };
        let before = match self.from {
            Some(from) => sums(AsOf::before(from, self.known_at)).read(&mut moment, shards).await?,
            None => Vec::new(),
        };
        let after = match self.to {
            Some(to) => AsOf::before(to, self.known_at),
            None => AsOf { at: None, known_at: self.known_at },
        };
        let after = sums(after).read(&mut moment, shards).await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows: (before, after) })
    }
}
