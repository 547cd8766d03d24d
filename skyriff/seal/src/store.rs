//! Where seals and tiles are kept.
//!
//! **Seals** are numbered without a gap, and the storage makes each number once: that is the fence. The newest is found by
//! going down into the last folders. All of the last day are kept, and of every hour before it the last one, for ever: that
//! is 8,766 a year and not 31 million. What a client was ever given stays verifiable without us keeping it, since tiles prove
//! what came after any size, also one that we no longer have the signature of; and a time that an auditor asks for is at most an
//! hour off.
//!
//! **Full tiles** are for ever. Partial ones go when the full one is there, which begins with the same hashes: so there are
//! never more than 255 of a level.

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, NaiveDateTime, Timelike};
use futures::{StreamExt, TryStreamExt, stream};
use skyriff_domain::ShardId;
use skyriff_proof::{Hash, Tile, tile, tile::WrongSize};
use skyriff_storage::{LedgerFolder, LedgerName, ObjectStorage, StorageError, keep::Kept};

use crate::{
    PublicKeys, Seal,
    seal::{BYTES_MAX, BadSeal},
};

/// Thousands of seals that are kept whole: one a second for a day, and some.
const THOUSANDS_KEPT: u64 = 90;
/// Folders of a thousand that are cleared at a time.
const CLEARED_MAX: usize = 5;
/// Requests to the storage that one of us has under way.
pub(crate) const AT_ONCE: usize = 16;

/// A tile that is to be kept, and of which shard.
pub(crate) type NewTile = (ShardId, Tile, Vec<Hash>);

/// Seals and tiles. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SealStore {
    storage: ObjectStorage,
    keys: PublicKeys,
}

/// What is kept cannot be had, or not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A seal is not one of ours.
    #[error(transparent)]
    Seal(#[from] BadSeal),
    /// A tile is not whole.
    #[error("of shard {shard}")]
    Tile {
        /// Whose.
        shard: ShardId,
        /// What is wrong.
        source: WrongSize,
    },
    /// It would overwrite what others have made: nothing would fence sealers.
    #[error(
        "the object storage does not keep what is there: it takes a put with If-None-Match: * although there is something"
    )]
    Overwrites,
}

impl SealStore {
    /// What is kept there, signed by known keys.
    pub fn new(storage: ObjectStorage, keys: PublicKeys) -> Self {
        Self { storage, keys }
    }

    /// The known keys.
    pub fn keys(&self) -> &PublicKeys {
        &self.keys
    }

    /// Whether the storage makes a name once.
    pub(crate) async fn check_that_it_keeps(&self) -> Result<(), StoreError> {
        let probe = LedgerName::Probe(rand::random::<u32>().into());
        let first = self.storage.keep(&probe, Bytes::from_static(b"first")).await?;
        let second = self.storage.keep(&probe, Bytes::from_static(b"second")).await?;
        self.storage.forget(&probe).await?;
        self.storage.clear_unfinished().await?;
        if (first, second) == (Kept::Same, Kept::Other) { Ok(()) } else { Err(StoreError::Overwrites) }
    }

