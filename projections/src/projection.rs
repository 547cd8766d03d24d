//! The read models there are.

use std::fmt;

use skyriff_follow::{ApplyError, Batch, Follower};
use sqlx::PgConnection;

/// `Variant / module, version`: the module has the read model's `apply` and gives it its name. The version is raised when
/// the tables mean something else than before, which asks for building them anew.
macro_rules! projections {
    ($($(#[$doc:meta])* $variant:ident / $module:ident, $version:literal;)+) => {
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
    };
}

projections! {
    /// What users have.
    Balances / balances, 1;
    /// Every posting.
    LedgerEntries / ledger_entries, 1;
    /// Who likes what, and how often each work is liked.
    Likes / likes, 1;
    /// How far each tip is.
    Tips / tips, 1;
    /// Video jobs, and what they cost and brought in.
    VideoJobs / video_jobs, 1;
    /// How far each withdrawal is, and what reviewers want to know of their owners.
    Withdrawals / withdrawals, 1;
    /// What users show.
    Works / works, 1;
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
