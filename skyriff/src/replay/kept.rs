//! What is kept of an event from when it is read until it is written.
//!
//! The reader makes the lines while it reads, event by event, and what comes after it has whole windows to hash and to
//! write: so both are as busy as Postgres is, on processors of their own.

use anyhow::{Context, Result};
use skyriff_read_side::events::{Exported, Masks, Row};

use super::output::{Format, csv_row};

/// The line of JSON, which is hashed whatever the format is; and for other formats what is written in place of it.
#[derive(Clone, Copy)]
pub struct Kept<'k> {
    pub line: &'k [u8],
    /// Nothing for lines of JSON, a line of CSV, or the row as it was read.
    pub rest: &'k [u8],
}

/// How long the line of JSON is: before it, where something follows it.
type Length = u32;

/// Write what is kept of this row.
pub fn keep(row: Row<'_>, format: Format, masks: &mut Masks, kept: &mut Vec<u8>) -> Result<()> {
    let event = Exported::of(row, masks)?;
    if format == Format::Ndjson {
        event.write_json_line(kept);
        return Ok(());
    }
    let start = kept.len();
    kept.extend_from_slice(&Length::default().to_ne_bytes());
    let begin = kept.len();
    event.write_json_line(kept);
    let length = Length::try_from(kept.len() - begin)?;
    kept.get_mut(start..begin).context("it was written before")?.copy_from_slice(&length.to_ne_bytes());
    match format {
        Format::Csv => csv_row(&event, kept),
        // Its columns are taken from it where they are collected.
        Format::Parquet | Format::Ndjson => kept.extend_from_slice(row.bytes),
    }
    Ok(())
}

impl<'k> Kept<'k> {
    /// What was kept.
    pub fn of(kept: &'k [u8], format: Format) -> Result<Self> {
        if format == Format::Ndjson {
            return Ok(Self { line: kept, rest: &[] });
        }
        let (length, rest) = kept.split_first_chunk().context("no length is kept")?;
        let length = usize::try_from(Length::from_ne_bytes(*length))?;
        let (line, rest) = rest.split_at_checked(length).context("nothing is kept after the line")?;
        Ok(Self { line, rest })
    }
}
