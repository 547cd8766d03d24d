//! Sums of entries by account, business time and recorded time: what a balance as of any moment is made of.
//!
//! A row is there when an entry is in it, also when its amounts cancel out, so the rows are the same whatever batches the
//! log was read in.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use skyriff_follow::ApplyError;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Entry;

/// By which spans of the business time and of the recorded time; as the table has it.
const GRAINS: [(&str, Span, Span); 4] = [
    ("mm", Span::Month, Span::Month),
    ("md", Span::Month, Span::Day),
    ("dm", Span::Day, Span::Month),
    ("dd", Span::Day, Span::Day),
];

#[derive(Clone, Copy)]
enum Span {
    Day,
    Month,
}

impl Span {
    /// The first UTC day of the one that a moment is in.
    fn of(self, moment: DateTime<Utc>) -> NaiveDate {
        let day = moment.date_naive();
        match self {
            Self::Day => day,
            Self::Month => month(day),
        }
    }
}

fn month(day: NaiveDate) -> NaiveDate {
    day.with_day(1).unwrap_or(day)
}

#[derive(Clone, Copy, Default)]
struct Sum {
    amount: i64,
    entries: i64,
}

impl Sum {
    fn add(&mut self, amount: i64) -> Result<(), ApplyError> {
        let sum = self.amount.checked_add(amount);
        self.amount = sum.ok_or_else(|| ApplyError::Misfit("an account of the books overflows".to_owned()))?;
        self.entries += 1;
        Ok(())
    }
}

/// Add these entries to the sums.
pub(super) async fn add(entries: &[Entry<'_>], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let mut sums = BTreeMap::<(&str, &str, i16, NaiveDate, NaiveDate), Sum>::new();
    let mut of_users = BTreeMap::<(Uuid, &str, NaiveDate, NaiveDate, i16), Sum>::new();
    for entry in entries {
        let (occurred_at, recorded_at) = (entry.event.occurred_at, entry.event.recorded_at);
        let (account, shard) = (entry.account.as_str(), entry.shard);
        for (grain, occurred, recorded) in GRAINS {
            let key = (grain, account, shard, occurred.of(occurred_at), recorded.of(recorded_at));
            sums.entry(key).or_default().add(entry.amount)?;
        }
        if let Some(user) = entry.user {
            let key = (user, account, Span::Month.of(occurred_at), Span::Month.of(recorded_at), shard);
            of_users.entry(key).or_default().add(entry.amount)?;
        }
    }
    sqlx::query(
        "INSERT INTO ledger_sums AS s (grain, account, shard, occurred_on, recorded_on, amount, entries)
         SELECT * FROM unnest($1::text[], $2::text[], $3::smallint[], $4::date[], $5::date[], $6::bigint[], $7::bigint[])
         ON CONFLICT (grain, account, shard, occurred_on, recorded_on) DO UPDATE
         SET amount = s.amount + excluded.amount, entries = s.entries + excluded.entries",
    )
    .bind(sums.keys().map(|(grain, ..)| *grain).collect::<Vec<_>>())
    .bind(sums.keys().map(|(_, account, ..)| *account).collect::<Vec<_>>())
    .bind(sums.keys().map(|(_, _, shard, ..)| *shard).collect::<Vec<_>>())
    .bind(sums.keys().map(|(.., occurred, _)| *occurred).collect::<Vec<_>>())
    .bind(sums.keys().map(|(.., recorded)| *recorded).collect::<Vec<_>>())
    .bind(sums.values().map(|sum| sum.amount).collect::<Vec<_>>())
    .bind(sums.values().map(|sum| sum.entries).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "INSERT INTO ledger_user_sums AS s (user_id, account, occurred_on, recorded_on, shard, amount, entries)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::date[], $4::date[], $5::smallint[], $6::bigint[], $7::bigint[])
         ON CONFLICT (user_id, account, occurred_on, recorded_on) DO UPDATE
         SET amount = s.amount + excluded.amount, entries = s.entries + excluded.entries",
    )
    .bind(of_users.keys().map(|(user, ..)| *user).collect::<Vec<_>>())
    .bind(of_users.keys().map(|(_, account, ..)| *account).collect::<Vec<_>>())
    .bind(of_users.keys().map(|(_, _, occurred, ..)| *occurred).collect::<Vec<_>>())
    .bind(of_users.keys().map(|(_, _, _, recorded, _)| *recorded).collect::<Vec<_>>())
    .bind(of_users.keys().map(|(.., shard)| *shard).collect::<Vec<_>>())
    .bind(of_users.values().map(|sum| sum.amount).collect::<Vec<_>>())
    .bind(of_users.values().map(|sum| sum.entries).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}
