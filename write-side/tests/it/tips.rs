//! Tips over HTTP.

use serde_json::{Value, json};
use skyriff_domain::{CommandId, UserId};
use skyriff_edge::Role;
use sqlx::Executor;
use uuid::Uuid;

use crate::{
    http::{Answer, Api, body_of},
    store::{Store, some_user, user_of_shard},
};

const TIPS: &str = "/v1/tips";

async fn tip(api: &Api, role: Role, id: Uuid, key: &str, body: Value) -> Answer {
    api.send(api.json(role, id, TIPS, key).body(body_of(&body)).unwrap()).await
}

/// By the user itself.
async fn own(api: &Api, from: UserId, key: &str, body: Value) -> Answer {
    tip(api, Role::User, from.0, key, body).await
}

async fn recharge(api: &Api, user: UserId, points: i64) {
    let body = json!({ "order": Uuid::new_v4(), "points": points });
    assert_eq!(api.service(&format!("/v1/users/{user}/recharges"), body).await.kind(), (201, ""));
}

/// The events of an answer: of what kind of stream, and their type.
fn recorded(answer: &Answer) -> Vec<(&str, &str)> {
    let events = answer.body["recorded"].as_array().unwrap().iter();
    events
        .map(|event| {
            (
                event["aggregate_type"].as_str().unwrap(),
                event["event"].as_object().unwrap().keys().next().unwrap().as_str(),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_tip_within_a_shard_is_delivered_at_once_and_shows_nothing_of_the_receiver_s_account() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (from, to) = (user_of_shard(3), user_of_shard(3));
    recharge(&api, from, 100).await;
    // Promo points that are over by now: the tip's arrival expires them.
    let long_ago = json!({ "bucket": "promo", "points": 5, "reason": "task", "occurred_at": "2020-01-01T00:00:00Z" });
    assert_eq!(api.service(&format!("/v1/users/{to}/earnings"), long_ago).await.kind(), (201, ""));

    let asked = json!({ "to": to, "points": 10, "work": Uuid::from_u128(7) });
    let first = own(&api, from, "k", asked.clone()).await;
    assert_eq!(first.kind(), (201, ""), "{}", first.body);
    let id = CommandId::derive(&format!("user:{from}"), "k");
    assert_eq!((&first.body["tip"], &first.body["state"]), (&json!(id), &json!("delivered")));
    assert_eq!(first.header("location"), Some(format!("/v1/users/{from}/tips/{id}").as_str()));
    assert_eq!(first.header("skyriff-position"), first.body["position"].as_str());
    let shown = [
        ("tip", "offered"),
        ("points_account", "held"),
        ("tip_receipt", "credited"),
        ("tip", "delivered"),
        ("points_account", "tip_paid"),
    ];
    assert_eq!(recorded(&first), shown);
    assert_eq!(first.body["recorded"][0]["event"]["offered"], {
        json!({ "from": from, "to": to, "points": 10, "share": 3, "work": Uuid::from_u128(7) })
    });
    let log = store.log().await;
    assert!(log.iter().any(|logged| logged.event_type == "expired"), "which is what is not shown");
    assert!(log.iter().any(|logged| logged.event_type == "tip_received"));

    let again = own(&api, from, "k", asked.clone()).await;
    assert_eq!((again.kind(), again.header("idempotent-replayed")), ((201, ""), Some("true")));
    assert_eq!(recorded(&again), shown);
    let other = own(&api, from, "k", json!({ "to": to, "points": 11 })).await;
    assert_eq!(other.kind(), (422, "idempotency-key-reused"));

    // Years later, when nobody remembers the key but the tip itself.
    store.owner().await.execute("DELETE FROM commands").await.unwrap();
    let late = own(&api, from, "k", asked).await;
    assert_eq!(
        (late.kind(), &late.body["state"], &late.body["recorded"]),
        ((200, ""), &json!("delivered"), &json!([]))
    );
    assert_eq!(late.header("location"), first.header("location"));
    store.owner().await.execute("DELETE FROM commands").await.unwrap();
    let other = own(&api, from, "k", json!({ "to": to, "points": 11 })).await;
    assert_eq!(other.kind(), (422, "idempotency-key-reused"));
}

#[tokio::test]
async fn a_tip_to_another_shard_is_on_its_way() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (from, to) = (user_of_shard(3), user_of_shard(4));
    recharge(&api, from, 100).await;
    let asked = json!({ "from": from, "to": to, "points": 10, "occurred_at": "2026-01-01T00:00:00Z" });
    let service = Uuid::new_v4();
    let id = CommandId::derive(&format!("service:{service}"), "k");
    for attempt in 0..3 {
        if attempt == 2 {
            let log = store.log().await;
            let tips: Vec<_> = log.iter().filter(|logged| logged.aggregate_type.starts_with("tip")).collect();
            assert_eq!(tips.len(), 1);
            assert_eq!(tips[0].occurred_at.to_rfc3339(), "2026-01-01T00:00:00+00:00");
            store.owner().await.execute("DELETE FROM commands").await.unwrap();
        }
        let answer = tip(&api, Role::Service, service, "k", asked.clone()).await;
        assert_eq!(answer.kind(), (202, ""), "{}", answer.body);
        assert_eq!((&answer.body["tip"], &answer.body["state"]), (&json!(id), &json!("offered")));
        assert_eq!(answer.header("location"), Some(format!("/v1/users/{from}/tips/{id}").as_str()));
        assert_eq!(answer.header("idempotent-replayed"), (attempt == 1).then_some("true"));
        let events = [("tip", "offered"), ("points_account", "held")];
        assert_eq!(recorded(&answer), if attempt < 2 { events.to_vec() } else { Vec::new() });
    }
}

#[tokio::test]
async fn a_tip_is_given_by_its_giver_or_by_a_service_for_one() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (from, to) = (some_user(), some_user());
    recharge(&api, from, 100).await;
    let before = store.commands_recorded().await;
    let for_somebody = json!({ "from": from, "to": to, "points": 1 });
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Service) {
        let refused = tip(&api, role, Uuid::new_v4(), "k", for_somebody.clone()).await;
        assert_eq!(refused.kind(), (403, "forbidden"), "{role:?}");
        if role != Role::User {
            let refused = tip(&api, role, from.0, "k", for_somebody.clone()).await;
            assert_eq!(refused.kind(), (403, "forbidden"), "{role:?}, with the user's id");
        }
    }
    let nobody = tip(&api, Role::Service, Uuid::new_v4(), "k", json!({ "to": to, "points": 1 })).await;
    assert_eq!(nobody.kind(), (400, "malformed-request"));
    assert!(nobody.body["detail"].as_str().unwrap().contains("from"), "{}", nobody.body);
    let when = json!({ "to": to, "points": 1, "occurred_at": "2026-01-01T00:00:00Z" });
    assert_eq!(own(&api, from, "k", when).await.kind(), (403, "forbidden"), "a user does not say when");
    assert_eq!(store.commands_recorded().await, before);
    let itself = own(&api, from, "itself", for_somebody.clone()).await;
    assert!(matches!(itself.kind(), (201 | 202, "")), "{}", itself.body);
    let service = tip(&api, Role::Service, Uuid::new_v4(), "k", for_somebody).await;
    assert!(matches!(service.kind(), (201 | 202, "")), "{}", service.body);
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_by_name() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let from = user_of_shard(3);
    recharge(&api, from, 10).await;
    let promo = json!({ "bucket": "promo", "points": 50, "reason": "task" });
    api.service(&format!("/v1/users/{from}/earnings"), promo).await;
    let nobody = own(&api, from, "nobody", json!({ "to": Uuid::nil(), "points": 1 })).await;
    assert_eq!(nobody.kind(), (422, "out-of-range"), "those points would be gone");
    for to in [user_of_shard(3), user_of_shard(4)] {
        let table = [
            (json!({ "to": from, "points": 1 }), (422, "out-of-range"), "somebody else"),
            (json!({ "to": to, "points": 0 }), (422, "out-of-range"), "1 to 100000"),
            (json!({ "to": to, "points": 100_001 }), (422, "out-of-range"), "1 to 100000"),
            (json!({ "to": to, "points": 11 }), (409, "insufficient-points"), "10 can be given: promo points cannot"),
            (json!({ "to": to, "points": -1 }), (400, "malformed-request"), ""),
            (json!({ "to": to }), (400, "malformed-request"), "points"),
            (json!({ "points": 1 }), (400, "malformed-request"), "to"),
            (json!({ "to": "me", "points": 1 }), (400, "malformed-request"), ""),
            (json!({ "to": to, "points": 1, "beside": true }), (400, "malformed-request"), "beside"),
        ];
        for (number, (body, kind, detail)) in table.into_iter().enumerate() {
            let key = format!("{to} {number}");
            for again in [false, true] {
                let answer = own(&api, from, &key, body.clone()).await;
                assert_eq!(answer.kind(), kind, "{body}");
                assert!(answer.body["detail"].as_str().unwrap().contains(detail), "{body}: {}", answer.body);
                let replayed = (again && kind.0 != 400).then_some("true");
                assert_eq!(answer.header("idempotent-replayed"), replayed, "{body}");
            }
        }
    }
    assert!(store.log().await.iter().all(|logged| !logged.aggregate_type.starts_with("tip")));
    let missing = api.send(api.json(Role::User, from.0, TIPS, "").body(body_of(&json!({}))).unwrap()).await;
    assert_eq!(missing.kind(), (400, "idempotency-key-missing"));
}

