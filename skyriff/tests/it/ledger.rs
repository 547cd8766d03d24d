//! The books of a real trace, beside an account of it that shares no code with the product.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, TimeDelta, TimeZone, Utc};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Api, Books, Folder, Move, eventually};

fn new_year(year: i32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(year, 1, 1, 0, 0, 0).unwrap()
}

fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

async fn asked(auditor: &Api, path: &str) -> Value {
    auditor.get(&format!("/v1/ledger/{path}")).await.with(StatusCode::OK).json
}

/// Points by account; none where nothing ever was.
fn sums<'a>(moves: impl Iterator<Item = &'a Move>) -> BTreeMap<String, i64> {
    let mut sums = BTreeMap::new();
    for (_, account, points) in moves {
        *sums.entry((*account).to_owned()).or_default() += points;
    }
    sums
}

fn told(balances: &Value) -> BTreeMap<String, i64> {
    let line = |line: &Value| (line["account"].as_str().unwrap().to_owned(), line["amount"].as_i64().unwrap());
    balances.as_array().unwrap().iter().map(line).collect()
}

/// Zero at the end of every year, and statements of users that are what the lines of the file come to.
pub async fn is_what_the_trace_says(books: &Books, auditor: &Api) {
    let mut users: Vec<_> = books.users.iter().collect();
    users.sort_by_key(|user| std::cmp::Reverse(books.moves(user).len()));
    let all = || users.iter().flat_map(|user| books.moves(user));
    let (first, last) = (all().min().unwrap().0.year(), all().max().unwrap().0.year());
    assert!(last - first >= 5, "{first} to {last}");
    for year in first..=last {
        let end = new_year(year + 1) - TimeDelta::microseconds(1);
        let found = asked(auditor, &format!("trial-balance?at={}", text(end))).await;
        assert_eq!(found["balanced"], true, "{found:#}");
        assert_eq!((&found["sums"][0]["unit"], &found["sums"][0]["sum"]), (&json!("points"), &json!(0)), "{found:#}");
        assert!(
            found["shards"].as_array().unwrap().iter().all(|shard| shard["sums"]
                .as_array()
                .unwrap()
                .iter()
                .all(|sum| sum["sum"] == 0))
        );
        let accounts = told(&found["accounts"]);
        let of_users: BTreeMap<_, _> = accounts.iter().filter(|(account, _)| account.starts_with("user:")).collect();
        let expected = sums(all().filter(|(at, ..)| *at <= end));
        assert_eq!(of_users, expected.iter().collect(), "{year}");
        assert_eq!(accounts.get("platform:transit").copied().unwrap_or_default(), 0, "{year}");
        // Nothing of it was known before it was played.
        let before =
            asked(auditor, &format!("trial-balance?at={}&known_at={}", text(end), text(new_year(first)))).await;
        assert_eq!(before["accounts"], json!([]), "{year}");
    }
    // The ones who did most, and some who did little.
    for user in users.iter().take(3).chain(users.iter().skip(40).step_by(200)) {
        for year in [first, first + 1, (first + last) / 2, last] {
            let (from, to) = (new_year(year), new_year(year + 1));
            let moves = || books.moves(user).iter();
            let path = format!("statement?user={user}&from={}&to={}", text(from), text(to));
            let found = asked(auditor, &path).await;
            assert_eq!(told(&found["opening"]), sums(moves().filter(|(at, ..)| *at < from)), "{path}");
            assert_eq!(told(&found["closing"]), sums(moves().filter(|(at, ..)| *at < to)), "{path}");
            let mut lines: Vec<_> = moves()
                .filter(|(at, ..)| (from..to).contains(at))
                .map(|(at, account, points)| (*at, (*account).to_owned(), *points))
                .collect();
            let entries = found["entries"].as_array().unwrap().iter();
            let mut entries: Vec<(DateTime<Utc>, String, i64)> = entries
                .map(|entry| {
                    let text = |name: &str| entry[name].as_str().unwrap();
                    (
                        text("occurred_at").parse().unwrap(),
                        text("account").to_owned(),
                        entry["amount"].as_i64().unwrap(),
                    )
                })
                .collect();
            lines.sort();
            entries.sort();
            assert_eq!(entries, lines, "{path}");
        }
    }
}

#[tokio::test]
async fn auditors_find_what_was_done_and_for_what() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let user = Uuid::from_u128(77);
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let auditor = dev.api.as_caller(&folder.token("auditor", Uuid::from_u128(2)).await);
    service.earn(user, "earn", 100).await.unwrap().with(StatusCode::CREATED);
    let (spend, hold) = (Uuid::from_u128(5), Uuid::from_u128(6));
    let spent = json!({ "spend": spend, "points": 30, "product": "poster" });
    service.post(&format!("/v1/users/{user}/spends"), "spend", Some(spent)).await.unwrap().with(StatusCode::CREATED);
    let refund = format!("/v1/users/{user}/spends/{spend}/refund");
    service.post(&refund, "refund", Some(json!({ "points": 10 }))).await.unwrap().with(StatusCode::CREATED);
    let held = json!({ "hold": hold, "points": 40, "reason": "render" });
    service.post(&format!("/v1/users/{user}/holds"), "hold", Some(held)).await.unwrap().with(StatusCode::CREATED);
    let capture = format!("/v1/users/{user}/holds/{hold}/capture");
    let captured =
        service.post(&capture, "capture", Some(json!({ "points": 15 }))).await.unwrap().with(StatusCode::CREATED);
    let at_least = captured.position();

    let fresh = eventually("books that are fresh", async || {
        let headers = [("Skyriff-At-Least", at_least.as_str())];
        let answer = auditor.send(reqwest::Method::GET, "/v1/ledger/trial-balance", &headers, None).await.unwrap();
        (answer.status == StatusCode::OK).then_some(answer.json)
    })
    .await;
    assert_eq!(fresh["balanced"], true);
    let accounts = told(&fresh["accounts"]);
    let expected = [
        ("platform:issuance:earning", -100),
        ("platform:revenue:poster", 20),
        ("platform:revenue:render", 15),
        ("user:available:income", 40),
        ("user:held:income", 25),
    ];
    assert_eq!(accounts, expected.map(|(account, points)| (account.to_owned(), points)).into());
    let holds = asked(&auditor, "holds").await;
    let of_it = &holds["holds"][0];
    assert_eq!((&of_it["user"], &of_it["hold"], &of_it["remaining"]), (&json!(user), &json!(hold), &json!(25)));
    assert_eq!(of_it["reason"], "render");
    let page = asked(&auditor, &format!("entries?event={at_least}")).await;
    let lines = page["entries"].as_array().unwrap().iter().map(|line| line["account"].as_str().unwrap());
    assert_eq!(lines.collect::<Vec<_>>(), ["user:held:income", "platform:revenue:render"]);
    let chart = asked(&auditor, "accounts").await;
    assert!(chart["accounts"].as_array().unwrap().iter().any(|line| line["account"] == "platform:revenue:PRODUCT"));
    service.get("/v1/ledger/accounts").await.is_problem(StatusCode::FORBIDDEN, "forbidden");
    assert_eq!(folder.audit().await["problems_total"], 0);
    dev.interrupt().await.well();
}
