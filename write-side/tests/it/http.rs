//! Commands over HTTP: who may, what is answered, and what of the request ends up in the log.

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use skyriff_domain::{CommandId, UserId};
use skyriff_edge::{
    Caller, Role, Tokens,
    request::{self, Limits},
};
use skyriff_vault::Vault;
use skyriff_write_side::{CommandSide, http};
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::store::{Store, some_user, user_of_shard};

pub(crate) struct Api {
    pub(crate) router: Router,
    tokens: Tokens,
    pub(crate) node: CommandSide,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Its status, and the end of the `type` of a problem.
    pub(crate) fn kind(&self) -> (u16, &str) {
        let problem = self.body["type"].as_str().and_then(|kind| kind.strip_prefix("/problems/"));
        if problem.is_some() {
            assert_eq!(self.header("content-type"), Some("application/problem+json"));
            assert_eq!(self.body["status"], self.status.as_u16());
            assert_eq!(self.body["request_id"].as_str(), self.header("x-request-id"), "{}", self.body);
            assert!(self.header("skyriff-position").is_none());
        }
        (self.status.as_u16(), problem.unwrap_or_default())
    }
}

impl Api {
    pub(crate) fn new(store: &Store) -> Self {
        Self::with(store.node(), store.vault())
    }

    pub(crate) fn with(node: CommandSide, vault: Vault) -> Self {
        Self::around(http::routes(node.commands.clone(), vault), node)
    }

    pub(crate) fn around(routes: OpenApiRouter, node: CommandSide) -> Self {
        let (routes, _) = routes.split_for_parts();
        let tokens = Tokens::new(&[7; 32]).unwrap();
        let limits = Limits { body_bytes_max: 4_096, ..Limits::default() };
        Self { router: request::around(routes, tokens.clone(), limits), tokens, node }
    }

    fn token(&self, role: Role, id: Uuid) -> String {
        self.tokens.mint(&Caller { role, id }, Utc::now(), TimeDelta::minutes(5)).unwrap()
    }

    /// A well-formed command of this caller; change what is to be wrong.
    pub(crate) fn request(&self, role: Role, id: Uuid, path: &str, key: &str) -> axum::http::request::Builder {
        Request::post(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token(role, id)))
            .header("idempotency-key", key)
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// The same with a JSON body.
    pub(crate) fn json(&self, role: Role, id: Uuid, path: &str, key: &str) -> axum::http::request::Builder {
        self.request(role, id, path, key).header(header::CONTENT_TYPE, "application/json")
    }

