//! One database of the log, and the lanes of its shards: how far it is, comparing, reading, keeping full tiles.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use metrics::gauge;
use skyriff_domain::{Position, ShardId};
use skyriff_follow::log;
use skyriff_proof::{EventRow, Head};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, timeout};

use crate::{
    LogPlace, SealStore, StoreError,
    lane::{Disagrees, Grown, Kept, Lane, NOTHING, State},
    rows::{self, Part},
    store::{AT_ONCE, NewTile},
};

/// Events of one shard that are read at once.
const EVENTS_AT_ONCE: i64 = 1_024;
/// Shards that are read at once: what is in memory is bounded by both.
const SHARDS_AT_ONCE: usize = 16;
/// A database that does not answer within this time is passed over.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A primary that is away is left alone for so long, so that the shards of others are sealed meanwhile.
const AWAY: Duration = Duration::from_secs(2);

/// Events that the log has and no seal, by `shard`.
pub(crate) const UNSEALED_EVENTS: &str = "skyriff_seal_unsealed_events";
/// Seconds since the oldest of them was recorded; 0 when there is none.
pub(crate) const UNSEALED_SECONDS: &str = "skyriff_seal_unsealed_seconds";
/// Events that are sealed, by `shard`.
pub(crate) const SEALED_EVENTS: &str = "skyriff_seal_sealed_events";
/// 1 while a shard is not sealed any further, because the log contradicts what is signed.
pub(crate) const STOPPED: &str = "skyriff_seal_stopped";

/// One database, and the lanes of its shards.
#[derive(Debug)]
pub(crate) struct Database {
    place: LogPlace,
    pub(crate) lanes: BTreeMap<ShardId, Lane>,
    next_replica: usize,
    away_until: Option<Instant>,
    require_standby: bool,
}

impl Database {
    pub(crate) fn new(place: LogPlace, lanes: BTreeMap<ShardId, Lane>, require_standby: bool) -> Self {
        Self { place, lanes, next_replica: 0, away_until: None, require_standby }
    }

    /// Do what can be done for this database in one round, until a time. One that does not answer harms no other.
    pub(crate) async fn round(&mut self, store: &SealStore, until: Instant) -> Result<(), StoreError> {
        if self.away_until.is_some_and(|until| until > Instant::now()) {
            return Ok(());
        }
        self.away_until = None;
        let done = async {
            self.look().await?;
            self.resume(store).await?;
            self.grow(store, until).await
        };
        match done.await {
            Ok(()) => Ok(()),
            Err(NotDone::Store(error)) => Err(error),
            Err(NotDone::Database(error)) => {
                let shards = self.place.shards.len();
                tracing::warn!(shards, %error, "a database of the log does not answer; its shards are not sealed for now");
                self.away_until = Some(Instant::now() + AWAY);
                Ok(())
            }
        }
    }

    /// How far the log is. Only the primary knows.
    async fn look(&mut self) -> Result<(), NotDone> {
        let sealed = self.lanes.values().map(|lane| (lane.shard, position(lane.sealed.size))).collect();
        let behind = async {
            let mut connection = self.place.primary.acquire().await?;
            if self.require_standby {
                check_standby(&mut connection).await?;
            }
            log::behind(&mut connection, &sealed).await
        };
        let behind = timeout(ANSWER_MAX, behind).await.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let behind = behind.map_err(|error| sqlx::Error::Io(std::io::Error::other(error)))?;
        for (shard, behind) in behind {
            let Some(lane) = self.lanes.get_mut(&shard) else { continue };
            lane.head_before = lane.head;
            // Less than nothing, when the last events are gone.
            lane.head = lane.sealed.size.saturating_add_signed(behind.events);
            show(lane, behind.oldest_recorded_at.filter(|_| behind.events > 0));
            if lane.head < lane.sealed.size && !lane.is_stopped() {
                lane.stop(&Disagrees::Short { head: lane.head, sealed: lane.sealed });
            }
        }
        Ok(())
    }

    /// Compare what was sealed with the log, where that was not done yet, and where a shard stands still.
    async fn resume(&mut self, store: &SealStore) -> Result<(), NotDone> {
        let primary = &self.place.primary;
        let due = self.lanes.values().filter(|lane| lane.is_to_resume());
        let compare =
            due.map(|lane| async move { Ok::<_, NotDone>((lane.shard, compare(store, primary, lane).await?)) });
        let compare: Vec<_> = compare.collect();
        let compared: Vec<_> = stream::iter(compare).buffer_unordered(AT_ONCE).try_collect().await?;
        for (shard, compared) in compared {
            let Some(lane) = self.lanes.get_mut(&shard) else { continue };
            match compared {
                Ok(grown) => lane.go_on(grown),
                Err(disagrees) => lane.stop(&disagrees),
            }
        }
        Ok(())
    }

