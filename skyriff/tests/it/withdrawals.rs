//! A withdrawal through the front door, and where what belongs to its owner never is.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Api, Folder};

const ACCOUNT: &str = "mei.lin.of.hangzhou@example.com";
const NAME: &str = "Mei Lin of Hangzhou";

/// What is approved stays so, and no payment file says where to.
const NOBODY_PAYS: [(&str, &str); 1] = [("SKYRIFF_PAYOUT_PROVIDER", "none")];

/// What is at a path, no older than this answer said.
async fn read(api: &Api, path: &str, at_least: &str) -> Value {
    let answer = api.send(Method::GET, path, &[("Skyriff-At-Least", at_least)], None).await.unwrap();
    answer.with(StatusCode::OK).json
}

/// The files below the folder that hold this text: tables, write-ahead logs and logs of both servers among them.
pub fn files_with(folder: &Folder, text: &str) -> Vec<String> {
    let found = Command::new("grep").args(["-rlaF", text, &folder.as_str()]).output().unwrap();
    // 2 when a file went away meanwhile.
    assert!(found.status.code().is_some_and(|code| code <= 2));
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_withdrawal_is_asked_for_reviewed_and_read_and_its_destination_is_nowhere_in_the_clear() {
    let folder = Folder::new();
    let dev = folder.dev_with_variables("127.0.0.1:0", &NOBODY_PAYS).await;
    let (user, reviewer) = (dev.user, Uuid::from_u128(1));
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(2)).await);
    let review = dev.api.as_caller(&folder.token("reviewer", reviewer).await);
    service.earn(user, "income", 5_000).await.unwrap().with(StatusCode::CREATED);

    let body = json!({"points": 2_000, "destination": {"kind": "alipay", "account": ACCOUNT, "name": NAME}});
    let requested =
        dev.api.post("/v1/withdrawals", "mine", Some(body.clone())).await.unwrap().with(StatusCode::CREATED);
    let again = dev.api.post("/v1/withdrawals", "mine", Some(body)).await.unwrap().with(StatusCode::CREATED);
    assert_eq!((again.header("idempotent-replayed"), again.header("location")), ("true", requested.header("location")));
    let place = requested.header("location").to_owned();
    let at_least = requested.position();

    let own = read(&dev.api, &place, &at_least).await;
    let masked = json!({"state": "masked", "kind": "alipay", "account": "***@***.com"});
    assert_eq!((&own["status"], &own["destination"]), (&json!("under_review"), &masked));
    let queue = read(&review, "/v1/withdrawals", &at_least).await;
    let waiting = &queue["withdrawals"][0];
    assert_eq!((&waiting["user"], &waiting["destination"]), (&json!(user), &masked));
    assert_eq!(waiting["risk"]["income"], json!({"earned": 5_000, "tips": 0, "adjusted": 0}));

    let approved = review.post(&format!("{place}/approve"), "yes", None).await.unwrap().with(StatusCode::CREATED);
    let own = read(&dev.api, &place, &approved.position()).await;
    assert_eq!((&own["status"], &own["approvals"]), (&json!("approved"), &json!(1)));
    let queue = read(&review, "/v1/withdrawals", &approved.position()).await;
    assert_eq!(queue["withdrawals"], json!([]));
    let late = dev.api.post(&format!("{place}/cancel"), "no", None).await.unwrap();
    late.is_problem(StatusCode::CONFLICT, "withdrawal-status");
    let balance = dev.api.balance(user, &approved.position()).await;
    assert_eq!((&balance["available"]["income"], &balance["held"]["income"]), (&json!(3_000), &json!(2_000)));

    let mode = fs::metadata(folder.join("master-key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What is sealed and what names the user is there to be found, so the search would find the rest.
    let sealed = requested.json["recorded"][0]["event"]["requested"]["destination"].as_str().unwrap().to_owned();
    for there in [&sealed, &user.to_string()] {
        assert!(files_with(&folder, there).iter().any(|file| file.contains("primary")), "{there}");
    }
    for text in [ACCOUNT, NAME, "mei.lin", "Hangzhou"] {
        assert_eq!(files_with(&folder, text), [""; 0], "{text}");
    }
    folder.audit().await;
    let ended = dev.interrupt().await.well();
    for text in [ACCOUNT, NAME, &sealed] {
        assert!(!ended.stderr.contains(text) && !ended.stdout.contains(text), "{text} was logged");
    }

    // The key is kept: what was sealed opens after the next start.
    let dev = folder.dev_with_variables("127.0.0.1:0", &NOBODY_PAYS).await;
    let own = read(&dev.api, &place, &approved.position()).await;
    assert_eq!(own["destination"], masked);
    dev.interrupt().await.well();
}
