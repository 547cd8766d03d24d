//! One test's event store: the nodes on it, the commands for it, and what must hold in its log whatever happened.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeZone, Utc};
use serde_json::Value;
use skyriff_domain::{
    Bucket, Command, CommandId, Event, Intent, LogPosition, Metadata, OrderId, Points, Policy, Position, ShardCount,
    ShardId, SpendId, StreamId, UserId,
    points_account::{Action, PointsAccount},
    shard_of,
};
use skyriff_postgres::{
    databases::{COMMAND, OWNER},
    testing::TestDatabases,
};
use skyriff_vault::{KeyDatabase, MasterKeys, Vault};
use skyriff_write_side::{
    CommandSide, Failure, Fingerprint, Receipt, Submission,
    commands::{EventDatabase, Limits},
};
use sqlx::{ConnectOptions, Executor, FromRow, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

/// Long for a test that waits for something that has to come.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// 32 bytes that are only for tests.
const MASTER_KEY: &str = "dGVzdCB0ZXN0IHRlc3QgdGVzdCB0ZXN0IHRlc3QgISE=";

pub(crate) struct Store {
    databases: TestDatabases,
}

/// An event as the table has it.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Logged {
    pub(crate) shard: i16,
    pub(crate) position: i64,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) sequence: i64,
    pub(crate) event_type: String,
    pub(crate) event_version: String,
    pub(crate) payload: String,
    pub(crate) metadata: Value,
    pub(crate) occurred_at: DateTime<Utc>,
    pub(crate) recorded_at: DateTime<Utc>,
}

impl Logged {
    pub(crate) fn at(&self) -> LogPosition {
        LogPosition { shard: ShardId(self.shard.try_into().unwrap()), position: Position(self.position) }
    }

    pub(crate) fn stream(&self) -> StreamId {
        StreamId::decode(&self.aggregate_type, &self.aggregate_id).unwrap()
    }

    pub(crate) fn event(&self) -> Event {
        Event::decode(&self.stream(), &self.event_type, &self.event_version, &self.payload).unwrap()
    }

    pub(crate) fn command(&self) -> Uuid {
        self.metadata["command_id"].as_str().unwrap().parse().unwrap()
    }
}

impl Store {
    pub(crate) async fn create() -> Self {
        Self { databases: TestDatabases::create().await }
    }

    pub(crate) fn node(&self) -> CommandSide {
        self.node_with(&Limits::default())
    }

    pub(crate) fn node_with(&self, limits: &Limits) -> CommandSide {
        node(self.options(COMMAND), limits)
    }

    /// As the role that appends.
    pub(crate) fn vault(&self) -> Vault {
        let primary = TestDatabases::pool(self.options(COMMAND));
        let shards = ShardCount::default().shards().collect();
        let keys = MasterKeys::from_base64(MASTER_KEY).unwrap();
        Vault::new(keys, ShardCount::default(), vec![KeyDatabase { shards, primary }])
    }

    pub(crate) fn options(&self, role: &str) -> PgConnectOptions {
        self.databases.event_store(role)
    }

    pub(crate) fn read_models(&self, role: &str) -> PgConnectOptions {
        self.databases.read_models(role)
    }

    pub(crate) async fn connect(&self, role: &str) -> PgConnection {
        self.options(role).connect().await.unwrap()
    }

    pub(crate) async fn owner(&self) -> PgConnection {
        self.connect(OWNER).await
    }

    /// The whole log, after a look at everything that must hold in it:
    /// positions and sequences without a gap, heads where the events end, every event read back, every command's
    /// events its own.
    pub(crate) async fn log(&self) -> Vec<Logged> {
        let mut owner = self.owner().await;
        // One moment: nobody appends meanwhile, and no command ids move between partitions.
        owner.execute("BEGIN").await.unwrap();
        owner.execute("SELECT lock_shards(ARRAY(SELECT shard FROM shards ORDER BY shard))").await.unwrap();
        let log: Vec<Logged> = sqlx::query_as(
            "SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                    payload::text AS payload, metadata, occurred_at, recorded_at
             FROM events ORDER BY shard, position",
        )
        .fetch_all(&mut owner)
        .await
        .unwrap();
        let (mut positions, mut sequences) = (BTreeMap::<_, i64>::new(), BTreeMap::<_, i64>::new());
        let mut commands = BTreeMap::<_, Vec<_>>::new();
        for logged in &log {
            let position = positions.entry(logged.shard).or_default();
            *position += 1;
            assert_eq!(logged.position, *position, "positions of shard {} have no gap", logged.shard);
            let sequence = sequences.entry(logged.stream()).or_default();
            *sequence += 1;
            assert_eq!(logged.sequence, *sequence, "sequences of {:?} have no gap", logged.stream());
            logged.event();
            commands.entry(logged.command()).or_default().push((logged.shard, logged.position));
        }
        let heads: Vec<(i16, i64)> =
            sqlx::query_as("SELECT shard, position FROM heads ORDER BY shard").fetch_all(&mut owner).await.unwrap();
        for (shard, head) in heads {
            assert_eq!(head, positions.get(&shard).copied().unwrap_or_default(), "the head of shard {shard}");
        }
        let recorded: Vec<(Uuid, i16, i64, i32)> =
            sqlx::query_as("SELECT command_id, shard, position, events FROM commands WHERE refusal IS NULL")
                .fetch_all(&mut owner)
                .await
                .unwrap();
        for (command, shard, position, events) in recorded {
            let own: Vec<_> = (position - i64::from(events) + 1..=position).map(|at| (shard, at)).collect();
            assert_eq!(commands.remove(&command).unwrap_or_default(), own, "the events of command {command}");
        }
        assert_eq!(commands.len(), 0, "every event belongs to a recorded command");
        log
    }

