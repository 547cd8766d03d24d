//! How many likes each work has, in all and by the hour in which they were given.
//!
//! Tables `work_likes` and `work_likes_by_hour`: by the shard of those who like; a query adds up the shards, and what the
//! databases say. Counts by the hour are whole numbers, so whatever order the shards arrive in, whatever is taken
//! back, and however often it is built anew, the same likes give the same rows; the weights by age come in when the hot
//! list is read.
//!
//! A batch is one delta for each work and shard, and for each hour of it. That is what keeps a work that everybody likes as cheap
//! as any other: its row is changed once a batch, by the one who applies the batch, and nothing that is read or written
//! here grows with the number of its likes.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use skyriff_domain::WorkId;
use skyriff_follow::ApplyError;
use sqlx::PgConnection;

/// What a batch of likes changes in the counts.
#[derive(Debug, Default)]
pub(crate) struct Deltas(BTreeMap<(WorkId, i16, DateTime<Utc>), i64>);

impl Deltas {
    /// So many likes more of a work, by users of a shard, given at this time.
    pub(crate) fn add(&mut self, work: WorkId, shard: i16, liked_at: DateTime<Utc>, likes: i64) {
        // Only times at the ends of the calendar cannot be rounded, and no event has one.
        let hour = liked_at.duration_trunc(TimeDelta::hours(1)).unwrap_or(liked_at);
        *self.0.entry((work, shard, hour)).or_default() += likes;
    }

    /// What is left of them where some cancel out.
    fn by_work(&self) -> BTreeMap<(WorkId, i16), i64> {
        let mut works = BTreeMap::new();
        for ((work, shard, _), likes) in &self.0 {
            *works.entry((*work, *shard)).or_default() += likes;
        }
        works.retain(|_, likes| *likes != 0);
        works
    }
}

/// See the module.
pub(crate) async fn apply(deltas: &Deltas, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let hours: Vec<_> = deltas.0.iter().filter(|(_, likes)| **likes != 0).collect();
    if hours.is_empty() {
        return Ok(());
    }
    let works = deltas.by_work();
    sqlx::query(
        "MERGE INTO work_likes w USING unnest($1::uuid[], $2::smallint[], $3::bigint[]) AS d (work_id, shard, likes)
         ON w.work_id = d.work_id AND w.shard = d.shard
         WHEN MATCHED AND w.likes + d.likes = 0 THEN DELETE
         WHEN MATCHED THEN UPDATE SET likes = w.likes + d.likes
         WHEN NOT MATCHED THEN INSERT (work_id, shard, likes) VALUES (d.work_id, d.shard, d.likes)",
    )
    .bind(works.keys().map(|(work, _)| work.0).collect::<Vec<_>>())
    .bind(works.keys().map(|(_, shard)| *shard).collect::<Vec<_>>())
    .bind(works.values().copied().collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "MERGE INTO work_likes_by_hour w
             USING unnest($1::timestamptz[], $2::uuid[], $3::smallint[], $4::bigint[]) AS d (hour, work_id, shard, likes)
         ON w.hour = d.hour AND w.work_id = d.work_id AND w.shard = d.shard
         WHEN MATCHED AND w.likes + d.likes = 0 THEN DELETE
         WHEN MATCHED THEN UPDATE SET likes = w.likes + d.likes
         WHEN NOT MATCHED THEN INSERT (hour, work_id, shard, likes) VALUES (d.hour, d.work_id, d.shard, d.likes)",
    )
    .bind(hours.iter().map(|((.., hour), _)| *hour).collect::<Vec<_>>())
    .bind(hours.iter().map(|((work, ..), _)| work.0).collect::<Vec<_>>())
    .bind(hours.iter().map(|((_, shard, _), _)| *shard).collect::<Vec<_>>())
    .bind(hours.iter().map(|(_, likes)| **likes).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}
