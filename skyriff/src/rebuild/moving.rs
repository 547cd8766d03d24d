//! A shard's read models, moved to another read database.
//!
//! ```text
//! --move: fill there, catch up, compare ─▶ start processes with the new places, end the others ─▶ --forget
//! ```
//!
//! Where a shard lives is configuration, so the switch is each process's own, at its start: until then it reads and feeds
//! the shard where it was. Both places are kept up meanwhile, each by the projectors that have it in their configuration,
//! and what is counted over several shards is counted for those that the reader's configuration says live there. So
//! processes of both kinds may run side by side for as long as it takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use skyriff_domain::{Position, ShardId};
use skyriff_follow::{Builder, Feeder, Follower, ReadModel, TableDatabase, build::Limits};
use skyriff_postgres::databases::{OWNER, PROJECT};
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

use super::version::{FREEZE_MAX, LOCK_WAIT_MAX, NAME, live_positions, logs_of};
use crate::config::{Address, Databases, Place};

/// Between two tries.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Some shards on their way, of one read model, into one database.
pub struct Arriving {
    pub projection: Projection,
    pub builder: Builder<Projection>,
    shards: Vec<i16>,
    to: PgConnectOptions,
}

/// What has to be filled, by the configuration as it is to be.
///
/// # Errors
/// When that has one of the shards still in the database that it is to leave.
pub fn arriving(
    databases: &Databases,
    projection: Projection,
    shards: &BTreeSet<ShardId>,
    from: &Address,
    limits: Limits,
) -> Result<Vec<Arriving>> {
    let mut arriving = Vec::new();
    for place in &databases.read_models {
        let here: Vec<_> = place.shards.iter().filter(|shard| shards.contains(shard)).copied().collect();
        if here.is_empty() {
            continue;
        }
        ensure!(!is_the_same(&place.primary, from), stays(&here));
        let options = place.primary.as_role(PROJECT).application_name(NAME);
        let options = options.options([("synchronous_commit", "off")]);
        let logs = logs_of(databases, &here);
        let tables = TableDatabase { options, shards: here.clone() };
        arriving.push(Arriving {
            projection,
            builder: Builder::new(projection, logs, tables, limits),
            shards: numbers(&here)?,
            to: place.primary.as_role(OWNER).application_name(NAME),
        });
    }
    let found: usize = arriving.iter().map(|arriving| arriving.shards.len()).sum();
    ensure!(
        found == shards.len(),
        "there are {} shards, and some of those to be moved are beyond",
        databases.shard_count.get()
    );
    Ok(arriving)
}

fn stays(shards: &[ShardId]) -> String {
    let shards: Vec<_> = shards.iter().map(ToString::to_string).collect();
    format!(
        "the configuration has shard {} in the database that --from names: SKYRIFF_READ_MODELS has to say where the \
         shards are to live, and --from where they live now",
        shards.join(", ")
    )
}

fn is_the_same(one: &Address, other: &Address) -> bool {
    let place = |of: &Address| {
        let of = of.as_role(OWNER);
        let host = of.get_socket().map_or_else(|| of.get_host().to_owned(), |socket| socket.display().to_string());
        (host, of.get_port(), of.get_database().map(str::to_owned))
    };
    place(one) == place(other)
}

fn numbers(shards: &[ShardId]) -> Result<Vec<i16>> {
    Ok(shards.iter().map(|shard| i16::try_from(shard.0)).collect::<Result<_, _>>()?)
}

impl Arriving {
    /// Let the planner know of the rows.
    pub async fn analyze(&self) -> Result<()> {
        let mut owner = self.to.connect().await?;
        for table in self.projection.tables() {
            // Names cannot be bound; these come from our own code.
            sqlx::raw_sql(&format!("ANALYZE {table}")).execute(&mut owner).await?;
        }
        owner.close().await?;
        Ok(())
    }

    /// Print whether both databases have the same rows of these shards, at the same positions.
    ///
    /// # Errors
    /// When the two are not at the same positions within `patience`.
    pub async fn compare(&self, from: &Address, patience: Duration) -> Result<bool> {
        let (mut there, mut here) = self.same_moment(from, patience).await?;
        let (projection, database) = (self.projection, self.to.get_database().unwrap_or_default());
        let mut agree = true;
        for table in projection.tables() {
            let of_shards = projection.of_shards(table);
            let sums =
                format!("SELECT count(*), sum(hashtextextended(t::text, 0))::text FROM {table} t WHERE {of_shards}");
            let sums = || sqlx::query_as::<_, (i64, Option<String>)>(&sums).bind(&self.shards);
            let (old, new) = (sums().fetch_one(&mut there).await?, sums().fetch_one(&mut here).await?);
            if old == new {
                println!("{projection}: {table} in {database} is the same: {} rows", new.0);
            } else {
                agree = false;
                println!("{projection}: {table} in {database} DIFFERS: {} rows where it was, {} here", old.0, new.0);
            }
        }
        Ok(agree)
    }

