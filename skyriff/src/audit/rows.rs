//! The rows of the log as they are stored, as fast as Postgres sends them.
//!
//! `COPY … (FORMAT binary)` sends of each row how many columns it has (2 bytes), and of each column its length (4 bytes) and
//! its bytes: no number or time is written as text on one side to be read on the other. The text of the JSON is what is stored.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use skyriff_domain::{Position, ShardId};
use skyriff_postgres::databases::QUERY;
use skyriff_proof::EventRow;
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
/// What COPY sends before the first row: its signature, flags, and the length of what follows them, which is nothing.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it sends after the last row, where the number of columns would be.
const TRAILER: [u8; 2] = [0xff; 2];
/// The epoch of Postgres' timestamps, 2000-01-01, in microseconds of Unix time.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

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
            "COPY (SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
                          metadata, occurred_at, recorded_at
                   FROM events WHERE shard = {shard} AND position > {after} AND position <= {to} ORDER BY position)
             TO STDOUT (FORMAT binary)"
        );
        let mut sent = connection.copy_out_raw(&statement).await.context("the log cannot be read")?;
        let mut page = Vec::with_capacity(PAGE_ROWS);
        while let Some(mut piece) = sent.try_next().await.context("the log cannot be read")? {
            if piece.starts_with(HEADER) {
                piece = piece.slice(HEADER.len()..);
            }
            // Postgres sends each row in a message of its own.
            if !piece.is_empty() && piece != TRAILER.as_slice() {
                page.push(piece);
            }
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

/// A row as COPY sends it. Nothing when it has other columns, or a time that no clock shows (`infinity`).
pub fn parse(row: &[u8]) -> Option<EventRow<'_>> {
    let mut fields = Fields::of(row)?;
    let parsed = EventRow {
        shard: ShardId(u16::from_be_bytes(fields.number()?)),
        position: Position(i64::from_be_bytes(fields.number()?)),
        aggregate_type: fields.text()?.into(),
        aggregate_id: fields.text()?.into(),
        sequence: i64::from_be_bytes(fields.number()?),
        event_type: fields.text()?.into(),
        event_version: fields.text()?.into(),
        payload: fields.text()?.into(),
        metadata: fields.text()?.into(),
        occurred_at_us: fields.time()?,
        recorded_at_us: fields.time()?,
    };
    fields.0.is_empty().then_some(parsed)
}

/// What is left of a row.
pub struct Fields<'r>(&'r [u8]);

impl<'r> Fields<'r> {
    pub fn of(row: &'r [u8]) -> Option<Self> {
        Some(Self(row.split_first_chunk::<2>()?.1))
    }

    fn next(&mut self) -> Option<&'r [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        // A null has the length -1, which is longer than any row.
        let (field, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        self.0 = rest;
        Some(field)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.next()?.try_into().ok()
    }

    fn text(&mut self) -> Option<&'r str> {
        str::from_utf8(self.next()?).ok()
    }

    fn time(&mut self) -> Option<i64> {
        i64::from_be_bytes(self.number()?).checked_add(POSTGRES_EPOCH_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    #[test]
    fn a_row_is_what_copy_sends_and_nothing_less_or_more() {
        let fields = [
            field(&3_u16.to_be_bytes()),
            field(&42_i64.to_be_bytes()),
            field(b"points_account"),
            field(b"id"),
            field(&7_i64.to_be_bytes()),
            field(b"checked_in"),
            field(b"1"),
            field(b"{ }"),
            field("{\"ü\": 1}".as_bytes()),
            field(&1_i64.to_be_bytes()),
            field(&(-POSTGRES_EPOCH_US).to_be_bytes()),
        ];
        let row = [&11_u16.to_be_bytes()[..], &fields.concat()].concat();
        let parsed = parse(&row).unwrap();
        assert_eq!((parsed.at().to_string().as_str(), parsed.sequence), ("3:42", 7));
        assert_eq!((&*parsed.payload, &*parsed.metadata), ("{ }", "{\"ü\": 1}"));
        assert_eq!((parsed.occurred_at_us, parsed.recorded_at_us), (POSTGRES_EPOCH_US + 1, 0));
        // A leaf has the same lengths before the same bytes, but for the two times.
        assert_eq!(parsed.entry().unwrap()[1..row.len() - 1 - 24], row[2..row.len() - 24]);
        for end in 0..row.len() {
            assert_eq!(parse(&row[..end]), None);
        }
        assert_eq!(parse(&[&row[..], &[0]].concat()), None);
        let infinite = [&row[..row.len() - 8], &i64::MAX.to_be_bytes()].concat();
        assert_eq!(parse(&infinite), None);
    }
}
