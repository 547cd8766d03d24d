//! Likes of a work that nobody likes yet, beside likes of one that a million people like.
//!
//! The million are rows of the projection's tables, written by SQL; the log, where a like only ever meets its own stream,
//! does without them. Then both works get likes in turns, each from a user who has done nothing before:
//! through the projection alone, and through HTTP with commands, projection and queries in one server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::StatusCode;
use skyriff_domain::{LikeId, Position, ShardId, StreamId, UserId, WorkId};
use skyriff_follow::{Followers, LogDatabase, TableDatabase};
use skyriff_postgres::{Server, databases};
use skyriff_projections::Projection;
use skyriff_write_side::event_store::{self, Appended, Batch};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    append::Maker,
    report::{Figure, Report, percentiles},
    servers::{Served, Target},
    store,
};

const EVENTS: &str = "bench_likes_events";
const READS: &str = "bench_likes_reads";
/// Likes that stand on the popular work, unless BENCH_LIKES says how many.
const STANDING: usize = 1_000_000;
/// Likes of one append.
const APPENDED_AT_ONCE: usize = 1_000;
/// Likes that are projected in one turn.
const PROJECTED: usize = 40_000;
/// Turns of each work.
const TURNS: usize = 3;
pub const CONNECTIONS: u32 = 64;
/// A projection that takes longer has come to a stop.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(900);
/// As a command node has it.
const KEEP_COMMANDS: Duration = Duration::from_secs(72 * 3_600);

/// What a turn gave, added up.
#[derive(Default)]
struct Turns {
    likes: usize,
    took: Duration,
    latencies: Vec<Duration>,
}

impl Turns {
    fn figure(self, title: String, connections: u32) -> Result<Figure> {
        let per_second = f64::from(u32::try_from(self.likes)?) / self.took.as_secs_f64();
        let (p50, p99) = percentiles(self.latencies);
        Ok(Figure { title, accounts: 0, connections, per_second, p50, p99, ..Figure::default() })
    }
}

pub fn projected(standing: &str) -> String {
    format!("projecting likes of a work with {standing}")
}

pub fn over_http(standing: &str) -> String {
    format!("PUT like of a work with {standing}")
}

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    let standing = std::env::var("BENCH_LIKES").ok().and_then(|text| text.parse().ok()).unwrap_or(STANDING);
    store::fresh(server, EVENTS).await?;
    databases::create(server, &[READS]).await?;
    databases::migrate_read_models(&server.options(databases::OWNER, READS)).await?;
    let popular = WorkId(Uuid::new_v4());
    let started = Instant::now();
    let mut reads = server.superuser(READS).await?;
    fill(&mut reads, popular, standing).await?;
    eprintln!("· {standing} likes of one work stand, {:.0?}", started.elapsed());
    reads.execute("VACUUM (ANALYZE)").await?;
    reads.execute("CHECKPOINT").await?;
    count_is(&mut reads, popular, standing).await?;

    let (mut none, mut many) = (Turns::default(), Turns::default());
    for _ in 0..TURNS {
        for (work, turns) in [(WorkId(Uuid::new_v4()), &mut none), (popular, &mut many)] {
            append(server, work, PROJECTED).await?;
            turns.took += project(server).await?;
            turns.likes += PROJECTED;
        }
    }
    report.add(none.figure(projected("none"), 1)?);
    report.add(many.figure(projected("many"), 1)?);

    let place = format!("0-15={}", server.url(READS));
    let arguments = ["--read-models", &place, "--roles", "project,query"];
    let served = Served::start(Target::Skyriff, server, EVENTS, &arguments).await?;
    let mut of_popular = standing + many_projected();
    let (mut none, mut many) = (Turns::default(), Turns::default());
    for _ in 0..TURNS {
        for (work, turns) in [(WorkId(Uuid::new_v4()), &mut none), (popular, &mut many)] {
            let before = turns.likes;
            put(&served, work, each, turns).await?;
            caught_up(server, &mut reads).await?;
            let liked = turns.likes - before;
            of_popular += if work == popular { liked } else { 0 };
            count_is(&mut reads, work, if work == popular { of_popular } else { liked }).await?;
        }
    }
    served.stop().await?;
    report.add(none.figure(over_http("none"), CONNECTIONS)?);
    report.add(many.figure(over_http("many"), CONNECTIONS)?);
    Ok(reads.close().await?)
}

const fn many_projected() -> usize {
    PROJECTED * TURNS
}

