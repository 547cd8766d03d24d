//! Keeps the queue up with the log.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use skyriff_domain::{
    Event, JobId, Label, RecordedEvent, StreamId,
    video_job::{self, Kind, Order, WorkerFault},
};
use skyriff_follow::{ApplyError, Batch, Follower};
use sqlx::PgConnection;
use uuid::Uuid;

use super::Breaker;

/// What wakes whoever leases.
pub(super) const CHANNEL: &str = "skyriff_video_jobs";
/// For how long a run counts in estimates.
const RUNS_KEPT: Duration = Duration::from_secs(3_600);

/// Follows the log for the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeper {
    pub(super) lease: Duration,
    pub(super) aging: Duration,
    pub(super) breaker: Breaker,
}

/// What a batch says of one job.
#[derive(Default)]
struct Change {
    submitted: Option<Submitted>,
    last: Option<Last>,
    /// In this batch.
    leased: Option<(DateTime<Utc>, Label)>,
}

struct Submitted {
    shard: i16,
    order: Order,
    at: DateTime<Utc>,
}

/// What a job is after the batch.
enum Last {
    Queued { attempt: i32, ready_at: DateTime<Utc> },
    Leased { attempt: i32, provider: Label, at: DateTime<Utc> },
    Over,
}

/// How an attempt went at its provider.
struct Outcome {
    job: JobId,
    /// When it was leased in the same batch.
    provider: Option<Label>,
    worked: bool,
}

/// How long a job took, of which kind is in its row or order.
struct Run {
    job: JobId,
    kind: Option<Kind>,
    leased_at: Option<DateTime<Utc>>,
    finished_at: DateTime<Utc>,
}

#[derive(Default)]
struct Changes {
    jobs: BTreeMap<JobId, Change>,
    outcomes: Vec<Outcome>,
    runs: Vec<Run>,
}

impl Follower for Keeper {
    fn name(self) -> &'static str {
        "video_queue"
    }

    fn version(self) -> i32 {
        1
    }

    async fn apply(self, batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let mut changes = Changes::default();
        for event in batch {
            changes.add(event)?;
        }
        if changes.jobs.is_empty() {
            return Ok(());
        }
        // These look at rows that the rest changes or deletes.
        self.note_outcomes(&changes, transaction).await?;
        note_runs(&changes, transaction).await?;
        self.insert(&changes, transaction).await?;
        self.update(&changes, transaction).await?;
        delete(&changes, transaction).await?;
        sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(transaction).await?;
        Ok(())
    }
}

impl Changes {
    fn add(&mut self, recorded: &RecordedEvent) -> Result<(), ApplyError> {
        use video_job::Event as E;
        let (StreamId::VideoJob(job), Event::VideoJob(event)) = (recorded.stream, &recorded.event) else {
            return Ok(());
        };
        let change = self.jobs.entry(job).or_default();
        let kind = change.submitted.as_ref().map(|submitted| submitted.order.kind);
        let at = recorded.recorded_at;
        match event {
            E::Submitted(order) => {
                let shard = i16::try_from(recorded.at.shard.0).map_err(misfit)?;
                change.submitted = Some(Submitted { shard, order: order.clone(), at });
                change.last = Some(Last::Queued { attempt: 0, ready_at: at });
            }
            E::Leased { attempt, worker: _, provider } => {
                let attempt = i32::try_from(*attempt).map_err(misfit)?;
                change.leased = Some((at, provider.clone()));
                change.last = Some(Last::Leased { attempt, provider: provider.clone(), at });
            }
            E::Succeeded { .. } => {
                let (leased_at, provider) = change.leased.take().unzip();
                self.runs.push(Run { job, kind, leased_at, finished_at: at });
                self.outcomes.push(Outcome { job, provider, worked: true });
                change.last = Some(Last::Over);
            }
            E::AttemptFailed { attempt, reason, words: _, retry_at, cost: _ } => {
                let provider = change.leased.take().map(|(_, provider)| provider);
                // What is the worker's own fault says nothing about the provider.
                if !WorkerFault::is_in(reason) {
                    self.outcomes.push(Outcome { job, provider, worked: false });
                }
                let attempt = i32::try_from(*attempt).map_err(misfit)?;
                change.last = Some(Last::Queued { attempt, ready_at: *retry_at });
            }
            E::Failed { attempt: _, reason, words: _, retryable, cost: _ } => {
                let provider = change.leased.take().map(|(_, provider)| provider);
                // What can never be made says something about the order and not about the provider.
                if *retryable && !WorkerFault::is_in(reason) {
                    self.outcomes.push(Outcome { job, provider, worked: false });
                }
                change.last = Some(Last::Over);
            }
            E::Cancelled {} | E::Expired {} => change.last = Some(Last::Over),
        }
        Ok(())
    }
}

