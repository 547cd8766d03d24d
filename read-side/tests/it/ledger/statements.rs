//! Statements: both balances and everything between, in each form.

use std::collections::BTreeMap;

use serde_json::Value;
use skyriff_edge::Role;
use sqlx::Executor;
use uuid::Uuid;

use super::books::{Books, Dice, Entry, Time, connect, text};

/// Balances by account.
fn balances(told: &Value) -> BTreeMap<String, i64> {
    let balance = |line: &Value| (line["account"].as_str().unwrap().to_owned(), line["amount"].as_i64().unwrap());
    told.as_array().unwrap().iter().map(balance).collect()
}

fn sums<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeMap<String, i64> {
    let mut sums = BTreeMap::new();
    for entry in entries {
        *sums.entry(entry.account.clone()).or_default() += entry.amount;
    }
    sums
}

#[tokio::test]
async fn a_statement_is_what_stood_before_what_came_and_what_stands_after() {
    let books = Books::of(900).await;
    let mut dice = Dice(23);
    let accounts: Vec<_> = books.entries.iter().map(|entry| entry.account.clone()).collect();
    for _ in 0..40 {
        let user = (dice.below(2) == 0).then(|| *dice.one(&books.users));
        let account = (user.is_none() || dice.below(2) == 0).then(|| dice.one(&accounts).clone());
        let account = account.filter(|account| user.is_none() || account.starts_with("user:"));
        let (from, to) = (books.moment(&mut dice), books.moment(&mut dice));
        let known_at = books.moment(&mut dice).filter(|_| dice.below(2) == 0);
        if from.zip(to).is_some_and(|(from, to)| from >= to) || (user.is_none() && account.is_none()) {
            continue;
        }
        let mut path = "statement?".to_owned();
        path.extend(account.as_ref().map(|account| format!("&account={account}")));
        path.extend(user.map(|user| format!("&user={user}")));
        for (name, time) in [("from", from), ("to", to), ("known_at", known_at)] {
            path.extend(time.map(|time| format!("&{name}={}", text(time))));
        }
        let of = |entry: &&Entry| {
            account.as_ref().is_none_or(|account| entry.account == *account)
                && user.is_none_or(|user| entry.user == Some(user))
                && known_at.is_none_or(|known_at| entry.recorded_at <= known_at)
        };
        let before = |end: Option<Time>| move |entry: &&Entry| end.is_none_or(|end| entry.occurred_at < end);
        let opening =
            from.map(|from| sums(books.entries.iter().filter(of).filter(before(Some(from))))).unwrap_or_default();
        let closing = sums(books.entries.iter().filter(of).filter(before(to)));
        let in_period = |entry: &&Entry| before(to)(entry) && from.is_none_or(|from| entry.occurred_at >= from);
        let mut lines: Vec<_> = books.entries.iter().filter(of).filter(in_period).collect();
        lines.sort_by_key(|entry| (entry.occurred_at, entry.shard, entry.position, entry.line));

        let found = books.found(&path).await;
        assert_eq!(
            (balances(&found["opening"]), balances(&found["closing"])),
            (opening.clone(), closing.clone()),
            "{path}"
        );
        let told = found["entries"].as_array().unwrap();
        assert_eq!(told.len(), lines.len(), "{path}");
        let mut running = opening;
        for (told, entry) in told.iter().zip(&lines) {
            let balance = running.entry(entry.account.clone()).or_default();
            *balance += entry.amount;
            assert_eq!((&told["event"], &told["balance"]), (&entry.event().into(), &(*balance).into()), "{path}");
        }
        let csv = books.get(&format!("{path}&format=csv")).await;
        assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
        let rows: Vec<Vec<&str>> = csv.text.trim_end().split("\r\n").map(|line| line.split(',').collect()).collect();
        assert!(rows.iter().all(|row| row.len() == 12), "{}", csv.text);
        let amounts: i64 = rows.iter().filter(|row| row[0] == "entry").map(|row| row[9].parse::<i64>().unwrap()).sum();
        assert_eq!(amounts, lines.iter().map(|entry| entry.amount).sum::<i64>());
        let last: i64 = rows.iter().filter(|row| row[0] == "closing").map(|row| row[10].parse::<i64>().unwrap()).sum();
        assert_eq!(last, closing.values().sum::<i64>());
    }
}

#[tokio::test]
async fn a_statement_of_many_pages_is_whole() {
    let books = Books::of(2_500).await;
    let found = books.found("statement?account=user:available:promo").await;
    let all = books.entries.iter().filter(|entry| entry.account == "user:available:promo");
    assert!(all.clone().count() > 1_000);
    assert_eq!(found["entries"].as_array().unwrap().len(), all.count());
}

#[tokio::test]
async fn the_form_is_what_the_client_takes() {
    let books = Books::of(40).await;
    let asked = |accept: &str, path: &str| {
        books.api.request(Role::Auditor, Uuid::nil(), &format!("/v1/ledger/{path}")).header("accept", accept)
    };
    let path = "statement?account=platform:expiry";
    for (accept, path, expected) in [
        ("*/*", path, "application/json"),
        ("text/csv", path, "text/csv; charset=utf-8"),
        ("text/html,application/xhtml+xml", path, "text/html; charset=utf-8"),
        ("application/json, text/html", path, "application/json"),
        ("text/html", "statement?account=platform:expiry&format=csv", "text/csv; charset=utf-8"),
    ] {
        let answer = books.api.send(asked(accept, path)).await;
        assert_eq!(answer.header("content-type"), Some(expected), "{accept}");
    }
    let mut rows = connect(&books.databases[0]).await;
    rows.execute("UPDATE ledger_entries SET reference = '<script>&'").await.unwrap();
    let page = books.api.send(asked("text/html", "statement?account=platform:issuance:check_in")).await.text;
    assert!(page.contains("&lt;script&gt;&amp;") && !page.contains("<script>"), "{page}");
    assert!(
        page.contains("Opening balance") && page.contains("Closing balance") && page.trim_end().ends_with("</html>")
    );
    assert!(page.contains("@page") && page.contains("table-header-group"));
}

#[tokio::test]
async fn entries_that_do_not_come_to_the_closing_balance_break_the_statement_off() {
    let books = Books::of(60).await;
    for databases in &books.databases {
        let mut rows = connect(databases).await;
        rows.execute("UPDATE ledger_sums SET amount = amount + 1 WHERE account = 'platform:expiry'").await.unwrap();
    }
    let request = books.api.request(Role::Auditor, Uuid::nil(), "/v1/ledger/statement?account=platform:expiry");
    assert!(books.api.is_cut_off(request).await);
    let sound = books.api.request(Role::Auditor, Uuid::nil(), "/v1/ledger/statement?account=user:held:paid");
    assert!(!books.api.is_cut_off(sound).await);
}
