//! The story of an entry, as an auditor reads it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Executor;
use uuid::Uuid;

use crate::support::{Api, Folder, eventually};

const ACCOUNT: &str = "mei.lin.of.hangzhou@example.com";
const REASON: &str = "they told us about their aunt";

/// The story, once it has a step of this type.
async fn story_with(auditor: &Api, position: &str, step: &str) -> Value {
    eventually(step, async || {
        let story = auditor.get(&format!("/v1/ledger/events/{position}/story")).await.with(StatusCode::OK).json;
        let has_it = story["course"].as_array().unwrap().iter().any(|of| of["type"] == step);
        has_it.then_some(story)
    })
    .await
}

/// Types and relations of the steps, in order.
fn steps(story: &Value) -> Vec<(&str, &str)> {
    let course = story["course"].as_array().unwrap().iter();
    course.map(|step| (step["type"].as_str().unwrap(), step["relation"].as_str().unwrap())).collect()
}

fn relation_of<'s>(story: &'s Value, step: &str) -> &'s str {
    let course = story["course"].as_array().unwrap();
    course.iter().find(|of| of["type"] == step).unwrap()["relation"].as_str().unwrap()
}

/// Users of two shards.
fn apart() -> (Uuid, Uuid) {
    let shard = |number| skyriff_domain::shard_of(skyriff_domain::UserId(Uuid::from_u128(number)), Default::default());
    let other = (101..).find(|number| shard(*number) != shard(100)).unwrap();
    (Uuid::from_u128(100), Uuid::from_u128(other))
}

