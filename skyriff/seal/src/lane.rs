//! One shard: its tree as it was sealed, and what was added since; and everything that must agree with the log before more is.

use std::{collections::BTreeMap, time::Duration};

use skyriff_domain::{LogPosition, Position, ShardId};
use skyriff_proof::{EventRow, Frontier, Hash, Head, Tile, frontier::NotResumed, leaf::TooLong, tile::WIDTH};
use tokio::time::Instant;

use crate::{SealStore, StoreError};

/// The wait before a shard that stands still is looked at again, and its growth.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// What is sealed of a shard before the first seal.
pub(crate) const NOTHING: Head = Head { size: 0, root: EMPTY_ROOT };
/// SHA-256 of nothing, as [`Hash::of_nothing`] says.
const EMPTY_ROOT: Hash = Hash([
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
]);

/// The log, or what is kept, does not say what was sealed. Nothing more is sealed of the shard until it does again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Disagrees {
    #[error("the log ends at {head}, and {} events of it are sealed: the last ones are gone", .sealed.size)]
    Short { head: u64, sealed: Head },
    #[error("the event {0} is not what was sealed at its place")]
    Edited(LogPosition),
    #[error("the log has a gap: {found} comes in the place of {before}")]
    Gap { found: LogPosition, before: LogPosition },
    #[error("the event {0} is sealed, and the log does not have it")]
    Gone(LogPosition),
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("what is kept of the tree is not what was signed: {0}")]
    Tiles(#[from] NotResumed),
    #[error(
        "{0} is there already, made of other events than the log has now; no seal needs it: if these events are known to be \
         lost, delete it"
    )]
    OtherTile(Tile),
}

/// One shard.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) shard: ShardId,
    /// As in the newest seal.
    pub(crate) sealed: Head,
    /// How far the log is, as its primary said last, and the time before.
    pub(crate) head: u64,
    pub(crate) head_before: u64,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    /// Not compared with the log yet.
    Unknown,
    /// It goes on.
    Ready(Grown),
    /// It stands still until then.
    Stopped { until: Instant, back_off: Duration, why: String },
}

/// A tree in memory, at what is sealed or beyond.
#[derive(Debug)]
pub(crate) struct Grown {
    frontier: Frontier,
    /// Of the last event in it.
    last: Option<Hash>,
}

impl Lane {
    pub(crate) fn new(shard: ShardId, sealed: Head) -> Self {
        Self { shard, sealed, head: 0, head_before: 0, state: State::Unknown }
    }

    /// What is to be signed of it.
    pub(crate) fn to_sign(&self) -> Head {
        match &self.state {
            State::Ready(grown) => grown.head(),
            State::Unknown | State::Stopped { .. } => self.sealed,
        }
    }

    /// How many events are in its tree.
    pub(crate) fn size(&self) -> u64 {
        match &self.state {
            State::Ready(grown) => grown.size(),
            State::Unknown | State::Stopped { .. } => self.sealed.size,
        }
    }

    /// Stand still. Says so loudly when it is news.
    pub(crate) fn stop(&mut self, disagrees: &Disagrees) {
        let why = disagrees.to_string();
        let (before, back_off) = match &self.state {
            State::Stopped { back_off, why, .. } => (Some(why.as_str()), (*back_off * 2).min(BACK_OFF_MAX)),
            State::Unknown | State::Ready(_) => (None, BACK_OFF),
        };
        if before != Some(&why) {
            let (shard, sealed) = (self.shard, self.sealed.size);
            tracing::error!(%shard, sealed, error = why, "a shard is not sealed any further: the log contradicts what is signed");
        }
        self.state = State::Stopped { until: Instant::now() + back_off, back_off, why };
    }

    /// Whether it has to be compared with the log before it goes on.
    pub(crate) fn is_to_resume(&self) -> bool {
        match &self.state {
            State::Unknown => true,
            State::Ready(_) => false,
            State::Stopped { until, .. } => *until <= Instant::now(),
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped { .. })
    }

    /// It agrees again, or was never asked before.
    pub(crate) fn go_on(&mut self, grown: Grown) {
        if self.is_stopped() {
            tracing::info!(shard = %self.shard, "a shard is sealed again");
        }
        self.state = State::Ready(grown);
    }
}

impl Grown {
    pub(crate) fn size(&self) -> u64 {
        self.frontier.size()
    }

    pub(crate) fn head(&self) -> Head {
        self.frontier.head()
    }

    /// From here on rows are read: the last event that is in the tree, once more, so that it is seen when it changes.
    pub(crate) fn reads_from(&self) -> Position {
        position(self.size().max(1))
    }

