//! A log to project: commands decided by the rules and appended as a node would.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeZone, Utc};
use skyriff_domain::{
    Bucket, Command, Event, Intent, LogPosition, Points, PointsPolicy, Policy, Position, RecordedEvent, ShardCount,
    ShardId, State, StreamId, Streams, UserId,
    points::POINTS_MAX,
    points_account::{Action, PointsAccount},
    shard_of,
};
use skyriff_postgres::{
    databases::{COMMAND, OWNER},
    testing::TestDatabases,
};
use sqlx::{ConnectOptions, PgConnection};
use uuid::Uuid;

pub(crate) struct Log {
    pub(crate) databases: TestDatabases,
    connection: PgConnection,
    streams: Folded,
    heads: BTreeMap<ShardId, i64>,
}

#[derive(Default)]
struct Folded(HashMap<StreamId, (i64, State)>);

impl Streams for Folded {
    fn state(&self, stream: &StreamId) -> &State {
        &self.0.get(stream).expect("named").1
    }
}

impl Log {
    pub(crate) async fn create() -> Self {
        let databases = TestDatabases::create().await;
        let connection = databases.event_store(COMMAND).connect().await.unwrap();
        Self { databases, connection, streams: Folded::default(), heads: BTreeMap::new() }
    }

    /// All of it, shard by shard.
    pub(crate) async fn events(&mut self) -> Vec<RecordedEvent> {
        let after = ShardCount::default().shards().map(|shard| (shard, Position::START)).collect();
        let read = skyriff_follow::log::read_after(&mut self.connection, &after, 100_000).await.unwrap();
        read.into_values().flat_map(|shard| shard.events).collect()
    }

    pub(crate) async fn owner(&self) -> PgConnection {
        self.databases.event_store(OWNER).connect().await.unwrap()
    }

    /// The head of every shard that has events.
    pub(crate) fn heads(&self) -> &BTreeMap<ShardId, i64> {
        &self.heads
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = (UserId, &PointsAccount)> {
        self.streams.0.iter().filter_map(|(stream, (_, state))| match (stream, state) {
            (StreamId::PointsAccount(user), State::PointsAccount(account)) => Some((*user, account)),
            _ => None,
        })
    }

    pub(crate) async fn on_account(&mut self, user: UserId, at: DateTime<Utc>, action: Action) -> LogPosition {
        self.append(user, at, Intent::Points(action)).await
    }

    pub(crate) async fn earn(&mut self, user: UserId, amount: i64) -> LogPosition {
        self.on_account(user, noon(), earn(Bucket::Income, amount)).await
    }

    /// Decide a command, which must be accepted, and append what it records.
    pub(crate) async fn append(&mut self, user: UserId, at: DateTime<Utc>, intent: Intent) -> LogPosition {
        let command = Command { user, at, intent };
        for stream in command.streams() {
            self.streams.0.entry(stream).or_insert_with(|| (0, stream.empty()));
        }
        let events = command.decide(&self.streams, &policy()).unwrap();
        let shard = shard_of(user, ShardCount::default());
        let head = self.heads.entry(shard).or_default();
        let mut sequences = Vec::new();
        for (stream, event) in &events {
            let (sequence, state) = self.streams.0.get_mut(stream).unwrap();
            *sequence += 1;
            state.apply(event);
            sequences.push(*sequence);
        }
        let count = i64::try_from(events.len()).unwrap();
        let number = i16::try_from(shard.0).unwrap();
        let of_events = |f: fn(&(StreamId, Event)) -> String| events.iter().map(f).collect::<Vec<_>>();
        let outcome: String = sqlx::query_scalar(
            "SELECT outcome FROM append($1, $2, '{}', '{}', '{}', $4, $4, '{1}', $3, $5, '{NULL}',
                                        $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind([number])
        .bind([*head])
        .bind([count])
        .bind([Uuid::new_v4()])
        .bind([i32::try_from(count).unwrap()])
        .bind(vec![1_i32; events.len()])
        .bind((1..=count).collect::<Vec<_>>())
        .bind(of_events(|(stream, _)| stream.aggregate_type().to_owned()))
        .bind(of_events(|(stream, _)| stream.aggregate_id()))
        .bind(sequences)
        .bind(of_events(|(_, event)| event.event_type().to_owned()))
        .bind(of_events(|(_, event)| event.event_version().to_owned()))
        .bind(of_events(|(_, event)| event.payload().unwrap()))
        .bind(of_events(|_| "{}".to_owned()))
        .bind(vec![at; events.len()])
        .fetch_one(&mut self.connection)
        .await
        .unwrap();
        assert_eq!(outcome, "appended");
        *head += count;
        LogPosition { shard, position: Position(*head) }
    }
}

/// An account can be filled with one command.
fn policy() -> Policy {
    let points = PointsPolicy { amount_max: points(POINTS_MAX), ..PointsPolicy::default() };
    Policy { points, ..Policy::default() }
}

pub(crate) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 15, 12, 0, 0).unwrap()
}

pub(crate) fn points(points: i64) -> Points {
    points.try_into().unwrap()
}

pub(crate) fn earn(bucket: Bucket, amount: i64) -> Action {
    Action::Earn { bucket, points: points(amount), reason: "task".parse().unwrap() }
}

pub(crate) fn some_user() -> UserId {
    UserId(Uuid::new_v4())
}

pub(crate) fn user_of_shard(shard: u16) -> UserId {
    std::iter::repeat_with(some_user)
        .find(|user| shard_of(*user, ShardCount::default()) == ShardId(shard))
        .expect("there are users in every shard")
}
