//! An auditor's export: whole rows, as they are stored, so that leaves and trees can be computed from it for ever.
//!
//! ```text
//! FOLDER/export.json            {"format": 1, "shard_count": 16, "complete": true, "heads": {"0": 1042, …}}
//! FOLDER/shard-0000.ndjson.gz   a row a line, position 1, 2, 3 … up to the shard's head
//! ```
//!
//! A line is the `event` of a proof ([`EventRow`]): every column of the row; `payload` and `metadata` are strings, since what
//! is hashed is their text, and times are microseconds of Unix time. Unlike what `skyriff replay` writes for analysts nothing is
//! masked: free words and who asked are in it. What is sealed under a person's key stays sealed, so it cannot be read any more
//! from the day on which the key is destroyed. Files are readable by their owner only.
//!
//! The heads are fixed when an export begins. A shard's file has its name when it is whole, so whatever interrupts an export,
//! the same command goes on with the next shard.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, Position, ShardId};
use skyriff_postgres::databases;
use skyriff_proof::{EventRow, copy::Columns};
use sqlx::Connection;
use tokio::sync::mpsc;

use super::{
    findings::Findings,
    report, rows,
    rows::{Of, PAGES},
};
use crate::config::{DatabaseArguments, Databases, Place};

/// Raised when the files mean something else.
const FORMAT: u32 = 1;
/// A longer line is no row: payloads are a few kilobytes at most.
const LINE_BYTES_MAX: u64 = 64 * 1_024 * 1_024;
/// Shards that are written side by side.
const AT_ONCE: usize = 2;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
    /// The folder to make, or to go on with after an interruption.
    #[arg(long)]
    out: PathBuf,
    /// Read from replicas of the event store.
    #[arg(long)]
    replica: bool,
}

/// What an export holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    pub shard_count: u16,
    complete: bool,
    /// The last position of each shard.
    pub heads: BTreeMap<ShardId, Position>,
}

impl Manifest {
    fn place(folder: &Path) -> PathBuf {
        folder.join("export.json")
    }

    /// Of an export that is whole.
    pub fn of_whole(folder: &Path) -> Result<Self> {
        let manifest = Self::read(folder)?;
        ensure!(manifest.complete, "the export in {} is not complete; run the same export again", folder.display());
        Ok(manifest)
    }

    fn read(folder: &Path) -> Result<Self> {
        let place = Self::place(folder);
        let text = fs::read_to_string(&place).with_context(|| format!("cannot read {}", place.display()))?;
        let manifest: Self =
            serde_json::from_str(&text).with_context(|| format!("{} does not describe an export", place.display()))?;
        ensure!(manifest.format == FORMAT, "the export has format {}, and not {FORMAT}", manifest.format);
        Ok(manifest)
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let place = Self::place(folder);
        let half_made = place.with_extension("part");
        let mut file = create(&half_made)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&half_made, &place).with_context(|| format!("cannot write {}", place.display()))
    }
}

fn create(place: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(place);
    file.with_context(|| format!("cannot write {}", place.display()))
}

fn file_of(folder: &Path, shard: ShardId) -> PathBuf {
    folder.join(format!("shard-{:04}.ndjson.gz", shard.0))
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { databases, out, replica } = arguments;
    let databases = databases.databases()?;
    let of = if replica { Of::Replica } else { Of::Primary };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&out)
        .with_context(|| format!("cannot make {}", out.display()))?;
    let mut manifest = if Manifest::place(&out).exists() {
        let begun = Manifest::read(&out)?;
        ensure!(!begun.complete, "the export in {} is complete; name another folder", out.display());
        ensure!(begun.shard_count == databases.shard_count.get(), "{} is an export of another store", out.display());
        eprintln!("going on with an interrupted export");
        begun
    } else {
        let heads = heads(&databases, of).await?;
        let begun = Manifest { format: FORMAT, shard_count: databases.shard_count.get(), complete: false, heads };
        begun.write(&out)?;
        begun
    };
    let bar = report::bar("writing", manifest.heads.values().map(|head| head.0).sum())?;
    let shards = stream::iter(&manifest.heads).map(|(shard, head)| {
        let (out, bar, shard, head) = (out.clone(), bar.clone(), *shard, *head);
        let place = databases.event_store.iter().find(|place| place.shards.contains(&shard));
        async move {
            let place = place.with_context(|| format!("shard {shard} has no database"))?;
            export(place, of, shard, head, &out, bar).await.with_context(|| format!("shard {shard}"))
        }
    });
    shards.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    bar.finish_and_clear();
    manifest.complete = true;
    manifest.write(&out)?;
    let events: i64 = manifest.heads.values().map(|head| head.0).sum();
    println!("{events} events in {}; skyriff audit verify --export {} checks them", out.display(), out.display());
    Ok(ExitCode::SUCCESS)
}

/// The last position of every shard.
pub async fn heads(databases: &Databases, of: Of) -> Result<BTreeMap<ShardId, Position>> {
    let mut heads = BTreeMap::new();
    for place in &databases.event_store {
        let mut connection = rows::connect(place, of).await.context("the event store")?;
        databases::check_shard_count(&mut connection, databases.shard_count).await?;
        for shard in &place.shards {
            heads.insert(*shard, rows::head(&mut connection, *shard).await?);
        }
        connection.close().await?;
    }
    Ok(heads)
}

