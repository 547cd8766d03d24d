//! The books, for auditors: any balance as of any moment, entries, trial balances, statements, and what is held.
//!
//! There are two times. The business time says when something was so (`at`), the recorded time when we knew of it
//! (`known_at`): imports and corrections are recorded long after they were so. Either may be left out, which asks for
//! everything that happened, or for all that is known.
//!
//! All of it is read from replicas, and each answer says which part of the log it includes, and whether that is everything
//! that was recorded by the time that is asked for (`complete`). A shard of which the books have nothing yet is no zero: then
//! there is no answer.

pub(crate) mod accounts;
mod as_of;
pub(crate) mod balance;
mod complete;
pub(crate) mod entries;
pub(crate) mod holds;
pub(crate) mod statement;
pub(crate) mod trial_balance;

use std::{collections::BTreeMap, time::Duration};

use axum::{
    extract::FromRef,
    http::{HeaderName, HeaderValue},
};
use chrono::{DateTime, Utc};
use skyriff_domain::{LogPosition, Position, ShardId, UserId, ledger::Account};
use skyriff_edge::{Kind, Problem};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    balance::{POSITION, present},
    page,
    replicas::{AtLeast, FreshParts, QueryEverywhere, Replicas},
    story::Stories,
    work::numbers,
};

/// The version of the read model that these queries are made for: the first with sums.
const VERSION: i32 = 2;
/// A sum of the books may take longer than a look at a balance.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// When the books of a new shard may be there, in seconds.
const ABSENT_RETRY_S: u32 = 5;
/// Positions in a header; an answer's body has all of them.
const POSITIONS_MAX: usize = 64;

/// Which part of the log an answer includes.
pub(crate) type Positions = BTreeMap<ShardId, Position>;

/// Where the books are, and the log that they are made from. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) replicas: Replicas,
    pub(crate) log: Stories,
}

impl FromRef<Ledger> for Replicas {
    fn from_ref(ledger: &Ledger) -> Self {
        ledger.replicas.clone()
    }
}

/// How far the books have come, which has to be asked first. None of an older version answers: it has no sums.
async fn positions(moment: &mut PgConnection, shards: &[ShardId]) -> sqlx::Result<Positions> {
    let rows: Vec<(i16, i64, i32)> = sqlx::query_as(
        "SELECT shard, position, version FROM checkpoints WHERE projection = 'ledger_entries' AND shard = ANY ($1)",
    )
    .bind(numbers(shards))
    .fetch_all(moment)
    .await?;
    let mut positions = BTreeMap::new();
    for (shard, position, version) in rows {
        if version < VERSION {
            return Err(sqlx::Error::Protocol(format!(
                "ledger_entries is of its version {version}, and has to be built anew: skyriff rebuild ledger_entries"
            )));
        }
        positions.insert(ShardId(u16::try_from(shard).unwrap_or_default()), Position(position));
    }
    Ok(positions)
}

/// Where to look: at one shard, or at all of them.
#[derive(Clone, Copy, Debug)]
struct Scope(Option<ShardId>);

impl Scope {
    /// The shard that is asked for, or that of the user that is asked for.
    fn of(replicas: &Replicas, shard: Option<u16>, user: Option<UserId>) -> Result<Self, Problem> {
        let of_user = user.map(|user| replicas.shard_of(user));
        let Some(shard) = shard.map(ShardId) else { return Ok(Self(of_user)) };
        if shard.0 >= replicas.shard_count().get() {
            return Err(malformed("there is no such shard"));
        }
        if of_user.is_some_and(|of_user| of_user != shard) {
            return Err(malformed("the user lives in another shard"));
        }
        Ok(Self(Some(shard)))
    }

    async fn read<Q: QueryEverywhere>(
        self,
        replicas: &Replicas,
        at_least: &AtLeast,
        query: &Q,
    ) -> Result<(Positions, Vec<Q::Rows>), Problem> {
        let parts = match self.0 {
            Some(shard) => vec![replicas.read_part(shard, at_least, query).await?],
            None => replicas.read_everywhere(at_least, query).await?,
        };
        let mut positions = Positions::new();
        let mut rows = Vec::new();
        for FreshParts { positions: of_part, rows: of_rows } in parts {
            positions.extend(of_part);
            rows.push(of_rows);
        }
        let asked = replicas.shard_count().shards().filter(|shard| self.0.is_none_or(|asked| asked == *shard));
        let absent: Vec<_> = asked.filter(|shard| !positions.contains_key(shard)).map(|shard| shard.0).collect();
        if let Some(first) = absent.first() {
            // Without them it would be a part of a sum that looks like all of it.
            tracing::error!(shards = ?absent, "the books have nothing of these shards: does a projector feed ledger_entries?");
            let detail = format!("the books have nothing of {} of the shards yet, {first} among them", absent.len());
            return Err(Problem::new(&Kind::READS_UNAVAILABLE).detail(detail).retry_after_s(ABSENT_RETRY_S));
        }
        Ok((positions, rows))
    }
}

fn malformed(detail: &'static str) -> Problem {
    Problem::new(&Kind::MALFORMED).detail(detail)
}

/// A time that the database knows as well.
fn time(time: Option<DateTime<Utc>>) -> Result<Option<DateTime<Utc>>, Problem> {
    match time {
        Some(time) if !(page::earliest()..=page::latest()).contains(&time) => {
            Err(malformed("times are of the years 1 to 9999"))
        }
        time => Ok(time),
    }
}

/// An account that there can be, of this user if of one.
fn account(name: &str, user: Option<UserId>) -> Result<Account, Problem> {
    let account = Account::named(name, user.unwrap_or(UserId(Uuid::nil())));
    let account = account.ok_or(malformed("there is no such account; /v1/ledger/accounts has them"))?;
    if user.is_some() && account.user().is_none() {
        return Err(malformed("this is no account of a user"));
    }
    Ok(account)
}

/// What an account counts; every account that is stored has a name that is known, unless a newer program wrote it.
fn unit(account: &str) -> String {
    let known = Account::named(account, UserId(Uuid::nil()));
    known.map_or_else(|| "unknown".to_owned(), |account| account.unit().to_string())
}

/// For the body: all of them.
pub(crate) fn told(positions: &Positions) -> Vec<String> {
    let places = positions.iter().map(|(shard, position)| LogPosition { shard: *shard, position: *position });
    places.map(|place| place.to_string()).collect()
}

/// For the header.
pub(crate) fn header(positions: &Positions) -> [(HeaderName, HeaderValue); 1] {
    let places = told(positions);
    let first: Vec<_> = places.into_iter().take(POSITIONS_MAX).collect();
    [(POSITION, HeaderValue::try_from(first.join(",")).ok())].map(present)
}
