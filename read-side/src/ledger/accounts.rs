//! The chart of accounts.

use axum::{Json, response::IntoResponse};
use serde::Serialize;
use skyriff_domain::ledger::chart::{self, Line};
use skyriff_edge::{Caller, Problem, Right, problem::ProblemBody};
use utoipa::ToSchema;

/// The accounts that there are.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChartOfAccounts {
    accounts: Vec<ChartLine>,
}

/// One account, or one for each product or currency.
#[derive(Serialize, ToSchema)]
struct ChartLine {
    /// PRODUCT and CURRENCY stand for a label.
    #[schema(example = "platform:revenue:PRODUCT")]
    account: String,
    /// Whether each user has one.
    of_users: bool,
    /// Amounts in different units are never added up.
    #[schema(example = "points")]
    unit: String,
    /// What it is for.
    purpose: &'static str,
}

/// The chart of accounts: what there is, and what it is for. What each event posts is in schemas/ledger.md.
#[utoipa::path(get, path = "/v1/ledger/accounts", tag = "ledger",
    responses((status = 200, body = ChartOfAccounts),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn accounts(caller: Caller) -> Result<impl IntoResponse, Problem> {
    caller.may_everywhere(Right::ReadLedger)?;
    let line = |Line { account, of_users, unit, purpose }| ChartLine { account, of_users, unit, purpose };
    Ok(Json(ChartOfAccounts { accounts: chart::chart().into_iter().map(line).collect() }))
}
