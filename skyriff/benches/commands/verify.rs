//! Events per second of `skyriff audit`, beside reading the log alone: `COPY (SELECT …) TO STDOUT` of the same rows, thrown away
//! by whoever receives them.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use skyriff_postgres::{Server, databases};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::process::Command;

use crate::{
    fill::Filled,
    rebuild,
    report::{Figure, Report},
    store,
};

const DATABASE: &str = "bench_verify";
const READS: &str = "bench_verify_reads";
/// Unless `BENCH_VERIFY_EVENTS` says otherwise.
const EVENTS: u64 = 300_000;
/// Everything is done so often, in turn; the best of each counts, since other work on the machine only slows it.
const ROUNDS: usize = 3;
const ROWS: &str = "SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
                           metadata, occurred_at, recorded_at FROM events";

pub async fn run(server: &Server, folder: &Path, report: &mut Report) -> Result<()> {
    store::fresh(server, DATABASE).await?;
    let size = std::env::var("BENCH_VERIFY_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(EVENTS);
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
    eprintln!("· verify: projecting");
    let mut projecting = skyriff(server).args(["project", "--listen", "127.0.0.1:0"]).spawn()?;
    rebuild::caught_up(server, READS, events).await?;
    let mut connection = server.options(databases::QUERY, DATABASE).connect().await?;

    let export = folder.join("verify");
    let place = export.to_str().context("the folder's name")?;
    let mut best: BTreeMap<&str, Duration> = BTreeMap::new();
    for round in 1..=ROUNDS {
        eprintln!("· verify: round {round} of {ROUNDS}");
        let took = [
            ("COPY to nowhere", copy(&mut connection, ROWS).await?),
            ("COPY to nowhere, in order", copy(&mut connection, &format!("{ROWS} ORDER BY shard, position")).await?),
            ("audit verify, log and read models", audit(server, &["verify"]).await?),
            ("audit export", audit(server, &["export", "--out", place]).await?),
            ("audit verify of the export", audit(server, &["verify", "--export", place]).await?),
        ];
        std::fs::remove_dir_all(&export)?;
        for (what, took) in took {
            let best = best.entry(what).or_insert(took);
            *best = took.min(*best);
        }
    }
    projecting.kill().await?;
    let per_second = |took: &Duration| f64::from(u32::try_from(events).unwrap_or(u32::MAX)) / took.as_secs_f64();
    let copied = best.get("COPY to nowhere").map(per_second).context("nothing was copied")?;
    for (what, took) in &best {
        let per_second = per_second(took);
        let note = format!("{:.2} of COPY", per_second / copied);
        let (title, events) = ((*what).to_owned(), Some(events));
        report.add(Figure { title, events, per_second, note, connections: 1, ..Figure::default() });
    }
    Ok(())
}

async fn copy(connection: &mut PgConnection, rows: &str) -> Result<Duration> {
    let started = Instant::now();
    // Text from our own code.
    let mut sent = connection.copy_out_raw(&format!("COPY ({rows}) TO STDOUT")).await?;
    let mut bytes = 0;
    while let Some(piece) = sent.try_next().await? {
        bytes += piece.len();
    }
    ensure!(bytes > 0, "nothing was copied");
    Ok(started.elapsed())
}

fn skyriff(server: &Server) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skyriff"));
    command.env("SKYRIFF_EVENT_STORE", format!("0-15={}", server.url(DATABASE)));
    command.env("SKYRIFF_READ_MODELS", format!("0-15={}", server.url(READS)));
    command.env("SKYRIFF_LOG", "warn").stdout(Stdio::null()).kill_on_drop(true);
    command
}

async fn audit(server: &Server, arguments: &[&str]) -> Result<Duration> {
    let started = Instant::now();
    let ended = skyriff(server).arg("audit").args(arguments).status().await?;
    let took = started.elapsed();
    ensure!(ended.success(), "audit {arguments:?}: {ended}");
    Ok(took)
}
