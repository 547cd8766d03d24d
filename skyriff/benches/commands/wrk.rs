//! Load over HTTP from wrk, in a process of its own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::servers::Served;

/// What wrk saw.
#[derive(Debug)]
pub struct Load {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

pub async fn run(served: &Served, connections: u32, accounts: u32, time: Duration) -> Result<Load> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/commands/wrk.lua");
    let output = Command::new("wrk")
        .args(["--threads", "1", "--latency", "--timeout", "30s", "--script", script])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", time.as_secs().max(1))])
        .arg(&served.url)
        .args(["--", &served.token, &accounts.to_string()])
        .output()
        .await
        .context("cannot run wrk; install it (apt-get install wrk)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    let after = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(str::trim).with_context(|| format!("wrk printed no {label}: {text}"))
    };
    let (p50, p99) = (duration(after("50%")?)?, duration(after("99%")?)?);
    Ok(Load { per_second: after("Requests/sec:")?.parse()?, p50, p99 })
}

/// As wrk writes it: `870.00us`, `7.34ms`, `1.20s`.
fn duration(text: &str) -> Result<Duration> {
    for (unit, seconds) in [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)] {
        if let Some(number) = text.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok()) {
            return Ok(Duration::from_secs_f64(number * seconds));
        }
    }
    bail!("{text:?} is not a time")
}
