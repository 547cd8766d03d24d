//! What an auditor is given, as JSON, and how it is checked. `verify.py`, beside this crate's sources, does the same.
//!
//! A checkpoint is a signed note, whole, in a string: the top checkpoint or that of one shard. A hash is standard base64.
//!
//! ```json
//! {"checkpoint": "example.org/ledger\nshards 16\n…"}
//!
//! {"checkpoint": "…", "hashes": ["…", "…"],
//!  "event": {"shard": 3, "position": 42, "aggregate_type": "points_account", "aggregate_id": "959de6e1-…",
//!            "sequence": 7, "event_type": "checked_in", "event_version": "1",
//!            "payload": "{\"checked_in\":…}", "metadata": "{…}",
//!            "occurred_at_us": 1763754000000000, "recorded_at_us": 1763754000001234}}
//!
//! {"checkpoint": "…", "proofs": {"0": ["…", "…"], "1": []}}
//! ```
//!
//! - **Inclusion** ([`Inclusion`]): the event is in the log that the checkpoint seals. It has every column of the row, as
//!   [`crate::leaf`] says; payload and metadata are strings, since what was hashed is their text. Whoever may see it sees
//!   all of it.
//! - **Consistency** ([`Consistency`]): the log that the checkpoint seals begins with what another one sealed. That one
//!   is not in the answer: an auditor has kept it, and that nobody else had it in hands since is the point. There is a proof
//!   for each shard that the kept one names.
//!
//! Positions, sequences and times are numbers: none of them is beyond 2⁵³ within centuries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, ShardId};

use crate::{
    Hash,
    checkpoint::{Checkpoint, Origin},
    key::KnownKeys,
    leaf::{EventRow, TooLong},
    note::{NoteError, SignedNote},
    top::TopCheckpoint,
    tree::{Head, NotProved},
};

/// What is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The top checkpoint, or that of a shard.
    pub checkpoint: SignedNote,
}

/// An event, and the proof that it is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inclusion {
    /// A checkpoint that reaches the event.
    pub checkpoint: SignedNote,
    /// The whole row.
    pub event: EventRow<'static>,
    /// From the leaf's sibling up to a child of the root ([`crate::Plan::inclusion`]).
    pub hashes: Vec<Hash>,
}

/// The proof that a checkpoint continues an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consistency {
    /// The later one.
    pub checkpoint: SignedNote,
    /// For each shard that the earlier one names ([`crate::Plan::consistency`]).
    pub proofs: BTreeMap<ShardId, Vec<Hash>>,
}

/// An answer does not show what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotShown {
    /// No known key signed a checkpoint.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// What is signed is no checkpoint, or one of another ledger than that of the key.
    #[error("what is signed is not a checkpoint of the ledger whose key signed it")]
    Checkpoint,
    /// The checkpoint, or the proof, does not name a shard.
    #[error("there is nothing about shard {0}")]
    Shard(ShardId),
    /// A row that cannot be: without a position, or with a column that is too long.
    #[error("there is no event {0}")]
    Event(LogPosition),
    /// The proof leads elsewhere.
    #[error("it is not so of shard {shard}")]
    Proof {
        /// Of which shard.
        shard: ShardId,
        /// Why.
        source: NotProved,
    },
}

impl From<TooLong> for NotShown {
    fn from(TooLong { at, .. }: TooLong) -> Self {
        Self::Event(at)
    }
}

/// How far each shard is that a note is about: all of them for a top checkpoint, one for a shard's own. The name that signs
/// and the one that the text begins with must be the same.
///
/// # Errors
/// [`NotShown::Note`] and [`NotShown::Checkpoint`].
pub fn heads(note: &SignedNote, known: &KnownKeys) -> Result<BTreeMap<ShardId, Head>, NotShown> {
    let opened = note.open(known)?;
    let mut names = opened.signed_by.iter().map(|key| key.name());
    if let Ok(top) = opened.text.parse::<TopCheckpoint>() {
        let is_ours = names.any(|name| name == top.ledger());
        return if is_ours { Ok(top.heads().collect()) } else { Err(NotShown::Checkpoint) };
    }
    let checkpoint: Checkpoint = opened.text.parse().map_err(|_| NotShown::Checkpoint)?;
    let shard = checkpoint.origin.as_str().rsplit_once('/').and_then(|(_, shard)| shard.parse().ok()).map(ShardId);
    let shard = shard.filter(|shard| names.any(|name| Origin::of_shard(name, *shard) == checkpoint.origin));
    match shard {
        Some(shard) if checkpoint.extensions.is_empty() => Ok(BTreeMap::from([(shard, checkpoint.head)])),
        _ => Err(NotShown::Checkpoint),
    }
}

impl Sealed {
    /// How far each shard is.
    ///
    /// # Errors
    /// [`NotShown`].
    pub fn check(&self, known: &KnownKeys) -> Result<BTreeMap<ShardId, Head>, NotShown> {
        heads(&self.checkpoint, known)
    }
}

impl Inclusion {
    /// Whether the event is sealed at its place.
    ///
    /// # Errors
    /// [`NotShown`].
    pub fn check(&self, known: &KnownKeys) -> Result<(), NotShown> {
        let shard = self.event.shard;
        let head = heads(&self.checkpoint, known)?.remove(&shard).ok_or(NotShown::Shard(shard))?;
        let index = self.event.index().ok_or(NotShown::Event(self.event.at()))?;
        let included = head.includes(self.event.leaf()?, index, &self.hashes);
        included.map_err(|source| NotShown::Proof { shard, source })
    }
}

impl Consistency {
    /// Whether everything that the kept checkpoint seals is the beginning of what there is.
    ///
    /// # Errors
    /// [`NotShown`].
    pub fn check(&self, kept: &SignedNote, known: &KnownKeys) -> Result<(), NotShown> {
        let new = heads(&self.checkpoint, known)?;
        for (shard, old) in heads(kept, known)? {
            let missing = NotShown::Shard(shard);
            let (Some(new), Some(proof)) = (new.get(&shard), self.proofs.get(&shard)) else { return Err(missing) };
            new.continues(&old, proof).map_err(|source| NotShown::Proof { shard, source })?;
        }
        Ok(())
    }
}