/// Likes of as many users, given over a day, as the projection would have them.
async fn fill(reads: &mut PgConnection, work: WorkId, likes: usize) -> Result<()> {
    sqlx::query(
        "INSERT INTO likes (user_id, work_id, liked_at, shard, position)
         SELECT gen_random_uuid(), $1, now() - random() * interval '1 day', number % 16, number
         FROM generate_series(1, $2::bigint) AS number",
    )
    .bind(work.0)
    .bind(i64::try_from(likes)?)
    .execute(&mut *reads)
    .await?;
    for count in [
        "INSERT INTO work_likes (work_id, shard, likes) SELECT work_id, shard, count(*) FROM likes GROUP BY 1, 2",
        "INSERT INTO work_likes_by_hour (hour, work_id, shard, likes)
         SELECT date_trunc('hour', liked_at, 'UTC'), work_id, shard, count(*) FROM likes GROUP BY 1, 2, 3",
    ] {
        reads.execute(count).await?;
    }
    Ok(())
}

/// Likes of new users, through the append function.
async fn append(server: &Server, work: WorkId, likes: usize) -> Result<()> {
    let mut connection = server.options(databases::COMMAND, EVENTS).connect().await?;
    event_store::prepare(&mut connection, Duration::from_secs(60)).await?;
    event_store::keep_commands(&mut connection, KEEP_COMMANDS).await?;
    // What is only there to be read need not be flushed one by one.
    connection.execute("SET synchronous_commit = off").await?;
    let shards = store::shards();
    let heads = event_store::heads(&mut connection, &shards).await?;
    let mut heads: Vec<(ShardId, Position)> = shards.into_iter().zip(heads.into_iter().flatten()).collect();
    for first in (0..likes).step_by(APPENDED_AT_ONCE) {
        let mut maker = Maker::new(Batch { shards: heads.clone(), ..Batch::default() });
        for _ in first..likes.min(first + APPENDED_AT_ONCE) {
            let user = UserId(Uuid::new_v4());
            maker.batch.streams.push((StreamId::Like(LikeId { user, work }), 0));
            maker.like(user, work);
        }
        let batch = maker.batch;
        match event_store::append(&mut connection, &batch).await? {
            Appended::Done { .. } => {}
            other @ (Appended::Stale { .. } | Appended::Repeated { .. }) => bail!("{other:?}"),
        }
        for (place, (_, head)) in heads.iter_mut().enumerate() {
            head.0 += batch.last_offset(place);
        }
    }
    Ok(connection.close().await?)
}

/// How long the projection takes to read the log to its end.
async fn project(server: &Server) -> Result<Duration> {
    let mut reads = server.superuser(READS).await?;
    let log = LogDatabase { options: server.options(databases::PROJECT, EVENTS), shards: store::shards() };
    let tables = TableDatabase { options: server.options(databases::PROJECT, READS), shards: store::shards() };
    let started = Instant::now();
    let followers = Followers::start(&[Projection::Likes], "skyriff bench", &[log], &[tables]);
    caught_up(server, &mut reads).await?;
    let took = started.elapsed();
    followers.stop().await;
    reads.close().await?;
    Ok(took)
}

async fn caught_up(server: &Server, reads: &mut PgConnection) -> Result<()> {
    let head = store::events(server, EVENTS).await?;
    let end = Instant::now() + CAUGHT_UP_MAX;
    loop {
        let sum: i64 =
            sqlx::query_scalar("SELECT coalesce(sum(position), 0)::bigint FROM checkpoints WHERE projection = 'likes'")
                .fetch_one(&mut *reads)
                .await?;
        if sum >= head {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the likes are projected up to {sum} of {head}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn count_is(reads: &mut PgConnection, work: WorkId, likes: usize) -> Result<()> {
    let counted: i64 = sqlx::query_scalar("SELECT sum(likes)::bigint FROM work_likes WHERE work_id = $1")
        .bind(work.0)
        .fetch_one(reads)
        .await?;
    ensure!(usize::try_from(counted)? == likes, "{likes} likes were given, {counted} are counted");
    Ok(())
}

/// Likes over HTTP from many connections, each of a new user.
async fn put(served: &Served, work: WorkId, each: Duration, turns: &mut Turns) -> Result<()> {
    let client = reqwest::Client::new();
    let url: Arc<str> = format!("{}/v1/works/{work}/like", served.url).into();
    let started = Instant::now();
    let mut senders = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (client, url, token) = (client.clone(), Arc::clone(&url), served.token.clone());
        senders.spawn(async move {
            let mut latencies = Vec::new();
            while started.elapsed() < each {
                let sent = Instant::now();
                let body = serde_json::json!({ "user": Uuid::new_v4() });
                let answer = client.put(&*url).bearer_auth(&token).json(&body).send().await?;
                let status = answer.status();
                let text = answer.text().await?;
                ensure!(status == StatusCode::CREATED, "{status}: {text}");
                latencies.push(sent.elapsed());
            }
            Ok(latencies)
        });
    }
    while let Some(sender) = senders.join_next().await {
        let latencies = sender.context("a sender ended badly")??;
        turns.likes += latencies.len();
        turns.latencies.extend(latencies);
    }
    turns.took += started.elapsed();
    Ok(())
}
