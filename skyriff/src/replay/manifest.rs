//! What an export holds, and how far it is: a JSON file beside it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyriff_domain::{Position, ShardCount, ShardId};
use skyriff_read_side::events::{Filter, cursor::Positions};

use super::output::Format;

/// What an export holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Whether it is all there.
    pub complete: bool,
    pub format: Format,
    pub filter: Filter,
    /// Of the whole store.
    pub shard_count: u16,
    /// Positions between two checkpoints.
    pub segment: i64,
    /// Of a single file: how long it was at the last checkpoint.
    pub bytes: u64,
    pub shards: BTreeMap<ShardId, Place>,
}

/// What an export holds of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The last position that belongs to the export.
    pub upto: Position,
    /// The last position that was read.
    pub read: Position,
    /// How many events passed the filter.
    pub events: u64,
    /// SHA-256 over the events as lines of NDJSON, whatever the format of the export. With more than one segment: over the
    /// hash of the segments before, in hexadecimal, and the lines of the last.
    pub sha256: String,
}

/// The hash of one segment, as it grows.
pub struct Hash {
    sha256: Sha256,
    events: u64,
}

impl Hash {
    pub fn add(&mut self, line: &[u8]) {
        self.sha256.update(line);
        self.events += 1;
    }
}

impl Manifest {
    pub fn new(format: Format, filter: Filter, count: ShardCount, segment: i64, upto: &Positions) -> Self {
        let place = |upto: Position| Place { upto, read: Position::START, events: 0, sha256: String::new() };
        let shards = upto.iter().map(|(shard, upto)| (*shard, place(*upto))).collect();
        Self { complete: false, format, filter, shard_count: count.get(), segment, bytes: 0, shards }
    }

    /// Where the manifest of an output is.
    pub fn beside(out: &Path) -> PathBuf {
        let mut name = out.as_os_str().to_owned();
        name.push(".manifest.json");
        PathBuf::from(name)
    }

    pub fn read(place: &Path) -> Result<Self> {
        let text = fs::read(place).with_context(|| format!("cannot read {}", place.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no manifest of an export", place.display()))
    }

    /// All of it or nothing.
    pub fn write(&self, place: &Path) -> Result<()> {
        let half_made = place.with_extension("json.half-made");
        let mut file = File::create(&half_made).with_context(|| format!("cannot write {}", half_made.display()))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(half_made, place)?;
        Ok(())
    }

    /// Whether going on with this one gives what the other asks for. Positions only count when they were asked for.
    pub fn asks_the_same(&self, other: &Self, positions: bool) -> bool {
        (self.format, &self.filter, self.shard_count, self.segment)
            == (other.format, &other.filter, other.shard_count, other.segment)
            && self.shards.keys().eq(other.shards.keys())
            && (!positions || self.upto() == other.upto())
    }

    pub fn upto(&self) -> Positions {
        self.shards.iter().map(|(shard, place)| (*shard, place.upto)).collect()
    }

    pub fn place(&self, shard: ShardId) -> Result<&Place> {
        self.shards.get(&shard).with_context(|| format!("shard {shard} is not part of this export"))
    }

    /// All positions there are to read.
    pub fn positions(&self) -> u64 {
        self.shards.values().map(|place| u64::try_from(place.upto.0).unwrap_or_default()).sum()
    }

    pub fn positions_read(&self) -> u64 {
        self.shards.values().map(|place| u64::try_from(place.read.0).unwrap_or_default()).sum()
    }

    pub fn events(&self) -> u64 {
        self.shards.values().map(|place| place.events).sum()
    }

    /// The hash of a shard's next segment.
    pub fn hash(&self, shard: ShardId) -> Result<Hash> {
        let before = &self.place(shard)?.sha256;
        Ok(Hash { sha256: Sha256::new_with_prefix(before), events: 0 })
    }

    /// A segment was written.
    pub fn advance(&mut self, shard: ShardId, read: Position, hash: Hash) -> Result<()> {
        let place = self.shards.get_mut(&shard).with_context(|| format!("shard {shard} is not part of this export"))?;
        place.read = read;
        place.events += hash.events;
        place.sha256 = hash.sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(())
    }

    /// The shards that hold other events than another export's.
    pub fn differ(&self, other: &Self) -> Result<Vec<String>> {
        ensure!(self.filter == other.filter, "the exports have other filters, so their events cannot be compared");
        let differ = self.shards.iter().filter(|(shard, place)| other.shards.get(shard) != Some(place));
        Ok(differ.map(|(shard, _)| shard.to_string()).collect())
    }
}
