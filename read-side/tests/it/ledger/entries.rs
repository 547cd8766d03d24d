//! Entries in pages, by everything that they can be asked for by.

use std::cmp::Reverse;

use serde_json::Value;

use super::books::{Books, Dice, Entry, text};

fn told(entry: &Value) -> (String, i64, String, i64) {
    let text = |name: &str| entry[name].as_str().unwrap().to_owned();
    (text("event"), entry["line"].as_i64().unwrap(), text("account"), entry["amount"].as_i64().unwrap())
}

fn expected(entry: &Entry) -> (String, i64, String, i64) {
    (entry.event(), i64::from(entry.line), entry.account.clone(), entry.amount)
}

#[tokio::test]
async fn pages_have_every_entry_once_in_the_order_of_either_time() {
    let books = Books::of(260).await;
    let mut dice = Dice(17);
    let accounts: Vec<_> = books.entries.iter().map(|entry| entry.account.clone()).collect();
    for round in 0..24_u64 {
        let (recorded, oldest) = (round % 2 == 1, (round / 2) % 2 == 1);
        let account = (dice.below(3) > 0).then(|| dice.one(&accounts).clone());
        let of_user = account.as_ref().is_none_or(|account| account.starts_with("user:")) && dice.below(2) == 0;
        let user = of_user.then(|| *dice.one(&books.users));
        let shard = (user.is_none() && dice.below(4) == 0).then(|| dice.below(16));
        let (from, to) = (books.moment(&mut dice), books.moment(&mut dice));
        let mut path = format!("entries?time={}", if recorded { "recorded" } else { "occurred" });
        path += if oldest { "&order=oldest" } else { "" };
        path.extend(account.as_ref().map(|account| format!("&account={account}")));
        path.extend(user.map(|user| format!("&user={user}")));
        path.extend(shard.map(|shard| format!("&shard={shard}")));
        path.extend(from.map(|from| format!("&from={}", text(from))));
        path.extend(to.map(|to| format!("&to={}", text(to))));
        let time = |entry: &Entry| if recorded { entry.recorded_at } else { entry.occurred_at };
        let wanted = |entry: &&Entry| {
            account.as_ref().is_none_or(|account| entry.account == *account)
                && user.is_none_or(|user| entry.user == Some(user))
                && shard.is_none_or(|shard| u64::from(entry.shard) == shard)
                && from.is_none_or(|from| time(entry) >= from)
                && to.is_none_or(|to| time(entry) < to)
        };
        let mut all: Vec<_> = books.entries.iter().filter(wanted).collect();
        all.sort_by_key(|entry| (time(entry), entry.shard, entry.position, entry.line));
        if !oldest {
            all.sort_by_key(|entry| Reverse((time(entry), entry.shard, entry.position, entry.line)));
        }
        let limit = [1, 7, 50, 200][usize::try_from(round / 4 % 4).unwrap()];
        let limit = if all.len() > 40 { limit.max(20) } else { limit };
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = books.found(&format!("{path}&limit={limit}{cursor}")).await;
            let entries = page["entries"].as_array().unwrap();
            seen.extend(entries.iter().map(told));
            let Some(next) = page["next"].as_str() else { break };
            assert_eq!(entries.len(), limit);
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, all.into_iter().map(expected).collect::<Vec<_>>(), "{path}");
    }
}

#[tokio::test]
async fn an_event_tells_all_that_it_has_posted() {
    let books = Books::of(30).await;
    let entry = &books.entries[10];
    let page = books.found(&format!("entries?event={}", entry.event())).await;
    let lines: Vec<_> = page["entries"].as_array().unwrap().iter().map(told).collect();
    let same = |other: &&Entry| other.event() == entry.event();
    assert_eq!(lines, books.entries.iter().filter(same).map(expected).collect::<Vec<_>>());
    assert_eq!(lines.len(), 2);
    assert_eq!(page["entries"][0]["reference"], entry.reference);
    // Whoever asks for something else with it is told that they do not get it.
    let user = books.users[0];
    for other in [
        "account=platform:transit".to_owned(),
        format!("user={user}"),
        "shard=3".to_owned(),
        "time=occurred".to_owned(),
        "from=2026-01-01T00:00:00Z".to_owned(),
        "to=2026-01-01T00:00:00Z".to_owned(),
        "order=newest".to_owned(),
        "limit=1".to_owned(),
        "cursor=x".to_owned(),
    ] {
        let answer = books.get(&format!("entries?event={}&{other}", entry.event())).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{other}");
    }
    assert_eq!(books.found("entries?event=3:99999").await["entries"], Value::Array(Vec::new()));
}
