//! Does it matter how much has happened before? The same load on stores that hold more and more.

use std::time::Duration;

use anyhow::{Context, Result};
use skyriff_postgres::Server;
use sqlx::{Connection, Executor};

use crate::{
    ACCOUNTS, fill,
    report::{Figure, Report},
    servers::{Served, Target},
    store,
    wrk::{self, Accounts, Load},
};

const DATABASE: &str = "bench_history";
const CONNECTIONS: u32 = 64;
/// Events in the store, unless BENCH_HISTORY says otherwise.
const SIZES: [u64; 4] = [100_000, 1_000_000, 3_000_000, 10_000_000];
/// Where the numbers of accounts without history begin; the first are those with.
const WITHOUT_HISTORY: u64 = 1_000_000_000;

pub const WITH: &str = "history, accounts with history";
pub const WITHOUT: &str = "history, new accounts";

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    store::fresh(server, DATABASE).await?;
    let mut filled = fill::Filled::default();
    for (index, size) in (0_u64..).zip(sizes()?) {
        filled.fill(server, DATABASE, size).await?;
        eprintln!("· vacuum and checkpoint");
        let mut superuser = server.superuser(DATABASE).await?;
        for statement in ["VACUUM (ANALYZE)", "CHECKPOINT"] {
            superuser.execute(statement).await?;
        }
        superuser.close().await?;

        // As many as usual, from all over the log; there are fewer only while it is short.
        let stride = (filled.accounts / u64::from(ACCOUNTS)).max(1);
        let count = u32::try_from(filled.accounts / stride)?.min(ACCOUNTS);
        let with = Accounts { first: 1, stride, count };
        let without = Accounts { first: WITHOUT_HISTORY + index * u64::from(ACCOUNTS), ..Accounts::RANDOM };
        for (title, accounts) in [(WITH, with), (WITHOUT, without)] {
            // A server that has nothing in memory.
            let served = Served::start(Target::Skyriff, server, DATABASE, &[]).await?;
            let load = Load::one(&served, CONNECTIONS, accounts);
            wrk::run(&load, each / 2).await?;
            let events = store::events(server, DATABASE).await?;
            eprintln!("· {title}: {events} events");
            let seen = wrk::run(&load, each).await?;
            served.stop().await?;
            report.add(Figure { events: Some(events), ..Figure::of(title, accounts.count, CONNECTIONS, &seen) });
        }
    }
    Ok(())
}

fn sizes() -> Result<Vec<u64>> {
    let Ok(text) = std::env::var("BENCH_HISTORY") else {
        return Ok(SIZES.to_vec());
    };
    let size = |size: &str| size.trim().parse().with_context(|| format!("BENCH_HISTORY: {size:?} is not a number"));
    text.split(',').map(size).collect()
}
