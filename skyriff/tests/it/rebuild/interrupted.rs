//! A rebuild that ends too early, or whose moment does not come: it goes on, and nobody notices.

use rustix::process::Signal;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Load, MODELS, OF_POINTS, READS, connect_to, patient_dev, schemas, spawn, two_more_tries, user_of_shard, waits,
};
use crate::support::{Folder, Process, eventually};

/// -9, and until its servers have noticed.
async fn kill(rebuild: Process, owner: &mut PgConnection) {
    rebuild.signal(Signal::KILL);
    rebuild.end().await;
    eventually("its connections are gone", async || {
        let rest = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'skyriff rebuild'";
        (sqlx::query_scalar::<_, i64>(rest).fetch_one(&mut *owner).await.unwrap() == 0).then_some(())
    })
    .await;
}

/// A query that does not end, for which a switch in the second database has to wait.
async fn reader_of(folder: &Folder, table: &str) -> PgConnection {
    let mut reads = connect_to(folder, "primary", "skyriff_query", READS[1]).await;
    let begin = format!("BEGIN; LOCK TABLE {table} IN ACCESS SHARE MODE");
    sqlx::raw_sql(&begin).execute(&mut reads).await.unwrap();
    reads
}

async fn end(mut reader: PgConnection) {
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
}

