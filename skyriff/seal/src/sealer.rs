//! The loop: one sealer is at work, and signs what is new, at least every second.
//!
//! ```text
//! take the lock ─▶ newest seal ─▶ ┌▶ how far is the log? ─▶ compare, read, grow ─▶ full tiles ─▶ edges ─▶ still ours? ─▶ seal ─┐
//!                                 └─────────────────────────── on a notification, or a second ◀──────────────────────────────┘
//! ```
//!
//! The lock is an advisory one, on the primary that has shard 0, held for as long as its connection lasts; others try again
//! every second. It keeps two sealers from working for nothing. What keeps them from contradicting each other is that the
//! storage makes each seal's number once ([`crate::store`]).
//!
//! Whatever fails ends a session, and the next one begins with the newest seal, so nothing that was not kept is remembered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::Utc;
use futures::future::join_all;
use metrics::{counter, gauge, histogram};
use skyriff_domain::{ShardCount, ShardId};
use skyriff_follow::log;
use skyriff_proof::{Head, Tile, TopCheckpoint};
use skyriff_storage::{ObjectStorage, StorageError, keep::Kept};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    LogPlace, Seal, SealError, SealKeys, SealStore,
    database::{self, Database},
    lane::{Lane, NOTHING, State},
};

/// From the beginning of one seal to that of the next while there is something new: a little less than the second that is
/// promised, since making one takes a moment.
const EVERY: Duration = Duration::from_millis(900);
/// A notification may be lost; after this time the log is looked at anyway, and the lock is tried for.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// A session in which nothing moves for so long is given up, with its lock.
const ROUND_MAX: Duration = Duration::from_secs(300);
/// A database that does not answer is given up.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The wait after a failure, and its growth.
const BACK_OFF: Duration = Duration::from_millis(200);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// When a sealer's machine is gone without a word, Postgres notices within so many seconds and frees the lock.
const KEEP_ALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "5"), ("tcp_keepalives_interval", "2"), ("tcp_keepalives_count", "3")];

/// 1 for the process that seals.
const ACTIVE: &str = "skyriff_seal_active";
/// Seals that were made.
const SEALS: &str = "skyriff_seals_total";
/// How long making one took, from looking at the log on.
const SECONDS: &str = "skyriff_seal_seconds";

/// What a sealer needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who signs.
    pub keys: SealKeys,
    /// Where tiles and seals are kept.
    pub storage: ObjectStorage,
    /// How many shards the store has.
    pub shard_count: ShardCount,
    /// The primary of shard 0, where the lock is.
    pub lock: PgConnectOptions,
    /// To be told of appends: every primary.
    pub listen: Vec<PgConnectOptions>,
    /// The log.
    pub logs: Vec<LogPlace>,
    /// Seal only what is of databases whose commits wait for a synchronous standby: what is sealed and then lost in a failover
    /// stops its shard for ever, since what was signed is not taken back.
    pub require_standby: bool,
}

/// A sealer, running.
#[derive(Debug)]
pub struct Sealer {
    task: JoinHandle<Result<(), SealError>>,
    stop: CancellationToken,
}

impl Sealer {
    /// Seal the log, whenever the lock can be had.
    pub fn start(settings: Settings) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(run(settings, stop.clone())), stop }
    }

    /// End. A seal in hand is made or not; either is fine.
    pub async fn stop(self) {
        self.stop.cancel();
        if self.task.is_finished() {
            return;
        }
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = chain(&error), "sealing ended badly"),
            Err(error) => tracing::error!(%error, "sealing ended badly"),
        }
    }

    /// Ends when sealing cannot go on, with what to do about it.
    pub async fn failed(&mut self) -> String {
        match (&mut self.task).await {
            Ok(Ok(())) => "sealing ended by itself".to_owned(),
            Ok(Err(error)) => format!("the log cannot be sealed: {}", chain(&error)),
            Err(error) => format!("sealing ended badly: {error}"),
        }
    }
}

