//! What users have: points by bucket, available and held, and when the promo points expire.
//!
//! Tables `balances` and `promo_lots`. Each batch adds one delta per user and per lot, computed from the ledger's
//! postings, so a balance here is by construction what the books say.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use skyriff_domain::{
    Bucket, Event, Purse, RecordedEvent, StreamId, UserId,
    ledger::{Account, Standing, postings},
    points_account::{self, Direction},
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::PgConnection;

#[derive(Default)]
struct Delta {
    shard: i16,
    position: i64,
    /// Available promo, paid, income; held promo, paid, income.
    columns: [i64; 6],
}

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let mut users: HashMap<UserId, Delta> = HashMap::new();
    let mut lots: BTreeMap<(UserId, DateTime<Utc>), i64> = BTreeMap::new();
    for event in batch {
        let StreamId::PointsAccount(owner) = event.stream else { continue };
        let delta = users.entry(owner).or_default();
        delta.shard = i16::try_from(event.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))?;
        delta.position = event.at.position.0;
        for posting in postings(&event.stream, &event.event) {
            if let Account::User { user: _, standing, bucket } = posting.account
                && let Some(column) = delta.columns.get_mut(column(standing, bucket))
            {
                *column += posting.amount;
            }
        }
        for (expires_at, points) in lots_moved(event) {
            *lots.entry((owner, expires_at)).or_default() += points;
        }
    }
    add_to_balances(&users, transaction).await?;
    add_to_lots(&lots, transaction).await
}

fn column(standing: Standing, bucket: Bucket) -> usize {
    let bucket = match bucket {
        Bucket::Promo => 0,
        Bucket::Paid => 1,
        Bucket::Income => 2,
    };
    match standing {
        Standing::Available => bucket,
        Standing::Held => 3 + bucket,
    }
}

/// By how much the available lots changed.
fn lots_moved(event: &RecordedEvent) -> Vec<(DateTime<Utc>, i64)> {
    use points_account::Event as E;
    let Event::PointsAccount(event) = &event.event else { return Vec::new() };
    let moved = |purse: &Purse, sign: i64| {
        purse.promo.iter().map(|(expires_at, points)| (*expires_at, sign * points.get())).collect()
    };
    match event {
        E::CheckedIn { points, expires_at, day: _, days_in_a_row: _ } => vec![(*expires_at, points.get())],
        E::Earned { credited: purse, reason: _ }
        | E::Released { returned: purse, hold: _, cause: _ }
        | E::PayoutReturned { returned: purse, withdrawal: _ }
        | E::Refunded { returned: purse, spend: _, revenue: _ }
        | E::Adjusted { direction: Direction::Credit, moved: purse, reason: _, words: _ } => moved(purse, 1),
        E::Spent { taken: purse, spend: _, product: _, refundable_until: _, revenue: _ }
        | E::Held { taken: purse, hold: _, reason: _, expires_at: _ }
        | E::Expired { lots: purse }
        | E::Adjusted { direction: Direction::Debit, moved: purse, reason: _, words: _ } => moved(purse, -1),
        E::Recharged { order: _, points: _ }
        | E::Captured { hold: _, taken: _, revenue: _ }
        | E::TipPaid { tip: _, to: _, taken: _ }
        | E::TipReceived { tip: _, from: _, income: _, share: _ }
        | E::PayoutStarted { withdrawal: _, taken: _ }
        | E::PaidOut { withdrawal: _, points: _, fee: _ } => Vec::new(),
    }
}

/// A delta may be negative and a row may not, so the sums are made before the rows are; the runner's lock on the
/// checkpoint keeps everybody else away meanwhile.
async fn add_to_balances(users: &HashMap<UserId, Delta>, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    if users.is_empty() {
        return Ok(());
    }
    let column = |index: usize| {
        let of = |delta: &Delta| delta.columns.get(index).copied().unwrap_or_default();
        users.values().map(of).collect::<Vec<_>>()
    };
    sqlx::query(
        "INSERT INTO balances (user_id, shard, available_promo, available_paid, available_income,
                               held_promo, held_paid, held_income, position)
         SELECT d.user_id, d.shard,
                coalesce(b.available_promo, 0) + d.available_promo, coalesce(b.available_paid, 0) + d.available_paid,
                coalesce(b.available_income, 0) + d.available_income, coalesce(b.held_promo, 0) + d.held_promo,
                coalesce(b.held_paid, 0) + d.held_paid, coalesce(b.held_income, 0) + d.held_income, d.position
         FROM unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::bigint[])
                  AS d (user_id, shard, available_promo, available_paid, available_income, held_promo, held_paid,
                        held_income, position)
         LEFT JOIN balances b USING (user_id)
         ON CONFLICT (user_id) DO UPDATE
         SET available_promo = excluded.available_promo, available_paid = excluded.available_paid,
             available_income = excluded.available_income, held_promo = excluded.held_promo,
             held_paid = excluded.held_paid, held_income = excluded.held_income, position = excluded.position",
    )
    .bind(users.keys().map(|user| user.0).collect::<Vec<_>>())
    .bind(users.values().map(|delta| delta.shard).collect::<Vec<_>>())
    .bind(column(0))
    .bind(column(1))
    .bind(column(2))
    .bind(column(3))
    .bind(column(4))
    .bind(column(5))
    .bind(users.values().map(|delta| delta.position).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

/// A lot that is used up leaves no row.
async fn add_to_lots(
    lots: &BTreeMap<(UserId, DateTime<Utc>), i64>,
    transaction: &mut PgConnection,
) -> Result<(), ApplyError> {
    let lots: Vec<_> = lots.iter().filter(|(_, points)| **points != 0).collect();
    if lots.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH sums AS MATERIALIZED (
             SELECT d.user_id, d.expires_at, coalesce(l.points, 0) + d.points AS points
             FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[]) AS d (user_id, expires_at, points)
             LEFT JOIN promo_lots l USING (user_id, expires_at)
         ), used_up AS (
             DELETE FROM promo_lots l USING sums s
             WHERE l.user_id = s.user_id AND l.expires_at = s.expires_at AND s.points = 0
         )
         INSERT INTO promo_lots (user_id, expires_at, points)
         SELECT user_id, expires_at, points FROM sums WHERE points <> 0
         ON CONFLICT (user_id, expires_at) DO UPDATE SET points = excluded.points",
    )
    .bind(lots.iter().map(|((user, _), _)| user.0).collect::<Vec<_>>())
    .bind(lots.iter().map(|((_, expires_at), _)| *expires_at).collect::<Vec<_>>())
    .bind(lots.iter().map(|(_, points)| **points).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}
