//! A snapshot never decides: whatever has become of it, a stream reads as its events say.

use std::collections::HashSet;

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestCaseError, TestRunner},
};
use skyriff_domain::{Event, State, StreamId, UserId, points_account};
use skyriff_postgres::databases::COMMAND;
use skyriff_write_side::{
    CommandSide,
    commands::Limits,
    event_store::{self, Loaded, Snapshot},
};
use sqlx::{FromRow, PgConnection};

use crate::{
    model::{Model, Sketch, Wish, answered, sketch, submission},
    store::{Logged, Store, earn, once, some_user},
};

/// A snapshot as the table has it.
#[derive(Clone, Debug, PartialEq, FromRow)]
struct Row {
    sequence: i64,
    state_version: i32,
    state: String,
    checksum: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Damage {
    /// One character is another.
    Character(Index, char),
    Truncated(Index),
    Extended(String),
    /// Not damaged by accident: it reads well, and says more.
    Richer(i64),
    Replaced(&'static str),
    /// Lower or higher, maybe beyond the end of the log.
    Sequence(i64),
    ChecksumByte(Index, u8),
    ChecksumTruncated(Index),
    Version(i32),
    /// What only another version could read.
    OtherFormat(i32),
    /// The other account's, whole.
    Others,
    /// One from earlier in the history: sound.
    Older(Index),
    /// The state of an earlier one under the number of the latest, with either's checksum.
    OlderState(Index, bool),
    /// Sound, but of a log that went on for longer: from before the log was restored.
    OfALongerLog(i64),
    Gone,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => (any::<Index>(), prop_oneof![prop::char::range('0', '9'), prop::char::range(' ', '~')])
            .prop_map(|(at, character)| Damage::Character(at, character)),
        1 => any::<Index>().prop_map(Damage::Truncated),
        1 => "[ 0-9,}a]{1,3}".prop_map(Damage::Extended),
        2 => (1..1_000_i64).prop_map(Damage::Richer),
        1 => select(vec!["", "null", "{}", "0"]).prop_map(Damage::Replaced),
        3 => prop_oneof![-12..0_i64, 1..12_i64, Just(1_000), Just(i64::MAX / 2)].prop_map(Damage::Sequence),
        1 => (any::<Index>(), 1..=255_u8).prop_map(|(at, flip)| Damage::ChecksumByte(at, flip)),
        1 => any::<Index>().prop_map(Damage::ChecksumTruncated),
        1 => select(vec![-1, 1, i32::MAX / 2]).prop_map(Damage::Version),
        1 => select(vec![-1, 1]).prop_map(Damage::OtherFormat),
        2 => Just(Damage::Others),
        2 => any::<Index>().prop_map(Damage::Older),
        2 => (any::<Index>(), any::<bool>()).prop_map(|(at, own)| Damage::OlderState(at, own)),
        2 => (1..50_i64).prop_map(Damage::OfALongerLog),
        1 => Just(Damage::Gone),
    ]
}

/// Two accounts of one store, and every sound snapshot that was written of the first.
struct History<'a> {
    store: &'a Store,
    users: [UserId; 2],
    log: Vec<Logged>,
    sound: Vec<Row>,
    others: Option<Row>,
}

impl<'a> History<'a> {
    /// Commands in pieces, with a snapshot after each.
    async fn live(store: &'a Store, pieces: &[Vec<Sketch>]) -> Self {
        let users = [some_user(), some_user()];
        let (mut sound, mut others, mut key) = (Vec::new(), None, 0);
        let mut owner = store.owner().await;
        for piece in pieces {
            let node = snapping(store, 1);
            for user in users {
                node.commands.execute(once(user, earn(100))).await.unwrap();
            }
            for sketch in piece {
                key += 1;
                drop(node.commands.execute(submission(sketch, key, &users)).await);
            }
            // What was offered is written before it ends.
            node.stop().await;
            sound.extend(row(&mut owner, users[0]).await);
            others = row(&mut owner, users[1]).await;
        }
        let mut log = store.log().await;
        let is_theirs = |logged: &&Logged| users.map(StreamId::PointsAccount).contains(&logged.stream());
        let commands: HashSet<_> = log.iter().filter(is_theirs).map(Logged::command).collect();
        log.retain(|logged| commands.contains(&logged.command()));
        Self { store, users, log, sound, others }
    }

