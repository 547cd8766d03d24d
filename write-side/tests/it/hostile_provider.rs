//! A payout provider that gets everything wrong but one thing: it pays what has one key once, and keeps a book of what
//! it has really paid. Real HTTP on a port of its own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, Uri, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use skyriff_write_side::payouts::signature::{SIGNATURE, Secret, Signed, TIMESTAMP};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use uuid::Uuid;

/// What it signs with.
pub(crate) const SECRET: &[u8] = b"what the hostile provider and SkyRiff know";
/// Longer than its client waits.
const SLOW: Duration = Duration::from_millis(900);

/// What becomes of a payout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Paid,
    Declined,
}

/// What it does with a request to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paying {
    Honest(End),
    /// The answer says pending, and so do the next look-ups.
    PendingFor(u32, End),
    FailBefore,
    FailAfter(End),
    /// The connection is closed in the middle of the answer.
    LoseAfter(End),
    SlowAfter(End),
    /// It happens when its client has long given up, and has been told that there is no such payout.
    HappenLate(End),
    GarbageAfter(End),
    TooMany,
    /// The callback is there before the answer.
    CallBackFirst(End),
    /// It speaks of another amount.
    WrongAmount(End),
    /// Nothing happens until [`HostileProvider::let_go`], and then it does.
    HoldBefore(End),
    /// It happens, and the answer waits for [`HostileProvider::let_go`].
    HoldAfter(End),
}

/// What it does with a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looking {
    Honest,
    Fail,
    Lose,
    Slow,
    /// As a proxy that knows nothing answers.
    BareNotFound,
    Garbage,
    TooMany,
    Hold,
}

/// How a callback is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signing {
    Genuine,
    Forged,
    Stale,
}

type Script<T> = Box<dyn FnMut(Uuid, u32) -> T + Send>;

struct Entry {
    body: Value,
    end: End,
    pending_for: u32,
}

#[derive(Default)]
struct Asked {
    paying: u32,
    looking: u32,
    not_known: u32,
}

struct Books {
    known: BTreeMap<Uuid, Entry>,
    /// Merchant references, one for each time that money went.
    paid: Vec<String>,
    asked: BTreeMap<Uuid, Asked>,
    /// What its client must never do.
    wrong: Vec<String>,
    pay: Script<Paying>,
    look: Script<Looking>,
    late: JoinSet<()>,
}

struct Shared {
    books: Mutex<Books>,
    secret: Secret,
    callbacks: Mutex<String>,
    held: Notify,
    holding: Notify,
    http: reqwest::Client,
}

