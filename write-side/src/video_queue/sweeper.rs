//! Notices what is over: leases whose workers are not heard of any more, or are heard of and come to no end, and jobs that
//! have waited for too long.
//!
//! A worker is not heard of either while the queue cannot be reached. So leases count as lost only once the queue could be
//! looked at for a whole lease, without a gap: whoever is alive has been heard of in that time.
//!
//! Several nodes may do it at once, and again after a crash: the ids of the commands derive from the job and the attempt.

use std::time::Duration;

use metrics::{counter, gauge};
use skyriff_domain::{
    JobId, UserId,
    video_job::{self, Cost, Step, WorkerFault, steps::What},
};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Limits, dispatcher::by_us, within};
use crate::{Commands, Failure};

/// Jobs that are ended at once.
const BATCH_MAX: i64 = 500;
/// Between two looks, at most; a short lease is looked at more often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Jobs in the queue, by `state`: queued, leased; and by `database`, as the next.
const JOBS: &str = "skyriff_video_jobs";
/// Seconds since the oldest job that is queued was submitted; 0 when there is none.
const OLDEST_SECONDS: &str = "skyriff_video_oldest_queued_seconds";
/// What was swept, by `what`: lost, endless, expired.
const SWEPT: &str = "skyriff_video_swept_total";

pub(super) struct Sweeper {
    pub(super) options: PgConnectOptions,
    pub(super) commands: Commands,
    pub(super) limits: Limits,
}

/// A job that something is over for.
type Found = (Uuid, Uuid, i32);

impl Sweeper {
    pub(super) async fn run(self, stop: CancellationToken) {
        let pause = LOOK_EVERY.min(self.limits.lease / 4).max(Duration::from_millis(20));
        let mut connection = None;
        let mut looks = Looks { gap_max: self.limits.lease, unbroken: None };
        loop {
            tokio::select! { () = tokio::time::sleep(pause) => {} () = stop.cancelled() => return }
            // Before the look: who was not heard of before it began may be so after it.
            let since = looks.since(Instant::now());
            if let Err(error) = self.sweep(&mut connection, since.elapsed() >= self.limits.lease).await {
                connection = None;
                looks.unbroken = None;
                tracing::warn!(%error, "video jobs are not swept for now");
            }
        }
    }

    async fn sweep(&self, connection: &mut Option<PgConnection>, notice_lost: bool) -> sqlx::Result<()> {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(within(self.options.connect()).await?),
        };
        if notice_lost {
            self.sweep_lost(open).await?;
        }
        self.sweep_endless(open).await?;
        let expired = sqlx::query_as(
            "SELECT job, user_id, attempt FROM video_queue
             WHERE status = 'queued' AND submitted_at < clock_timestamp() - make_interval(secs => $1)
               AND (claimed_until IS NULL OR claimed_until < clock_timestamp())
             ORDER BY submitted_at LIMIT $2",
        );
        let expired = expired.bind(self.limits.waiting_max.as_secs_f64()).bind(BATCH_MAX);
        let expired: Vec<Found> = within(expired.fetch_all(&mut *open)).await?;
        self.end(&expired, "expired", |_| What::Expire).await;
        report(open, self.options.get_database().unwrap_or("events")).await
    }

    async fn sweep_lost(&self, open: &mut PgConnection) -> sqlx::Result<()> {
        let lost = sqlx::query_as(
            "SELECT job, user_id, attempt FROM video_queue
             WHERE status = 'leased' AND provider IS NOT NULL AND lease_until < clock_timestamp()
             ORDER BY lease_until LIMIT $1",
        );
        let lost: Vec<Found> = within(lost.bind(BATCH_MAX).fetch_all(&mut *open)).await?;
        let reason = video_job::worker_lost();
        self.end(&lost, "lost", |attempt| What::FailAttempt {
            attempt,
            reason: reason.clone().into(),
            retryable: true,
            cost: Cost::none(),
        })
        .await;
        Ok(())
    }

    /// Whoever hangs and still sends heartbeats would have its job, and the points for it, for ever.
    async fn sweep_endless(&self, open: &mut PgConnection) -> sqlx::Result<()> {
        let endless = sqlx::query_as(
            "SELECT job, user_id, attempt FROM video_queue
             WHERE status = 'leased' AND provider IS NOT NULL AND leased_at < clock_timestamp() - make_interval(secs => $1)
             ORDER BY leased_at LIMIT $2",
        );
        let endless = endless.bind(self.limits.attempt_max.as_secs_f64()).bind(BATCH_MAX);
        let endless: Vec<Found> = within(endless.fetch_all(open)).await?;
        let reason = WorkerFault::Endless.reason();
        self.end(&endless, "endless", |attempt| What::FailAttempt {
            attempt,
            reason: reason.clone().into(),
            retryable: true,
            cost: Cost::none(),
        })
        .await;
        Ok(())
    }

    async fn end(&self, found: &[Found], name: &'static str, what: impl Fn(u32) -> What) {
        let submissions = found.iter().filter_map(|(job, user, attempt)| {
            let attempt = u32::try_from(*attempt).ok()?;
            let step = Step { job: JobId(*job), what: what(attempt) };
            by_us(UserId(*user), step, &format!("{user} {job} {attempt} {name}")).ok()
        });
        for outcome in self.commands.execute_each(submissions.collect()).await {
            match outcome {
                Ok(receipt) if receipt.replayed => {}
                Ok(_) => counter!(SWEPT, "what" => name).increment(1),
                // The queue is behind the log: it was over already, or has been given to somebody.
                Err(Failure::Refused(_) | Failure::RefusedBefore(_)) => {}
                Err(failure) => tracing::warn!(name, %failure, "a video job could not be swept, and will be again"),
            }
        }
    }
}

