//! Many commands in one request, over HTTP.

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use serde_json::{Value, json};
use skyriff_edge::Role;
use uuid::Uuid;

use crate::{
    http::Api,
    store::{Store, available, some_user, user_of_shard},
};

const PATH: &str = "/v1/commands:batch";

fn earn(key: &str, user: impl ToString, points: i64) -> Value {
    json!({ "do": "earn", "idempotency_key": key, "user": user.to_string(), "bucket": "income", "points": points, "reason": "test" })
}

fn spend(key: &str, user: impl ToString, points: i64) -> Value {
    json!({ "do": "spend", "idempotency_key": key, "user": user.to_string(), "spend": Uuid::new_v4(), "points": points, "product": "test" })
}

fn kinds(results: &Value) -> Vec<(u64, String)> {
    let kind = |result: &Value| result["problem"]["type"].as_str().unwrap_or_default().replace("/problems/", "");
    let results = results.as_array().unwrap().iter();
    results.map(|result| (result["status"].as_u64().unwrap(), kind(result))).collect()
}

#[tokio::test]
async fn each_command_has_its_own_result_in_order() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (user, other) = (some_user(), some_user());
    let commands = [
        earn("a", user, 5),
        spend("b", user, 6),
        json!({ "do": "dance", "idempotency_key": "c", "user": user.to_string() }),
        json!({ "do": "adjust", "idempotency_key": "d", "user": user.to_string(), "bucket": "paid", "direction": "credit", "points": 1, "reason": "a service may not" }),
        earn("", user, 1),
        spend("e", user, 5),
        // A misspelled member is not silently left out.
        json!({ "do": "check_in", "idempotency_key": "g", "user": user.to_string(), "ocurred_at": "2020-01-01T00:00:00Z" }),
        json!({ "do": "recharge", "idempotency_key": "f", "user": other.to_string(), "order": Uuid::new_v4(), "points": 7 }),
        earn("a", user, 5),
    ];
    let answer = api.service(PATH, json!({ "commands": commands })).await;
    assert_eq!(answer.kind().0, 200);
    let expected = [
        (201, ""),
        (409, "insufficient-points"),
        (400, "malformed-request"),
        (403, "forbidden"),
        (400, "idempotency-key-missing"),
        (201, ""),
        (400, "malformed-request"),
        (201, ""),
        (201, ""),
    ];
    assert_eq!(kinds(&answer.body["results"]), expected.map(|(status, kind)| (status, kind.to_owned())));
    assert_eq!(answer.body["results"][8]["replayed"], true);
    assert_eq!(answer.body["results"][7]["recorded"].as_array().unwrap().len(), 2);
    let log = store.log().await;
    assert_eq!((available(&log, user), available(&log, other)), (0, 7));

    let mut without_key = earn("", user, 1);
    without_key.as_object_mut().unwrap().remove("idempotency_key");
    let answer = api.service(PATH, json!({ "commands": [without_key, earn("\t", user, 1)] })).await;
    for result in answer.body["results"].as_array().unwrap() {
        assert_eq!(result["problem"]["type"], "/problems/idempotency-key-missing");
        let detail = result["problem"]["detail"].as_str().unwrap();
        assert!(detail.contains("the member idempotency_key"), "{detail}");
    }
}