#[derive(Clone)]
pub(crate) struct HostileProvider {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl HostileProvider {
    /// With what it does at the first, second … request for a key.
    pub(crate) async fn start(
        pay: impl FnMut(Uuid, u32) -> Paying + Send + 'static,
        look: impl FnMut(Uuid, u32) -> Looking + Send + 'static,
    ) -> Self {
        let books = Books {
            known: BTreeMap::new(),
            paid: Vec::new(),
            asked: BTreeMap::new(),
            wrong: Vec::new(),
            pay: Box::new(pay),
            look: Box::new(look),
            late: JoinSet::new(),
        };
        let shared = Arc::new(Shared {
            books: Mutex::new(books),
            secret: Secret::new(SECRET).unwrap(),
            callbacks: Mutex::default(),
            held: Notify::new(),
            holding: Notify::new(),
            http: reqwest::Client::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v2", listener.local_addr().unwrap());
        let routes = Router::new().route("/v2/payouts", post(create)).route("/v2/payouts/{id}", get(find));
        let routes = routes.with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, shared }
    }

    /// Where its callbacks go.
    pub(crate) fn call_back_at(&self, url: &str) {
        *self.shared.callbacks.lock().unwrap() = url.to_owned();
    }

    pub(crate) fn is_honest_from_now(&self) {
        let mut books = self.shared.books.lock().unwrap();
        books.pay = Box::new(|_, _| Paying::Honest(End::Paid));
        books.look = Box::new(|_, _| Looking::Honest);
    }

    /// Until a request is held.
    pub(crate) async fn holds(&self) {
        self.shared.holding.notified().await;
    }

    /// Whoever is held goes on.
    pub(crate) fn let_go(&self) {
        self.shared.held.notify_waiters();
    }

    /// Until all has happened that was to happen late.
    pub(crate) async fn settled(&self) {
        let mut late = std::mem::take(&mut self.shared.books.lock().unwrap().late);
        while late.join_next().await.is_some() {}
    }

    /// Whether money has gone; nothing when it has never heard of it.
    pub(crate) fn has_paid(&self, key: Uuid) -> Option<bool> {
        self.shared.books.lock().unwrap().known.get(&key).map(|entry| entry.end == End::Paid)
    }

    pub(crate) fn times_asked_to_pay(&self, key: Uuid) -> u32 {
        self.shared.books.lock().unwrap().asked.get(&key).map_or(0, |asked| asked.paying)
    }

    /// Money went at most once for each withdrawal, and its client never asked for it blindly.
    #[track_caller]
    pub(crate) fn books_are_in_order(&self) {
        let books = self.shared.books.lock().unwrap();
        let mut paid = books.paid.clone();
        paid.sort();
        paid.dedup();
        assert_eq!(paid.len(), books.paid.len(), "paid twice: {:?}", books.paid);
        for (key, asked) in &books.asked {
            assert!(asked.paying <= asked.not_known, "{key} was asked for without a look-up");
        }
        assert_eq!(books.wrong, Vec::<String>::new());
    }

    /// Say what became of a payout.
    pub(crate) async fn call_back(&self, key: Uuid, signing: Signing) -> StatusCode {
        let payout = {
            let mut books = self.shared.books.lock().unwrap();
            let entry = books.known.get_mut(&key).unwrap();
            entry.pending_for = 0;
            payout(key, entry)
        };
        self.shared.call_back(&payout, signing).await
    }

    /// Say anything.
    pub(crate) async fn say(&self, payout: &Value, signing: Signing) -> StatusCode {
        self.shared.call_back(payout, signing).await
    }

    /// A payout as it says it.
    pub(crate) fn payout(&self, key: Uuid) -> Value {
        payout(key, &self.shared.books.lock().unwrap().known[&key])
    }
}

impl Shared {
    async fn call_back(&self, payout: &Value, signing: Signing) -> StatusCode {
        let url = self.callbacks.lock().unwrap().clone();
        let path = reqwest::Url::parse(&url).unwrap().path().to_owned();
        let body = payout.to_string();
        let now = chrono::Utc::now().timestamp();
        let timestamp = if signing == Signing::Stale { now - 301 } else { now };
        let secret = match signing {
            Signing::Genuine | Signing::Stale => self.secret.clone(),
            Signing::Forged => Secret::new(b"what somebody else believes to be it").unwrap(),
        };
        let signed = Signed { timestamp, method: "POST", path: &path, body: body.as_bytes() };
        let request = self.http.post(url).header(TIMESTAMP, timestamp).header(SIGNATURE, secret.sign(signed));
        let sent = request.header("content-type", "application/json").body(body).send().await;
        // Whoever is down does not hear it.
        let status = sent.map_or(StatusCode::SERVICE_UNAVAILABLE, |answer| answer.status());
        StatusCode::from_u16(status.as_u16()).unwrap()
    }

    fn verified(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) {
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default();
        let timestamp = header(TIMESTAMP).parse().unwrap_or_default();
        let signed = Signed { timestamp, method: method.as_str(), path: uri.path(), body };
        if let Err(error) = self.secret.verify(signed, header(SIGNATURE), chrono::Utc::now().timestamp()) {
            self.books.lock().unwrap().wrong.push(format!("{method} {uri}: {error}"));
        }
    }

    /// The one thing that it gets right.
    fn effect(&self, key: Uuid, body: &Value, end: End, pending_for: u32) -> Result<Value, StatusCode> {
        let mut books = self.books.lock().unwrap();
        if let Some(known) = books.known.get(&key) {
            return if known.body == *body { Ok(payout(key, known)) } else { Err(StatusCode::CONFLICT) };
        }
        if end == End::Paid {
            books.paid.push(body["merchant_reference"].as_str().unwrap().to_owned());
        }
        let entry = Entry { body: body.clone(), end, pending_for };
        let said = payout(key, &entry);
        books.known.insert(key, entry);
        Ok(said)
    }

