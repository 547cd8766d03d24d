//! A balance by sums is the fold of all entries, whatever the times.

use std::collections::BTreeMap;

use serde_json::json;
use skyriff_domain::{ShardCount, shard_of};
use skyriff_edge::Role;
use skyriff_postgres::databases::OWNER;
use sqlx::{ConnectOptions, Executor};
use uuid::Uuid;

use super::books::{Books, Dice, Time, as_of, connect, noon, text};
use crate::api::Dead;

fn sum<'a>(entries: impl Iterator<Item = &'a super::books::Entry>) -> (i64, i64) {
    entries.fold((0, 0), |(amount, count), entry| (amount + entry.amount, count + 1))
}

#[tokio::test]
async fn a_balance_as_of_any_two_times_is_the_fold_of_the_entries() {
    let books = Books::of(700).await;
    let mut dice = Dice(99);
    let mut seen = 0;
    for _ in 0..400 {
        let (mut at, mut known_at) = (books.moment(&mut dice), books.moment(&mut dice));
        let entry = dice.one(&books.entries).clone();
        let (account, user) = (&entry.account, entry.user.filter(|_| dice.below(2) == 0));
        // At the very moment of an entry that is asked for, by either time.
        match dice.below(4) {
            0 => known_at = Some(entry.recorded_at),
            1 => at = Some(entry.occurred_at),
            _ => {}
        }
        let shard = user.is_none().then(|| dice.below(32)).filter(|shard| *shard < 16);
        let mut path = format!("balance?account={account}{}", as_of(at, known_at));
        path.extend(user.map(|user| format!("&user={user}")));
        path.extend(shard.map(|shard| format!("&shard={shard}")));
        let expected = sum(books.entries.iter().filter(|entry| {
            entry.account == *account
                && entry.is_in(at, known_at)
                && user.is_none_or(|user| entry.user == Some(user))
                && shard.is_none_or(|shard| u64::from(entry.shard) == shard)
        }));
        let found = books.found(&path).await;
        assert_eq!(
            (found["amount"].as_i64(), found["entries"].as_i64()),
            (Some(expected.0), Some(expected.1)),
            "{path}"
        );
        let shards = if user.is_some() || shard.is_some() { 1 } else { 16 };
        assert_eq!(found["positions"].as_array().unwrap().len(), shards);
        seen += i64::from(expected.1 > 0);
    }
    assert!(seen > 100, "{seen}");
}

#[tokio::test]
async fn a_trial_balance_has_every_account_and_is_always_zero() {
    let books = Books::of(300).await;
    let mut dice = Dice(3);
    for _ in 0..40 {
        let (at, known_at) = (books.moment(&mut dice), books.moment(&mut dice));
        let shard = Some(dice.below(48)).filter(|shard| *shard < 16);
        let mut path = format!("trial-balance?{}", as_of(at, known_at));
        path.extend(shard.map(|shard| format!("&shard={shard}")));
        let found = books.found(&path).await;
        let mut expected = BTreeMap::<&str, (i64, i64)>::new();
        for entry in &books.entries {
            if entry.is_in(at, known_at) && shard.is_none_or(|shard| u64::from(entry.shard) == shard) {
                let (amount, count) = expected.entry(&entry.account).or_default();
                *amount += entry.amount;
                *count += 1;
            }
        }
        let accounts = found["accounts"].as_array().unwrap().iter();
        let accounts = accounts.map(|line| {
            (line["account"].as_str().unwrap(), (line["amount"].as_i64().unwrap(), line["entries"].as_i64().unwrap()))
        });
        assert_eq!(accounts.collect::<BTreeMap<_, _>>(), expected, "{path}");
        assert_eq!((&found["balanced"], &found["accounts_left_out"]), (&true.into(), &0.into()));
        assert!(found["sums"].as_array().unwrap().iter().all(|sum| sum["sum"] == 0), "{found}");
        assert_eq!(found["shards"].as_array().unwrap().len(), if shard.is_some() { 1 } else { 16 });
    }
    let units: Vec<_> = books.found("trial-balance").await["sums"].as_array().unwrap().clone();
    assert_eq!((units[0]["unit"].as_str(), units[1]["unit"].as_str()), (Some("millionths of usd"), Some("points")));
}