    /// Send lines; the lines that come back.
    pub(crate) async fn lines(&self, request: axum::http::request::Builder, body: Body) -> Vec<Value> {
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    /// Send it as whoever may do everything that services may.
    pub(crate) async fn service(&self, path: &str, body: Value) -> Answer {
        let request = self.json(Role::Service, Uuid::nil(), path, &Uuid::new_v4().to_string());
        self.send(request.body(body_of(&body)).unwrap()).await
    }
}

pub(crate) fn body_of(body: &Value) -> Body {
    if body.is_null() { Body::empty() } else { Body::from(body.to_string()) }
}

pub(crate) fn path(user: UserId, rest: &str) -> String {
    format!("/v1/users/{user}/{rest}")
}

/// Every command's route, with a body and who may: (own, everybody's). In an order in which each succeeds.
fn routes() -> Vec<(String, Value, Vec<Role>, Vec<Role>)> {
    let (order, spend, hold) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let service = || vec![Role::Service];
    let own = || vec![Role::User, Role::Service];
    let earn = json!({"bucket": "promo", "points": 50, "reason": "task"});
    let adjust = json!({"bucket": "income", "direction": "credit", "points": 1, "reason": "goodwill"});
    let held = json!({"hold": hold, "points": 20, "reason": "video", "lifetime_s": 60});
    let operators = || vec![Role::Service, Role::Operator];
    vec![
        ("check-ins".into(), Value::Null, own(), service()),
        ("earnings".into(), earn, service(), service()),
        ("recharges".into(), json!({"order": order, "points": 5}), service(), service()),
        ("spends".into(), json!({"spend": spend, "points": 10, "product": "video"}), own(), service()),
        (format!("spends/{spend}/refund"), json!({"points": 4}), service(), service()),
        ("holds".into(), held, service(), service()),
        (format!("holds/{hold}/capture"), json!({"points": 5}), service(), service()),
        (format!("holds/{hold}/release"), Value::Null, service(), service()),
        ("expirations".into(), Value::Null, operators(), operators()),
        ("adjustments".into(), adjust, vec![Role::Operator], vec![Role::Operator]),
    ]
}

#[tokio::test]
async fn every_command_is_taken_from_those_who_may_and_from_nobody_else() {
    let store = Store::create().await;
    let api = Api::new(&store);
    for own in [true, false] {
        let user = some_user();
        let id = if own { user.0 } else { Uuid::new_v4() };
        for (route, body, may_own, may_all) in routes() {
            let may = if own { may_own } else { may_all };
            let path = path(user, &route);
            let before = store.commands_recorded().await;
            for role in Role::ALL.into_iter().filter(|role| !may.contains(role)) {
                let refused = api.send(api.json(role, id, &path, "forbidden").body(body_of(&body)).unwrap()).await;
                assert_eq!(refused.kind(), (403, "forbidden"), "{role:?} {route}, own: {own}");
            }
            assert_eq!(store.commands_recorded().await, before);
            for (number, role) in may.into_iter().enumerate() {
                let request = api.json(role, id, &path, &route).body(body_of(&body)).unwrap();
                let answer = api.send(request).await;
                // The same thing under another caller's key is a new command, which some rules refuse.
                if number == 0 {
                    assert!(matches!(answer.status.as_u16(), 200 | 201), "{role:?} {route}: {}", answer.body);
                    assert_eq!(answer.header("skyriff-position"), answer.body["position"].as_str());
                    assert_eq!(answer.status == 201, answer.body["recorded"] != json!([]));
                } else {
                    assert!(!matches!(answer.status.as_u16(), 401 | 403 | 500..), "{role:?} {route}: {}", answer.body);
                }
            }
        }
    }
    store.log().await;
}

#[tokio::test]
async fn what_is_accepted_is_answered_as_recorded_and_again_when_repeated() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = user_of_shard(3);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = |at: &str| {
        let body = json!({"bucket": "income", "points": 5, "reason": "task", "occurred_at": at});
        api.json(Role::Service, Uuid::nil(), &path(user, "earnings"), "key")
            .header("x-request-id", "request-1")
            .header("traceparent", traceparent)
            .body(body_of(&body))
            .unwrap()
    };
    let first = api.send(request("2026-01-15T12:00:00.123456789Z")).await;
    assert_eq!((first.status.as_u16(), first.header("skyriff-position")), (201, Some("3:1")));
    assert_eq!((first.header("x-request-id"), first.header("idempotent-replayed")), (Some("request-1"), None));
    let event = &first.body["recorded"][0];
    assert_eq!(first.body["replayed"], false);
    assert_eq!((&event["position"], &event["sequence"]), (&json!("3:1"), &json!(1)));
    assert_eq!((&event["aggregate_type"], &event["aggregate_id"]), (&json!("points_account"), &json!(user)));
    assert_eq!(event["event"], json!({"earned": {"credited": {"income": 5}, "reason": "task"}}));
    assert_eq!(event["occurred_at"], "2026-01-15T12:00:00.123456Z");

    let log = store.log().await;
    assert_eq!(log[0].occurred_at.to_rfc3339(), "2026-01-15T12:00:00.123456+00:00");
    let actor = format!("service:{}", Uuid::nil());
    let command_id = CommandId::derive(&actor, "key");
    let said = json!({
        "command_id": command_id, "actor": actor, "request_id": "request-1", "traceparent": traceparent,
    });
    assert_eq!(log[0].metadata, said);

    let again = api.send(request("2026-01-15T12:00:00.123456789Z")).await;
    assert_eq!((again.status.as_u16(), again.header("skyriff-position")), (201, Some("3:1")));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));

    let refusable = json!({"spend": Uuid::nil(), "points": 6, "product": "video"});
    for replayed in [None, Some("true")] {
        let request = api.json(Role::Service, Uuid::nil(), &path(user, "spends"), "refused");
        let refused = api.send(request.body(body_of(&refusable)).unwrap()).await;
        assert_eq!(refused.kind(), (409, "insufficient-points"));
        assert_eq!(
            (refused.header("idempotent-replayed"), refused.body.get("replayed").is_some()),
            (replayed, replayed.is_some())
        );
    }
    assert_eq!((&again.body["replayed"], &again.body["recorded"]), (&json!(true), &first.body["recorded"]));
    assert_eq!(api.send(request("2026-01-15T13:00:00Z")).await.kind(), (422, "idempotency-key-reused"));
    assert_eq!(store.log().await.len(), 1);
}

