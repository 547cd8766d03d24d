//! Pages of a user's ledger.

use chrono::{TimeDelta, TimeZone, Utc};
use skyriff_postgres::testing::TestDatabases;

use crate::{
    api::Api,
    rows::{connect, entry, place, some_user, write},
};

#[tokio::test]
async fn pages_show_every_entry_once_newest_first_also_at_equal_times() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let (user, other) = (some_user(), some_user());
    write(&mut rows, user, 40, 0).await;
    let start = Utc.with_ymd_and_hms(2026, 1, 30, 0, 0, 0).unwrap();
    let mut expected = Vec::new();
    for position in 1..=40_i64 {
        // Several at one time, some out of order, over the end of a month.
        let at = start + TimeDelta::hours(12 * (position * 7 % 11));
        for line in 1..=2 {
            entry(&mut rows, user, position, line, at).await;
            expected.push((at, position, line));
        }
        entry(&mut rows, other, 1_000 + position, 1, at).await;
    }
    expected.sort_unstable();
    expected.reverse();
    let expected: Vec<_> =
        expected.into_iter().map(|(_, position, line)| (place(user, position).to_string(), i64::from(line))).collect();
    let api = Api::on_primary(&databases);
    for limit in [1, 7, 16, 79, 80, 81, 200] {
        let (mut seen, mut pages, mut cursor) = (Vec::new(), 0, String::new());
        loop {
            let page = api.own(user, &format!("ledger-entries?limit={limit}{cursor}")).await;
            assert_eq!(page.kind(), (200, ""));
            let entries = page.body["entries"].as_array().unwrap();
            let read = |entry: &serde_json::Value| {
                let position = entry["position"].as_str().unwrap().to_owned();
                (position, entry["line"].as_i64().unwrap())
            };
            seen.extend(entries.iter().map(read));
            pages += 1;
            match page.body["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
            assert_eq!(entries.len(), limit);
        }
        assert_eq!(seen, expected, "limit {limit}");
        assert_eq!(pages, 80_usize.div_ceil(limit), "limit {limit}");
    }
    let default = api.own(user, "ledger-entries").await;
    assert_eq!(default.body["entries"].as_array().unwrap().len(), 50);
}

#[tokio::test]
async fn what_arrives_between_two_pages_does_not_shift_them() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let user = some_user();
    write(&mut rows, user, 6, 0).await;
    let at = Utc.with_ymd_and_hms(2026, 1, 15, 0, 0, 0).unwrap();
    for position in 1..=6 {
        entry(&mut rows, user, position, 1, at).await;
    }
    let api = Api::on_primary(&databases);
    let first = api.own(user, "ledger-entries?limit=3").await;
    entry(&mut rows, user, 7, 1, at).await;
    entry(&mut rows, user, 8, 1, at + TimeDelta::days(40)).await;
    let next = first.body["next"].as_str().unwrap();
    let second = api.own(user, &format!("ledger-entries?limit=3&cursor={next}")).await;
    let positions: Vec<_> = [first, second]
        .iter()
        .flat_map(|page| page.body["entries"].as_array().unwrap())
        .map(|entry| entry["amount"].as_i64().unwrap())
        .collect();
    assert_eq!(positions, [6, 5, 4, 3, 2, 1]);
}

#[tokio::test]
async fn a_page_that_cannot_be_is_refused() {
    let databases = TestDatabases::create().await;
    let api = Api::on_primary(&databases);
    for query in ["limit=0", "limit=201", "limit=-1", "limit=x", "cursor=x", "cursor=", "page=2", "limit=1&limit=2"] {
        let answer = api.own(some_user(), &format!("ledger-entries?{query}")).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{query}");
    }
}
