//! Every posting of every event, one row each: a user's history, and the books.
//!
//! Table `ledger_entries`, partitioned by the month of the business time. With them, in the same transaction and under the
//! same checkpoint, `ledger_sums` and `ledger_user_sums` (`sums`) and `ledger_holds` (`holds`): a balance is sums and
//! entries together, so both have to be of one moment.

mod holds;
mod sums;

use std::{collections::BTreeSet, fmt::Write};

use chrono::Datelike;
use skyriff_domain::{
    Event, RecordedEvent,
    ledger::{Posting, postings},
    points_account, words,
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::PgConnection;
use uuid::Uuid;

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let entries = entries(batch)?;
    ensure_months(&entries, transaction).await?;
    sqlx::query(
        "INSERT INTO ledger_entries (shard, position, line, user_id, account, amount, event_type, reference,
                                     occurred_at, recorded_at)
         SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::smallint[], $4::uuid[], $5::text[], $6::bigint[],
                              $7::text[], $8::text[], $9::timestamptz[], $10::timestamptz[])",
    )
    .bind(entries.iter().map(|entry| entry.shard).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.event.at.position.0).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.line).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.user).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.account.as_str()).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.amount).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.event.event.event_type()).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| reference(entry.event)).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.event.occurred_at).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| entry.event.recorded_at).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    sums::add(&entries, transaction).await?;
    holds::apply(batch, transaction).await
}

/// The same with COPY for the entries, since nothing of them is ever changed: for tables that are built anew.
pub(crate) async fn copy(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let entries = entries(batch)?;
    ensure_months(&entries, transaction).await?;
    let mut text = String::new();
    for Entry { event, shard, line, user, account, amount } in &entries {
        let user = user.map_or_else(|| "\\N".to_owned(), |user| user.to_string());
        let reference = reference(event).map_or_else(|| "\\N".to_owned(), |reference| escaped(&reference));
        let (position, event_type) = (event.at.position, event.event.event_type());
        let (occurred_at, recorded_at) = (event.occurred_at.to_rfc3339(), event.recorded_at.to_rfc3339());
        writeln!(
            text,
            "{shard}\t{position}\t{line}\t{user}\t{account}\t{amount}\t{event_type}\t{reference}\t{occurred_at}\t{recorded_at}"
        )
        .map_err(|error| ApplyError::Misfit(error.to_string()))?;
    }
    let mut copy = transaction
        .copy_in_raw(
            "COPY ledger_entries (shard, position, line, user_id, account, amount, event_type, reference, occurred_at,
                                  recorded_at) FROM STDIN",
        )
        .await?;
    copy.send(text.into_bytes()).await?;
    copy.finish().await?;
    sums::add(&entries, transaction).await?;
    holds::apply(batch, transaction).await
}

/// As COPY wants a text.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

/// One posting of an event.
struct Entry<'e> {
    event: &'e RecordedEvent,
    shard: i16,
    /// Which of the event's postings.
    line: i16,
    user: Option<Uuid>,
    account: String,
    amount: i64,
}

/// Every posting of every event.
fn entries(batch: &Batch) -> Result<Vec<Entry<'_>>, ApplyError> {
    let mut entries = Vec::new();
    for event in batch {
        let shard = i16::try_from(event.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))?;
        for (line, Posting { account, amount }) in (1_i16..).zip(postings(&event.stream, &event.event)) {
            let (user, account) = (account.user().map(|user| user.0), account.to_string());
            entries.push(Entry { event, shard, line, user, account, amount });
        }
    }
    Ok(entries)
}

/// The partitions that these entries want.
async fn ensure_months(entries: &[Entry<'_>], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let months: BTreeSet<_> =
        entries.iter().filter_map(|entry| entry.event.occurred_at.date_naive().with_day(1)).collect();
    if !months.is_empty() {
        sqlx::query("SELECT ensure_month(current_schema(), 'ledger_entries', month) FROM unnest($1::date[]) AS month")
            .bind(Vec::from_iter(months))
            .execute(&mut *transaction)
            .await?;
    }
    Ok(())
}

/// What the event was about, for whoever reads the line: an order, a spend, a hold, a job.
fn reference(event: &RecordedEvent) -> Option<String> {
    use points_account::Event as E;
    match &event.event {
        Event::PointsAccount(event) => match event {
            E::CheckedIn { day, .. } => Some(day.to_string()),
            E::Earned { reason, .. } => Some(reason.to_string()),
            E::Recharged { order, .. } => Some(order.to_string()),
            E::Spent { spend, .. } | E::Refunded { spend, .. } => Some(spend.to_string()),
            E::Held { hold, .. } | E::Captured { hold, .. } | E::Released { hold, .. } => Some(hold.to_string()),
            E::Expired { .. } => None,
            E::Adjusted { reason, words, .. } => Some(words::to_column(reason, words.as_ref())),
            E::TipPaid { tip, .. } | E::TipReceived { tip, .. } => Some(tip.to_string()),
            E::PayoutStarted { withdrawal, .. }
            | E::PaidOut { withdrawal, .. }
            | E::PayoutReturned { withdrawal, .. } => Some(withdrawal.to_string()),
        },
        Event::VideoJob(_) => Some(event.stream.aggregate_id()),
        Event::RechargeOrder(_)
        | Event::Like(_)
        | Event::Tip(_)
        | Event::TipReceipt(_)
        | Event::Withdrawal(_)
        | Event::WithdrawalAllowance(_)
        | Event::VideoSlots(_)
        | Event::Work(_)
        | Event::Erasure(_)
        | Event::Reconciliation(_)
        | Event::ReconciliationException(_) => None,
    }
}