/// Session after session; one ends with whatever it cannot go on with.
async fn run(settings: Settings, stop: CancellationToken) -> Result<(), SealError> {
    let appended = Arc::new(Notify::new());
    let listen = |options: &PgConnectOptions| {
        let options = options.clone().application_name("skyriff seal");
        tokio::spawn(log::listen(options, vec![Arc::clone(&appended)], stop.clone()))
    };
    let listening: Vec<_> = settings.listen.iter().map(listen).collect();
    let (mut back_off, mut sealed) = (BACK_OFF, BTreeMap::new());
    let ended = loop {
        let mut session = Session::new(&settings);
        let ended = tokio::select! {
            ended = session.run(&appended) => ended,
            () = stop.cancelled() => Ok(()),
        };
        gauge!(ACTIVE).set(0.0);
        settings.logs.iter().for_each(|place| database::nothing_is_ours(&place.shards));
        if session.has_sealed {
            back_off = BACK_OFF;
        }
        if let Some(newest) = &session.newest {
            sealed = newest.top().heads().collect();
        }
        let is_on_us = session.has_lock && !matches!(ended, Ok(()) | Err(SealError::Lost(_)));
        session.close().await;
        match ended {
            Ok(()) => break Ok(()),
            Err(error) if !error.passes() => break Err(error),
            Err(error) => tracing::warn!(error = chain(&error), "sealing begins again"),
        }
        // Without the storage there is no session, and what is not sealed is all the more of interest.
        if is_on_us {
            for place in &settings.logs {
                timeout(ANSWER_MAX, database::show_unsealed(place, &sealed)).await.ok();
            }
        }
        tokio::select! {
            () = sleep(back_off) => {}
            () = stop.cancelled() => break Ok(()),
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    };
    stop.cancel();
    join_all(listening).await;
    ended
}

/// From taking the lock to losing it, or anything else.
struct Session<'s> {
    settings: &'s Settings,
    store: SealStore,
    lock: Option<PgConnection>,
    newest: Option<Seal>,
    databases: Vec<Database>,
    has_lock: bool,
    has_sealed: bool,
}

impl<'s> Session<'s> {
    fn new(settings: &'s Settings) -> Self {
        let store = SealStore::new(settings.storage.clone(), settings.keys.public().clone());
        Self { settings, store, lock: None, newest: None, databases: Vec::new(), has_lock: false, has_sealed: false }
    }

    /// Never ends well by itself.
    async fn run(&mut self, appended: &Notify) -> Result<(), SealError> {
        self.take_lock().await?;
        self.has_lock = true;
        timeout(ROUND_MAX, self.begin()).await.map_err(|_| SealError::Late)??;
        loop {
            let started = Instant::now();
            let is_news = timeout(ROUND_MAX, self.round(started)).await.map_err(|_| SealError::Late)??;
            // While there is something new the next one begins in time; else when there is.
            tokio::time::sleep_until(started + EVERY).await;
            if !is_news {
                tokio::select! {
                    () = appended.notified() => {}
                    () = sleep(LOOK_AT_LEAST_EVERY) => {}
                }
            }
        }
    }

