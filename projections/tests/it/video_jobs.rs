//! Video jobs: what became of each, what they cost and brought in, once however often the projector is stopped, and the
//! same when it is all built again.

use chrono::TimeDelta;
use skyriff_domain::{
    Bucket, Intent, JobId, LogPosition, Sealed, UserId,
    video_job::{Cost, Kind, Output, Resolution, Step, steps::What},
};
use skyriff_projections::Projection;
use sqlx::{Executor, PgConnection};
use uuid::Uuid;

use crate::{
    books::{checkpoints, connect, projector, until},
    log::{Log, earn, noon, user_of_shard},
};

fn cost(micros: u64) -> Cost {
    Cost { micros, currency: "usd".parse().unwrap() }
}

fn submit(kind: Kind, seconds: u32) -> What {
    let resolution = (kind == Kind::TextToVideo).then_some(Resolution::P720);
    let prompt: Sealed = "c2VhbGVk".to_owned().try_into().unwrap();
    What::Submit { kind, seconds, resolution, voice: None, provider: None, prompt, priority: 2 }
}

fn lease(provider: &str) -> What {
    What::Lease { worker: "w-1".parse().unwrap(), provider: provider.parse().unwrap() }
}

fn complete(attempt: u32, seconds: u32, micros: u64) -> What {
    let text = |text: &str| text.to_owned().try_into().unwrap();
    let (object, sha256, content_type) = (text("outputs/1"), text("ab"), text("video/mp4"));
    What::Complete { attempt, output: Output { object, seconds, bytes: 9, sha256, content_type }, cost: cost(micros) }
}

fn fail(attempt: u32, retryable: bool, micros: u64) -> What {
    What::FailAttempt { attempt, reason: "broke".to_owned().try_into().unwrap(), retryable, cost: cost(micros) }
}

/// Everything, as text that two databases can be compared by.
async fn dump(reads: &mut PgConnection) -> Vec<String> {
    let rows = "SELECT j::text FROM video_jobs j UNION ALL SELECT c::text FROM video_costs c ORDER BY 1";
    sqlx::query_scalar(rows).fetch_all(reads).await.unwrap()
}

async fn caught_up(log: &Log, reads: &mut PgConnection) {
    let heads = log.heads().clone();
    until("all of the log", async || {
        let seen = checkpoints(reads, Projection::VideoJobs).await;
        assert!(seen.values().all(|(_, stopped)| stopped.is_none()), "{seen:?}");
        heads.iter().all(|(shard, head)| seen.get(shard).is_some_and(|(position, _)| position == head))
    })
    .await;
}

struct Author<'a> {
    log: &'a mut Log,
    minute: i64,
}

impl Author<'_> {
    async fn does(&mut self, user: UserId, job: JobId, what: What) -> LogPosition {
        self.minute += 1;
        let at = noon() + TimeDelta::hours(self.minute);
        self.log.append(user, at, Intent::VideoJob(Step { job, what })).await
    }
}

#[tokio::test]
async fn each_job_has_its_row_and_each_attempt_is_counted_once() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let users = [user_of_shard(3), user_of_shard(11)];
    let jobs: Vec<_> = (0..4).map(|_| JobId(Uuid::new_v4())).collect();
    for user in users {
        log.on_account(user, noon(), earn(Bucket::Income, 1_000)).await;
    }
    let first = projector(&log);
    {
        let mut author = Author { log: &mut log, minute: 0 };
        // Made at the second attempt, shorter than ordered.
        for what in [submit(Kind::TextToVideo, 8), lease("a"), fail(1, true, 30), lease("b"), complete(2, 6, 500)] {
            author.does(users[0], jobs[0], what).await;
        }
        // On the next day, in another shard, with the same provider and kind.
        author.minute = 12;
        for what in [submit(Kind::TextToVideo, 2), lease("b"), complete(1, 2, 200)] {
            author.does(users[1], jobs[1], what).await;
        }
        for what in [submit(Kind::TextToSpeech, 5), lease("b"), fail(1, false, 1)] {
            author.does(users[1], jobs[2], what).await;
        }
    }
    caught_up(&log, &mut reads).await;
    first.stop().await;
    let second = projector(&log);
    {
        let mut author = Author { log: &mut log, minute: 30 };
        for what in [submit(Kind::TextToSpeech, 5), What::Cancel] {
            author.does(users[0], jobs[3], what).await;
        }
    }
    caught_up(&log, &mut reads).await;

    type Told = (String, i64, i64, Option<i64>, Option<String>, Option<String>, Option<i64>);
    let mut rows: Vec<Told> = Vec::new();
    for job in &jobs {
        let ask = "SELECT status, attempt, held, used, provider, reason, output_seconds FROM video_jobs WHERE job = $1";
        rows.push(sqlx::query_as(ask).bind(job.0).fetch_one(&mut reads).await.unwrap());
    }
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        rows,
        [
            ("succeeded".to_owned(), 2, 40, Some(30), text("b"), None, Some(6)),
            ("succeeded".to_owned(), 1, 10, Some(10), text("b"), None, Some(2)),
            ("failed".to_owned(), 1, 5, None, text("b"), text("broke"), None),
            ("cancelled".to_owned(), 0, 5, None, None, None, None),
        ]
    );
    let costs: Vec<(String, String, String, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT day::text, provider, kind, sum(succeeded)::bigint, sum(failed_attempts)::bigint, sum(points)::bigint,
                sum(cost_micros)::bigint FROM video_costs GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    )
    .fetch_all(&mut reads)
    .await
    .unwrap();
    let row = |day: &str, provider: &str, kind: &str, succeeded, failed, points, micros| {
        (day.to_owned(), provider.to_owned(), kind.to_owned(), succeeded, failed, points, micros)
    };
    assert_eq!(
        costs,
        [
            row("2026-01-15", "a", "text_to_video", 0, 1, 0, 30),
            row("2026-01-15", "b", "text_to_video", 1, 0, 30, 500),
            row("2026-01-16", "b", "text_to_speech", 0, 1, 0, 1),
            row("2026-01-16", "b", "text_to_video", 1, 0, 10, 200),
        ]
    );

    second.stop().await;
    let before = dump(&mut reads).await;
    reads.execute("TRUNCATE video_jobs, video_costs").await.unwrap();
    reads.execute("UPDATE checkpoints SET position = 0 WHERE projection = 'video_jobs'").await.unwrap();
    let again = projector(&log);
    caught_up(&log, &mut reads).await;
    assert_eq!(dump(&mut reads).await, before, "built again it is the same");
    again.stop().await;
}
