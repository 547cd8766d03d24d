//! `skyriff rebuild`: the next version of a read model, built beside the live one and switched to.
//!
//! ```text
//! make NAME_next ─▶ fill from position 1 ─▶ catch up ─▶ compare ─▶ switch: next becomes live, live becomes NAME_old
//!                                                                └─▶ differences: told, and nothing is switched
//! ```
//!
//! `migrations/read-models/0007_versions.sql` says where versions are and why readers do not notice a switch. Commands,
//! queries and projectors go on all the time. Only the live version is fed by projectors; this command itself brings the
//! next one, or the old one when it goes back, to where the live one is, the last events while projectors wait: for some
//! milliseconds, and never longer than `FREEZE_MAX`.
//!
//! Interrupted anywhere, the same command goes on where it was. Each database is switched in one transaction; of several,
//! one after the other.

mod compare;
mod moving;
mod version;

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};
use skyriff_domain::ShardId;
use skyriff_follow::{Builder, Follower, build::Limits};
use skyriff_projections::Projection;
use tokio::time::Instant;

use self::version::{Kind, Version};
use crate::config::{Address, DatabaseArguments, Databases};

/// A version is caught up when no more events than this came while the last ones were applied.
const NEAR: u64 = 1_000;
/// Rounds of catching up; under a load that is faster than building, more would not help.
const ROUNDS_MAX: u32 = 100;
/// Between two looks at the progress.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Args)]
#[command(group(ArgGroup::new("instead").args(["back", "drop", "status", "move_shards", "forget"])))]
#[command(
    after_help = "Exit codes: 0 when all is done; 1 when something failed; 2 when versions differ, and nothing was \
    switched.\n\nThe owner's role (skyriff_owner) makes and moves tables, so the databases must let it in."
)]
pub struct Arguments {
    /// The read model, as in the table checkpoints; or all.
    #[arg(value_name = "NAME")]
    names: Names,
    #[command(flatten)]
    databases: DatabaseArguments,
    /// Switch although the live version and the next one differ, as they do when the live one was wrong.
    #[arg(long)]
    accept_differences: bool,
    /// Build, catch up and compare, and leave it at that; run again without this to go on and switch.
    #[arg(long)]
    no_switch: bool,
    /// Make the version that is kept live again: it is caught up, and the live one is kept in its place.
    #[arg(long)]
    back: bool,
    /// Drop the versions that are not live: the one that is kept, and one that is being built.
    #[arg(long)]
    drop: bool,
    /// Say which versions there are, and do nothing.
    #[arg(long)]
    status: bool,
    /// Build these shards, as in 3 or 0-3,7, in the database where SKYRIFF_READ_MODELS says that they are to live, beside
    /// what lives there. Processes that are started with these places from then on read and feed them there.
    #[arg(long = "move", value_name = "SHARDS", value_parser = Shards::parse, requires = "from")]
    move_shards: Option<Shards>,
    /// Delete what a database has of shards that have moved out, when no process reads or feeds them there any more.
    #[arg(long, value_name = "SHARDS", value_parser = Shards::parse, requires = "from")]
    forget: Option<Shards>,
    /// The database that shards move out of: its primary, as in SKYRIFF_READ_MODELS.
    #[arg(long, value_name = "URL")]
    from: Option<Address>,
    /// Shards that are filled at the same time, in each read database, with two connections each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Events of one shard in one transaction.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u16).range(1..=50_000))]
    batch: u16,
    /// For how long to try to switch, when queries or a maintenance job do not let the tables go; in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u16).range(1..=3_600))]
    wait_s: u16,
}

/// One read model, or all.
#[derive(Clone, Debug)]
struct Names(Vec<Projection>);

impl std::str::FromStr for Names {
    type Err = skyriff_projections::UnknownProjection;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text == "all" { Projection::ALL.to_vec() } else { vec![text.parse()?] }))
    }
}

/// Some shards.
#[derive(Clone, Debug)]
struct Shards(BTreeSet<ShardId>);

impl Shards {
    fn parse(text: &str) -> Result<Self> {
        crate::config::shards(text).map(Self)
    }
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let databases = arguments.databases.clone().databases()?;
    databases.check_that_read_databases_are_named_once()?;
    let mut agree = true;
    for projection in &arguments.names.0 {
        if let (Some(Shards(shards)), Some(from)) = (&arguments.move_shards, &arguments.from) {
            agree &= move_shards(&databases, *projection, shards, from, &arguments)
                .await
                .with_context(|| projection.name())?;
        } else if let (Some(Shards(shards)), Some(from)) = (&arguments.forget, &arguments.from) {
            let rows = moving::forget(&databases, *projection, shards, from).await?;
            println!("{projection}: {rows} rows deleted");
        } else if arguments.status {
            status(&databases, *projection).await?;
        } else if arguments.drop {
            drop_kept(&databases, *projection).await?;
        } else {
            agree &= rebuild(&databases, *projection, &arguments).await.with_context(|| projection.name())?;
        }
    }
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

impl Arguments {
    fn limits(&self) -> Limits {
        Limits { workers: usize::from(self.workers), batch: self.batch }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.wait_s))
    }
}

