//! Events per second into files and over HTTP, beside what Postgres itself can send: `COPY (SELECT …) TO STDOUT` of the
//! same rows, thrown away by whoever receives them.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use futures::TryStreamExt;
use skyriff_edge::{Caller, Role, Tokens};
use skyriff_postgres::{Server, databases};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use uuid::Uuid;

use crate::{
    fill::Filled,
    report::{Figure, Report},
    servers::MASTER_KEY,
    store,
};

const DATABASE: &str = "bench_replay";
/// More than Postgres keeps in its own memory, as in any store that is worth exporting.
const EVENTS: u64 = 1_000_000;
/// Everything is done so often, in turn. What is compared is of one round, which a machine that is faster now and slower
/// then treats alike, and the median round counts.
const ROUNDS: usize = 7;
const COPY: &str = "COPY to nowhere";
const SECRET: &str = "a secret of the benchmark, for itself only";
const ROWS: &str = "SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
                           metadata, occurred_at, recorded_at FROM events";

pub async fn run(server: &Server, folder: &Path, report: &mut Report) -> Result<()> {
    store::fresh(server, DATABASE).await?;
    Filled::default().fill(server, DATABASE, EVENTS).await?;
    let mut owner = server.superuser(DATABASE).await?;
    sqlx::raw_sql("VACUUM ANALYZE events").execute(&mut owner).await?;
    owner.close().await?;
    let events = store::events(server, DATABASE).await?;
    let mut connection = server.options(databases::QUERY, DATABASE).connect().await?;
    let (mut node, url) = serve(server).await?;

    let mut rounds: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        eprintln!("· replay: round {round} of {ROUNDS}");
        let took = [
            (COPY, copy(&mut connection, ROWS).await?),
            ("replay to NDJSON", replay(server, folder, "events.ndjson").await?),
            ("replay to CSV", replay(server, folder, "events.csv").await?),
            ("replay to Parquet", replay(server, folder, "events.parquet").await?),
            ("GET /v1/events, all shards", get(&url, "", events).await?),
            ("GET /v1/events, a filter that lets all pass", get(&url, "?type=points_account.earned", events).await?),
            // Last, since it sorts on disk, and the disk is still writing that when the next one begins.
            ("COPY to nowhere, in order", copy(&mut connection, &format!("{ROWS} ORDER BY shard, position")).await?),
        ];
        for (what, took) in took {
            rounds.entry(what).or_default().push(took);
        }
    }
    node.kill().await?;
    let copied = rounds.get(COPY).context("nothing was copied")?;
    let events_f64 = f64::from(u32::try_from(events).unwrap_or(u32::MAX));
    for (what, took) in &rounds {
        let per_second = sorted(took.iter().map(|took| events_f64 / took.as_secs_f64()));
        let of_copy = sorted(copied.iter().zip(took).map(|(copied, took)| copied.as_secs_f64() / took.as_secs_f64()));
        let (lowest, highest) =
            (of_copy.first().copied().unwrap_or_default(), of_copy.last().copied().unwrap_or_default());
        let note = format!("{:.2} of COPY ({lowest:.2} to {highest:.2})", median(&of_copy));
        let (title, events) = ((*what).to_owned(), Some(events));
        report.add(Figure {
            title,
            events,
            per_second: median(&per_second),
            note,
            connections: 1,
            ..Figure::default()
        });
    }
    Ok(())
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
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
    let place = format!("0-15={}", server.url(DATABASE));
    command.env("SKYRIFF_EVENT_STORE", &place).env("SKYRIFF_READ_MODELS", place);
    command.env("SKYRIFF_TOKEN_SECRET", SECRET).env("SKYRIFF_MASTER_KEY", MASTER_KEY).kill_on_drop(true);
    command
}

async fn replay(server: &Server, folder: &Path, name: &str) -> Result<Duration> {
    let folder = folder.join("replay");
    std::fs::create_dir_all(&folder)?;
    let started = Instant::now();
    let ended = skyriff(server).args(["replay", "--out"]).arg(folder.join(name)).stdout(Stdio::null()).status().await?;
    let took = started.elapsed();
    ensure!(ended.success(), "replay to {name}: {ended}");
    std::fs::remove_dir_all(&folder)?;
    Ok(took)
}

/// A node that answers queries, and its address.
async fn serve(server: &Server) -> Result<(Child, String)> {
    let mut command = skyriff(server);
    let mut node =
        command.args(["serve", "--roles", "query", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(node.stdout.take().context("no output")?).lines();
    let line = said.next_line().await?.context("the node ended")?;
    let url = line.strip_prefix("SkyRiff listens on ").with_context(|| format!("the node says {line:?}"))?.to_owned();
    Ok((node, url))
}

async fn get(url: &str, query: &str, events: i64) -> Result<Duration> {
    let caller = Caller { role: Role::Analyst, id: Uuid::nil() };
    let token = Tokens::new(SECRET.as_bytes())?.mint(&caller, Utc::now(), TimeDelta::hours(1))?;
    let started = Instant::now();
    let answer = reqwest::Client::new().get(format!("{url}/v1/events{query}")).bearer_auth(token).send().await?;
    let mut answer = answer.error_for_status()?;
    let (mut bytes, mut end) = (0, Vec::new());
    while let Some(piece) = answer.chunk().await? {
        bytes += piece.len();
        end.extend_from_slice(&piece);
        let surplus = end.len().saturating_sub(200);
        end.drain(..surplus);
    }
    let took = started.elapsed();
    ensure!(String::from_utf8_lossy(&end).contains(r#""end":"complete""#), "the stream was cut off");
    ensure!(bytes > usize::try_from(events)? * 100, "{bytes} bytes are too few");
    Ok(took)
}
