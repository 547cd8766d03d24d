//! Videos from the order to the player: `skyriff dev`, real workers, real ffmpeg.

use std::{fs, path::Path, process::Command};

use reqwest::{Method, StatusCode, header};
use rustix::process::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Dev, Folder, Process, eventually, skyriff};

/// Points, and the job's path.
async fn order(folder: &Folder, dev: &Dev, key: &str, body: Value) -> String {
    let service = dev.api.as_caller(&folder.token("service", Uuid::new_v4()).await);
    let earned = service.earn(dev.user, &format!("for {key}"), 1_000).await.unwrap();
    earned.with(StatusCode::CREATED);
    let answer = dev.api.post("/v1/video-jobs", key, Some(body)).await.unwrap().with(StatusCode::ACCEPTED);
    answer.header("location").to_owned()
}

fn a_video(prompt: &str, seconds: u32) -> Value {
    json!({ "kind": "text_to_video", "prompt": prompt, "seconds": seconds, "resolution": "480p" })
}

/// The link to a job's output, as soon as there is one.
async fn link(dev: &Dev, job: &str) -> Value {
    eventually("the output", async || {
        let answer = dev.api.get(&format!("{job}/output")).await;
        (answer.status != StatusCode::NOT_FOUND).then(|| answer.with(StatusCode::OK).json)
    })
    .await
}

/// Fetched as a player does, with nothing but the link.
async fn fetch(dev: &Dev, link: &Value, range: Option<&str>) -> (StatusCode, Vec<u8>) {
    let mut request = reqwest::Client::new().get(format!("{}{}", dev.api.url, link["url"].as_str().unwrap()));
    if let Some(range) = range {
        request = request.header(header::RANGE, range);
    }
    let response = request.send().await.unwrap();
    (response.status(), response.bytes().await.unwrap().to_vec())
}

/// How long it is, and the kinds of its streams.
fn probe(bytes: &[u8]) -> (f64, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, bytes).unwrap();
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-show_entries", "format=duration:stream=codec_type", "-of", "json"]).arg(file);
    let said: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let kinds =
        said["streams"].as_array().unwrap().iter().map(|stream| stream["codec_type"].as_str().unwrap().to_owned());
    (said["format"]["duration"].as_str().unwrap().parse().unwrap(), kinds.collect())
}

async fn worker(folder: &Folder, dev: &Dev, providers: &str) -> Process {
    let token = folder.token("worker", Uuid::new_v4()).await;
    let mut command = skyriff(&["worker", "--url", &dev.api.url, "--providers", providers, "--nice", "0"]);
    command.args(["--folder", &folder.as_str(), "--grace-s", "1"]).env("SKYRIFF_WORKER_TOKEN", token);
    Process::spawn(command)
}

/// Files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path.display().to_string()] }).collect()
}

/// The outputs in the object storage: what seals the ledger is beside them.
fn outputs(folder: &Folder) -> Vec<String> {
    let objects = folder.join("objects");
    let seals = objects.join("ledger").display().to_string();
    let mut outputs: Vec<_> = files(&objects).into_iter().filter(|file| !file.starts_with(&seals)).collect();
    outputs.sort();
    outputs
}

