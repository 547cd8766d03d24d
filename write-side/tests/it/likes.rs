//! Likes over HTTP.

use axum::{
    body::Body,
    http::{Request, header},
};
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use skyriff_domain::UserId;
use skyriff_edge::Role;
use uuid::Uuid;

use crate::{
    http::{Answer, Api, body_of},
    store::{Store, some_user, user_of_shard},
};

/// A request without an idempotency key; change what is to be wrong.
fn request(api: &Api, method: &str, role: Role, id: Uuid, work: &str) -> axum::http::request::Builder {
    let mut request = api.json(role, id, &format!("/v1/works/{work}/like"), "key").method(method);
    request.headers_mut().unwrap().remove("idempotency-key");
    request
}

async fn send(api: &Api, method: &str, (role, id): (Role, Uuid), work: Uuid, body: &Value) -> Answer {
    api.send(request(api, method, role, id, &work.to_string()).body(body_of(body)).unwrap()).await
}

#[tokio::test]
async fn a_like_is_recorded_once_until_it_is_taken_back() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (user, work) = (user_of_shard(3), Uuid::new_v4());
    let itself = (Role::User, user.0);
    for (method, status, recorded, position) in [
        ("DELETE", 200, None, "3:0"),
        ("PUT", 201, Some("liked"), "3:1"),
        ("PUT", 200, None, "3:1"),
        ("DELETE", 201, Some("unliked"), "3:2"),
        ("DELETE", 200, None, "3:2"),
        ("PUT", 201, Some("liked"), "3:3"),
    ] {
        let answer = send(&api, method, itself, work, &Value::Null).await;
        assert_eq!((answer.kind(), answer.header("skyriff-position")), ((status, ""), Some(position)), "{method}");
        assert_eq!((&answer.body["position"], &answer.body["replayed"]), (&json!(position), &json!(false)));
        let event = &answer.body["recorded"][0];
        match recorded {
            None => assert_eq!(answer.body["recorded"], json!([])),
            Some(name) => {
                assert_eq!((&event["event"], &event["aggregate_type"]), (&json!({ name: {} }), &json!("like")));
                assert_eq!(event["aggregate_id"], format!("{user}/{work}"));
            }
        }
    }
    assert_eq!(store.log().await.len(), 3);
}

#[tokio::test]
async fn a_key_protects_from_a_request_that_arrives_late() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (user, work) = (some_user(), Uuid::new_v4());
    let with_key = |method: &str, key: &str| {
        let builder = request(&api, method, Role::User, user.0, &work.to_string());
        builder.header("idempotency-key", key).body(Body::empty()).unwrap()
    };
    let first = api.send(with_key("PUT", "like")).await;
    assert_eq!((first.kind().0, first.header("idempotent-replayed")), (201, None));
    assert_eq!(send(&api, "DELETE", (Role::User, user.0), work, &Value::Null).await.kind().0, 201);
    let late = api.send(with_key("PUT", "like")).await;
    assert_eq!((late.kind().0, late.header("idempotent-replayed")), (201, Some("true")));
    assert_eq!(late.body["recorded"], first.body["recorded"]);
    assert_eq!(store.log().await.len(), 2);
    assert_eq!(api.send(with_key("DELETE", "like")).await.kind(), (422, "idempotency-key-reused"));
    for key in ["", "a\tb"] {
        assert_eq!(api.send(with_key("PUT", key)).await.kind(), (400, "idempotency-key-missing"), "{key:?}");
    }
}

