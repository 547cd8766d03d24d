//! Tips, as their sender and as their receiver see them: how far each is.
//!
//! Table `tips`. A tip's events in the sender's shard make and end the sender's row; the receipt in the receiver's shard
//! makes the receiver's, once and for ever.

use std::collections::HashMap;

use skyriff_domain::{
    Event, RecordedEvent, StreamId, TipId, UserId,
    tip::{self, Terms, receipt},
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::PgConnection;

/// A row that begins in this batch.
struct New<'a> {
    event: &'a RecordedEvent,
    tip: TipId,
    direction: &'static str,
    user: UserId,
    other: UserId,
    terms: &'a Terms,
    end: End<'a>,
}

/// How far a tip is, and why it was returned.
#[derive(Clone, Copy)]
struct End<'a> {
    state: &'static str,
    reason: Option<&'a str>,
}

const OFFERED: End<'_> = End { state: "offered", reason: None };
const DELIVERED: End<'_> = End { state: "delivered", reason: None };

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let mut new = Vec::new();
    let mut ended = HashMap::new();
    for event in batch {
        if let (StreamId::Tip(tip), Event::Tip(happened)) = (&event.stream, &event.event) {
            match happened {
                tip::Event::Offered(terms) => {
                    let (user, other) = (terms.from, terms.to);
                    new.push(New { event, tip: *tip, direction: "sent", user, other, terms, end: OFFERED });
                }
                tip::Event::Delivered {} => drop(ended.insert(*tip, DELIVERED)),
                tip::Event::Returned { reason } => drop(ended.insert(*tip, returned(reason.as_str()))),
            }
        }
        if let (StreamId::TipReceipt(tip), Event::TipReceipt(happened)) = (&event.stream, &event.event) {
            let (terms, end) = match happened {
                receipt::Event::Credited(terms) => (terms, DELIVERED),
                receipt::Event::Declined { terms, reason } => (terms, returned(reason.as_str())),
            };
            let (user, other) = (terms.to, terms.from);
            new.push(New { event, tip: *tip, direction: "received", user, other, terms, end });
        }
    }
    for row in &mut new {
        // Both in one batch, as always when both users live in one shard.
        if row.direction == "sent"
            && let Some(end) = ended.remove(&row.tip)
        {
            row.end = end;
        }
    }
    insert(&new, transaction).await?;
    end(&ended, transaction).await
}

const fn returned(reason: &str) -> End<'_> {
    End { state: "returned", reason: Some(reason) }
}

async fn insert(rows: &[New<'_>], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    if rows.is_empty() {
        return Ok(());
    }
    let shards = rows.iter().map(|row| i16::try_from(row.event.at.shard.0)).collect::<Result<Vec<_>, _>>();
    sqlx::query(
        "INSERT INTO tips (tip_id, direction, user_id, other_id, shard, points, share, work_id, state, reason,
                           occurred_at, position)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], $5::smallint[], $6::bigint[], $7::bigint[],
                              $8::uuid[], $9::text[], $10::text[], $11::timestamptz[], $12::bigint[])",
    )
    .bind(rows.iter().map(|row| row.tip.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.direction).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.user.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.other.0).collect::<Vec<_>>())
    .bind(shards.map_err(|error| ApplyError::Misfit(error.to_string()))?)
    .bind(rows.iter().map(|row| row.terms.points.get()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.terms.share.get()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.terms.work.map(|work| work.0)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.end.state).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.end.reason).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.event.occurred_at).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.event.at.position.0).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Of tips that were offered in an earlier batch.
async fn end(ended: &HashMap<TipId, End<'_>>, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    if ended.is_empty() {
        return Ok(());
    }
    let updated = sqlx::query(
        "UPDATE tips t SET state = e.state, reason = e.reason
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS e (tip_id, state, reason)
         WHERE t.tip_id = e.tip_id AND t.direction = 'sent' AND t.state = 'offered'",
    )
    .bind(ended.keys().map(|tip| tip.0).collect::<Vec<_>>())
    .bind(ended.values().map(|end| end.state).collect::<Vec<_>>())
    .bind(ended.values().map(|end| end.reason).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    // An end without its beginning is a hole in the table, and not to be passed over.
    if usize::try_from(updated.rows_affected()).ok() != Some(ended.len()) {
        return Err(ApplyError::Misfit("a tip ends that is not on offer here".to_owned()));
    }
    Ok(())
}
