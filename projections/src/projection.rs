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
}

impl Projection {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Balances, Self::LedgerEntries, Self::Tips];
}

impl Follower for Projection {
    fn name(self) -> &'static str {
        match self {
            Self::Balances => "balances",
            Self::LedgerEntries => "ledger_entries",
            Self::Tips => "tips",
        }
    }

    fn version(self) -> i32 {
        match self {
            Self::Balances | Self::LedgerEntries | Self::Tips => 1,
        }
    }

    async fn apply(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        match self {
            Self::Balances => crate::balances::apply(batch, transaction).await,
            Self::LedgerEntries => crate::ledger_entries::apply(batch, transaction).await,
            Self::Tips => crate::tips::apply(batch, transaction).await,
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
