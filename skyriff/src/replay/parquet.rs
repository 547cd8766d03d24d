//! A folder of Parquet files, in the layout that DuckDB, pandas and Spark read as one table:
//!
//! ```text
//! events.parquet/day=2026-01-31/type=points_account.checked_in/part-0003-0000000000500000-0000.parquet
//! ```
//!
//! Day (of `occurred_at`, UTC) and type are columns that are only in the names of the folders. A part is of one round, and
//! named after the round's first event, so writing a round again after an interruption writes the same files again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use parquet::{
    basic::Compression,
    column::writer::{ColumnWriter, ColumnWriterImpl},
    data_type::{ByteArray, ByteArrayType},
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::{
        parser::parse_message_type,
        types::{ColumnPath, Type},
    },
};
use skyriff_domain::LogPosition;
use skyriff_read_side::events::{
    Exported,
    exported::{day_of, write_day},
};

/// What may wait in memory to be written, in bytes. Beyond it, the largest part is written and another is begun.
const WAITING_BYTES_MAX: usize = 128 * 1_024 * 1_024;
/// Events of one part.
const PART_EVENTS_MAX: usize = 262_144;
/// What an event takes beside its texts, roughly.
const EVENT_BYTES: usize = 64;

const SCHEMA: &str = "message event {
    REQUIRED INT32 shard;
    REQUIRED INT64 position;
    REQUIRED BYTE_ARRAY version (STRING);
    REQUIRED BYTE_ARRAY stream (STRING);
    REQUIRED INT64 sequence;
    REQUIRED INT64 occurred_at (TIMESTAMP(MICROS, true));
    REQUIRED INT64 recorded_at (TIMESTAMP(MICROS, true));
    REQUIRED BYTE_ARRAY actor (STRING);
    REQUIRED BYTE_ARRAY command_id (STRING);
    OPTIONAL BYTE_ARRAY causation (STRING);
    REQUIRED BYTE_ARRAY data (STRING);
}";
/// Columns whose values hardly ever repeat: a dictionary would be made in vain.
const UNIQUE: [&str; 4] = ["position", "command_id", "causation", "data"];
/// Columns of ids, which hardly get any smaller.
const RANDOM: [&str; 2] = ["command_id", "causation"];

pub struct Folder {
    path: PathBuf,
    schema: Arc<Type>,
    properties: Arc<WriterProperties>,
    /// By day and type.
    parts: BTreeMap<i64, Vec<Part>>,
    waiting_bytes: usize,
    /// Memory of the part that was written last, for one that begins.
    spare: Memory,
    /// The first event of the round that passed.
    first: Option<LogPosition>,
}

/// What was asked of the system and is not in use.
#[derive(Default)]
struct Memory {
    columns: Option<Columns>,
    values: Vec<ByteArray>,
}

/// Events of one day and type that wait to be written.
struct Part {
    day: i64,
    aggregate_type: String,
    event_type: String,
    /// Files of this round that were written already.
    files: u32,
    columns: Columns,
}

#[derive(Default)]
struct Columns {
    shard: Vec<i32>,
    position: Vec<i64>,
    sequence: Vec<i64>,
    occurred_at: Vec<i64>,
    recorded_at: Vec<i64>,
    version: Texts,
    stream: Texts,
    actor: Texts,
    command_id: Texts,
    causation: Texts,
    has_causation: Vec<i16>,
    data: Texts,
    bytes: usize,
}

/// Texts one after the other, and where each ends.
#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, parts: &[&str]) -> usize {
        let before = self.bytes.len();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part.as_bytes()));
        self.ends.push(self.bytes.len());
        self.bytes.len() - before
    }

    /// Write them all, and have their memory for the next ones: most of what it takes to ask the system for memory is
    /// that the system clears it.
    fn write(
        &mut self,
        column: &mut ColumnWriterImpl<'_, ByteArrayType>,
        levels: Option<&[i16]>,
        values: &mut Vec<ByteArray>,
    ) -> Result<()> {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut start = 0;
        for end in self.ends.drain(..) {
            values.push(ByteArray::from(bytes.slice(start..end)));
            start = end;
        }
        column.write_batch(values, levels, None)?;
        values.clear();
        self.bytes = bytes.try_into_mut().map(Vec::from).unwrap_or_default();
        self.bytes.clear();
        Ok(())
    }
}

impl Columns {
    fn push(&mut self, event: &Exported<'_>) -> usize {
        self.shard.push(i32::from(event.at.shard.0));
        self.position.push(event.at.position.0);
        self.sequence.push(event.sequence);
        self.occurred_at.push(event.occurred_at_us);
        self.recorded_at.push(event.recorded_at_us);
        let mut bytes = EVENT_BYTES;
        bytes += self.version.push(&[event.version]);
        bytes += self.stream.push(&[event.aggregate_type, "/", event.aggregate_id]);
        bytes += self.actor.push(&[&event.actor]);
        bytes += self.command_id.push(&[&event.command_id]);
        self.has_causation.push(i16::from(event.causation.is_some()));
        if let Some(causation) = &event.causation {
            bytes += self.causation.push(&[causation]);
        }
        bytes += self.data.push(&[&event.data]);
        self.bytes += bytes;
        bytes
    }
}