    /// Add what was read from [`Self::reads_from`] on: the tiles that are full now. When something is wrong, nothing was
    /// added.
    pub(crate) fn extend(
        &mut self,
        shard: ShardId,
        rows: &[EventRow<'_>],
    ) -> Result<Vec<(Tile, Vec<Hash>)>, Disagrees> {
        let at = |position| LogPosition { shard, position };
        let first = self.reads_from();
        if self.last.is_some() && rows.first().is_none_or(|row| row.at() != at(first)) {
            return Err(Disagrees::Gone(at(first)));
        }
        let mut expected = first;
        for row in rows {
            if row.at() != at(expected) {
                return Err(Disagrees::Gap { found: row.at(), before: at(expected) });
            }
            expected = expected.next();
        }
        let leaves = rows.iter().map(EventRow::leaf).collect::<Result<Vec<_>, _>>()?;
        let new = match self.last {
            None => leaves.as_slice(),
            Some(last) => match leaves.split_first() {
                Some((again, new)) if *again == last => new,
                Some(_) => return Err(Disagrees::Edited(at(first))),
                None => return Err(Disagrees::Gone(at(first))),
            },
        };
        self.last = new.last().copied().or(self.last);
        Ok(new.iter().flat_map(|leaf| self.frontier.append(*leaf)).collect())
    }

    /// The tiles at the edge that no checkpoint of `sealed` needed.
    pub(crate) fn new_partials(&self, sealed: Head) -> Vec<(Tile, Vec<Hash>)> {
        let is_new = |tile: &Tile| !Tile::edge(sealed.size).any(|kept| kept == *tile);
        let partials = self.frontier.partial_tiles().filter(|(tile, _)| is_new(tile));
        partials.map(|(tile, hashes)| (tile, hashes.to_vec())).collect()
    }
}

/// The tiles that say how a sealed tree ended, and which events they are of.
pub(crate) struct Kept {
    grown: Grown,
    /// Leaves of the last events, and the position of the first of them.
    first: Position,
    leaves: Vec<Hash>,
}

impl Kept {
    /// What is kept of a tree that was signed, if it leads to its root.
    pub(crate) async fn of(
        store: &SealStore,
        shard: ShardId,
        sealed: Head,
    ) -> Result<Result<Self, Disagrees>, StoreError> {
        let mut tiles = BTreeMap::new();
        // The last tile of leaves is full when none is partial.
        let last = sealed.size.checked_sub(1).map(|last| last / u64::from(WIDTH));
        let last = last.and_then(|index| Tile::of_tree(0, index, sealed.size));
        for tile in Tile::edge(sealed.size).chain(last.filter(Tile::is_full)) {
            match store.tile(shard, tile).await {
                Ok(Some(hashes)) => drop(tiles.insert(tile, hashes)),
                Ok(None) => {}
                // Cut short by somebody, or by a disk: as good as none.
                Err(StoreError::Tile { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let frontier = match Frontier::resume(sealed, &tiles) {
            Ok(frontier) => frontier,
            Err(wrong) => return Ok(Err(wrong.into())),
        };
        let leaves = last.map(|tile| tiles.remove(&tile).ok_or(skyriff_proof::tree::MissingTile(tile)));
        let leaves = match leaves.transpose() {
            Ok(leaves) => leaves.unwrap_or_default(),
            Err(missing) => return Ok(Err(NotResumed::from(missing).into())),
        };
        let first = position(last.map_or(1, |tile| tile.index() * u64::from(WIDTH) + 1));
        let grown = Grown { frontier, last: leaves.last().copied() };
        Ok(Ok(Self { grown, first, leaves }))
    }

    /// The events that have to be looked at: from here on, so many.
    pub(crate) fn reads(&self) -> (Position, i64) {
        (self.first, i64::try_from(self.leaves.len()).unwrap_or(i64::MAX))
    }

    /// Whether the log has them as they were sealed.
    pub(crate) fn compared(self, shard: ShardId, rows: &[EventRow<'_>]) -> Result<Grown, Disagrees> {
        let mut position = self.first;
        for (place, leaf) in self.leaves.iter().enumerate() {
            let at = LogPosition { shard, position };
            let row = rows.get(place).filter(|row| row.at() == at).ok_or(Disagrees::Gone(at))?;
            if row.leaf()? != *leaf {
                return Err(Disagrees::Edited(at));
            }
            position = position.next();
        }
        Ok(self.grown)
    }
}

/// Sizes that a database counts fit.
fn position(number: u64) -> Position {
    Position(i64::try_from(number).unwrap_or(i64::MAX))
}