impl Keeper {
    async fn note_outcomes(self, changes: &Changes, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        if changes.outcomes.is_empty() {
            return Ok(());
        }
        let elsewhere: Vec<_> =
            changes.outcomes.iter().filter(|outcome| outcome.provider.is_none()).map(|outcome| outcome.job.0).collect();
        let mut providers = HashMap::<Uuid, String>::new();
        if !elsewhere.is_empty() {
            let rows: Vec<(Uuid, String)> = sqlx::query_as(
                "SELECT job, provider FROM video_queue WHERE job = ANY ($1) AND provider IS NOT NULL AND status = 'leased'",
            )
            .bind(elsewhere)
            .fetch_all(&mut *transaction)
            .await?;
            providers.extend(rows);
        }
        let mut sums = BTreeMap::<&str, (i64, i64)>::new();
        for outcome in &changes.outcomes {
            let provider = outcome.provider.as_ref().map(Label::as_str);
            let Some(provider) = provider.or_else(|| providers.get(&outcome.job.0).map(String::as_str)) else {
                continue;
            };
            let (succeeded, failed) = sums.entry(provider).or_default();
            *(if outcome.worked { succeeded } else { failed }) += 1;
        }
        let Breaker { failures_min, window, pause, pause_max, .. } = self.breaker;
        for (provider, (succeeded, failed)) in sums {
            let state: String = sqlx::query_scalar("SELECT note_video_outcomes($1, $2, $3, $4, $5, $6, $7)")
                .bind(provider)
                .bind(succeeded)
                .bind(failed)
                .bind(i64::from(failures_min))
                .bind(window.as_secs_f64())
                .bind(pause.as_secs_f64())
                .bind(pause_max.as_secs_f64())
                .fetch_one(&mut *transaction)
                .await?;
            if state == "open" && failed > 0 {
                tracing::warn!(provider, failed, "a provider keeps failing and is paused");
            }
        }
        Ok(())
    }

