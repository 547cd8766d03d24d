//! kill -9 in the middle of the work: nothing acknowledged is lost, nothing is applied twice.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    play::{PLAY_MAX, play, summary},
    support::{Api, Books, Ended, Folder, eventually},
};

/// Commands after which the crash comes: well before the trace's 24,268 are through.
const COMMANDS_BEFORE: f64 = 2_000.0;

/// Below the ports that outgoing connections take, so that nobody takes it while nothing listens.
pub fn free_port() -> u16 {
    let first = u16::try_from(std::process::id() % 10_000).unwrap() + 20_000;
    let mut ports = first..first + 1_000;
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).unwrap()
}

async fn accepted(api: &Api, at_least: f64) {
    eventually("the commands before the crash", async || {
        let accepted = api.metric("skyriff_commands_total", "outcome=\"accepted\"").await;
        (accepted >= at_least).then_some(())
    })
    .await;
}

/// Everything was recorded or found recorded, and the books are those of a run in which nothing happened.
async fn all_is_well(folder: &Folder, played: Ended) {
    let counts = summary(&played.well());
    let of = |what: &str| counts.get(what).copied().unwrap_or_default();
    let kinds = ["check_in", "recharge", "like", "unlike", "tip"].map(|kind| of(&format!("recorded: {kind}")));
    let replayed = of("replayed: recorded by an earlier request");
    let books = Books::of_trace();
    assert_eq!(kinds.iter().sum::<u64>() + replayed, 23_988 + books.tips, "{counts:?}");
    books.agree_with(&folder.audit().await);
}

#[tokio::test]
async fn a_server_killed_in_the_middle_of_a_play_goes_on_where_it_was() {
    let folder = Folder::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let dev = folder.dev_at(&listen).await;
    let mut playing = play(&folder, &dev.api.url);
    accepted(&dev.api, COMMANDS_BEFORE).await;
    dev.kill().await;
    assert!(playing.is_running(), "the crash came too late");

    let dev = folder.dev_at(&listen).await;
    let played = playing.end_within(PLAY_MAX).await;
    assert!(summary(&played)["retries"] > 0, "{}", played.stdout);
    all_is_well(&folder, played).await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_primary_killed_in_the_middle_of_a_play_is_started_again_and_nothing_is_lost() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let mut playing = play(&folder, &dev.api.url);
    // Its first process alone, whose children then end by themselves; or all of it at one moment, as when the kernel
    // runs out of memory.
    for (commands, whole) in [(2_000.0, false), (3_500.0, true), (5_000.0, true)] {
        accepted(&dev.api, commands).await;
        let killed = folder.postmaster("primary").unwrap();
        let children = if whole { children(killed) } else { Vec::new() };
        for pid in std::iter::once(killed).chain(children) {
            kill_process(pid, Signal::KILL).ok();
        }
        assert!(playing.is_running(), "the crash came too late");
        eventually("another primary", async || folder.postmaster("primary").filter(|pid| *pid != killed)).await;
    }
    all_is_well(&folder, playing.end_within(PLAY_MAX).await).await;
    assert!(dev.api.metric("skyriff_executor_connections_lost_total", "").await > 0.0);
    dev.interrupt().await.well();
}

fn children(of: Pid) -> Vec<Pid> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = format!("PPid:\t{}\n", of.as_raw_nonzero());
    let is_child = |pid: &Pid| {
        fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))
            .is_ok_and(|status| status.contains(&parent))
    };
    all.filter_map(Pid::from_raw).filter(is_child).collect()
}
