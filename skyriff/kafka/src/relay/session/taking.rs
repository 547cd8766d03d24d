//! Which shards are ours, and where to go on in them.

use std::collections::BTreeMap;

use metrics::gauge;
use skyriff_domain::{Position, ShardId};
use tokio::time::Instant;

use super::{Lane, Session, is_due};
use crate::relay::{ACTIVE, READ_AT_LEAST_EVERY, RelayError, number, shard_id, starts};

impl Session<'_> {
    /// Lock the shards that nobody has, and find out how far they are; those too that were not to be sent when it was
    /// looked at last.
    pub(super) async fn take_shards(&mut self) -> Result<(), RelayError> {
        let now = Instant::now();
        let is_due_again = |lane: &Lane| lane.parted && lane.stopped.is_none_or(|(until, _)| until <= now);
        let parted = self.lanes.iter().filter(|(_, lane)| is_due_again(lane)).map(|(shard, _)| *shard);
        let parted: Vec<_> = parted.collect();
        let free: Vec<_> = self.log.shards.iter().filter(|shard| !self.lanes.contains_key(shard)).copied().collect();
        if (free.is_empty() && parted.is_empty()) || !is_due(&mut self.locks_at, READ_AT_LEAST_EVERY) {
            return Ok(());
        }
        let ours = self.lock(free).await?;
        if !ours.is_empty() {
            tracing::info!(shards = list(ours.iter()), topic = self.settings.topic, "relaying");
        }
        let taken: Vec<_> = ours.into_iter().chain(parted).collect();
        if taken.is_empty() {
            return Ok(());
        }
        let checkpoints = self.checkpoints(&taken).await?;
        let starts = starts::find(self.settings, &checkpoints).await?;
        let parted = starts::parted(&mut self.connection, &starts).await?;
        for (shard, start) in starts {
            let checkpoint = checkpoints.get(&shard).copied().unwrap_or_default();
            let why = parted.get(&shard);
            let after = if why.is_some() { checkpoint } else { start.after };
            self.deliveries.start(shard, after);
            self.refusals.passed(shard, after);
            let stopped = self.lanes.get(&shard).and_then(|lane| lane.stopped);
            let lane = Lane { sent: after, checkpoint, stopped, parted: why.is_some(), trial: None };
            self.lanes.insert(shard, lane);
            gauge!(ACTIVE, "shard" => shard.to_string()).set(1.0);
            match why {
                Some(why) => self.stand_still(shard, why).await?,
                None => self.go_on(shard).await?,
            }
        }
        Ok(())
    }

    /// The shards of these that nobody has had the lock of: we have it until the connection ends.
    async fn lock(&mut self, shards: Vec<ShardId>) -> Result<Vec<ShardId>, RelayError> {
        let mut ours = Vec::new();
        for shard in shards {
            // A class of locks for each topic.
            let is_ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('skyriff relay ' || $1), $2)")
                .bind(&self.settings.topic)
                .bind(i32::from(shard.0))
                .fetch_one(&mut self.connection)
                .await?;
            ours.extend(is_ours.then_some(shard));
        }
        Ok(ours)
    }

    /// As in the table, which gets those that it does not have.
    async fn checkpoints(&mut self, shards: &[ShardId]) -> Result<BTreeMap<ShardId, Position>, RelayError> {
        let shards: Vec<_> = shards.iter().copied().map(number).collect();
        sqlx::query(
            "INSERT INTO relay_checkpoints (topic, shard) SELECT $1, unnest($2::smallint[]) ON CONFLICT DO NOTHING",
        )
        .bind(&self.settings.topic)
        .bind(&shards)
        .execute(&mut self.connection)
        .await?;
        let checkpoints: Vec<(i16, i64)> =
            sqlx::query_as("SELECT shard, position FROM relay_checkpoints WHERE topic = $1 AND shard = ANY ($2)")
                .bind(&self.settings.topic)
                .bind(&shards)
                .fetch_all(&mut self.connection)
                .await?;
        Ok(checkpoints.into_iter().map(|(shard, position)| (shard_id(shard), Position(position))).collect())
    }
}

fn list<'a>(shards: impl Iterator<Item = &'a ShardId>) -> String {
    shards.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
