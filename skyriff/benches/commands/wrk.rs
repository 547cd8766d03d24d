//! Load over HTTP from wrk, in a process of its own.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::{ACCOUNTS, servers::Served};

/// Commands in the body of one bulk request.
pub const BULK: u32 = 1_000;

/// Accounts by number: so many, from the first on, so far apart. Each request takes one of them at random.
#[derive(Clone, Copy, Debug)]
pub struct Accounts {
    pub first: u64,
    pub stride: u64,
    pub count: u32,
}

impl Accounts {
    /// The usual many.
    pub const RANDOM: Self = Self::first(ACCOUNTS);

    pub const fn first(count: u32) -> Self {
        Self { first: 1, stride: 1, count }
    }
}

/// What a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    One,
    BulkJson,
    BulkNdjson,
}

/// What is sent.
#[derive(Clone)]
pub struct Load<'a> {
    /// The servers; each gets the same share of the connections.
    pub nodes: Vec<&'a Served>,
    pub connections: u32,
    pub accounts: Accounts,
    /// For each server a file of account numbers to take instead.
    pub lists: Vec<PathBuf>,
    pub body: Body,
}

impl<'a> Load<'a> {
    /// One command a request, to one server.
    pub fn one(node: &'a Served, connections: u32, accounts: Accounts) -> Self {
        Self { nodes: vec![node], connections, accounts, lists: Vec::new(), body: Body::One }
    }
}

/// What wrk saw.
#[derive(Debug)]
pub struct Seen {
    /// Commands answered a second.
    pub per_second: f64,
    /// Of the requests that were answered before the end.
    pub p50: Duration,
    pub p99: Duration,
    /// Commands answered.
    pub answered: u64,
    /// Requests whose answer took longer than [`TIMEOUT_S`].
    pub late: u64,
}

const TIMEOUT_S: u32 = 30;

/// Once so that nothing is cold, and once to measure.
pub async fn measure(load: &Load<'_>, time: Duration) -> Result<Seen> {
    run(load, time / 2).await?;
    run(load, time).await
}

pub async fn run(load: &Load<'_>, time: Duration) -> Result<Seen> {
    let (script, body, commands) = match load.body {
        Body::One => ("wrk.lua", "one", 1),
        Body::BulkJson => ("bulk.lua", "json", BULK),
        Body::BulkNdjson => ("bulk.lua", "ndjson", BULK),
    };
    let first = load.nodes.first().context("a server to load")?;
    let nodes: Vec<_> = load.nodes.iter().map(|node| node.url.trim_start_matches("http://")).collect();
    let Accounts { first: from, stride, count } = load.accounts;
    let output = Command::new("wrk")
        .env("BENCH_NODES", nodes.join(","))
        .args(["--latency", "--timeout", &format!("{TIMEOUT_S}s"), "--threads", &nodes.len().to_string()])
        .args(["--script", &format!("{}/benches/commands/{script}", env!("CARGO_MANIFEST_DIR"))])
        .args(["--connections", &load.connections.to_string()])
        .args(["--duration", &format!("{}s", time.as_secs().max(1))])
        .arg(&first.url)
        .args(["--", &first.token, body, &from.to_string(), &stride.to_string(), &count.to_string()])
        .args(&load.lists)
        .output()
        .await
        .context("cannot run wrk; install it (apt-get install wrk)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let late = late(&text);
    if !output.status.success() || text.contains("Non-2xx") || late.is_none() {
        bail!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    let after = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(str::trim).with_context(|| format!("wrk printed no {label}: {text}"))
    };
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse::<u64>().ok());
    Ok(Seen {
        per_second: after("Requests/sec:")?.parse::<f64>()? * f64::from(commands),
        p50: duration(after("50%")?)?,
        p99: duration(after("99%")?)?,
        answered: requests.with_context(|| format!("wrk printed no requests: {text}"))? * u64::from(commands),
        late: late.unwrap_or_default(),
    })
}

/// How many answers came too late; `None` when anything else went wrong with the connections.
fn late(text: &str) -> Option<u64> {
    match text.lines().find_map(|line| line.trim().strip_prefix("Socket errors: ")) {
        None => Some(0),
        Some(errors) => errors.strip_prefix("connect 0, read 0, write 0, timeout ")?.parse().ok(),
    }
}

/// As wrk writes it: `870.00us`, `7.34ms`, `1.20s`, `1.05m`.
fn duration(text: &str) -> Result<Duration> {
    for (unit, seconds) in [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)] {
        if let Some(number) = text.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok()) {
            return Ok(Duration::from_secs_f64(number * seconds));
        }
    }
    bail!("{text:?} is not a time")
}