#[tokio::test]
async fn books_that_are_damaged_say_so() {
    let books = Books::of(60).await;
    let mut rows = connect(&books.databases[0]).await;
    rows.execute("UPDATE ledger_sums SET amount = amount + 1 WHERE ctid = (SELECT min(ctid) FROM ledger_sums WHERE grain = 'mm')")
        .await
        .unwrap();
    let found = books.found("trial-balance").await;
    assert_eq!(found["balanced"], false);
    let wrong = found["shards"].as_array().unwrap().iter().flat_map(|shard| shard["sums"].as_array().unwrap());
    assert_eq!(wrong.filter(|sum| sum["sum"] != 0).count(), 1, "{found}");
}

#[tokio::test]
async fn only_auditors_read_the_books_and_only_those_that_have_sums() {
    let books = Books::of(20).await;
    let paths = [
        "accounts",
        "balance?account=platform:transit",
        "entries",
        "trial-balance",
        "holds",
        "statement?account=platform:transit",
    ];
    for role in [Role::User, Role::Service, Role::Operator, Role::Reviewer, Role::Analyst, Role::Worker, Role::Auditor]
    {
        for path in paths {
            let path = format!("/v1/ledger/{path}");
            let answer = books.api.send(books.api.request(role, Uuid::nil(), &path)).await;
            let expected = if role == Role::Auditor { (200, "") } else { (403, "forbidden") };
            assert_eq!(answer.kind(), expected, "{path}");
        }
    }
    let mut rows = connect(&books.databases[0]).await;
    rows.execute("UPDATE checkpoints SET version = 1").await.unwrap();
    for path in &paths[1..] {
        assert_eq!(books.get(path).await.kind(), (503, "reads-unavailable"), "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let books = Books::of(20).await;
    let user = books.users[0];
    let other = (0..16).find(|shard| *shard != shard_of(user, ShardCount::default()).0).unwrap();
    for path in [
        "balance".to_owned(),
        "balance?account=platform:nothing".to_owned(),
        "balance?account=%00".to_owned(),
        format!("balance?account=platform:transit&user={user}"),
        format!("balance?account=user:available:promo&user={user}&shard={other}"),
        "balance?account=platform:transit&shard=16".to_owned(),
        "balance?account=platform:transit&at=+262142-01-01T00:00:00Z".to_owned(),
        "balance?account=platform:transit&at=-0044-03-15T00:00:00Z".to_owned(),
        "balance?account=platform:transit&at=yesterday".to_owned(),
        "balance?account=platform:transit&x=1".to_owned(),
        "trial-balance?shard=-1".to_owned(),
        "entries?event=3".to_owned(),
        "entries?event=16:1".to_owned(),
        "entries?event=3:1&account=platform:transit".to_owned(),
        "entries?limit=201".to_owned(),
        "entries?cursor=x".to_owned(),
        "entries?time=sometime".to_owned(),
        "holds?limit=0".to_owned(),
        "statement".to_owned(),
        "statement?account=platform:transit&from=2026-01-02T00:00:00Z&to=2026-01-02T00:00:00Z".to_owned(),
        "statement?account=platform:transit&format=pdf".to_owned(),
    ] {
        assert_eq!(books.get(&path).await.kind(), (400, "malformed-request"), "{path}");
    }
}

#[tokio::test]
async fn an_answer_is_as_fresh_as_it_is_asked_to_be_and_says_how_fresh_it_is() {
    let books = Books::of(20).await;
    let request = || books.api.request(Role::Auditor, Uuid::nil(), "/v1/ledger/trial-balance");
    let fresh = books.api.send(request().header("skyriff-at-least", "3:1000000,4:999999")).await;
    assert_eq!(fresh.kind(), (200, ""));
    assert!(fresh.header("skyriff-position").unwrap().contains("3:1000000"));
    assert_eq!(fresh.body["positions"].as_array().unwrap().len(), 16);
    let moment: Time = "2026-03-04T05:06:07.000008Z".parse().unwrap();
    let told = books.found(&format!("balance?account=platform:expiry&at={}", text(moment))).await;
    assert_eq!(told["at"], text(moment));
}

#[tokio::test]
async fn an_answer_says_whether_the_books_had_heard_of_everything_by_then() {
    let books = Books::of(20).await;
    // The books of shard 2 stand still: the log has one event more, and then one a day later.
    let mut rows = connect(&books.databases[0]).await;
    rows.execute("UPDATE checkpoints SET position = 1000 WHERE shard = 2").await.unwrap();
    let mut log = books.databases[0].event_store(OWNER).connect().await.unwrap();
    for (position, recorded_at) in [(1_001_i64, noon()), (1_002, noon() + chrono::TimeDelta::days(1))] {
        sqlx::query("INSERT INTO events VALUES (2, $1, 'like', 'x', $1, 'liked', '1', '{}', '{}', $2, $2)")
            .bind(position)
            .bind(recorded_at)
            .execute(&mut log)
            .await
            .unwrap();
    }
    let now = chrono::Utc::now();
    let minute = chrono::TimeDelta::minutes(1);
    let all: Vec<u16> = (0..16).collect();
    let table = [
        (String::new(), vec![2]),
        (format!("&known_at={}", text(noon() - minute)), vec![]),
        (format!("&known_at={}", text(noon())), vec![2]),
        (format!("&known_at={}", text(noon() + minute)), vec![2]),
        (format!("&at={}", text(noon() - minute)), vec![2]),
        ("&shard=4".to_owned(), vec![]),
        ("&shard=2".to_owned(), vec![2]),
        // What is recorded until then is still to come.
        (format!("&known_at={}", text(now + minute)), all.clone()),
        (format!("&known_at={}", text(now)), all.clone()),
        (format!("&shard=4&known_at={}", text(now + minute)), vec![4]),
    ];
    for (path, incomplete) in table {
        for what in ["balance?account=platform:expiry", "trial-balance?", "holds?", "statement?account=platform:expiry"]
        {
            // A statement is of a period.
            if what.starts_with("statement") && path.contains("&at=") {
                continue;
            }
            let answer = books.get(&format!("{what}{path}")).await;
            assert_eq!(
                (&answer.body["complete"], &answer.body["incomplete"]),
                (&json!(incomplete.is_empty()), &json!(incomplete)),
                "{what}{path} {}",
                answer.text
            );
        }
    }
    for (path, complete) in [("", "false"), ("&shard=4", "true")] {
        for format in ["json", "csv", "html"] {
            let answer = books.get(&format!("statement?account=platform:expiry&format={format}{path}")).await;
            assert_eq!(answer.header("skyriff-complete"), Some(complete), "{format}{path}");
            let says = answer.text.contains("may lack something of the shards 2<");
            assert_eq!(says, format == "html" && complete == "false", "{}", answer.text);
        }
    }
    // When the log moves on after it, and the books have, all of it is there.
    rows.execute("UPDATE checkpoints SET position = 1001 WHERE shard = 2").await.unwrap();
    let later = books.found(&format!("trial-balance?known_at={}", text(noon() + minute))).await;
    assert_eq!(later["complete"], true);
    // The books are there without the log, and say that nobody knows.
    let dead = Dead::new();
    let alone = books.beside(&dead.pool());
    let answer = alone.send(alone.request(Role::Auditor, Uuid::nil(), "/v1/ledger/trial-balance?shard=4")).await;
    assert_eq!((answer.kind(), &answer.body["incomplete"]), ((200, ""), &json!([4])));
}

#[tokio::test]
async fn books_that_have_nothing_of_a_shard_do_not_answer_for_it() {
    let books = Books::of(20).await;
    let mut rows = connect(&books.databases[0]).await;
    rows.execute("DELETE FROM checkpoints WHERE shard = 4").await.unwrap();
    for path in
        ["balance?account=platform:expiry", "entries?", "trial-balance?", "holds?", "statement?account=platform:expiry"]
    {
        let answer = books.get(path).await;
        assert_eq!(answer.kind(), (503, "reads-unavailable"), "{path}");
        assert_eq!(answer.body["detail"], "the books have nothing of 1 of the shards yet, 4 among them");
        assert_eq!(books.get(&format!("{path}&shard=4")).await.kind(), (503, "reads-unavailable"), "{path}");
        assert_eq!(books.get(&format!("{path}&shard=6")).await.kind(), (200, ""), "{path}");
    }
}
