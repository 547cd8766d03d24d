//! All accounts at once, as of any moment; and whether they sum to zero.

use std::collections::BTreeMap;

use ::metrics::counter;
use axum::{Json, extract::State, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_edge::{Caller, Problem, Query, Right, problem::ProblemBody};
use utoipa::{IntoParams, ToSchema};

use super::{
    Ledger, Scope,
    as_of::AsOf,
    balance::{Of, Sums},
    complete::{Completeness, completeness},
};
use crate::replicas::AtLeast;

/// Trial balances that did not sum to zero: an alarm.
const UNBALANCED: &str = "skyriff_ledger_unbalanced_answers_total";
/// Accounts that one answer names. There is one for each product that anybody ever spent points on.
const ACCOUNTS_MAX: usize = 2_000;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Of this shard alone.
    #[param(minimum = 0, maximum = 1023)]
    #[serde(default)]
    shard: Option<u16>,
    /// What had happened by then, this moment included.
    #[serde(default)]
    at: Option<DateTime<Utc>>,
    /// What was recorded by then, this moment included.
    #[serde(default)]
    known_at: Option<DateTime<Utc>>,
}

/// What stands on every account, as of two times.
#[derive(Serialize, ToSchema)]
struct TrialBalance {
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known_at: Option<DateTime<Utc>>,
    /// Whether every shard sums to zero in every unit. Anything else means that the books are damaged.
    balanced: bool,
    /// Of all shards that were asked for together.
    sums: Vec<UnitSum>,
    /// Of each shard.
    shards: Vec<ShardSums>,
    /// All users together, by name; the first two thousand.
    accounts: Vec<AccountSum>,
    /// Accounts that are not named; the sums include them.
    accounts_left_out: usize,
    /// The answer includes the log up to here.
    #[schema(example = json!(["3:1042"]))]
    positions: Vec<String>,
    #[serde(flatten)]
    completeness: Completeness,
}

/// What all accounts of a unit come to.
#[derive(Serialize, ToSchema)]
struct UnitSum {
    #[schema(example = "points")]
    unit: String,
    /// Zero, unless the books are damaged.
    sum: i64,
    /// Entries that it is the sum of.
    entries: i64,
}

/// The sums of one shard, which balances on its own.
#[derive(Serialize, ToSchema)]
struct ShardSums {
    shard: u16,
    sums: Vec<UnitSum>,
}

/// What stands on one account.
#[derive(Serialize, ToSchema)]
struct AccountSum {
    #[schema(example = "platform:transit")]
    account: String,
    #[schema(example = "points")]
    unit: String,
    amount: i64,
    entries: i64,
}

/// Amount and entries.
type Counts = BTreeMap<String, (i64, i64)>;

/// All accounts, per shard and in total, as of a business time, a recorded time, or both. They always sum to zero.
#[utoipa::path(get, path = "/v1/ledger/trial-balance", tag = "ledger",
    params(Asked, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, body = TrialBalance, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn trial_balance(
    State(Ledger { replicas, log }): State<Ledger>,
    caller: Caller,
    Query(Asked { shard, at, known_at }): Query<Asked>,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_everywhere(Right::ReadLedger)?;
    let scope = Scope::of(&replicas, shard, None)?;
    let as_of = AsOf { at: super::time(at)?, known_at: super::time(known_at)? };
    let query = Sums { of: Of::Everything, as_of };
    let (positions, sums) = scope.read(&replicas, &at_least, &query).await?;
    let (mut total, mut accounts, mut shards) = (Counts::new(), Counts::new(), BTreeMap::<u16, Counts>::new());
    for shard in positions.keys() {
        shards.entry(shard.0).or_default();
    }
    for sum in sums.into_iter().flatten() {
        let unit = super::unit(&sum.account);
        let of_shard = shards.entry(u16::try_from(sum.shard).unwrap_or(u16::MAX)).or_default();
        for (counts, name) in [(&mut total, unit.clone()), (of_shard, unit), (&mut accounts, sum.account)] {
            let (amount, entries) = counts.entry(name).or_default();
            *amount += sum.amount;
            *entries += sum.entries;
        }
    }
    let wrong: Vec<_> = shards.iter().filter(|(_, sums)| sums.values().any(|(sum, _)| *sum != 0)).collect();
    let balanced = wrong.is_empty();
    if !balanced {
        counter!(UNBALANCED).increment(1);
        tracing::error!(?wrong, ?at, ?known_at, "the trial balance is not zero: the ledger's read model is damaged");
    }
    let accounts_left_out = accounts.len().saturating_sub(ACCOUNTS_MAX);
    let account = |(account, (amount, entries)): (String, _)| AccountSum {
        unit: super::unit(&account),
        account,
        amount,
        entries,
    };
    let completeness = completeness(&log, &positions, known_at).await;
    let body = TrialBalance {
        at,
        known_at,
        balanced,
        sums: units(total),
        shards: shards.into_iter().map(|(shard, sums)| ShardSums { shard, sums: units(sums) }).collect(),
        accounts: accounts.into_iter().take(ACCOUNTS_MAX).map(account).collect(),
        accounts_left_out,
        positions: super::told(&positions),
        completeness,
    };
    Ok((super::header(&positions), Json(body)))
}

fn units(sums: Counts) -> Vec<UnitSum> {
    sums.into_iter().map(|(unit, (sum, entries))| UnitSum { unit, sum, entries }).collect()
}
