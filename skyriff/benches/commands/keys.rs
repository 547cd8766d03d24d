//! What idempotency costs: the append function with the table of command ids, and without.
//!
//! The function is the same in both. Without, `commands` is a view over nothing whose inserts do nothing: so the
//! look-up, the rows, their index and their share of the log on disk are gone, and only the ids on their way into the
//! function are left.

use std::time::Duration;

use anyhow::{Result, ensure};
use skyriff_postgres::{Server, databases};
use sqlx::{Connection, Executor};

use crate::{append, report::Report, store};

const WITH: &str = "bench_with_keys";
const WITHOUT: &str = "bench_without_keys";

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    store::fresh(server, WITH).await?;
    store::fresh(server, WITHOUT).await?;
    let mut superuser = server.superuser(WITHOUT).await?;
    let view = format!(
        "ALTER TABLE commands RENAME TO commands_kept;
         CREATE VIEW commands AS SELECT * FROM commands_kept WHERE false;
         CREATE RULE nothing AS ON INSERT TO commands DO INSTEAD NOTHING;
         GRANT ALL ON commands TO {}, {}",
        databases::OWNER,
        databases::COMMAND
    );
    superuser.execute(view.as_str()).await?;
    for (executors, batch) in [(1, 1), (2, 128)] {
        for (database, title) in [(WITH, "append with the key table"), (WITHOUT, "append without the key table")] {
            eprintln!("· {title}: {executors} × {batch}");
            report.add(append::run(server, database, title, executors, batch, each).await?);
        }
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM commands_kept").fetch_one(&mut superuser).await?;
    ensure!(keys == 0, "{keys} keys were recorded where none should be");
    superuser.close().await?;
    Ok(())
}
