//! No-op video jobs through lease and complete over HTTP, beside a plain table that workers take rows from with
//! `FOR UPDATE SKIP LOCKED`.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chrono::{TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use skyriff_domain::UserId;
use skyriff_edge::{Caller, Role, Tokens};
use skyriff_postgres::Server;
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    report::{Figure, Report, percentiles},
    servers::{SECRET, Served, Target},
    store,
};

const OURS: &str = "bench_jobs";
const PLAIN: &str = "bench_jobs_plain";
/// Users that the jobs are of.
const USERS: u64 = 500;
/// Workers, and jobs for them: enough for some seconds.
const LOADS: [(usize, u64); 3] = [(1, 600), (16, 6_000), (64, 6_000)];
/// Requests at once while orders are made.
const ORDERS_AT_ONCE: usize = 64;

pub async fn run(server: &Server, report: &mut Report) -> Result<()> {
    store::fresh(server, OURS).await?;
    let storage = tempfile::tempdir()?;
    for folder in 0..=u8::MAX {
        std::fs::create_dir_all(storage.path().join(format!("{folder:02x}")))?;
    }
    let address = format!("file://{}", storage.path().display());
    // Where outputs are is told by the environment; a server that does not look for them does not mind.
    let arguments = ["--roles", "process", "--video-in-flight-max", "1000000"];
    let served =
        Served::start_with(Target::Skyriff, server, OURS, &arguments, &[("SKYRIFF_STORAGE", &address)]).await?;
    let http = Client::new();
    for user in 0..USERS {
        let path = format!("{}/v1/users/{}/earnings", served.url, store::account(user)?);
        let body = json!({"bucket": "income", "points": 1_000_000, "reason": "bench"});
        let answer =
            http.post(path).bearer_auth(&served.token).header("idempotency-key", format!("points {user}")).json(&body);
        let answer = answer.send().await?;
        let status = answer.status();
        ensure!(status == StatusCode::CREATED, "points were answered with {status}: {}", answer.text().await?);
    }
    for (workers, jobs) in LOADS {
        eprintln!("· jobs: {workers} workers");
        order(&http, &served, jobs).await?;
        report.add(ours(&http, &served, storage.path(), workers, jobs).await?);
        report.add(plain(server, workers, jobs).await?);
    }
    served.stop().await
}

/// Orders that all are there before the first worker asks.
async fn order(http: &Client, served: &Served, jobs: u64) -> Result<()> {
    let orders = stream::iter(0..jobs).map(async |number| {
        let user: UserId = store::account(number % USERS)?;
        let body = json!({"kind": "text_to_speech", "prompt": "no-op", "seconds": 1, "user": user,
                          "provider": "noop"});
        let request = http.post(format!("{}/v1/video-jobs", served.url)).bearer_auth(&served.token);
        let request = request.header("idempotency-key", Uuid::new_v4().to_string()).json(&body);
        let status = request.send().await?.status();
        ensure!(status == StatusCode::ACCEPTED, "an order was answered with {status}");
        Ok(())
    });
    orders.buffer_unordered(ORDERS_AT_ONCE).try_collect().await
}

