//! A log, a storage, keys; and what must be true of everything that was ever signed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use skyriff_domain::{ShardCount, ShardId};
use skyriff_postgres::{
    databases::{OWNER, SEAL},
    testing::TestDatabases,
};
use skyriff_proof::{Frontier, Head, SignerKey};
use skyriff_seal::{Ledger, LogPlace, Seal, SealKeys, SealStore, Sealer, Settings};
use skyriff_storage::ObjectStorage;
use sqlx::{ConnectOptions, PgConnection, PgPool};
use tempfile::TempDir;

pub(crate) const LEDGER: &str = "example.org/v1/ledger/tlog";
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A log of sixteen shards, and a folder.
pub(crate) struct World {
    pub(crate) databases: TestDatabases,
    pub(crate) log: PgConnection,
    folder: TempDir,
}

/// What `look` finds, as soon as it finds something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(crate) fn private(seed: u8) -> SignerKey {
    SignerKey::from_seed(LEDGER.parse().unwrap(), &[seed; 32]).unwrap()
}

/// The key that signs unless a test says otherwise.
pub(crate) fn keys() -> SealKeys {
    SealKeys::new(&private(1).to_private_text(), "").unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        let databases = TestDatabases::create().await;
        let log = databases.event_store(OWNER).connect().await.unwrap();
        Self { databases, log, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// Below the folder of what is sealed.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.objects().join("ledger").join(path)
    }

    pub(crate) fn storage(&self) -> ObjectStorage {
        ObjectStorage::open(&format!("file://{}", self.objects().display()), []).unwrap()
    }

    pub(crate) fn store(&self) -> SealStore {
        SealStore::new(self.storage(), keys().public().clone())
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger::new(self.storage(), keys().public().clone())
    }

    pub(crate) fn pool(&self) -> PgPool {
        TestDatabases::pool(self.databases.event_store(SEAL))
    }

    pub(crate) fn settings(&self) -> Settings {
        let options = self.databases.event_store(SEAL);
        let shards = ShardCount::default().shards().collect();
        Settings {
            keys: keys(),
            storage: self.storage(),
            shard_count: ShardCount::default(),
            lock: options.clone(),
            listen: vec![options],
            // A copy that is up to date, and the primary.
            logs: vec![LogPlace { shards, primary: self.pool(), replicas: vec![self.pool()] }],
            require_standby: false,
        }
    }

    pub(crate) fn sealer(&self) -> Sealer {
        Sealer::start(self.settings())
    }

    /// So many more events at the end of a shard's log.
    pub(crate) async fn append(&mut self, shard: i16, events: i64) {
        sqlx::query(
            "INSERT INTO events
             SELECT $1, h.position + n, 'test', 'of ' || $1, h.position + n, 'happened', '1',
                    ('{ \"number\":' || n || ', \"text\":\"积分\"}')::json, '{}', now(), clock_timestamp()
             FROM generate_series(1, $2) AS n, (SELECT position FROM heads WHERE shard = $1) AS h",
        )
        .bind(shard)
        .bind(events)
        .execute(&mut self.log)
        .await
        .unwrap();
        sqlx::query("SELECT pg_notify('skyriff_events', '')").execute(&mut self.log).await.unwrap();
    }

    pub(crate) async fn execute(&mut self, sql: &str) {
        assert_eq!(sqlx::query(sql).execute(&mut self.log).await.unwrap().rows_affected(), 1, "{sql}");
    }

    /// The newest seal, once it has so many events of these shards.
    pub(crate) async fn sealed(&self, sizes: &[(u16, u64)]) -> Seal {
        let store = self.store();
        eventually(&format!("{sizes:?} are sealed"), async || {
            let seal = store.newest().await.unwrap()?;
            sizes.iter().all(|(shard, size)| seal.head(ShardId(*shard)).unwrap().size == *size).then_some(seal)
        })
        .await
    }

    /// The tree over a shard's log, computed here.
    async fn trees(&self, shard: ShardId) -> Vec<Head> {
        let pool = self.pool();
        let mut frontier = Frontier::empty();
        let mut heads = vec![frontier.head()];
        let rows: Vec<i64> = sqlx::query_scalar("SELECT position FROM events WHERE shard = $1 ORDER BY position")
            .bind(i16::try_from(shard.0).unwrap())
            .fetch_all(&pool)
            .await
            .unwrap();
        for position in rows {
            let at = skyriff_domain::LogPosition { shard, position: skyriff_domain::Position(position) };
            let row = skyriff_seal::rows::read_at(&pool, at).await.unwrap().unwrap();
            frontier.append(row.leaf().unwrap());
            heads.push(frontier.head());
        }
        heads
    }

    /// Every seal there is continues the one before it, its times ascend, each is of the log as it is, and each can be shown to be
    /// the beginning of the newest. How many there are.
    pub(crate) async fn check_history(&self) -> u64 {
        let (store, ledger) = (self.store(), self.ledger());
        let newest = store.newest().await.unwrap().unwrap();
        let mut trees = BTreeMap::new();
        let mut before: Option<Seal> = None;
        for number in 1..=newest.number() {
            let seal = store.get(number).await.unwrap().unwrap_or_else(|| panic!("there is no seal {number}"));
            if let Some(before) = &before {
                assert!(before.top().sealed_at_us() < seal.top().sealed_at_us());
                assert!(before.top().heads().zip(seal.top().heads()).all(|((_, old), (_, new))| old.size <= new.size));
            }
            for (shard, head) in seal.top().heads().filter(|(_, head)| head.size > 0) {
                let tree: &Vec<Head> = match trees.entry(shard) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(self.trees(shard).await),
                };
                assert_eq!(tree[usize::try_from(head.size).unwrap()], head, "{shard} in {number}");
                let proof = ledger.consistency(&newest, shard, head.size).await.unwrap();
                assert_eq!(newest.head(shard).unwrap().continues(&head, &proof), Ok(()));
            }
            before = Some(seal);
        }
        newest.number()
    }

    /// The files of a shard's tiles, and of partial ones.
    pub(crate) fn tiles(&self, shard: u16) -> (usize, usize) {
        let mut folders = vec![self.file(&format!("{shard}/tile"))];
        let (mut full, mut partial) = (0, 0);
        while let Some(folder) = folders.pop() {
            let is_partial = folder.extension().is_some_and(|extension| extension == "p");
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if is_partial {
                    partial += 1;
                } else {
                    full += 1;
                }
            }
        }
        (full, partial)
    }
}
