//! Proofs from what is kept: what the API answers auditors with.
//!
//! A proof about an old size takes tiles as the newest seal has them: a tile that has grown begins with the same hashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use skyriff_domain::ShardId;
use skyriff_proof::{
    Hash, Plan, Tile, Tiles,
    tree::{MissingTile, OutOfTree},
};
use skyriff_storage::ObjectStorage;
use tokio::{sync::Mutex, time::Instant};

use crate::{PublicKeys, Seal, SealStore, StoreError, store::AT_ONCE};

/// For so long the newest seal is not looked for again, unless somebody needs a newer one.
const NEWEST_FOR: Duration = Duration::from_millis(250);

/// What is sealed, to be read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    store: SealStore,
    newest: Arc<Mutex<Option<Newest>>>,
}

/// The newest seal, and since when it is known.
type Newest = (Instant, Arc<Seal>);

/// A proof cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// What is kept cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not about what is sealed.
    #[error(transparent)]
    OutOfTree(#[from] OutOfTree),
    /// A tile that a seal needs is gone.
    #[error("of shard {shard}: {source}")]
    Missing {
        /// Whose.
        shard: ShardId,
        /// Which.
        source: MissingTile,
    },
}

impl Ledger {
    /// What is sealed there, by a ledger with these keys.
    pub fn new(storage: ObjectStorage, keys: PublicKeys) -> Self {
        Self { store: SealStore::new(storage, keys), newest: Arc::default() }
    }

    /// The public keys that are known.
    pub fn keys(&self) -> &PublicKeys {
        self.store.keys()
    }

    /// The newest seal, or one that is a moment old; nothing before the first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest(&self) -> Result<Option<Arc<Seal>>, StoreError> {
        self.newest_since(Instant::now().checked_sub(NEWEST_FOR)).await
    }

    /// The newest seal at this very moment.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn newest_now(&self) -> Result<Option<Arc<Seal>>, StoreError> {
        self.newest_since(Some(Instant::now())).await
    }

    /// As it was looked for then or later. One looks, and the others take what it finds.
    async fn newest_since(&self, since: Option<Instant>) -> Result<Option<Arc<Seal>>, StoreError> {
        let mut newest = self.newest.lock().await;
        if let Some((at, seal)) = newest.as_ref()
            && since.is_none_or(|since| *at >= since)
        {
            return Ok(Some(Arc::clone(seal)));
        }
        let at = Instant::now();
        *newest = self.store.newest().await?.map(|seal| (at, Arc::new(seal)));
        Ok(newest.as_ref().map(|(_, seal)| Arc::clone(seal)))
    }

    /// The seal that was the newest at a time, in microseconds since 1970-01-01T00:00:00Z: exactly, within the last day; before,
    /// the last one of an hour.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn at(&self, time_us: i64) -> Result<Option<Arc<Seal>>, StoreError> {
        let Some(newest) = self.newest_now().await? else { return Ok(None) };
        if newest.top().sealed_at_us() <= time_us {
            return Ok(Some(newest));
        }
        Ok(self.store.at(&newest, time_us).await?.map(Arc::new))
    }

    /// The proof that leaf `index` of a shard is in what `seal` seals.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn inclusion(&self, seal: &Seal, shard: ShardId, index: u64) -> Result<Vec<Hash>, LedgerError> {
        let size = seal.head(shard).map_or(0, |head| head.size);
        self.compute(shard, &Plan::inclusion(index, size)?).await
    }

    /// The proof that what `seal` seals of a shard begins with its first `old` events.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn consistency(&self, seal: &Seal, shard: ShardId, old: u64) -> Result<Vec<Hash>, LedgerError> {
        let size = seal.head(shard).map_or(0, |head| head.size);
        let plan = Plan::consistency(old, size)?;
        // Nothing to prove, nothing to look up.
        if old == size { Ok(Vec::new()) } else { self.compute(shard, &plan).await }
    }

    /// A tile as it is kept; a partial one that is gone is the beginning of the full one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tile(&self, shard: ShardId, tile: Tile) -> Result<Option<Vec<Hash>>, StoreError> {
        if let Some(hashes) = self.store.tile(shard, tile).await? {
            return Ok(Some(hashes));
        }
        if tile.is_full() {
            return Ok(None);
        }
        let full = self.store.tile(shard, tile.full()).await?;
        Ok(full.map(|hashes| hashes.into_iter().take(usize::from(tile.width())).collect()))
    }

    async fn compute(&self, shard: ShardId, plan: &Plan) -> Result<Vec<Hash>, LedgerError> {
        let newest = self.newest().await?;
        let size = newest.and_then(|newest| newest.head(shard)).map_or(0, |head| head.size);
        let needed: BTreeSet<_> = plan.tiles();
        let fetched = needed.into_iter().map(|tile| async move {
            // As wide as it is now; narrower ones may be gone.
            let now = Tile::of_tree(tile.level(), tile.index(), size).filter(|now| now.width() > tile.width());
            let hashes = match now {
                Some(now) => match self.tile(shard, now).await? {
                    Some(hashes) => Some(hashes),
                    None => self.tile(shard, tile).await?,
                },
                None => self.tile(shard, tile).await?,
            };
            Ok::<_, StoreError>(hashes.map(|hashes| ((tile.level(), tile.index()), hashes)))
        });
        let fetched: Vec<_> = stream::iter(fetched).buffer_unordered(AT_ONCE).try_collect().await?;
        let here = Here(fetched.into_iter().flatten().collect());
        plan.hashes(&here).map_err(|source| LedgerError::Missing { shard, source })
    }
}

/// Tiles by level and index, at least as wide as they are asked for.
struct Here(BTreeMap<(u8, u64), Vec<Hash>>);

impl Tiles for Here {
    fn hashes(&self, tile: Tile) -> Option<&[Hash]> {
        self.0.get(&(tile.level(), tile.index())).map(Vec::as_slice)
    }
}
