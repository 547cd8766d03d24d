//! A node that takes orders for videos and gives them to workers, and what those say to it.

use std::{sync::Arc, time::Duration};

use axum::http::Request;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use skyriff_domain::{
    Event, JobId, Policy, ShardCount, ShardId, StreamId, UserId,
    ledger::postings,
    video_job::{Output, Status, VideoJob, VideoPolicy},
};
use skyriff_edge::Role;
use skyriff_postgres::databases::{COMMAND, PROCESS};
use skyriff_write_side::{
    CommandSide, commands,
    commands::EventDatabase,
    http,
    outputs::{OutputProblem, Outputs},
    processes::ProcessDatabase,
    video_queue::{Limits, VideoKeeperSide, VideoQueueSide},
};
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    http::{Answer, Api, body_of},
    store::{LONG, Store, account, some_user},
};

pub(crate) struct Studio {
    pub(crate) api: Api,
    side: VideoQueueSide,
    pub(crate) close: CancellationToken,
}

/// Has what is called after its size.
#[derive(Debug)]
pub(crate) struct Shelf;

impl Outputs for Shelf {
    fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), OutputProblem>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn check<'a>(&'a self, _: JobId, _: u32, output: &'a Output) -> BoxFuture<'a, Result<(), OutputProblem>> {
        let found = output.object.as_str().rsplit('/').next().and_then(|name| name.parse().ok());
        Box::pin(std::future::ready(match found {
            None => Err(OutputProblem::Missing),
            Some(found) if found != output.bytes => Err(OutputProblem::OtherSize { found }),
            Some(_) => Ok(()),
        }))
    }
}

/// What an attempt that was leased is called in paths.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leased {
    pub(crate) user: String,
    pub(crate) job: String,
    pub(crate) attempt: u64,
    pub(crate) provider: String,
    pub(crate) prompt: String,
}

pub(crate) fn short() -> Limits {
    Limits { lease: Duration::from_millis(600), ..Limits::default() }
}

pub(crate) fn policy() -> VideoPolicy {
    VideoPolicy { back_off_s: 0, in_flight_max: 100, ..VideoPolicy::default() }
}

/// What keeps the queue: one of the process nodes there may be. It needs executors of its own.
pub(crate) fn keeper(store: &Store, limits: &Limits, policy: VideoPolicy) -> (VideoKeeperSide, CommandSide) {
    keeper_over(&everything(store), limits, policy)
}

pub(crate) fn keeper_over(homes: &[Home], limits: &Limits, policy: VideoPolicy) -> (VideoKeeperSide, CommandSide) {
    let node = node(homes, policy);
    let database = |(options, shards): &Home| ProcessDatabase {
        options: options.clone().username(PROCESS),
        shards: shards.clone(),
    };
    let databases: Vec<_> = homes.iter().map(database).collect();
    (VideoKeeperSide::start(&databases, &node.commands, limits), node)
}

/// A place in the event store, and the shards that live there.
pub(crate) type Home = (PgConnectOptions, Vec<ShardId>);

fn everything(store: &Store) -> Vec<Home> {
    vec![(store.options(COMMAND), ShardCount::default().shards().collect())]
}

/// Even shards in one place, odd ones in another.
pub(crate) fn halves(even: PgConnectOptions, odd: PgConnectOptions) -> Vec<Home> {
    let (of_even, of_odd) = ShardCount::default().shards().partition(|shard| shard.0 % 2 == 0);
    vec![(even, of_even), (odd, of_odd)]
}

fn databases(homes: &[Home]) -> Vec<EventDatabase> {
    let database = |(options, shards): &Home| EventDatabase { options: options.clone(), shards: shards.clone() };
    homes.iter().map(database).collect()
}

fn node(homes: &[Home], videos: VideoPolicy) -> CommandSide {
    let policy = Policy { videos, ..Policy::default() };
    CommandSide::start(&databases(homes), ShardCount::default(), &policy, &commands::Limits::default())
}

impl Studio {
    pub(crate) fn new(store: &Store, limits: &Limits, policy: VideoPolicy) -> Self {
        Self::over(&everything(store), store, limits, policy)
    }

    /// With the keys of `store`.
    pub(crate) fn over(homes: &[Home], store: &Store, limits: &Limits, policy: VideoPolicy) -> Self {
        let (node, count) = (node(homes, policy), ShardCount::default());
        let close = CancellationToken::new();
        let databases = databases(homes);
        let side = VideoQueueSide::start(&databases, count, &node.commands, &store.vault(), limits, close.clone());
        let (commands, queue, vault) = (node.commands.clone(), side.queue.clone(), store.vault());
        let videos = http::VideoApi { commands: commands.clone(), queue, vault, outputs: Arc::new(Shelf) };
        let api = Api::around(http::routes(commands, store.vault()).merge(http::video_routes(videos)), node);
        Self { api, side, close }
    }

    pub(crate) async fn stop(self) {
        self.close.cancel();
        self.side.stop().await;
    }

    pub(crate) async fn post(&self, role: Role, id: Uuid, path: &str, key: &str, body: &Value) -> Answer {
        self.api.send(self.api.json(role, id, path, key).body(body_of(body)).unwrap()).await
    }

    /// As a worker.
    pub(crate) async fn work(&self, path: &str, body: Value) -> Answer {
        self.post(Role::Worker, Uuid::nil(), path, "not needed", &body).await
    }

    /// A user with so many points.
    pub(crate) async fn someone_with(&self, points: i64) -> UserId {
        self.give(some_user(), points).await
    }

