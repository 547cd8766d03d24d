//! What it costs that a second machine has every answer too: the same load without a standby, with one that follows
//! in its own time, and with one that every commit waits for.

use std::{path::Path, time::Duration};

use anyhow::Result;
use skyriff_postgres::{Cluster, Durability, Server, Servers};

use crate::{
    ACCOUNTS,
    report::{Figure, Report},
    servers::{Served, Target},
    store,
    wrk::{self, Accounts, Load},
};

/// On Postgres servers of its own, one way after the other in one folder.
pub async fn run(folder: &Path, each: Duration, report: &mut Report) -> Result<()> {
    let ways = [
        ("without a standby", "bench_without", Servers::Primary, Durability::Full),
        ("with an asynchronous standby", "bench_asynchronous", Servers::PrimaryAndReplica, Durability::Full),
        ("with a required standby", "bench_required", Servers::PrimaryAndReplica, Durability::OnReplicaToo),
    ];
    for (title, database, servers, durability) in ways {
        let cluster = Cluster::start(folder, servers, durability, |line| eprintln!("· {line}")).await?;
        let flags: &[&str] = if durability == Durability::OnReplicaToo { &["--require-standby"] } else { &[] };
        let measured = measure(cluster.primary(), title, database, flags, each, report).await;
        cluster.stop().await?;
        measured?;
    }
    Ok(())
}

async fn measure(
    server: &Server,
    title: &str,
    database: &str,
    flags: &[&str],
    each: Duration,
    report: &mut Report,
) -> Result<()> {
    store::fresh(server, database).await?;
    let served = Served::start(Target::Skyriff, server, database, flags).await?;
    for connections in [1, 256] {
        eprintln!("· {title}: {connections} connections");
        let seen = wrk::measure(&Load::one(&served, connections, Accounts::RANDOM), each).await?;
        report.add(Figure::of(title, ACCOUNTS, connections, &seen));
    }
    served.stop().await
}
