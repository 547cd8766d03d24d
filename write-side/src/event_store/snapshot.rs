//! Snapshots of streams. They save reading, and never decide: one that is damaged, of another version, or of another
//! log is thrown away and the stream is folded from its events.
//!
//! The stock snapshots of cqrs-es are deliberately not used: its sink applies events as they are written and its store
//! applies them again as they are committed, so a stored credit of 100 reads back as 200.

use sha2::{Digest, Sha256};
use skyriff_domain::{State, StreamId};
use sqlx::PgConnection;

use super::StoreError;

/// A stream folded up to a sequence.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Which.
    pub stream: StreamId,
    /// Up to where.
    pub sequence: i64,
    /// Folded.
    pub state: State,
}

/// Over everything that the snapshot claims, so that no part of it can be taken for another stream's.
fn checksum(stream: &StreamId, sequence: i64, state: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [stream.aggregate_type(), &stream.aggregate_id(), &sequence.to_string(), state] {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().to_vec()
}

/// `None` when the snapshot does not hold.
pub(super) fn restore(stream: &StreamId, sequence: i64, state: &str, stored_checksum: &[u8]) -> Option<State> {
    if checksum(stream, sequence, state) != stored_checksum {
        tracing::warn!(?stream, sequence, "a snapshot is damaged and is not used");
        return None;
    }
    serde_json::from_str(state).ok()
}

/// Save a snapshot in the place of any other. Another node's later one may be lost by that, which only costs reading.
///
/// # Errors
/// [`StoreError`].
pub async fn save(connection: &mut PgConnection, snapshot: &Snapshot) -> Result<(), StoreError> {
    let Snapshot { stream, sequence, state } = snapshot;
    let text = serde_json::to_string(state).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        "INSERT INTO snapshots (aggregate_type, aggregate_id, sequence, state_version, state, checksum)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (aggregate_type, aggregate_id) DO UPDATE
         SET sequence = excluded.sequence, state_version = excluded.state_version, state = excluded.state,
             checksum = excluded.checksum",
    )
    .bind(stream.aggregate_type())
    .bind(stream.aggregate_id())
    .bind(sequence)
    .bind(State::VERSION)
    .bind(&text)
    .bind(checksum(stream, *sequence, &text))
    .execute(connection)
    .await?;
    Ok(())
}
