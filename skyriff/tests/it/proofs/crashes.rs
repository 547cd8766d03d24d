//! Sealers that are killed, two of them, and a log that loses what was sealed.

use std::{collections::BTreeMap, time::Duration};

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use super::{Auditor, auditor::sealed_at, sizes};
use crate::support::{Api, Folder, Process, eventually, skyriff};

fn spawn(folder: &Folder) -> Process {
    let arguments = ["seal", "--listen", "127.0.0.1:0", "--folder", &folder.as_str()];
    Process::spawn(folder.with_databases(skyriff(&arguments)))
}

/// `skyriff seal`, when it runs.
pub async fn sealer(folder: &Folder) -> Process {
    let mut process = spawn(folder);
    process.says("its address", |said| said.contains("SkyRiff listens on ").then_some(())).await;
    process
}

#[tokio::test]
async fn sealers_are_killed_at_any_moment_and_what_clients_were_given_is_never_contradicted() {
    let folder = Folder::new();
    let dev = folder.dev_with(&["--no-worker", "--roles", "command,query,project,process"]).await;
    let auditor = Auditor::of(&folder, &dev.api).await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let writing = tokio::spawn(write_until_cut_off(service));

    // Two at a time, of which one waits; the one at work is killed, and sometimes both.
    let mut given: BTreeMap<i64, Value> = BTreeMap::new();
    let mut waiting = sealer(&folder).await;
    for turn in 0..10_u64 {
        let next = spawn(&folder);
        let end = tokio::time::Instant::now() + Duration::from_millis(300 + turn * 173 % 1_100);
        while tokio::time::Instant::now() < end {
            let answer = auditor.api.get("/v1/ledger/checkpoint").await;
            if answer.status == StatusCode::OK {
                given.insert(sealed_at(&answer.json), answer.json);
            }
        }
        waiting.signal(Signal::KILL);
        waiting.end().await;
        if turn % 3 == 2 {
            next.signal(Signal::KILL);
            next.end().await;
            waiting = spawn(&folder);
        } else {
            waiting = next;
        }
    }
    writing.abort();
    assert!(given.len() > 5, "{}", given.len());
    let newest = auditor.all_sealed(&folder).await;
    for kept in given.values() {
        assert!(sizes(kept).iter().zip(sizes(&newest)).all(|(old, new)| *old <= new));
        auditor.accepts("consistency", &auditor.continues(kept).await, Some(kept), "what was kept is").await;
        // The same is still there.
        assert_eq!(auditor.get(&format!("/v1/ledger/checkpoint?sealed={}", sealed_at(kept))).await, *kept);
    }
    waiting.signal(Signal::TERM);
    waiting.end().await.well();
    dev.interrupt().await.well();
}

/// Events of many shards, one after the other.
async fn write_until_cut_off(service: Api) {
    for number in 0_u128.. {
        if service.earn(Uuid::from_u128(number % 40), &format!("earn {number}"), 1).await.is_err() {
            return;
        }
    }
}

async fn superuser(folder: &Folder) -> PgConnection {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("postgres");
    PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap()
}

/// Whoever owns the machine deletes the last event, and another one takes its place.
#[tokio::test]
async fn a_log_that_loses_what_was_sealed_stops_its_shard_and_no_other() {
    let folder = Folder::new();
    let dev = folder.dev_with(&["--no-worker"]).await;
    let auditor = Auditor::of(&folder, &dev.api).await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    // Their shards are 9 and 10.
    let (victim, other): (Uuid, Uuid) = (
        "959de6e1-d9ef-5a29-a884-f19f971b9c27".parse().unwrap(),
        "2b4c1bfc-42d3-5582-955f-e0ae15f69046".parse().unwrap(),
    );
    let first = service.earn(victim, "first", 5).await.unwrap().with(StatusCode::CREATED).position();
    let last = service.earn(victim, "last", 5).await.unwrap().with(StatusCode::CREATED).position();
    assert!(first.starts_with("9:") && last.starts_with("9:"), "{first} {last}");
    let kept = auditor.all_sealed(&folder).await;
    let size = sizes(&kept)[9];

    let delete = format!("DELETE FROM events WHERE shard = 9 AND position = {size}");
    assert_eq!(superuser(&folder).await.execute(delete.as_str()).await.unwrap().rows_affected(), 1);
    eventually("it stands still", async || {
        (dev.api.metric("skyriff_seal_stopped", "shard=\"9\"").await > 0.0).then_some(())
    })
    .await;
    service.earn(other, "elsewhere", 5).await.unwrap().with(StatusCode::CREATED);
    let newest = auditor.sealed_more_than(&kept).await;
    assert_eq!((sizes(&newest)[9], sizes(&newest)[10]), (size, sizes(&kept)[10] + 1));
    auditor.accepts("consistency", &auditor.continues(&kept).await, Some(&kept), "what was kept is").await;
    // Sealed and gone: no answer, rather than that there was none.
    let gone = auditor.api.get(&format!("/v1/ledger/proofs/inclusion?event=9:{size}")).await;
    gone.is_problem(StatusCode::INTERNAL_SERVER_ERROR, "fault");
    assert_eq!(dev.api.metric("skyriff_seal_stopped", "").await, 1.0);
    let ended = dev.interrupt().await.well();
    assert!(ended.stderr.contains("the last ones are gone") && ended.stderr.contains("ERROR"), "{}", ended.stderr);
}
