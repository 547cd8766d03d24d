//! Entries as a projection would have written them, in two read databases and in plain memory.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use serde_json::Value;
use skyriff_domain::{ShardCount, ShardId, UserId, shard_of};
use skyriff_edge::Role;
use skyriff_postgres::{
    databases::{OWNER, QUERY},
    testing::TestDatabases,
};
use skyriff_read_side::{ReadDatabase, Replicas, Stories, ledger_routes};
use sqlx::{ConnectOptions, Executor, PgConnection, PgPool};
use uuid::Uuid;

use crate::api::{Answer, Api, LONG, primary};

pub(crate) type Time = DateTime<Utc>;

/// The same numbers in every run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    pub(crate) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len().try_into().unwrap())).unwrap()]
    }

    fn minutes(&mut self, below: u64) -> TimeDelta {
        TimeDelta::minutes(i64::try_from(self.below(below)).unwrap())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) shard: u16,
    pub(crate) position: i64,
    pub(crate) line: i16,
    pub(crate) user: Option<UserId>,
    pub(crate) account: String,
    pub(crate) amount: i64,
    pub(crate) reference: String,
    pub(crate) occurred_at: Time,
    pub(crate) recorded_at: Time,
}

impl Entry {
    pub(crate) fn event(&self) -> String {
        format!("{}:{}", self.shard, self.position)
    }

    pub(crate) fn is_in(&self, at: Option<Time>, known_at: Option<Time>) -> bool {
        at.is_none_or(|at| self.occurred_at <= at) && known_at.is_none_or(|known_at| self.recorded_at <= known_at)
    }
}

pub(crate) struct Books {
    pub(crate) entries: Vec<Entry>,
    pub(crate) users: Vec<UserId>,
    pub(crate) api: Api,
    pub(crate) databases: Vec<TestDatabases>,
}

pub(crate) fn noon() -> Time {
    Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, 0).unwrap()
}

pub(crate) fn text(time: Time) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// Events of some users, recorded over two months and a half; most when they happened, others up to three years later,
/// some at the very edge of a month.
fn some_entries(dice: &mut Dice, users: &[UserId], count: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut recorded_at = noon();
    let mut heads = [0_i64; 16];
    for _ in 0..count {
        recorded_at += dice.minutes(400) + TimeDelta::microseconds(7);
        let user = *dice.one(users);
        let shard = shard_of(user, ShardCount::default()).0;
        let position = &mut heads[usize::from(shard)];
        *position += 1;
        let occurred_at = match dice.below(5) {
            0 => recorded_at - dice.minutes(3 * 365 * 24 * 60),
            1 => {
                Utc.with_ymd_and_hms(2024, 3, 1, 0, 0, 0).unwrap()
                    - TimeDelta::microseconds(i64::from(dice.below(2) == 0))
            }
            _ => recorded_at,
        };
        let amount = i64::try_from(dice.below(50)).unwrap() + 1;
        let (from, to) = *dice.one(&[
            ("platform:issuance:check_in", "user:available:promo"),
            ("user:available:promo", "platform:expiry"),
            ("user:available:promo", "platform:revenue:text_to_video"),
            ("platform:issuance:recharge", "user:available:paid"),
            ("user:available:paid", "user:held:paid"),
            ("platform:provider_payable:usd", "platform:provider_cost:usd"),
        ]);
        for (line, account, amount) in [(1, from, -amount), (2, to, amount)] {
            entries.push(Entry {
                shard,
                position: *position,
                line,
                user: account.starts_with("user:").then_some(user),
                account: account.to_owned(),
                amount,
                reference: format!("{shard}/{position}"),
                occurred_at,
                recorded_at,
            });
        }
    }
    entries
}

pub(crate) async fn connect(databases: &TestDatabases) -> PgConnection {
    databases.read_models(OWNER).connect().await.unwrap()
}

/// As the projection writes them.
pub(crate) async fn write(rows: &mut PgConnection, entries: &[&Entry]) {
    let months: BTreeSet<_> = entries.iter().map(|entry| entry.occurred_at.date_naive()).collect();
    sqlx::query("SELECT ensure_ledger_month(month) FROM unnest($1::date[]) AS month")
        .bind(Vec::from_iter(months))
        .execute(&mut *rows)
        .await
        .unwrap();
    for entry in entries {
        sqlx::query("INSERT INTO ledger_entries VALUES ($1, $2, $3, $4, $5, $6, 'earned', $7, $8, $9)")
            .bind(i16::try_from(entry.shard).unwrap())
            .bind(entry.position)
            .bind(entry.line)
            .bind(entry.user.map(|user| user.0))
            .bind(&entry.account)
            .bind(entry.amount)
            .bind(&entry.reference)
            .bind(entry.occurred_at)
            .bind(entry.recorded_at)
            .execute(&mut *rows)
            .await
            .unwrap();
    }
}

