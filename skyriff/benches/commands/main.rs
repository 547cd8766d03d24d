//! Commands per second, ours beside the stock path and beside the limits, in one run: `make bench`.
//!
//! How to read what it prints is in README.md beside this file.

#![expect(unreachable_pub, reason = "a benchmark exports nothing")]

mod append;
mod report;
mod servers;
mod wrk;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use skyriff_postgres::{Cluster, Durability, Server, Servers, databases};

use self::{
    report::{Figure, Report},
    servers::{Served, Target},
};

/// Accounts of the random load.
const ACCOUNTS: u32 = 20_000;
const EVENTS: &str = "bench_events";
const STOCK: &str = "bench_stock";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // This program is also the servers that it measures, each in a process of its own.
    if let Some(target) = arguments.first().and_then(|name| Target::named(name)) {
        return servers::serve(target).await;
    }
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    measure(Duration::from_secs(seconds)).await
}

async fn measure(each: Duration) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("skyriff-bench-{}", std::process::id()));
    let cluster = Cluster::start(&folder, Servers::Primary, Durability::Full, |line| eprintln!("· {line}")).await?;
    let result = measure_on(cluster.primary(), each).await;
    cluster.stop().await?;
    std::fs::remove_dir_all(&folder)?;
    let report = result?;
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    report.write(&out).with_context(|| format!("cannot write to {}", out.display()))
}

async fn measure_on(server: &Server, each: Duration) -> Result<Report> {
    databases::create(server, &[EVENTS, STOCK]).await?;
    servers::prepare(server).await?;
    let mut report = Report::default();
    for target in [Target::Skyriff, Target::Stock, Target::Constant] {
        let served = Served::start(target, server).await?;
        for (accounts, connections) in target.loads() {
            eprintln!("· {}: {connections} connections, {accounts} accounts", target.title());
            // What is cold is not what is asked about.
            wrk::run(&served, connections, accounts, each / 2).await?;
            let load = wrk::run(&served, connections, accounts, each).await?;
            report.add(Figure::of(target.title(), accounts, connections, &load));
        }
        served.stop().await?;
    }
    for (executors, batch) in [(1, 1), (2, 128), (2, 512)] {
        eprintln!("· the append function alone: {executors} × {batch}");
        report.add(append::run(server, executors, batch, each).await?);
    }
    for clients in [1, 32] {
        eprintln!("· pgbench: {clients} clients");
        report.add(servers::pgbench(server, clients, each).await?);
    }
    Ok(report)
}
