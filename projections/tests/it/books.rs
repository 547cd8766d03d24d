//! The read models, as rows; and what must be in them, given the log.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use skyriff_domain::{Bucket, ShardCount, ShardId, UserId};
use skyriff_follow::{Follower, Followers, LogDatabase, TableDatabase};
use skyriff_postgres::{
    databases::{OWNER, PROJECT},
    testing::TestDatabases,
};
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, PgConnection};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::log::Log;

/// Long for a test that waits for something that has to come.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) fn all_shards() -> Vec<ShardId> {
    ShardCount::default().shards().collect()
}

pub(crate) fn projector(log: &Log) -> Followers {
    projector_into(log, &[(&log.databases, all_shards())])
}

pub(crate) fn projector_into(log: &Log, reads: &[(&TestDatabases, Vec<ShardId>)]) -> Followers {
    let events = LogDatabase { options: log.databases.event_store(PROJECT), shards: all_shards() };
    let reads = reads
        .iter()
        .map(|(databases, shards)| TableDatabase { options: databases.read_models(PROJECT), shards: shards.clone() });
    Followers::start(&Projection::ALL, "skyriff project", &[events], &reads.collect::<Vec<_>>())
}

pub(crate) async fn connect(databases: &TestDatabases) -> PgConnection {
    databases.read_models(OWNER).connect().await.unwrap()
}

/// Look until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let look = async {
        while !is_so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, look).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// Of one projection: the position of every shard that has one, and why it stands still.
pub(crate) async fn checkpoints(
    reads: &mut PgConnection,
    projection: Projection,
) -> BTreeMap<ShardId, (i64, Option<String>)> {
    let rows: Vec<(i16, i64, Option<String>)> =
        sqlx::query_as("SELECT shard, position, stopped FROM checkpoints WHERE projection = $1 AND version = $2")
            .bind(projection.name())
            .bind(projection.version())
            .fetch_all(reads)
            .await
            .unwrap();
    let rows = rows.into_iter();
    rows.map(|(shard, position, stopped)| (ShardId(shard.try_into().unwrap()), (position, stopped))).collect()
}

/// Wait until everything has read the log to its end.
pub(crate) async fn caught_up(log: &Log, reads: &mut PgConnection) {
    until("the projections are at the head of the log", async || {
        for projection in Projection::ALL {
            let checkpoints = checkpoints(reads, projection).await;
            let at_head = |(shard, head): (&ShardId, &i64)| checkpoints.get(shard) == Some(&(*head, None));
            if !log.heads().iter().all(at_head) {
                return false;
            }
        }
        true
    })
    .await;
}

#[derive(Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Balance {
    available_promo: i64,
    available_paid: i64,
    available_income: i64,
    held_promo: i64,
    held_paid: i64,
    held_income: i64,
}

/// Available promo, paid, income; held promo, paid, income.
impl From<[i64; 6]> for Balance {
    fn from(columns: [i64; 6]) -> Self {
        let [available_promo, available_paid, available_income, held_promo, held_paid, held_income] = columns;
        Self { available_promo, available_paid, available_income, held_promo, held_paid, held_income }
    }
}

pub(crate) async fn balance(reads: &mut PgConnection, user: UserId) -> Option<Balance> {
    sqlx::query_as(
        "SELECT available_promo, available_paid, available_income, held_promo, held_paid, held_income
         FROM balances WHERE user_id = $1",
    )
    .bind(user.0)
    .fetch_optional(reads)
    .await
    .unwrap()
}

pub(crate) async fn lots(reads: &mut PgConnection, user: UserId) -> Vec<(DateTime<Utc>, i64)> {
    sqlx::query_as("SELECT expires_at, points FROM promo_lots WHERE user_id = $1 ORDER BY expires_at")
        .bind(user.0)
        .fetch_all(reads)
        .await
        .unwrap()
}