async fn export(place: &Place, of: Of, shard: ShardId, head: Position, out: &Path, bar: ProgressBar) -> Result<()> {
    let name = file_of(out, shard);
    if name.exists() {
        bar.inc(u64::try_from(head.0)?);
        return Ok(());
    }
    let mut connection = rows::connect(place, of).await.context("the event store")?;
    let found = rows::head(&mut connection, shard).await?;
    ensure!(found >= head, "the log ends at {found}, and the export is up to {head}");
    let half_made = name.with_extension("part");
    let file = create(&half_made)?;
    let (pages, received) = mpsc::channel(PAGES);
    let writing = tokio::task::spawn_blocking(move || write(file, received, shard, head, &bar));
    let read = rows::read(&mut connection, shard, Position::START, head, &pages).await;
    drop(pages);
    // A writer that fails stops the reader, so its reason is the one to tell.
    writing.await??;
    read?;
    connection.close().await?;
    fs::rename(&half_made, &name).with_context(|| format!("cannot write {}", name.display()))
}

fn write(
    file: File,
    mut pages: mpsc::Receiver<Vec<Bytes>>,
    shard: ShardId,
    head: Position,
    bar: &ProgressBar,
) -> Result<()> {
    let mut out = GzEncoder::new(BufWriter::new(file), Compression::fast());
    let mut last = Position::START;
    while let Some(page) = pages.blocking_recv() {
        for row in &page {
            let at = LogPosition { shard, position: last.next() };
            let row = Columns::parse(row)
                .map(EventRow::from)
                .with_context(|| format!("the row at {at} has other columns than ours"))?;
            // An export that leaves something out would be taken for whole.
            ensure!(row.at() == at, "the event at {at} is not there; {} follows", row.at());
            serde_json::to_writer(&mut out, &row)?;
            out.write_all(b"\n")?;
            last = row.position;
        }
        bar.inc(u64::try_from(page.len())?);
    }
    ensure!(last == head, "the log ends at {last}, and the export is up to {head}");
    let file = out.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}

/// The rows of a shard in an export, one after the other.
pub struct Rows {
    shard: ShardId,
    lines: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    /// Of a comparison: nothing more can be read, which was told.
    over: bool,
}

impl Rows {
    pub fn open(folder: &Path, shard: ShardId) -> Result<Self> {
        let place = file_of(folder, shard);
        let file = File::open(&place).with_context(|| format!("cannot read {}", place.display()))?;
        let lines = Box::new(BufReader::with_capacity(1 << 16, GzDecoder::new(BufReader::new(file))));
        Ok(Self { shard, lines, line: Vec::new(), over: false })
    }

    /// The next, or that there is none.
    pub fn next(&mut self) -> Result<Option<EventRow<'_>>> {
        self.line.clear();
        let read = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
        read.context("the file is damaged")?;
        match self.line.strip_suffix(b"\n") {
            _ if self.line.is_empty() => Ok(None),
            None => bail!("the last line is cut off, or too long"),
            Some(line) => Ok(Some(serde_json::from_slice(line).context("the line is not a row of the log")?)),
        }
    }

    /// As evidence: what of the same row is another than it was when it was exported.
    pub fn compare(&mut self, row: &EventRow<'_>, findings: &mut Findings) {
        if self.over {
            return;
        }
        let earlier = match self.next() {
            Ok(Some(earlier)) => earlier,
            Ok(None) => return self.over = true,
            Err(error) => {
                let what = format!("the earlier export cannot be compared any further: {error:#}");
                findings.at(row.at(), what);
                return self.over = true;
            }
        };
        let differing = differing(&earlier, row);
        if !differing.is_empty() {
            findings.at(row.at(), format!("not as in the earlier export: {}", differing.join(", ")));
        }
    }

    /// The log ends at `last`: so must what was exported, at the latest.
    pub fn end(&mut self, last: Position, findings: &mut Findings) {
        let shard = self.shard;
        if !self.over && matches!(self.next(), Ok(Some(_))) {
            findings
                .of(shard, format!("the earlier export has events after {last}, where the log ends: they are gone"));
        }
    }
}

/// Columns of which the two rows have different values.
fn differing(earlier: &EventRow<'_>, now: &EventRow<'_>) -> Vec<&'static str> {
    let columns = [
        ("shard", earlier.shard == now.shard),
        ("position", earlier.position == now.position),
        ("aggregate_type", earlier.aggregate_type == now.aggregate_type),
        ("aggregate_id", earlier.aggregate_id == now.aggregate_id),
        ("sequence", earlier.sequence == now.sequence),
        ("event_type", earlier.event_type == now.event_type),
        ("event_version", earlier.event_version == now.event_version),
        ("payload", earlier.payload == now.payload),
        ("metadata", earlier.metadata == now.metadata),
        ("occurred_at", earlier.occurred_at_us == now.occurred_at_us),
        ("recorded_at", earlier.recorded_at_us == now.recorded_at_us),
    ];
    columns.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}