    /// The newest seal; nothing before the first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest(&self) -> Result<Option<Seal>, StoreError> {
        // A folder may be empty: whoever made it for the first seal in it died right then.
        for millions in numbers(&self.storage.entries(&LedgerFolder::Seals).await?).rev() {
            for thousands in numbers(&self.storage.entries(&LedgerFolder::Millions(millions)).await?).rev() {
                let thousands = millions * 1_000 + thousands;
                let seals = self.storage.entries(&LedgerFolder::Thousands(thousands)).await?;
                if let Some(last) = numbers(&seals).next_back() {
                    return self.get(thousands * 1_000 + last).await;
                }
            }
        }
        Ok(None)
    }

    /// A seal by its number; nothing when it is not kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, number: u64) -> Result<Option<Seal>, StoreError> {
        let kept = self.storage.kept(&LedgerName::Seal(number), BYTES_MAX).await?;
        Ok(kept.map(|bytes| Seal::open(number, &bytes, self.keys.known())).transpose()?)
    }

    /// The seal that was the newest at a time, as far as seals are kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn at(&self, newest: &Seal, time_us: i64) -> Result<Option<Seal>, StoreError> {
        let Some(first) = self.first_kept().await? else { return Ok(None) };
        let is_before = |seal: &Option<Seal>| seal.as_ref().is_some_and(|seal| seal.top().sealed_at_us() <= time_us);
        // One that is cleared away while we look counts as before the time; what is found at the end says.
        let (mut low, mut high, mut found) = (first, newest.number() + 1, None);
        while low < high {
            let middle = low + (high - low) / 2;
            let seal = self.get(middle).await?;
            if seal.is_none() || is_before(&seal) {
                low = middle + 1;
                found = seal.or(found);
            } else {
                high = middle;
            }
        }
        match found {
            Some(found) => Ok(Some(found)),
            None => self.of_hours(time_us).await,
        }
    }

    /// The newest of those that are kept of hours, sealed at this time or before.
    async fn of_hours(&self, time_us: i64) -> Result<Option<Seal>, StoreError> {
        let Some(time) = DateTime::from_timestamp_micros(time_us).map(|time| time.naive_utc()) else { return Ok(None) };
        let days = self.storage.entries(&LedgerFolder::Hours).await?;
        let days = days.iter().rev().filter_map(|day| day.parse::<NaiveDate>().ok()).filter(|day| *day <= time.date());
        for day in days {
            let hours = self.storage.entries(&LedgerFolder::Day(day)).await?;
            let hours = hours.iter().rev().filter_map(|hour| day.and_hms_opt(hour.parse().ok()?, 0, 0));
            for hour in hours.filter(|hour| *hour <= time) {
                let Some(bytes) = self.storage.kept(&LedgerName::Hour(hour), BYTES_MAX).await? else { continue };
                let seal = Seal::open(0, &bytes, self.keys.known())?;
                if seal.top().sealed_at_us() <= time_us {
                    return Ok(Some(seal));
                }
            }
        }
        Ok(None)
    }

    /// Keep a seal after `before`, unless its number is taken by another one.
    pub(crate) async fn put(&self, before: Option<&Seal>, seal: &Seal) -> Result<Kept, StoreError> {
        let hour = |seal: &Seal| {
            let time = DateTime::from_timestamp_micros(seal.top().sealed_at_us()).map(|time| time.naive_utc());
            time.and_then(|time: NaiveDateTime| time.date().and_hms_opt(time.hour(), 0, 0))
        };
        // First, so that whoever finds a seal of a later hour may count on it.
        if let Some((before, of)) = before.and_then(|before| Some((before, hour(before)?)))
            && hour(seal) != Some(of)
            && self.storage.keep(&LedgerName::Hour(of), before.to_bytes()).await? == Kept::Other
        {
            tracing::warn!(hour = %of, "the seal that is kept of this hour is another one than its last");
        }
        Ok(self.storage.keep(&LedgerName::Seal(seal.number()), seal.to_bytes()).await?)
    }

    /// Keep tiles of any shards; those come back that are there already with other hashes.
    pub(crate) async fn put_tiles(&self, tiles: Vec<NewTile>) -> Result<Vec<(ShardId, Tile)>, StorageError> {
        let put = tiles.into_iter().map(|(shard, tile, hashes)| async move {
            let kept = self.storage.keep(&LedgerName::Tile(shard, tile), tile::bytes(&hashes).into()).await?;
            Ok::<_, StorageError>((kept == Kept::Other).then_some((shard, tile)))
        });
        let others: Vec<_> = stream::iter(put).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(others.into_iter().flatten().collect())
    }

    /// The hashes of a tile; nothing when it is not kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tile(&self, shard: ShardId, tile: Tile) -> Result<Option<Vec<Hash>>, StoreError> {
        let bytes = self.storage.kept(&LedgerName::Tile(shard, tile), tile_bytes_max()).await?;
        let hashes = bytes.map(|bytes| tile.hashes(&bytes)).transpose();
        hashes.map_err(|source| StoreError::Tile { shard, source })
    }

    /// Delete what tiles were before they were full.
    pub(crate) async fn forget_partials(&self, shard: ShardId, full: Tile) -> Result<(), StorageError> {
        let widths = self.storage.entries(&LedgerFolder::Partials(shard, full)).await?;
        for width in widths.iter().filter_map(|width| width.parse().ok()) {
            let Some(partial) = Tile::new(full.level(), full.index(), width).filter(|tile| !tile.is_full()) else {
                continue;
            };
            self.storage.forget(&LedgerName::Tile(shard, partial)).await?;
        }
        Ok(())
    }

    /// Delete seals of which only the last of each hour is kept.
    pub(crate) async fn forget_old(&self, newest: u64) -> Result<(), StorageError> {
        let keep_from = (newest / 1_000).saturating_sub(THOUSANDS_KEPT);
        for _ in 0..CLEARED_MAX {
            let Some(first) = self.first_thousands().await? else { return Ok(()) };
            if first >= keep_from {
                return Ok(());
            }
            // Ascending, so that what is left is without a gap if this is interrupted.
            for seal in self.storage.entries(&LedgerFolder::Thousands(first)).await? {
                if let Ok(number) = seal.parse::<u64>() {
                    self.storage.forget(&LedgerName::Seal(first * 1_000 + number)).await?;
                }
            }
        }
        Ok(())
    }

    async fn first_kept(&self) -> Result<Option<u64>, StorageError> {
        let Some(thousands) = self.first_thousands().await? else { return Ok(None) };
        let entries = self.storage.entries(&LedgerFolder::Thousands(thousands)).await?;
        Ok(numbers(&entries).next().map(|number| thousands * 1_000 + number))
    }

    /// The first folder of a thousand that has something in it.
    async fn first_thousands(&self) -> Result<Option<u64>, StorageError> {
        for millions in numbers(&self.storage.entries(&LedgerFolder::Seals).await?) {
            for thousands in numbers(&self.storage.entries(&LedgerFolder::Millions(millions)).await?) {
                let thousands = millions * 1_000 + thousands;
                if !self.storage.entries(&LedgerFolder::Thousands(thousands)).await?.is_empty() {
                    return Ok(Some(thousands));
                }
            }
        }
        Ok(None)
    }
}

/// Of a full one.
fn tile_bytes_max() -> u64 {
    u64::from(tile::WIDTH) * 32
}

fn numbers(entries: &[String]) -> impl DoubleEndedIterator<Item = u64> {
    entries.iter().filter_map(|entry| entry.parse().ok())
}

#[cfg(test)]
mod tests;
