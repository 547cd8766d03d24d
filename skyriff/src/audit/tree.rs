//! The tree over a shard's rows, beside what was sealed of it: roots of kept checkpoints, the leaves in tiles, and the rows of an
//! earlier export.
//!
//! What each of them can say, when the log is not what it was:
//!
//! | there is | it says |
//! |---|---|
//! | a checkpoint | that something is different between the last size that agrees and this one |
//! | the tiles that lead to it | which rows |
//! | an export from before | which columns of them |

use std::{collections::VecDeque, sync::Arc};

use skyriff_domain::{Position, ShardId};
use skyriff_proof::{EventRow, Frontier, Hash, Head};

use super::{export, findings::Findings, tiles::Leaves};

/// Rows that differ from what was sealed, of each shard; more are counted.
const NAMED_MAX: usize = 10;

/// What somebody kept of a shard: how far it was, and by what name that is told.
#[derive(Clone, Debug)]
pub struct Kept {
    pub head: Head,
    pub name: Arc<str>,
}

/// Grows with the rows of a shard.
pub struct Tree {
    frontier: Frontier,
    /// What is ahead, the smallest first.
    kept: VecDeque<Kept>,
    /// The largest size of a kept checkpoint that the tree had the root of.
    agreed: u64,
    tiles: Option<Leaves>,
    /// The tree that the tiles are of, from where it is another one.
    sealed: Option<Frontier>,
    differing: Vec<Position>,
    differing_total: u64,
    earlier: Option<export::Rows>,
    /// The first position from which on there is no tree, since a row before is not there.
    cut_at: Option<Position>,
}

impl Tree {
    pub fn new(mut kept: Vec<Kept>, tiles: Option<Leaves>, earlier: Option<export::Rows>) -> Self {
        kept.sort_by_key(|kept| kept.head.size);
        Self {
            frontier: Frontier::empty(),
            kept: kept.into(),
            agreed: 0,
            tiles,
            sealed: None,
            differing: Vec::new(),
            differing_total: 0,
            earlier,
            cut_at: None,
        }
    }

    /// How many of the first events a kept checkpoint agrees with.
    pub fn agreed(&self) -> u64 {
        self.agreed
    }

    /// Size and root, if no row is missing.
    pub fn head(&self) -> Option<Head> {
        self.cut_at.is_none().then(|| self.frontier.head())
    }

    /// The row at this position is not there, so there is no tree of this and more.
    pub fn is_cut_at(&mut self, position: Position) {
        self.cut_at.get_or_insert(position);
    }

    /// The leaf of the next row.
    pub fn grow(&mut self, row: &EventRow<'_>, leaf: Hash, findings: &mut Findings) {
        if let Some(earlier) = &mut self.earlier {
            earlier.compare(row, findings);
        }
        let index = row.index().unwrap_or(u64::MAX);
        let sealed_leaf = self.tiles.as_mut().and_then(|tiles| tiles.leaf(index));
        if sealed_leaf.is_some_and(|sealed| sealed != leaf) {
            self.differing_total += 1;
            if self.differing.len() < NAMED_MAX {
                self.differing.push(row.position);
            }
        }
        if self.cut_at.is_some() {
            return;
        }
        match (sealed_leaf, &mut self.sealed) {
            (Some(sealed_leaf), Some(sealed)) => drop(sealed.append(sealed_leaf)),
            (Some(sealed_leaf), None) if sealed_leaf != leaf => {
                let mut sealed = self.frontier.clone();
                sealed.append(sealed_leaf);
                self.sealed = Some(sealed);
            }
            (Some(_) | None, _) => {}
        }
        self.frontier.append(leaf);
        self.compare(row.shard, findings);
    }

    /// With what was kept of a tree of this size. To be asked of the tree of nothing as well, before the first row: what was
    /// sealed of a shard first is sealed while others have events, and it has none.
    pub fn compare(&mut self, shard: ShardId, findings: &mut Findings) {
        while self.kept.front().is_some_and(|kept| kept.head.size <= self.frontier.size()) {
            let Some(Kept { head, name }) = self.kept.pop_front() else { return };
            if head.root == self.frontier.root() {
                self.agreed = self.agreed.max(head.size);
                continue;
            }
            if head.size == 0 {
                findings
                    .of(shard, format!("{name} has sealed no event of it, under a root that is not that of nothing"));
                continue;
            }
            let what = format!(
                "the first {} events are not those that {name} has sealed (root {} instead of {}); {}",
                head.size,
                self.frontier.root(),
                head.root,
                self.what_is_known(&head),
            );
            findings.of(shard, what);
        }
    }

    /// Where they differ, as far as the evidence goes.
    fn what_is_known(&self, head: &Head) -> String {
        let from = self.agreed + 1;
        let between = format!("it is one of the positions {from} to {}", head.size);
        match (&self.tiles, &self.sealed) {
            (None, _) => format!("{between}: which one, the tiles would tell"),
            (Some(_), Some(sealed)) if sealed.size() == head.size && sealed.root() == head.root => {
                format!("the tiles that lead to it say where: {}", self.named())
            }
            (Some(_), Some(_)) => {
                format!("{between}; the tiles do not lead to it either, and differ from the log at {}", self.named())
            }
            (Some(_), None) => format!("{between}; the tiles are as the log is now, so they were written anew as well"),
        }
    }

    fn named(&self) -> String {
        let named: Vec<_> = self.differing.iter().map(ToString::to_string).collect();
        let more = self.differing_total - u64::try_from(self.differing.len()).unwrap_or_default();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("position {}{more}", named.join(", "))
    }

    /// There are no more rows.
    pub fn end(&mut self, shard: ShardId, last: Position, findings: &mut Findings) {
        for Kept { head, name } in std::mem::take(&mut self.kept) {
            let what = match self.cut_at {
                Some(cut) => {
                    format!("{name} has sealed {} events, which cannot be compared: {cut} is not there", head.size)
                }
                None => {
                    format!("{name} has sealed {} events, and the log ends at {last}: later ones are gone", head.size)
                }
            };
            findings.of(shard, what);
        }
        for position in &self.differing {
            let at = skyriff_domain::LogPosition { shard, position: *position };
            findings.at(at, "the row is not the one whose hash is in the tiles".to_owned());
        }
        if let Some(earlier) = &mut self.earlier {
            earlier.end(last, findings);
        }
    }
}