/// Whether the shards are the same where they were and where they are to be.
async fn move_shards(
    databases: &Databases,
    projection: Projection,
    shards: &BTreeSet<ShardId>,
    from: &Address,
    arguments: &Arguments,
) -> Result<bool> {
    let arriving = moving::arriving(databases, projection, shards, from, arguments.limits())?;
    fill(projection, &arriving.iter().map(|arriving| arriving.builder.clone()).collect::<Vec<_>>()).await?;
    let mut agree = true;
    for arriving in &arriving {
        arriving.analyze().await?;
        catch_up(&arriving.builder).await?;
        agree &= arriving.compare(from, arguments.patience()).await?;
    }
    if agree {
        println!(
            "{projection}: ready where it is to be; start processes with these places, end the others, then --forget"
        );
    }
    Ok(agree)
}

/// Whether the versions agreed, or did not have to.
async fn rebuild(databases: &Databases, projection: Projection, arguments: &Arguments) -> Result<bool> {
    let limits = arguments.limits();
    let kind = if arguments.back { Kind::Old } else { Kind::Next };
    let mut versions = Vec::new();
    for place in &databases.read_models {
        let mut version = Version::open(databases, place, projection, kind, limits).await?;
        match kind {
            Kind::Old => ensure!(
                version.exists().await?,
                "no version of {projection} is kept in {}: there is no way back",
                version.database()
            ),
            Kind::Next => version.make().await?,
        }
        versions.push(version);
    }
    fill(projection, &versions.iter().map(|version| version.builder().clone()).collect::<Vec<_>>()).await?;
    let mut agree = true;
    let patience = arguments.patience();
    for version in &mut versions {
        version.analyze().await?;
        catch_up(version.builder()).await?;
        // Whoever goes back knows that the versions differ, and has no time to lose.
        if arguments.back {
            continue;
        }
        match compare::compare(version, patience).await {
            Ok(same) => agree &= same,
            Err(error) if arguments.accept_differences => println!("{projection}: not compared: {error:#}"),
            Err(error) => {
                return Err(error.context("the versions cannot be compared; --accept-differences does without"));
            }
        }
    }
    if arguments.no_switch {
        println!("{projection}: the version in {} is ready, and not switched to", kind.schema(projection));
        return Ok(agree);
    }
    if !(agree || arguments.accept_differences) {
        println!(
            "{projection}: nothing is switched. If these differences are what the rebuild is for, run it again with \
             --accept-differences; it goes on from here. --drop throws the new version away"
        );
        return Ok(false);
    }
    for version in &mut versions {
        catch_up(version.builder()).await?;
        let waited = version.switch(patience).await?;
        println!(
            "{projection}: switched in {}; projectors waited {:.1} ms, queries {:.1} ms; the version before is kept in {}",
            version.database(),
            waited.projectors.as_secs_f64() * 1e3,
            waited.queries.as_secs_f64() * 1e3,
            Kind::Old.schema(projection)
        );
    }
    Ok(true)
}

/// From where the versions are to the end of the log, all databases at once.
async fn fill(projection: Projection, builders: &[Builder<Projection>]) -> Result<()> {
    let started = Instant::now();
    let mut total = 0;
    let mut tasks = tokio::task::JoinSet::new();
    for builder in builders {
        let builder = builder.clone();
        let (heads, positions) = (builder.heads().await?, builder.positions().await?);
        let sum =
            |of: &std::collections::BTreeMap<_, skyriff_domain::Position>| of.values().map(|at| at.0).sum::<i64>();
        total += u64::try_from(sum(&heads) - sum(&positions)).unwrap_or(0);
        tasks.spawn(async move { builder.catch_up(&heads).await });
    }
    let style = "{msg} {bar:40} {human_pos}/{human_len} events, {per_sec}, {eta} left";
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(style)?);
    bar.set_message(format!("building {projection}"));
    let applied = || builders.iter().map(Builder::applied).sum::<u64>();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                None => break,
                Some(ended) => { ended??; }
            },
            _ = look.tick() => bar.set_position(applied()),
        }
    }
    bar.finish_and_clear();
    let (events, seconds) = (applied(), started.elapsed().as_secs_f64());
    let per_second = f64::from(u32::try_from(events).unwrap_or(u32::MAX)) / seconds.max(1e-3);
    println!("{projection}: built from {events} events in {seconds:.1} s, {per_second:.0} a second");
    Ok(())
}

/// Until few events come while the last ones are applied.
async fn catch_up(builder: &Builder<Projection>) -> Result<()> {
    for _ in 0..ROUNDS_MAX {
        let heads = builder.heads().await?;
        if builder.catch_up(&heads).await? <= NEAR {
            return Ok(());
        }
    }
    bail!(
        "it does not catch up: events come faster than they are applied; try with more --workers, or when less happens"
    )
}

async fn drop_kept(databases: &Databases, projection: Projection) -> Result<()> {
    for place in &databases.read_models {
        for kind in [Kind::Old, Kind::Next] {
            let limits = Limits { workers: 1, batch: 1 };
            let mut version = Version::open(databases, place, projection, kind, limits).await?;
            if version.exists().await? {
                version.drop_it().await?;
                println!("{projection}: dropped {} in {}", kind.schema(projection), version.database());
            }
        }
    }
    Ok(())
}

async fn status(databases: &Databases, projection: Projection) -> Result<()> {
    for place in &databases.read_models {
        for kind in [Kind::Next, Kind::Old] {
            let limits = Limits { workers: 1, batch: 1 };
            let mut version = Version::open(databases, place, projection, kind, limits).await?;
            let database = version.database();
            match version.exists().await? {
                false => println!("{projection}: nothing in {} in {database}", kind.schema(projection)),
                true => {
                    let (read, size) = version.read_and_size().await?;
                    println!(
                        "{projection}: {} in {database} has read {read} events and takes {size}",
                        kind.schema(projection)
                    );
                }
            }
        }
    }
    Ok(())
}