/// Since when the queue could be looked at without a gap.
struct Looks {
    /// Whoever has not looked for longer, because its machine slept or its database hung, begins anew.
    gap_max: Duration,
    /// The first look and the last one.
    unbroken: Option<(Instant, Instant)>,
}

impl Looks {
    /// There is a look now: when was the first one of those without a gap?
    fn since(&mut self, now: Instant) -> Instant {
        let unbroken = self.unbroken.filter(|(_, last)| now.duration_since(*last) <= self.gap_max);
        let (first, _) = *self.unbroken.insert((unbroken.map_or(now, |(first, _)| first), now));
        first
    }
}

async fn report(connection: &mut PgConnection, database: &str) -> sqlx::Result<()> {
    // Counting all of a long queue each time would cost more than it tells.
    let ask = sqlx::query_as(
        "SELECT (SELECT count(*) FROM (SELECT FROM video_queue WHERE status = 'queued' LIMIT 10000) q),
                (SELECT count(*) FROM (SELECT FROM video_queue WHERE status = 'leased' AND provider IS NOT NULL LIMIT 10000) l),
                coalesce((SELECT extract(epoch FROM clock_timestamp() - submitted_at) FROM video_queue
                          WHERE status = 'queued' ORDER BY submitted_at LIMIT 1), 0)::float8",
    );
    let (queued, leased, oldest_s): (i64, i64, f64) = within(ask.fetch_one(connection)).await?;
    let number = |count: i64| i32::try_from(count).map_or(f64::from(i32::MAX), f64::from);
    // There is a sweeper for each database; one name for all would show whichever looked last.
    gauge!(JOBS, "state" => "queued", "database" => database.to_owned()).set(number(queued));
    gauge!(JOBS, "state" => "leased", "database" => database.to_owned()).set(number(leased));
    gauge!(OLDEST_SECONDS, "database" => database.to_owned()).set(oldest_s);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_between_two_looks_begins_anew() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut looks = Looks { gap_max: Duration::from_secs(15), unbroken: None };
        for (now, since) in [(0, 0), (1, 0), (16, 0), (32, 32), (40, 32), (55, 32), (71, 71)] {
            assert_eq!(looks.since(at(now)), at(since), "{now}");
        }
        // As after a look that failed.
        looks.unbroken = None;
        assert_eq!(looks.since(at(72)), at(72));
    }
}