#[tokio::test]
async fn an_order_becomes_a_video_that_only_its_owner_has_the_link_to() {
    let folder = Folder::new();
    let dev = folder.dev_with(&["--sweep-every-s", "1"]).await;
    let job = order(&folder, &dev, "a video", a_video("A lighthouse dances in the rain. 灯塔 🕺", 2)).await;
    let made = link(&dev, &job).await;
    assert_eq!(made["content_type"], "video/mp4");
    let (status, video) = fetch(&dev, &made, None).await;
    let (seconds, kinds) = probe(&video);
    assert_eq!((status, kinds), (StatusCode::OK, vec!["video".to_owned(), "audio".to_owned()]));
    assert!((seconds - 2.0).abs() < 0.2, "{seconds}");
    let (status, part) = fetch(&dev, &made, Some("bytes=100-199")).await;
    assert!(status == StatusCode::PARTIAL_CONTENT && part == video[100..200]);

    let stranger = dev.api.as_caller(&folder.token("user", Uuid::new_v4()).await);
    stranger.get(&format!("{job}/output")).await.is_problem(StatusCode::FORBIDDEN, "forbidden");
    let nobody = dev.api.as_caller("nothing");
    nobody.get(&format!("{job}/output")).await.is_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    let forged = json!({ "url": made["url"].as_str().unwrap().replace("expires=1", "expires=2") });
    assert_eq!(fetch(&dev, &forged, None).await.0, StatusCode::FORBIDDEN);
    // To be followed at once.
    let redirect = dev.api.send(Method::GET, &format!("{job}/output?redirect=true"), &[], None).await.unwrap();
    assert_eq!((redirect.status, redirect.bytes == video), (StatusCode::OK, true));

    // Once it is shown, to everybody who asks; until it is no longer.
    let work = format!("/v1/works/{}", job.rsplit('/').next().unwrap());
    let of_work = format!("{work}/output");
    stranger.get(&of_work).await.is_problem(StatusCode::NOT_FOUND, "not-found");
    let shown = json!({ "title": "A lighthouse", "visibility": "unlisted" });
    dev.api.send(Method::PUT, &work, &[], Some(shown)).await.unwrap().with(StatusCode::CREATED);
    let shown = stranger.get(&of_work).await.with(StatusCode::OK).json;
    assert!(fetch(&dev, &shown, None).await.1 == video);
    dev.api.send(Method::DELETE, &work, &[], None).await.unwrap().with(StatusCode::CREATED);
    stranger.get(&of_work).await.is_problem(StatusCode::NOT_FOUND, "not-found");

    let body = json!({ "kind": "text_to_speech", "prompt": "Hello.", "seconds": 9, "voice": "en-gb" });
    let job = order(&folder, &dev, "speech", body).await;
    let made = link(&dev, &job).await;
    let (seconds, kinds) = probe(&fetch(&dev, &made, None).await.1);
    assert!(seconds < 5.0 && kinds == ["audio"], "{seconds} {kinds:?}");

    // Both are named by their jobs: nothing to sweep, however old.
    let objects = outputs(&folder);
    assert_eq!(objects.len(), 2, "{objects:?}");
    let orphan = objects[0].replace(".1.", ".2.");
    fs::copy(&objects[0], &orphan).unwrap();
    for object in objects.iter().chain([&orphan]) {
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 3_600);
        fs::File::options().write(true).open(object).unwrap().set_modified(old).unwrap();
    }
    let path = folder.as_str();
    let swept = folder.run(&["storage", "sweep", "--folder", &path, "--older-than-hours", "2"]).await.well();
    assert!(swept.stdout.contains("1 that no job names"), "{}", swept.stdout);
    assert_eq!(outputs(&folder), objects);

    // The role process does it by itself, to what is older than a day.
    fs::copy(&objects[0], &orphan).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3_600);
    fs::File::options().write(true).open(&orphan).unwrap().set_modified(old).unwrap();
    eventually("the orphan is gone", async || (!std::path::Path::new(&orphan).exists()).then_some(())).await;
    dev.interrupt().await.well();
    assert_eq!(folder.processes(), []);
}

#[tokio::test]
async fn a_worker_that_is_killed_is_noticed_and_its_job_is_made_by_another() {
    let folder = Folder::new();
    let mut command = skyriff(&["dev", "--no-worker", "--folder", &folder.as_str(), "--listen", "127.0.0.1:0"]);
    command.env("SKYRIFF_VIDEO_LEASE_S", "2").env("SKYRIFF_VIDEO_BACK_OFF_S", "1");
    let dev = folder.dev_of(Process::spawn(command)).await;
    let first = worker(&folder, &dev, "local").await;
    // Long enough that it is still being made when its worker is killed.
    let job = order(&folder, &dev, "a video", a_video("again", 6)).await;
    let scratch = folder.join("scratch");
    eventually("a video in the making", async || {
        files(&scratch).iter().any(|file| file.ends_with("output.mp4")).then_some(())
    })
    .await;
    first.signal(Signal::KILL);
    first.end().await;
    let second = worker(&folder, &dev, "local").await;
    let made = link(&dev, &job).await;
    assert!(made["url"].as_str().unwrap().contains(".2.mp4"), "{made}");
    let (seconds, _) = probe(&fetch(&dev, &made, None).await.1);
    assert!((seconds - 6.0).abs() < 0.2, "{seconds}");
    // What the first one left is gone, and so is everything of the second one when it ends.
    second.signal(Signal::TERM);
    second.end().await.well();
    let left: Vec<_> = files(&scratch).into_iter().filter(|file| !file.ends_with("scratch/lock")).collect();
    assert_eq!(left, Vec::<String>::new());
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_worker_that_is_told_to_end_gives_its_job_back_at_once() {
    let folder = Folder::new();
    let mut command = skyriff(&["dev", "--no-worker", "--folder", &folder.as_str(), "--listen", "127.0.0.1:0"]);
    // Were it not given back, it would be noticed only after this.
    command.env("SKYRIFF_VIDEO_LEASE_S", "600").env("SKYRIFF_VIDEO_BACK_OFF_S", "1");
    let dev = folder.dev_of(Process::spawn(command)).await;
    let first = worker(&folder, &dev, "local").await;
    let job = order(&folder, &dev, "a video", a_video("again", 6)).await;
    let scratch = folder.join("scratch");
    eventually("a video in the making", async || (files(&scratch).len() > 3).then_some(())).await;
    first.signal(Signal::TERM);
    let ended = first.end().await.well();
    assert!(format!("{}{}", ended.stdout, ended.stderr).contains("given back"), "{ended:?}");
    let second = worker(&folder, &dev, "local").await;
    let made = link(&dev, &job).await;
    assert!(made["url"].as_str().unwrap().contains(".2.mp4"), "{made}");
    second.signal(Signal::TERM);
    second.end().await.well();
    dev.interrupt().await.well();
}
