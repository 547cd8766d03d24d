//! Sums of entries as of two times.
//!
//! ```text
//!  recorded
//!     ▲   md │dd│ e      whole months are sums by month, whole days in the month of a time are sums by day, and of the
//!  T2 ├──────┼──┼─┐      day of a time (e) the entries are read; each entry is in exactly one part
//!     │      │dd│e│
//!     │  mm  │dm│e│
//!     └──────┴──┴─┴─▶ occurred
//!                T1
//! ```
//!
//! So it takes as long as there are months, and days in a month, and the entries of a day; not as long as there are
//! entries. Of one user the sums are by month only, and the entries of one month are read.

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveTime, TimeDelta, Utc};
use skyriff_domain::UserId;
use sqlx::{FromRow, PgConnection};

/// What had happened by the one time and was recorded by the other; each the last moment that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AsOf {
    pub(super) at: Option<DateTime<Utc>>,
    pub(super) known_at: Option<DateTime<Utc>>,
}

impl AsOf {
    /// What had happened before `from`.
    pub(super) fn before(from: DateTime<Utc>, known_at: Option<DateTime<Utc>>) -> Self {
        Self { at: Some(from - TimeDelta::microseconds(1)), known_at }
    }
}

/// What stands on one account in one shard, and of how many entries it is the sum.
#[derive(Clone, Debug, FromRow, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) account: String,
    pub(super) shard: i16,
    pub(super) amount: i64,
    pub(super) entries: i64,
}

/// The first day of the month of a moment, its day, and the moment; nothing where there is no end.
fn edges(moment: Option<DateTime<Utc>>) -> (Option<NaiveDate>, Option<NaiveDate>, Option<DateTime<Utc>>) {
    let day = moment.map(|moment| moment.date_naive());
    (day.and_then(|day| day.with_day(1)), day, moment)
}

/// The moment at which a day begins.
fn start(day: Option<NaiveDate>) -> Option<DateTime<Utc>> {
    day.map(|day| day.and_time(NaiveTime::MIN).and_utc())
}

/// The accounts that anything was ever posted to. As many looks into an index as there are accounts.
pub(super) async fn accounts(moment: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "WITH RECURSIVE accounts AS (
             (SELECT account FROM ledger_sums WHERE grain = 'mm' ORDER BY account LIMIT 1)
             UNION ALL
             SELECT (SELECT s.account FROM ledger_sums s WHERE s.grain = 'mm' AND s.account > a.account
                     ORDER BY s.account LIMIT 1)
             FROM accounts a WHERE a.account IS NOT NULL
         )
         SELECT account FROM accounts WHERE account IS NOT NULL",
    )
    .fetch_all(moment)
    .await
}

/// These accounts, all users together, in these shards.
pub(super) async fn sums(
    moment: &mut PgConnection,
    accounts: &[String],
    shards: &[i16],
    as_of: AsOf,
) -> sqlx::Result<Vec<Sum>> {
    let (month, day, at) = edges(as_of.at);
    let (known_month, known_day, known_at) = edges(as_of.known_at);
    let (first, last) = months_recorded_on(moment, accounts, shards, known_day).await?;
    sqlx::query_as(
        "SELECT account, shard, sum(amount)::bigint AS amount, sum(entries)::bigint AS entries FROM (
             SELECT account, shard, amount, entries FROM ledger_sums
             WHERE grain = 'mm' AND account = ANY ($1) AND shard = ANY ($2)
               AND occurred_on < coalesce($3, 'infinity') AND recorded_on < coalesce($4, 'infinity')
             UNION ALL
             SELECT account, shard, amount, entries FROM ledger_sums
             WHERE grain = 'dm' AND account = ANY ($1) AND shard = ANY ($2)
               AND occurred_on >= $3 AND occurred_on < $5 AND recorded_on < coalesce($4, 'infinity')
             UNION ALL
             SELECT account, shard, amount, entries FROM ledger_sums
             WHERE grain = 'md' AND account = ANY ($1) AND shard = ANY ($2)
               AND occurred_on < coalesce($3, 'infinity') AND recorded_on >= $4 AND recorded_on < $6
             UNION ALL
             SELECT account, shard, amount, entries FROM ledger_sums
             WHERE grain = 'dd' AND account = ANY ($1) AND shard = ANY ($2)
               AND occurred_on >= $3 AND occurred_on < $5 AND recorded_on >= $4 AND recorded_on < $6
             UNION ALL
             SELECT account, shard, sum(amount), count(*) FROM ledger_entries
             WHERE account = ANY ($1) AND shard = ANY ($2) AND occurred_at >= $7 AND occurred_at <= $8
               AND recorded_at <= coalesce($10, 'infinity')
             GROUP BY account, shard
             UNION ALL
             SELECT account, shard, sum(amount), count(*) FROM ledger_entries
             WHERE account = ANY ($1) AND shard = ANY ($2) AND recorded_at >= $9 AND recorded_at <= $10
               AND occurred_at < coalesce($7, 'infinity') AND occurred_at >= $11 AND occurred_at < $12
             GROUP BY account, shard
         ) parts GROUP BY account, shard ORDER BY account, shard",
    )
    .bind(accounts)
    .bind(shards)
    .bind(month)
    .bind(known_month)
    .bind(day)
    .bind(known_day)
    .bind(start(day))
    .bind(at)
    .bind(start(known_day))
    .bind(known_at)
    .bind(start(first))
    .bind(start(last.and_then(|month| month.checked_add_months(Months::new(1)))))
    .fetch_all(moment)
    .await
}

