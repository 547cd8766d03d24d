//! What has become of each withdrawal, for its owner's list and the reviewers' queue; and what is known of its owner
//! (`risk`).
//!
//! Table `withdrawals`: a row a withdrawal, folded from its events. Table `risk_facts`: see there. Both in one projection,
//! since how a withdrawal ended is a fact about its owner, and the events say the end without the amount.

mod risk;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use skyriff_domain::{
    Event, RecordedEvent, StreamId, WithdrawalId,
    withdrawal::{self, Status},
    words,
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use self::risk::{Ended, Facts};

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let changed: Vec<_> = batch
        .iter()
        .filter_map(|event| match (&event.stream, &event.event) {
            (StreamId::Withdrawal(id), Event::Withdrawal(of_withdrawal)) => Some((*id, event, of_withdrawal)),
            _ => None,
        })
        .collect();
    let mut facts = Facts::of(batch);
    if !changed.is_empty() {
        let ids: Vec<_> = changed.iter().map(|(id, ..)| id.0).collect();
        let mut rows = load(&ids, transaction).await?;
        for (id, recorded, event) in changed {
            if let Some(ended) = fold(&mut rows, id, recorded, event)? {
                facts.ended(&ended, recorded);
            }
        }
        store(&rows.into_values().collect::<Vec<_>>(), transaction).await?;
    }
    facts.store(transaction).await
}

#[derive(Clone, FromRow)]
struct Row {
    withdrawal_id: Uuid,
    user_id: Uuid,
    shard: i16,
    status: String,
    points: i64,
    fee: i64,
    minor: i64,
    currency: String,
    destination: String,
    reviews_needed: i16,
    approved_by: Vec<Uuid>,
    rejected_by: Option<Uuid>,
    reason: Option<String>,
    provider: Option<String>,
    reference: Option<String>,
    requested_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    requested_position: i64,
    position: i64,
}

/// Fold one event into its row; how the withdrawal ended, if it did.
fn fold(
    rows: &mut HashMap<Uuid, Row>,
    id: WithdrawalId,
    recorded: &RecordedEvent,
    event: &withdrawal::Event,
) -> Result<Option<Ended>, ApplyError> {
    use withdrawal::Event as E;
    if let E::Requested(request) = event {
        rows.insert(id.0, row(id, recorded, request)?);
        return Ok(None);
    }
    let row = rows.get_mut(&id.0).ok_or_else(|| ApplyError::Misfit(format!("withdrawal {id} was never requested")))?;
    row.position = recorded.at.position.0;
    row.updated_at = recorded.occurred_at;
    let status = match event {
        E::Requested(_) => return Ok(None),
        E::Approved { reviewer } => {
            row.approved_by.push(reviewer.0);
            let enough = row.approved_by.len() >= usize::try_from(row.reviews_needed).unwrap_or_default();
            if enough { Status::Approved } else { Status::UnderReview }
        }
        E::Rejected { reviewer, reason, words } => {
            row.rejected_by = Some(reviewer.0);
            row.reason = Some(words::to_column(reason, words.as_ref()));
            Status::Rejected
        }
        E::Cancelled {} => Status::Cancelled,
        E::PayoutStarted { provider } => {
            row.provider = Some(provider.as_str().to_owned());
            Status::Paying
        }
        E::Paid { reference } => {
            row.reference = Some(reference.as_str().to_owned());
            row.reason = None;
            Status::Paid
        }
        E::Failed { reason, words } => {
            row.reason = Some(words::to_column(reason, words.as_ref()));
            Status::Failed
        }
        E::AttentionNeeded { reason } => {
            row.reason = Some(reason.as_str().to_owned());
            Status::NeedsAttention
        }
    };
    row.status = status.as_str().to_owned();
    let ended = Ended { user: row.user_id, status, points: row.points };
    Ok(match status {
        Status::Paid | Status::Rejected | Status::Cancelled | Status::Failed => Some(ended),
        Status::UnderReview | Status::Approved | Status::Paying | Status::NeedsAttention => None,
    })
}

fn row(id: WithdrawalId, recorded: &RecordedEvent, request: &withdrawal::Request) -> Result<Row, ApplyError> {
    let status = if request.reviews_needed == 0 { Status::Approved } else { Status::UnderReview };
    Ok(Row {
        withdrawal_id: id.0,
        user_id: request.user.0,
        shard: i16::try_from(recorded.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))?,
        status: status.as_str().to_owned(),
        points: request.points.get(),
        fee: request.fee.get(),
        minor: request.money.minor,
        currency: request.money.currency.as_str().to_owned(),
        destination: request.destination.as_str().to_owned(),
        reviews_needed: i16::from(request.reviews_needed),
        approved_by: Vec::new(),
        rejected_by: None,
        reason: None,
        provider: None,
        reference: None,
        requested_at: recorded.occurred_at,
        updated_at: recorded.occurred_at,
        requested_position: recorded.at.position.0,
        position: recorded.at.position.0,
    })
}

async fn load(ids: &[Uuid], transaction: &mut PgConnection) -> Result<HashMap<Uuid, Row>, ApplyError> {
    let rows: Vec<Row> = sqlx::query_as("SELECT * FROM withdrawals WHERE withdrawal_id = ANY ($1)")
        .bind(ids)
        .fetch_all(transaction)
        .await?;
    Ok(rows.into_iter().map(|row| (row.withdrawal_id, row)).collect())
}

/// What a request fixed is never written again.
async fn store(rows: &[Row], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    // An array of arrays must be even, so the reviewers go as one text each.
    let reviewers = |row: &Row| row.approved_by.iter().map(Uuid::to_string).collect::<Vec<_>>().join(",");
    sqlx::query(
        "INSERT INTO withdrawals (withdrawal_id, user_id, shard, status, points, fee, minor, currency, destination,
                                  reviews_needed, approved_by, rejected_by, reason, provider, reference, requested_at,
                                  updated_at, requested_position, position)
         SELECT withdrawal_id, user_id, shard, status, points, fee, minor, currency, destination, reviews_needed,
                string_to_array(approved_by, ',')::uuid[], rejected_by, reason, provider, reference, requested_at,
                updated_at, requested_position, position
         FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::text[], $9::text[], $10::smallint[], $11::text[], $12::uuid[], $13::text[], $14::text[],
                     $15::text[], $16::timestamptz[], $17::timestamptz[], $18::bigint[], $19::bigint[])
                  AS w (withdrawal_id, user_id, shard, status, points, fee, minor, currency, destination,
                        reviews_needed, approved_by, rejected_by, reason, provider, reference, requested_at,
                        updated_at, requested_position, position)
         ON CONFLICT (withdrawal_id) DO UPDATE
         SET status = excluded.status, approved_by = excluded.approved_by, rejected_by = excluded.rejected_by,
             reason = excluded.reason, provider = excluded.provider, reference = excluded.reference,
             updated_at = excluded.updated_at, position = excluded.position",
    )
    .bind(rows.iter().map(|row| row.withdrawal_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.user_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.shard).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.status.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.points).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.fee).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.minor).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.currency.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.destination.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.reviews_needed).collect::<Vec<_>>())
    .bind(rows.iter().map(reviewers).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.rejected_by).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.reason.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.provider.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.reference.as_deref()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.requested_at).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.updated_at).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.requested_position).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.position).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}
