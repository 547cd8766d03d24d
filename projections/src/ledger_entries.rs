//! Every posting of every event, one row each: a user's history, and the books.
//!
//! Table `ledger_entries`, partitioned by the month of the business time.

use std::fmt::Write;

use chrono::{Datelike, NaiveDate};
use skyriff_domain::{
    Event, LogPosition, RecordedEvent,
    ledger::{Posting, postings},
    points_account, words,
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::PgConnection;

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    ensure_months(batch, transaction).await?;
    let entries = entries(batch);
    let shard = |event: &RecordedEvent| i16::try_from(event.at.shard.0).unwrap_or(i16::MAX);
    sqlx::query(
        "INSERT INTO ledger_entries (shard, position, line, user_id, account, amount, event_type, reference,
                                     occurred_at, recorded_at)
         SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::smallint[], $4::uuid[], $5::text[], $6::bigint[],
                              $7::text[], $8::text[], $9::timestamptz[], $10::timestamptz[])",
    )
    .bind(entries.iter().map(|(event, ..)| shard(event)).collect::<Vec<_>>())
    .bind(entries.iter().map(|(event, ..)| event.at.position.0).collect::<Vec<_>>())
    .bind(entries.iter().map(|(_, line, _)| *line).collect::<Vec<_>>())
    .bind(entries.iter().map(|(.., posting)| posting.account.user().map(|user| user.0)).collect::<Vec<_>>())
    .bind(entries.iter().map(|(.., posting)| posting.account.to_string()).collect::<Vec<_>>())
    .bind(entries.iter().map(|(.., posting)| posting.amount).collect::<Vec<_>>())
    .bind(entries.iter().map(|(event, ..)| event.event.event_type()).collect::<Vec<_>>())
    .bind(entries.iter().map(|(event, ..)| reference(&event.event)).collect::<Vec<_>>())
    .bind(entries.iter().map(|(event, ..)| event.occurred_at).collect::<Vec<_>>())
    .bind(entries.iter().map(|(event, ..)| event.recorded_at).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

/// The same with COPY, since nothing is ever changed here: for a table that is built anew.
pub(crate) async fn copy(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    ensure_months(batch, transaction).await?;
    let mut text = String::new();
    for (event, line, posting) in entries(batch) {
        let user = posting.account.user().map_or_else(|| "\\N".to_owned(), |user| user.0.to_string());
        let reference = reference(&event.event).map_or_else(|| "\\N".to_owned(), |reference| escaped(&reference));
        let LogPosition { shard, position } = event.at;
        let (account, amount, event_type) = (posting.account, posting.amount, event.event.event_type());
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
    Ok(())
}

/// As COPY wants a text.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

/// Every posting of every event, with its number among those of its event.
fn entries(batch: &Batch) -> Vec<(&RecordedEvent, i16, Posting)> {
    let entries = batch.iter().flat_map(|event| {
        let lines = postings(&event.stream, &event.event).into_iter();
        (1_i16..).zip(lines).map(move |(line, posting)| (event, line, posting))
    });
    entries.collect()
}

/// The partitions that these events want.
async fn ensure_months(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let mut months: Vec<_> = batch.iter().filter_map(month).collect();
    months.sort_unstable();
    months.dedup();
    if !months.is_empty() {
        sqlx::query("SELECT ensure_month(current_schema(), 'ledger_entries', month) FROM unnest($1::date[]) AS month")
            .bind(&months)
            .execute(&mut *transaction)
            .await?;
    }
    Ok(())
}

/// The month of a business time, for events that the books know.
fn month(event: &RecordedEvent) -> Option<NaiveDate> {
    match event.event {
        Event::PointsAccount(_) => event.occurred_at.date_naive().with_day(1),
        Event::RechargeOrder(_)
        | Event::Like(_)
        | Event::Tip(_)
        | Event::TipReceipt(_)
        | Event::Withdrawal(_)
        | Event::WithdrawalAllowance(_)
        | Event::VideoJob(_)
        | Event::VideoSlots(_)
        | Event::Work(_)
        | Event::Erasure(_)
        | Event::Reconciliation(_)
        | Event::ReconciliationException(_) => None,
    }
}

/// What the event was about, for whoever reads the line: a product, an order, a hold.
fn reference(event: &Event) -> Option<String> {
    use points_account::Event as E;
    match event {
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
        Event::RechargeOrder(_)
        | Event::Like(_)
        | Event::Tip(_)
        | Event::TipReceipt(_)
        | Event::Withdrawal(_)
        | Event::WithdrawalAllowance(_)
        | Event::VideoJob(_)
        | Event::VideoSlots(_)
        | Event::Work(_)
        | Event::Erasure(_)
        | Event::Reconciliation(_)
        | Event::ReconciliationException(_) => None,
    }
}
