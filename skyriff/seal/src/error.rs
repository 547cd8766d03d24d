//! Why nothing is sealed, and whether trying again can help.

use skyriff_domain::ShardId;
use skyriff_proof::{Head, KeyName, note::NoteError, top::NotATopCheckpoint};
use skyriff_storage::StorageError;

use crate::StoreError;

/// Nothing is sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The lock cannot be had.
    #[error("the event store cannot be reached")]
    Database(#[from] sqlx::Error),
    /// Tiles or seals cannot be kept, or those that are kept not be used.
    #[error("what is sealed cannot be kept or read")]
    Store(#[from] StoreError),
    /// Somebody else has made the seal that we were about to make.
    #[error("seal {0} was made by another sealer")]
    Lost(u64),
    /// It takes far too long.
    #[error("the event store or the object storage does not answer")]
    Late,
    /// The storage has the seals of another ledger.
    #[error(
        "the storage has the seals of {there}, and the key is of {ours}: name the ledger as before, or use another storage"
    )]
    Ledger {
        /// Whose seals there are.
        there: KeyName,
        /// Whose the key is.
        ours: KeyName,
    },
    /// The storage has the seals of a store of another shape.
    #[error("the storage has the seals of a store of {there} shards, and this one has {ours}")]
    Shards {
        /// How many are sealed there.
        there: usize,
        /// How many there are.
        ours: u16,
    },
    /// A tree would become smaller, or another one: a fault of ours that must never be signed.
    #[error("shard {shard} was sealed with {} events and would now be with {}; this is never signed", .sealed.size, .next.size)]
    Fork {
        /// Of which shard.
        shard: ShardId,
        /// As it was signed.
        sealed: Head,
        /// As it would be.
        next: Head,
    },
    /// There is no such note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// There is no such store.
    #[error(transparent)]
    Top(#[from] NotATopCheckpoint),
}

impl From<StorageError> for SealError {
    fn from(error: StorageError) -> Self {
        Self::Store(error.into())
    }
}

impl SealError {
    /// Whether trying again can help.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Database(_) | Self::Lost(_) | Self::Late | Self::Store(StoreError::Storage(_)) => true,
            Self::Store(_)
            | Self::Ledger { .. }
            | Self::Shards { .. }
            | Self::Fork { .. }
            | Self::Note(_)
            | Self::Top(_) => false,
        }
    }
}
