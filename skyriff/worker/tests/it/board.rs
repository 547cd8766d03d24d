//! The worker API with a book of its own: it gives jobs, hears of them, and can be told to misbehave.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use skyriff_worker::JobSpec;
use tokio::{net::TcpListener, sync::Notify};

#[derive(Default)]
pub struct Book {
    pub waiting: VecDeque<Value>,
    /// What was said of attempts and heard: `complete` or `fail`, and the body.
    pub ended: Vec<(String, Value)>,
    pub heartbeats: Vec<u8>,
    /// What the state of every job is said to be, when attempts are over.
    pub over: Option<&'static str>,
    /// So many requests about attempts are answered with 503, after they were carried out.
    pub troubles: usize,
    /// Heartbeats are told that the attempt is over, and nothing else is.
    pub stale: bool,
    pub keys: Vec<String>,
    pub asks: Vec<Value>,
}

#[derive(Clone)]
pub struct Board {
    pub book: Arc<Mutex<Book>>,
    pub address: SocketAddr,
    more: Arc<Notify>,
}

impl Board {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let board = Self { book: Arc::default(), address: listener.local_addr().unwrap(), more: Arc::default() };
        let routes = Router::new()
            .route("/v1/worker/leases", post(lease))
            .route("/v1/worker/jobs/{user}/{job}/attempts/{attempt}/{what}", post(about))
            .with_state(board.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        board
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        act(&mut self.book.lock().unwrap())
    }

    pub fn post(&self, job: &JobSpec, provider: &str) {
        let mut lease = json!({
            "job": job.job, "user": job.user, "attempt": job.attempt, "kind": job.kind, "seconds": job.seconds,
            "provider": provider, "prompt": job.prompt, "lease_until": "2026-01-01T00:00:00Z", "lease_s": 0.5,
        });
        if let Some(resolution) = job.resolution {
            lease["resolution"] = json!(resolution);
        }
        self.with(|book| book.waiting.push_back(lease));
        self.more.notify_one();
    }

    pub fn ended(&self) -> Vec<(String, Value)> {
        self.with(|book| book.ended.clone())
    }
}

async fn lease(State(board): State<Board>, headers: HeaderMap, Json(ask): Json<Value>) -> Json<Value> {
    assert_eq!(headers["authorization"], "Bearer the-token");
    let max = usize::try_from(ask["max"].as_u64().unwrap()).unwrap();
    let wait = std::time::Duration::from_secs(ask["wait_s"].as_u64().unwrap());
    board.with(|book| book.asks.push(ask));
    let take = || {
        board.with(|book| {
            let count = max.min(book.waiting.len());
            book.waiting.drain(..count).collect::<Vec<_>>()
        })
    };
    let mut jobs = take();
    if jobs.is_empty() {
        tokio::time::timeout(wait, board.more.notified()).await.ok();
        jobs = take();
    }
    Json(json!({ "jobs": jobs }))
}

async fn about(
    State(board): State<Board>,
    Path((_, _, attempt, what)): Path<(String, String, u32, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    board.with(|book| {
        if let Some(state) = book.over {
            let detail = match what.as_str() {
                // As the real one: only what goes to the job's own stream is told what became of it.
                "heartbeat" => format!("attempt {attempt} is over"),
                _ => format!("attempt {attempt} is over; the job is {state}"),
            };
            let problem =
                json!({ "type": "/problems/stale-attempt", "title": "The attempt is over", "detail": detail });
            return (StatusCode::CONFLICT, Json(problem)).into_response();
        }
        if what == "heartbeat" {
            book.heartbeats.push(body["progress"].as_u64().unwrap().try_into().unwrap());
            if book.stale {
                let problem =
                    json!({ "type": "/problems/stale-attempt", "detail": format!("attempt {attempt} is over") });
                return (StatusCode::CONFLICT, Json(problem)).into_response();
            }
            return Json(json!({})).into_response();
        }
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        if !book.keys.contains(&key) {
            book.keys.push(key);
            book.ended.push((what, body));
        }
        if book.troubles > 0 {
            book.troubles -= 1;
            return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response();
        }
        Json(json!({ "position": "1:1", "replayed": false })).into_response()
    })
}
