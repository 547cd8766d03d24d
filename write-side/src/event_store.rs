//! The event store in Postgres: the queries that executors need, and what their failures mean.

mod append;
mod load;
mod replay;
mod session;
mod snapshot;

pub use append::{Appended, Batch, NewEvent, Outcome, append};
pub use load::{Loaded, catch_up, heads, load};
pub use replay::{FirstAnswer, first_answers};
pub use session::{
    LOAD_TIMEOUT, abandon, await_durability, backend, commit, commits_on_a_standby, end_backend, keep_commands, lock,
    prepare,
};
pub use snapshot::{Snapshot, save as save_snapshot};

/// What a failed query means to whoever sent it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The connection is gone. If the query was an append, nobody knows what came of it.
    #[error("the connection to the event store was lost")]
    Lost(#[source] sqlx::Error),
    /// It was rolled back, and may work when tried again: a lock timeout, a deadlock, a full disk.
    #[error("the event store could not do it now")]
    TryAgain(#[source] sqlx::Error),
    /// It was rolled back because another append had written the same sequence of a stream.
    #[error("another append was first")]
    Conflict(#[source] sqlx::Error),
    /// It was rolled back, and will be again.
    #[error("the event store rejected it")]
    Rejected(#[source] sqlx::Error),
    /// A stored event is not one of ours: written by a newer binary, or damaged.
    #[error("a stored event cannot be read")]
    Unreadable(#[from] skyriff_domain::stream::DecodeError),
}

impl From<sqlx::Error> for StoreError {
    /// By SQLSTATE (Postgres, appendix A); what is not an answer of the database leaves its answer unknown.
    #[expect(clippy::wildcard_enum_match_arm, reason = "sqlx's errors are an open set")]
    fn from(error: sqlx::Error) -> Self {
        let Some(code) = error.as_database_error().and_then(sqlx::error::DatabaseError::code) else {
            return match error {
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Decode(_)
                | sqlx::Error::Encode(_)
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::RowNotFound
                | sqlx::Error::TypeNotFound { .. } => Self::Rejected(error),
                _ => Self::Lost(error),
            };
        };
        match code.as_ref() {
            // Shutting down, crashed, starting up; a primary that is one no longer.
            // Or a session in a state that it should not be in: a new one is in none.
            "57P01" | "57P02" | "57P03" | "57P05" | "25006" | "25P02" | "25P03" => Self::Lost(error),
            code if code.starts_with("08") => Self::Lost(error),
            "40001" | "40P01" | "55P03" | "57014" | "54000" => Self::TryAgain(error),
            code if code.starts_with("53") => Self::TryAgain(error),
            "23505" => Self::Conflict(error),
            _ => Self::Rejected(error),
        }
    }
}
