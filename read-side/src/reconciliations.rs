//! Files of providers that were compared with the ledger, and what does not agree, over all shards.
//!
//! Why an exception was resolved is stored as it is in its event, sealed when it is about somebody, and is opened here.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::IntoResponse,
};
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{
    ExceptionId, Label, LogPosition, Position, ReconciliationId, ShardId, UserId,
    reconciliation::{Kind, exception::Figures},
};
use skyriff_edge::{Caller, Problem, Query, Right, problem::ProblemBody};
use skyriff_vault::{Column, Purpose, Vault};
use sqlx::{FromRow, PgPool, types::Json as Stored};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    balance::{POSITION, present},
    opening::Opening,
    page::{self, Cursor, Page},
    replicas::{AT_LEAST_MAX, AtLeast, FreshParts, QueryEverywhere, Replicas},
    work::{moment, numbers, positions},
};

/// The projections of these tables.
const OF: &[&str] = &["reconciliations"];

/// A page of reconciliations, newest first.
#[derive(Serialize, ToSchema)]
struct Reconciliations {
    reconciliations: Vec<ReconciliationRun>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A file that was compared, or is being compared.
#[derive(FromRow, Serialize, ToSchema)]
struct ReconciliationRun {
    #[schema(value_type = ReconciliationId)]
    run_id: Uuid,
    #[schema(value_type = Kind)]
    kind: String,
    provider: String,
    /// The first UTC day that it covers.
    from_day: NaiveDate,
    /// The day after the last.
    to_day: NaiveDate,
    /// Of the file, in hexadecimal digits.
    sha256: String,
    lines: i64,
    started_at: DateTime<Utc>,
    /// With the counts; without them it was interrupted or is under way: the same command goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matched: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_in_ledger: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_in_file: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    different: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explained: Option<i64>,
}

/// The reconciliations of providers' files, newest first.
#[utoipa::path(get, path = "/v1/ledger/reconciliations", tag = "reconciliation",
    params(Page, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than these positions")),
    responses((status = 200, body = Reconciliations, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn reconciliations(
    State(replicas): State<Replicas>,
    Query(page): Query<Page>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_at_all(Right::ReadReconciliations)?;
    let (limit, after) = page.bounds()?;
    let (position, mut found) = merged(&replicas, &at_least, &Runs { after, limit }).await?;
    found.sort_by_key(|run: &ReconciliationRun| std::cmp::Reverse((run.started_at, run.run_id)));
    let (reconciliations, next) = page::cut(found, limit, |run| Cursor { at: run.started_at, id: run.run_id });
    Ok((position, Json(Reconciliations { reconciliations, next })))
}

/// What an exception may be.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ExceptionState {
    /// Waits for somebody.
    Open,
    /// A later file agrees.
    Explained,
    /// A person has found out why.
    Resolved,
}

impl ExceptionState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Explained => "explained",
            Self::Resolved => "resolved",
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only those that are this; all, unless given.
    #[serde(default)]
    #[param(inline)]
    state: Option<ExceptionState>,
    /// Only of payouts, or of recharges.
    #[serde(default)]
    #[param(inline)]
    kind: Option<Kind>,
    /// Only of this provider's files.
    #[serde(default)]
    provider: Option<Label>,
    /// How many.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// A page of exceptions, newest first.
#[derive(Serialize, ToSchema)]
struct Exceptions {
    exceptions: Vec<ReconciliationException>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What a provider's file and the ledger do not agree on.
#[derive(Serialize, ToSchema)]
struct ReconciliationException {
    exception: ExceptionId,
    /// In whose name it is resolved: whose payment it is, or the exception itself when nobody knows.
    home: UserId,
    /// Whose payment it is; none when the ledger does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    #[schema(value_type = Kind)]
    kind: String,
    provider: String,
    /// The withdrawal or the order.
    subject: Uuid,
    /// The reconciliation that found it.
    run: ReconciliationId,
    #[schema(value_type = skyriff_domain::reconciliation::exception::Difference)]
    difference: String,
    /// What the ledger says.
    #[serde(skip_serializing_if = "Option::is_none")]
    ours: Option<Figures>,
    /// What the file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    theirs: Option<Figures>,
    /// Of the file, from 1, the header counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<i64>,
    #[schema(value_type = ExceptionState)]
    state: String,
    /// The reconciliation that explained it.
    #[serde(skip_serializing_if = "Option::is_none")]
    explained_by: Option<ReconciliationId>,
    /// The operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved_by: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<skyriff_domain::reconciliation::exception::Outcome>)]
    outcome: Option<String>,
    /// Why, in the operator's words; none when nobody can open them any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    found_at: DateTime<Utc>,
    changed_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct Row {
    exception_id: Uuid,
    user_id: Option<Uuid>,
    kind: String,
    provider: String,
    subject: Uuid,
    run_id: Uuid,
    difference: String,
    ours: Option<Stored<Figures>>,
    theirs: Option<Stored<Figures>>,
    line: Option<i64>,
    state: String,
    explained_by: Option<Uuid>,
    resolved_by: Option<Uuid>,
    outcome: Option<String>,
    reason: Option<String>,
    found_at: DateTime<Utc>,
    changed_at: DateTime<Utc>,
}

/// What providers' files and the ledger do not agree on, newest first.
#[utoipa::path(get, path = "/v1/ledger/reconciliations/exceptions", tag = "reconciliation",
    params(Which, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than these positions")),
    responses((status = 200, body = Exceptions, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn exceptions(
    State(Opening { replicas, vault }): State<Opening>,
    Query(which): Query<Which>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_at_all(Right::ReadReconciliations)?;
    let Which { state, kind, provider, limit, cursor } = which;
    let (limit, after) = Page::of(limit, cursor).bounds()?;
    let (position, mut found) = merged(&replicas, &at_least, &Open { state, kind, provider, after, limit }).await?;
    found.sort_by_key(|row: &Row| std::cmp::Reverse((row.found_at, row.exception_id)));
    let (rows, next) = page::cut(found, limit, |row| Cursor { at: row.found_at, id: row.exception_id });
    Ok((position, Json(Exceptions { exceptions: shown(&vault, rows).await, next })))
}

async fn shown(vault: &Vault, rows: Vec<Row>) -> Vec<ReconciliationException> {
    let columns: Vec<_> = rows
        .iter()
        .map(|row| Column {
            person: UserId(row.user_id.unwrap_or(row.exception_id)),
            purpose: Purpose::ExceptionReason,
            thing: row.exception_id,
            text: row.reason.as_deref().unwrap_or_default(),
        })
        .collect();
    let reasons = vault.open_columns(&columns).await;
    let shown = rows.into_iter().zip(reasons).map(|(row, opened)| ReconciliationException {
        exception: ExceptionId(row.exception_id),
        home: UserId(row.user_id.unwrap_or(row.exception_id)),
        user: row.user_id.map(UserId),
        kind: row.kind,
        provider: row.provider,
        subject: row.subject,
        run: ReconciliationId(row.run_id),
        difference: row.difference,
        ours: row.ours.map(|Stored(figures)| figures),
        theirs: row.theirs.map(|Stored(figures)| figures),
        line: row.line,
        state: row.state,
        explained_by: row.explained_by.map(ReconciliationId),
        resolved_by: row.resolved_by.map(UserId),
        outcome: row.outcome,
        reason: row.reason.and(opened),
        found_at: row.found_at,
        changed_at: row.changed_at,
    });
    shown.collect()
}

type Header = [(HeaderName, HeaderValue); 1];

/// What all read databases have, and how fresh it is.
async fn merged<R, Q: QueryEverywhere<Rows = Vec<R>>>(
    replicas: &Replicas,
    at_least: &AtLeast,
    query: &Q,
) -> Result<(Header, Vec<R>), Problem> {
    let (mut places, mut rows) = (BTreeMap::new(), Vec::new());
    for part in replicas.read_everywhere(at_least, query).await? {
        places.extend(part.positions);
        rows.extend(part.rows);
    }
    let place = |(shard, position): (ShardId, Position)| LogPosition { shard, position }.to_string();
    let places = places.into_iter().take(AT_LEAST_MAX).map(place).collect::<Vec<_>>().join(",");
    Ok(([(POSITION, HeaderValue::try_from(places).ok())].map(present), rows))
}

struct Runs {
    after: Cursor,
    limit: i64,
}

impl QueryEverywhere for Runs {
    type Rows = Vec<ReconciliationRun>;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Self::Rows>> {
        let mut moment = moment(pool).await?;
        let positions = positions(&mut moment, shards, OF).await?;
        let rows = sqlx::query_as(
            "SELECT run_id, kind, provider, from_day, to_day, sha256, lines, started_at, finished_at, matched,
                    missing_in_ledger, missing_in_file, different, repeated, explained
             FROM reconciliation_runs WHERE (started_at, run_id) < ($1, $2) AND shard = ANY ($4)
             ORDER BY started_at DESC, run_id DESC LIMIT $3",
        )
        .bind(self.after.at)
        .bind(self.after.id)
        .bind(self.limit + 1)
        .bind(numbers(shards))
        .fetch_all(&mut *moment)
        .await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows })
    }
}

struct Open {
    state: Option<ExceptionState>,
    kind: Option<Kind>,
    provider: Option<Label>,
    after: Cursor,
    limit: i64,
}

impl QueryEverywhere for Open {
    type Rows = Vec<Row>;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Self::Rows>> {
        let mut moment = moment(pool).await?;
        let positions = positions(&mut moment, shards, OF).await?;
        let rows = sqlx::query_as(
            "SELECT exception_id, user_id, kind, provider, subject, run_id, difference, ours, theirs, line, state,
                    explained_by, resolved_by, outcome, reason, found_at, changed_at
             FROM reconciliation_exceptions
             WHERE (found_at, exception_id) < ($1, $2) AND shard = ANY ($4) AND ($5::text IS NULL OR state = $5)
               AND ($6::text IS NULL OR kind = $6) AND ($7::text IS NULL OR provider = $7)
             ORDER BY found_at DESC, exception_id DESC LIMIT $3",
        )
        .bind(self.after.at)
        .bind(self.after.id)
        .bind(self.limit + 1)
        .bind(numbers(shards))
        .bind(self.state.map(ExceptionState::as_str))
        .bind(self.kind.map(Kind::as_str))
        .bind(self.provider.as_ref().map(Label::as_str))
        .fetch_all(&mut *moment)
        .await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows })
    }
}
