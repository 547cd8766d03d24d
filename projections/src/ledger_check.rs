//! Whether the books' read model is whole: a quick look that can be taken all the time, and a long one over every entry.

use std::collections::BTreeMap;

use skyriff_domain::{ShardId, UserId, ledger::Account};
use skyriff_follow::Follower;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Projection;

/// What is wrong with the books of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Which shard.
    pub shard: ShardId,
    /// What is wrong, in words.
    pub what: String,
}

/// Whether each of these shards sums to zero in every unit, and whether the sums by month and by day agree. It reads the
/// sums alone. Shards whose tables are of another version are left out.
///
/// # Errors
/// As sqlx's.
pub async fn quick(connection: &mut PgConnection, shards: &[ShardId]) -> sqlx::Result<Vec<Wrong>> {
    type Row = (i16, String, i64, i64, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT s.shard, s.account, coalesce(sum(s.amount) FILTER (WHERE grain = 'mm'), 0)::bigint,
                coalesce(sum(s.amount) FILTER (WHERE grain = 'md'), 0)::bigint,
                coalesce(sum(s.amount) FILTER (WHERE grain = 'dm'), 0)::bigint,
                coalesce(sum(s.amount) FILTER (WHERE grain = 'dd'), 0)::bigint
         FROM checkpoints c JOIN ledger_sums s ON s.shard = c.shard
         WHERE c.projection = $1 AND c.version = $2 AND c.shard = ANY ($3)
         GROUP BY s.shard, s.account ORDER BY s.shard, s.account",
    )
    .bind(Projection::LedgerEntries.name())
    .bind(Projection::LedgerEntries.version())
    .bind(numbers(shards))
    .fetch_all(connection)
    .await?;
    let mut wrong = Vec::new();
    let mut units = BTreeMap::<(i16, String), i128>::new();
    for (shard, account, months, months_days, days_months, days) in rows {
        if [months_days, days_months, days].iter().any(|sum| *sum != months) {
            let what =
                format!("{account} is {months:?} by month and {months_days:?}, {days_months:?}, {days:?} by day");
            wrong.push(Wrong { shard: of(shard), what });
        }
        let unit = Account::named(&account, UserId(Uuid::nil())).map(|account| account.unit().to_string());
        *units.entry((shard, unit.unwrap_or(account))).or_default() += i128::from(months);
    }
    for ((shard, unit), sum) in units.into_iter().filter(|(_, sum)| *sum != 0) {
        wrong.push(Wrong { shard: of(shard), what: format!("its {unit} sum to {sum} instead of zero") });
    }
    Ok(wrong)
}

/// The first differences between what is kept beside the entries of these shards and what the entries come to. It reads
/// every entry.
///
/// # Errors
/// As sqlx's.
pub async fn thorough(connection: &mut PgConnection, shards: &[ShardId], most: u16) -> sqlx::Result<Vec<Wrong>> {
    let mut wrong = Vec::new();
    for (table, kept, computed) in TABLES {
        let sql = format!(
            "SELECT c.shard, d.row FROM checkpoints c, LATERAL (
                 SELECT CASE WHEN sum(side) > 0 THEN 'kept: ' ELSE 'entries: ' END || row AS row
                 FROM (SELECT 1 AS side, k::text AS row FROM ({kept}) k
                       UNION ALL SELECT -1, k::text FROM ({computed}) k) both_sides
                 GROUP BY both_sides.row HAVING sum(side) <> 0
             ) d
             WHERE c.projection = $1 AND c.version = $2 AND c.shard = ANY ($3) LIMIT $4"
        );
        let rows: Vec<(i16, String)> = sqlx::query_as(&sql)
            .bind(Projection::LedgerEntries.name())
            .bind(Projection::LedgerEntries.version())
            .bind(numbers(shards))
            .bind(i64::from(most))
            .fetch_all(&mut *connection)
            .await?;
        wrong.extend(rows.into_iter().map(|(shard, row)| Wrong { shard: of(shard), what: format!("{table}: {row}") }));
    }
    Ok(wrong)
}

/// Of one shard `c`: what is kept, and what the entries come to. Entries are added up by day first: the day of a time is
/// arithmetic, while a date takes the calendar.
const TABLES: [(&str, &str, &str); 3] = [
    (
        "ledger_sums",
        "SELECT grain, account, occurred_on, recorded_on, amount, entries FROM ledger_sums WHERE shard = c.shard",
        "SELECT g.grain, e.account, date_trunc(g.occurred, e.occurred AT TIME ZONE 'UTC')::date AS occurred_on,
                date_trunc(g.recorded, e.recorded AT TIME ZONE 'UTC')::date AS recorded_on,
                sum(e.amount)::bigint AS amount, sum(e.entries)::bigint AS entries
         FROM (SELECT account, date_bin('1 day', occurred_at, 'epoch') AS occurred,
                      date_bin('1 day', recorded_at, 'epoch') AS recorded, sum(amount) AS amount, count(*) AS entries
               FROM ledger_entries WHERE shard = c.shard GROUP BY 1, 2, 3) e,
              (VALUES ('mm', 'month', 'month'), ('md', 'month', 'day'), ('dm', 'day', 'month'), ('dd', 'day', 'day'))
              AS g (grain, occurred, recorded)
         GROUP BY 1, 2, 3, 4",
    ),
    (
        "ledger_user_sums",
        "SELECT user_id, account, occurred_on, recorded_on, amount, entries FROM ledger_user_sums WHERE shard = c.shard",
        "SELECT user_id, account, date_trunc('month', occurred AT TIME ZONE 'UTC')::date AS occurred_on,
                date_trunc('month', recorded AT TIME ZONE 'UTC')::date AS recorded_on,
                sum(amount)::bigint AS amount, sum(entries)::bigint AS entries
         FROM (SELECT user_id, account, date_bin('1 day', occurred_at, 'epoch') AS occurred,
                      date_bin('1 day', recorded_at, 'epoch') AS recorded, sum(amount) AS amount, count(*) AS entries
               FROM ledger_entries WHERE shard = c.shard AND user_id IS NOT NULL GROUP BY 1, 2, 3, 4) e
         GROUP BY 1, 2, 3, 4",
    ),
    (
        "ledger_holds",
        "SELECT user_id, sum(remaining)::bigint FROM ledger_holds WHERE shard = c.shard AND remaining > 0 GROUP BY 1",
        "SELECT user_id, sum(amount)::bigint FROM ledger_entries WHERE shard = c.shard AND account LIKE 'user:held:%'
         GROUP BY 1 HAVING sum(amount) <> 0",
    ),
];

fn numbers(shards: &[ShardId]) -> Vec<i16> {
    shards.iter().filter_map(|shard| i16::try_from(shard.0).ok()).collect()
}

fn of(shard: i16) -> ShardId {
    ShardId(u16::try_from(shard).unwrap_or_default())
}
