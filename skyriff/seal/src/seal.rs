//! What is signed at a time: the top checkpoint, and with it the checkpoint of each shard.
//!
//! ```json
//! {"top": "example.org/ledger\nshards 16\n…", "shards": ["example.org/ledger/0\n1042\n…", "…"]}
//! ```
//!
//! One object, so that either all of it is there or nothing. Its number is where it is kept; it is not signed, and says
//! nothing to auditors.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skyriff_domain::ShardId;
use skyriff_proof::{Head, KnownKeys, SignedNote, TopCheckpoint, note::NoteError, top::NotOpened};

use crate::SealKeys;

/// A longer one is not read: that of 1,024 shards, with eight signatures on each note, has less than 2 MB.
pub const BYTES_MAX: u64 = 4_000_000;

/// A seal, of which the top checkpoint was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    number: u64,
    top: TopCheckpoint,
    notes: Notes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    top: SignedNote,
    shards: Vec<SignedNote>,
}

/// What is kept as a seal is none, or not to be believed.
#[derive(Debug, thiserror::Error)]
#[error("seal {number} cannot be used")]
pub struct BadSeal {
    /// Which.
    pub number: u64,
    /// Why.
    pub source: WhyBad,
}

/// Why a seal is bad.
#[derive(Debug, thiserror::Error)]
pub enum WhyBad {
    /// Not written as seals are.
    #[error("it is not one")]
    Form(#[from] serde_json::Error),
    /// No known key has signed it, or it is no top checkpoint.
    #[error(transparent)]
    Top(#[from] NotOpened),
    /// It has other shards than its top checkpoint.
    #[error("it has {0} checkpoints of shards, and not one for each")]
    Shards(usize),
}

impl Seal {
    /// Sign what comes after `before`. Checkpoints of shards that have nothing new are kept as they are, unless one of the keys
    /// has not signed them.
    pub(crate) fn sign(keys: &SealKeys, before: Option<&Self>, top: TopCheckpoint) -> Result<Self, NoteError> {
        let renewed = before.is_none_or(|before| !keys.have_signed(&before.notes.top));
        let shards = top.checkpoints().zip(top.heads()).map(|(checkpoint, (shard, head))| {
            let same = before.filter(|before| !renewed && before.top.head(shard) == Some(head));
            match same.and_then(|before| before.of_shard(shard)) {
                Some(note) => Ok(note.clone()),
                None => keys.sign(checkpoint.to_string()),
            }
        });
        let notes = Notes { shards: shards.collect::<Result<_, _>>()?, top: keys.sign(top.to_string())? };
        Ok(Self { number: before.map_or(1, |before| before.number + 1), top, notes })
    }

    /// As it is kept.
    pub(crate) fn to_bytes(&self) -> Bytes {
        // Strings and lists of them are always JSON.
        serde_json::to_vec(&self.notes).unwrap_or_default().into()
    }

    /// What is kept under a number.
    ///
    /// # Errors
    /// [`BadSeal`].
    pub fn open(number: u64, bytes: &[u8], known: &KnownKeys) -> Result<Self, BadSeal> {
        let open = || {
            let notes: Notes = serde_json::from_slice(bytes)?;
            let top = TopCheckpoint::open(&notes.top, known)?;
            if notes.shards.len() == top.heads().count() {
                Ok(Self { number, top, notes })
            } else {
                Err(WhyBad::Shards(notes.shards.len()))
            }
        };
        open().map_err(|source| BadSeal { number, source })
    }

    /// Which, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What is signed of all shards.
    pub fn top(&self) -> &TopCheckpoint {
        &self.top
    }

    /// How far a shard is sealed; nothing when there is no such shard.
    pub fn head(&self, shard: ShardId) -> Option<Head> {
        self.top.head(shard)
    }

    /// The signed top checkpoint.
    pub fn note(&self) -> &SignedNote {
        &self.notes.top
    }

    /// The signed checkpoint of a shard.
    pub fn of_shard(&self, shard: ShardId) -> Option<&SignedNote> {
        self.notes.shards.get(usize::from(shard.0))
    }
}
