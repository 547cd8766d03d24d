//! Events per second into read models that are built anew, beside reading the log and doing nothing with it, beside the
//! projectors that keep the live ones, and beside what the store takes in.

use std::{
    collections::BTreeMap,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use skyriff_domain::{Position, ShardId};
use skyriff_follow::{Follower, log};
use skyriff_postgres::{Server, databases};
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::{process::Command, task::JoinSet};

use crate::{
    append,
    fill::Filled,
    report::{Figure, Report},
    store,
};

const DATABASE: &str = "bench_rebuild";
const READS: &str = "bench_rebuild_reads";
const APPENDS: &str = "bench_rebuild_appends";
/// Events in the log, unless `BENCH_REBUILD_EVENTS` says otherwise.
const EVENTS: u64 = 300_000;
/// As `skyriff rebuild` has it unless told otherwise.
const WORKERS: usize = 4;
const PAGE: i64 = 5_000;
/// The projectors get so long to come to the end of the log.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(1_800);

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    store::fresh(server, DATABASE).await?;
    let size = std::env::var("BENCH_REBUILD_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(EVENTS);
    Filled::default().fill(server, DATABASE, size).await?;
    let mut owner = server.superuser(DATABASE).await?;
    // Each by itself: neither may be in a transaction. The name is from our own code.
    for statement in ["VACUUM ANALYZE events".to_owned(), format!("DROP DATABASE IF EXISTS {READS} WITH (FORCE)")] {
        sqlx::raw_sql(&statement).execute(&mut owner).await?;
    }
    owner.close().await?;
    databases::create(server, &[READS]).await?;
    databases::migrate_read_models(&server.options(databases::OWNER, READS)).await?;
    let events = store::events(server, DATABASE).await?;
    let mut add = |title: String, took: Duration, note: &str| {
        let per_second = f64::from(u32::try_from(events).unwrap_or(u32::MAX)) / took.as_secs_f64();
        let note = note.to_owned();
        report.add(Figure { title, events: Some(events), per_second, note, ..Figure::default() });
    };

    add("reading the log alone".to_owned(), read(server).await?, &format!("{WORKERS} at a time"));
    let projecting = Instant::now();
    let mut projectors = skyriff(server).args(["project", "--listen", "127.0.0.1:0"]).spawn()?;
    caught_up(server, READS, events).await?;
    add("projectors, all read models".to_owned(), projecting.elapsed(), "from nothing to the end of the log");
    let mut all = Duration::ZERO;
    for projection in Projection::ALL {
        let started = Instant::now();
        let rebuilt = skyriff(server).args(["rebuild", projection.name()]).status().await?;
        ensure!(rebuilt.success(), "rebuild {projection}: {rebuilt}");
        all += started.elapsed();
        add(format!("rebuild {projection}"), started.elapsed(), "made, filled, compared, switched");
    }
    add("rebuild of all read models".to_owned(), all, "one after the other");
    projectors.kill().await?;
    store::fresh(server, APPENDS).await?;
    report.add(append::run(server, APPENDS, "append", 2, 512, each).await?);
    Ok(())
}

fn skyriff(server: &Server) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skyriff"));
    command.env("SKYRIFF_EVENT_STORE", format!("0-15={}", server.url(DATABASE)));
    command.env("SKYRIFF_READ_MODELS", format!("0-15={}", server.url(READS)));
    command.env("SKYRIFF_LOG", "warn").stdout(Stdio::null()).kill_on_drop(true);
    command
}

/// Every event read and decoded, and let go.
async fn read(server: &Server) -> Result<Duration> {
    let started = Instant::now();
    let mut readers = JoinSet::new();
    let shards = store::shards();
    for shards in shards.chunks(shards.len().div_ceil(WORKERS)) {
        let (shards, options) = (shards.to_vec(), server.options(databases::PROJECT, DATABASE));
        readers.spawn(async move {
            let mut connection = options.connect().await?;
            for shard in shards {
                read_shard(&mut connection, shard).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    Ok(started.elapsed())
}

async fn read_shard(connection: &mut PgConnection, shard: ShardId) -> Result<()> {
    let mut after = Position::START;
    loop {
        let page = log::read_after(connection, &BTreeMap::from([(shard, after)]), PAGE).await?.remove(&shard);
        let Some(last) = page.and_then(|page| Some(page.events.last()?.at.position)) else { return Ok(()) };
        after = last;
    }
}

/// Until every read model in this database has all events.
pub async fn caught_up(server: &Server, reads: &str, events: i64) -> Result<()> {
    let mut reads = server.options(databases::QUERY, reads).connect().await?;
    let wanted = events * i64::try_from(Projection::ALL.len())?;
    let end = Instant::now() + CAUGHT_UP_MAX;
    while Instant::now() < end {
        let read: i64 = sqlx::query_scalar("SELECT coalesce(sum(position), 0)::bigint FROM checkpoints")
            .fetch_one(&mut reads)
            .await
            .context("the read models cannot be asked")?;
        if read >= wanted {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the projectors are not at the end of the log after {CAUGHT_UP_MAX:?}")
}