/// What is kept of the entries beside them is what they sum to, row by row; and no hold is open that no account has.
pub(crate) async fn assert_sums_are_of_the_entries(reads: &mut PgConnection) {
    let wrong = |kept: &str, computed: &str| {
        format!("SELECT t::text FROM (({kept} EXCEPT ALL {computed}) UNION ALL ({computed} EXCEPT ALL {kept})) t")
    };
    let day = |time: &str| format!("({time} AT TIME ZONE 'UTC')::date");
    let month = |time: &str| format!("date_trunc('month', {time} AT TIME ZONE 'UTC')::date");
    for (grain, occurred, recorded) in [
        ("mm", month("occurred_at"), month("recorded_at")),
        ("md", month("occurred_at"), day("recorded_at")),
        ("dm", day("occurred_at"), month("recorded_at")),
        ("dd", day("occurred_at"), day("recorded_at")),
    ] {
        let kept = format!(
            "SELECT account, shard, occurred_on, recorded_on, amount, entries FROM ledger_sums WHERE grain = '{grain}'"
        );
        let computed = format!(
            "SELECT account, shard, {occurred}, {recorded}, sum(amount)::bigint, count(*) FROM ledger_entries GROUP BY 1, 2, 3, 4"
        );
        let wrong: Vec<String> = sqlx::query_scalar(&wrong(&kept, &computed)).fetch_all(&mut *reads).await.unwrap();
        assert_eq!(wrong, Vec::<String>::new(), "{grain}");
    }
    let kept = "SELECT user_id, account, occurred_on, recorded_on, shard, amount, entries FROM ledger_user_sums";
    let computed = format!(
        "SELECT user_id, account, {}, {}, shard, sum(amount)::bigint, count(*) FROM ledger_entries
         WHERE user_id IS NOT NULL GROUP BY 1, 2, 3, 4, 5",
        month("occurred_at"),
        month("recorded_at")
    );
    let users: Vec<String> = sqlx::query_scalar(&wrong(kept, &computed)).fetch_all(&mut *reads).await.unwrap();
    assert_eq!(users, Vec::<String>::new());
    let kept = "SELECT user_id, sum(remaining)::bigint FROM ledger_holds WHERE remaining > 0 GROUP BY 1";
    let computed = "SELECT user_id, sum(amount)::bigint FROM ledger_entries WHERE account LIKE 'user:held:%' GROUP BY 1
                    HAVING sum(amount) <> 0";
    let held: Vec<String> = sqlx::query_scalar(&wrong(kept, computed)).fetch_all(&mut *reads).await.unwrap();
    assert_eq!(held, Vec::<String>::new());
}

/// The read models of these users are the fold of the log, and the books sum to zero.
pub(crate) async fn assert_equal_to_the_fold(log: &Log, reads: &mut PgConnection) {
    let sums: Vec<(i16, i64, i64)> = sqlx::query_as(
        "SELECT shard, position, sum(amount)::bigint FROM ledger_entries GROUP BY shard, position HAVING sum(amount) <> 0",
    )
    .fetch_all(&mut *reads)
    .await
    .unwrap();
    assert_eq!(sums, [], "every entry sums to zero");
    assert_sums_are_of_the_entries(reads).await;
    let booked: Vec<(Uuid, String, i64)> = sqlx::query_as(
        "SELECT user_id, account, sum(amount)::bigint FROM ledger_entries WHERE user_id IS NOT NULL GROUP BY 1, 2",
    )
    .fetch_all(&mut *reads)
    .await
    .unwrap();
    let booked: BTreeMap<_, _> = booked.into_iter().map(|(user, account, sum)| ((user, account), sum)).collect();
    for (user, account) in log.accounts() {
        let (available, held) = (account.available(), account.held());
        let columns = [available, &held].map(|purse| Bucket::ALL.map(|bucket| purse.of(bucket).get()));
        let [[a, b, c], [d, e, f]] = columns;
        assert_eq!(balance(reads, user).await, Some([a, b, c, d, e, f].into()), "{user}");
        let promo: Vec<_> = available.promo.iter().map(|(at, points)| (*at, points.get())).collect();
        assert_eq!(lots(reads, user).await, promo, "{user}");
        for (standing, columns) in [("available", columns[0]), ("held", columns[1])] {
            for (bucket, points) in Bucket::ALL.into_iter().zip(columns) {
                let account = format!("user:{standing}:{}", bucket.as_str());
                let sum = booked.get(&(user.0, account.clone())).copied().unwrap_or_default();
                assert_eq!(sum, points, "{user} {account}");
            }
        }
    }
}