    /// Add what the log has, as long as there is time.
    async fn grow(&mut self, store: &SealStore, until: Instant) -> Result<(), NotDone> {
        loop {
            let before = self.events();
            let behind: Vec<_> = self.lanes.values().filter_map(wants).map(|part| part.shard).collect();
            for shards in behind.chunks(SHARDS_AT_ONCE) {
                self.grow_some(store, shards).await?;
                if Instant::now() >= until {
                    return Ok(());
                }
            }
            if self.events() == before {
                return Ok(());
            }
        }
    }

    fn events(&self) -> u64 {
        self.lanes.values().fold(0, |events, lane| events.saturating_add(lane.size()))
    }

    /// From a replica what it has; from the primary what none had although it was asked before.
    async fn grow_some(&mut self, store: &SealStore, shards: &[ShardId]) -> Result<(), NotDone> {
        self.next_replica = self.next_replica.wrapping_add(1);
        let count = self.place.replicas.len();
        let turns = (0..count).filter_map(|turn| self.place.replicas.get((self.next_replica + turn) % count)).cloned();
        let pools: Vec<_> = turns.map(|pool| (pool, false)).chain([(self.place.primary.clone(), true)]).collect();
        let mut left = shards.to_vec();
        for (pool, is_primary) in pools {
            let parts: Vec<_> = left.iter().filter_map(|shard| self.lanes.get(shard).and_then(wants)).collect();
            if parts.is_empty() {
                return Ok(());
            }
            let mut rows = match read(&pool, &parts).await {
                Ok(rows) => rows,
                Err(error) if is_primary => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "a replica of the log does not answer; trying the next");
                    continue;
                }
            };
            let mut full = Vec::new();
            for part in &parts {
                let rows = rows.remove(&part.shard).unwrap_or_default();
                let Some(lane) = self.lanes.get_mut(&part.shard) else { continue };
                if add(lane, &rows, is_primary, &mut full) {
                    left.retain(|shard| *shard != part.shard);
                }
            }
            self.keep(store, full).await?;
        }
        Ok(())
    }

    /// Everything is sealed that the log is known to have.
    pub(crate) fn show_sealed(lane: &Lane) {
        if lane.sealed.size >= lane.head {
            show(lane, None);
        }
    }

    /// Keep the tiles at the edges, which a seal of what there is now would need.
    pub(crate) async fn keep_edges(&mut self, store: &SealStore) -> Result<(), StoreError> {
        let edges = self.lanes.values().filter_map(|lane| match &lane.state {
            State::Ready(grown) if grown.size() > lane.sealed.size => {
                Some((lane.shard, grown.new_partials(lane.sealed)))
            }
            State::Ready(_) | State::Unknown | State::Stopped { .. } => None,
        });
        let edges = edges.flat_map(|(shard, tiles)| tiles.into_iter().map(move |(tile, hashes)| (shard, tile, hashes)));
        let edges = edges.collect();
        self.keep(store, edges).await
    }

    /// A shard of which something else is kept stands still.
    async fn keep(&mut self, store: &SealStore, tiles: Vec<NewTile>) -> Result<(), StoreError> {
        for (shard, other) in store.put_tiles(tiles).await? {
            if let Some(lane) = self.lanes.get_mut(&shard) {
                lane.stop(&Disagrees::OtherTile(other));
            }
        }
        Ok(())
    }
}

/// What is seen on this database is on a synchronous standby too: a commit is seen by others once it has waited for one.
async fn check_standby(connection: &mut PgConnection) -> sqlx::Result<()> {
    let standbys: String =
        sqlx::query_scalar("SELECT current_setting('synchronous_standby_names')").fetch_one(connection).await?;
    if standbys.trim().is_empty() {
        let what = "a standby is required, and the event store commits without one (synchronous_standby_names)";
        return Err(sqlx::Error::Configuration(what.into()));
    }
    Ok(())
}

