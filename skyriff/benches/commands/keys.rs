//! What idempotency costs: the append function with the table of command ids, and without.
//!
//! Without is a copy of the function that has neither the look-up of the ids nor their insert: so only the ids on their
//! way into the function are left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skyriff_postgres::Server;
use sqlx::{Connection, Executor, PgConnection};

use crate::{append, report::Report, store};

const WITH: &str = "bench_with_keys";
const WITHOUT: &str = "bench_without_keys";

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    store::fresh(server, WITH).await?;
    store::fresh(server, WITHOUT).await?;
    let mut superuser = server.superuser(WITHOUT).await?;
    forget_keys(&mut superuser).await?;
    for (executors, batch) in [(1, 1), (2, 128)] {
        for (database, title) in [(WITHOUT, "append without the key table"), (WITH, "append with the key table")] {
            eprintln!("· {title}: {executors} × {batch}");
            report.add(append::run(server, database, title, executors, batch, each).await?);
        }
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM commands").fetch_one(&mut superuser).await?;
    ensure!(keys == 0, "{keys} keys were recorded where none should be");
    superuser.close().await?;
    Ok(())
}

/// Take the two statements on `commands` out of the function. A function in which they cannot be found is not measured.
async fn forget_keys(superuser: &mut PgConnection) -> Result<()> {
    let mut function: String =
        sqlx::query_scalar("SELECT pg_get_functiondef('append'::regproc)").fetch_one(&mut *superuser).await?;
    for (begins, instead) in [("repeated := ARRAY(", "repeated := '{}';"), ("INSERT INTO commands ", "")] {
        let from = function.find(begins).with_context(|| format!("append() has no {begins:?}"))?;
        let length = function.get(from..).and_then(|rest| rest.find(';')).context("a statement ends")?;
        function.replace_range(from..=from + length, instead);
    }
    superuser.execute(function.as_str()).await?;
    Ok(())
}