    fn account(&self) -> StreamId {
        StreamId::PointsAccount(self.users[0])
    }

    /// From the events alone.
    fn folded(&self) -> Model {
        let mut model = Model::default();
        model.apply(&self.log.iter().map(|logged| (logged.stream(), logged.event())).collect::<Vec<_>>());
        model
    }

    fn damaged(&self, damage: &Damage) -> Option<Row> {
        let mut row = self.sound.last().unwrap().clone();
        match damage {
            Damage::Character(at, character) => {
                let at = at.index(row.state.len());
                row.state.replace_range(at..=at, &character.to_string());
            }
            Damage::Truncated(at) => row.state.truncate(at.index(row.state.len())),
            Damage::Extended(more) => row.state.push_str(more),
            Damage::Richer(more) => {
                let mut state: State = serde_json::from_str(&row.state).unwrap();
                state.apply(&earned(*more));
                row.state = serde_json::to_string(&state).unwrap();
            }
            Damage::Replaced(by) => (*by).clone_into(&mut row.state),
            Damage::Sequence(by) => row.sequence = (row.sequence + by).max(1),
            Damage::ChecksumByte(at, flip) => row.checksum[at.index(32)] ^= flip,
            Damage::ChecksumTruncated(at) => row.checksum.truncate(at.index(32)),
            Damage::Version(by) => row.state_version += by,
            Damage::OtherFormat(by) => {
                row.state_version += by;
                row.state.clear();
            }
            Damage::Others => row = self.others.clone().unwrap(),
            Damage::Older(at) => row = at.get(&self.sound).clone(),
            Damage::OlderState(at, own_checksum) => {
                let older = at.get(&self.sound);
                row.state.clone_from(&older.state);
                if *own_checksum {
                    row.checksum.clone_from(&older.checksum);
                }
            }
            Damage::OfALongerLog(_) | Damage::Gone => return None,
        }
        Some(row)
    }

    async fn inflict(&self, owner: &mut PgConnection, damage: &Damage) -> Option<Row> {
        sqlx::query("DELETE FROM snapshots WHERE aggregate_type = $1 AND aggregate_id = $2")
            .bind(self.account().aggregate_type())
            .bind(self.account().aggregate_id())
            .execute(&mut *owner)
            .await
            .unwrap();
        if let Some(row) = self.damaged(damage) {
            sqlx::query("INSERT INTO snapshots VALUES ($1, $2, $3, $4, $5, $6)")
                .bind(self.account().aggregate_type())
                .bind(self.account().aggregate_id())
                .bind(row.sequence)
                .bind(row.state_version)
                .bind(&row.state)
                .bind(&row.checksum)
                .execute(&mut *owner)
                .await
                .unwrap();
        } else if let Damage::OfALongerLog(by) = damage {
            let mut state = self.folded().0.remove(&self.account()).unwrap();
            (0..*by).for_each(|_| state.apply(&earned(1)));
            let sequence = self.events_of(&self.account()) + by;
            let longer = Snapshot { stream: self.account(), sequence, state };
            event_store::save_snapshot(owner, &longer).await.unwrap();
        }
        row(owner, self.users[0]).await
    }

    fn events_of(&self, stream: &StreamId) -> i64 {
        self.log.iter().filter(|logged| logged.stream() == *stream).count().try_into().unwrap()
    }

    /// Loaded among others, each stream is what its events say.
    async fn check_loads(&self, connection: &mut PgConnection, row: Option<&Row>) -> Result<(), TestCaseError> {
        let streams = [self.users[0], some_user(), self.users[1]].map(StreamId::PointsAccount);
        let loaded = event_store::load(connection, &streams).await.unwrap();
        prop_assert_eq!(loaded.len(), streams.len());
        let folded = self.folded();
        for (Loaded { stream, sequence, state, .. }, asked) in loaded.iter().zip(streams) {
            prop_assert_eq!(stream, &asked);
            prop_assert_eq!(*sequence, self.events_of(stream));
            prop_assert_eq!(state, &folded.0.get(stream).cloned().unwrap_or_else(|| stream.empty()));
        }
        // One that is as it was written is used, and only such a one.
        let sound = row.filter(|row| self.sound.contains(row));
        prop_assert_eq!(loaded[0].snapshot_sequence, sound.map_or(0, |row| row.sequence));
        prop_assert_eq!(loaded[2].snapshot_sequence, self.others.as_ref().map_or(0, |row| row.sequence));
        Ok(())
    }

