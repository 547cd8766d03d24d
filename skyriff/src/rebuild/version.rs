//! A version of a read model in one read database that is not the live one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skyriff_domain::ShardId;
use skyriff_follow::{Builder, Follower, LogDatabase, ReadModel, TableDatabase, build::Limits};
use skyriff_postgres::databases::{OWNER, PROJECT};
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres, Transaction, postgres::PgConnectOptions};

use super::{
    freeze::{Beside, LOCK_WAIT, STANDS_NOT_STILL, freeze, is_in_the_way, longer},
    positions::{Live, live_positions, positions_of},
};
use crate::config::{Databases, Place};

pub(super) const NAME: &str = "skyriff rebuild";
/// Whoever worked on the same before and has ended is gone from the server within this time.
const ALONE_WITHIN: Duration = Duration::from_secs(3);
/// Between two tries.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Between two looks whether the live version has read as far.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The newer one, before it is live: being built, or gone back from.
    Next,
    /// The one that was live before.
    Old,
}

impl Kind {
    /// Where its tables are.
    pub fn schema(self, projection: Projection) -> String {
        let suffix = match self {
            Self::Next => "next",
            Self::Old => "old",
        };
        format!("{}_{suffix}", projection.name())
    }

    /// What the live one becomes when this one takes its place: going back is the reverse of a switch, in every way.
    pub const fn outgoing(self) -> Self {
        match self {
            Self::Next => Self::Old,
            Self::Old => Self::Next,
        }
    }
}

/// For how long others waited for a switch.
pub struct Waited {
    pub projectors: Duration,
    /// Of those that came at the worst moment.
    pub queries: Duration,
}

/// See the module.
pub struct Version {
    projection: Projection,
    kind: Kind,
    owner: PgConnection,
    /// To look at the database at another moment than `owner` does.
    options: PgConnectOptions,
    builder: Builder<Projection>,
}

impl Version {
    /// Of this read model in one database. Nobody else works on the same meanwhile.
    pub async fn open(
        databases: &Databases,
        place: &Place,
        projection: Projection,
        kind: Kind,
        limits: Limits,
    ) -> Result<Self> {
        let options = place.primary.as_role(OWNER).application_name(NAME);
        let mut owner = options.connect().await.context("cannot reach the read models as their owner")?;
        let known: bool =
            sqlx::query_scalar("SELECT to_regprocedure('public.switch_version(text, text[], text, text)') IS NOT NULL")
                .fetch_one(&mut owner)
                .await?;
        ensure!(known, "the read models' database is not up to date; run `skyriff migrate` first");
        alone(&mut owner, projection).await?;
        // What is built can be built again, so it need not be on disk commit by commit; the switch flushes it all.
        let settings =
            [("search_path", format!("{},public", kind.schema(projection))), ("synchronous_commit", "off".to_owned())];
        let tables = TableDatabase {
            options: place.primary.as_role(PROJECT).application_name(NAME).options(settings),
            shards: place.shards.clone(),
        };
        let logs = logs_of(databases, &place.shards);
        Ok(Self { projection, kind, owner, options, builder: Builder::new(projection, logs, tables, limits) })
    }

    pub const fn builder(&self) -> &Builder<Projection> {
        &self.builder
    }

    pub const fn projection(&self) -> Projection {
        self.projection
    }

    pub fn schema(&self) -> String {
        self.kind.schema(self.projection)
    }

    /// As its server calls it.
    pub fn database(&self) -> String {
        self.options.get_database().unwrap_or_default().to_owned()
    }

    pub async fn exists(&mut self) -> Result<bool> {
        let schema = self.schema();
        Ok(schema_exists(&mut self.owner, &schema).await?)
    }

    /// Empty tables, if there are none to go on with, and none that were switched to before.
    pub async fn make(&mut self) -> Result<()> {
        let switched = schema_exists(&mut self.owner, &self.kind.outgoing().schema(self.projection)).await?;
        if !switched && !self.exists().await? {
            sqlx::query("SELECT make_version($1, $2)")
                .bind(self.schema())
                .bind(self.tables())
                .execute(&mut self.owner)
                .await
                .context("cannot make the tables of the next version")?;
        }
        Ok(())
    }

    /// Whether this program may apply events to it: to tables of another version of the projection it would do so wrongly.
    pub async fn check_that_it_is_ours(&mut self) -> Result<()> {
        let (projection, schema, ours) = (self.projection, self.schema(), self.projection.version());
        let other = format!("SELECT version FROM {schema}.checkpoints WHERE version <> $1 LIMIT 1");
        let other: Option<i32> = sqlx::query_scalar(&other).bind(ours).fetch_optional(&mut self.owner).await?;
        let Some(other) = other else { return Ok(()) };
        let what_to_do = match self.kind {
            Kind::Next => format!("`skyriff rebuild {projection} --drop` throws it away, to begin anew"),
            Kind::Old => format!(
                "only the program that fed it can bring it up to date, so run `skyriff rebuild {projection} --back` with \
                 that one, whose projectors feed it from then on"
            ),
        };
        bail!("what is in {schema} is of version {other} of {projection}, and this program has {ours}: {what_to_do}")
    }

    /// Let others work on it.
    pub async fn close(self) -> Result<()> {
        Ok(self.owner.close().await?)
    }

