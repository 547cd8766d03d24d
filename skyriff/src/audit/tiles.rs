//! The leaves in the tiles of a shard's tree, from a folder as C2SP `tlog-tiles` lays it out: `SHARD/tile/0/000`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use skyriff_domain::{ShardCount, ShardId};
use skyriff_proof::{Hash, Tile, tile::WIDTH};

/// The leaves of one shard, a tile at a time.
pub struct Leaves {
    folder: PathBuf,
    /// Which tile is in hand.
    index: Option<u64>,
    hashes: Vec<Hash>,
}

impl Leaves {
    /// Whether a folder has tiles of any shard.
    pub fn are_in(folder: &Path, count: ShardCount) -> bool {
        count.shards().any(|shard| folder.join(shard.to_string()).join("tile").is_dir())
    }

    /// Those below a folder with a folder for each shard.
    pub fn of(folder: &Path, shard: ShardId) -> Self {
        Self { folder: folder.join(shard.to_string()), index: None, hashes: Vec::new() }
    }

    /// A leaf, counted from 0; nothing when no tile has it. They are asked for in order.
    pub fn leaf(&mut self, leaf: u64) -> Option<Hash> {
        let (index, place) = (leaf / u64::from(WIDTH), usize::try_from(leaf % u64::from(WIDTH)).ok()?);
        if self.index != Some(index) {
            self.index = Some(index);
            self.hashes = self.read(index).unwrap_or_default();
        }
        self.hashes.get(place).copied()
    }

    /// The full tile, or else the widest partial one.
    fn read(&self, index: u64) -> Option<Vec<Hash>> {
        let full = Tile::new(0, index, WIDTH)?;
        if let Ok(bytes) = fs::read(self.folder.join(full.to_string())) {
            return full.hashes(&bytes).ok();
        }
        let partial = fs::read_dir(self.folder.join(format!("{full}.p"))).ok()?;
        let width = partial.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).max()?;
        let tile = Tile::new(0, index, width)?;
        tile.hashes(&fs::read(self.folder.join(tile.to_string())).ok()?).ok()
    }
}