/// The first and the last month of which something was recorded on a day: one, as a rule, so only its partition is read.
async fn months_recorded_on(
    moment: &mut PgConnection,
    accounts: &[String],
    shards: &[i16],
    day: Option<NaiveDate>,
) -> sqlx::Result<(Option<NaiveDate>, Option<NaiveDate>)> {
    let Some(day) = day else { return Ok((None, None)) };
    sqlx::query_as(
        "SELECT min(occurred_on), max(occurred_on) FROM ledger_sums
         WHERE grain = 'md' AND account = ANY ($1) AND recorded_on = $3 AND shard = ANY ($2)",
    )
    .bind(accounts)
    .bind(shards)
    .bind(day)
    .fetch_one(moment)
    .await
}

/// One user's accounts, or one of them.
pub(super) async fn sums_of_user(
    moment: &mut PgConnection,
    user: UserId,
    account: Option<&str>,
    as_of: AsOf,
) -> sqlx::Result<Vec<Sum>> {
    let (month, _, at) = edges(as_of.at);
    let (known_month, _, known_at) = edges(as_of.known_at);
    sqlx::query_as(
        "SELECT account, shard, sum(amount)::bigint AS amount, sum(entries)::bigint AS entries FROM (
             SELECT account, shard, amount, entries FROM ledger_user_sums
             WHERE user_id = $1 AND account = coalesce($2, account)
               AND occurred_on < coalesce($3, 'infinity') AND recorded_on < coalesce($4, 'infinity')
             UNION ALL
             SELECT account, shard, amount, 1 FROM ledger_entries
             WHERE user_id = $1 AND account = coalesce($2, account) AND occurred_at >= $5 AND occurred_at <= $6
               AND recorded_at <= coalesce($8, 'infinity')
             UNION ALL
             -- Only the months of which something was recorded in the month of the recorded time.
             SELECT e.account, e.shard, e.amount, 1 FROM (
                 SELECT DISTINCT occurred_on FROM ledger_user_sums
                 WHERE user_id = $1 AND account = coalesce($2, account) AND recorded_on = $4
                   AND occurred_on < coalesce($3, 'infinity')
             ) m
             JOIN LATERAL (
                 SELECT account, shard, amount FROM ledger_entries
                 WHERE user_id = $1 AND account = coalesce($2, account)
                   AND occurred_at >= m.occurred_on::timestamp AT TIME ZONE 'UTC'
                   AND occurred_at < (m.occurred_on + interval '1 month') AT TIME ZONE 'UTC'
                   AND recorded_at >= $7 AND recorded_at <= $8
             ) e ON true
         ) parts GROUP BY account, shard ORDER BY account, shard",
    )
    .bind(user.0)
    .bind(account)
    .bind(month)
    .bind(known_month)
    .bind(start(month))
    .bind(at)
    .bind(start(known_month))
    .bind(known_at)
    .fetch_all(moment)
    .await
}
