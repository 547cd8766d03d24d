//! What each event of a tip does to the rows of its two users.

use std::collections::BTreeMap;

use skyriff_domain::{
    Bucket, Event, Intent, Note, ShardCount, StreamId, TipId, UserId, WorkId,
    points::POINTS_MAX,
    points_account::{Action, Direction},
    shard_of,
    tip::{Step, Terms, TipPolicy, receipt},
};
use skyriff_projections::Projection;
use sqlx::{Executor, PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

use crate::{
    books::{all_shards, assert_equal_to_the_fold, caught_up, checkpoints, connect, projector, projector_into, until},
    log::{Log, noon, points, some_user, user_of_shard},
};

/// User, other, shard, points, share, work, state, reason.
type Row = (Uuid, Uuid, i16, i64, i64, Option<Uuid>, String, Option<String>);
type Rows = BTreeMap<(Uuid, String), Row>;

async fn rows(reads: &mut PgConnection) -> Rows {
    let rows = sqlx::query(
        "SELECT tip_id, direction, user_id, other_id, shard, points, share, work_id, state, reason FROM tips",
    );
    let rows = rows.fetch_all(reads).await.unwrap();
    let of = |row: PgRow| {
        let (user, other, shard, points) = (row.get(2), row.get(3), row.get(4), row.get(5));
        ((row.get(0), row.get(1)), (user, other, shard, points, row.get(6), row.get(7), row.get(8), row.get(9)))
    };
    rows.into_iter().map(of).collect()
}

fn terms(from: UserId, to: UserId, amount: i64) -> Terms {
    let share = TipPolicy::default().share_of(points(amount));
    Terms { from, to, points: points(amount), share, work: Some(WorkId(Uuid::from_u128(9))) }
}

fn row(user: UserId, other: UserId, amount: i64, state: &str, reason: Option<&str>) -> Row {
    let shard = shard_of(user, ShardCount::default()).0.try_into().unwrap();
    let share = TipPolicy::default().share_of(points(amount)).get();
    (user.0, other.0, shard, amount, share, Some(Uuid::from_u128(9)), state.to_owned(), reason.map(str::to_owned))
}

async fn give(log: &mut Log, user: UserId, amount: i64) {
    let note = Note::try_from("test".to_owned()).unwrap();
    let action = Action::Adjust {
        bucket: Bucket::Paid,
        direction: Direction::Credit,
        points: points(amount),
        reason: note.into(),
    };
    log.on_account(user, noon(), action).await;
}

async fn offer(log: &mut Log, from: UserId, to: UserId, amount: i64) -> TipId {
    let tip = TipId(Uuid::new_v4());
    let count = ShardCount::default();
    let beside = shard_of(from, count) == shard_of(to, count);
    let work = Some(WorkId(Uuid::from_u128(9)));
    log.append(from, noon(), Intent::Tip(Step::Offer { tip, to, points: points(amount), work, beside })).await;
    tip
}

async fn step(log: &mut Log, user: UserId, step: Step) {
    log.append(user, noon(), Intent::Tip(step)).await;
}

#[tokio::test]
async fn a_tip_has_a_row_for_its_sender_and_one_for_its_receiver() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    let (from, to, beside) = (user_of_shard(1), user_of_shard(2), user_of_shard(1));
    give(&mut log, from, 100).await;
    let mut expected = Rows::new();
    let key = |tip: TipId, direction: &str| (tip.0, direction.to_owned());

    let delivered = offer(&mut log, from, to, 10).await;
    expected.insert(key(delivered, "sent"), row(from, to, 10, "offered", None));
    caught_up(&log, &mut reads).await;
    assert_eq!(rows(&mut reads).await, expected);

    step(&mut log, to, Step::Receive { tip: delivered, terms: terms(from, to, 10) }).await;
    expected.insert(key(delivered, "received"), row(to, from, 10, "delivered", None));
    caught_up(&log, &mut reads).await;
    assert_eq!(rows(&mut reads).await, expected);

    step(&mut log, from, Step::Settle { tip: delivered }).await;
    expected.insert(key(delivered, "sent"), row(from, to, 10, "delivered", None));
    caught_up(&log, &mut reads).await;
    assert_eq!(rows(&mut reads).await, expected);

    let within = offer(&mut log, from, beside, 20).await;
    expected.insert(key(within, "sent"), row(from, beside, 20, "delivered", None));
    expected.insert(key(within, "received"), row(beside, from, 20, "delivered", None));
    caught_up(&log, &mut reads).await;
    assert_eq!(rows(&mut reads).await, expected);

    give(&mut log, to, POINTS_MAX - 7).await;
    let returned = offer(&mut log, from, to, 30).await;
    step(&mut log, to, Step::Receive { tip: returned, terms: terms(from, to, 30) }).await;
    let note = decline_reason(&mut log, returned).await;
    let reason = note.as_str().to_owned();
    step(&mut log, from, Step::Return { tip: returned, reason: note }).await;
    expected.insert(key(returned, "sent"), row(from, to, 30, "returned", Some(&reason)));
    expected.insert(key(returned, "received"), row(to, from, 30, "returned", Some(&reason)));
    caught_up(&log, &mut reads).await;
    assert_eq!(rows(&mut reads).await, expected);
    assert_equal_to_the_fold(&log, &mut reads).await;
    projector.stop().await;

    // From nothing, in other batches: the same rows.
    reads.execute("TRUNCATE tips; DELETE FROM checkpoints WHERE projection = 'tips'").await.unwrap();
    let projector = crate::books::projector(&log);
    caught_up(&log, &mut reads).await;
    assert_eq!(rows(&mut reads).await, expected);
    projector.stop().await;
}

