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
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use skyriff_domain::ShardId;
use skyriff_follow::{Builder, Feeder, ReadModel, TableDatabase, build::Limits};
use skyriff_postgres::databases::{OWNER, PROJECT};
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

use super::{
    freeze::{FREEZE_MAX, LOCK_WAIT, STANDS_NOT_STILL, hold_up_projectors, is_in_the_way, longer},
    positions::{Positions, live_positions, positions_of},
    rows::{Compared, Rows},
    version::{NAME, logs_of},
};
use crate::config::{Address, Databases};

/// Between two tries.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Some shards on their way, of one read model, into one database.
pub struct Arriving<'a> {
    projection: Projection,
    pub builder: Builder<Projection>,
    shards: Vec<ShardId>,
    /// The same, as the tables have them.
    numbers: Vec<i16>,
    from: &'a Address,
    to: PgConnectOptions,
}

/// What has to be filled, by the configuration as it is to be.
///
/// # Errors
/// When that has one of the shards still in the database that it is to leave.
pub fn arriving<'a>(
    databases: &Databases,
    projection: Projection,
    shards: &BTreeSet<ShardId>,
    from: &'a Address,
    limits: Limits,
) -> Result<Vec<Arriving<'a>>> {
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
            numbers: numbers(&here)?,
            shards: here,
            from,
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

pub(super) fn stays(shards: &[ShardId]) -> String {
    let shards: Vec<_> = shards.iter().map(ToString::to_string).collect();
    format!(
        "the configuration has shard {} in the database that --from names: SKYRIFF_READ_MODELS has to say where the \
         shards are to live, and --from where they live now",
        shards.join(", ")
    )
}

pub(super) fn is_the_same(one: &Address, other: &Address) -> bool {
    let place = |of: &Address| {
        let of = of.as_role(OWNER);
        let host = of.get_socket().map_or_else(|| of.get_host().to_owned(), |socket| socket.display().to_string());
        (host, of.get_port(), of.get_database().map(str::to_owned))
    };
    place(one) == place(other)
}

/// As the tables have them.
pub(super) fn numbers<'a>(shards: impl IntoIterator<Item = &'a ShardId>) -> Result<Vec<i16>> {
    Ok(shards.into_iter().map(|shard| i16::try_from(shard.0)).collect::<Result<_, _>>()?)
}

impl Arriving<'_> {
    /// How far the shards are where they are to leave. What arrives is filled up to there and no further: it is compared
    /// with what is there, which a projector that has come less far than the log could otherwise never catch up with.
    ///
    /// # Errors
    /// When the read model has nothing of one of them there.
    pub async fn positions_there(&self) -> Result<Positions> {
        let positions = self.positions(&mut owner_of(self.from).await?).await?;
        let missing = self.shards.iter().find(|shard| !positions.contains_key(shard));
        let Some(missing) = missing else { return Ok(positions) };
        Err(anyhow!("the database that --from names has nothing of shard {missing}: --from is where it lives now"))
    }

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

    /// Print whether both databases have the same rows of these shards, at the same positions, and some that differ.
    ///
    /// # Errors
    /// When the two are not at the same positions within `patience`.
    pub async fn compare(&self, patience: Duration) -> Result<bool> {
        let (mut there, mut here) = self.same_moment(patience).await?;
        let (projection, database) = (self.projection, self.to.get_database().unwrap_or_default());
        let mut agree = true;
        for table in projection.tables() {
            let rows = Rows { table, of_shards: projection.of_shards(table), shards: &self.numbers };
            let Compared { rows_there, rows_here, examples } = rows.compare(&mut there, &mut here).await?;
            if examples.is_empty() {
                println!("{projection}: {table} in {database} is the same: {rows_here} rows");
                continue;
            }
            agree = false;
            println!("{projection}: {table} in {database} DIFFERS: {rows_there} rows where it was, {rows_here} here");
            let told = |row: Option<serde_json::Value>| row.unwrap_or_default();
            for (there, here) in examples {
                println!("  was  {}\n  here {}", told(there), told(here));
            }
        }
        Ok(agree)
    }

    /// Two transactions that see the shards at the same positions: where they were, and here.
    async fn same_moment(&self, patience: Duration) -> Result<(PgConnection, PgConnection)> {
        let end = Instant::now() + patience;
        let mut owner = owner_of(self.from).await?;
        let mut wait = LOCK_WAIT;
        loop {
            let (mut there, mut here) = (owner_of(self.from).await?, self.to.connect().await?);
            let mut feeder = self.builder.feeder().await?;
            let error = match self.try_same_moment(&mut owner, wait, &mut feeder, &mut there, &mut here).await {
                Ok(None) => return Ok((there, here)),
                Ok(Some(apart)) => anyhow!(apart),
                Err(error) if is_in_the_way(&error) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() > end {
                return Err(error.context(STANDS_NOT_STILL));
            }
            wait = longer(wait);
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
            self.builder.catch_up(&self.positions_there().await?).await?;
        }
    }

    /// Which shard is not at the same position, in words.
    async fn try_same_moment(
        &self,
        owner: &mut PgConnection,
        wait: Duration,
        feeder: &mut Feeder<Projection>,
        there: &mut PgConnection,
        here: &mut PgConnection,
    ) -> Result<Option<String>> {
        let mut frozen = hold_up_projectors(owner, wait).await?;
        let old = self.positions(&mut frozen).await?;
        if let Ok(fed) = tokio::time::timeout(FREEZE_MAX, feeder.feed(&old)).await {
            fed?;
        }
        for moment in [there, &mut *here] {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT FROM checkpoints LIMIT 1";
            sqlx::raw_sql(begin).execute(moment).await?;
        }
        frozen.rollback().await?;
        let new = self.positions(here).await?;
        let at = |of: &Positions, shard| of.get(shard).copied().unwrap_or_default();
        let apart = self.shards.iter().find(|shard| at(&old, shard) != at(&new, shard));
        Ok(apart.map(|shard| {
            let (old, new) = (at(&old, shard), at(&new, shard));
            // A projector here is ahead of the one there, or the last events took too long to apply.
            format!("shard {shard} is at {old} where it was, and at {new} where it is to be")
        }))
    }

    async fn positions(&self, connection: &mut PgConnection) -> Result<Positions> {
        let mut live = positions_of(live_positions(connection, self.projection).await?);
        live.retain(|shard, _| self.shards.contains(shard));
        Ok(live)
    }
}

pub(super) async fn owner_of(database: &Address) -> Result<PgConnection> {
    let owner = database.as_role(OWNER).application_name(NAME);
    owner.connect().await.context("cannot reach the database that --from names, as its owner")
}
