//! The pieces in which a tree is kept: tiles, as C2SP `tlog-tiles` lays them out.
//!
//! A tile is up to 256 hashes that stand side by side in the tree. Those of level 0 are leaves; each hash of level `L + 1` is
//! the root of a full tile of level `L`. What lies between is computed. A full tile never changes; the last one of a level may
//! be partial and is kept under a name of its own for each width that a checkpoint needs.
//!
//! ```text
//! tile/<level>/<index>           256 hashes, 8,192 bytes
//! tile/<level>/<index>.p/<width> 1 to 255 hashes
//! ```
//!
//! The index is written in groups of three digits, all but the last after an `x`: 1234067 is `x001/x234/067`. So no name is
//! both a file and a folder.

use std::{fmt, str::FromStr};

use crate::Hash;

/// Hashes in a full tile.
pub const WIDTH: u16 = 256;
/// Levels of a binary tree that a tile spans: 256 is 2⁸.
pub const HEIGHT: u32 = 8;
/// Levels of tiles that a tree may have. The format has names for 64; a tree with less than 2⁶⁴ leaves ends here.
pub const LEVELS: u8 = 8;

/// The name of a tile, as it is in a tree of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    level: u8,
    index: u64,
    width: u16,
}

/// A path is not that of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path of a tile is tile/LEVEL/INDEX or tile/LEVEL/INDEX.p/WIDTH, as in tile/0/x001/234.p/5")]
pub struct NotATile;

/// What is kept under the name of a tile does not have its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tile} has {bytes} bytes, which is not {} hashes", .tile.width)]
pub struct WrongSize {
    /// Which.
    pub tile: Tile,
    /// What it has.
    pub bytes: usize,
}

/// How many hashes a level has in a tree of `size` leaves.
pub(crate) fn row(size: u64, level: u8) -> u64 {
    size.checked_shr(HEIGHT * u32::from(level)).unwrap_or(0)
}

impl Tile {
    /// Nothing when no tree of less than 2⁶⁴ leaves has such a tile.
    pub fn new(level: u8, index: u64, width: u16) -> Option<Self> {
        let exists = level < LEVELS && (1..=WIDTH).contains(&width);
        let first_leaf = index.checked_mul(u64::from(WIDTH))?.checked_shl(HEIGHT * u32::from(level))?;
        let exists = exists && row(first_leaf, level) == index * u64::from(WIDTH);
        exists.then_some(Self { level, index, width })
    }

    /// The tile as a tree of `size` leaves has it: full, or as wide as the tree reaches; nothing when the tree ends before.
    pub fn of_tree(level: u8, index: u64, size: u64) -> Option<Self> {
        let after = row(size, level).checked_sub(index.checked_mul(u64::from(WIDTH))?)?;
        Self::new(level, index, u16::try_from(after).unwrap_or(WIDTH).min(WIDTH))
    }

    /// The tiles that are new, or wider than before, when a tree grows from `from` leaves to `to`: what has to be kept
    /// before a checkpoint of `to`. From 0 they are all tiles of the tree. Level by level, each from left to right.
    pub fn grown(from: u64, to: u64) -> impl Iterator<Item = Self> {
        (0..LEVELS).flat_map(move |level| {
            let (before, after) = (row(from, level), row(to, level));
            let first = before / u64::from(WIDTH);
            let end = if before < after { after.div_ceil(u64::from(WIDTH)) } else { first };
            (first..end).filter_map(move |index| Self::of_tree(level, index, to))
        })
    }

    /// The tiles that are partial in a tree of `size` leaves, at most one of each level: with them a tree goes on.
    pub fn edge(size: u64) -> impl Iterator<Item = Self> {
        (0..LEVELS).filter_map(move |level| {
            Self::of_tree(level, row(size, level) / u64::from(WIDTH), size).filter(|tile| !tile.is_full())
        })
    }

    /// 0 for tiles of leaves.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Which of its level, counted from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many hashes it has: 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it has all its hashes, and so never changes.
    pub fn is_full(&self) -> bool {
        self.width == WIDTH
    }