    async fn hold(&self) {
        let held = self.held.notified();
        self.holding.notify_one();
        held.await;
    }
}

fn payout(key: Uuid, entry: &Entry) -> Value {
    let mut payout = json!({ "id": key.to_string(), "more": "than anybody asked for" });
    for member in ["merchant_reference", "amount_minor", "currency"] {
        payout[member] = entry.body[member].clone();
    }
    let (status, member, value) = match (entry.pending_for, entry.end) {
        (0, End::Paid) => ("paid", "reference", format!("po_{}", key.simple())),
        (0, End::Declined) => ("declined", "reason", "the account is closed\u{7}".to_owned()),
        (1.., _) => ("pending", "reason", "be patient".to_owned()),
    };
    payout["status"] = status.into();
    payout[member] = value.into();
    payout
}

fn answer(said: Result<Value, StatusCode>) -> Response {
    match said {
        Ok(payout) => (StatusCode::CREATED, Json(payout)).into_response(),
        Err(status) => (status, Json(json!({ "error": "known, with another body" }))).into_response(),
    }
}

/// The connection is closed before the answer is whole.
fn lost() -> Response {
    Body::from_stream(futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("lost")) })).into_response()
}

fn too_many() -> Response {
    (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "0")]).into_response()
}

async fn create(
    State(shared): State<Arc<Shared>>,
    (method, uri, headers): (Method, Uri, HeaderMap),
    bytes: Bytes,
) -> Response {
    shared.verified(&method, &uri, &headers, &bytes);
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    let key: Uuid = headers["idempotency-key"].to_str().unwrap().parse().unwrap();
    let trick = {
        let mut books = shared.books.lock().unwrap();
        if body["id"] != key.to_string() {
            books.wrong.push(format!("the key {key} is not in {body}"));
        }
        let asked = books.asked.entry(key).or_default();
        asked.paying += 1;
        let times = asked.paying;
        (books.pay)(key, times)
    };
    let effect = |end, pending_for| shared.effect(key, &body, end, pending_for);
    match trick {
        Paying::Honest(end) => answer(effect(end, 0)),
        Paying::PendingFor(looks, end) => answer(effect(end, looks)),
        Paying::FailBefore => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Paying::FailAfter(end) => {
            effect(end, 0).ok();
            StatusCode::BAD_GATEWAY.into_response()
        }
        Paying::LoseAfter(end) => {
            effect(end, 0).ok();
            lost()
        }
        Paying::SlowAfter(end) => {
            let said = effect(end, 0);
            tokio::time::sleep(SLOW).await;
            answer(said)
        }
        Paying::HappenLate(end) => {
            let (late, body) = (Arc::clone(&shared), body.clone());
            // Not ended by its client's going away.
            shared.books.lock().unwrap().late.spawn(async move {
                tokio::time::sleep(SLOW).await;
                late.effect(key, &body, end, 0).ok();
            });
            tokio::time::sleep(SLOW * 2).await;
            StatusCode::GATEWAY_TIMEOUT.into_response()
        }
        Paying::GarbageAfter(end) => {
            effect(end, 0).ok();
            "<html>we are sorry</html>".into_response()
        }
        Paying::TooMany => too_many(),
        Paying::CallBackFirst(end) => {
            let said = effect(end, 0);
            if let Ok(payout) = &said {
                shared.call_back(payout, Signing::Genuine).await;
            }
            answer(said)
        }
        Paying::WrongAmount(end) => answer(effect(end, 0).map(|mut payout| {
            payout["amount_minor"] = json!(1);
            payout
        })),
        Paying::HoldBefore(end) => {
            shared.hold().await;
            answer(effect(end, 0))
        }
        Paying::HoldAfter(end) => {
            let said = effect(end, 0);
            shared.hold().await;
            answer(said)
        }
    }
}

async fn find(
    State(shared): State<Arc<Shared>>,
    Path(key): Path<Uuid>,
    (method, uri, headers): (Method, Uri, HeaderMap),
) -> Response {
    shared.verified(&method, &uri, &headers, &[]);
    let trick = {
        let mut books = shared.books.lock().unwrap();
        let asked = books.asked.entry(key).or_default();
        asked.looking += 1;
        let times = asked.looking;
        (books.look)(key, times)
    };
    match trick {
        Looking::Honest => {}
        Looking::Fail => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Looking::Lose => return lost(),
        Looking::Slow => tokio::time::sleep(SLOW).await,
        Looking::BareNotFound => return StatusCode::NOT_FOUND.into_response(),
        Looking::Garbage => return "{}".into_response(),
        Looking::TooMany => return too_many(),
        Looking::Hold => shared.hold().await,
    }
    let mut books = shared.books.lock().unwrap();
    if let Some(entry) = books.known.get_mut(&key) {
        let said = payout(key, entry);
        entry.pending_for = entry.pending_for.saturating_sub(1);
        return Json(said).into_response();
    }
    books.asked.entry(key).or_default().not_known += 1;
    (StatusCode::NOT_FOUND, Json(json!({ "id": key.to_string(), "status": "not_known" }))).into_response()
}
