//! Every event counts once, whatever happens to whoever counts.

use std::time::Duration;

use skyriff_domain::UserId;
use skyriff_follow::Followers;
use skyriff_postgres::databases::PROJECT;
use sqlx::{ConnectOptions, Executor};
use tokio::runtime::{Builder, Runtime};

use crate::{
    books::{LONG, assert_equal_to_the_fold, caught_up, connect, projector, until},
    log::{Log, some_user},
};

/// A projector that can be killed like a process: in the middle of whatever it does.
struct Process {
    runtime: Runtime,
    _projector: Followers,
}

impl Process {
    fn start(log: &Log) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let projector = projector(log);
        drop(entered);
        Self { runtime, _projector: projector }
    }

    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

async fn some_entries(log: &Log, more_than: i64) -> i64 {
    let mut reads = connect(&log.databases).await;
    let mut entries = 0;
    until("more ledger entries", async || {
        entries = sqlx::query_scalar("SELECT count(*) FROM ledger_entries").fetch_one(&mut reads).await.unwrap();
        entries > more_than
    })
    .await;
    entries
}

async fn earn_some(log: &mut Log, users: &[UserId], count: usize) {
    for number in 0..count {
        log.earn(users[number % users.len()], 1).await;
    }
}

#[tokio::test]
async fn a_projector_that_is_killed_and_started_again_counts_everything_once() {
    let mut log = Log::create().await;
    let users: Vec<_> = (0..20).map(|_| some_user()).collect();
    let mut seen = 0;
    for round in 0..8 {
        let process = Process::start(&log);
        earn_some(&mut log, &users, 40).await;
        if round % 2 == 0 {
            seen = some_entries(&log, seen).await;
        }
        process.kill();
    }
    let projector = projector(&log);
    let mut reads = connect(&log.databases).await;
    caught_up(&log, &mut reads).await;
    assert_equal_to_the_fold(&log, &mut reads).await;
    projector.stop().await;
}

#[tokio::test]
async fn projectors_on_the_same_shards_count_everything_once() {
    let mut log = Log::create().await;
    let users: Vec<_> = (0..20).map(|_| some_user()).collect();
    let projectors: Vec<_> = (0..3).map(|_| projector(&log)).collect();
    for _ in 0..10 {
        earn_some(&mut log, &users, 40).await;
    }
    let mut reads = connect(&log.databases).await;
    caught_up(&log, &mut reads).await;
    assert_equal_to_the_fold(&log, &mut reads).await;
    for projector in projectors {
        tokio::time::timeout(LONG, projector.stop()).await.unwrap();
    }
    assert_equal_to_the_fold(&log, &mut reads).await;
}

#[tokio::test]
async fn a_projector_whose_connections_are_cut_goes_on_by_itself() {
    let mut log = Log::create().await;
    let users: Vec<_> = (0..20).map(|_| some_user()).collect();
    let projector = projector(&log);
    for round in 0..6 {
        let of_the_log = round % 2 == 0;
        let options = if of_the_log { log.databases.event_store(PROJECT) } else { log.databases.read_models(PROJECT) };
        earn_some(&mut log, &users, 40).await;
        let mut killer = options.connect().await.unwrap();
        let backends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'skyriff project'";
        until("a backend to kill", async || killer.execute(backends).await.unwrap().rows_affected() > 0).await;
    }
    let mut reads = connect(&log.databases).await;
    caught_up(&log, &mut reads).await;
    assert_equal_to_the_fold(&log, &mut reads).await;
    tokio::time::timeout(Duration::from_secs(5), projector.stop()).await.unwrap();
}
