//! Where things live: a user's shard, and a place in its log.

use std::{fmt, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::UserId;

/// The most shards that a store may be created with.
pub const SHARD_COUNT_MAX: u16 = 1_024;

/// How many shards a store has. Fixed when the store is created: another count would send users to other logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardCount(NonZeroU16);

impl ShardCount {
    /// `None` for zero and for more than [`SHARD_COUNT_MAX`].
    pub fn new(count: u16) -> Option<Self> {
        NonZeroU16::new(count).filter(|count| count.get() <= SHARD_COUNT_MAX).map(Self)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// Every shard of such a store.
    pub fn shards(self) -> impl Iterator<Item = ShardId> {
        (0..self.get()).map(ShardId)
    }
}

impl Default for ShardCount {
    fn default() -> Self {
        Self(NonZeroU16::MIN.saturating_add(15))
    }
}

/// One slice of the users: one event log, one Kafka partition, one slice of every read model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The shard of a user: the first eight bytes of SHA-256 over the id's sixteen bytes, as a big-endian number, modulo
/// the count. In Python: `int.from_bytes(hashlib.sha256(user.bytes).digest()[:8], 'big') % count`.
pub fn shard_of(user: UserId, count: ShardCount) -> ShardId {
    let digest = Sha256::digest(user.0.as_bytes());
    let hash = digest.iter().take(8).fold(0_u64, |hash, byte| (hash << 8) | u64::from(*byte));
    // The remainder of a division by a u16 fits a u16.
    ShardId(u16::try_from(hash % u64::from(count.get())).unwrap_or_default())
}

/// A place in one shard's log: 1, 2, 3 … without a gap, in commit order. Zero is before the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub i64);

impl Position {
    /// Before the first event.
    pub const START: Self = Self(0);

    /// The place after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in the whole store, written `shard:position`, as in the header `Skyriff-Position: 3:1042`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Whose log.
    pub shard: ShardId,
    /// Where in it.
    pub position: Position,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.shard, self.position)
    }
}

/// The text is not `shard:position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a log position is written shard:position, as in 3:1042")]
pub struct NotALogPosition;

impl FromStr for LogPosition {
    type Err = NotALogPosition;

    fn from_str(text: &str) -> Result<Self, NotALogPosition> {
        let (shard, position) = text.trim().split_once(':').ok_or(NotALogPosition)?;
        let shard = shard.parse().ok().filter(|shard| *shard < SHARD_COUNT_MAX).ok_or(NotALogPosition)?;
        let position = position.parse().ok().filter(|position| *position >= 0).ok_or(NotALogPosition)?;
        Ok(Self { shard: ShardId(shard), position: Position(position) })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn shards_are_the_ones_that_every_store_was_written_with() {
        let golden = [
            ("00000000-0000-0000-0000-000000000000", 16, 5),
            ("959de6e1-d9ef-5a29-a884-f19f971b9c27", 16, 9),
            ("2b4c1bfc-42d3-5582-955f-e0ae15f69046", 16, 10),
            ("2b4c1bfc-42d3-5582-955f-e0ae15f69046", 1_024, 586),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", 16, 9),
        ];
        for (user, count, shard) in golden {
            let user = UserId(user.parse().unwrap());
            assert_eq!(shard_of(user, ShardCount::new(count).unwrap()), ShardId(shard), "{user} of {count}");
        }
    }

    #[test]
    fn users_spread_evenly() {
        let count = ShardCount::default();
        let mut users = [0_u32; 16];
        for number in 0..16_000_u128 {
            users[usize::from(shard_of(UserId(Uuid::from_u128(number)), count).0)] += 1;
        }
        assert!(users.iter().all(|users| (850..1_150).contains(users)), "{users:?}");
    }

    #[test]
    fn log_positions_are_written_and_read() {
        let place = LogPosition { shard: ShardId(3), position: Position(1_042) };
        assert_eq!(place.to_string(), "3:1042");
        assert_eq!("3:1042".parse(), Ok(place));
        for bad in ["", "3", "3:", ":4", "3:-1", "-3:1", "1024:1", "3:99999999999999999999", "a:b"] {
            assert_eq!(bad.parse::<LogPosition>(), Err(NotALogPosition), "{bad}");
        }
    }
}