    /// The user, with so many points more.
    pub(crate) async fn give(&self, user: UserId, points: i64) -> UserId {
        let earned = json!({"bucket": "income", "points": points, "reason": "views"});
        assert_eq!(self.api.service(&format!("/v1/users/{user}/earnings"), earned).await.status, 201);
        user
    }

    pub(crate) async fn order(&self, user: UserId, body: Value) -> Answer {
        self.post(Role::User, user.0, "/v1/video-jobs", &Uuid::new_v4().to_string(), &body).await
    }

    /// An order that is taken on; its job.
    pub(crate) async fn ordered(&self, user: UserId, body: Value) -> String {
        let answer = self.order(user, body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.body["job"].as_str().unwrap().to_owned()
    }

    /// What somebody orders who has the points; its user and job.
    pub(crate) async fn some_order(&self) -> (UserId, String) {
        let user = self.someone_with(100).await;
        let job = self.ordered(user, speech(10)).await;
        (user, job)
    }

    /// Jobs for a worker that waits for a moment.
    pub(crate) async fn lease(&self, ask: Value) -> Vec<Leased> {
        let answer = self.work("/v1/worker/leases", ask).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["jobs"].as_array().unwrap().iter().map(leased).collect()
    }

    /// The next job, however long it takes.
    pub(crate) async fn next(&self) -> Leased {
        eventually("a job", async || self.lease(anything()).await.pop()).await
    }

    pub(crate) async fn beat(&self, leased: &Leased, progress: u8) -> Answer {
        self.work(&leased.path("heartbeat"), json!({ "progress": progress })).await
    }

    pub(crate) async fn complete(&self, leased: &Leased, seconds: u32) -> Answer {
        self.work(&leased.path("complete"), completion(seconds)).await
    }

    pub(crate) async fn fail(&self, leased: &Leased, retryable: bool) -> Answer {
        let cost = json!({"micros": 7, "currency": "usd"});
        let body = json!({"reason": "it broke", "retryable": retryable, "cost": cost});
        self.work(&leased.path("fail"), body).await
    }

    pub(crate) async fn cancel(&self, user: UserId, job: &str) -> Answer {
        let path = format!("/v1/users/{user}/video-jobs/{job}/cancel");
        self.post(Role::User, user.0, &path, &Uuid::new_v4().to_string(), &Value::Null).await
    }

    /// A stream of a job's events.
    pub(crate) fn follow(&self, user: UserId, job: &str, last: Option<&str>) -> Request<axum::body::Body> {
        let path = format!("/v1/users/{user}/video-jobs/{job}/events");
        let mut request = self.api.request(Role::User, user.0, &path, "not needed").method("GET");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        request.body(axum::body::Body::empty()).unwrap()
    }
}

impl Leased {
    pub(crate) fn path(&self, what: &str) -> String {
        let Self { user, job, attempt, .. } = self;
        format!("/v1/worker/jobs/{user}/{job}/attempts/{attempt}/{what}")
    }
}

fn leased(job: &Value) -> Leased {
    let text = |name: &str| job[name].as_str().unwrap().to_owned();
    let attempt = job["attempt"].as_u64().unwrap();
    Leased { user: text("user"), job: text("job"), attempt, provider: text("provider"), prompt: text("prompt") }
}

pub(crate) fn speech(seconds: u32) -> Value {
    json!({"kind": "text_to_speech", "prompt": "Hello", "seconds": seconds})
}

pub(crate) fn anything() -> Value {
    json!({"worker": "w-1", "kinds": ["text_to_video", "text_to_speech"], "providers": ["local"], "max": 1, "wait_s": 1})
}

pub(crate) fn completion(seconds: u32) -> Value {
    let output = json!({"object": "outputs/100", "seconds": seconds, "bytes": 100, "sha256": "a".repeat(64), "content_type": "audio/mp4"});
    json!({ "output": output, "cost": {"micros": 1_000, "currency": "usd"} })
}

pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "no {what} within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What became of a job, as the log has it.
pub(crate) async fn job(store: &Store, job: &str) -> VideoJob {
    let mut state = VideoJob::default();
    let stream = StreamId::VideoJob(job.parse().unwrap());
    for logged in store.log().await.iter().filter(|logged| logged.stream() == stream) {
        let Event::VideoJob(event) = logged.event() else { panic!("{logged:?}") };
        state.apply(&event);
    }
    state
}

/// Available and held points of a user, after a look at the whole ledger.
pub(crate) async fn points(store: &Store, user: UserId) -> (i64, i64) {
    let log = store.log().await;
    let sum: i64 =
        log.iter().flat_map(|logged| postings(&logged.stream(), &logged.event())).map(|posting| posting.amount).sum();
    assert_eq!(sum, 0, "the ledger sums to zero");
    let account = account(&log, user);
    (account.available().total().get(), account.held().total().get())
}

/// Wait until a job is as said.
pub(crate) async fn becomes(store: &Store, name: &str, status: Status) {
    eventually(&format!("job that is {status}"), async || {
        (job(store, name).await.status() == Some(status)).then_some(())
    })
    .await;
}

/// Wait until the queue has read the whole log.
pub(crate) async fn caught_up(store: &Store) {
    eventually("queue that is up with the log", async || {
        let behind: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM heads h LEFT JOIN checkpoints c ON c.projection = 'video_queue' AND c.shard = h.shard
             WHERE coalesce(c.position, 0) < h.position",
        )
        .fetch_one(&mut store.owner().await)
        .await
        .unwrap();
        (behind == 0).then_some(())
    })
    .await;
}
