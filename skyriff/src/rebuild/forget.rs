//! The end of a move: what a database has of shards that have moved out is deleted.
//!
//! Only what the new place has as well: it must have read each shard as far as the old one, or nothing goes. Of all read
//! models that are asked for, before the first row does, since processes that have the new places read every one of them
//! there, and those that do not read every one of them here.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use skyriff_domain::{Position, ShardId};
use skyriff_follow::{Follower, ReadModel};
use skyriff_postgres::databases::OWNER;
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::{
    moving::{is_the_same, numbers, owner_of, stays},
    positions::{Positions, live_positions, positions_of, shard},
    version::NAME,
};
use crate::config::{Address, Databases, Place};

/// Projectors of the new place read what is new within this time.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Print how many rows were deleted of each.
///
/// # Errors
/// When the configuration says that one of the shards lives in this database, or has it where it was not moved to.
pub async fn forget(
    databases: &Databases,
    projections: &[Projection],
    shards: &BTreeSet<ShardId>,
    from: &Address,
) -> Result<()> {
    for place in databases.read_models.iter().filter(|place| is_the_same(&place.primary, from)) {
        let here: Vec<_> = place.shards.iter().filter(|shard| shards.contains(shard)).copied().collect();
        ensure!(here.is_empty(), stays(&here));
    }
    let mut leaving = Leaving { owner: owner_of(from).await?, shards, to: Vec::new() };
    for place in databases.read_models.iter().filter(|place| place.shards.iter().any(|shard| shards.contains(shard))) {
        let options = place.primary.as_role(OWNER).application_name(NAME);
        leaving.to.push((place, options.connect().await.context("cannot reach the read models as their owner")?));
    }
    for projection in projections {
        leaving.wait_for_the_new_place(*projection).await?;
    }
    for projection in projections {
        println!("{projection}: {} rows deleted", leaving.forget(*projection).await?);
    }
    Ok(())
}

/// Shards on their way out.
struct Leaving<'a> {
    owner: PgConnection,
    shards: &'a BTreeSet<ShardId>,
    /// Where they live now.
    to: Vec<(&'a Place, PgConnection)>,
}

impl Leaving<'_> {
    /// Without holding anybody up.
    async fn wait_for_the_new_place(&mut self, projection: Projection) -> Result<()> {
        let end = Instant::now() + READ_WITHIN;
        loop {
            let mut there = positions_of(live_positions(&mut self.owner, projection).await?);
            there.retain(|shard, _| self.shards.contains(shard));
            let Some(missing) = missing(&mut self.to, projection, &there).await? else { return Ok(()) };
            ensure!(Instant::now() < end, "nothing is deleted: {missing}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn forget(&mut self, projection: Projection) -> Result<u64> {
        let end = Instant::now() + READ_WITHIN;
        let numbers = numbers(self.shards)?;
        loop {
            let mut transaction = self.owner.begin().await?;
            // First, as projectors do: one that is still at work here waits, and then finds nothing to feed.
            let there: Vec<(i16, i64)> = sqlx::query_as(
                "DELETE FROM checkpoints WHERE projection = $1 AND shard = ANY ($2) RETURNING shard, position",
            )
            .bind(projection.name())
            .bind(&numbers)
            .fetch_all(&mut *transaction)
            .await?;
            let there = there.into_iter().map(|(number, position)| (shard(number), Position(position))).collect();
            let Some(missing) = missing(&mut self.to, projection, &there).await? else {
                let mut rows = 0;
                for table in projection.tables() {
                    // Names cannot be bound; these come from our own code.
                    let delete = format!("DELETE FROM {table} WHERE {}", projection.of_shards(table));
                    rows += sqlx::query(&delete).bind(&numbers).execute(&mut *transaction).await?.rows_affected();
                }
                transaction.commit().await?;
                return Ok(rows);
            };
            // It has moved on since it was waited for.
            transaction.rollback().await?;
            ensure!(Instant::now() < end, "nothing of {projection} is deleted: {missing}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// What the new places have yet to read, in words.
async fn missing(
    to: &mut [(&Place, PgConnection)],
    projection: Projection,
    there: &Positions,
) -> Result<Option<String>> {
    let mut here = Positions::new();
    for (place, owner) in to {
        let live = positions_of(live_positions(owner, projection).await?);
        here.extend(live.into_iter().filter(|(shard, _)| place.shards.contains(shard)));
    }
    let position = |shard: &ShardId| here.get(shard).copied().unwrap_or_default();
    Ok(there.iter().find(|(shard, there)| position(shard) < **there).map(|(shard, there)| {
        format!(
            "{projection} has read shard {shard} up to {there} in the database that --from names, and up to {} where the \
             shard is to live. --move fills it there, and a projector that is started with these places keeps it up",
            position(shard)
        )
    }))
}
