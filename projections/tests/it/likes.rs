//! Who likes what, and what it adds up to.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use skyriff_domain::{Intent, Position, ShardCount, UserId, WorkId, like, shard_of};
use skyriff_follow::{Follower, log::read_after};
use skyriff_postgres::{databases::PROJECT, testing::TestDatabases};
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::{
    books::{all_shards, caught_up, checkpoints, connect, projector, projector_into, until},
    log::{Log, noon, some_user, user_of_shard},
};

/// What must be in the tables, kept by hand: when each like that stands was given.
#[derive(Default)]
struct Likes(BTreeMap<(UserId, WorkId), DateTime<Utc>>);

type Counts = BTreeMap<Uuid, i64>;
type Hours = BTreeMap<(DateTime<Utc>, Uuid), i64>;

impl Likes {
    async fn like(&mut self, log: &mut Log, user: UserId, work: WorkId, at: DateTime<Utc>) {
        log.append(user, at, Intent::Like { work, command: like::Command::Like, taken_back: false }).await;
        self.0.insert((user, work), at);
    }

    async fn unlike(&mut self, log: &mut Log, user: UserId, work: WorkId, at: DateTime<Utc>) {
        log.append(user, at, Intent::Like { work, command: like::Command::Unlike, taken_back: false }).await;
        self.0.remove(&(user, work));
    }

    /// Many users, few works, some of them taken back, some given again.
    async fn some(&mut self, log: &mut Log, count: u32, seed: u32) {
        for number in (0..count).map(|number| number + seed) {
            let user = UserId(Uuid::from_u128(u128::from(number * 3 % 11)));
            let work = WorkId(Uuid::from_u128(u128::from(number * 5 % 7)));
            let at = noon() + TimeDelta::minutes(i64::from(number * 37 % 600));
            if self.0.contains_key(&(user, work)) {
                self.unlike(log, user, work, at).await;
            } else {
                self.like(log, user, work, at).await;
            }
        }
    }

    /// The tables say so, of the users for whom they are.
    async fn are_in(&self, reads: &mut PgConnection, of: impl Fn(UserId) -> bool) {
        let here = || self.0.iter().filter(|((user, _), _)| of(*user));
        let (mut counts, mut hours) = (Counts::new(), Hours::new());
        for ((_, work), at) in here() {
            *counts.entry(work.0).or_default() += 1;
            let hour = at.with_minute(0).unwrap().with_second(0).unwrap();
            *hours.entry((hour, work.0)).or_default() += 1;
        }
        let likes: BTreeMap<_, _> = here().map(|((user, work), at)| ((user.0, work.0), *at)).collect();
        assert_eq!(rows(reads).await, (likes, counts, hours));
    }
}

async fn rows(reads: &mut PgConnection) -> (BTreeMap<(Uuid, Uuid), DateTime<Utc>>, Counts, Hours) {
    let likes: Vec<(Uuid, Uuid, DateTime<Utc>)> =
        sqlx::query_as("SELECT user_id, work_id, liked_at FROM likes").fetch_all(&mut *reads).await.unwrap();
    let works: Vec<(Uuid, i64)> = sqlx::query_as("SELECT work_id, sum(likes)::bigint FROM work_likes GROUP BY 1")
        .fetch_all(&mut *reads)
        .await
        .unwrap();
    let hours: Vec<(DateTime<Utc>, Uuid, i64)> =
        sqlx::query_as("SELECT hour, work_id, sum(likes)::bigint FROM work_likes_by_hour GROUP BY 1, 2")
            .fetch_all(reads)
            .await
            .unwrap();
    let likes = likes.into_iter().map(|(user, work, at)| ((user, work), at)).collect();
    (likes, works.into_iter().collect(), hours.into_iter().map(|(hour, work, likes)| ((hour, work), likes)).collect())
}

#[tokio::test]
async fn a_like_counts_in_the_hour_in_which_it_was_given_until_it_is_taken_back() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    let mut likes = Likes::default();
    let (one, other, work) = (some_user(), some_user(), WorkId(Uuid::new_v4()));
    for step in 0..5 {
        match step {
            0 => likes.like(&mut log, one, work, noon()).await,
            1 => likes.like(&mut log, other, work, noon() + TimeDelta::minutes(59)).await,
            // Long after: what goes is what was given at noon.
            2 => likes.unlike(&mut log, one, work, noon() + TimeDelta::days(2)).await,
            3 => likes.like(&mut log, one, work, noon() + TimeDelta::days(3)).await,
            _ => {
                likes.unlike(&mut log, one, work, noon() + TimeDelta::days(4)).await;
                likes.unlike(&mut log, other, work, noon()).await;
            }
        }
        caught_up(&log, &mut reads).await;
        likes.are_in(&mut reads, |_| true).await;
    }
    assert!(rows(&mut reads).await.1.is_empty(), "a work without likes leaves no row");
    projector.stop().await;
}

