//! The read models there are.

use std::fmt;

use skyriff_follow::{ApplyError, Batch, Follower};
use sqlx::PgConnection;

/// A read model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// What users have.
    Balances,
    /// Every posting.
    LedgerEntries,
    /// How far each tip is.
    Tips,
    /// Who likes what, and how often each work is liked.
    Likes,
    /// What users show.
    Works,
}

impl Projection {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Balances, Self::LedgerEntries, Self::Likes, Self::Tips, Self::Works];
}

impl Follower for Projection {
    fn name(self) -> &'static str {
        match self {
            Self::Balances => "balances",
            Self::LedgerEntries => "ledger_entries",
            Self::Tips => "tips",
            Self::Likes => "likes",
            Self::Works => "works",
        }
    }

    fn version(self) -> i32 {
        match self {
            Self::Balances | Self::LedgerEntries | Self::Likes | Self::Tips | Self::Works => 1,
        }
    }

    async fn apply(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        match self {
            Self::Balances => crate::balances::apply(batch, transaction).await,
            Self::LedgerEntries => crate::ledger_entries::apply(batch, transaction).await,
            Self::Tips => crate::tips::apply(batch, transaction).await,
            Self::Likes => crate::likes::apply(batch, transaction).await,
            Self::Works => crate::works::apply(batch, transaction).await,
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