    /// How many commands are remembered as accepted, and how many as refused.
    pub(crate) async fn commands_recorded(&self) -> (i64, i64) {
        let counts = "SELECT count(*) FILTER (WHERE refusal IS NULL), count(refusal) FROM commands";
        sqlx::query_as(counts).fetch_one(&mut self.owner().await).await.unwrap()
    }
}

pub(crate) fn node(options: PgConnectOptions, limits: &Limits) -> CommandSide {
    let count = ShardCount::default();
    let database = EventDatabase { options, shards: count.shards().collect() };
    CommandSide::start(&[database], count, &Policy::default(), limits)
}

/// What a receipt says is in the log, there and nowhere else.
pub(crate) fn assert_in_log(log: &[Logged], receipt: &Receipt) {
    for recorded in &receipt.recorded {
        let at =
            log.binary_search_by_key(&recorded.position, Logged::at).expect("the receipt's position is in the log");
        let logged = &log[at];
        assert_eq!(
            (logged.stream(), logged.sequence, &logged.payload, logged.occurred_at, logged.recorded_at),
            (recorded.stream, recorded.sequence, &recorded.payload, recorded.occurred_at, recorded.recorded_at),
        );
    }
    if let Some(last) = receipt.recorded.last() {
        assert_eq!(receipt.position, last.position);
    }
}

/// A user's account, folded from the log.
pub(crate) fn account(log: &[Logged], user: UserId) -> PointsAccount {
    let mut account = PointsAccount::default();
    for logged in log.iter().filter(|logged| logged.stream() == StreamId::PointsAccount(user)) {
        let Event::PointsAccount(event) = logged.event() else { panic!("{logged:?}") };
        account.apply(&event);
    }
    account
}

pub(crate) fn available(log: &[Logged], user: UserId) -> i64 {
    account(log, user).available().total().get()
}

/// The time of every command that does not say another.
pub(crate) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 15, 12, 0, 0).unwrap()
}

pub(crate) fn command(key: &str, user: UserId, at: DateTime<Utc>, intent: Intent) -> Submission {
    let actor = "service:test";
    let id = CommandId::derive(actor, key);
    Submission {
        id,
        fingerprint: Fingerprint::of(user, None, &intent).unwrap(),
        command: Command { user, at, intent },
        metadata: Metadata {
            command_id: id,
            actor: actor.to_owned(),
            request_id: "test".to_owned(),
            causation: None,
            traceparent: None,
            address: None,
        },
    }
}

pub(crate) fn on_account(key: &str, user: UserId, action: Action) -> Submission {
    command(key, user, noon(), Intent::Points(action))
}

/// Under a key that nobody else has.
pub(crate) fn once(user: UserId, action: Action) -> Submission {
    on_account(&Uuid::new_v4().to_string(), user, action)
}

pub(crate) fn points(points: i64) -> Points {
    points.try_into().unwrap()
}

pub(crate) fn earn(amount: i64) -> Action {
    Action::Earn { bucket: Bucket::Income, points: points(amount), reason: "task".parse().unwrap() }
}

pub(crate) fn spend(amount: i64) -> Action {
    Action::Spend { spend: SpendId(Uuid::new_v4()), points: points(amount), product: "video".parse().unwrap() }
}

pub(crate) fn recharge(order: OrderId, amount: i64) -> Intent {
    Intent::Recharge { order, points: points(amount) }
}

pub(crate) fn some_user() -> UserId {
    UserId(Uuid::new_v4())
}

/// A user that lives in this shard. Even shards belong to a node's first executor, odd ones to its second.
pub(crate) fn user_of_shard(shard: u16) -> UserId {
    std::iter::repeat_with(some_user)
        .find(|user| shard_of(*user, ShardCount::default()) == ShardId(shard))
        .expect("there are users in every shard")
}

pub(crate) fn insufficient(result: &Result<Receipt, Failure>) -> bool {
    use skyriff_domain::{Refusal, points_account::Refusal as Points};
    matches!(result, Err(Failure::Refused(Refusal::Points(Points::InsufficientPoints { .. }))))
}

/// An earlier attempt was refused for want of points, and this is its answer again.
pub(crate) fn insufficient_before(result: &Result<Receipt, Failure>) -> bool {
    use skyriff_domain::{Refusal, points_account::Refusal as Points};
    matches!(result, Err(Failure::RefusedBefore(Refusal::Points(Points::InsufficientPoints { .. }))))
}
