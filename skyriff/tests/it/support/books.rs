//! The recorded activity, and what must come of it: folded here in plain code from the rules in words, so that it
//! agrees with the binary only when both are right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
};

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use flate2::read::GzDecoder;
use serde_json::{Value, json};

/// Real activity; `README.md` beside it says whose.
pub const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/activity.ndjson.gz");

/// What must come of the trace.
#[derive(Default)]
pub struct Books {
    accounts: BTreeMap<String, Account>,
    pub users: BTreeSet<String>,
    pub check_ins: u64,
    pub recharges: u64,
    pub unsupported: BTreeMap<String, u64>,
    /// Commands before which promo points had to expire.
    expirations: u64,
    expired: i64,
    given: i64,
}

#[derive(Default)]
struct Account {
    /// Promo points by the moment at which they end.
    lots: BTreeMap<DateTime<Utc>, i64>,
    paid: i64,
    last_day: Option<NaiveDate>,
    days_in_a_row: u32,
}

impl Books {
    pub fn of_trace() -> Self {
        let mut books = Self::default();
        for line in BufReader::new(GzDecoder::new(File::open(TRACE).unwrap())).lines() {
            books.enter(&serde_json::from_str(&line.unwrap()).unwrap());
        }
        books
    }

    fn enter(&mut self, action: &Value) {
        let text = |name: &str| action[name].as_str().unwrap().to_owned();
        for name in ["user", "creator", "to"] {
            self.users.extend(action[name].as_str().map(str::to_owned));
        }
        let kind = text("do");
        if kind != "check_in" && kind != "recharge" {
            *self.unsupported.entry(kind).or_default() += 1;
            return;
        }
        let at: DateTime<Utc> = text("at").parse().unwrap();
        let account = self.accounts.entry(text("user")).or_default();
        // What has ended by now goes first.
        let lots = std::mem::take(&mut account.lots);
        let (ended, good): (BTreeMap<_, _>, _) = lots.into_iter().partition(|(end, _)| *end <= at);
        account.lots = good;
        self.expirations += u64::from(!ended.is_empty());
        self.expired += ended.values().sum::<i64>();
        if kind == "recharge" {
            self.recharges += 1;
            account.paid += action["points"].as_i64().unwrap();
            return;
        }
        self.check_ins += 1;
        let day = at.date_naive();
        let is_next = account.last_day.is_some_and(|last| last + Days::new(1) == day);
        account.days_in_a_row = if is_next { account.days_in_a_row + 1 } else { 1 };
        account.last_day = Some(day);
        // 10, and 30 more on every seventh day in a row; good through the 365th day after.
        let points = if account.days_in_a_row.is_multiple_of(7) { 40 } else { 10 };
        self.given += points;
        let end = (day + Days::new(366)).and_time(NaiveTime::MIN).and_utc();
        *account.lots.entry(end).or_default() += points;
    }

    /// Promo points that no command of theirs has expired, and paid ones.
    pub fn balance(&self, user: &str) -> (i64, i64) {
        self.accounts.get(user).map_or((0, 0), |account| (account.lots.values().sum(), account.paid))
    }

    /// What an audit must find after the trace was played once, however often it was interrupted or repeated.
    #[track_caller]
    pub fn agree_with(&self, audit: &Value) {
        assert_eq!((&audit["problems_total"], &audit["ledger_sum"]), (&json!(0), &json!(0)), "{audit:#}");
        let by_type = json!({
            "points_account.checked_in": self.check_ins,
            "points_account.recharged": self.recharges,
            "points_account.expired": self.expirations,
            "recharge_order.credited": self.recharges,
        });
        assert_eq!(audit["by_type"], by_type);
        let events = self.check_ins + 2 * self.recharges + self.expirations;
        assert_eq!(audit["events"], events);
        let heads = audit["heads"].as_object().unwrap();
        assert_eq!(heads.len(), 16);
        assert_eq!(heads.values().map(|head| head.as_u64().unwrap()).sum::<u64>(), events);
        let streams = u64::try_from(self.accounts.len()).unwrap() + self.recharges;
        assert_eq!(audit["streams"], streams);
        let (promo, paid) =
            self.accounts.keys().map(|user| self.balance(user)).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        assert_eq!(promo, self.given - self.expired);
        assert_eq!(audit["ledger"]["user:available:promo"], promo);
        assert_eq!(audit["ledger"]["user:available:paid"], paid);
    }
}