#[tokio::test]
async fn a_batch_that_gives_and_takes_is_what_is_left_of_it() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let (user, work) = (some_user(), WorkId(Uuid::new_v4()));
    let mut likes = Likes::default();
    likes.like(&mut log, user, work, noon()).await;
    let first = projector(&log);
    caught_up(&log, &mut reads).await;
    first.stop().await;
    // Taken back, given, taken back, given; and another one that ends as it began.
    let passing = WorkId(Uuid::new_v4());
    for hours in 1..3 {
        let at = noon() + TimeDelta::hours(hours);
        likes.unlike(&mut log, user, work, at).await;
        likes.like(&mut log, user, work, at).await;
        likes.like(&mut log, user, passing, at).await;
        likes.unlike(&mut log, user, passing, at).await;
    }
    // All of it at once: a runner would go on in smaller pieces if that failed.
    let shard = shard_of(user, ShardCount::default());
    let mut connection = log.databases.event_store(PROJECT).connect().await.unwrap();
    let after = BTreeMap::from([(shard, Position(1))]);
    let batch = read_after(&mut connection, &after, 100).await.unwrap().remove(&shard).unwrap().events;
    assert_eq!(batch.len(), 8);
    let mut transaction = reads.begin().await.unwrap();
    Projection::Likes.apply(&batch, &mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    likes.are_in(&mut reads, |_| true).await;
}

#[tokio::test]
async fn likes_count_once_whoever_counts_and_the_same_when_built_anew() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let mut likes = Likes::default();
    let mut projectors = vec![projector(&log), projector(&log)];
    for round in 0..6 {
        likes.some(&mut log, 40, round * 40).await;
        // One of the two goes, wherever it is, and another comes.
        projectors.remove(0).stop().await;
        projectors.push(projector(&log));
    }
    caught_up(&log, &mut reads).await;
    likes.are_in(&mut reads, |_| true).await;
    for projector in projectors {
        projector.stop().await;
    }
    let before = rows(&mut reads).await;
    assert!(before.0.len() > 20 && before.2.len() > before.1.len());

    reads.execute("TRUNCATE likes, work_likes, work_likes_by_hour").await.unwrap();
    reads.execute("DELETE FROM checkpoints WHERE projection = 'likes'").await.unwrap();
    let anew = projector(&log);
    caught_up(&log, &mut reads).await;
    assert_eq!(rows(&mut reads).await, before);
    anew.stop().await;
}

#[tokio::test]
async fn each_read_database_counts_the_likes_of_its_users_and_together_they_are_all() {
    let mut log = Log::create().await;
    let second = TestDatabases::create().await;
    let (low, high): (Vec<_>, Vec<_>) = all_shards().into_iter().partition(|shard| shard.0 < 8);
    let projector = projector_into(&log, &[(&log.databases, low.clone()), (&second, high.clone())]);
    let mut likes = Likes::default();
    likes.some(&mut log, 120, 0).await;
    let mut total = Counts::new();
    for (databases, shards) in [(&log.databases, low), (&second, high)] {
        let mut reads = connect(databases).await;
        until("its shards are at their heads", async || {
            let checkpoints = checkpoints(&mut reads, Projection::Likes).await;
            let head = |shard| log.heads().get(shard).copied().unwrap_or_default();
            shards.iter().all(|shard| checkpoints.get(shard) == Some(&(head(shard), None)))
        })
        .await;
        likes.are_in(&mut reads, |user| shards.contains(&shard_of(user, ShardCount::default()))).await;
        for (work, count) in rows(&mut reads).await.1 {
            *total.entry(work).or_default() += count;
        }
    }
    let mut expected = Counts::new();
    for (_, work) in likes.0.keys() {
        *expected.entry(work.0).or_default() += 1;
    }
    assert_eq!(total, expected);
    projector.stop().await;
}

#[tokio::test]
async fn a_like_that_cannot_be_taken_back_stops_its_shard_and_no_other() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let mut likes = Likes::default();
    let (here, there, work) = (user_of_shard(3), user_of_shard(4), WorkId(Uuid::new_v4()));
    let projector = projector(&log);
    likes.like(&mut log, here, work, noon()).await;
    caught_up(&log, &mut reads).await;
    sqlx::query("DELETE FROM likes WHERE user_id = $1").bind(here.0).execute(&mut reads).await.unwrap();
    likes.unlike(&mut log, here, work, noon()).await;
    likes.like(&mut log, there, work, noon()).await;
    until("shard 3 stands still, and shard 4 does not", async || {
        let checkpoints = checkpoints(&mut reads, Projection::Likes).await;
        let of = |shard| checkpoints.get(&skyriff_domain::ShardId(shard));
        let why = of(3).and_then(|(_, why)| why.clone());
        of(3).is_some_and(|(position, _)| *position == 1)
            && why.is_some_and(|why| why.contains("1 likes are taken back, and 0 of them stand"))
            && of(4) == Some(&(1, None))
    })
    .await;
    projector.stop().await;
}
