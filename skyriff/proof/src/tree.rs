//! The tree over the leaves of a log, and what can be proved of it: RFC 6962, section 2.1, and RFC 9162, section 2.1.
//!
//! An inclusion proof says that a leaf is in a tree; a consistency proof says that a tree begins with all leaves of an
//! earlier one, in the same order. Both are hashes that whoever checks puts together with what is known already, and
//! compares with a signed root.
//!
//! Making one is a [`Plan`]: which hashes it takes, and which tiles these are in. Tiles may be anywhere and take a while to
//! fetch, so a plan says which it needs ([`Plan::tiles`]) and computes once they are here ([`Plan::hashes`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::{
    Hash, Tile,
    tile::{HEIGHT, WIDTH},
};

/// A tree as a checkpoint names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How many leaves it has.
    pub size: u64,
    /// Its root: `MTH` of RFC 6962.
    pub root: Hash,
}

/// No proof can be made: a tree of that size does not have what it should be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tree of {size} leaves has no leaf {index} and is not the continuation of a larger one")]
pub struct OutOfTree {
    /// How many leaves it has.
    pub size: u64,
    /// The leaf, from 0, or the size of the earlier tree.
    pub index: u64,
}

/// A tile is not there, or has fewer hashes than its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not there, or is too short")]
pub struct MissingTile(pub Tile);

/// What a proof says is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotProved {
    /// The trees do not have the sizes that such a proof is about.
    #[error("trees of these sizes have no such proof")]
    Sizes,
    /// It has too many or too few hashes for the sizes.
    #[error("the proof does not have as many hashes as it must have")]
    Length,
    /// The hashes lead elsewhere: the leaf, the order or a root was changed.
    #[error("the proof leads to another root")]
    Root,
}

/// Tiles that are here.
pub trait Tiles {
    /// The hashes of a tile. More than its width are fine: a tile keeps its first ones when it grows.
    fn hashes(&self, tile: Tile) -> Option<&[Hash]>;
}

impl Tiles for BTreeMap<Tile, Vec<Hash>> {
    fn hashes(&self, tile: Tile) -> Option<&[Hash]> {
        self.get(&tile).or_else(|| self.get(&tile.full())).map(Vec::as_slice)
    }
}

/// Which hashes of a tree are wanted, each of a run of leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    size: u64,
    runs: Vec<Range<u64>>,
}

impl Plan {
    /// The root of the first `size` leaves: one hash.
    pub fn root(size: u64) -> Self {
        Self { size, runs: std::iter::once(0..size).collect() }
    }

    /// The proof that leaf `index`, counted from 0, is in the tree of `size` leaves: `PATH` of RFC 6962, section 2.1.1. At
    /// most 64 hashes, from the leaf's sibling up to a child of the root.
    ///
    /// # Errors
    /// [`OutOfTree`], when it is not.
    pub fn inclusion(index: u64, size: u64) -> Result<Self, OutOfTree> {
        if index >= size {
            return Err(OutOfTree { size, index });
        }
        let (mut begin, mut end, mut runs) = (0, size, Vec::new());
        while end - begin > 1 {
            let middle = begin + left_part(end - begin);
            if index < middle {
                runs.push(middle..end);
                end = middle;
            } else {
                runs.push(begin..middle);
                begin = middle;
            }
        }
        runs.reverse();
        Ok(Self { size, runs })
    }

    /// The proof that the tree of `new` leaves begins with that of `old`: `PROOF` of RFC 6962, section 2.1.2. At most 65
    /// hashes; none when the sizes are equal, or when the old tree has no leaves, which every tree begins with.
    ///
    /// # Errors
    /// [`OutOfTree`], when the old one is larger.
    pub fn consistency(old: u64, new: u64) -> Result<Self, OutOfTree> {
        if old > new {
            return Err(OutOfTree { size: new, index: old });
        }
        let (mut begin, mut end, mut runs) = (0, new, Vec::new());
        if old > 0 {
            while old < end {
                let middle = begin + left_part(end - begin);
                if old <= middle {
                    runs.push(middle..end);
                    end = middle;
                } else {
                    runs.push(begin..middle);
                    begin = middle;
                }
            }
            // The old tree itself is known to whoever checks.
            if begin > 0 {
                runs.push(begin..end);
            }
        }
        runs.reverse();
        Ok(Self { size: new, runs })
    }

    /// The tiles that are needed, as the tree of this plan's size has them. Where a partial one is no longer kept, the full
    /// one will do ([`Tile::full`]).
    pub fn tiles(&self) -> BTreeSet<Tile> {
        let subtrees = self.runs.iter().flat_map(|run| complete_subtrees(run.clone()));
        subtrees.filter_map(|subtree| subtree.place(self.size).map(|(tile, _)| tile)).collect()
    }

    /// The hashes, in the order of a proof.
    ///
    /// # Errors
    /// [`MissingTile`].
    pub fn hashes(&self, tiles: &impl Tiles) -> Result<Vec<Hash>, MissingTile> {
        self.runs.iter().map(|run| self.hash(run, tiles)).collect()
    }

    fn hash(&self, run: &Range<u64>, tiles: &impl Tiles) -> Result<Hash, MissingTile> {
        let mut parts = Vec::new();
        for subtree in complete_subtrees(run.clone()) {
            // Every run is within the tree, so each of its parts has a place.
            let Some((tile, place)) = subtree.place(self.size) else { continue };
            let hashes = tiles.hashes(tile).and_then(|hashes| hashes.get(place)).ok_or(MissingTile(tile))?;
            parts.push(root_of_complete(hashes));
        }
        Ok(join(&parts))
    }
}