/// What the receipt says.
async fn decline_reason(log: &mut Log, tip: TipId) -> Note {
    let stream = StreamId::TipReceipt(tip);
    let payload: String = sqlx::query_scalar(
        "SELECT payload::text FROM events WHERE aggregate_type = 'tip_receipt' AND aggregate_id = $1",
    )
    .bind(stream.aggregate_id())
    .fetch_one(&mut log.owner().await)
    .await
    .unwrap();
    let event = Event::decode(&stream, "declined", "1", &payload).unwrap();
    let Event::TipReceipt(receipt::Event::Declined { reason, .. }) = event else { panic!("{event:?}") };
    reason
}

#[tokio::test]
async fn each_user_s_rows_are_in_the_database_of_their_own_shard_counted_once_by_several_runners() {
    let mut log = Log::create().await;
    let other = skyriff_postgres::testing::TestDatabases::create().await;
    let (low, high) = all_shards().into_iter().partition::<Vec<_>, _>(|shard| shard.0 < 8);
    let homes = [(&log.databases, low.clone()), (&other, high)];
    let projectors: Vec<_> = (0..3).map(|_| projector_into(&log, &homes)).collect();
    drop(homes);
    let users: Vec<_> = (0..12).map(|_| some_user()).collect();
    for user in &users {
        give(&mut log, *user, 1_000).await;
    }
    let mut expected = [Rows::new(), Rows::new()];
    for number in 0..120_usize {
        let (from, to) = (users[number % 12], users[(number * 5 + 1 + number / 12) % 12]);
        if from == to {
            continue;
        }
        let amount = i64::try_from(number % 7).unwrap() + 1;
        let tip = offer(&mut log, from, to, amount).await;
        if shard_of(from, ShardCount::default()) != shard_of(to, ShardCount::default()) {
            step(&mut log, to, Step::Receive { tip, terms: terms(from, to, amount) }).await;
            step(&mut log, from, Step::Settle { tip }).await;
        }
        for (user, other, direction) in [(from, to, "sent"), (to, from, "received")] {
            let home = usize::from(!low.contains(&shard_of(user, ShardCount::default())));
            let row = row(user, other, amount, "delivered", None);
            expected[home].insert((tip.0, direction.to_owned()), row);
        }
    }
    for (databases, expected) in [(&log.databases, &expected[0]), (&other, &expected[1])] {
        let mut reads = connect(databases).await;
        until("its rows", async || &rows(&mut reads).await == expected).await;
    }
    for projector in projectors {
        projector.stop().await;
    }
}

#[tokio::test]
async fn an_end_without_its_beginning_stops_the_shard() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let (from, to) = (user_of_shard(1), user_of_shard(2));
    give(&mut log, from, 100).await;
    let tip = offer(&mut log, from, to, 10).await;
    let projector = projector(&log);
    caught_up(&log, &mut reads).await;
    reads.execute("DELETE FROM tips").await.unwrap();
    step(&mut log, from, Step::Settle { tip }).await;
    until("the shard stands still and says why", async || {
        let checkpoints = checkpoints(&mut reads, Projection::Tips).await;
        let stopped = checkpoints.get(&skyriff_domain::ShardId(1)).and_then(|(_, stopped)| stopped.clone());
        stopped.is_some_and(|reason| reason.contains("not on offer"))
    })
    .await;
    projector.stop().await;
}