    /// Two transactions that see the shards at the same positions: where they were, and here.
    async fn same_moment(&self, from: &Address, patience: Duration) -> Result<(PgConnection, PgConnection)> {
        let end = Instant::now() + patience;
        let mut owner = owner_of(from).await?;
        loop {
            let (mut there, mut here) = (owner_of(from).await?, self.to.connect().await?);
            let mut feeder = self.builder.feeder().await?;
            let (old, new) = self.try_same_moment(&mut owner, &mut feeder, &mut there, &mut here).await?;
            if old == new {
                return Ok((there, here));
            }
            // A projector here is ahead of the one there, or the last events took too long to apply.
            if Instant::now() > end {
                bail!("the shards are at {old:?} where they were, and at {new:?} where they are to be");
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
            self.builder.catch_up(&self.builder.heads().await?).await?;
        }
    }

    async fn try_same_moment(
        &self,
        owner: &mut PgConnection,
        feeder: &mut Feeder<Projection>,
        there: &mut PgConnection,
        here: &mut PgConnection,
    ) -> Result<(BTreeMap<ShardId, Position>, BTreeMap<ShardId, Position>)> {
        let mut frozen = owner.begin().await?;
        sqlx::query("SELECT set_config('lock_timeout', $1, true)")
            .bind(format!("{}ms", LOCK_WAIT_MAX.as_millis()))
            .execute(&mut *frozen)
            .await?;
        sqlx::query("LOCK TABLE checkpoints IN EXCLUSIVE MODE").execute(&mut *frozen).await?;
        let old = self.positions(&mut frozen).await?;
        if let Ok(fed) = tokio::time::timeout(FREEZE_MAX, feeder.feed(&old)).await {
            fed?;
        }
        for moment in [there, &mut *here] {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT FROM checkpoints LIMIT 1";
            sqlx::raw_sql(begin).execute(moment).await?;
        }
        frozen.rollback().await?;
        Ok((old, self.positions(here).await?))
    }

    async fn positions(&self, connection: &mut PgConnection) -> Result<BTreeMap<ShardId, Position>> {
        let mut live = live_positions(connection, self.projection).await?;
        live.retain(|shard, _| i16::try_from(shard.0).is_ok_and(|shard| self.shards.contains(&shard)));
        Ok(live.into_iter().map(|(shard, live)| (shard, live.position)).collect())
    }
}

async fn owner_of(database: &Address) -> Result<PgConnection> {
    let owner = database.as_role(OWNER).application_name(NAME);
    owner.connect().await.context("cannot reach the database that --from names, as its owner")
}

/// Delete what a database has of shards that do not live there any more; how many rows.
///
/// # Errors
/// When the configuration says that one of them does.
pub async fn forget(
    databases: &Databases,
    projection: Projection,
    shards: &BTreeSet<ShardId>,
    from: &Address,
) -> Result<u64> {
    let lives = |place: &&Place| is_the_same(&place.primary, from);
    for place in databases.read_models.iter().filter(lives) {
        let here: Vec<_> = place.shards.iter().filter(|shard| shards.contains(shard)).copied().collect();
        ensure!(here.is_empty(), stays(&here));
    }
    let shards = numbers(&shards.iter().copied().collect::<Vec<_>>())?;
    let mut owner = owner_of(from).await?;
    let mut transaction = owner.begin().await?;
    // First, as projectors do: one that is still at work here waits, and then finds nothing to feed.
    sqlx::query("DELETE FROM checkpoints WHERE projection = $1 AND shard = ANY ($2)")
        .bind(projection.name())
        .bind(&shards)
        .execute(&mut *transaction)
        .await?;
    let mut rows = 0;
    for table in projection.tables() {
        let delete = format!("DELETE FROM {table} WHERE {}", projection.of_shards(table));
        rows += sqlx::query(&delete).bind(&shards).execute(&mut *transaction).await?.rows_affected();
    }
    transaction.commit().await?;
    Ok(rows)
}
