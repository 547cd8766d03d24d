//! `skyriff rebuild`: the next version of a read model, built beside the live one and switched to.
//!
//! ```text
//! make NAME_next ─▶ fill from position 1 ─▶ catch up ─▶ compare ─▶ switch: next becomes live, live becomes NAME_old
//!                                                                └─▶ differences: told, and nothing is switched
//! going back:          catch NAME_old up ─▶ switch: old becomes live, live becomes NAME_next, as it was before
//! ```
//!
//! `migrations/read-models/0007_versions.sql` says where versions are and why readers do not notice a switch. Commands,
//! queries and projectors go on all the time. Only the live version is fed by projectors; this command itself brings the
//! next one, or the old one when it goes back, to where the live one is, the last events while projectors wait: for some
//! milliseconds, and never longer than `FREEZE_MAX`.
//!
//! Interrupted anywhere, the same command goes on where it was (`stage.rs` says how it knows). Each database is switched in
//! one transaction; of several, one after the other.

mod compare;
mod forget;
mod freeze;
mod moving;
mod positions;
mod rows;
mod stage;
mod version;

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};
use skyriff_domain::ShardId;
use skyriff_follow::{Builder, Follower, build::Limits};
use skyriff_projections::Projection;
use tokio::time::Instant;

use self::{
    positions::Positions,
    version::{Kind, Version},
};
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
    after_help = "Interrupted, or stopped because tables were not let go, the same command goes on where it was; all leaves out \
    what it has switched before.\nA version that an earlier rebuild has kept is in the way of another one: --drop it first. \
    all begins only when no read model keeps one.\n\nExit codes: 0 when all is done; 1 when something failed; 2 when versions \
    differ, and nothing was switched.\n\nThe owner's role (skyriff_owner) makes and moves tables, and skyriff_project fills \
    them, so the databases must let both in."
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
    /// Make the version that was live before live again, once it is caught up. The newer one is kept as it was before it was
    /// live: the command without this goes on to it, and --drop throws it away.
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
    /// Delete what a database has of shards that have moved out, when no process reads or feeds them there any more. Nothing
    /// is deleted that is not where SKYRIFF_READ_MODELS says that they live.
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
    let projections = &arguments.names.0;
    if let (Some(Shards(shards)), Some(from)) = (&arguments.forget, &arguments.from) {
        forget::forget(&databases, projections, shards, from).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.move_shards.is_none() && !arguments.status && !arguments.drop {
        prepare(&databases, &arguments).await?;
    }
    let mut agree = true;
    for projection in projections {
        if let (Some(Shards(shards)), Some(from)) = (&arguments.move_shards, &arguments.from) {
            agree &= move_shards(&databases, *projection, shards, from, &arguments)
                .await
                .with_context(|| projection.name())?;
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
    let mut to_fill = Vec::new();
    for arriving in &arriving {
        to_fill.push((arriving.builder.clone(), arriving.positions_there().await?));
    }
    fill(projection, to_fill).await?;
    let mut agree = true;
    for arriving in &arriving {
        arriving.analyze().await?;
        catch_up(&arriving.builder, async || arriving.positions_there().await).await?;
        agree &= arriving.compare(arguments.patience()).await?;
    }
    if agree {
        println!(
            "{projection}: ready where it is to be; start processes with these places, end the others, then --forget"
        );
    }
    Ok(agree)
}

/// See whether it may be done at all, and leave word of what is to be done, before anything is.
async fn prepare(databases: &Databases, arguments: &Arguments) -> Result<()> {
    let stages = stage::look(databases, &arguments.names.0).await?;
    if arguments.back {
        return stage::may_go_back(&stages);
    }
    stage::may_build(&stages)?;
    for stage in stages.iter().filter(|stage| !stage.is_done()) {
        for place in &databases.read_models {
            let mut version = Version::open(databases, place, stage.projection, Kind::Next, arguments.limits()).await?;
            version.make().await?;
            version.close().await?;
        }
    }
    Ok(())
}

/// Whether the versions agreed, or did not have to.
async fn rebuild(databases: &Databases, projection: Projection, arguments: &Arguments) -> Result<bool> {
    let limits = arguments.limits();
    let kind = if arguments.back { Kind::Old } else { Kind::Next };
    let schema = kind.schema(projection);
    let mut versions = Vec::new();
    for place in &databases.read_models {
        let mut version = Version::open(databases, place, projection, kind, limits).await?;
        if !version.exists().await? {
            println!("{projection}: done before in {}: there is no {schema} any more", version.database());
            continue;
        }
        version.check_that_it_is_ours().await?;
        versions.push(version);
    }
    if versions.is_empty() {
        return Ok(true);
    }
    fill(projection, up_to_the_heads(&mut versions).await?).await?;
    let mut agree = true;
    let patience = arguments.patience();
    for version in &mut versions {
        version.analyze().await?;
        catch_up(version.builder(), heads_of(version)).await?;
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
        println!("{projection}: the version in {schema} is ready, and not switched to");
        return Ok(agree);
    }
    if !(agree || arguments.accept_differences) {
        println!(
            "{projection}: nothing is switched. If these differences are what the rebuild is for, run it again with \
             --accept-differences; it goes on from here. --drop throws the new version away"
        );
        return Ok(false);
    }
    let kept = kind.outgoing().schema(projection);
    for version in &mut versions {
        let database = version.database();
        catch_up(version.builder(), heads_of(version)).await?;
        let waited = version.switch(patience).await.with_context(|| {
            format!("{database} is not switched; what is switched stays so, and the same command goes on from here")
        })?;
        println!(
            "{projection}: switched in {database}; projectors waited {:.1} ms, queries {:.1} ms; what was live is kept in {kept}",
            waited.projectors.as_secs_f64() * 1e3,
            waited.queries.as_secs_f64() * 1e3,
        );
    }
    if arguments.back {
        println!(
            "{projection}: `skyriff rebuild {projection}` goes on to what is in {kept}; if that is wrong, --drop it"
        );
    }
    Ok(true)
}

/// What there is to fill, and up to where; what was begun before is told.
async fn up_to_the_heads(versions: &mut [Version]) -> Result<Vec<(Builder<Projection>, Positions)>> {
    let mut to_fill = Vec::new();
    for version in versions {
        let (read, _) = version.read_and_size().await?;
        if read > 0 {
            let (projection, schema, database) = (version.projection(), version.schema(), version.database());
            println!("{projection}: goes on with {schema} in {database}, which has read {read} events");
        }
        to_fill.push((version.builder().clone(), version.builder().heads().await?));
    }
    Ok(to_fill)
}

fn heads_of(version: &Version) -> impl AsyncFn() -> Result<Positions> {
    async move || Ok(version.builder().heads().await?)
}

/// From where the versions are to these positions, all databases at once.
async fn fill(projection: Projection, to_fill: Vec<(Builder<Projection>, Positions)>) -> Result<()> {
    let started = Instant::now();
    let builders: Vec<_> = to_fill.iter().map(|(builder, _)| builder.clone()).collect();
    let mut total = 0;
    let mut tasks = tokio::task::JoinSet::new();
    for (builder, upto) in to_fill {
        let positions = builder.positions().await?;
        let sum = |of: &Positions| of.values().map(|at| at.0).sum::<i64>();
        total += u64::try_from(sum(&upto) - sum(&positions)).unwrap_or(0);
        tasks.spawn(async move { builder.catch_up(&upto).await });
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
async fn catch_up(builder: &Builder<Projection>, upto: impl AsyncFn() -> Result<Positions>) -> Result<()> {
    for _ in 0..ROUNDS_MAX {
        if builder.catch_up(&upto().await?).await? <= NEAR {
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
