//! `skyriff dev`: starting, stopping, and starting again whatever was left behind.

use std::{fs, net::TcpListener};

use reqwest::StatusCode;
use rustix::process::{Signal, kill_process};

use crate::support::{Dev, Folder, eventually};

/// Check in as the demo user; the balance is 10 however often that is done on one day.
async fn check_in_once(dev: &Dev) {
    let answer = dev.api.check_in(dev.user, "the check-in of these tests").await.with(StatusCode::CREATED);
    assert_eq!(dev.api.balance(dev.user, &answer.position()).await["available"]["total"], 10);
}

fn nothing_is_left(folder: &Folder) {
    assert_eq!(folder.processes(), []);
    for server in ["primary", "replica"] {
        assert!(!folder.join(server).join("postmaster.pid").exists(), "{server}");
    }
}

#[tokio::test]
async fn an_interrupt_ends_it_cleanly_and_the_next_start_goes_on() {
    let folder = Folder::new();
    // As left by a start that was cut off while it made the data folders.
    for server in ["primary", "replica"] {
        let half_made = folder.join(&format!("{server}.half-made"));
        fs::create_dir_all(half_made.join("base")).unwrap();
        fs::write(half_made.join("PG_VERSION"), "junk").unwrap();
    }
    let dev = folder.dev().await;
    check_in_once(&dev).await;
    let user = dev.user;
    assert!(!folder.join("primary.half-made").exists() && !folder.join("replica.half-made").exists());
    assert!(folder.postmaster("primary").is_some() && folder.postmaster("replica").is_some());

    let second = folder.spawn_dev("127.0.0.1:0").end().await;
    second.refused(&["another skyriff works in", folder.path().to_str().unwrap(), "--folder"]);
    check_in_once(&dev).await;
    dev.interrupt().await.well();
    nothing_is_left(&folder);

    let dev = folder.dev().await;
    assert_eq!(dev.user, user);
    let again = dev.api.check_in(user, "the check-in of these tests").await.with(StatusCode::CREATED);
    assert_eq!(again.header("idempotent-replayed"), "true");
    check_in_once(&dev).await;
    dev.api.check_in(user, "another key").await.is_problem(StatusCode::CONFLICT, "already-checked-in");
    dev.interrupt().await.well();
}

#[tokio::test]
async fn servers_that_outlive_it_are_taken_over_and_pid_files_that_lie_are_not_believed() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    check_in_once(&dev).await;
    let orphans = ["primary", "replica"].map(|server| folder.postmaster(server).unwrap());
    dev.kill().await;
    assert_eq!(["primary", "replica"].map(|server| folder.postmaster(server).unwrap()), orphans);

    let dev = folder.dev().await;
    check_in_once(&dev).await;
    let successors = ["primary", "replica"].map(|server| folder.postmaster(server).unwrap());
    assert!(successors.iter().all(|pid| !orphans.contains(pid)), "{successors:?} {orphans:?}");
    dev.interrupt().await.well();
    nothing_is_left(&folder);

    // After a reboot the number may be anybody's: here that of this test.
    for server in ["primary", "replica"] {
        let data = folder.join(server);
        let lines = format!("{}\n{}\n1700000000\n5432\n\n\n", std::process::id(), data.display());
        fs::write(data.join("postmaster.pid"), lines).unwrap();
    }
    let dev = folder.dev().await;
    check_in_once(&dev).await;
    dev.interrupt().await.well();
    nothing_is_left(&folder);
}

#[tokio::test]
async fn a_replica_comes_back_whether_it_was_killed_or_damaged() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    check_in_once(&dev).await;
    let killed = folder.postmaster("replica").unwrap();
    kill_process(killed, Signal::KILL).unwrap();
    // While it is away the primary answers.
    check_in_once(&dev).await;
    eventually("another replica process", async || folder.postmaster("replica").filter(|pid| *pid != killed)).await;
    let before = dev.api.metric("skyriff_queries_total", "replica").await;
    eventually("an answer from the replica", async || {
        check_in_once(&dev).await;
        (dev.api.metric("skyriff_queries_total", "replica").await > before).then_some(())
    })
    .await;
    dev.interrupt().await.well();

    fs::remove_file(folder.join("replica/global/pg_control")).unwrap();
    let dev = folder.dev().await;
    check_in_once(&dev).await;
    assert!(dev.api.metric("skyriff_queries_total", "replica").await > 0.0);
    let ended = dev.interrupt().await.well();
    assert!(ended.stderr.contains("made again"), "{}", ended.stderr);
    nothing_is_left(&folder);
}

#[tokio::test]
async fn an_interrupt_while_it_starts_leaves_nothing_running() {
    for step in ["starting the primary", "copying the primary", "starting the replica"] {
        let folder = Folder::new();
        let dev = folder.spawn_dev("127.0.0.1:0");
        eventually(step, async || dev.stderr().contains(step).then_some(())).await;
        dev.signal(Signal::INT);
        dev.end().await.well();
        nothing_is_left(&folder);
        let dev = folder.dev().await;
        check_in_once(&dev).await;
        dev.interrupt().await.well();
    }
}

#[tokio::test]
async fn a_port_in_use_is_refused_before_anything_is_made() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    folder.spawn_dev(&address).end().await.refused(&[&address, "another program is there", "--listen"]);
    assert!(!folder.path().exists());
}