async fn ours(http: &Client, served: &Served, storage: &Path, workers: usize, jobs: u64) -> Result<Figure> {
    let left = Arc::new(AtomicU64::new(jobs));
    let caller = Caller { role: Role::Worker, id: Uuid::nil() };
    let token = Tokens::new(SECRET.as_bytes())?.mint(&caller, Utc::now(), TimeDelta::hours(2))?;
    let mut running = JoinSet::new();
    let started = Instant::now();
    for worker in 0..workers {
        let (http, url, token, left) = (http.clone(), served.url.clone(), token.clone(), Arc::clone(&left));
        let storage = storage.to_owned();
        running.spawn(async move {
            let mut took = Vec::new();
            let ask = json!({"worker": format!("w-{worker}"), "kinds": ["text_to_speech"], "providers": ["noop"],
                             "max": 1, "wait_s": 1});
            while left.load(Ordering::Relaxed) > 0 {
                let begun = Instant::now();
                let answer = http.post(format!("{url}/v1/worker/leases")).bearer_auth(&token).json(&ask).send().await?;
                let answer: Value = answer.error_for_status()?.json().await?;
                for leased in answer["jobs"].as_array().into_iter().flatten() {
                    let text = |name: &str| leased[name].as_str().unwrap_or_default().to_owned();
                    let object = format!("{}.{}.noop", text("job"), leased["attempt"]);
                    let folder = text("job").split_off(text("job").len().saturating_sub(2));
                    std::fs::write(storage.join(folder).join(&object), b"x")?;
                    let path = format!(
                        "{url}/v1/worker/jobs/{}/{}/attempts/{}/complete",
                        text("user"),
                        text("job"),
                        leased["attempt"]
                    );
                    let output = json!({"object": object, "seconds": 1, "bytes": 1, "sha256": "0".repeat(64),
                                        "content_type": "application/octet-stream"});
                    let done = http.post(path).bearer_auth(&token).json(&json!({ "output": output })).send().await?;
                    done.error_for_status()?;
                    left.fetch_sub(1, Ordering::Relaxed);
                    took.push(begun.elapsed());
                }
            }
            anyhow::Ok(took)
        });
    }
    finished("video jobs, lease and complete over HTTP", workers, jobs, started, running).await
}

/// One statement to take a row, one to delete it, each in a transaction of its own.
async fn plain(server: &Server, workers: usize, jobs: u64) -> Result<Figure> {
    store::fresh(server, PLAIN).await?;
    let mut owner = server.superuser(PLAIN).await?;
    owner
        .execute("DROP TABLE IF EXISTS plain; CREATE TABLE plain (id bigint PRIMARY KEY, due_at timestamptz NOT NULL)")
        .await?;
    owner.execute("CREATE INDEX ON plain (due_at)").await?;
    let fill = "INSERT INTO plain SELECT n, now() - n * interval '1 ms' FROM generate_series(1, $1) n";
    sqlx::query(fill).bind(i64::try_from(jobs)?).execute(&mut owner).await?;
    owner.close().await?;
    let options = server.options("postgres", PLAIN);
    let mut running = JoinSet::new();
    let started = Instant::now();
    for _ in 0..workers {
        let options = options.clone();
        running.spawn(async move {
            let mut connection = options.connect().await?;
            let mut took = Vec::new();
            loop {
                let begun = Instant::now();
                let taken: Option<i64> = sqlx::query_scalar(
                    "UPDATE plain SET due_at = now() + interval '15 s' WHERE id = (
                         SELECT id FROM plain WHERE due_at <= now() ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
                     RETURNING id",
                )
                .fetch_optional(&mut connection)
                .await?;
                let Some(id) = taken else { return anyhow::Ok(took) };
                sqlx::query("DELETE FROM plain WHERE id = $1").bind(id).execute(&mut connection).await?;
                took.push(begun.elapsed());
            }
        });
    }
    finished("a plain table with SKIP LOCKED, no HTTP", workers, jobs, started, running).await
}

async fn finished(
    title: &str,
    workers: usize,
    jobs: u64,
    started: Instant,
    mut running: JoinSet<Result<Vec<Duration>>>,
) -> Result<Figure> {
    let mut all = Vec::new();
    let mut last = started;
    while let Some(ended) = running.join_next().await {
        let took = ended??;
        if !took.is_empty() {
            last = Instant::now();
        }
        all.extend(took);
    }
    ensure!(u64::try_from(all.len())? == jobs, "{} jobs were done, not {jobs}", all.len());
    let per_second = f64::from(u32::try_from(jobs)?) / last.duration_since(started).as_secs_f64();
    let (p50, p99) = percentiles(all);
    let (accounts, connections) = (u32::try_from(USERS)?, u32::try_from(workers)?);
    Ok(Figure { title: title.to_owned(), accounts, connections, per_second, p50, p99, ..Figure::default() })
}