    /// Wait for the lock, for as long as another sealer has it.
    async fn take_lock(&mut self) -> Result<(), SealError> {
        let options = self.settings.lock.clone().application_name("skyriff seal").options(KEEP_ALIVE);
        let connection = timeout(ANSWER_MAX, options.connect()).await.map_err(|_| SealError::Late)??;
        let connection = self.lock.insert(connection);
        loop {
            let take = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('skyriff seal'), 0)");
            let is_ours: bool =
                timeout(ANSWER_MAX, take.fetch_one(&mut *connection)).await.map_err(|_| SealError::Late)??;
            if is_ours {
                return Ok(());
            }
            sleep(LOOK_AT_LEAST_EVERY).await;
        }
    }

    /// Where to go on.
    async fn begin(&mut self) -> Result<(), SealError> {
        let (settings, store) = (self.settings, &self.store);
        store.check_that_it_keeps().await?;
        let newest = store.newest().await?;
        if let Some(newest) = &newest {
            let (there, ours) = (newest.top().ledger(), settings.keys.ledger());
            if there != ours {
                return Err(SealError::Ledger { there: there.clone(), ours: ours.clone() });
            }
            let (there, ours) = (newest.top().heads().count(), settings.shard_count.get());
            if there != usize::from(ours) {
                return Err(SealError::Shards { there, ours });
            }
        }
        let lane = |shard: &ShardId| {
            let sealed = newest.as_ref().and_then(|newest| newest.head(*shard)).unwrap_or(NOTHING);
            (*shard, Lane::new(*shard, sealed))
        };
        let database = |place: &LogPlace| {
            let lanes: BTreeMap<_, _> = place.shards.iter().map(lane).collect();
            Database::new(place.clone(), lanes, settings.require_standby)
        };
        self.databases = settings.logs.iter().map(database).collect();
        // Whoever was here before may not have come to it.
        if let Some(newest) = &newest {
            store.forget_old(newest.number()).await?;
        }
        let number = newest.as_ref().map_or(0, Seal::number);
        tracing::info!(ledger = %settings.keys.ledger(), newest = number, storage = %settings.storage, "sealing");
        gauge!(ACTIVE).set(1.0);
        self.newest = newest;
        Ok(())
    }

    /// Look at the log, and seal what is new; whether there is more, as far as is known.
    async fn round(&mut self, started: Instant) -> Result<bool, SealError> {
        let store = &self.store;
        let rounds = self.databases.iter_mut().map(|database| database.round(store, started + EVERY));
        join_all(rounds).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        for database in &mut self.databases {
            database.keep_edges(store).await?;
        }
        let heads = self.heads()?;
        let is_new = match &self.newest {
            None => true,
            Some(newest) => {
                let is_longer = newest.top().heads().zip(&heads).any(|((_, sealed), next)| sealed != *next);
                is_longer || !self.settings.keys.have_signed(newest.note())
            }
        };
        if is_new {
            self.seal(heads).await?;
            histogram!(SECONDS).record(started.elapsed().as_secs_f64());
        }
        let is_behind = |lane: &Lane| matches!(lane.state, State::Ready(_)) && lane.size() < lane.head;
        Ok(self.databases.iter().flat_map(|database| database.lanes.values()).any(is_behind))
    }

    /// What every shard has now, by its number. None is ever less than what was signed, or another tree of that size.
    fn heads(&self) -> Result<Vec<Head>, SealError> {
        let lanes: BTreeMap<_, _> =
            self.databases.iter().flat_map(|database| &database.lanes).map(|(shard, lane)| (*shard, lane)).collect();
        let head = |shard: ShardId| {
            let (sealed, next) = lanes.get(&shard).map_or((NOTHING, NOTHING), |lane| (lane.sealed, lane.to_sign()));
            let signed = self.newest.as_ref().and_then(|newest| newest.head(shard)).unwrap_or(NOTHING);
            let continues = next.size > sealed.size || next == sealed;
            if signed == sealed && continues { Ok(next) } else { Err(SealError::Fork { shard, sealed: signed, next }) }
        };
        self.settings.shard_count.shards().map(head).collect()
    }

    async fn seal(&mut self, heads: Vec<Head>) -> Result<(), SealError> {
        self.check_lock().await?;
        let keys = &self.settings.keys;
        let before = self.newest.as_ref();
        // Times of seals ascend, whatever the clock does.
        let earliest = before.map_or(i64::MIN, |before| before.top().sealed_at_us().saturating_add(1));
        let sealed_at_us = Utc::now().timestamp_micros().max(earliest);
        let seal = Seal::sign(keys, before, TopCheckpoint::new(keys.ledger().clone(), sealed_at_us, heads)?)?;
        if self.store.put(before, &seal).await? == Kept::Other {
            return Err(SealError::Lost(seal.number()));
        }
        counter!(SEALS).increment(1);
        self.has_sealed = true;
        let superseded = self.sealed(&seal);
        if let Err(error) = self.clear_away(superseded, seal.number()).await {
            tracing::warn!(error = chain(&error), "what is no longer needed of seals is still there");
        }
        self.newest = Some(seal);
        Ok(())
    }

    /// The lanes are where the seal is. What comes back are tiles that were partial and are full now.
    fn sealed(&mut self, seal: &Seal) -> Vec<(ShardId, Tile)> {
        let mut superseded = Vec::new();
        for lane in self.databases.iter_mut().flat_map(|database| database.lanes.values_mut()) {
            let Some(next) = seal.head(lane.shard) else { continue };
            let now = Tile::edge(lane.sealed.size)
                .filter_map(|tile| Tile::of_tree(tile.level(), tile.index(), next.size))
                .filter(Tile::is_full);
            superseded.extend(now.map(|tile| (lane.shard, tile)));
            lane.sealed = next;
            Database::show_sealed(lane);
        }
        superseded
    }

    async fn clear_away(&self, superseded: Vec<(ShardId, Tile)>, number: u64) -> Result<(), StorageError> {
        for (shard, tile) in superseded {
            self.store.forget_partials(shard, tile).await?;
        }
        if number.is_multiple_of(1_000) { self.store.forget_old(number).await } else { Ok(()) }
    }

    /// Whether the connection that has the lock is still there. Most of those who lost it find out here, before they sign.
    async fn check_lock(&mut self) -> Result<(), SealError> {
        let Some(connection) = &mut self.lock else { return Err(SealError::Late) };
        let asked = timeout(ANSWER_MAX, sqlx::query("SELECT 1").execute(connection)).await;
        asked.map_err(|_| SealError::Late)??;
        Ok(())
    }

    /// Give the lock back at once.
    async fn close(self) {
        if let Some(mut connection) = self.lock {
            let unlock = sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut connection);
            timeout(ANSWER_MAX, unlock).await.ok();
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