    /// The same when the tree has grown. Where a partial tile is no longer kept, this one begins with the same hashes.
    pub fn full(self) -> Self {
        Self { width: WIDTH, ..self }
    }

    /// The hashes in what is kept under its name: one after the other, nothing else.
    ///
    /// # Errors
    /// [`WrongSize`].
    pub fn hashes(&self, bytes: &[u8]) -> Result<Vec<Hash>, WrongSize> {
        let (hashes, rest) = bytes.as_chunks::<{ Hash::BYTES }>();
        if rest.is_empty() && hashes.len() == usize::from(self.width) {
            Ok(hashes.iter().copied().map(Hash).collect())
        } else {
            Err(WrongSize { tile: *self, bytes: bytes.len() })
        }
    }
}

/// What is kept under the name of a tile with these hashes.
pub fn bytes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// Its path below the prefix of its tree.
impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/", self.level)?;
        let mut groups = vec![self.index % 1_000];
        let mut rest = self.index / 1_000;
        while rest > 0 {
            groups.push(rest % 1_000);
            rest /= 1_000;
        }
        for group in groups.iter().skip(1).rev() {
            write!(f, "x{group:03}/")?;
        }
        write!(f, "{:03}", self.index % 1_000)?;
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

impl FromStr for Tile {
    type Err = NotATile;

