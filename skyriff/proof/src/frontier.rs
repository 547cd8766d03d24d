//! A tree that grows leaf by leaf, in bounded memory.

use std::collections::BTreeMap;

use crate::{
    Hash, Tile,
    tile::{LEVELS, WIDTH},
    tree::{Head, MissingTile, Tiles, join, parts_of_row, root_of_complete},
};

/// The right edge of a tree: the hashes of its partial tiles, which is all that appending and the root take. At most 255
/// hashes for each level of tiles: 65 KB for any tree, 24 KB up to 16 million leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// By level.
    rows: [Vec<Hash>; 8],
}

/// Tiles that were kept do not lead to the root that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotResumed {
    /// One is not there.
    #[error(transparent)]
    Missing(#[from] MissingTile),
    /// They are there, and were changed or are those of another tree.
    #[error("the tiles of the tree of {} leaves lead to the root {found} instead of {}", .signed.size, .signed.root)]
    Root {
        /// What was signed.
        signed: Head,
        /// What they lead to.
        found: Hash,
    },
}

impl Frontier {
    /// A tree without leaves.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Go on where a tree was: from the tiles at its edge ([`Tile::edge`]), which must lead to the root that was signed.
    ///
    /// # Errors
    /// [`NotResumed`].
    pub fn resume(signed: Head, tiles: &impl Tiles) -> Result<Self, NotResumed> {
        let mut frontier = Self { size: signed.size, ..Self::default() };
        for tile in Tile::edge(signed.size) {
            let hashes = tiles.hashes(tile).and_then(|hashes| hashes.get(..usize::from(tile.width())));
            let hashes = hashes.ok_or(MissingTile(tile))?;
            if let Some(row) = frontier.rows.get_mut(usize::from(tile.level())) {
                *row = hashes.to_vec();
            }
        }
        let found = frontier.root();
        if found == signed.root { Ok(frontier) } else { Err(NotResumed::Root { signed, found }) }
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Add a leaf. What comes back are the tiles that it made full, from level 0 upwards: mostly none. They have to be kept,
    /// since they are forgotten here.
    pub fn append(&mut self, leaf: Hash) -> Vec<(Tile, Vec<Hash>)> {
        // Nobody counts to 2^64.
        self.size += 1;
        let (mut full, mut next) = (Vec::new(), leaf);
        for (level, row) in (0..LEVELS).zip(&mut self.rows) {
            row.push(next);
            if row.len() < usize::from(WIDTH) {
                break;
            }
            next = root_of_complete(row);
            let index = crate::tile::row(self.size, level) / u64::from(WIDTH) - 1;
            if let Some(tile) = Tile::new(level, index, WIDTH) {
                full.push((tile, std::mem::take(row)));
            }
        }
        full
    }

    /// The partial tiles, at most one of each level, with their hashes. A checkpoint of this size needs them kept.
    pub fn partial_tiles(&self) -> impl Iterator<Item = (Tile, &[Hash])> {
        Tile::edge(self.size).zip(self.rows.iter().filter(|row| !row.is_empty()).map(Vec::as_slice))
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let mut parts = Vec::new();
        for row in self.rows.iter().rev() {
            parts.extend(parts_of_row(row.len()).filter_map(|part| row.get(part)).map(root_of_complete));
        }
        join(&parts)
    }

    /// Size and root: what a checkpoint says.
    pub fn head(&self) -> Head {
        Head { size: self.size, root: self.root() }
    }
}

/// The same tiles, for a [`crate::Plan`] about this very tree.
impl From<&Frontier> for BTreeMap<Tile, Vec<Hash>> {
    fn from(frontier: &Frontier) -> Self {
        frontier.partial_tiles().map(|(tile, hashes)| (tile, hashes.to_vec())).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{
        Plan,
        tests::{leaves, naive_root},
    };

    /// A tree of so many leaves, and every tile it made full on the way.
    fn grown(size: u64) -> (Frontier, BTreeMap<Tile, Vec<Hash>>) {
        let mut frontier = Frontier::empty();
        let full = leaves(size).into_iter().flat_map(|leaf| frontier.append(leaf)).collect();
        (frontier, full)
    }

    #[test]
    fn it_has_the_root_and_the_tiles_of_the_tree_at_every_size() {
        let leaves = leaves(530);
        let (mut frontier, mut full) = (Frontier::empty(), BTreeMap::new());
        for size in 0..=530 {
            assert_eq!(
                (frontier.size(), frontier.root()),
                (size, naive_root(&leaves[..usize::try_from(size).unwrap()]))
            );
            let mut kept: BTreeMap<_, _> = (&frontier).into();
            assert_eq!(Frontier::resume(frontier.head(), &kept), Ok(frontier.clone()));
            kept.extend(full.clone());
            assert_eq!(kept.keys().copied().collect::<Vec<_>>(), {
                let mut tiles: Vec<_> = Tile::grown(0, size).collect();
                tiles.sort_unstable();
                tiles
            });
            assert_eq!(Plan::root(size).hashes(&kept), Ok(vec![frontier.root()]));
            if let Some(leaf) = leaves.get(usize::try_from(size).unwrap()) {
                full.extend(frontier.append(*leaf));
            }
        }
    }

    #[test]
    fn a_level_above_the_first_fills_as_well() {
        let (frontier, full) = grown(65_536 + 256 + 1);
        let names: Vec<_> = frontier.partial_tiles().map(|(tile, _)| tile.to_string()).collect();
        assert_eq!(names, ["tile/0/257.p/1", "tile/1/001.p/1", "tile/2/000.p/1"]);
        let level_1: Vec<_> = full.keys().filter(|tile| tile.level() == 1).map(Tile::to_string).collect();
        assert_eq!((full.len(), level_1), (258, vec!["tile/1/000".to_owned()]));
        let mut tiles = full;
        tiles.extend(BTreeMap::from(&frontier));
        assert_eq!(Plan::root(frontier.size()).hashes(&tiles), Ok(vec![frontier.root()]));
        // The old tree is in the tiles of the new one.
        let before = grown(65_535).0.head();
        assert_eq!(Plan::root(65_535).hashes(&tiles), Ok(vec![before.root]));
        let proof = Plan::consistency(65_535, frontier.size()).unwrap().hashes(&tiles).unwrap();
        assert_eq!(frontier.head().continues(&before, &proof), Ok(()));
    }

    #[test]
    fn it_does_not_go_on_from_what_was_not_signed() {
        let (frontier, _) = grown(300);
        let (signed, kept) = (frontier.head(), BTreeMap::from(&frontier));
        for tile in Tile::edge(300) {
            let mut without = kept.clone();
            without.remove(&tile);
            assert_eq!(Frontier::resume(signed, &without), Err(NotResumed::Missing(MissingTile(tile))));
            let mut short = kept.clone();
            short.get_mut(&tile).unwrap().pop();
            assert_eq!(Frontier::resume(signed, &short), Err(NotResumed::Missing(MissingTile(tile))));
            let mut changed = kept.clone();
            changed.get_mut(&tile).unwrap()[0].0[31] ^= 1;
            assert!(matches!(Frontier::resume(signed, &changed), Err(NotResumed::Root { .. })), "{tile}");
        }
        assert_eq!(Frontier::resume(Frontier::empty().head(), &BTreeMap::new()), Ok(Frontier::empty()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn stopping_anywhere_and_going_on_changes_nothing(size in 0_u64..1_200, stop in 0_u64..1_200) {
            let stop = stop.min(size);
            let (stopped, _) = grown(stop);
            let mut frontier = Frontier::resume(stopped.head(), &BTreeMap::from(&stopped)).unwrap();
            let mut full: Vec<_> = Vec::new();
            for leaf in leaves(size).into_iter().skip(usize::try_from(stop).unwrap()) {
                full.extend(frontier.append(leaf).into_iter().map(|(tile, _)| tile));
            }
            let mut new: Vec<_> = full.into_iter().chain(frontier.partial_tiles().map(|(tile, _)| tile)).collect();
            // A partial tile that did not change was kept already.
            new.retain(|tile| Tile::grown(stop, size).any(|grown| grown == *tile) || !Tile::edge(stop).any(|kept| kept == *tile));
            new.sort_unstable();
            let mut expected: Vec<_> = Tile::grown(stop, size).collect();
            expected.sort_unstable();
            prop_assert_eq!(new, expected);
            prop_assert_eq!(frontier, grown(size).0);
        }
    }
}