/// What the sums are, by their definition.
pub(crate) async fn sum_up(rows: &mut PgConnection) {
    let day = |time: &str| format!("({time} AT TIME ZONE 'UTC')::date");
    let month = |time: &str| format!("date_trunc('month', {time} AT TIME ZONE 'UTC')::date");
    for (grain, occurred, recorded) in [
        ("mm", month("occurred_at"), month("recorded_at")),
        ("md", month("occurred_at"), day("recorded_at")),
        ("dm", day("occurred_at"), month("recorded_at")),
        ("dd", day("occurred_at"), day("recorded_at")),
    ] {
        let sums = format!(
            "INSERT INTO ledger_sums SELECT account, shard, '{grain}', {occurred}, {recorded}, sum(amount), count(*)
             FROM ledger_entries GROUP BY 1, 2, 4, 5"
        );
        rows.execute(sums.as_str()).await.unwrap();
    }
    let users = format!(
        "INSERT INTO ledger_user_sums SELECT user_id, account, {}, {}, shard, sum(amount), count(*)
         FROM ledger_entries WHERE user_id IS NOT NULL GROUP BY 1, 2, 3, 4, 5",
        month("occurred_at"),
        month("recorded_at")
    );
    rows.execute(users.as_str()).await.unwrap();
}

pub(crate) async fn checkpoints(rows: &mut PgConnection, shards: &[ShardId], version: i32) {
    sqlx::query(
        "INSERT INTO checkpoints (projection, version, shard, position)
         SELECT 'ledger_entries', $2, shard, 1000000 FROM unnest($1::smallint[]) AS shard",
    )
    .bind(shards.iter().map(|shard| i16::try_from(shard.0).unwrap()).collect::<Vec<_>>())
    .bind(version)
    .execute(rows)
    .await
    .unwrap();
}

fn over(places: Vec<ReadDatabase>, logs: Vec<ReadDatabase>) -> Api {
    let replicas = Replicas::new(ShardCount::default(), places, LONG);
    let (routes, _) = ledger_routes(replicas, Stories::new(logs)).split_for_parts();
    Api::of(routes)
}

impl Books {
    pub(crate) async fn of(count: usize) -> Self {
        let mut dice = Dice(5);
        let users: Vec<_> = (1..=12_u128).map(|user| UserId(Uuid::from_u128(user))).collect();
        let entries = some_entries(&mut dice, &users, count);
        let (mut databases, mut places, mut logs) = (Vec::new(), Vec::new(), Vec::new());
        for half in 0..2_u16 {
            let database = TestDatabases::create().await;
            let shards: Vec<_> = ShardCount::default().shards().filter(|shard| shard.0 % 2 == half).collect();
            let mut rows = connect(&database).await;
            let own: Vec<_> = entries.iter().filter(|entry| entry.shard % 2 == half).collect();
            write(&mut rows, &own).await;
            sum_up(&mut rows).await;
            checkpoints(&mut rows, &shards, 2).await;
            let log = TestDatabases::pool(database.event_store(QUERY));
            logs.push(ReadDatabase { shards: shards.clone(), primary: log, replicas: Vec::new() });
            places.push(ReadDatabase { shards, primary: primary(&database), replicas: Vec::new() });
            databases.push(database);
        }
        let api = over(places, logs);
        Self { entries, users, api, databases }
    }

    /// The same books, with another log.
    pub(crate) fn beside(&self, log: &PgPool) -> Api {
        let halves = (0..2).zip(&self.databases).map(|(half, database)| {
            let shards: Vec<_> = ShardCount::default().shards().filter(|shard| shard.0 % 2 == half).collect();
            let log = ReadDatabase { shards: shards.clone(), primary: log.clone(), replicas: Vec::new() };
            (ReadDatabase { shards, primary: primary(database), replicas: Vec::new() }, log)
        });
        let (places, logs) = halves.unzip();
        over(places, logs)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.api.send(self.api.request(Role::Auditor, Uuid::nil(), &format!("/v1/ledger/{path}"))).await
    }

    pub(crate) async fn found(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.kind(), (200, ""), "{path}: {}", answer.text);
        answer.body
    }

    /// Moments at which something begins or ends, and some in between.
    pub(crate) fn moment(&self, dice: &mut Dice) -> Option<Time> {
        let entry = dice.one(&self.entries).clone();
        let time = if dice.below(2) == 0 { entry.occurred_at } else { entry.recorded_at };
        let midnight = time.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        match dice.below(7) {
            0 => None,
            1 => Some(time),
            2 => Some(time - TimeDelta::microseconds(1)),
            3 => Some(midnight),
            4 => Some(midnight - TimeDelta::microseconds(1)),
            5 => Some(Utc.with_ymd_and_hms(2024, 3, 1, 0, 0, 0).unwrap()),
            _ => Some(time + TimeDelta::days(40)),
        }
    }
}

/// As parameters.
pub(crate) fn as_of(at: Option<Time>, known_at: Option<Time>) -> String {
    let named = [("at", at), ("known_at", known_at)];
    named.into_iter().filter_map(|(name, time)| Some(format!("&{name}={}", text(time?)))).collect()
}
