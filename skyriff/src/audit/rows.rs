//! The rows of the log as they are stored, as fast as Postgres sends them ([`copy`]).

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use skyriff_domain::{Position, ShardId};
use skyriff_postgres::databases::QUERY;
use skyriff_proof::copy::{self, COLUMNS};
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::mpsc;

use crate::config::Place;

/// Rows that are handed over at once, and how many such pages may wait.
const PAGE_ROWS: usize = 1_000;
pub const PAGES: usize = 8;
/// Positions that one statement is about. Its snapshot is held for as long as they take.
const SEGMENT: i64 = 200_000;
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Told that a range has many rows, the planner would collect them page by page and sort them, on disk, instead of walking
/// along the index, which has them in order.
const IN_ORDER: [(&str, &str); 2] = [("enable_bitmapscan", "off"), ("enable_sort", "off")];
/// Which of a place's databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Primary,
    /// The first replica that answers, and never the primary.
    Replica,
}

impl Of {
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// Connect to read.
pub async fn connect(place: &Place, of: Of) -> Result<PgConnection> {
    let addresses: Vec<_> = match of {
        Of::Primary => vec![&place.primary],
        Of::Replica => place.replicas.iter().collect(),
    };
    let mut failed = anyhow::anyhow!("none is configured");
    for address in addresses {
        let options = address.as_role(QUERY).application_name("skyriff audit").options(IN_ORDER);
        match tokio::time::timeout(ANSWER_MAX, options.connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => failed = error.into(),
            Err(_) => failed = anyhow::anyhow!("no answer within {ANSWER_MAX:?}"),
        }
    }
    Err(failed).with_context(|| format!("cannot reach a {}", of.name()))
}

/// The last position that this database has of a shard.
pub async fn head(connection: &mut PgConnection, shard: ShardId) -> Result<Position> {
    let head: Option<i64> = sqlx::query_scalar("SELECT position FROM heads WHERE shard = $1")
        .bind(i16::try_from(shard.0)?)
        .fetch_optional(connection)
        .await
        .context("cannot read where the log ends")?;
    head.map(Position).with_context(|| format!("this database of the event store does not have shard {shard}"))
}

/// Send the rows after one position up to another, in order. Ends early when nobody takes them any more.
pub async fn read(
    connection: &mut PgConnection,
    shard: ShardId,
    mut after: Position,
    upto: Position,
    pages: &mpsc::Sender<Vec<Bytes>>,
) -> Result<()> {
    while after < upto {
        let to = Position(after.0.saturating_add(SEGMENT)).min(upto);
        // COPY takes no parameters. These are numbers.
        let statement = format!(
            "COPY (SELECT {COLUMNS} FROM events
                   WHERE shard = {shard} AND position > {after} AND position <= {to} ORDER BY position)
             TO STDOUT (FORMAT binary)"
        );
        let mut sent = connection.copy_out_raw(&statement).await.context("the log cannot be read")?;
        let mut page = Vec::with_capacity(PAGE_ROWS);
        while let Some(message) = sent.try_next().await.context("the log cannot be read")? {
            // Postgres sends each row in a message of its own.
            page.extend(copy::row(&message).map(|row| message.slice_ref(row)));
            if page.len() == PAGE_ROWS {
                let full = std::mem::replace(&mut page, Vec::with_capacity(PAGE_ROWS));
                if pages.send(full).await.is_err() {
                    bail!("whoever reads the log has ended");
                }
            }
        }
        if !page.is_empty() && pages.send(page).await.is_err() {
            bail!("whoever reads the log has ended");
        }
        after = to;
    }
    Ok(())
}
