//! What really happens is what `schemas/` says.

use std::{collections::BTreeSet, fs, io::Read};

use reqwest::StatusCode;
use serde_json::{Value, json};
use skyriff_kafka::testing::Cluster;
use uuid::Uuid;

use crate::support::{Api, Folder, Process, TRACE, eventually, schema, skyriff};

/// Of the trace: enough that everything that it has has happened.
const LINES: usize = 1_500;
const TRACED: [&str; 11] = [
    "like.liked",
    "like.unliked",
    "points_account.checked_in",
    "points_account.expired",
    "points_account.recharged",
    "points_account.tip_received",
    "recharge_order.credited",
    "tip.delivered",
    "tip.offered",
    "tip_receipt.credited",
    "work.published",
];
const DONE_HERE: [&str; 20] = [
    "erasure.erased",
    "points_account.adjusted",
    "points_account.captured",
    "points_account.earned",
    "points_account.held",
    "points_account.refunded",
    "points_account.released",
    "points_account.spent",
    "points_account.tip_paid",
    "video_job.cancelled",
    "video_job.failed",
    "video_job.leased",
    "video_job.submitted",
    "video_slots.freed",
    "video_slots.taken",
    "withdrawal.cancelled",
    "withdrawal.rejected",
    "withdrawal.requested",
    "withdrawal_allowance.given_back",
    "withdrawal_allowance.used",
];

#[tokio::test]
async fn every_message_is_as_its_schema_describes_it() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let settings = cluster.settings();
    let dev = folder.dev_with(&["--no-worker"]).await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;

    let here = tempfile::tempdir().unwrap();
    let trace = here.path().join("activity.ndjson");
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(TRACE).unwrap()).read_to_string(&mut text).unwrap();
    fs::write(&trace, text.lines().take(LINES).collect::<Vec<_>>().join("\n")).unwrap();
    let play = skyriff(&["play", trace.to_str().unwrap(), "--url", &dev.api.url, "--folder", &folder.as_str()]);
    Process::spawn(play).end().await.well();

    let user = Uuid::from_u128(7);
    let role = async |role: &str, id: Uuid| dev.api.as_caller(&folder.token(role, id).await);
    let own = role("user", user).await;
    let service = role("service", Uuid::from_u128(1)).await;
    let operator = role("operator", Uuid::from_u128(2)).await;
    let reviewer = role("reviewer", Uuid::from_u128(3)).await;
    let worker = role("worker", Uuid::from_u128(4)).await;
    let send = async |api: &Api, path: &str, body: Value| {
        let answer = api.post(path, &format!("{path} {body}"), Some(body.clone())).await.unwrap();
        assert!(answer.status.is_success(), "{path} {body}: {}", answer.json);
        answer
    };
    let of_user = |rest: &str| format!("/v1/users/{user}/{rest}");
    service.earn(user, "earn", 9_000).await.unwrap().with(StatusCode::CREATED);
    let adjusted = json!({ "bucket": "paid", "direction": "credit", "points": 500, "reason": "by hand" });
    send(&operator, &of_user("adjustments"), adjusted).await;
    let (spend, captured, released) = (Uuid::from_u128(11), Uuid::from_u128(12), Uuid::from_u128(13));
    send(&service, &of_user("spends"), json!({ "spend": spend, "points": 30, "product": "poster" })).await;
    send(&service, &of_user(&format!("spends/{spend}/refund")), json!({ "points": 10 })).await;
    for hold in [captured, released] {
        send(&service, &of_user("holds"), json!({ "hold": hold, "points": 40, "reason": "render" })).await;
    }
    send(&service, &of_user(&format!("holds/{captured}/capture")), json!({ "points": 15 })).await;
    send(&service, &of_user(&format!("holds/{released}/release")), json!({})).await;
    send(&own, "/v1/tips", json!({ "to": Uuid::from_u128(8), "points": 10 })).await;

    // One job that a worker could not make, and one that nobody has begun.
    let order = json!({ "kind": "text_to_speech", "prompt": "A poem", "seconds": 5, "provider": "test" });
    send(&own, "/v1/video-jobs", order).await;
    let ask = json!({ "worker": "w-1", "kinds": ["text_to_speech"], "providers": ["test"], "wait_s": 1 });
    let leased = eventually("a job", async || {
        let answer = worker.post("/v1/worker/leases", "-", Some(ask.clone())).await.unwrap();
        answer.with(StatusCode::OK).json["jobs"].as_array().unwrap().first().cloned()
    })
    .await;
    let (job, attempt) = (leased["job"].as_str().unwrap(), &leased["attempt"]);
    let failed = format!("/v1/worker/jobs/{user}/{job}/attempts/{attempt}/fail");
    send(&worker, &failed, json!({ "reason": "no such voice", "retryable": false })).await;
    let order = json!({ "kind": "text_to_speech", "prompt": "Another", "seconds": 5, "provider": "nobody" });
    let ordered = send(&own, "/v1/video-jobs", order).await;
    send(&own, &format!("{}/cancel", ordered.header("location")), json!({})).await;

    for ends_with in ["cancel", "reject"] {
        let destination = json!({ "kind": "alipay", "account": "mei@example.com", "name": "Mei Lin" });
        let asked = json!({ "points": 2_000, "destination": destination });
        let withdrawal = own.post("/v1/withdrawals", ends_with, Some(asked)).await.unwrap().with(StatusCode::CREATED);
        let path = format!("{}/{ends_with}", withdrawal.header("location"));
        let (api, body) = match ends_with {
            "cancel" => (&own, json!({})),
            _ => (&reviewer, json!({ "reason": "not this time" })),
        };
        send(api, &path, body).await;
    }
    send(&operator, &of_user("erasure"), json!({ "asked_by": "person", "reference": "ticket-4711" })).await;

    folder.relayed(&settings).await;
    let topic = folder.topic(&settings).await;
    let seen: BTreeSet<_> = topic.events.iter().map(|event| event.kind.clone()).collect();
    let missing: Vec<_> = TRACED
        .into_iter()
        .chain(DONE_HERE)
        .map(|kind| format!("skyriff.{kind}.v1"))
        .filter(|kind| !seen.contains(kind))
        .collect();
    assert_eq!(missing, [""; 0], "did not happen; what did: {seen:?}");
    relay.signal(rustix::process::Signal::TERM);
    relay.end().await.well();
    dev.interrupt().await.well();
}

