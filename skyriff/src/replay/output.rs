//! Where an export goes to: one file of lines, or a folder of Parquet files.

use std::{
    fs::{self, File},
    io::{BufWriter, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use skyriff_read_side::events::{
    Exported,
    exported::{write_number, write_time},
};

use super::parquet::Folder;

const BUFFER_BYTES: usize = 1_024 * 1_024;
/// So much is written before it is seen to that it gets to the disk.
const SYNC_EVERY_BYTES: usize = 64 * 1_024 * 1_024;
const CSV_HEADER: &[u8] =
    b"shard,position,type,version,stream,sequence,occurred_at,recorded_at,actor,command_id,causation,data\n";

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Ndjson,
    /// As in RFC 4180, with a header.
    Csv,
    Parquet,
}

impl Format {
    /// What the end of the name says.
    pub fn of(out: &Path) -> Result<Self> {
        match out.extension().and_then(|end| end.to_str()) {
            Some("ndjson") => Ok(Self::Ndjson),
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            _ => bail!("{} ends with none of .ndjson, .csv and .parquet", out.display()),
        }
    }
}

pub enum Output {
    Lines(Lines),
    Parquet(Box<Folder>),
}

/// One file.
pub struct Lines {
    file: BufWriter<File>,
    bytes: u64,
    is_csv: bool,
    /// Memory for a row of CSV.
    row: Vec<u8>,
    unsynced: usize,
}

impl Output {
    /// Go on after so many bytes; from the start for none.
    pub fn open(out: &Path, format: Format, bytes: u64) -> Result<Self> {
        let is_csv = match format {
            Format::Parquet => {
                // Whoever opens it reads every file that is in it.
                let is_empty = || fs::read_dir(out).map(|mut entries| entries.next().is_none());
                ensure!(
                    !out.exists() || Self::is_ours(out) || is_empty()?,
                    "{} is there, and not empty",
                    out.display()
                );
                return Ok(Self::Parquet(Box::new(Folder::open(out)?)));
            }
            Format::Csv => true,
            Format::Ndjson => false,
        };
        if bytes == 0 {
            ensure!(!out.exists() || fs::metadata(out)?.len() == 0 || Self::is_ours(out), "{} is there", out.display());
        }
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(out);
        let mut file = file.with_context(|| format!("cannot write {}", out.display()))?;
        ensure!(file.metadata()?.len() >= bytes, "{} is shorter than its manifest says", out.display());
        // What was written after the last checkpoint is written again.
        file.set_len(bytes)?;
        file.seek(SeekFrom::End(0))?;
        let mut lines =
            Lines { file: BufWriter::with_capacity(BUFFER_BYTES, file), bytes, is_csv, row: Vec::new(), unsynced: 0 };
        if is_csv && bytes == 0 {
            lines.put(CSV_HEADER)?;
        }
        Ok(Self::Lines(lines))
    }

    /// Whether an export was begun there, so that it is not somebody else's file.
    fn is_ours(out: &Path) -> bool {
        super::Manifest::beside(out).exists()
    }

    /// One event, which is this line of JSON.
    pub fn write(&mut self, event: &Exported<'_>, line: &[u8]) -> Result<()> {
        match self {
            Self::Lines(lines) if lines.is_csv => lines.put_row(event),
            Self::Lines(lines) => lines.put(line),
            Self::Parquet(folder) => folder.write(event),
        }
    }

    /// All that was written is on disk. How long the file is now; nothing for a folder.
    pub fn checkpoint(&mut self) -> Result<u64> {
        match self {
            Self::Lines(lines) => {
                lines.sync()?;
                Ok(lines.bytes)
            }
            Self::Parquet(folder) => folder.checkpoint().map(|()| 0),
        }
    }
}

impl Lines {
    fn put_row(&mut self, event: &Exported<'_>) -> Result<()> {
        let mut row = std::mem::take(&mut self.row);
        row.clear();
        csv_row(event, &mut row);
        self.put(&row)?;
        self.row = row;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += u64::try_from(bytes.len())?;
        self.unsynced += bytes.len();
        if self.unsynced >= SYNC_EVERY_BYTES {
            // Nobody waits for this one while the next window is read, and the last one has little left.
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        self.unsynced = 0;
        Ok(())
    }
}

/// As a line of CSV, with its end.
fn csv_row(event: &Exported<'_>, row: &mut Vec<u8>) {
    write_number(i64::from(event.at.shard.0), row);
    row.push(b',');
    write_number(event.at.position.0, row);
    let texts = [event.aggregate_type, event.event_type, event.version, event.aggregate_type, event.aggregate_id];
    for (before, text) in [b',', b'.', b',', b',', b'/'].into_iter().zip(texts) {
        row.push(before);
        row.extend_from_slice(text.as_bytes());
    }
    row.push(b',');
    write_number(event.sequence, row);
    row.push(b',');
    write_time(event.occurred_at_us, row);
    row.push(b',');
    write_time(event.recorded_at_us, row);
    row.push(b',');
    for text in [&event.actor, &event.command_id, event.causation.as_ref().unwrap_or(&"".into())] {
        quoted(text, row);
        row.push(b',');
    }
    quoted(&event.data, row);
    row.push(b'\n');
}

/// In quotes when it has to be; a quote inside is written twice.
fn quoted(text: &str, row: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    // Looking at all of them is faster than stopping at the first, which most texts do not have.
    if bytes.iter().fold(true, |plain, byte| plain & !matches!(byte, b'"' | b',' | b'\n' | b'\r')) {
        row.extend_from_slice(bytes);
        return;
    }
    row.push(b'"');
    for (index, part) in bytes.split(|byte| *byte == b'"').enumerate() {
        if index > 0 {
            row.extend_from_slice(b"\"\"");
        }
        row.extend_from_slice(part);
    }
    row.push(b'"');
}
