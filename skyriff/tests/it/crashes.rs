//! kill -9 in the middle of the work: nothing acknowledged is lost, nothing is applied twice.

use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, TcpListener},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    play::{PLAY_MAX, play, summary},
    support::{Api, Books, Ended, Folder, Process, TRACE, eventually, skyriff},
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
    let kinds =
        ["check_in", "recharge", "like", "unlike", "tip", "publish"].map(|kind| of(&format!("recorded: {kind}")));
    let replayed = of("replayed: recorded by an earlier request");
    let books = Books::of_trace();
    assert_eq!(kinds.iter().sum::<u64>() + replayed, 23_988 + books.tips + books.works(), "{counts:?}");
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

/// Every video job of the trace that was accepted ends, whoever is killed meanwhile, and nothing stays held.
#[tokio::test]
async fn video_jobs_of_a_trace_all_end_although_worker_primary_and_server_are_killed() {
    let folder = Folder::new();
    let here = tempfile::tempdir().unwrap();
    let trace = here.path().join("videos.ndjson");
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(TRACE).unwrap()).read_to_string(&mut text).unwrap();
    let is_about_videos = |line: &&str| ["check_in", "recharge", "video_job"].iter().any(|kind| line.contains(kind));
    let lines: Vec<_> = text.lines().filter(is_about_videos).take(VIDEO_LINES).collect();
    fs::write(&trace, lines.join("\n")).unwrap();

    let listen = format!("127.0.0.1:{}", free_port());
    let dev = folder.dev_of(folder.spawn_dev_with(&listen, &["--no-worker"])).await;
    let mut making = noop_worker(&folder, &dev.api.url).await;
    let arguments = ["play", trace.to_str().unwrap(), "--videos", "noop", "--url", &dev.api.url];
    let mut command = skyriff(&arguments);
    command.args(["--folder", &folder.as_str()]);
    let mut playing = Process::spawn(command);
    for crash in 1..=2 {
        accepted(&dev.api, COMMANDS_BEFORE / 2.0 * f64::from(crash)).await;
        making.signal(Signal::KILL);
        making.end().await;
        making = noop_worker(&folder, &dev.api.url).await;
    }
    let killed = folder.postmaster("primary").unwrap();
    for pid in std::iter::once(killed).chain(children(killed)) {
        kill_process(pid, Signal::KILL).ok();
    }
    eventually("another primary", async || folder.postmaster("primary").filter(|pid| *pid != killed)).await;
    accepted(&dev.api, COMMANDS_BEFORE * 1.25).await;
    dev.kill().await;
    assert!(playing.is_running(), "the crash came too late");
    let dev = folder.dev_of(folder.spawn_dev_with(&listen, &["--no-worker"])).await;
    let played = playing.end_within(PLAY_MAX).await.well();
    let counts = summary(&played);
    let of = |what: &str| counts.get(what).copied().unwrap_or_default();

    let audit = eventually("the end of every job", async || {
        // While jobs still end, read models may be ahead of the part of the log that was read.
        let audited = folder.run(&["audit", "verify", "--json"]).await;
        let audit: Value = serde_json::from_str(&audited.stdout).ok()?;
        let of = |kind: &str| audit["by_type"][format!("video_job.{kind}")].as_u64().unwrap_or_default();
        let all_ended = of("submitted") == of("succeeded") + of("failed");
        (all_ended && audit["problems_total"] == 0).then_some(audit)
    })
    .await;
    // The trace has some jobs twice, and what was cut off is told as a replay.
    let submitted = audit["by_type"]["video_job.submitted"].as_u64().unwrap();
    let recorded = of("recorded: video_job");
    let replayed = of("replayed: recorded by an earlier request");
    assert!(recorded > 0 && (recorded..=recorded + replayed).contains(&submitted), "{submitted}: {counts:?}");
    assert_eq!(of("unexpected"), 0);
    assert_eq!((&audit["problems_total"], &audit["ledger_sums"]["points"]), (&json!(0), &json!(0)), "{audit:#}");
    let held = audit["ledger"].as_object().unwrap().iter().filter(|(account, _)| account.starts_with("user:held"));
    assert!(held.into_iter().all(|(_, points)| *points == 0), "{audit:#}");
    making.signal(Signal::KILL);
    dev.interrupt().await.well();
}

/// Lines of the trace about videos and the points for them.
const VIDEO_LINES: usize = 4_000;

async fn noop_worker(folder: &Folder, url: &str) -> Process {
    let token = folder.token("worker", Uuid::new_v4()).await;
    let mut command = skyriff(&["worker", "--url", url, "--providers", "noop", "--concurrency", "16"]);
    command.args(["--folder", &folder.as_str()]).env("SKYRIFF_WORKER_TOKEN", token);
    Process::spawn(command)
}