    /// Jobs of this batch that are still open at its end.
    async fn insert(self, changes: &Changes, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let rows: Vec<_> = changes
            .jobs
            .iter()
            .filter_map(|(job, change)| Some((job.0, change.submitted.as_ref()?, change.last.as_ref()?)))
            .filter(|(.., last)| !matches!(last, Last::Over))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let turn = |submitted: &Submitted| {
            let ahead = self.aging.saturating_mul(u32::from(submitted.order.priority));
            let ahead = TimeDelta::from_std(ahead).unwrap_or_default();
            submitted.at.checked_sub_signed(ahead).unwrap_or(submitted.at)
        };
        let orders = || rows.iter().map(|(_, submitted, _)| &submitted.order);
        let seconds = orders().map(|order| i32::try_from(order.seconds)).collect::<Result<Vec<_>, _>>();
        let label = |label: &Option<Label>| label.as_ref().map(|label| label.as_str().to_owned());
        sqlx::query(
            "INSERT INTO video_queue (job, user_id, shard, kind, seconds, resolution, voice, wanted, prompt, submitted_at,
                                      turn_at, status, attempt, ready_at)
             SELECT *, 'queued', 0, now() FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::text[], $5::integer[],
                 $6::text[], $7::text[], $8::text[], $9::text[], $10::timestamptz[], $11::timestamptz[])",
        )
        .bind(rows.iter().map(|(job, ..)| *job).collect::<Vec<_>>())
        .bind(orders().map(|order| order.user.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, submitted, _)| submitted.shard).collect::<Vec<_>>())
        .bind(orders().map(|order| order.kind.as_str()).collect::<Vec<_>>())
        .bind(seconds.map_err(misfit)?)
        .bind(orders().map(|order| order.resolution.map(video_job::Resolution::as_str)).collect::<Vec<_>>())
        .bind(orders().map(|order| label(&order.voice)).collect::<Vec<_>>())
        .bind(orders().map(|order| label(&order.provider).unwrap_or_default()).collect::<Vec<_>>())
        .bind(orders().map(|order| order.prompt.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, submitted, _)| submitted.at).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, submitted, _)| turn(submitted)).collect::<Vec<_>>())
        .execute(transaction)
        .await?;
        Ok(())
    }

    /// What open jobs are at the end of this batch. What only concerned the moment begins anew.
    async fn update(self, changes: &Changes, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let (mut jobs, mut attempts, mut ready, mut leased, mut providers) = (vec![], vec![], vec![], vec![], vec![]);
        for (job, change) in &changes.jobs {
            let (attempt, ready_at, lease) = match &change.last {
                Some(Last::Queued { attempt, ready_at }) => (*attempt, Some(*ready_at), None),
                Some(Last::Leased { attempt, provider, at }) => (*attempt, None, Some((*at, provider.as_str()))),
                Some(Last::Over) | None => continue,
            };
            jobs.push(job.0);
            attempts.push(attempt);
            ready.push(ready_at);
            let (leased_at, provider) = lease.unzip();
            leased.push(leased_at);
            providers.push(provider);
        }
        if jobs.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE video_queue q
             SET status = CASE WHEN c.leased_at IS NULL THEN 'queued' ELSE 'leased' END, attempt = c.attempt,
                 ready_at = coalesce(c.ready_at, q.ready_at), leased_at = c.leased_at, provider = c.provider,
                 lease_until = CASE WHEN c.leased_at IS NOT NULL THEN clock_timestamp() + make_interval(secs => $6) END,
                 claimed_until = NULL, progress = 0
             FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[], $4::timestamptz[], $5::text[])
                      AS c (job, attempt, ready_at, leased_at, provider)
             WHERE q.job = c.job",
        )
        .bind(jobs)
        .bind(attempts)
        .bind(ready)
        .bind(leased)
        .bind(providers)
        .bind(self.lease.as_secs_f64())
        .execute(transaction)
        .await?;
        Ok(())
    }
}

async fn note_runs(changes: &Changes, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let runs = &changes.runs;
    if runs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH old AS (
             DELETE FROM video_runs WHERE job IN (
                 SELECT job FROM video_runs WHERE finished_at < now() - make_interval(secs => $5) LIMIT 2000)
         )
         INSERT INTO video_runs (job, kind, finished_at, run_ms)
         SELECT r.job, coalesce(r.kind, q.kind), r.finished_at,
                greatest(0, extract(epoch FROM r.finished_at - coalesce(r.leased_at, q.leased_at)) * 1000)::bigint
         FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[]) AS r (job, kind, leased_at, finished_at)
         LEFT JOIN video_queue q ON q.job = r.job
         WHERE coalesce(r.kind, q.kind) IS NOT NULL AND coalesce(r.leased_at, q.leased_at) IS NOT NULL
           AND r.finished_at >= now() - make_interval(secs => $5)
         ON CONFLICT (job) DO NOTHING",
    )
    .bind(runs.iter().map(|run| run.job.0).collect::<Vec<_>>())
    .bind(runs.iter().map(|run| run.kind.map(Kind::as_str)).collect::<Vec<_>>())
    .bind(runs.iter().map(|run| run.leased_at).collect::<Vec<_>>())
    .bind(runs.iter().map(|run| run.finished_at).collect::<Vec<_>>())
    .bind(RUNS_KEPT.as_secs_f64())
    .execute(transaction)
    .await?;
    Ok(())
}

async fn delete(changes: &Changes, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let over = changes.jobs.iter().filter(|(_, change)| matches!(change.last, Some(Last::Over)));
    let over: Vec<_> = over.map(|(job, _)| job.0).collect();
    if !over.is_empty() {
        sqlx::query("DELETE FROM video_queue WHERE job = ANY ($1)").bind(over).execute(transaction).await?;
    }
    Ok(())
}

fn misfit(error: impl ToString) -> ApplyError {
    ApplyError::Misfit(error.to_string())
}
