//! News of jobs for the clients that watch them at this node: one look at each database for all of them.
//!
//! What a job becomes is read from the log, so any node can tell it and nothing is missed; how far an attempt is, from the
//! queue.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use metrics::gauge;
use skyriff_domain::{Event, JobId, StreamId, UserId, video_job};
use sqlx::{FromRow, PgPool, postgres::PgListener};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Busy, Place, VideoQueue, within};

/// Between two looks: at most, since progress is told by nobody; and at least, however much is appended.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// News that a client may be behind; a slower one is let go, and comes again from where it was.
const NEWS_MAX: usize = 64;
/// Jobs that one user may watch at once at one node, so that nobody takes the room of all.
const OF_USER_MAX: usize = 32;
/// Clients that watch, by `database`.
const WATCHERS: &str = "skyriff_video_watchers";

/// One piece of news of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It became something.
    Event {
        /// Which of its events.
        sequence: i64,
        /// What.
        event: video_job::Event,
        /// When.
        occurred_at: DateTime<Utc>,
    },
    /// The attempt that runs is so far.
    Progress {
        /// The event that it comes after.
        sequence: i64,
        /// Which attempt.
        attempt: u32,
        /// In per cent.
        progress: u8,
    },
}

/// A job that is watched.
#[derive(Debug)]
pub struct Watched {
    /// What became of it so far, after what the client has seen.
    pub past: Vec<Change>,
    /// What becomes of it from now on; none when it is over.
    pub news: Option<mpsc::Receiver<Change>>,
}

/// Why a job cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum NotWatched {
    /// Too many do.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The user has no such job.
    #[error("there is no such job")]
    NotFound,
    /// What it made was deleted with what else belonged to its owner.
    #[error("what belonged to this person was erased")]
    Erased,
    /// Its events cannot be read.
    #[error("the log cannot be read")]
    Unavailable(#[from] sqlx::Error),
}

#[derive(Clone, Debug)]
pub(super) struct Watches {
    hubs: Arc<[mpsc::UnboundedSender<Watcher>]>,
    room: Arc<Semaphore>,
    /// How many each user has open.
    of_users: Arc<Mutex<HashMap<UserId, usize>>>,
}

/// One of those that a node has room for, and a user may have open.
struct Room {
    user: UserId,
    of_users: Arc<Mutex<HashMap<UserId, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Watches {
    fn enter(&self, user: UserId) -> Result<Room, Busy> {
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(|_| Busy)?;
        let mut of_users = self.of_users.lock().unwrap_or_else(PoisonError::into_inner);
        let open = of_users.entry(user).or_default();
        if *open >= OF_USER_MAX {
            return Err(Busy);
        }
        *open += 1;
        Ok(Room { user, of_users: Arc::clone(&self.of_users), _permit: permit })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut of_users = self.of_users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = of_users.get_mut(&self.user) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                of_users.remove(&self.user);
            }
        }
    }
}

struct Watcher {
    job: JobId,
    /// The last event that it has.
    seen: i64,
    /// The last progress that it has, in which attempt.
    progress: (u32, u8),
    news: mpsc::Sender<Change>,
    _room: Room,
}

impl VideoQueue {
    /// Watch a user's job, from after the event and the progress that the client has seen.
    ///
    /// # Errors
    /// [`NotWatched`].
    pub async fn watch(&self, user: UserId, job: JobId, seen: i64, progress: u8) -> Result<Watched, NotWatched> {
        let room = self.watches.enter(user)?;
        let place = self.place_of(user).ok_or(NotWatched::NotFound)?;
        let index = self.places.iter().position(|other| other.shards == place.shards).unwrap_or_default();
        let all = events(&place.pool, &[(0, job, 0)]).await?;
        let is_own = all.first().is_some_and(|(_, change)| match change {
            Change::Event { event: video_job::Event::Submitted(order), .. } => order.user == user,
            Change::Event { .. } | Change::Progress { .. } => false,
        });
        if !is_own {
            return Err(NotWatched::NotFound);
        }
        let last = i64::try_from(all.len()).unwrap_or(i64::MAX);
        let is_over = all.last().is_some_and(|(_, change)| is_end(change));
        let attempt = all.iter().filter_map(|(_, change)| attempt_of(change)).max().unwrap_or_default();
        let sequence = |change: &Change| match change {
            Change::Event { sequence, .. } | Change::Progress { sequence, .. } => *sequence,
        };
        let past = all.into_iter().map(|(_, change)| change).filter(|change| sequence(change) > seen).collect();
        if is_over {
            return Ok(Watched { past, news: None });
        }
        let (sender, news) = mpsc::channel(NEWS_MAX);
        // Progress belongs to the last event that was seen; after another one it begins anew.
        let progress = (attempt, if seen >= last { progress } else { 0 });
        let watcher = Watcher { job, seen: last, progress, news: sender, _room: room };
        let hub = self.watches.hubs.get(index).ok_or(NotWatched::NotFound)?;
        hub.send(watcher).map_err(|_| Busy)?;
        Ok(Watched { past, news: Some(news) })
    }
}