/// Whether tiles and log say of a shard what was sealed.
async fn compare(store: &SealStore, primary: &PgPool, lane: &Lane) -> Result<Result<Grown, Disagrees>, NotDone> {
    let (shard, head, sealed) = (lane.shard, lane.head, lane.sealed);
    if head < sealed.size {
        return Ok(Err(Disagrees::Short { head, sealed }));
    }
    let kept = match Kept::of(store, shard, sealed).await? {
        Ok(kept) => kept,
        Err(disagrees) => return Ok(Err(disagrees)),
    };
    // What the log has is for its primary to say.
    let (first, limit) = kept.reads();
    let rows = if limit > 0 { read(primary, &[Part { shard, first, limit }]).await?.remove(&shard) } else { None };
    Ok(kept.compared(shard, &rows.unwrap_or_default()))
}

/// Add rows to a lane, and what is full now to the others; whether that is all for now.
fn add(lane: &mut Lane, rows: &[EventRow<'_>], is_primary: bool, full: &mut Vec<NewTile>) -> bool {
    let (shard, before) = (lane.shard, lane.head_before);
    let State::Ready(grown) = &mut lane.state else { return true };
    match grown.extend(shard, rows) {
        Ok(tiles) => {
            full.extend(tiles.into_iter().map(|(tile, hashes)| (shard, tile, hashes)));
            // A replica has had all the time since then.
            grown.size() >= before || i64::try_from(rows.len()).is_ok_and(|count| count >= EVENTS_AT_ONCE)
        }
        // A replica may be behind what was sealed, and what is wrong with it is for the primary to say.
        Err(_) if !is_primary => false,
        Err(disagrees) => {
            lane.stop(&disagrees);
            true
        }
    }
}

/// What is to be read of a lane that goes on and is behind the log.
fn wants(lane: &Lane) -> Option<Part> {
    let State::Ready(grown) = &lane.state else { return None };
    let (first, head) = (grown.reads_from(), position(lane.head));
    // Never beyond the end that the primary has told of: a replica on a timeline of its own may have more, and what is
    // signed of that would contradict the log for ever.
    let limit = (head.0 - first.0).saturating_add(1).min(EVENTS_AT_ONCE);
    (grown.size() < lane.head).then_some(Part { shard: lane.shard, first, limit })
}

async fn read(pool: &PgPool, parts: &[Part]) -> sqlx::Result<BTreeMap<ShardId, Vec<EventRow<'static>>>> {
    timeout(ANSWER_MAX, rows::read(pool, parts)).await.map_err(|_| sqlx::Error::PoolTimedOut)?
}

/// A round ended early.
#[derive(Debug)]
enum NotDone {
    Database(sqlx::Error),
    Store(StoreError),
}

impl From<sqlx::Error> for NotDone {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for NotDone {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// How far shards are behind the log that nobody seals for now, when so much of them was sealed.
pub(crate) async fn show_unsealed(place: &LogPlace, sealed: &BTreeMap<ShardId, Head>) -> Result<(), log::LogError> {
    let lane = |shard: &ShardId| Lane::new(*shard, sealed.get(shard).copied().unwrap_or(NOTHING));
    let lanes: Vec<_> = place.shards.iter().map(lane).collect();
    let after = lanes.iter().map(|lane| (lane.shard, position(lane.sealed.size))).collect();
    let mut connection = place.primary.acquire().await?;
    let behind = log::behind(&mut connection, &after).await?;
    for mut lane in lanes {
        let Some(behind) = behind.get(&lane.shard) else { continue };
        lane.head = lane.sealed.size.saturating_add_signed(behind.events);
        show(&lane, behind.oldest_recorded_at.filter(|_| behind.events > 0));
    }
    Ok(())
}

/// What this process says of shards that it does not seal.
pub(crate) fn nothing_is_ours(shards: &[ShardId]) {
    for shard in shards {
        for name in [UNSEALED_EVENTS, UNSEALED_SECONDS, SEALED_EVENTS, STOPPED] {
            gauge!(name, "shard" => shard.to_string()).set(0.0);
        }
    }
}

/// How far a shard is, for those who watch.
fn show(lane: &Lane, oldest_unsealed: Option<DateTime<Utc>>) {
    let age_s = oldest_unsealed.map_or(0, |recorded_at| (Utc::now() - recorded_at).num_seconds().max(0));
    let of = |name| gauge!(name, "shard" => lane.shard.to_string());
    of(UNSEALED_EVENTS).set(float(lane.head.saturating_sub(lane.sealed.size)));
    of(UNSEALED_SECONDS).set(float(age_s.unsigned_abs()));
    of(SEALED_EVENTS).set(float(lane.sealed.size));
    of(STOPPED).set(f64::from(u8::from(lane.is_stopped())));
}

fn float(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

fn position(size: u64) -> Position {
    Position(i64::try_from(size).unwrap_or(i64::MAX))
}
