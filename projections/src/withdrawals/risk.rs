//! What those who decide withdrawals want to know of a person: since when there is an account, where its income came
//! from, and what became of earlier withdrawals.
//!
//! Table `risk_facts`, a row a person. Each batch adds one delta a person that it concerns, and writes no row that it
//! does not change: most events change none.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use skyriff_domain::{
    Bucket, Event, RecordedEvent, StreamId,
    points_account::{self, Direction},
    withdrawal::Status,
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::PgConnection;
use uuid::Uuid;

/// How a withdrawal ended.
pub(super) struct Ended {
    pub(super) user: Uuid,
    pub(super) status: Status,
    pub(super) points: i64,
}

/// By how much the facts of some persons change.
pub(super) struct Facts(HashMap<Uuid, Delta>);

struct Delta {
    shard: i16,
    first_seen_at: DateTime<Utc>,
    /// Earned, tips, adjusted; then count and points that were paid, failed, rejected, cancelled.
    columns: [i64; 11],
}

const EARNED: usize = 0;
const TIPS: usize = 1;
const ADJUSTED: usize = 2;

impl Facts {
    /// What the accounts' events say.
    pub(super) fn of(batch: &Batch) -> Self {
        let mut facts = HashMap::new();
        for recorded in batch {
            let (StreamId::PointsAccount(user), Event::PointsAccount(event)) = (&recorded.stream, &recorded.event)
            else {
                continue;
            };
            let delta = facts.entry(user.0).or_insert_with(|| Delta::of(recorded));
            delta.first_seen_at = delta.first_seen_at.min(recorded.occurred_at);
            let (column, points) = income(event);
            delta.add(column, points);
        }
        Self(facts)
    }

    /// A withdrawal's end. The account's event of the same append may be in the next batch.
    pub(super) fn ended(&mut self, Ended { user, status, points }: &Ended, recorded: &RecordedEvent) {
        let place = match status {
            Status::Paid => 3,
            Status::Failed => 5,
            Status::Rejected => 7,
            Status::Cancelled => 9,
            Status::UnderReview | Status::Approved | Status::Paying | Status::NeedsAttention => return,
        };
        let delta = self.0.entry(*user).or_insert_with(|| Delta::of(recorded));
        delta.add(place, 1);
        delta.add(place + 1, *points);
    }

    pub(super) async fn store(self, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (users, deltas): (Vec<_>, Vec<_>) = self.0.into_iter().unzip();
        let shards: Vec<_> = deltas.iter().map(|delta| delta.shard).collect();
        let first_seen: Vec<_> = deltas.iter().map(|delta| delta.first_seen_at).collect();
        sqlx::query(
            "INSERT INTO risk_facts (user_id, shard, first_seen_at)
             SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::timestamptz[]) AS d (user_id, shard, first_seen_at)
             WHERE NOT EXISTS (SELECT FROM risk_facts r WHERE r.user_id = d.user_id)",
        )
        .bind(&users)
        .bind(&shards)
        .bind(&first_seen)
        .execute(&mut *transaction)
        .await?;
        let column = |place: usize| {
            deltas.iter().map(|delta| delta.columns.get(place).copied().unwrap_or_default()).collect::<Vec<_>>()
        };
        sqlx::query(
            "UPDATE risk_facts r
             SET first_seen_at = least(r.first_seen_at, d.first_seen_at),
                 earned_points = r.earned_points + d.earned, tips_points = r.tips_points + d.tips,
                 adjusted_points = r.adjusted_points + d.adjusted,
                 paid_count = r.paid_count + d.paid, paid_points = r.paid_points + d.paid_points,
                 failed_count = r.failed_count + d.failed, failed_points = r.failed_points + d.failed_points,
                 rejected_count = r.rejected_count + d.rejected,
                 rejected_points = r.rejected_points + d.rejected_points,
                 cancelled_count = r.cancelled_count + d.cancelled,
                 cancelled_points = r.cancelled_points + d.cancelled_points
             FROM unnest($1::uuid[], $2::timestamptz[], $3::boolean[], $4::bigint[], $5::bigint[], $6::bigint[],
                         $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
                         $13::bigint[], $14::bigint[])
                      AS d (user_id, first_seen_at, changed, earned, tips, adjusted, paid, paid_points, failed,
                            failed_points, rejected, rejected_points, cancelled, cancelled_points)
             WHERE r.user_id = d.user_id AND (d.changed OR d.first_seen_at < r.first_seen_at)",
        )
        .bind(&users)
        .bind(&first_seen)
        .bind(deltas.iter().map(|delta| delta.columns != [0; 11]).collect::<Vec<_>>())
        .bind(column(EARNED))
        .bind(column(TIPS))
        .bind(column(ADJUSTED))
        .bind(column(3))
        .bind(column(4))
        .bind(column(5))
        .bind(column(6))
        .bind(column(7))
        .bind(column(8))
        .bind(column(9))
        .bind(column(10))
        .execute(transaction)
        .await?;
        Ok(())
    }
}

impl Delta {
    /// Nothing yet, for the owner of what an event is about.
    fn of(recorded: &RecordedEvent) -> Self {
        let shard = i16::try_from(recorded.at.shard.0).unwrap_or(i16::MAX);
        Self { shard, first_seen_at: recorded.occurred_at, columns: [0; 11] }
    }

    fn add(&mut self, column: usize, points: i64) {
        if let Some(column) = self.columns.get_mut(column) {
            *column += points;
        }
    }
}

/// New income, by where it came from. What comes back of a spend, hold or payout is not new.
fn income(event: &points_account::Event) -> (usize, i64) {
    use points_account::Event as E;
    match event {
        E::Earned { credited, reason: _ } => (EARNED, credited.of(Bucket::Income).get()),
        E::TipReceived { income, tip: _, from: _, share: _ } => (TIPS, income.get()),
        E::Adjusted { direction, moved, reason: _, words: _ } => {
            let points = moved.of(Bucket::Income).get();
            (ADJUSTED, if *direction == Direction::Credit { points } else { -points })
        }
        E::CheckedIn { .. }
        | E::Recharged { .. }
        | E::Spent { .. }
        | E::Held { .. }
        | E::Captured { .. }
        | E::Released { .. }
        | E::Refunded { .. }
        | E::Expired { .. }
        | E::TipPaid { .. }
        | E::PayoutStarted { .. }
        | E::PaidOut { .. }
        | E::PayoutReturned { .. } => (EARNED, 0),
    }
}
