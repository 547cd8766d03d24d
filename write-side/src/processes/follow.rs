//! Events that ask something of a process become its tasks.

use skyriff_domain::ShardCount;
use skyriff_follow::{ApplyError, Batch, Follower};
use sqlx::PgConnection;

use super::Process;

/// What wakes the workers.
pub(super) const CHANNEL: &str = "skyriff_tasks";

/// Follows the log for one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct TaskFinder {
    pub(super) process: Process,
    pub(super) shards: ShardCount,
}

impl Follower for TaskFinder {
    fn name(self) -> &'static str {
        self.process.name()
    }

    fn version(self) -> i32 {
        1
    }

    async fn apply(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let asking = || batch.iter().filter(|event| self.process.concerns(event, self.shards));
        if asking().next().is_none() {
            return Ok(());
        }
        let shards = asking().map(|event| i16::try_from(event.at.shard.0)).collect::<Result<Vec<_>, _>>();
        let shards = shards.map_err(|error| ApplyError::Misfit(error.to_string()))?;
        // A checkpoint that somebody has set back asks for nothing that is asked for already.
        sqlx::query(
            "INSERT INTO tasks (process, shard, position) SELECT $1, * FROM unnest($2::smallint[], $3::bigint[])
             ON CONFLICT DO NOTHING",
        )
        .bind(self.process.name())
        .bind(shards)
        .bind(asking().map(|event| event.at.position.0).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
        sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(transaction).await?;
        Ok(())
    }
}