#[tokio::test]
async fn a_withdrawal_is_told_from_the_request_to_the_payout_with_who_agreed_and_without_what_is_personal() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let (user, reviewer) = (dev.user, Uuid::from_u128(1));
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(2)).await);
    let review = dev.api.as_caller(&folder.token("reviewer", reviewer).await);
    let auditor = dev.api.as_caller(&folder.token("auditor", Uuid::from_u128(3)).await);
    service.earn(user, "income", 5_000).await.unwrap().with(StatusCode::CREATED);
    let body = json!({"points": 2_000, "destination": {"kind": "alipay", "account": ACCOUNT, "name": "Mei Lin"}});
    let requested = dev.api.post("/v1/withdrawals", "mine", Some(body)).await.unwrap().with(StatusCode::CREATED);
    let sealed = requested.json["recorded"][0]["event"]["requested"]["destination"].as_str().unwrap().to_owned();
    let place = requested.header("location").to_owned();
    let approved = review.post(&format!("{place}/approve"), "yes", None).await.unwrap().with(StatusCode::CREATED);

    let held = requested.position();
    let story = story_with(&auditor, &held, "withdrawal.paid").await;
    assert_eq!(story["event"]["type"], "points_account.held", "{story:#}");
    let account = |account: &str, amount: i64| json!({"account": account, "user": user, "amount": amount});
    assert_eq!(
        story["postings"],
        json!([account("user:available:income", -2_000), account("user:held:income", 2_000)])
    );
    assert_eq!(story["asked_by"]["actor"], format!("user:{user}"));
    assert_eq!(story["asked_by"]["request"], requested.header("x-request-id"));
    assert_eq!((&story["course_is_whole"], &story["asked_by"]["address"]), (&json!(true), &json!("127.0.0.0/24")));
    let told = steps(&story);
    assert_eq!(
        told,
        [
            ("withdrawal.requested", "same_command"),
            ("withdrawal_allowance.used", "same_command"),
            ("points_account.held", "this"),
            ("withdrawal.approved", "same_course"),
            ("withdrawal.payout_started", "same_course"),
            ("points_account.payout_started", "same_course"),
            ("withdrawal.paid", "same_course"),
            ("withdrawal_allowance.closed", "same_course"),
            ("points_account.paid_out", "same_course"),
        ],
        "{story:#}"
    );
    let approvals = story["approvals"].as_array().unwrap();
    assert_eq!(approvals.len(), 1, "{story:#}");
    assert_eq!(
        (&approvals[0]["decision"], &approvals[0]["by"]),
        (&json!("withdrawal.approved"), &json!(format!("reviewer:{reviewer}")))
    );
    assert_eq!(approvals[0]["position"], approved.position());

    // From where it was approved, everything after is an effect.
    let story = story_with(&auditor, &approved.position(), "withdrawal.paid").await;
    assert_eq!(story["event"]["data"], json!({"reviewer": null}));
    assert_eq!(story["event"]["masked"], json!(["reviewer"]));
    for effect in
        ["withdrawal.payout_started", "points_account.payout_started", "withdrawal.paid", "points_account.paid_out"]
    {
        assert_eq!(relation_of(&story, effect), "effect", "{story:#}");
    }
    assert_eq!(relation_of(&story, "withdrawal.requested"), "same_course");
    // And from the end, the causes lead back to it.
    let paid = story["course"].as_array().unwrap().iter().find(|step| step["type"] == "withdrawal.paid").unwrap();
    let story = story_with(&auditor, paid["position"].as_str().unwrap(), "withdrawal.paid").await;
    assert_eq!(relation_of(&story, "withdrawal.approved"), "cause", "{story:#}");
    assert_eq!(story["asked_by"]["actor"], "process:payouts");

    // Where the money went is sealed, and stays so whoever asks.
    let first = story["course"][0]["position"].as_str().unwrap().to_owned();
    let story = story_with(&auditor, &first, "withdrawal.requested").await;
    assert_eq!(story["event"]["data"]["destination"], json!({"sealed": true}));
    assert_eq!(story["event"]["masked"], json!(["destination"]));
    let text = story.to_string();
    assert!(!text.contains(&sealed) && !text.contains("mei.lin") && !text.contains("Mei Lin"), "{text}");

    // A correction by hand: who did it is there, and why is not.
    let operator = dev.api.as_caller(&folder.token("operator", Uuid::from_u128(4)).await);
    let adjust = json!({ "bucket": "income", "direction": "credit", "points": 1, "reason": REASON });
    let adjusted = operator.post(&format!("/v1/users/{user}/adjustments"), "by hand", Some(adjust)).await.unwrap();
    let story = story_with(&auditor, &adjusted.position(), "points_account.adjusted").await;
    assert_eq!(
        (&story["asked_by"]["actor"], &story["approvals"]),
        (&json!(format!("operator:{}", Uuid::from_u128(4))), &json!([]))
    );
    assert!(!story.to_string().contains(REASON), "{story:#}");
    assert_eq!(story["event"]["data"]["reason"], Value::Null);

    // Nobody else reads it, and what is not there is not found.
    let path = format!("/v1/ledger/events/{held}/story");
    for api in [&dev.api, &service, &review, &operator] {
        api.get(&path).await.is_problem(StatusCode::FORBIDDEN, "forbidden");
    }
    for nowhere in ["0:99999", "17:1", "1023:1", "9999:1", "3:0", "0:999999999999999999"] {
        let answer = auditor.get(&format!("/v1/ledger/events/{nowhere}/story")).await;
        answer.is_problem(StatusCode::NOT_FOUND, "not-found");
    }
    for malformed in ["3", "3:", "3:-1", "a:1", "+1:1", "99999:1", "3:1:2", "%00:1", "3:99999999999999999999"] {
        let answer = auditor.get(&format!("/v1/ledger/events/{malformed}/story")).await;
        answer.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    }
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_tip_between_two_shards_is_one_story_from_either_end() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(2)).await);
    let auditor = dev.api.as_caller(&folder.token("auditor", Uuid::from_u128(3)).await);
    let (from, to) = apart();
    service.earn(from, "income", 500).await.unwrap().with(StatusCode::CREATED);
    let sender = dev.api.as_caller(&folder.token("user", from).await);
    let tip = json!({ "to": to, "points": 100 });
    let offered = sender.post("/v1/tips", "a tip", Some(tip)).await.unwrap().with(StatusCode::ACCEPTED);
    let story = story_with(&auditor, &offered.position(), "tip.delivered").await;
    let told: Vec<_> = steps(&story).into_iter().filter(|(_, relation)| *relation != "same_course").collect();
    assert_eq!(
        told,
        [
            ("tip.offered", "same_command"),
            ("points_account.held", "this"),
            ("points_account.tip_received", "effect"),
            ("tip_receipt.credited", "effect"),
            ("tip.delivered", "effect"),
            ("points_account.tip_paid", "effect"),
        ],
        "{story:#}"
    );
    // From the receiver's end, in another shard, what led to it is a cause.
    let received =
        story["course"].as_array().unwrap().iter().find(|step| step["type"] == "points_account.tip_received");
    let received = received.unwrap()["position"].as_str().unwrap().to_owned();
    assert_ne!(received.split(':').next(), offered.position().split(':').next());
    let story = story_with(&auditor, &received, "tip.delivered").await;
    assert_eq!(relation_of(&story, "tip.offered"), "cause", "{story:#}");
    assert_eq!(relation_of(&story, "tip_receipt.credited"), "same_command");
    assert_eq!(relation_of(&story, "points_account.tip_paid"), "effect");
    let sum: i64 = story["postings"].as_array().unwrap().iter().map(|posted| posted["amount"].as_i64().unwrap()).sum();
    assert_eq!((sum, story["postings"].as_array().unwrap().len()), (0, 3));

    // A spend, its refund, and neither of another one.
    for (key, spend) in [("one", Uuid::from_u128(71)), ("other", Uuid::from_u128(72))] {
        let body = json!({ "spend": spend, "points": 5, "product": "sticker" });
        sender.post(&format!("/v1/users/{from}/spends"), key, Some(body)).await.unwrap().with(StatusCode::CREATED);
    }
    let path = format!("/v1/users/{from}/spends/{}/refund", Uuid::from_u128(71));
    let refunded = service.post(&path, "back", Some(json!({}))).await.unwrap().with(StatusCode::CREATED);
    let story = story_with(&auditor, &refunded.position(), "points_account.spent").await;
    assert_eq!(
        steps(&story),
        [("points_account.spent", "same_course"), ("points_account.refunded", "this")],
        "{story:#}"
    );
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_replica_that_is_behind_leaves_nothing_out() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(2)).await);
    let auditor = dev.api.as_caller(&folder.token("auditor", Uuid::from_u128(3)).await);
    let (user, spend) = (dev.user, Uuid::from_u128(71));
    service.earn(user, "points", 100).await.unwrap().with(StatusCode::CREATED);
    let body = json!({ "spend": spend, "points": 5, "product": "sticker" });
    let spent = dev.api.post(&format!("/v1/users/{user}/spends"), "a spend", Some(body)).await.unwrap();
    let spent = spent.with(StatusCode::CREATED).position();
    story_with(&auditor, &spent, "points_account.spent").await;
    let mut replica = folder.pause_replica().await;

    // What was recorded since is not there, and whoever knows of it asks for it.
    let path = format!("/v1/users/{user}/spends/{spend}/refund");
    let refunded = service.post(&path, "back", Some(json!({}))).await.unwrap().with(StatusCode::CREATED).position();
    let story = async |event: &str, at_least: &str| {
        let path = format!("/v1/ledger/events/{event}/story");
        auditor.send(Method::GET, &path, &[("Skyriff-At-Least", at_least)], None).await.unwrap()
    };
    let told = story(&spent, &refunded).await.with(StatusCode::OK).json;
    assert_eq!(
        steps(&told),
        [("points_account.spent", "this"), ("points_account.refunded", "same_course")],
        "{told:#}"
    );
    // Of an event that a replica does not have, it has nothing to tell at all.
    let body = json!({ "order": Uuid::from_u128(72), "points": 60 });
    let path = format!("/v1/users/{user}/recharges");
    let recharged = service.post(&path, "recharge", Some(body)).await.unwrap().with(StatusCode::CREATED).position();
    let told = auditor.get(&format!("/v1/ledger/events/{recharged}/story")).await.with(StatusCode::OK).json;
    let mut types: Vec<_> = steps(&told).into_iter().map(|(step, _)| step).collect();
    types.sort_unstable();
    assert_eq!(types, ["points_account.recharged", "recharge_order.credited"], "{told:#}");
    let shard = recharged.split_once(':').unwrap().0;
    let reaches = told["position"].as_str().unwrap().split(',').any(|place| place == recharged);
    assert!(reaches, "{told:#}");
    let never = story(&spent, &format!("{shard}:99999")).await;
    never.is_problem(StatusCode::SERVICE_UNAVAILABLE, "not-that-fresh-yet");
    story(&spent, "nowhere").await.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    replica.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    dev.interrupt().await.well();
}
