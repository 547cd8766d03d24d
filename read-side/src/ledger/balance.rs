//! What stands on an account as of any moment.

use axum::{Json, extract::State, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{ShardId, UserId};
use skyriff_edge::{Caller, Problem, Query, Right, problem::ProblemBody};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};

use super::{
    ANSWER_MAX, Ledger, Scope,
    as_of::{self, AsOf, Sum},
    complete::{Completeness, completeness},
};
use crate::{
    replicas::{AtLeast, FreshParts, QueryEverywhere},
    work::{moment, numbers},
};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// As in the chart of accounts.
    #[param(example = "platform:revenue:text_to_video")]
    account: String,
    /// Of this user alone; of all users together, unless given.
    #[serde(default)]
    user: Option<UserId>,
    /// Only what is in this shard.
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

/// What stands on an account as of two times.
#[derive(Serialize, ToSchema)]
struct BalanceAsOf {
    account: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known_at: Option<DateTime<Utc>>,
    #[schema(example = "points")]
    unit: String,
    amount: i64,
    /// Of how many entries it is the sum.
    entries: i64,
    /// The answer includes the log up to here.
    #[schema(example = json!(["3:1042"]))]
    positions: Vec<String>,
    #[serde(flatten)]
    completeness: Completeness,
}

/// The balance of any account as of a business time, a recorded time, or both: what was true then, and what was known then.
#[utoipa::path(get, path = "/v1/ledger/balance", tag = "ledger",
    params(Asked, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, body = BalanceAsOf, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn balance(
    State(Ledger { replicas, log }): State<Ledger>,
    caller: Caller,
    Query(asked): Query<Asked>,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_everywhere(Right::ReadLedger)?;
    let account = super::account(&asked.account, asked.user)?;
    let scope = Scope::of(&replicas, asked.shard, asked.user)?;
    let as_of = AsOf { at: super::time(asked.at)?, known_at: super::time(asked.known_at)? };
    let of = Of::new(asked.user, Some(asked.account.clone()));
    let (positions, sums) = scope.read(&replicas, &at_least, &Sums { of, as_of }).await?;
    let completeness = completeness(&log, &positions, asked.known_at).await;
    let body = BalanceAsOf {
        unit: account.unit().to_string(),
        account: asked.account,
        user: asked.user,
        shard: asked.shard,
        at: asked.at,
        known_at: asked.known_at,
        amount: sums.iter().flatten().map(|sum| sum.amount).sum(),
        entries: sums.iter().flatten().map(|sum| sum.entries).sum(),
        positions: super::told(&positions),
        completeness,
    };
    Ok((super::header(&positions), Json(body)))
}

/// Whose accounts, and which.
#[derive(Clone, Debug)]
pub(super) enum Of {
    /// One user's, or one of them.
    User(UserId, Option<String>),
    /// One, all users together.
    Account(String),
    /// All there are, all users together.
    Everything,
}

impl Of {
    pub(super) fn new(user: Option<UserId>, account: Option<String>) -> Self {
        match (user, account) {
            (Some(user), account) => Self::User(user, account),
            (None, Some(account)) => Self::Account(account),
            (None, None) => Self::Everything,
        }
    }

    /// The accounts that are asked about; where it is a user's, those are in the condition on the user.
    pub(super) async fn accounts(&self, moment: &mut sqlx::PgConnection) -> sqlx::Result<Vec<String>> {
        match self {
            Self::User(..) => Ok(Vec::new()),
            Self::Account(account) => Ok(vec![account.clone()]),
            Self::Everything => as_of::accounts(moment).await,
        }
    }
}

/// What stands where, as of when.
pub(super) struct Sums {
    pub(super) of: Of,
    pub(super) as_of: AsOf,
}

impl Sums {
    pub(super) async fn read(&self, moment: &mut sqlx::PgConnection, shards: &[ShardId]) -> sqlx::Result<Vec<Sum>> {
        match &self.of {
            Of::User(user, account) => as_of::sums_of_user(moment, *user, account.as_deref(), self.as_of).await,
            of @ (Of::Account(_) | Of::Everything) => {
                let accounts = of.accounts(moment).await?;
                as_of::sums(moment, &accounts, &numbers(shards), self.as_of).await
            }
        }
    }
}

impl QueryEverywhere for Sums {
    type Rows = Vec<Sum>;

    const ANSWER_MAX: std::time::Duration = ANSWER_MAX;
    const IS_ASKED_ONCE: bool = true;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Vec<Sum>>> {
        let mut moment = moment(pool).await?;
        let positions = super::positions(&mut moment, shards).await?;
        let rows = self.read(&mut moment, shards).await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows })
    }
}