#[tokio::test]
async fn a_tip_in_bulk_is_answered_as_one_alone_and_under_the_same_key() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let (from, beside, far) = (user_of_shard(3), user_of_shard(3), user_of_shard(4));
    recharge(&api, from, 100).await;
    let tips = [(beside, "beside", 201, "delivered"), (far, "far", 202, "offered")];
    for (to, key, status, _) in tips {
        let alone = own(&api, from, key, json!({ "to": to, "points": 10 })).await;
        assert_eq!(alone.kind(), (status, ""));
    }
    let of = |to, key: &str, points: i64| json!({ "do": "tip", "idempotency_key": key, "user": from, "to": to, "points": points });
    let commands =
        [of(beside, "beside", 10), of(far, "far", 10), of(far, "new", 5), of(from, "itself", 1), of(far, "many", 500)];
    for atomic in [false, true] {
        let body = json!({ "atomic": atomic, "commands": if atomic { &commands[..2] } else { &commands[..] } });
        let request = api.json(Role::User, from.0, "/v1/commands:batch", "").body(body_of(&body)).unwrap();
        let answer = api.send(request).await;
        assert_eq!(answer.kind(), (200, ""), "{}", answer.body);
        let results = answer.body["results"].as_array().unwrap();
        for ((_, key, status, state), result) in tips.into_iter().zip(results) {
            let id = CommandId::derive(&format!("user:{from}"), key);
            assert_eq!((&result["status"], &result["state"]), (&json!(status), &json!(state)), "{result}");
            assert_eq!((&result["tip"], &result["replayed"]), (&json!(id), &json!(true)));
            assert_eq!(result["location"], format!("/v1/users/{from}/tips/{id}"));
            let others = result["recorded"].as_array().unwrap().iter();
            assert_eq!(
                others.filter(|event| event["aggregate_id"] == json!(beside)).count(),
                0,
                "not the sender's to see"
            );
        }
        if !atomic {
            assert_eq!((&results[2]["status"], &results[2]["replayed"]), (&json!(202), &json!(false)));
            assert_eq!((&results[3]["status"], &results[4]["status"]), (&json!(422), &json!(409)));
        }
    }
}