#[tokio::test]
async fn a_command_has_the_members_of_its_kind_and_no_others() {
    let store = Store::create().await;
    let api = Api::new(&store);
    // The text of a command, since a value cannot have a member twice.
    let common = format!(r#""idempotency_key": "a", "user": "{}""#, some_user());
    let (user, work) = (some_user(), Uuid::new_v4());
    let [another, third] = ["b", "c"].map(|key| format!(r#""idempotency_key": "{key}", "user": "{user}""#));
    let earn = r#""do": "earn", "bucket": "income", "reason": "test", "points""#;
    let table = [
        (format!("{common}, {earn}: 1"), 201, ""),
        (format!(r#"{common}, {earn}: 1, "occurred_at": null"#), 201, ""),
        (format!(r#"{common}, {earn}: 1, "occured_at": null"#), 400, "occured_at"),
        (format!(r#"{common}, {earn}: 1, "product": "test""#), 400, "product"),
        (format!(r#"{common}, {earn}: 1, "product": null"#), 400, "product"),
        (format!("{common}, {earn}: null"), 400, "null"),
        (format!("{common}, {earn}: 1.5"), 400, "1.5"),
        (format!(r#"{common}, {earn}: 1, "points": 2"#), 400, "points"),
        (format!(r#"{common}, {common}, {earn}: 1"#), 400, "idempotency_key"),
        (format!(r#"{common}, "do": "expire", {earn}: 1"#), 400, "do"),
        (format!(r#"{common}, "do": "earn", "bucket": "income", "reason": "test""#), 400, "points"),
        (format!(r#"{common}, "do": "dance""#), 400, "dance"),
        (format!(r#"{common}, "do": 8"#), 400, "8"),
        (common.clone(), 400, "do"),
        (format!(r#""idempotency_key": "a", {earn}: 1"#), 400, "user"),
        (format!(r#"{common}, "do": "like""#), 400, "work"),
        (format!(r#"{common}, "do": "like", "work": "7""#), 400, "UUID"),
        (format!(r#"{common}, "do": "like", "work": "{work}", "creator": "{work}""#), 400, "creator"),
        (format!(r#"{common}, "do": "unlike", "work": "{}""#, Uuid::nil()), 422, "nil"),
        (format!(r#"{another}, "do": "like", "work": "{work}""#), 201, ""),
        (format!(r#"{third}, "do": "like", "work": "{work}""#), 200, ""),
        (format!(r#"{third}, "do": "unlike", "work": "{work}""#), 422, ""),
        (format!(r#""idempotency_key": 7, "user": "{}", {earn}: 1"#, some_user()), 400, "7"),
    ];
    let commands = table.iter().map(|(members, ..)| format!("{{{members}}}")).collect::<Vec<_>>();
    let request = api.request(Role::Service, Uuid::nil(), PATH, "not used here");
    let request = request.header("content-type", "application/json");
    let body = format!(r#"{{"commands": [{}]}}"#, commands.join(","));
    let answer = api.send(request.body(Body::from(body)).unwrap()).await;
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(results.len(), table.len());
    for (result, (members, status, named)) in results.iter().zip(table) {
        assert_eq!(result["status"], status, "{members}: {result}");
        let detail = result["problem"]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(named), "{members}: {detail}");
    }
    assert_eq!(store.log().await.len(), 2);
}

#[tokio::test]
async fn an_atomic_batch_is_all_or_nothing_and_of_one_shard() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = user_of_shard(3);
    let send = async |commands: Value| api.service(PATH, json!({ "atomic": true, "commands": commands })).await;
    let too_much = json!([earn("a", user, 5), spend("b", user, 6)]);
    let refused = send(too_much.clone()).await;
    let expected = [(409, "refused-together".to_owned()), (409, "insufficient-points".to_owned())];
    assert_eq!(kinds(&refused.body["results"]), expected);
    assert!(store.log().await.is_empty());
    // Refused keys stay refused, each with its first answer; one of them spoils its company.
    assert_eq!(kinds(&send(too_much).await.body["results"]), expected);
    let mixed = send(json!([earn("a", user, 5), spend("new", user, 5)])).await;
    assert_eq!(kinds(&mixed.body["results"]), ["refused-together"; 2].map(|kind| (409, kind.to_owned())));
    let done = send(json!([earn("a2", user, 5), spend("b2", user, 5)])).await;
    assert_eq!(kinds(&done.body["results"]), [(201, String::new()), (201, String::new())]);

    assert_eq!(send(json!([earn("c", user, 5), earn("d", user_of_shard(4), 5)])).await.kind(), (422, "shards-mixed"));
    assert_eq!(send(json!([earn("e", user, 5), earn("e", user, 5)])).await.kind(), (400, "malformed-request"));
    let malformed = send(json!([earn("f", user, 5), { "do": "dance" }])).await;
    assert_eq!(kinds(&malformed.body["results"])[0].1, "refused-together");
    assert_eq!(store.log().await.len(), 2);
}

#[tokio::test]
async fn a_batch_has_limits_and_a_user_only_its_own() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = some_user();
    let none = api.service(PATH, json!({ "commands": [] })).await;
    assert_eq!(none.kind(), (400, "malformed-request"));
    let many: Vec<_> = (0..1_001).map(|number| earn(&number.to_string(), user, 1)).collect();
    assert_eq!(api.service(PATH, json!({ "commands": many })).await.kind(), (400, "malformed-request"));
    let large = json!({ "commands": ["x".repeat(3 * 1_024 * 1_024)] });
    assert_eq!(api.service(PATH, large).await.kind(), (413, "body-too-large"));

    let check_in = |user: &str| json!({ "do": "check_in", "idempotency_key": user, "user": user });
    let (own, other) = (user.to_string(), some_user().to_string());
    let body = json!({ "commands": [check_in(&own), check_in(&other)] });
    let request = api
        .request(Role::User, user.0, PATH, "not used here")
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let answer = api.send(request).await;
    assert_eq!(kinds(&answer.body["results"]), [(201, String::new()), (403, "forbidden".to_owned())]);
    assert_eq!(api.send(Request::post(PATH).body(Body::empty()).unwrap()).await.kind(), (401, "unauthenticated"));
}

#[tokio::test]
async fn lines_go_in_and_out_in_order_whatever_the_pieces_that_they_arrive_in() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = some_user();
    let lines: Vec<_> = (0..2_500).map(|number| earn(&number.to_string(), user, 1).to_string()).collect();
    let text = lines.join("\n") + "\n\nnot json\n" + &spend("last", user, 2_500).to_string();
    // Pieces that end in the middle of lines.
    let pieces: Vec<_> =
        text.as_bytes().chunks(1_000).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
    let body = Body::from_stream(futures::stream::iter(pieces));
    let request = api.request(Role::Service, Uuid::nil(), PATH, "not used here");
    let request = request.header("content-type", "application/x-ndjson; charset=utf-8");
    let results = api.lines(request, body).await;
    assert_eq!(results.len(), 2_502);
    assert!(results.iter().take(2_500).all(|result| result["status"] == 201));
    let sequences: Vec<_> = results.iter().filter_map(|result| result["recorded"][0]["sequence"].as_i64()).collect();
    assert_eq!(sequences, (1..=2_501).collect::<Vec<_>>(), "one user's lines are decided in their order");
    assert_eq!(results[2_500]["problem"]["type"], "/problems/malformed-request");
    assert_eq!(available(&store.log().await, user), 0);

    let endless = Body::from("x".repeat(100_000));
    let request = api.request(Role::Service, Uuid::nil(), PATH, "x").header("content-type", "application/x-ndjson");
    let results = api.lines(request, endless).await;
    assert_eq!((results.len(), &results[0]["problem"]["type"]), (1, &json!("/problems/body-too-large")));
}