    fn tables(&self) -> Vec<&'static str> {
        self.projection.tables().to_vec()
    }

    /// Let the planner know what is in the tables, before anybody's query depends on it.
    pub async fn analyze(&mut self) -> Result<()> {
        for table in self.tables() {
            // Names cannot be bound; these come from our own code.
            let statement = format!("ANALYZE {}.{table}", self.schema());
            sqlx::raw_sql(&statement).execute(&mut self.owner).await?;
        }
        Ok(())
    }

    /// Events read, and bytes in words.
    pub async fn read_and_size(&mut self) -> Result<(i64, String)> {
        let schema = self.schema();
        let statement = format!(
            "SELECT (SELECT coalesce(sum(position), 0)::bigint FROM {schema}.checkpoints),
                    (SELECT pg_size_pretty(sum(pg_total_relation_size(oid))) FROM pg_class
                     WHERE relnamespace = $1::regnamespace AND relkind = 'r')"
        );
        Ok(sqlx::query_as(&statement).bind(schema).fetch_one(&mut self.owner).await?)
    }

    pub async fn drop_it(&mut self) -> Result<()> {
        let statement = format!("DROP SCHEMA {} CASCADE", self.schema());
        sqlx::raw_sql(&statement).execute(&mut self.owner).await?;
        Ok(())
    }

    /// A connection in a transaction that sees the live version and this one at the same positions, shard by shard.
    ///
    /// Projectors wait for a moment, so that the last events can be applied here; not while the caller looks.
    ///
    /// # Errors
    /// When the live version does not get as far as this one within `patience`.
    pub async fn same_moment(&mut self, patience: Duration) -> Result<PgConnection> {
        let end = Instant::now() + patience;
        let ours = self.builder.positions().await?;
        loop {
            let live = live_positions(&mut self.owner, self.projection).await?;
            let of = |shard: &ShardId| live.get(shard).cloned().unwrap_or_default();
            let Some((shard, ours)) = ours.iter().find(|(shard, ours)| of(shard).position < **ours) else { break };
            if Instant::now() > end {
                let Live { position, stopped } = of(shard);
                let why = stopped.unwrap_or_else(|| "no projector seems to be running".to_owned());
                bail!("the live version of shard {shard} stays at {position}, and the new one is at {ours}: {why}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.frozen(Beside::Same, end, async |frozen, options, _| {
            let mut moment = options.connect().await?;
            sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT FROM checkpoints LIMIT 1")
                .execute(&mut moment)
                .await?;
            // The snapshot is of this moment; projectors may go on behind it.
            frozen.rollback().await?;
            Ok(moment)
        })
        .await
    }

    /// Make this version the live one.
    ///
    /// # Errors
    /// When that is not possible within `patience`: queries or a maintenance job do not let the tables go, or events come
    /// faster than they are applied.
    pub async fn switch(&mut self, patience: Duration) -> Result<Waited> {
        let (incoming, outgoing) = (self.schema(), self.kind.outgoing().schema(self.projection));
        let (name, tables) = (self.projection.name(), self.tables());
        self.frozen(Beside::NotBehind, Instant::now() + patience, async |mut frozen, _, since| {
            let asked_at = Instant::now();
            sqlx::query("SELECT switch_version($1, $2, $3, $4)")
                .bind(name)
                .bind(&tables)
                .bind(&incoming)
                .bind(&outgoing)
                .execute(&mut *frozen)
                .await?;
            frozen.commit().await?;
            Ok(Waited { projectors: since.elapsed(), queries: asked_at.elapsed() })
        })
        .await
    }

    /// Hold up the live version's projectors, bring this version to where it is, and do something with the transaction
    /// that holds them up; again, as often as somebody is in the way.
    async fn frozen<T>(
        &mut self,
        beside: Beside,
        end: Instant,
        act: impl AsyncFn(Transaction<'_, Postgres>, &PgConnectOptions, Instant) -> Result<T>,
    ) -> Result<T> {
        let mut wait = LOCK_WAIT;
        loop {
            let tried = match freeze(&mut self.owner, &self.builder, self.projection, beside, wait).await {
                Ok((frozen, since)) => act(frozen, &self.options, since).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(done) => return Ok(done),
                Err(error) if Instant::now() < end && is_in_the_way(&error) => {
                    tracing::debug!(error = format!("{error:#}"), "somebody is in the way; trying again");
                    wait = longer(wait);
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                    // What came meanwhile is not for the moment in which others wait.
                    let upto = match beside {
                        Beside::Same => positions_of(live_positions(&mut self.owner, self.projection).await?),
                        Beside::NotBehind => self.builder.heads().await?,
                    };
                    self.builder.catch_up(&upto).await?;
                }
                Err(error) if is_in_the_way(&error) => return Err(error.context(STANDS_NOT_STILL)),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Be the only one who works on this read model's versions, for as long as the connection lasts.
async fn alone(owner: &mut PgConnection, projection: Projection) -> Result<()> {
    let end = Instant::now() + ALONE_WITHIN;
    loop {
        let ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('skyriff rebuild'), hashtext($1))")
            .bind(projection.name())
            .fetch_one(&mut *owner)
            .await?;
        if ours {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "another `skyriff rebuild {projection}` is at work here; wait for it, or stop it"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn schema_exists(connection: &mut PgConnection, schema: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL").bind(schema).fetch_one(connection).await
}

/// The databases of the log that have some of these shards.
pub(super) fn logs_of(databases: &Databases, shards: &[ShardId]) -> Vec<LogDatabase> {
    let mut logs = databases.to_follow();
    logs.retain(|log| log.shards.iter().any(|shard| shards.contains(shard)));
    for log in &mut logs {
        log.options = log.options.clone().application_name(NAME);
    }
    logs
}