    /// Only of a path as [`fmt::Display`] writes it: every tile has one.
    fn from_str(path: &str) -> Result<Self, NotATile> {
        let (level, rest) = path.strip_prefix("tile/").and_then(|rest| rest.split_once('/')).ok_or(NotATile)?;
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => (index, width.parse().map_err(|_| NotATile)?),
            None => (rest, WIDTH),
        };
        let digits: String = index.split('/').map(|group| group.trim_start_matches('x')).collect();
        let (level, index) = (level.parse().map_err(|_| NotATile)?, digits.parse().map_err(|_| NotATile)?);
        let tile = Self::new(level, index, width).ok_or(NotATile)?;
        if tile.to_string() == path { Ok(tile) } else { Err(NotATile) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;

    fn paths(tiles: impl Iterator<Item = Tile>) -> Vec<String> {
        tiles.map(|tile| tile.to_string()).collect()
    }

    #[test]
    fn a_path_is_read_as_it_is_written_and_nothing_else_is_a_path() {
        for (level, index, width, path) in [
            (0, 0, 256, "tile/0/000"),
            (0, 0, 1, "tile/0/000.p/1"),
            (1, 999, 256, "tile/1/999"),
            (0, 1_000, 256, "tile/0/x001/000"),
            // The example of the specification.
            (0, 1_234_067, 256, "tile/0/x001/x234/067"),
            (3, 1_234_067, 255, "tile/3/x001/x234/067.p/255"),
            (0, (1 << 56) - 1, 256, "tile/0/x072/x057/x594/x037/x927/935"),
            (7, 0, 3, "tile/7/000.p/3"),
        ] {
            let tile = Tile::new(level, index, width).unwrap();
            assert_eq!((tile.to_string().as_str(), path.parse()), (path, Ok(tile)));
        }
        for bad in [
            "",
            "tile/0/",
            "tile/0",
            "tile//000",
            "tile/8/000",
            "tile/00/000",
            "tile/+1/000",
            "tile/-1/000",
            "tile/entries/000",
            "/tile/0/000",
            "tile/0/0",
            "tile/0/00",
            "tile/0/0000",
            "tile/0/x000",
            "tile/0/x000/001",
            "tile/0/001/234",
            "tile/0/x001/x234",
            "tile/0/xx001/234",
            "tile/0/x001x234",
            "tile/0/x1/234",
            "tile/0/+01",
            "tile/0/000/",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/05",
            "tile/0/000.p/",
            "tile/0/000.p/5/",
            "tile/0/000.p/5.p/5",
            "tile/0/x001.p/5/234",
            "tile/0/../000",
            "tile/7/001",
            "tile/0/x072/x057/x594/x037/x927/936",
            "tile/0/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(bad.parse::<Tile>(), Err(NotATile), "{bad}");
        }
    }

    #[test]
    fn a_tree_has_the_tiles_that_the_specification_counts() {
        let of = |size| Tile::grown(0, size);
        let count = |level, full| of(70_000).filter(|tile| tile.level == level && tile.is_full() == full).count();
        assert_eq!(
            [count(0, true), count(0, false), count(1, true), count(1, false), count(2, false)],
            [273, 1, 1, 1, 1]
        );
        assert_eq!(of(70_000).count(), 277);
        assert_eq!(paths(Tile::edge(70_000)), ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]);
        assert_eq!(paths(of(256)), ["tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(paths(of(0)), Vec::<String>::new());
        assert_eq!(paths(Tile::edge(65_536)), ["tile/2/000.p/1"]);
    }

    #[test]
    fn growing_changes_what_is_at_the_edge_and_nothing_else() {
        for (from, to, changed) in [
            (0, 1, vec!["tile/0/000.p/1"]),
            (1, 1, vec![]),
            (2, 1, vec![]),
            (1, 5, vec!["tile/0/000.p/5"]),
            (255, 256, vec!["tile/0/000", "tile/1/000.p/1"]),
            (256, 257, vec!["tile/0/001.p/1"]),
            (300, 700, vec!["tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2"]),
            (65_535, 65_536, vec!["tile/0/255", "tile/1/000", "tile/2/000.p/1"]),
        ] {
            assert_eq!(paths(Tile::grown(from, to)), changed, "{from} to {to}");
        }
    }

    #[test]
    fn what_is_kept_has_the_size_that_the_name_says() {
        let tile = Tile::new(0, 0, 2).unwrap();
        let hashes = [Hash([1; 32]), Hash([2; 32])];
        assert_eq!(tile.hashes(&bytes(&hashes)), Ok(hashes.to_vec()));
        for size in [0, 32, 63, 65, 96] {
            assert_eq!(tile.hashes(&vec![0; size]), Err(WrongSize { tile, bytes: size }));
        }
        assert_eq!(Tile::new(0, 0, 256).unwrap().hashes(&[7; 8_192]).unwrap().len(), 256);
    }

    proptest! {
        #[test]
        fn every_tile_of_every_tree_has_a_path(size in 0..=u64::MAX, level in 0..LEVELS, at: Index) {
            // Anywhere in the row, its last tile among them.
            let tiles = usize::try_from(row(size, level) / 256).unwrap();
            let index = u64::try_from(at.index(tiles + 1)).unwrap();
            for index in [index, row(size, level) / 256] {
                if let Some(tile) = Tile::of_tree(level, index, size) {
                    prop_assert_eq!(tile.to_string().parse(), Ok(tile));
                    prop_assert!(index * 256 + u64::from(tile.width) <= row(size, level));
                }
            }
        }

        #[test]
        fn growing_in_steps_is_growing_at_once(a in 0_u64..200_000, b in 0_u64..200_000, c in 0_u64..200_000) {
            let mut sizes = [a, b, c];
            sizes.sort_unstable();
            let [a, b, c] = sizes;
            // What is full stays; what is partial is superseded by the last step.
            let full = |tiles: &mut dyn Iterator<Item = Tile>| tiles.filter(Tile::is_full).collect::<Vec<_>>();
            let mut steps = full(&mut Tile::grown(a, b).chain(Tile::grown(b, c)));
            steps.sort_unstable();
            let mut once = full(&mut Tile::grown(a, c));
            once.sort_unstable();
            prop_assert_eq!(steps, once);
            for tile in Tile::edge(c) {
                let holds = Tile::grown(b, c).any(|grown| grown == tile) || Tile::edge(b).any(|kept| kept == tile);
                prop_assert!(holds, "{} of {} is neither new nor kept", tile, c);
            }
        }
    }
}
