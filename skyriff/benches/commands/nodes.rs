//! Two command nodes on one store: does it matter which of them a command reaches?

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use skyriff_domain::{ShardCount, shard_of};
use skyriff_postgres::Server;
use skyriff_write_side::metrics;

use crate::{
    ACCOUNTS,
    report::{Figure, Report},
    servers::{Served, Target},
    store,
    wrk::{self, Accounts, Load},
};

const DATABASE: &str = "bench_nodes";
const CONNECTIONS: u32 = 256;

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    store::fresh(server, DATABASE).await?;
    let folder = tempfile::tempdir()?;
    let ways = ["two nodes, all to one of them", "two nodes, by shard", "two nodes, at random"];
    for (index, title) in (0_u64..).zip(ways) {
        eprintln!("· {title}");
        // Nodes that know nothing, and accounts of its own, so that each way starts alike.
        let (a, b) = (start(server).await?, start(server).await?);
        let accounts = Accounts { first: 1 + index * u64::from(ACCOUNTS), ..Accounts::RANDOM };
        let nodes = vec![&a, if index == 0 { &a } else { &b }];
        let lists = if index == 1 { by_shard(accounts, folder.path())? } else { Vec::new() };
        let load = Load { nodes, lists, ..Load::one(&a, CONNECTIONS, accounts) };
        wrk::run(&load, each / 2).await?;
        let before = [Counters::of(&a).await?, Counters::of(&b).await?];
        let seen = wrk::run(&load, each).await?;
        let after = [Counters::of(&a).await?, Counters::of(&b).await?];
        let since = |of: fn(&Counters) -> f64| {
            let [a, b] = [0, 1].map(|node: usize| of(&after[node]) - of(&before[node]));
            format!("{a:.0} + {b:.0}")
        };
        let note = format!(
            "{} batches decided again, {} events of the other node read",
            since(|counters| counters.conflicts),
            since(|counters| counters.caught_up)
        );
        report.add(Figure { note, ..Figure::of(title, ACCOUNTS, CONNECTIONS, &seen) });
        a.stop().await?;
        b.stop().await?;
    }
    Ok(())
}

async fn start(server: &Server) -> Result<Served> {
    Served::start(Target::Skyriff, server, DATABASE, &[]).await
}

/// The numbers of the accounts for each node, in a file each. Every other pair of shards, so that both executors of
/// a node have the same work.
fn by_shard(accounts: Accounts, folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    let mut lists = [String::new(), String::new()];
    for number in accounts.first..accounts.first + u64::from(accounts.count) {
        let shard = shard_of(store::account(number)?, ShardCount::default());
        let list = lists.get_mut(usize::from(shard.0 / 2 % 2)).context("one of two")?;
        list.push_str(&format!("{number}\n"));
    }
    let mut files = Vec::new();
    for (node, list) in lists.into_iter().enumerate() {
        let file = folder.join(format!("accounts-{node}"));
        std::fs::write(&file, list)?;
        files.push(file);
    }
    Ok(files)
}

/// What a node counts of its races with the other.
struct Counters {
    conflicts: f64,
    caught_up: f64,
}

impl Counters {
    async fn of(node: &Served) -> Result<Self> {
        let text = reqwest::get(format!("{}/metrics", node.url)).await?.error_for_status()?.text().await?;
        let sum = |name: &str| -> f64 {
            let of_name = text.lines().filter(|line| line.starts_with(name));
            of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Self { conflicts: sum(metrics::CONFLICTS), caught_up: sum(metrics::CAUGHT_UP) })
    }
}