#[tokio::test]
async fn what_is_interrupted_goes_on_and_two_at_once_are_one_too_many() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    let load = Load::start(&folder, &dev).await;
    load.more(300).await;
    let slow = ["rebuild", "ledger_entries", "--batch", "1", "--workers", "1"];
    let killed = spawn(&folder, &slow);
    let mut owner = folder.connect("skyriff_owner", READS[0]).await;
    let mut read: i64 = 0;
    eventually("some of it is built", async || {
        let sum = "SELECT sum(position)::bigint FROM ledger_entries_next.checkpoints";
        read = sqlx::query_scalar(sum).fetch_one(&mut owner).await.ok().flatten().unwrap_or_default();
        (read > 20).then_some(())
    })
    .await;
    // It must not come to its end while another one is started.
    killed.signal(Signal::STOP);
    folder.run(&slow).await.refused(&["another `skyriff rebuild ledger_entries` is at work"]);
    kill(killed, &mut owner).await;
    let ready = folder.run(&["rebuild", "ledger_entries", "--no-switch"]).await.well();
    assert!(ready.stdout.contains("ledger_entries in skyriff_reads_0 is the same"), "{}", ready.stdout);
    assert!(!ready.stdout.contains("switched in"), "{}", ready.stdout);
    let status = folder.run(&["rebuild", "ledger_entries", "--status"]).await.well();
    assert!(status.stdout.contains("ledger_entries_next in skyriff_reads_0 has read"), "{}", status.stdout);
    load.more(50).await;
    let done = folder.run(&["rebuild", "ledger_entries"]).await.well();
    assert!(done.stdout.contains("switched in skyriff_reads_1"), "{}", done.stdout);
    load.more(50).await;
    load.stop().await;
    folder.audit().await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn between_two_switches_it_goes_on_in_either_direction() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    let load = Load::start(&folder, &dev).await;
    load.more(100).await;
    let mut owner = folder.connect("skyriff_owner", READS[1]).await;

    let reader = reader_of(&folder, "checkpoints").await;
    let stopped = folder.run(&["rebuild", "balances", "--wait-s", "1"]).await;
    stopped.refused(&["skyriff_reads_1 is not switched", "the same command goes on from here"]);
    assert!(stopped.stdout.contains("balances: switched in skyriff_reads_0"), "{}", stopped.stdout);
    assert_eq!(schemas(&folder).await, ["balances_old", "balances_next"]);
    load.more(20).await;
    let back = folder.run(&["rebuild", "balances", "--back"]).await.well();
    assert!(back.stdout.contains("balances: switched in skyriff_reads_0"), "{}", back.stdout);
    assert!(!back.stdout.contains("balances: switched in skyriff_reads_1"), "{}", back.stdout);
    assert_eq!(schemas(&folder).await, ["balances_next", "balances_next"]);
    load.more(20).await;

    let forth = spawn(&folder, &["rebuild", "balances"]);
    waits(&mut owner, "switch_version", "-infinity").await;
    kill(forth, &mut owner).await;
    end(reader).await;
    assert_eq!(schemas(&folder).await, ["balances_old", "balances_next"]);
    load.more(20).await;
    let forth = folder.run(&["rebuild", "balances"]).await.well();
    assert!(!forth.stdout.contains("balances: switched in skyriff_reads_0"), "{}", forth.stdout);
    assert!(forth.stdout.contains("balances: switched in skyriff_reads_1"), "{}", forth.stdout);
    assert_eq!(schemas(&folder).await, ["balances_old", "balances_old"]);
    folder.run(&["rebuild", "balances"]).await.refused(&["still keeps the version before in balances_old"]);
    load.more(20).await;

    let reader = reader_of(&folder, "checkpoints").await;
    let back = spawn(&folder, &["rebuild", "balances", "--back"]);
    waits(&mut owner, "switch_version", "-infinity").await;
    kill(back, &mut owner).await;
    end(reader).await;
    assert_eq!(schemas(&folder).await, ["balances_next", "balances_old"]);
    load.more(20).await;
    folder.run(&["rebuild", "balances", "--back"]).await.well();
    assert_eq!(schemas(&folder).await, ["balances_next", "balances_next"]);
    load.more(20).await;
    load.stop().await;
    folder.audit().await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn all_goes_on_with_what_it_has_not_switched_and_begins_only_where_nothing_is_kept() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    let load = Load::start(&folder, &dev).await;
    load.more(50).await;
    let mut owner = folder.connect("skyriff_owner", READS[1]).await;
    let reader = reader_of(&folder, "tips").await;
    let killed = spawn(&folder, &["rebuild", "all"]);
    waits(&mut owner, "switch_version", "-infinity").await;
    kill(killed, &mut owner).await;
    end(reader).await;
    let left = schemas(&folder).await;
    assert_eq!(left.iter().filter(|schema| schema.ends_with("_old")).count(), 9, "{left:?}");
    assert_eq!(left.iter().filter(|schema| schema.ends_with("_next")).count(), 7, "{left:?}");
    load.more(20).await;
    let done = folder.run(&["rebuild", "all"]).await.well();
    for (number, model) in MODELS.into_iter().enumerate() {
        for (database, is_done) in [(READS[0], number <= 4), (READS[1], number < 4)] {
            let switched = done.stdout.contains(&format!("{model}: switched in {database}"));
            assert_eq!(switched, !is_done, "{model} in {database}: {}", done.stdout);
        }
    }
    assert!(!done.stdout.contains("DIFFERS"), "{}", done.stdout);
    load.more(20).await;

    folder
        .run(&["rebuild", "all"])
        .await
        .refused(&["in balances_old, ledger_entries_old", "`skyriff rebuild all --drop`"]);
    folder.run(&["rebuild", "all", "--drop"]).await.well();
    // Some other time, and by itself: it is not a part of what begins now.
    folder.run(&["rebuild", "tips"]).await.well();
    folder.run(&["rebuild", "all"]).await.refused(&["in tips_old", "`skyriff rebuild tips --drop`"]);
    assert_eq!(schemas(&folder).await, ["tips_old", "tips_old"]);
    folder.run(&["rebuild", "all", "--back"]).await.refused(&["no version of balances is kept in skyriff_reads_0"]);
    assert_eq!(schemas(&folder).await, ["tips_old", "tips_old"]);
    load.stop().await;
    folder.audit().await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn versions_are_compared_at_one_position_although_projectors_come_less_far_than_the_log() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let user = user_of_shard(|shard| shard == OF_POINTS);
    let earn = async |number: i32| {
        service.earn(user, &format!("earn {number}"), 1).await.unwrap().with(reqwest::StatusCode::CREATED).position()
    };
    let at = earn(1).await;
    assert_eq!(service.balance(user, &at).await["available"]["income"], 1);
    let mut owner = folder.connect("skyriff_owner", READS[0]).await;
    let mut in_the_way = folder.connect("skyriff_owner", READS[0]).await;
    let begin = "BEGIN; SELECT FROM checkpoints WHERE projection = 'balances' AND shard = 3 FOR UPDATE";
    sqlx::raw_sql(begin).execute(&mut in_the_way).await.unwrap();
    let rebuild = spawn(&folder, &["rebuild", "balances"]);
    waits(&mut owner, "LOCK TABLE checkpoints IN EXCLUSIVE", "-infinity").await;
    // The projector has read this one, and not what comes afterwards.
    earn(2).await;
    let mut project = folder.connect("skyriff_project", READS[0]).await;
    eventually("the projector waits", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name <> 'skyriff rebuild'
                     AND datname = current_database() AND wait_event = 'transactionid' AND query ~ 'UPDATE checkpoints'";
        (sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut project).await.unwrap() > 0).then_some(())
    })
    .await;
    let at = earn(3).await;
    two_more_tries(&mut owner).await;
    sqlx::raw_sql("COMMIT").execute(&mut in_the_way).await.unwrap();
    let rebuilt = rebuild.end().await.well();
    assert!(rebuilt.stdout.contains("balances in skyriff_reads_0 is the same"), "{}", rebuilt.stdout);
    assert_eq!(service.balance(user, &at).await["available"]["income"], 3);
    dev.interrupt().await.well();
}

#[tokio::test]
async fn what_a_program_of_another_version_has_fed_is_left_to_that_one() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    folder.run(&["rebuild", "tips"]).await.well();
    let mut owner = folder.connect("skyriff_owner", READS[1]).await;
    let mut fed_by = async |schema: &str, version: i32| {
        let set = format!("UPDATE {schema}.checkpoints SET version = $1");
        sqlx::query(&set).bind(version).execute(&mut owner).await.unwrap();
    };
    fed_by("tips_old", 0).await;
    let back = ["rebuild", "tips", "--back"];
    folder
        .run(&back)
        .await
        .refused(&["tips_old is of version 0 of tips, and this program has 1", "--back` with that one"]);
    fed_by("tips_old", 1).await;
    folder.run(&back).await.well();
    fed_by("tips_next", 2).await;
    folder
        .run(&["rebuild", "tips"])
        .await
        .refused(&["tips_next is of version 2 of tips", "`skyriff rebuild tips --drop`"]);
    folder.run(&["rebuild", "tips", "--drop"]).await.well();
    folder.run(&["rebuild", "tips"]).await.well();
    folder.audit().await;
    dev.interrupt().await.well();
}