const fn is_end(change: &Change) -> bool {
    use video_job::Event as E;
    match change {
        Change::Event { event, .. } => match event {
            E::Succeeded { .. } | E::Failed { .. } | E::Cancelled {} | E::Expired {} => true,
            E::Submitted(_) | E::Leased { .. } | E::AttemptFailed { .. } => false,
        },
        Change::Progress { .. } => false,
    }
}

const fn attempt_of(change: &Change) -> Option<u32> {
    match change {
        Change::Event { event: video_job::Event::Leased { attempt, .. }, .. } => Some(*attempt),
        Change::Event { .. } | Change::Progress { .. } => None,
    }
}

pub(super) fn start(places: Arc<[Place]>, max: usize, stop: CancellationToken) -> (Watches, Vec<JoinHandle<()>>) {
    let (mut hubs, mut tasks) = (Vec::new(), Vec::new());
    for place in places.iter() {
        let (sender, watchers) = mpsc::unbounded_channel();
        let appended = Arc::new(Notify::new());
        hubs.push(sender);
        tasks.push(tokio::spawn(listen(place.pool.clone(), Arc::clone(&appended), stop.clone())));
        tasks.push(tokio::spawn(run(place.clone(), watchers, appended, stop.clone())));
    }
    (Watches { hubs: hubs.into(), room: Arc::new(Semaphore::new(max)), of_users: Arc::default() }, tasks)
}

