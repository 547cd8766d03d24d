//! A provider of predictions that behaves as badly as it is told to, and keeps a book of what it really did.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify};
use uuid::Uuid;

/// What happens to a request, instead of a good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Told to wait; nothing is done.
    Busy,
    /// An error before anything is done.
    Error,
    /// Done, and the answer is an error.
    ErrorAfter,
    /// Done, and the connection is cut before the answer.
    LostAfter,
    /// Done, and the answer takes longer than anybody waits.
    SlowAfter,
    /// Done, and the answer waits until it is let go.
    HeldAfter,
    /// Refused: the job is wrong, which it quotes.
    Refuse,
    /// Refused, with the same words: another create with this key is under way.
    Conflict,
    /// Not there any more.
    Gone,
    /// An answer that is none.
    Nonsense,
}

#[derive(Default)]
pub struct Book {
    /// What goes wrong next: creates, looks at one, searches, outputs.
    pub creates: VecDeque<Trouble>,
    pub looks: VecDeque<Trouble>,
    pub searches: VecDeque<Trouble>,
    pub outputs: VecDeque<Trouble>,
    /// Every prediction that was ever made, in order, as it is now.
    pub predictions: Vec<Value>,
    pub by_key: HashMap<String, String>,
    pub cancelled: Vec<String>,
    /// How many requests came to create one.
    pub asked: usize,
    pub searched: usize,
    pub looked: usize,
    /// What the outputs are, unless said otherwise for a prediction's id, as in JSON.
    pub output: Vec<u8>,
    pub outputs_of: HashMap<String, Vec<u8>>,
    /// How many looks until a prediction has succeeded.
    pub looks_needed: usize,
}

#[derive(Clone)]
pub struct Hostile {
    pub book: Arc<Mutex<Book>>,
    pub address: SocketAddr,
    /// Lets an answer go that is held.
    pub let_go: Arc<Notify>,
}

impl Hostile {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hostile = Self { book: Arc::default(), address: listener.local_addr().unwrap(), let_go: Arc::default() };
        hostile.book.lock().unwrap().output = b"an output".to_vec();
        let routes = Router::new()
            .route("/v2/predictions", post(create).get(search))
            .route("/v2/predictions/{id}", get(look))
            .route("/v2/predictions/{id}/cancel", post(cancel))
            .route("/outputs/{id}", get(output))
            .with_state(hostile.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        hostile
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        act(&mut self.book.lock().unwrap())
    }

    pub fn url(&self) -> url::Url {
        format!("http://{}/v2", self.address).parse().unwrap()
    }
}

/// A bad answer; `None` for a good one.
async fn trouble(trouble: Option<Trouble>) -> Option<Response> {
    Some(match trouble? {
        Trouble::HeldAfter => return None,
        Trouble::Busy => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response(),
        Trouble::Error | Trouble::ErrorAfter => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Trouble::LostAfter => {
            // The headers promise a body that is cut off.
            let cut = futures::stream::iter([Ok("{"), Err(std::io::Error::other("cut"))]);
            Body::from_stream(cut).into_response()
        }
        Trouble::SlowAfter => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            StatusCode::OK.into_response()
        }
        Trouble::Refuse => {
            let detail = "this prompt is not allowed: a lighthouse";
            (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": detail }))).into_response()
        }
        Trouble::Conflict => {
            (StatusCode::CONFLICT, Json(json!({ "detail": "a lighthouse is being made" }))).into_response()
        }
        Trouble::Gone => StatusCode::GONE.into_response(),
        Trouble::Nonsense => "<html>".into_response(),
    })
}

fn is_done(trouble: Option<Trouble>) -> bool {
    !matches!(trouble, Some(Trouble::Busy | Trouble::Error | Trouble::Refuse | Trouble::Conflict | Trouble::Gone))
}

async fn create(State(hostile): State<Hostile>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    assert_eq!(headers["authorization"], "Bearer the-token");
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let (wrong, prediction) = hostile.with(|book| {
        book.asked += 1;
        let wrong = book.creates.pop_front();
        if !is_done(wrong) {
            return (wrong, Value::Null);
        }
        let id = book.by_key.entry(key).or_insert_with(|| format!("p{}", Uuid::new_v4().simple())).clone();
        if let Some(known) = book.predictions.iter().find(|known| known["id"] == *id) {
            return (wrong, known.clone());
        }
        let prediction = json!({
            "id": id, "status": "starting", "metadata": body["metadata"], "input": body["input"],
            "webhook": body["webhook"], "looks": 0,
        });
        book.predictions.push(prediction.clone());
        (wrong, prediction)
    });
    if wrong == Some(Trouble::HeldAfter) {
        hostile.let_go.notified().await;
    }
    match trouble(wrong).await {
        Some(bad) => bad,
        None => (StatusCode::CREATED, Json(prediction)).into_response(),
    }
}

async fn search(State(hostile): State<Hostile>, Query(by): Query<HashMap<String, String>>) -> Response {
    let (wrong, results) = hostile.with(|book| {
        book.searched += 1;
        let by_key = by.get("key").map(|key| book.by_key.get(key).cloned().unwrap_or_default());
        let of = |prediction: &&Value| match (&by_key, by.get("job")) {
            (Some(id), _) => prediction["id"] == *id,
            (None, Some(job)) => prediction["metadata"]["job"] == *job,
            (None, None) => panic!("a search by nothing"),
        };
        let results: Vec<_> = book.predictions.iter().filter(of).cloned().collect();
        (book.searches.pop_front(), results)
    });
    trouble(wrong).await.unwrap_or_else(|| Json(json!({ "results": results })).into_response())
}

async fn look(State(hostile): State<Hostile>, Path(id): Path<String>) -> Response {
    let address = hostile.address;
    let (wrong, found) = hostile.with(|book| {
        book.looked += 1;
        let needed = book.looks_needed;
        let found = book.predictions.iter_mut().find(|prediction| prediction["id"] == id).map(|prediction| {
            let looks = prediction["looks"].as_u64().unwrap() + 1;
            prediction["looks"] = looks.into();
            if prediction["status"] == "starting" && looks > needed.try_into().unwrap() {
                prediction["status"] = "succeeded".into();
                prediction["output"] = format!("http://{address}/outputs/{id}").into();
                prediction["cost"] = json!({ "micros": 42_000, "currency": "usd" });
            }
            prediction.clone()
        });
        (book.looks.pop_front(), found)
    });
    if let Some(bad) = trouble(wrong).await {
        return bad;
    }
    found.map_or(StatusCode::NOT_FOUND.into_response(), |prediction| Json(prediction).into_response())
}

async fn cancel(State(hostile): State<Hostile>, Path(id): Path<String>) -> StatusCode {
    hostile.with(|book| {
        for prediction in book.predictions.iter_mut().filter(|prediction| prediction["id"] == id) {
            prediction["status"] = "canceled".into();
            prediction["cost"] = json!({ "micros": 21_000, "currency": "usd" });
        }
        book.cancelled.push(id);
    });
    StatusCode::OK
}

async fn output(State(hostile): State<Hostile>, Path(id): Path<String>) -> Response {
    let (wrong, bytes) = hostile.with(|book| {
        let bytes = book.outputs_of.get(&Value::from(id).to_string()).unwrap_or(&book.output).clone();
        (book.outputs.pop_front(), bytes)
    });
    trouble(wrong).await.unwrap_or_else(|| bytes.into_response())
}