#[test]
fn what_is_not_as_described_is_found() {
    let kind = "skyriff.points_account.checked_in.v1";
    let payload = json!({ "checked_in": {
        "day": "2026-11-17", "days_in_a_row": 1, "points": 10, "expires_at": "2027-11-18T00:00:00Z"
    } });
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", "9:1"),
        ("ce_source", "/skyriff"),
        ("ce_type", kind),
        ("ce_subject", "points_account/959de6e1-d9ef-5a29-a884-f19f971b9c27"),
        ("ce_time", "2026-11-17T10:00:00.000000Z"),
        ("content-type", "application/json"),
        ("ce_shard", "9"),
        ("ce_position", "1"),
        ("ce_streamsequence", "1"),
        ("ce_recordedtime", "2026-11-17T10:00:00.000000Z"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let wrong = |payload: &Value, headers: &[(String, String)]| schema::wrong(kind, &payload.to_string(), headers);
    assert_eq!(wrong(&payload, &headers), [""; 0]);
    let other = |name: &str, value: Value| {
        let mut payload = payload.clone();
        let members = payload["checked_in"].as_object_mut().unwrap();
        if value.is_null() {
            members.remove(name)
        } else {
            members.insert(name.to_owned(), value)
        };
        wrong(&payload, &headers).len()
    };
    for (name, value) in [
        ("day", json!("tomorrow")),
        ("day", Value::Null),
        ("points", json!(-1)),
        ("points", json!("10")),
        ("expires_at", json!("2027-11-18")),
        ("colour", json!("red")),
    ] {
        assert_eq!(other(name, value.clone()), 1, "{name}: {value}");
    }
    assert_eq!(wrong(&payload, &headers[1..]).len(), 1, "a header is missing");
    let more = [&headers[..], &[("ce_actor".to_owned(), "user:1".to_owned())]].concat();
    assert_eq!(wrong(&payload, &more).len(), 1, "a header is not described");
    assert_eq!(schema::wrong("skyriff.points_account.stolen.v1", "{}", &headers).len(), 1);
}