#[tokio::test]
async fn likes_are_taken_from_those_who_may_and_from_nobody_else() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (user, other, work) = (some_user(), some_user(), Uuid::new_v4());
    let naming = |user: UserId| json!({ "user": user });
    let yesterday = json!({"user": user, "occurred_at": Utc::now() - TimeDelta::days(1)});
    let ahead = json!({"user": user, "occurred_at": Utc::now() + TimeDelta::minutes(10)});
    let mut table = vec![
        (Role::User, naming(other), (403, "forbidden")),
        (Role::User, yesterday.clone(), (403, "forbidden")),
        (Role::Service, Value::Null, (400, "malformed-request")),
        (Role::Service, json!({}), (400, "malformed-request")),
        (Role::Service, ahead, (422, "out-of-range")),
    ];
    for role in Role::ALL.into_iter().filter(|role| !matches!(role, Role::User | Role::Service)) {
        table.push((role, Value::Null, (403, "forbidden")));
        table.push((role, naming(user), (403, "forbidden")));
    }
    for method in ["PUT", "DELETE"] {
        for (role, body, expected) in &table {
            let refused = send(&api, method, (*role, user.0), work, body).await;
            assert_eq!(refused.kind(), *expected, "{method} {role:?} {body}");
        }
        let mut nobody = request(&api, method, Role::User, user.0, &work.to_string());
        nobody.headers_mut().unwrap().remove(header::AUTHORIZATION);
        assert_eq!(api.send(nobody.body(Body::empty()).unwrap()).await.kind(), (401, "unauthenticated"));
    }
    assert_eq!(store.commands_recorded().await, (0, 0));
    for (role, body) in [(Role::User, naming(user)), (Role::Service, yesterday), (Role::Service, naming(other))] {
        let answer = send(&api, "PUT", (role, user.0), work, &body).await;
        assert!(matches!(answer.kind().0, 200 | 201), "{role:?} {body}");
    }
    let log = store.log().await;
    let mut names: Vec<_> = log.iter().map(|event| event.metadata["actor"].as_str().unwrap()).collect();
    names.sort_unstable();
    let expected = [format!("service:{user}"), format!("user:{user}")];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn nothing_is_recorded_of_a_like_that_is_not_well_formed() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (user, work) = (some_user(), Uuid::new_v4().to_string());
    let of = |work: &str| request(&api, "PUT", Role::User, user.0, work);
    let with = |body: &str| of(&work).body(Body::from(body.to_owned())).unwrap();
    let mut as_text = of(&work);
    as_text.headers_mut().unwrap().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    let by = |method: &str, path: String| -> Request<Body> {
        of(&work).method(method).uri(path).body(Body::empty()).unwrap()
    };
    let table = [
        (with("{"), 400, "malformed-request"),
        (with("[]"), 400, "malformed-request"),
        (with(r#"{"work": 7}"#), 400, "malformed-request"),
        (with(r#"{"user": "x"}"#), 400, "malformed-request"),
        (with(r#"{"occurred_at": "yesterday"}"#), 400, "malformed-request"),
        (with(&" ".repeat(5_000)), 413, "body-too-large"),
        (as_text.body(Body::from("{}")).unwrap(), 415, "unsupported-media-type"),
        (of("7").body(Body::empty()).unwrap(), 400, "malformed-request"),
        (of(&"f".repeat(3_000)).body(Body::empty()).unwrap(), 400, "malformed-request"),
        (of(&Uuid::nil().to_string()).body(Body::empty()).unwrap(), 422, "out-of-range"),
        (of(&Uuid::max().to_string()).body(Body::empty()).unwrap(), 422, "out-of-range"),
        (by("POST", format!("/v1/works/{work}/like")), 405, "method-not-allowed"),
    ];
    for (number, (request, status, kind)) in table.into_iter().enumerate() {
        let shown = format!("{number}: {request:?}");
        let answer = api.send(request).await;
        assert_eq!(answer.kind(), (status, kind), "{shown} {}", answer.body);
    }
    assert_eq!(store.commands_recorded().await, (0, 0));
    // The many ways to write a UUID are one id.
    let loud = of(&work.to_uppercase().replace('-', "")).body(Body::from("{}")).unwrap();
    let answer = api.send(loud).await;
    assert_eq!(answer.body["recorded"][0]["aggregate_id"], format!("{user}/{work}"), "{}", answer.body);
}