#[tokio::test]
async fn nothing_is_recorded_of_what_is_not_well_formed() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = some_user();
    let earnings = path(user, "earnings");
    let good = json!({"bucket": "promo", "points": 5, "reason": "task"});
    let request = || api.json(Role::Service, Uuid::nil(), &earnings, "key");
    let with = |name: &str, value: &str| {
        let mut builder = request();
        let value = value.parse().unwrap();
        builder.headers_mut().unwrap().insert(header::HeaderName::try_from(name).unwrap(), value);
        builder.body(body_of(&good)).unwrap()
    };
    let without = |name: &str| {
        let mut builder = request();
        builder.headers_mut().unwrap().remove(name);
        builder.body(body_of(&good)).unwrap()
    };
    let body = |body: &str| request().body(Body::from(body.to_owned())).unwrap();
    let caller = Caller { role: Role::Service, id: Uuid::nil() };
    let over = api.tokens.mint(&caller, Utc::now() - TimeDelta::hours(1), TimeDelta::minutes(5)).unwrap();
    let forged = Tokens::new(&[8; 32]).unwrap().mint(&caller, Utc::now(), TimeDelta::minutes(5)).unwrap();
    let table = [
        (without("idempotency-key"), 400, "idempotency-key-missing"),
        (with("idempotency-key", ""), 400, "idempotency-key-missing"),
        (with("idempotency-key", &"k".repeat(256)), 400, "idempotency-key-missing"),
        (with("idempotency-key", "a\tb"), 400, "idempotency-key-missing"),
        (without("authorization"), 401, "unauthenticated"),
        (with("authorization", "Basic Zm9v"), 401, "unauthenticated"),
        (with("authorization", "Bearer nonsense"), 401, "unauthenticated"),
        (with("authorization", &format!("Bearer {over}")), 401, "unauthenticated"),
        (with("authorization", &format!("Bearer {forged}")), 401, "unauthenticated"),
        (with("content-type", "text/plain"), 415, "unsupported-media-type"),
        (without("content-type"), 415, "unsupported-media-type"),
        (body("{"), 400, "malformed-request"),
        (body(""), 400, "malformed-request"),
        (body("[]"), 400, "malformed-request"),
        (body(r#"{"bucket": "promo", "points": 5}"#), 400, "malformed-request"),
        (body(r#"{"bucket": "gold", "points": 5, "reason": "task"}"#), 400, "malformed-request"),
        (body(r#"{"bucket": "promo", "points": -5, "reason": "task"}"#), 400, "malformed-request"),
        (body(r#"{"bucket": "promo", "points": 5.5, "reason": "task"}"#), 400, "malformed-request"),
        (body(r#"{"bucket": "promo", "points": 99999999999999999999, "reason": "task"}"#), 400, "malformed-request"),
        (body(r#"{"bucket": "promo", "points": 5, "reason": "NOT A LABEL"}"#), 400, "malformed-request"),
        (body(r#"{"bucket": "promo", "points": 5, "reason": "task", "more": 1}"#), 400, "malformed-request"),
        (body(&" ".repeat(5_000)), 413, "body-too-large"),
        (request().uri("/v1/users/7/earnings").body(body_of(&good)).unwrap(), 400, "malformed-request"),
        (request().uri("/v1/nothing").body(body_of(&good)).unwrap(), 404, "not-found"),
        (request().method("GET").body(body_of(&good)).unwrap(), 405, "method-not-allowed"),
    ];
    for (number, (request, status, kind)) in table.into_iter().enumerate() {
        let shown = format!("{number}: {request:?}");
        let answer = api.send(request).await;
        assert_eq!(answer.kind(), (status, kind), "{shown} {}", answer.body);
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
    }
    assert_eq!(store.commands_recorded().await, (0, 0));
}

#[tokio::test]
async fn only_a_service_says_when_and_never_ahead_of_time() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = some_user();
    let at = |at: DateTime<Utc>| json!({"occurred_at": at});
    let yesterday = Utc::now() - TimeDelta::days(1);
    let own = api.json(Role::User, user.0, &path(user, "check-ins"), "key").body(body_of(&at(yesterday))).unwrap();
    assert_eq!(api.send(own).await.kind(), (403, "forbidden"));
    let ahead = Utc::now() + TimeDelta::minutes(10);
    assert_eq!(api.service(&path(user, "check-ins"), at(ahead)).await.kind(), (422, "out-of-range"));
    assert_eq!(store.commands_recorded().await, (0, 0));
    let back = api.service(&path(user, "check-ins"), at(yesterday)).await;
    assert_eq!(back.status, 201);
    let first = api.json(Role::User, user.0, &path(user, "check-ins"), "key").body(Body::empty()).unwrap();
    assert_eq!(api.send(first).await.status, 201, "the day after");
    let log = store.log().await;
    let age = Utc::now() - log[1].occurred_at;
    assert!(age < TimeDelta::minutes(1) && age >= TimeDelta::zero(), "the server's time");
}

#[tokio::test]
async fn refusals_have_names_of_their_own() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = some_user();
    let (order, spend, hold) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let earn = |bucket: &str, points: i64| json!({"bucket": bucket, "points": points, "reason": "task"});
    let pay = |points: i64| json!({"order": order, "points": points});
    let buy = |points: i64| json!({"spend": spend, "points": points, "product": "video"});
    let set_aside = |points: i64, s: i64| json!({"hold": hold, "points": points, "reason": "video", "lifetime_s": s});
    let day = json!({"occurred_at": "2026-01-02T00:00:00Z"});
    let day_before = json!({"occurred_at": "2026-01-01T00:00:00Z"});
    let (refund, capture) = (format!("spends/{spend}/refund"), format!("holds/{hold}/capture"));
    let release = format!("holds/{hold}/release");
    let table = [
        ("check-ins", day.clone(), 201, ""),
        ("check-ins", day, 409, "already-checked-in"),
        ("check-ins", day_before, 409, "refused"),
        ("spends", buy(1_000), 409, "insufficient-points"),
        ("earnings", earn("promo", 0), 422, "out-of-range"),
        ("earnings", earn("income", 2_000_000_000), 422, "out-of-range"),
        ("earnings", earn("paid", 1), 422, "out-of-range"),
        ("recharges", pay(50), 201, ""),
        ("recharges", pay(50), 200, ""),
        ("recharges", pay(51), 409, "order-mismatch"),
        ("holds", set_aside(5, 0), 422, "out-of-range"),
        ("holds", set_aside(5_000, 60), 409, "insufficient-points"),
        (&capture, json!({}), 409, "refused"),
        ("holds", set_aside(5, 60), 201, ""),
        ("holds", set_aside(5, 60), 409, "refused"),
        (&capture, json!({"points": 6}), 409, "refused"),
        (&capture, Value::Null, 201, ""),
        (&release, Value::Null, 409, "refused"),
        (&refund, Value::Null, 409, "refused"),
        ("spends", buy(5), 201, ""),
        ("spends", buy(5), 409, "refused"),
        (&refund, json!({"points": 6}), 409, "refused"),
        (&refund, json!({"points": 2}), 201, ""),
        (&refund, Value::Null, 201, ""),
        (&refund, Value::Null, 409, "refused"),
        ("expirations", json!({"occurred_at": "2026-01-02T00:00:00Z"}), 200, ""),
    ];
    for (number, (route, body, status, kind)) in table.into_iter().enumerate() {
        let answer = api.service(&path(user, route), body.clone()).await;
        assert_eq!(answer.kind(), (status, kind), "{number}: {route} {body} {}", answer.body);
        assert_eq!(answer.body["detail"].is_string(), status >= 400);
    }
    assert_eq!(store.log().await.len(), 8);
}

#[tokio::test]
async fn a_part_that_is_asked_for_without_a_length_is_that_part() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (user, hold) = (some_user(), Uuid::new_v4());
    api.service(&path(user, "earnings"), json!({"bucket": "income", "points": 50, "reason": "task"})).await;
    let held = json!({"hold": hold, "points": 20, "reason": "video"});
    assert_eq!(api.service(&path(user, "holds"), held).await.status, 201);
    // As over HTTP/2, where a body needs neither Content-Length nor Transfer-Encoding.
    let captured = api.service(&path(user, &format!("holds/{hold}/capture")), json!({"points": 5})).await;
    assert_eq!(captured.body["recorded"][0]["event"]["captured"]["taken"], json!({"income": 5}));
}
