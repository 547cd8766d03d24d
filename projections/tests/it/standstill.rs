//! What cannot be read stops its shard, loudly and right there, and nothing else.

use skyriff_domain::ShardId;
use skyriff_projections::Projection;
use sqlx::{Executor, PgConnection};

use crate::{
    books::{assert_equal_to_the_fold, caught_up, checkpoints, connect, projector, until},
    log::{Log, user_of_shard},
};

const DAMAGED: ShardId = ShardId(0);
const SOUND: ShardId = ShardId(1);

/// Five events in one shard and five in another.
async fn ten_events(log: &mut Log) {
    for shard in [DAMAGED, SOUND] {
        let user = user_of_shard(shard.0);
        for _ in 0..5 {
            log.earn(user, 1).await;
        }
    }
}

async fn stands_still_at(reads: &mut PgConnection, position: i64, why: &str) {
    for projection in Projection::ALL {
        until(&format!("{projection} stands still at {position}, {why}"), async || {
            let checkpoints = checkpoints(reads, projection).await;
            let stopped = checkpoints.get(&DAMAGED).cloned();
            checkpoints.get(&SOUND) == Some(&(5, None))
                && stopped.is_some_and(|(at, said)| at == position && said.is_some_and(|said| said.contains(why)))
        })
        .await;
    }
}

/// What is done to the log, what is undone, where the projections stand still and what they say.
const DAMAGES: [(&str, &str, i64, &str); 5] = [
    (
        "CREATE TABLE kept AS SELECT * FROM events WHERE shard = 0 AND position = 3;
         DELETE FROM events WHERE shard = 0 AND position = 3",
        "INSERT INTO events TABLE kept",
        2,
        "gap",
    ),
    (
        "CREATE TABLE kept AS SELECT * FROM events WHERE shard = 0 AND position = 1;
         DELETE FROM events WHERE shard = 0 AND position = 1",
        "INSERT INTO events TABLE kept",
        0,
        "gap",
    ),
    (
        r#"UPDATE events SET payload = '{"earned": {}}' WHERE shard = 0 AND position = 4"#,
        r#"UPDATE events SET payload = '{"earned": {"credited": {"income": 1}, "reason": "task"}}' WHERE shard = 0 AND position = 4"#,
        3,
        "0:4",
    ),
    (
        "UPDATE events SET event_version = '99' WHERE shard = 0 AND position = 5",
        "UPDATE events SET event_version = '1' WHERE shard = 0 AND position = 5",
        4,
        "99",
    ),
    (
        "UPDATE events SET aggregate_type = 'unheard_of' WHERE shard = 0 AND position = 2",
        "UPDATE events SET aggregate_type = 'points_account' WHERE shard = 0 AND position = 2",
        1,
        "unheard_of",
    ),
];

#[tokio::test]
async fn a_damaged_log_stops_its_shard_before_the_damage_until_it_is_repaired() {
    for (damage, repair, position, why) in DAMAGES {
        let mut log = Log::create().await;
        ten_events(&mut log).await;
        let mut owner = log.owner().await;
        owner.execute(damage).await.unwrap();
        let mut reads = connect(&log.databases).await;
        let projector = projector(&log);
        stands_still_at(&mut reads, position, why).await;
        // Others go on meanwhile, also with what comes later.
        log.earn(user_of_shard(2), 1).await;
        until("the other shard", async || {
            let balances = checkpoints(&mut reads, Projection::Balances).await;
            balances.get(&ShardId(2)) == Some(&(1, None))
        })
        .await;
        owner.execute(repair).await.unwrap();
        caught_up(&log, &mut reads).await;
        assert_equal_to_the_fold(&log, &mut reads).await;
        projector.stop().await;
    }
}

#[tokio::test]
async fn an_event_that_does_not_fit_the_read_model_stops_right_before_itself() {
    let mut log = Log::create().await;
    ten_events(&mut log).await;
    // As if a point had been spent that was never earned.
    let spent = r#"{"adjusted": {"direction": "debit", "moved": {"income": 100}, "reason": "test"}}"#;
    let mut owner = log.owner().await;
    let damage =
        format!("UPDATE events SET event_type = 'adjusted', payload = '{spent}' WHERE shard = 0 AND position = 4");
    owner.execute(damage.as_str()).await.unwrap();
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    until("balances stand still", async || {
        let balances = checkpoints(&mut reads, Projection::Balances).await;
        balances.get(&SOUND) == Some(&(5, None))
            && balances.get(&DAMAGED).is_some_and(|(at, why)| *at == 3 && why.is_some())
    })
    .await;
    // The ledger takes what the books say; only the balance cannot be.
    until("the ledger goes on", async || {
        checkpoints(&mut reads, Projection::LedgerEntries).await.get(&DAMAGED) == Some(&(5, None))
    })
    .await;
    projector.stop().await;
}

#[tokio::test]
async fn a_repair_while_nothing_runs_is_noticed_as_well() {
    let (damage, repair, position, why) = DAMAGES[0];
    let mut log = Log::create().await;
    ten_events(&mut log).await;
    let mut owner = log.owner().await;
    owner.execute(damage).await.unwrap();
    let mut reads = connect(&log.databases).await;
    let before = projector(&log);
    stands_still_at(&mut reads, position, why).await;
    before.stop().await;
    owner.execute(repair).await.unwrap();
    let after = projector(&log);
    caught_up(&log, &mut reads).await;
    assert_equal_to_the_fold(&log, &mut reads).await;
    after.stop().await;
}