async fn listen(pool: PgPool, appended: Arc<Notify>, stop: CancellationToken) {
    let listening = async {
        loop {
            let listened: sqlx::Result<()> = async {
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen("skyriff_events").await?;
                loop {
                    listener.recv().await?;
                    appended.notify_one();
                }
            }
            .await;
            if let Err(error) = listened {
                tracing::debug!(%error, "not listening for appends; connecting again");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! { () = listening => {} () = stop.cancelled() => {} }
}

async fn run(
    Place { pool, name, .. }: Place,
    mut arriving: mpsc::UnboundedReceiver<Watcher>,
    appended: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut watchers = HashMap::<i64, Watcher>::new();
    let mut number = 0_i64;
    let mut looked_at = Instant::now();
    loop {
        tokio::select! {
            Some(watcher) = arriving.recv() => {
                number = number.wrapping_add(1);
                watchers.insert(number, watcher);
            }
            () = appended.notified(), if !watchers.is_empty() => {}
            () = tokio::time::sleep(LOOK_EVERY), if !watchers.is_empty() => {}
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep_until(looked_at + LOOK_AT_MOST_EVERY) => {}
            () = stop.cancelled() => return,
        }
        while let Ok(watcher) = arriving.try_recv() {
            number = number.wrapping_add(1);
            watchers.insert(number, watcher);
        }
        watchers.retain(|_, watcher| !watcher.news.is_closed());
        gauge!(WATCHERS, "database" => name.clone()).set(u32::try_from(watchers.len()).unwrap_or(u32::MAX));
        if watchers.is_empty() {
            continue;
        }
        if let Err(error) = look(&pool, &mut watchers).await {
            tracing::warn!(%error, "there is no news of video jobs for now");
        }
        looked_at = Instant::now();
    }
}

async fn look(pool: &PgPool, watchers: &mut HashMap<i64, Watcher>) -> sqlx::Result<()> {
    let asked: Vec<_> = watchers.iter().map(|(number, watcher)| (*number, watcher.job, watcher.seen)).collect();
    let mut gone = BTreeSet::new();
    for (number, change) in events(pool, &asked).await? {
        // After one that was not taken nothing may be sent: it comes again from where it was.
        let Some(watcher) = watchers.get_mut(&number).filter(|_| !gone.contains(&number)) else { continue };
        if let Change::Event { sequence, .. } = change {
            watcher.seen = sequence;
        }
        if let Some(attempt) = attempt_of(&change) {
            watcher.progress = (attempt, 0);
        }
        // One that does not keep up is let go: what it has missed is in the log.
        if is_end(&change) | watcher.news.try_send(change).is_err() {
            gone.insert(number);
        }
    }
    watchers.retain(|number, _| !gone.contains(number));
    let mut jobs: Vec<_> = watchers.values().map(|watcher| watcher.job.0).collect();
    jobs.sort_unstable();
    jobs.dedup();
    let ask =
        sqlx::query_as("SELECT job, attempt, progress FROM video_queue WHERE job = ANY ($1) AND status = 'leased'");
    let rows: Vec<(Uuid, i32, i16)> = within(ask.bind(jobs).fetch_all(pool)).await?;
    let of = |(job, attempt, progress): (Uuid, i32, i16)| {
        Some((job, (u32::try_from(attempt).ok()?, u8::try_from(progress).ok()?)))
    };
    let progress: HashMap<_, _> = rows.into_iter().filter_map(of).collect();
    for watcher in watchers.values_mut() {
        let Some((attempt, progress)) = progress.get(&watcher.job.0).copied() else { continue };
        // Only of the attempt that the client has been told of, and only forward.
        if attempt == watcher.progress.0 && progress > watcher.progress.1 {
            watcher.progress.1 = progress;
            watcher.news.try_send(Change::Progress { sequence: watcher.seen, attempt, progress }).ok();
        }
    }
    Ok(())
}

/// An event, and for which watcher.
#[derive(FromRow)]
struct Stored {
    number: i64,
    job: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: String,
    occurred_at: DateTime<Utc>,
}

/// The events of each job after the one that was seen, in order.
pub(super) async fn events(pool: &PgPool, asked: &[(i64, JobId, i64)]) -> sqlx::Result<Vec<(i64, Change)>> {
    let ask = sqlx::query_as(
        "SELECT w.number, w.job, e.sequence, e.event_type, e.event_version, e.payload::text AS payload, e.occurred_at
         FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS w (number, job, seen)
         JOIN events e ON e.aggregate_type = 'video_job' AND e.aggregate_id = w.job AND e.sequence > w.seen
         ORDER BY w.number, e.sequence",
    )
    .bind(asked.iter().map(|(number, ..)| *number).collect::<Vec<_>>())
    .bind(asked.iter().map(|(_, job, _)| job.to_string()).collect::<Vec<_>>())
    .bind(asked.iter().map(|(.., seen)| *seen).collect::<Vec<_>>());
    let rows: Vec<Stored> = within(ask.fetch_all(pool)).await?;
    rows.into_iter()
        .map(|stored| {
            let Stored { number, job, sequence, event_type, event_version, payload, occurred_at } = stored;
            let job = job.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            let decoded = Event::decode(&StreamId::VideoJob(job), &event_type, &event_version, &payload);
            match decoded.map_err(|error| sqlx::Error::Decode(Box::new(error)))? {
                Event::VideoJob(event) => Ok((number, Change::Event { sequence, event, occurred_at })),
                Event::PointsAccount(_)
                | Event::RechargeOrder(_)
                | Event::Like(_)
                | Event::Tip(_)
                | Event::TipReceipt(_)
                | Event::Withdrawal(_)
                | Event::WithdrawalAllowance(_)
                | Event::VideoSlots(_)
                | Event::Work(_)
                | Event::Erasure(_)
                | Event::Reconciliation(_)
                | Event::ReconciliationException(_) => Err(sqlx::Error::Decode("not an event of a video job".into())),
            }
        })
        .collect()
}
