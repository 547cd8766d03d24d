//! The read models there are.

use std::{fmt, str::FromStr};

use skyriff_follow::{ApplyError, Batch, Follower, ReadModel};
use sqlx::PgConnection;

/// `Variant / module, version, [tables]`: the module has the read model's `apply` and gives it its name. The version is
/// raised when the tables mean something else than before, which asks for building them anew. The tables are in the order
/// in which a query names them that names no checkpoints, since a switch locks them so; one whose shard only another table
/// knows comes before that.
macro_rules! projections {
    ($($(#[$doc:meta])* $variant:ident / $module:ident, $version:literal, [$($table:ident),+];)+) => {
        /// A read model.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Projection {
            $($(#[$doc])* $variant,)+
        }

        impl Projection {
            /// All of them.
            pub const ALL: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];
        }

        impl Follower for Projection {
            fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($module),)+
                }
            }

            fn version(self) -> i32 {
                match self {
                    $(Self::$variant => $version,)+
                }
            }

            async fn apply(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
                match self {
                    $(Self::$variant => crate::$module::apply(batch, transaction).await,)+
                }
            }
        }

        impl ReadModel for Projection {
            fn tables(self) -> &'static [&'static str] {
                match self {
                    $(Self::$variant => &[$(stringify!($table)),+],)+
                }
            }

            fn of_shards(self, table: &str) -> &'static str {
                match table {
                    "promo_lots" => "user_id IN (SELECT user_id FROM balances WHERE shard = ANY ($1))",
                    "newest_works" => "work_id IN (SELECT work_id FROM works WHERE shard = ANY ($1))",
                    _ => "shard = ANY ($1)",
                }
            }

            async fn fill(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
                match self {
                    Self::LedgerEntries => crate::ledger_entries::copy(batch, transaction).await,
                    other => other.apply(batch, transaction).await,
                }
            }
        }
    };
}

projections! {
    /// What users have.
    Balances / balances, 1, [promo_lots, balances];
    /// Every posting, what their sums are by time, and what is held.
    LedgerEntries / ledger_entries, 2, [ledger_entries, ledger_sums, ledger_user_sums, ledger_holds];
    /// Who likes what, and how often each work is liked.
    Likes / likes, 1, [work_likes_by_hour, work_likes, likes];
    /// What providers' files say beside the ledger, and the recharges that they are compared with.
    Reconciliations / reconciliations, 1, [reconciliation_exceptions, reconciliation_runs, recharges];
    /// How far each tip is.
    Tips / tips, 1, [tips];
    /// Video jobs, and what they cost and brought in.
    VideoJobs / video_jobs, 1, [video_jobs, video_costs];
    /// How far each withdrawal is, and what reviewers want to know of their owners.
    Withdrawals / withdrawals, 1, [withdrawals, risk_facts];
    /// What users show.
    Works / works, 1, [newest_works, works];
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such read model.
#[derive(Debug, thiserror::Error)]
#[error("there is no read model {name:?}; there are {all}", all = Projection::ALL.map(Projection::name).join(", "))]
pub struct UnknownProjection {
    name: String,
}

impl FromStr for Projection {
    type Err = UnknownProjection;

    fn from_str(name: &str) -> Result<Self, UnknownProjection> {
        let found = Self::ALL.into_iter().find(|projection| projection.name() == name);
        found.ok_or_else(|| UnknownProjection { name: name.to_owned() })
    }
}
