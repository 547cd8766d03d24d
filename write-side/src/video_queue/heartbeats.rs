//! Heartbeats: however many arrive at once, one statement for each database keeps their leases, and another asks the log
//! about those that the queue does not have.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use metrics::histogram;
use skyriff_domain::{JobId, ShardCount, UserId, shard_of};
use sqlx::PgPool;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Busy, Limits, Place, VideoQueue, within};

/// Heartbeats in one statement.
const BATCH_MAX: usize = 1_000;
/// How many heartbeats one statement kept.
const BATCH: &str = "skyriff_video_heartbeats_batch";

/// A worker is alive, and this far.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    /// Whose job.
    pub user: UserId,
    /// Which.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// In per cent.
    pub progress: u8,
}

/// What comes back: until when the lease is kept; nothing when the attempt is over; or the database is away.
type Answer = Result<Option<DateTime<Utc>>, Arc<sqlx::Error>>;

#[derive(Clone, Debug)]
pub(super) struct Beats(mpsc::Sender<(Beat, oneshot::Sender<Answer>)>);

impl VideoQueue {
    /// Keep a lease: until when, or nothing when the attempt is over.
    ///
    /// # Errors
    /// [`Busy`]; and, inside, when the database cannot be reached: the lease is what it was.
    pub async fn beat(&self, beat: Beat) -> Result<Answer, Busy> {
        let (answer, answered) = oneshot::channel();
        self.beats.0.try_send((beat, answer)).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }
}

pub(super) fn start(
    places: Arc<[Place]>,
    shard_count: ShardCount,
    limits: Arc<Limits>,
    stop: CancellationToken,
) -> (Beats, Vec<JoinHandle<()>>) {
    let (sender, beats) = mpsc::channel(limits.beats_max.max(1));
    let task = tokio::spawn(run(beats, places, shard_count, limits, stop));
    (Beats(sender), vec![task])
}

async fn run(
    mut beats: mpsc::Receiver<(Beat, oneshot::Sender<Answer>)>,
    places: Arc<[Place]>,
    shard_count: ShardCount,
    limits: Arc<Limits>,
    stop: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = beats.recv_many(&mut batch, BATCH_MAX) => if count == 0 {
                // The last handle is gone.
                stop.cancelled().await;
                return;
            },
            () = stop.cancelled() => return,
        }
        histogram!(BATCH).record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        let mut by_place = HashMap::<usize, Vec<_>>::new();
        for (beat, answer) in batch.drain(..) {
            let shard = shard_of(beat.user, shard_count);
            if let Some(place) = places.iter().position(|place| place.shards.contains(&shard)) {
                by_place.entry(place).or_default().push((beat, answer));
            }
        }
        let keeping = by_place.into_iter().filter_map(|(place, beats)| {
            let pool = places.get(place)?.pool.clone();
            Some(keep(pool, beats, limits.lease.as_secs_f64()))
        });
        futures::future::join_all(keeping).await;
    }
}

async fn keep(pool: PgPool, beats: Vec<(Beat, oneshot::Sender<Answer>)>, lease_s: f64) {
    let keep = sqlx::query_as(
        "WITH beats AS (
             SELECT DISTINCT ON (job, attempt) * FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::smallint[])
                 AS b (job, user_id, attempt, progress) ORDER BY job, attempt, progress DESC
         )
         UPDATE video_queue q SET lease_until = clock_timestamp() + make_interval(secs => $5), progress = b.progress
         FROM beats b
         WHERE q.job = b.job AND q.user_id = b.user_id AND q.attempt = b.attempt AND q.status = 'leased'
         RETURNING q.job, q.attempt, q.lease_until",
    )
    .bind(beats.iter().map(|(beat, _)| beat.job.0).collect::<Vec<_>>())
    .bind(beats.iter().map(|(beat, _)| beat.user.0).collect::<Vec<_>>())
    .bind(beats.iter().map(|(beat, _)| i32::try_from(beat.attempt).unwrap_or(i32::MAX)).collect::<Vec<_>>())
    .bind(beats.iter().map(|(beat, _)| i16::from(beat.progress.min(100))).collect::<Vec<_>>())
    .bind(lease_s)
    .fetch_all(&pool);
    let kept: sqlx::Result<Vec<Kept>> = within(keep).await;
    let kept = match kept {
        Ok(kept) => in_the_log(&pool, &beats, kept, lease_s).await,
        Err(error) => Err(error),
    };
    match kept {
        Ok(kept) => {
            for (beat, answer) in beats {
                answer.send(Ok(kept.get(&key(&beat)).copied())).ok();
            }
        }
        Err(error) => {
            tracing::warn!(%error, "heartbeats of video workers cannot be kept for now");
            let error = Arc::new(error);
            for (_, answer) in beats {
                answer.send(Err(Arc::clone(&error))).ok();
            }
        }
    }
}

/// A job, its attempt, and until when its lease is kept.
type Kept = (Uuid, i32, DateTime<Utc>);

fn key(beat: &Beat) -> (Uuid, i32) {
    (beat.job.0, i32::try_from(beat.attempt).unwrap_or(i32::MAX))
}

/// With the leases that the queue does not have: it may be behind the log, or be built again at this moment, and before a
/// worker is told that its attempt is over, the log is asked. The queue will have such a lease for as long as any other.
async fn in_the_log(
    pool: &PgPool,
    beats: &[(Beat, oneshot::Sender<Answer>)],
    kept: Vec<Kept>,
    lease_s: f64,
) -> sqlx::Result<HashMap<(Uuid, i32), DateTime<Utc>>> {
    let mut kept: HashMap<_, _> = kept.into_iter().map(|(job, attempt, until)| ((job, attempt), until)).collect();
    let unknown: Vec<_> = beats.iter().map(|(beat, _)| beat).filter(|beat| !kept.contains_key(&key(beat))).collect();
    if unknown.is_empty() {
        return Ok(kept);
    }
    let last = sqlx::query_as(
        "SELECT b.job, b.attempt, clock_timestamp() + make_interval(secs => $4)
         FROM unnest($1::uuid[], $2::uuid[], $3::integer[]) AS b (job, user_id, attempt)
         JOIN events first ON first.aggregate_type = 'video_job' AND first.aggregate_id = b.job::text
                          AND first.sequence = 1
         CROSS JOIN LATERAL (
             SELECT e.event_type, e.payload FROM events e
             WHERE e.aggregate_type = 'video_job' AND e.aggregate_id = b.job::text ORDER BY e.sequence DESC LIMIT 1
         ) last
         WHERE last.event_type = 'leased' AND last.payload -> 'leased' ->> 'attempt' = b.attempt::text
           AND first.payload -> 'submitted' ->> 'user' = b.user_id::text",
    )
    .bind(unknown.iter().map(|beat| beat.job.0).collect::<Vec<_>>())
    .bind(unknown.iter().map(|beat| beat.user.0).collect::<Vec<_>>())
    .bind(unknown.iter().map(|beat| key(beat).1).collect::<Vec<_>>())
    .bind(lease_s)
    .fetch_all(pool);
    let last: Vec<Kept> = within(last).await?;
    kept.extend(last.into_iter().map(|(job, attempt, until)| ((job, attempt), until)));
    Ok(kept)
}
