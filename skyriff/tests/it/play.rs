//! A real trace through the API, against books kept in plain code.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use crate::support::{Api, Books, Ended, Folder, Process, TRACE, skyriff};

/// The trace on a machine that is busy with everything else.
pub const PLAY_MAX: Duration = Duration::from_secs(600);

/// `skyriff play` on its way.
pub fn play(folder: &Folder, url: &str) -> Process {
    Process::spawn(skyriff(&["play", TRACE, "--url", url, "--folder", &folder.as_str()]))
}

/// As `play`, with many actions in a request.
fn play_bulk(folder: &Folder, url: &str) -> Process {
    Process::spawn(skyriff(&["play", TRACE, "--bulk", "--url", url, "--folder", &folder.as_str()]))
}

/// The counts of its summary, by what they count.
pub fn summary(played: &Ended) -> BTreeMap<String, u64> {
    let lines = played.stdout.lines().filter_map(|line| line.trim().split_once("  "));
    lines.filter_map(|(count, what)| Some((what.to_owned(), count.parse().ok()?))).collect()
}

#[tokio::test]
async fn a_real_trace_is_recorded_once_and_every_balance_is_what_the_rules_say() {
    let books = Books::of_trace();
    let folder = Folder::new();
    let dev = folder.dev().await;

    let played = play(&folder, &dev.api.url).end_within(PLAY_MAX).await.well();
    let counts = summary(&played);
    let mut expected = BTreeMap::from([
        ("lines read", 25_592),
        ("sent", 24_268 + books.works()),
        ("recorded: check_in", 7_616),
        ("recorded: recharge", 2_414),
        ("recorded: like", 13_348),
        ("recorded: publish", books.works()),
        ("recorded: unlike", 610),
        ("accepted with nothing to record", 0),
        ("replayed: recorded by an earlier request", 0),
        ("unexpected", 0),
        ("retries", 0),
        ("recorded: tip", books.tips),
        ("refused: insufficient-points", books.tips_refused),
        ("left out: video_job (--videos noop orders them, with `skyriff worker --providers noop` running)", 1_324),
    ]);
    let as_expected =
        |expected: &BTreeMap<&str, u64>| expected.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect();
    assert_eq!(counts, as_expected(&expected), "{}", played.stdout);
    assert_eq!((books.check_ins, books.recharges), (7_616, 2_414));
    assert_eq!(books.tips + books.tips_refused, 280);

    let audit = folder.audit().await;
    books.agree_with(&audit);
    let told = folder.run(&["audit", "verify"]).await.well().stdout;
    assert!(told.contains("7616  points_account.checked_in") && told.contains("everything agrees"), "{told}");

    let heads = audit["heads"].as_object().unwrap().iter().map(|(shard, head)| format!("{shard}:{head}"));
    let heads = heads.collect::<Vec<_>>().join(",");
    let auditor = dev.api.as_caller(&folder.token("auditor", Uuid::from_u128(1)).await);
    // Everybody who did something, and six who only received.
    assert_eq!(books.users.len(), 877 + 6);
    let wrong: Vec<_> = stream::iter(&books.users)
        .map(async |user| {
            let balance = auditor.balance(user.parse().unwrap(), &heads).await;
            let number = |value: &Value| value.as_i64().unwrap();
            let available = &balance["available"];
            // The answer leaves out what has ended by now although no command of the user's has expired it yet.
            let promo = number(&available["promo"]) + number(&balance["lapsed"]);
            let found = (promo, number(&available["paid"]), number(&available["income"]));
            let nothing_else = balance["held"]["total"] == 0;
            (found != books.balance(user) || !nothing_else).then(|| (books.balance(user), balance))
        })
        .buffer_unordered(16)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{} balances, such as {:?}", wrong.len(), wrong.first());

    likes_are(&books, &auditor, &heads).await;

    let again = play(&folder, &dev.api.url).end_within(PLAY_MAX).await.well();
    expected.remove("recorded: check_in");
    expected.remove("recorded: recharge");
    expected.remove("recorded: like");
    expected.remove("recorded: publish");
    expected.remove("recorded: unlike");
    expected.remove("recorded: tip");
    expected.insert("replayed: recorded by an earlier request", 23_988 + books.tips + books.works());
    assert_eq!(summary(&again), as_expected(&expected), "{}", again.stdout);
    assert_eq!(folder.audit().await, audit);

    // The largest account, page by page: its entries sum to its balance.
    let busiest = books.users.iter().max_by_key(|user| books.balance(user)).unwrap();
    let (mut promo, mut paid, mut income, mut held, mut pages, mut next) = (0, 0, 0, 0, 0, String::new());
    loop {
        let page =
            auditor.get(&format!("/v1/users/{busiest}/ledger-entries?limit=200{next}")).await.with(StatusCode::OK);
        for entry in page.json["entries"].as_array().unwrap() {
            match entry["account"].as_str().unwrap() {
                "user:available:promo" => promo += entry["amount"].as_i64().unwrap(),
                "user:available:paid" => paid += entry["amount"].as_i64().unwrap(),
                "user:available:income" => income += entry["amount"].as_i64().unwrap(),
                "user:held:paid" | "user:held:income" => held += entry["amount"].as_i64().unwrap(),
                other => panic!("{other}"),
            }
        }
        pages += 1;
        let Some(cursor) = page.json["next"].as_str() else { break };
        next = format!("&cursor={cursor}");
    }
    assert!(pages > 1);
    assert_eq!(((promo, paid, income), held), (books.balance(busiest), 0));
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_real_trace_comes_to_the_same_in_bulk() {
    let books = Books::of_trace();
    let folder = Folder::new();
    let dev = folder.dev().await;
    let counts = summary(&play_bulk(&folder, &dev.api.url).end_within(PLAY_MAX).await.well());
    assert_eq!(
        (counts["sent"], counts["recorded: like"], counts["recorded: unlike"]),
        (24_268 + books.works(), 13_348, 610)
    );
    assert_eq!(counts.get("recorded: tip").copied().unwrap_or_default(), books.tips);
    assert_eq!((counts["unexpected"], counts["accepted with nothing to record"]), (0, 0));
    books.agree_with(&folder.audit().await);
    let auditor = dev.api.as_caller(&folder.token("auditor", Uuid::from_u128(1)).await);
    crate::ledger::is_what_the_trace_says(&books, &auditor).await;
    crate::proofs::events_are_proven(&folder, &dev.api).await;
    dev.interrupt().await.well();
}

/// Every work has the likes, and every user likes the works, that the trace says.
async fn likes_are(books: &Books, auditor: &Api, heads: &str) {
    let works = books.likes_of_works();
    let standing = works.values().filter(|likes| **likes > 0);
    assert_eq!((standing.clone().sum::<i64>(), standing.count()), (12_738, 3_122));
    let at_least = [("Skyriff-At-Least", heads)];
    let wrong: Vec<_> = stream::iter(&works)
        .map(async |(work, likes)| {
            let path = format!("/v1/works/{work}/likes");
            let answer = auditor.send(Method::GET, &path, &at_least, None).await.unwrap().with(StatusCode::OK);
            (answer.json["likes"] != *likes).then_some((answer.json, likes))
        })
        .buffer_unordered(16)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{} counts, such as {:?}", wrong.len(), wrong.first());
    let wrong: Vec<_> = stream::iter(&books.users)
        .map(async |user| {
            let (mut liked, mut next) = (Vec::new(), String::new());
            loop {
                let path = format!("/v1/users/{user}/liked-works?limit=200{next}");
                let page = auditor.send(Method::GET, &path, &at_least, None).await.unwrap().with(StatusCode::OK);
                let works = page.json["works"].as_array().unwrap();
                liked.extend(works.iter().map(|liked| liked["work"].as_str().unwrap().to_owned()));
                let Some(cursor) = page.json["next"].as_str() else { break };
                next = format!("&cursor={cursor}");
            }
            // A page of the same, asked for by name.
            let some = liked.iter().take(100).map(String::as_str).collect::<Vec<_>>();
            if !some.is_empty() {
                let path = format!("/v1/users/{user}/likes?works={}", some.join(","));
                let answer = auditor.get(&path).await.with(StatusCode::OK);
                let likes = answer.json["likes"].as_array().unwrap();
                assert!(likes.len() == some.len() && likes.iter().all(|like| like["liked"] == true), "{likes:?}");
            }
            (liked != books.liked_works(user)).then_some((user, liked))
        })
        .buffer_unordered(16)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    assert!(wrong.is_empty(), "what {} users like, such as {:?}", wrong.len(), wrong.first());
    let hot = auditor.get("/v1/works/hot").await.with(StatusCode::OK);
    assert!(hot.json["works"].as_array().unwrap().len() <= 100 && hot.json["stale"] == false, "{}", hot.json);
}
