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
    /// Withdrawals, and what is known of whoever asks for them.
    Withdrawals,
    /// Video jobs, and what they cost and brought in.
    VideoJobs,
}

impl Projection {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Balances, Self::LedgerEntries, Self::Withdrawals, Self::VideoJobs];
}

impl Follower for Projection {
    fn name(self) -> &'static str {
        match self {
            Self::Balances => "balances",
            Self::LedgerEntries => "ledger_entries",
            Self::Withdrawals => "withdrawals",
            Self::VideoJobs => "video_jobs",
        }
    }

    fn version(self) -> i32 {
        match self {
            Self::Balances | Self::LedgerEntries | Self::Withdrawals | Self::VideoJobs => 1,
        }
    }

    async fn apply(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        match self {
            Self::Balances => crate::balances::apply(batch, transaction).await,
            Self::LedgerEntries => crate::ledger_entries::apply(batch, transaction).await,
            Self::Withdrawals => crate::withdrawals::apply(batch, transaction).await,
            Self::VideoJobs => crate::video_jobs::apply(batch, transaction).await,
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
