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
    pub liked: u64,
    pub unliked: u64,
    /// By user and work: how many likes more than taken back; nobody likes twice in a row, so it is 0 or 1.
    likes: BTreeMap<(String, String), i64>,
    /// By user, from the last line of the trace to the first: what the user's like lines name.
    named: BTreeMap<String, Vec<String>>,
    /// Tips that were given, and those for which the points were missing.
    pub tips: u64,
    pub tips_refused: u64,
    tip_share: i64,
    pub unsupported: BTreeMap<String, u64>,
    /// Commands before which promo points had to expire.
    expirations: u64,
    expired: i64,
    given: i64,
    /// By user: what moved on which account, and when.
    moves: BTreeMap<String, Vec<Move>>,
}

/// When, on which account, how many points.
pub type Move = (DateTime<Utc>, &'static str, i64);

#[derive(Default)]
struct Account {
    /// Promo points by the moment at which they end.
    lots: BTreeMap<DateTime<Utc>, i64>,
    paid: i64,
    income: i64,
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
        if kind == "like" || kind == "unlike" {
            let (user, work) = (text("user"), text("work"));
            let liked = kind == "like";
            *(if liked { &mut self.liked } else { &mut self.unliked }) += 1;
            if liked {
                self.named.entry(user.clone()).or_default().insert(0, work.clone());
            }
            *self.likes.entry((user, work)).or_default() += if liked { 1 } else { -1 };
            return;
        }
        if !["check_in", "recharge", "tip"].contains(&kind.as_str()) {
            *self.unsupported.entry(kind).or_default() += 1;
            return;
        }
        let at: DateTime<Utc> = text("at").parse().unwrap();
        if kind == "tip" {
            self.tip(&text("user"), &text("to"), action["points"].as_i64().unwrap(), at);
            return;
        }
        self.expire(&text("user"), at);
        let account = self.accounts.entry(text("user")).or_default();
        if kind == "recharge" {
            self.recharges += 1;
            let points = action["points"].as_i64().unwrap();
            account.paid += points;
            self.book(&text("user"), at, "user:available:paid", points);
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
        self.book(&text("user"), at, "user:available:promo", points);
    }

    fn book(&mut self, user: &str, at: DateTime<Utc>, account: &'static str, points: i64) {
        if points != 0 {
            self.moves.entry(user.to_owned()).or_default().push((at, account, points));
        }
    }

    /// What moved on a user's accounts.
    pub fn moves(&self, user: &str) -> &[Move] {
        self.moves.get(user).map_or(&[], Vec::as_slice)
    }

    /// What has ended by now goes first, whatever a command is about.
    fn expire(&mut self, user: &str, at: DateTime<Utc>) {
        let account = self.accounts.entry(user.to_owned()).or_default();
        let lots = std::mem::take(&mut account.lots);
        let (ended, good): (BTreeMap<_, _>, _) = lots.into_iter().partition(|(end, _)| *end <= at);
        account.lots = good;
        self.expirations += u64::from(!ended.is_empty());
        let points = ended.values().sum::<i64>();
        self.expired += points;
        self.book(user, at, "user:available:promo", -points);
    }

    /// Bought points go first, then income; three tenths of it, in whole points, are the platform's.
    fn tip(&mut self, from: &str, to: &str, points: i64, at: DateTime<Utc>) {
        let has = self.accounts.get(from).map_or(0, |account| account.paid + account.income);
        if has < points {
            self.tips_refused += 1;
            return;
        }
        self.tips += 1;
        self.expire(from, at);
        self.expire(to, at);
        let sender = self.accounts.get_mut(from).unwrap();
        let of_paid = points.min(sender.paid);
        sender.paid -= of_paid;
        sender.income -= points - of_paid;
        let share = points * 3 / 10;
        self.accounts.get_mut(to).unwrap().income += points - share;
        self.tip_share += share;
        for (available, held, part) in [
            ("user:available:paid", "user:held:paid", of_paid),
            ("user:available:income", "user:held:income", points - of_paid),
        ] {
            self.book(from, at, available, -part);
            self.book(from, at, held, part);
            self.book(from, at, held, -part);
        }
        self.book(to, at, "user:available:income", points - share);
    }

    /// Promo points that no command of theirs has expired, paid ones, and income.
    pub fn balance(&self, user: &str) -> (i64, i64, i64) {
        let of = |account: &Account| (account.lots.values().sum(), account.paid, account.income);
        self.accounts.get(user).map_or((0, 0, 0), of)
    }

    /// How many likes every work has that was ever liked: likes less those taken back.
    pub fn likes_of_works(&self) -> BTreeMap<&str, i64> {
        let mut works = BTreeMap::new();
        for ((_, work), likes) in &self.likes {
            *works.entry(work.as_str()).or_default() += likes;
        }
        works
    }

    /// What a user likes, what was liked last first.
    pub fn liked_works(&self, user: &str) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        let named = self.named.get(user).into_iter().flatten().map(String::as_str);
        let stands = |work: &&str| self.likes[&(user.to_owned(), (*work).to_owned())] == 1;
        named.filter(|work| seen.insert(*work)).filter(stands).collect()
    }

    /// The works that were ever liked, each of which is brought in when it is first heard of.
    pub fn works(&self) -> u64 {
        let works: BTreeSet<_> = self.likes.keys().map(|(_, work)| work).collect();
        works.len().try_into().unwrap()
    }

    /// What an audit must find after the trace was played once, however often it was interrupted or repeated.
    #[track_caller]
    pub fn agree_with(&self, audit: &Value) {
        assert_eq!((&audit["problems_total"], &audit["ledger_sums"]["points"]), (&json!(0), &json!(0)), "{audit:#}");
        let mut by_type = json!({
            "points_account.checked_in": self.check_ins,
            "points_account.recharged": self.recharges,
            "points_account.expired": self.expirations,
            "recharge_order.credited": self.recharges,
            "like.liked": self.liked,
            "like.unliked": self.unliked,
            "work.published": self.works(),
        });
        // Each tip is six events, wherever its two users live.
        let of_tips = [
            "tip.offered",
            "points_account.held",
            "points_account.tip_received",
            "tip_receipt.credited",
            "tip.delivered",
            "points_account.tip_paid",
        ];
        for of_tip in of_tips {
            by_type[of_tip] = self.tips.into();
        }
        assert_eq!(audit["by_type"], by_type);
        let events = self.check_ins + 2 * self.recharges + self.expirations + self.liked + self.unliked;
        let events = events + 6 * self.tips + self.works();
        assert_eq!(audit["events"], events);
        let heads = audit["heads"].as_object().unwrap();
        assert_eq!(heads.len(), 16);
        assert_eq!(heads.values().map(|head| head.as_u64().unwrap()).sum::<u64>(), events);
        let streams = u64::try_from(self.accounts.len() + self.likes.len()).unwrap();
        let streams = streams + self.recharges + 2 * self.tips + self.works();
        assert_eq!(audit["streams"], streams);
        let balances: Vec<_> = self.accounts.keys().map(|user| self.balance(user)).collect();
        let promo = balances.iter().map(|(promo, ..)| promo).sum::<i64>();
        let paid = balances.iter().map(|(_, paid, _)| paid).sum::<i64>();
        let income = balances.iter().map(|(.., income)| income).sum::<i64>();
        assert_eq!(promo, self.given - self.expired);
        assert_eq!(audit["ledger"]["user:available:promo"], promo);
        assert_eq!(audit["ledger"]["user:available:paid"], paid);
        assert_eq!(audit["ledger"]["user:available:income"], income);
        assert_eq!(audit["ledger"]["platform:tip_share"], self.tip_share);
        assert_eq!((&audit["ledger"]["platform:transit"], &audit["tips_under_way"]), (&json!(0), &json!(0)));
    }
}
