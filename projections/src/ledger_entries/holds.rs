//! What is set aside: a row a hold, with everything that went from it and when, so that what remained of it can be told
//! as of any moment.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{Event, Purse, RecordedEvent, StreamId, points_account::Event as E};
use skyriff_follow::{ApplyError, Batch};
use sqlx::{FromRow, PgConnection, types::Json};
use uuid::Uuid;

/// As the table has it, column by column.
#[derive(Clone, FromRow, Serialize)]
struct Row {
    shard: i16,
    position: i64,
    user_id: Uuid,
    hold: Uuid,
    reason: String,
    points: i64,
    remaining: i64,
    expires_at: Option<DateTime<Utc>>,
    opened_at: DateTime<Utc>,
    opened_recorded_at: DateTime<Utc>,
    changes: Json<Vec<Change>>,
    closed_at: Option<DateTime<Utc>>,
    closed_recorded_at: Option<DateTime<Utc>>,
}

/// When it happened, when it was recorded, and how many points went.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Change(DateTime<Utc>, DateTime<Utc>, i64);

/// What an event does to a hold.
enum Said<'e> {
    Opened { taken: &'e Purse, reason: String, expires_at: Option<DateTime<Utc>> },
    Went(&'e Purse),
}

/// Open the holds that these events open, and take from the others what they take.
pub(super) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let said: Vec<_> = batch.iter().filter_map(|event| of(event).map(|(hold, said)| (event, hold, said))).collect();
    if said.is_empty() {
        return Ok(());
    }
    let (users, holds): (Vec<_>, Vec<_>) = said.iter().map(|(_, (user, hold), _)| (*user, *hold)).unzip();
    let open: Vec<Row> = sqlx::query_as(
        "SELECT h.* FROM ledger_holds h JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::uuid[])) AS n (user_id, hold)
         USING (user_id, hold) WHERE h.remaining > 0",
    )
    .bind(users)
    .bind(holds)
    .fetch_all(&mut *transaction)
    .await?;
    let mut open: HashMap<_, _> = open.into_iter().map(|row| ((row.user_id, row.hold), row)).collect();
    let mut changed = Vec::new();
    for (event, name, said) in said {
        match said {
            Said::Opened { taken, reason, expires_at } => {
                if let Some(before) = open.insert(name, row(event, name, taken, reason, expires_at)?) {
                    return Err(ApplyError::Misfit(format!("{} opens a hold that is open: {}", event.at, before.hold)));
                }
            }
            Said::Went(part) => {
                let row = open.get_mut(&name);
                let row = row.ok_or_else(|| ApplyError::Misfit(format!("{} takes from no open hold", event.at)))?;
                take(row, event, part.total().get());
                if row.remaining <= 0 {
                    changed.extend(open.remove(&name));
                }
            }
        }
    }
    changed.extend(open.into_values());
    store(&changed, transaction).await
}

/// The hold that an event is about, by its user and id.
fn of(event: &RecordedEvent) -> Option<((Uuid, Uuid), Said<'_>)> {
    let (StreamId::PointsAccount(user), Event::PointsAccount(recorded)) = (event.stream, &event.event) else {
        return None;
    };
    let (hold, said) = match recorded {
        E::Held { hold, taken, reason, expires_at } => {
            (hold.0, Said::Opened { taken, reason: reason.to_string(), expires_at: *expires_at })
        }
        E::Captured { hold, taken, revenue: _ } => (hold.0, Said::Went(taken)),
        E::Released { hold, returned, cause: _ } => (hold.0, Said::Went(returned)),
        E::TipPaid { tip, to: _, taken } => (tip.0, Said::Went(taken)),
        E::PayoutStarted { withdrawal, taken } => (withdrawal.0, Said::Went(taken)),
        E::CheckedIn { .. }
        | E::Earned { .. }
        | E::Recharged { .. }
        | E::Spent { .. }
        | E::Refunded { .. }
        | E::Expired { .. }
        | E::Adjusted { .. }
        | E::TipReceived { .. }
        | E::PaidOut { .. }
        | E::PayoutReturned { .. } => return None,
    };
    Some(((user.0, hold), said))
}

fn row(
    event: &RecordedEvent,
    (user_id, hold): (Uuid, Uuid),
    taken: &Purse,
    reason: String,
    expires_at: Option<DateTime<Utc>>,
) -> Result<Row, ApplyError> {
    let points = taken.total().get();
    Ok(Row {
        shard: i16::try_from(event.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))?,
        position: event.at.position.0,
        user_id,
        hold,
        reason,
        points,
        remaining: points,
        expires_at,
        opened_at: event.occurred_at,
        opened_recorded_at: event.recorded_at,
        changes: Json(Vec::new()),
        closed_at: None,
        closed_recorded_at: None,
    })
}

fn take(row: &mut Row, event: &RecordedEvent, points: i64) {
    row.remaining -= points;
    row.changes.0.push(Change(event.occurred_at, event.recorded_at, points));
    if row.remaining <= 0 {
        row.closed_at = row.changes.0.iter().map(|change| change.0).max();
        row.closed_recorded_at = row.changes.0.iter().map(|change| change.1).max();
    }
}

async fn store(rows: &[Row], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    sqlx::query(
        "INSERT INTO ledger_holds SELECT * FROM jsonb_populate_recordset(NULL::ledger_holds, $1)
         ON CONFLICT (shard, position) DO UPDATE
         SET remaining = excluded.remaining, changes = excluded.changes, closed_at = excluded.closed_at,
             closed_recorded_at = excluded.closed_recorded_at",
    )
    .bind(Json(rows))
    .execute(transaction)
    .await?;
    Ok(())
}
