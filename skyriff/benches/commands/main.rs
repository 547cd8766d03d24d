//! Commands per second, ours beside the stock path and beside the limits, in one run: `make bench`.
//!
//! How to read what it prints is in README.md beside this file.

#![expect(unreachable_pub, reason = "a benchmark exports nothing")]

mod append;
mod bulk;
mod chart;
mod constant;
mod fill;
mod history;
mod jobs;
mod keys;
mod ledger;
mod likes;
mod nodes;
mod ratios;
mod rebuild;
mod replay;
mod report;
mod servers;
mod single;
mod standby;
mod store;
mod verify;
mod wrk;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use skyriff_postgres::{Cluster, Durability, Server, Servers};

use self::{report::Report, servers::Target};

/// As in skyriff itself: what differs between two figures must not be how they allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Accounts of the random load.
const ACCOUNTS: u32 = 20_000;
const EVENTS: &str = "bench_events";
const STOCK: &str = "bench_stock";

/// The parts of a run, as BENCH names them; all but the last two, which take long, unless it names some.
const PARTS: [&str; 12] = [
    "commands", "bulk", "keys", "nodes", "standby", "likes", "jobs", "replay", "verify", "rebuild", "ledger", "history",
];
const LONG: [&str; 2] = ["ledger", "history"];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // This program is also the servers that it measures, each in a process of its own.
    if let Some(target) = arguments.first().and_then(|name| Target::named(name)) {
        return servers::serve(target).await;
    }
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let chosen = std::env::var("BENCH").unwrap_or_default();
    let parts: Vec<_> = match chosen.as_str() {
        "" => PARTS.into_iter().filter(|part| !LONG.contains(part)).collect(),
        chosen => chosen.split(',').map(str::trim).collect(),
    };
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(part)) {
        bail!("BENCH: {unknown:?} is not a part; the parts are {}", PARTS.join(", "));
    }
    // A run of some parts does not replace the picture of all of them.
    let name = if chosen.is_empty() { "commands".to_owned() } else { parts.join("-") };
    measure(&parts, Duration::from_secs(seconds), &name).await
}

/// Measure part by part. One that fails does not take the others' figures with it.
async fn measure(parts: &[&str], each: Duration, name: &str) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("skyriff-bench-{}", std::process::id()));
    let cluster = Cluster::start(&folder, Servers::Primary, Durability::Full, |line| eprintln!("· {line}")).await?;
    let (mut report, mut failed) = (Report::default(), Vec::new());
    for part in parts {
        let started = Instant::now();
        if let Err(error) = measure_part(part, cluster.primary(), &folder, each, &mut report).await {
            eprintln!("· {part} failed: {error:#}");
            failed.push(*part);
        }
        eprintln!("· {part} took {:.0?}", started.elapsed());
    }
    cluster.stop().await?;
    std::fs::remove_dir_all(&folder)?;
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    report.write(&out, name).with_context(|| format!("cannot write to {}", out.display()))?;
    ensure!(failed.is_empty(), "failed, so not all is in the report: {}", failed.join(", "));
    Ok(())
}

async fn measure_part(part: &str, server: &Server, folder: &Path, each: Duration, report: &mut Report) -> Result<()> {
    match part {
        "bulk" => bulk::run(server, each, report).await,
        "keys" => keys::run(server, each, report).await,
        "nodes" => nodes::run(server, each, report).await,
        "standby" => standby::run(&folder.join("standby"), each, report).await,
        "likes" => likes::run(server, each, report).await,
        "jobs" => jobs::run(server, report).await,
        "replay" => replay::run(server, folder, report).await,
        "verify" => verify::run(server, folder, report).await,
        "rebuild" => rebuild::run(server, each, report).await,
        "ledger" => ledger::run(server, report).await,
        "history" => history::run(server, each, report).await,
        _ => single::run(server, each, report).await,
    }
}