impl Folder {
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        for column in RANDOM {
            properties = properties.set_column_compression(ColumnPath::from(column), Compression::UNCOMPRESSED);
        }
        for column in UNIQUE {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(column), false);
        }
        for column in ["data", "command_id", "causation"] {
            properties = properties.set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::None);
        }
        Ok(Self {
            path: path.to_owned(),
            schema: Arc::new(parse_message_type(SCHEMA)?),
            properties: Arc::new(properties.build()),
            parts: BTreeMap::new(),
            waiting_bytes: 0,
            spare: Memory::default(),
            first: None,
        })
    }

    pub fn write(&mut self, event: &Exported<'_>) -> Result<()> {
        let first = *self.first.get_or_insert(event.at);
        let day = day_of(event.occurred_at_us);
        let parts = self.parts.entry(day).or_default();
        let is_its = |part: &Part| part.event_type == event.event_type && part.aggregate_type == event.aggregate_type;
        let index = match parts.iter().position(is_its) {
            Some(index) => index,
            None => {
                let (aggregate_type, event_type) = (event.aggregate_type.to_owned(), event.event_type.to_owned());
                parts.push(Part { day, aggregate_type, event_type, files: 0, columns: Columns::default() });
                parts.len() - 1
            }
        };
        let Some(part) = parts.get_mut(index) else { return Ok(()) };
        if part.columns.position.is_empty()
            && let Some(memory) = self.spare.columns.take()
        {
            part.columns = memory;
        }
        self.waiting_bytes += part.columns.push(event);
        if part.columns.position.len() >= PART_EVENTS_MAX {
            self.waiting_bytes -= part.columns.bytes;
            part.write(&self.path, first, &self.schema, &self.properties, &mut self.spare)?;
        }
        while self.waiting_bytes > WAITING_BYTES_MAX {
            let largest = self.parts.values_mut().flatten().max_by_key(|part| part.columns.bytes);
            let Some(part) = largest else { break };
            self.waiting_bytes -= part.columns.bytes;
            part.write(&self.path, first, &self.schema, &self.properties, &mut self.spare)?;
        }
        Ok(())
    }

    /// Write what waits: the round is over.
    pub fn checkpoint(&mut self) -> Result<()> {
        let Some(first) = self.first.take() else { return Ok(()) };
        for mut part in std::mem::take(&mut self.parts).into_values().flatten() {
            if !part.columns.position.is_empty() {
                part.write(&self.path, first, &self.schema, &self.properties, &mut self.spare)?;
            }
        }
        self.waiting_bytes = 0;
        Ok(())
    }
}

impl Part {
    /// One file with one row group, there as a whole or not at all.
    fn write(
        &mut self,
        folder: &Path,
        first: LogPosition,
        schema: &Arc<Type>,
        properties: &Arc<WriterProperties>,
        memory: &mut Memory,
    ) -> Result<()> {
        let mut day = Vec::new();
        write_day(self.day, &mut day);
        let folder = folder
            .join(format!("day={}", String::from_utf8(day)?))
            .join(format!("type={}.{}", self.aggregate_type, self.event_type));
        fs::create_dir_all(&folder)?;
        let name = format!("part-{:04}-{:016}-{:04}.parquet", first.shard.0, first.position.0, self.files);
        self.files += 1;
        let half_made = folder.join(format!("{name}.half-made"));
        let file = File::create(&half_made).with_context(|| format!("cannot write {}", half_made.display()))?;
        let mut writer = SerializedFileWriter::new(file, Arc::clone(schema), Arc::clone(properties))?;
        let mut columns = std::mem::take(&mut self.columns);
        columns.write(&mut writer, &mut memory.values)?;
        memory.columns = Some(columns);
        writer.finish()?;
        writer.inner().sync_data()?;
        fs::rename(&half_made, folder.join(name))?;
        Ok(())
    }
}

impl Columns {
    /// Write them all; what is left is their memory.
    fn write(&mut self, writer: &mut SerializedFileWriter<File>, values: &mut Vec<ByteArray>) -> Result<()> {
        let mut group = writer.next_row_group()?;
        // In the order of the schema.
        let mut texts = [
            &mut self.version,
            &mut self.stream,
            &mut self.actor,
            &mut self.command_id,
            &mut self.causation,
            &mut self.data,
        ]
        .into_iter();
        let mut numbers =
            [&mut self.position, &mut self.sequence, &mut self.occurred_at, &mut self.recorded_at].into_iter();
        while let Some(mut column) = group.next_column()? {
            match column.untyped() {
                ColumnWriter::Int32ColumnWriter(column) => {
                    column.write_batch(&self.shard, None, None)?;
                }
                ColumnWriter::Int64ColumnWriter(column) => {
                    let numbers = numbers.next().context("the schema has more numbers")?;
                    column.write_batch(numbers, None, None)?;
                    numbers.clear();
                }
                ColumnWriter::ByteArrayColumnWriter(column) => {
                    let optional = column.get_descriptor().max_def_level() > 0;
                    let levels = optional.then_some(self.has_causation.as_slice());
                    texts.next().context("the schema has more texts")?.write(column, levels, values)?;
                }
                ColumnWriter::BoolColumnWriter(_)
                | ColumnWriter::Int96ColumnWriter(_)
                | ColumnWriter::FloatColumnWriter(_)
                | ColumnWriter::DoubleColumnWriter(_)
                | ColumnWriter::FixedLenByteArrayColumnWriter(_) => anyhow::bail!("the schema has no such column"),
            };
            column.close()?;
        }
        group.close()?;
        self.shard.clear();
        self.has_causation.clear();
        self.bytes = 0;
        Ok(())
    }
}
