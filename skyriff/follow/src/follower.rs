//! What follows the log.

use skyriff_domain::RecordedEvent;
use sqlx::PgConnection;

/// Events of several shards, each shard's in log order without a gap.
pub type Batch = [RecordedEvent];

/// A batch could not be applied; the transaction is rolled back.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The database said no, or is gone.
    #[error("the database could not apply the events")]
    Database(#[from] sqlx::Error),
    /// What the event says does not fit what is there.
    #[error("the event does not fit: {0}")]
    Misfit(String),
}

/// Tables that are kept up with the log.
pub trait Follower: Copy + Send + Sync + 'static {
    /// As in checkpoints.
    fn name(self) -> &'static str;

    /// Raised when the tables mean something else than before, which asks for building them anew.
    fn version(self) -> i32;

    /// Change the tables by a batch, set-wise.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing of the batch may be kept then.
    fn apply(
        self,
        batch: &Batch,
        transaction: &mut PgConnection,
    ) -> impl Future<Output = Result<(), ApplyError>> + Send;
}
