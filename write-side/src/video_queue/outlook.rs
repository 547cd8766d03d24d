//! What somebody who has just ordered may expect.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use skyriff_domain::{JobId, UserId, video_job::Kind};

use super::{VideoQueue, within};

/// Jobs before one that are counted; more are as good as that many.
const PLACES_MAX: i64 = 10_000;
/// The latest runs that an estimate is made of.
const RUNS: i64 = 50;

/// A job's place in the queue, and when it will be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// How many jobs of its kind have their turn before it, and itself.
    pub place: i64,
    /// Until it is made, as long as jobs of its kind have taken lately and as many are made at once as now. Nothing while
    /// nothing is known.
    pub estimate: Option<Duration>,
}

impl VideoQueue {
    /// The outlook of a job that waits; nothing when it does not wait any more, or the queue cannot be reached.
    pub async fn outlook(
        &self,
        user: UserId,
        job: JobId,
        kind: Kind,
        priority: u8,
        submitted_at: DateTime<Utc>,
        is_new: bool,
    ) -> Option<Outlook> {
        let ahead = TimeDelta::from_std(self.limits.aging.saturating_mul(u32::from(priority))).ok()?;
        let turn_at = submitted_at.checked_sub_signed(ahead)?;
        let ask = sqlx::query_as(
            "SELECT (SELECT count(*) FROM (SELECT FROM video_queue q WHERE q.status = 'queued' AND q.kind = $1
                                           AND q.turn_at < $2 AND q.job <> $3 LIMIT $4) before),
                    (SELECT count(*) FROM (SELECT FROM video_queue q WHERE q.status = 'leased' AND q.provider IS NOT NULL
                                           AND q.kind = $1 LIMIT $4) in_flight),
                    (SELECT avg(run_ms)::float8 FROM (SELECT run_ms FROM video_runs r WHERE r.kind = $1
                         AND r.finished_at > now() - interval '1 hour' ORDER BY finished_at DESC LIMIT $5) lately),
                    EXISTS (SELECT FROM video_queue q WHERE q.job = $3 AND q.status = 'queued')",
        )
        .bind(kind.as_str())
        .bind(turn_at)
        .bind(job.0)
        .bind(PLACES_MAX)
        .bind(RUNS)
        .fetch_one(&self.place_of(user)?.pool);
        let (before, in_flight, run_ms, waits): (i64, i64, Option<f64>, bool) = match within(ask).await {
            Ok(row) => row,
            Err(error) => {
                tracing::debug!(%error, "no outlook for a video job");
                return None;
            }
        };
        // A new one may not have reached the queue yet.
        (is_new || waits).then(|| Outlook { place: before + 1, estimate: estimate(before, in_flight, run_ms) })
    }
}

/// As many rounds as it takes to get through what is before it, and its own.
fn estimate(before: i64, in_flight: i64, run_ms: Option<f64>) -> Option<Duration> {
    let rounds = u32::try_from((before / in_flight.max(1)).checked_add(1)?).ok()?;
    let run = Duration::try_from_secs_f64(run_ms? / 1_000.0).ok()?;
    run.checked_mul(rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_made_of_what_was_measured_or_not_at_all() {
        let seconds = |before, in_flight, run_ms| estimate(before, in_flight, run_ms).map(|wait| wait.as_secs());
        assert_eq!(seconds(0, 0, None), None);
        assert_eq!(seconds(0, 0, Some(4_000.0)), Some(4));
        assert_eq!(seconds(9, 0, Some(4_000.0)), Some(40));
        assert_eq!(seconds(9, 3, Some(4_000.0)), Some(16));
        assert_eq!(seconds(i64::MAX, 1, Some(4_000.0)), None);
    }
}
