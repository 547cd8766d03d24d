//! What is hashed of an event: every column of its row in the table `events`, as it is stored.
//!
//! ```text
//! entry = version || field(shard) || field(position) || … || field(recorded_at)        11 fields
//! field(bytes) = length of bytes, 4 bytes || bytes
//! ```
//!
//! Numbers, lengths among them, are big-endian. In the order of the table's columns:
//!
//! | field | column | bytes |
//! |---|---|---|
//! | | | `0x01`: the version of this encoding, 1 byte without a length |
//! | 1 | `shard` smallint | 2, unsigned |
//! | 2 | `position` bigint | 8, two's complement |
//! | 3 | `aggregate_type` text | as many as it has, UTF-8 |
//! | 4 | `aggregate_id` text | as many as it has, UTF-8 |
//! | 5 | `sequence` bigint | 8, two's complement |
//! | 6 | `event_type` text | as many as it has, UTF-8 |
//! | 7 | `event_version` text | as many as it has, UTF-8 |
//! | 8 | `payload` json | its text, UTF-8: the very bytes that were written, which is what `payload::text` gives |
//! | 9 | `metadata` json | likewise |
//! | 10 | `occurred_at` timestamptz | 8, two's complement: microseconds since 1970-01-01T00:00:00Z |
//! | 11 | `recorded_at` timestamptz | likewise |
//!
//! The leaf is `SHA-256(0x00 || entry)` (RFC 6962, section 2.1). Position `p` is leaf `p - 1` of the tree of its shard.
//!
//! Every field has its length, also those that are always as long, so two different rows never have the same entry, and
//! the rule is one line in any language. `vectors/leaves.json`, beside this crate's sources, has rows with their entries
//! and hashes. In SQL, an entry is the version before the fields, each `int4send(octet_length(f)) || f`, with `f` of
//! `int2send`, `int8send` and `convert_to(…, 'UTF8')`; a time is `int8send((extract(epoch FROM …) * 1000000)::bigint)`.
//!
//! Architecture invariant: an entry never changes. A further column is a further version; rows of before keep theirs.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, Position, ShardId};

use crate::Hash;

/// The first byte of every entry.
pub const ENCODING_VERSION: u8 = 1;

/// A row of the table `events`, column by column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow<'r> {
    /// Whose log it is in.
    pub shard: ShardId,
    /// Where in the log: 1, 2, 3 ….
    pub position: Position,
    /// The kind of its stream.
    pub aggregate_type: Cow<'r, str>,
    /// The name of its stream.
    pub aggregate_id: Cow<'r, str>,
    /// Where in its stream: 1, 2, 3 ….
    pub sequence: i64,
    /// What happened.
    pub event_type: Cow<'r, str>,
    /// In which form it is written.
    pub event_version: Cow<'r, str>,
    /// The text of the JSON, as it was written: spaces, order of members and all.
    pub payload: Cow<'r, str>,
    /// Likewise.
    pub metadata: Cow<'r, str>,
    /// When it happened, in microseconds since 1970-01-01T00:00:00Z.
    pub occurred_at_us: i64,
    /// When it was recorded, likewise.
    pub recorded_at_us: i64,
}

/// A column has more bytes than the length before it can say. No row of Postgres has: its values end at 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the column {column} of the event at {at} has 4 GiB or more")]
pub struct TooLong {
    /// Of which event.
    pub at: LogPosition,
    /// Which column.
    pub column: &'static str,
}

impl EventRow<'_> {
    /// Where it is in the log.
    pub fn at(&self) -> LogPosition {
        LogPosition { shard: self.shard, position: self.position }
    }

    /// Which leaf of its shard's tree it is, counted from 0; nothing for a position that no event has.
    pub fn index(&self) -> Option<u64> {
        u64::try_from(self.position.0).ok()?.checked_sub(1)
    }

    /// The bytes that are hashed.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn entry(&self) -> Result<Vec<u8>, TooLong> {
        let mut entry = vec![ENCODING_VERSION];
        let mut put = |column, bytes: &[u8]| {
            let length = u32::try_from(bytes.len()).map_err(|_| TooLong { at: self.at(), column })?;
            entry.extend_from_slice(&length.to_be_bytes());
            entry.extend_from_slice(bytes);
            Ok(())
        };
        put("shard", &self.shard.0.to_be_bytes())?;
        put("position", &self.position.0.to_be_bytes())?;
        put("aggregate_type", self.aggregate_type.as_bytes())?;
        put("aggregate_id", self.aggregate_id.as_bytes())?;
        put("sequence", &self.sequence.to_be_bytes())?;
        put("event_type", self.event_type.as_bytes())?;
        put("event_version", self.event_version.as_bytes())?;
        put("payload", self.payload.as_bytes())?;
        put("metadata", self.metadata.as_bytes())?;
        put("occurred_at", &self.occurred_at_us.to_be_bytes())?;
        put("recorded_at", &self.recorded_at_us.to_be_bytes())?;
        Ok(entry)
    }

    /// The leaf: the hash of the entry.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn leaf(&self) -> Result<Hash, TooLong> {
        self.entry().map(|entry| Hash::leaf(&entry))
    }
}
