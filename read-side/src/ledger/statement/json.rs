//! A statement for programs.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use skyriff_domain::UserId;
use utoipa::ToSchema;

use super::Statement;
use crate::ledger::{self, complete::Completeness, entries::BookEntry};

/// A statement of an account, or of all accounts of a user, over a period.
//
// It describes what is written piece by piece.
#[derive(Serialize, ToSchema)]
#[schema(as = Statement)]
pub(super) struct StatementBody<'e> {
    account: Option<String>,
    user: Option<UserId>,
    shard: Option<u16>,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    known_at: Option<DateTime<Utc>>,
    /// What stood there before.
    opening: Vec<StatementBalance>,
    /// In the order of the business time.
    entries: Vec<StatementEntry<'e>>,
    /// What stands there afterwards.
    closing: Vec<StatementBalance>,
    /// The statement includes the log up to here.
    #[schema(example = json!(["3:1042"]))]
    positions: Vec<String>,
    #[serde(flatten)]
    completeness: Completeness,
}

/// What stands on an account.
#[derive(Serialize, ToSchema)]
struct StatementBalance {
    account: String,
    unit: String,
    amount: i64,
}

/// An entry, and what stands on its account after it.
#[derive(Serialize, ToSchema)]
struct StatementEntry<'e> {
    #[serde(flatten)]
    entry: &'e BookEntry,
    balance: i64,
}

/// What comes before the entries.
#[derive(Serialize)]
struct Head<'s> {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known_at: Option<DateTime<Utc>>,
    opening: Vec<StatementBalance>,
}

/// What comes after them.
#[derive(Serialize)]
struct Tail {
    closing: Vec<StatementBalance>,
    positions: Vec<String>,
    #[serde(flatten)]
    completeness: Completeness,
}

fn balances(of: &BTreeMap<String, i64>) -> Vec<StatementBalance> {
    let told = |(account, amount): (&String, &i64)| StatementBalance {
        unit: ledger::unit(account),
        account: account.clone(),
        amount: *amount,
    };
    of.iter().map(told).collect()
}

/// None of these can fail to be written.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn head(statement: &Statement) -> String {
    let Statement { user, shard, from, to, known_at, .. } = *statement;
    let opening = balances(&statement.opening);
    let head = Head { account: statement.account.as_deref(), user, shard, from, to, known_at, opening };
    let mut head = text(&head);
    head.pop();
    head.push_str(",\"entries\":[");
    head
}

pub(super) fn entry(to: &mut String, entry: &BookEntry, balance: i64, first: bool) {
    if !first {
        to.push(',');
    }
    to.push('\n');
    to.push_str(&text(&StatementEntry { entry, balance }));
}

pub(super) fn tail(to: &mut String, statement: &Statement) {
    let tail = Tail {
        closing: balances(&statement.closing),
        positions: ledger::told(&statement.positions),
        completeness: statement.completeness.clone(),
    };
    to.push_str("],");
    to.push_str(text(&tail).trim_start_matches('{'));
}