    /// The next commands are decided as if there were no snapshots, and then there is a sound one again.
    async fn check_goes_on(self, owner: &mut PgConnection, next: &[Sketch]) -> Result<(), TestCaseError> {
        let mut model = self.folded();
        let node = snapping(self.store, 1);
        let all = match model.0.get(&self.account()) {
            Some(State::PointsAccount(account)) => account.available().total().get(),
            Some(other) => panic!("{other:?} is not an account"),
            None => 0,
        };
        let too_much = Sketch { user: 0, hours: 0, again_after: None, wish: Wish::Spend(98, all + 1) };
        let exactly = Sketch { wish: Wish::Spend(99, all), ..too_much.clone() };
        for (key, sketch) in (1_000..).zip([&too_much, &exactly].into_iter().chain(next)) {
            let submission = submission(sketch, key, &self.users);
            let answer = node.commands.execute(submission.clone()).await;
            prop_assert_eq!(answered(answer), model.answer(&submission), "{:?}", submission.command);
            if let Ok(events) = model.decide(&submission) {
                model.apply(&events);
            }
        }
        node.commands.execute(once(self.users[0], earn(1))).await.unwrap();
        node.stop().await;
        let mut log = self.store.log().await;
        log.retain(|logged| logged.stream() == self.account());
        let rebuilt = row(owner, self.users[0]).await.expect("written again");
        let loaded = event_store::load(owner, &[self.account()]).await.unwrap().remove(0);
        prop_assert_eq!((rebuilt.sequence, loaded.snapshot_sequence), (loaded.sequence, loaded.sequence));
        let mut state = self.account().empty();
        log.iter().for_each(|logged| state.apply(&logged.event()));
        prop_assert_eq!(loaded.state, state);
        Ok(())
    }
}

fn snapping(store: &Store, snapshot_every: i64) -> CommandSide {
    store.node_with(&Limits { executors_per_database: 1, snapshot_every, ..Limits::default() })
}

fn earned(points: i64) -> Event {
    let credited = skyriff_domain::Purse::income(crate::store::points(points));
    Event::PointsAccount(points_account::Event::Earned { credited, reason: "task".parse().unwrap() })
}

async fn row(owner: &mut PgConnection, user: UserId) -> Option<Row> {
    let account = StreamId::PointsAccount(user);
    sqlx::query_as(
        "SELECT sequence, state_version, state, checksum FROM snapshots
         WHERE aggregate_type = $1 AND aggregate_id = $2",
    )
    .bind(account.aggregate_type())
    .bind(account.aggregate_id())
    .fetch_optional(owner)
    .await
    .unwrap()
}

async fn run_case(
    store: &Store,
    pieces: &[Vec<Sketch>],
    damages: &[Damage],
    next: &[Sketch],
) -> Result<(), TestCaseError> {
    let history = History::live(store, pieces).await;
    let (mut owner, mut connection) = (store.owner().await, store.connect(COMMAND).await);
    for damage in damages {
        let row = history.inflict(&mut owner, damage).await;
        history.check_loads(&mut connection, row.as_ref()).await.map_err(|error| match error {
            TestCaseError::Fail(why) => TestCaseError::fail(format!("{damage:?}: {why}")),
            reject @ TestCaseError::Reject(_) => reject,
        })?;
    }
    // The last one is still there.
    history.check_goes_on(&mut owner, next).await
}

#[test]
fn a_snapshot_that_is_damaged_or_stale_is_never_trusted_over_the_log() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(Store::create());
    let of_two = || sketch().prop_map(|sketch| Sketch { user: sketch.user % 2, ..sketch });
    let cases = (vec(vec(of_two(), 0..12), 1..4), vec(damage(), 1..12), vec(of_two(), 0..6));
    let config = Config { cases: 40, max_shrink_iters: 100, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config)
        .run(&cases, |(pieces, damages, next)| runtime.block_on(run_case(&store, &pieces, &damages, &next)));
    if let Err(error) = result {
        panic!("{error}");
    }
}