/// How many leaves are below the left child of the root of a tree of `size` leaves, at least two: the largest power of two
/// that is less.
fn left_part(size: u64) -> u64 {
    1 << (size - 1).checked_ilog2().unwrap_or(0)
}

/// A subtree with 2^height leaves, the `index`-th of its height.
struct Subtree {
    height: u32,
    index: u64,
}

impl Subtree {
    /// The tile that its root can be computed from, and which of the tile's hashes it takes.
    fn place(&self, size: u64) -> Option<(Tile, Range<usize>)> {
        let level = u8::try_from(self.height / HEIGHT).ok()?;
        let first = self.index << (self.height % HEIGHT);
        let tile = Tile::of_tree(level, first / u64::from(WIDTH), size)?;
        let begin = usize::try_from(first % u64::from(WIDTH)).ok()?;
        Some((tile, begin..begin + (1 << (self.height % HEIGHT))))
    }
}

/// The largest complete subtrees that a run of leaves is made of, from left to right. Every run of a plan begins at a multiple
/// of the largest power of two that it holds, and so does what is left of it after each.
fn complete_subtrees(run: Range<u64>) -> impl Iterator<Item = Subtree> {
    let mut begin = run.start;
    std::iter::from_fn(move || {
        let height = run.end.checked_sub(begin)?.checked_ilog2()?;
        let subtree = Subtree { height, index: begin >> height };
        begin += 1 << height;
        Some(subtree)
    })
}

/// The root of a subtree from the hashes of one of its rows, as many as a power of two.
pub(crate) fn root_of_complete(row: &[Hash]) -> Hash {
    let mut row = row.to_vec();
    while row.len() > 1 {
        row = row.as_chunks().0.iter().map(|[left, right]| Hash::node(left, right)).collect();
    }
    row.first().copied().unwrap_or_else(Hash::of_nothing)
}

/// The root over subtrees that become smaller from left to right.
pub(crate) fn join(parts: &[Hash]) -> Hash {
    let joined = parts.iter().rev().copied().reduce(|right, left| Hash::node(&left, &right));
    joined.unwrap_or_else(Hash::of_nothing)
}

/// The largest complete subtrees within a partial tile of some width: which of its hashes each takes, from left to right.
pub(crate) fn parts_of_row(width: usize) -> impl Iterator<Item = Range<usize>> {
    let mut begin = 0;
    (0..HEIGHT).rev().filter_map(move |bit| {
        let hashes = 1 << bit;
        (width & hashes != 0).then(|| {
            begin += hashes;
            begin - hashes..begin
        })
    })
}

impl Head {
    /// Check that a leaf is in this tree, as its leaf `index`, counted from 0 (RFC 9162, section 2.1.3.2).
    ///
    /// # Errors
    /// [`NotProved`].
    pub fn includes(&self, leaf: Hash, index: u64, proof: &[Hash]) -> Result<(), NotProved> {
        if index >= self.size {
            return Err(NotProved::Sizes);
        }
        let (mut at, mut last, mut root) = (index, self.size - 1, leaf);
        for hash in proof {
            if last == 0 {
                return Err(NotProved::Length);
            }
            if at & 1 == 1 || at == last {
                root = Hash::node(hash, &root);
                up_to_a_right_child(&mut at, &mut last);
            } else {
                root = Hash::node(&root, hash);
            }
            (at, last) = (at >> 1, last >> 1);
        }
        match (last == 0, root == self.root) {
            (true, true) => Ok(()),
            (true, false) => Err(NotProved::Root),
            (false, _) => Err(NotProved::Length),
        }
    }

    /// Check that this tree begins with all leaves of `old` (RFC 9162, section 2.1.4.2). Of trees with equal sizes, and of
    /// an old one without leaves, the proof is empty.
    ///
    /// # Errors
    /// [`NotProved`].
    pub fn continues(&self, old: &Self, proof: &[Hash]) -> Result<(), NotProved> {
        let known = |holds| if holds { Ok(()) } else { Err(NotProved::Root) };
        if old.size > self.size {
            return Err(NotProved::Sizes);
        }
        if old.size == 0 || old.size == self.size {
            return if proof.is_empty() {
                known(if old.size == self.size { old == self } else { old.root == Hash::of_nothing() })
            } else {
                Err(NotProved::Length)
            };
        }
        // A complete old tree is a part of the new one as it is, and left out of the proof.
        let (first, rest) = if old.size.is_power_of_two() {
            (&old.root, proof)
        } else {
            proof.split_first().ok_or(NotProved::Length)?
        };
        let (mut at, mut last) = (old.size - 1, self.size - 1);
        let ones = at.trailing_ones();
        (at, last) = (at >> ones, last >> ones);
        let (mut old_root, mut new_root) = (*first, *first);
        for hash in rest {
            if last == 0 {
                return Err(NotProved::Length);
            }
            if at & 1 == 1 || at == last {
                old_root = Hash::node(hash, &old_root);
                new_root = Hash::node(hash, &new_root);
                up_to_a_right_child(&mut at, &mut last);
            } else {
                new_root = Hash::node(&new_root, hash);
            }
            (at, last) = (at >> 1, last >> 1);
        }
        if last == 0 { known(old_root == old.root && new_root == self.root) } else { Err(NotProved::Length) }
    }
}

/// A node at the right edge without a sibling is its own parent, as often as it takes.
fn up_to_a_right_child(at: &mut u64, last: &mut u64) {
    while *at & 1 == 0 && *at != 0 {
        (*at, *last) = (*at >> 1, *last >> 1);
    }
}

#[cfg(test)]
pub(crate) mod tests;
