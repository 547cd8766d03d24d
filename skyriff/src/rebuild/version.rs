//! A version of a read model in one read database that is not the live one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use skyriff_domain::{Position, ShardId};
use skyriff_follow::{Builder, Follower, LogDatabase, ReadModel, TableDatabase, build::Limits};
use skyriff_postgres::databases::{OWNER, PROJECT};
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres, Transaction, postgres::PgConnectOptions};

use crate::config::{Databases, Place};

pub(super) const NAME: &str = "skyriff rebuild";
/// Projectors wait no longer than this for the last events to be applied; it is tried again then.
pub(super) const FREEZE_MAX: Duration = Duration::from_millis(500);
/// A lock is waited for so long at first, then twice as long each time. Queries that come meanwhile wait as well, so the
/// most is less than they are given; it is more than Postgres takes to make a vacuum give way.
const LOCK_WAIT: Duration = Duration::from_millis(100);
pub(super) const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Whoever worked on the same before and has ended is gone from the server within this time.
const ALONE_WITHIN: Duration = Duration::from_secs(3);
/// Between two tries.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Between two looks whether the live version has read as far.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The one that is being built.
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

    /// Empty tables, if there are none to go on with.
    pub async fn make(&mut self) -> Result<()> {
        let old = Kind::Old.schema(self.projection);
        ensure!(
            !schema_exists(&mut self.owner, &old).await?,
            "{} still keeps the version before in {old}: once it is not needed any more, \
             `skyriff rebuild {} --drop` makes room",
            self.database(),
            self.projection
        );
        if !self.exists().await? {
            sqlx::query("SELECT make_version($1, $2)")
                .bind(self.schema())
                .bind(self.tables())
                .execute(&mut self.owner)
                .await
                .context("cannot make the tables of the next version")?;
        }
        Ok(())
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
        self.frozen(end, async |frozen, options, _| {
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
        let (incoming, outgoing) = (self.schema(), Kind::Old.schema(self.projection));
        let (name, tables) = (self.projection.name(), self.tables());
        self.frozen(Instant::now() + patience, async |mut frozen, _, since| {
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
        end: Instant,
        act: impl AsyncFn(Transaction<'_, Postgres>, &PgConnectOptions, Instant) -> Result<T>,
    ) -> Result<T> {
        let mut wait = LOCK_WAIT;
        loop {
            let tried = match freeze(&mut self.owner, &self.builder, self.projection, wait).await {
                Ok((frozen, since)) => act(frozen, &self.options, since).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(done) => return Ok(done),
                Err(error) if Instant::now() < end && is_in_the_way(&error) => {
                    tracing::debug!(error = format!("{error:#}"), "somebody is in the way; trying again");
                    wait = (wait * 2).min(LOCK_WAIT_MAX);
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                    // What came meanwhile is not for the moment in which others wait.
                    self.builder.catch_up(&self.builder.heads().await?).await?;
                }
                Err(error) => {
                    return Err(error
                        .context("the live version does not stand still; try again, or give it longer with --wait-s"));
                }
            }
        }
    }
}

/// The transaction that holds up the live version's projectors while this one is where that is, and since when.
async fn freeze<'c>(
    owner: &'c mut PgConnection,
    builder: &Builder<Projection>,
    projection: Projection,
    wait: Duration,
) -> Result<(Transaction<'c, Postgres>, Instant)> {
    let mut feeder = builder.feeder().await?;
    let mut frozen = owner.begin().await?;
    sqlx::query("SELECT set_config('lock_timeout', $1, true)")
        .bind(format!("{}ms", wait.as_millis()))
        .execute(&mut *frozen)
        .await?;
    sqlx::query("LOCK TABLE checkpoints IN EXCLUSIVE MODE").execute(&mut *frozen).await?;
    let since = Instant::now();
    let live = live_positions(&mut frozen, projection).await?;
    let live: BTreeMap<_, _> = live.into_iter().map(|(shard, Live { position, .. })| (shard, position)).collect();
    let fed = tokio::time::timeout(FREEZE_MAX, async {
        feeder.feed(&live).await?;
        feeder.positions().await
    });
    let ours = fed.await.map_err(|_| TooFarBehind)??;
    if let Some((shard, live)) = live.iter().find(|(shard, live)| ours.get(shard).is_none_or(|ours| ours < live)) {
        let ours = ours.get(shard).copied().unwrap_or_default();
        bail!("the live version has read shard {shard} up to {live}, and this one up to {ours}");
    }
    Ok((frozen, since))
}

/// The last events take longer to apply than projectors may be held up.
#[derive(Debug, thiserror::Error)]
#[error("applying the last events takes longer than projectors may wait ({FREEZE_MAX:?})")]
struct TooFarBehind;

/// Locks that others have; a deadlock with somebody who takes them in another order.
fn is_in_the_way(error: &anyhow::Error) -> bool {
    let code = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<sqlx::Error>())
        .find_map(|error| error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned())));
    error.is::<TooFarBehind>() || code.is_some_and(|code| code == "55P03" || code == "40P01")
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

/// How far the live version has come with a shard, and why it stands still there if it does.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    pub(super) position: Position,
    stopped: Option<String>,
}

pub(super) async fn live_positions(
    connection: &mut PgConnection,
    projection: Projection,
) -> sqlx::Result<BTreeMap<ShardId, Live>> {
    let rows: Vec<(i16, i64, Option<String>)> =
        sqlx::query_as("SELECT shard, position, stopped FROM public.checkpoints WHERE projection = $1")
            .bind(projection.name())
            .fetch_all(connection)
            .await?;
    let of = |(shard, position, stopped): (i16, i64, Option<String>)| {
        (ShardId(u16::try_from(shard).unwrap_or_default()), Live { position: Position(position), stopped })
    };
    Ok(rows.into_iter().map(of).collect())
}
