//! Payment files: one line for each payout, through crashes, other processes and whoever edits them.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;
use skyriff_domain::{WithdrawalId, withdrawal::Money};
use skyriff_vault::Destination;
use skyriff_write_side::payouts::{Doubt, Payout, PayoutProvider, Said, local::LocalProvider};
use tempfile::TempDir;
use uuid::Uuid;

use crate::store::some_user;

fn payout() -> Payout {
    let money = Money { minor: 9_900, currency: "cny".parse().unwrap() };
    Payout { withdrawal: WithdrawalId(Uuid::new_v4()), user: some_user(), money }
}

fn to(account: &str, name: &str) -> Destination {
    serde_json::from_value(json!({ "kind": "alipay", "account": account, "name": name })).unwrap()
}

fn mei() -> Destination {
    to("mei@example.com", "Mei Lin")
}

fn file(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "csv")).collect();
    // A test that runs into midnight has two.
    files.sort();
    files.pop().unwrap()
}

fn append(file: &Path, text: &str) {
    OpenOptions::new().append(true).open(file).unwrap().write_all(text.as_bytes()).unwrap();
}

fn is_paid(said: &Result<Said, Doubt>) -> bool {
    matches!(said, Ok(Said::Paid { .. }))
}

#[tokio::test]
async fn a_payout_has_one_line_also_for_those_that_start_later() {
    let folder = TempDir::new().unwrap();
    let provider = LocalProvider::open(&folder.path().join("payouts")).unwrap();
    let folder = folder.path().join("payouts");
    let one = payout();
    assert_eq!(provider.look_up(&one).await, Ok(None));
    let first = provider.pay(&one, &mei()).await;
    assert!(is_paid(&first), "{first:?}");
    assert_eq!(provider.pay(&one, &mei()).await, first);
    // Somebody else, beside it and after it.
    let other = LocalProvider::open(&folder).unwrap();
    assert_eq!(other.look_up(&one).await, first.clone().map(Some));
    assert_eq!(other.pay(&one, &mei()).await, first);
    let two = payout();
    assert!(is_paid(&other.pay(&two, &mei()).await));
    assert!(is_paid(&provider.pay(&two, &mei()).await));
    let text = fs::read_to_string(file(&folder)).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    let header = "withdrawal,user,amount_minor,currency,written_at,kind,account,name";
    assert_eq!(text.lines().next(), Some(header));
    let line = text.lines().nth(1).unwrap();
    assert!(line.starts_with(&format!("{},{},9900,cny,20", one.withdrawal, one.user)), "{line}");
    assert!(line.ends_with(r#"Z,alipay,"mei@example.com","Mei Lin""#), "{line}");
    for (path, mode) in [(file(&folder), 0o600), (folder.clone(), 0o700), (folder.join("lock"), 0o600)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[tokio::test]
async fn another_amount_or_user_under_a_known_id_is_a_mismatch() {
    let folder = TempDir::new().unwrap();
    let provider = LocalProvider::open(folder.path()).unwrap();
    let one = payout();
    provider.pay(&one, &mei()).await.unwrap();
    let richer = Payout { money: Money { minor: 9_901, ..one.money.clone() }, ..one.clone() };
    for other in [richer, Payout { user: some_user(), ..one.clone() }] {
        assert!(matches!(provider.pay(&other, &mei()).await, Err(Doubt::Mismatch { .. })));
        assert!(matches!(provider.look_up(&other).await, Err(Doubt::Mismatch { .. })));
    }
    assert_eq!(fs::read_to_string(file(folder.path())).unwrap().lines().count(), 2);
}

/// A line counts when it is whole: whoever wrote a part of one has never answered.
#[tokio::test]
async fn a_line_that_a_crash_cut_short_is_written_again() {
    let folder = TempDir::new().unwrap();
    let one = payout();
    LocalProvider::open(folder.path()).unwrap().pay(&one, &mei()).await.unwrap();
    let file = file(folder.path());
    let whole = fs::read_to_string(&file).unwrap();
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        let provider = LocalProvider::open(folder.path()).unwrap();
        assert_eq!(provider.look_up(&one).await, Ok(None), "{length}");
        assert!(is_paid(&provider.pay(&one, &mei()).await));
        let again = fs::read_to_string(&file).unwrap();
        assert_eq!(again.lines().count(), 2, "{length}: {again}");
        assert!(again.lines().nth(1).unwrap().starts_with(&one.withdrawal.to_string()));
    }
    // Beside one that goes on.
    let provider = LocalProvider::open(folder.path()).unwrap();
    let two = payout();
    append(&file, &format!("{},", two.withdrawal));
    assert!(is_paid(&provider.pay(&two, &mei()).await));
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 3);
}

#[tokio::test]
async fn nothing_is_paid_when_somebody_has_edited_a_file() {
    let edits: [fn(&Path); 3] = [
        |file| append(file, "a note of somebody's\n"),
        |file| fs::write(file, "").unwrap(),
        |file| append(file, "\u{0}\n"),
    ];
    for edit in edits {
        let folder = TempDir::new().unwrap();
        let provider = LocalProvider::open(folder.path()).unwrap();
        provider.pay(&payout(), &mei()).await.unwrap();
        edit(&file(folder.path()));
        let next = payout();
        for _ in 0..2 {
            assert!(matches!(provider.look_up(&next).await, Err(Doubt::Unknown { .. })));
            assert!(matches!(provider.pay(&next, &mei()).await, Err(Doubt::Unknown { .. })));
        }
    }
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("payouts-2026-01-01.csv"), "somebody,else's\n").unwrap();
    LocalProvider::open(folder.path()).expect_err("another header");
}

#[tokio::test]
async fn what_a_spreadsheet_would_run_is_text_and_quotes_stay_quotes() {
    let folder = TempDir::new().unwrap();
    let provider = LocalProvider::open(folder.path()).unwrap();
    for (account, name, ends) in [
        ("+8613800138000", "=1+1", r#"alipay,"'+8613800138000","'=1+1""#),
        ("mei@example.com", "Mei, \"M\" Lin", r#"alipay,"mei@example.com","Mei, ""M"" Lin""#),
        ("mei@example.com", "@SUM(A1)", r#"alipay,"mei@example.com","'@SUM(A1)""#),
    ] {
        provider.pay(&payout(), &to(account, name)).await.unwrap();
        let text = fs::read_to_string(file(folder.path())).unwrap();
        assert!(text.ends_with(&format!("{ends}\n")), "{text}");
    }
    LocalProvider::open(folder.path()).expect("its own lines read back");
}
