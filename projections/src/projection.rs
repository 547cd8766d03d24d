//! What a read model's file implements.

use std::fmt;

use skyriff_domain::RecordedEvent;
use sqlx::PgConnection;

/// Events of several shards, each shard's in log order without a gap.
pub type Batch = [RecordedEvent];

/// A batch could not be applied; the transaction is rolled back.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The database said no, or is gone.
    #[error("the read database could not apply the events")]
    Database(#[from] sqlx::Error),
    /// What the event says does not fit the read model.
    #[error("the event does not fit the read model: {0}")]
    Misfit(String),
}

/// A read model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// What users have.
    Balances,
    /// Every posting.
    LedgerEntries,
}

impl Projection {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Balances, Self::LedgerEntries];

    /// As in checkpoints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balances => "balances",
            Self::LedgerEntries => "ledger_entries",
        }
    }

    /// Raised when the tables mean something else than before, which asks for building them anew.
    pub const fn version(self) -> i32 {
        match self {
            Self::Balances | Self::LedgerEntries => 1,
        }
    }

    /// Change the tables by a batch, set-wise.
    ///
    /// # Errors
    /// [`ProjectError`]; nothing of the batch may be kept then.
    pub async fn apply(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ProjectError> {
        match self {
            Self::Balances => crate::balances::apply(batch, transaction).await,
            Self::LedgerEntries => crate::ledger_entries::apply(batch, transaction).await,
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
