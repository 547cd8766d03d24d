//! The local provider with the real ffmpeg and espeak-ng.

use std::{fs, process::Command, time::Duration};

use serde_json::Value;
use skyriff_storage::Format;
use skyriff_worker::{Ended, Failure, JobSpec, Why, provider::local::Local};

use crate::{Attempt, eventually, probe, speech, video};

const LOCAL: Local = Local { niceness: 0 };

fn stream<'a>(probed: &'a Value, kind: &str) -> &'a Value {
    let mut streams = probed["streams"].as_array().unwrap().iter();
    streams.find(|stream| stream["codec_type"] == kind).unwrap_or_else(|| panic!("no {kind}: {probed}"))
}

fn seconds(probed: &Value) -> f64 {
    probed["format"]["duration"].as_str().unwrap().parse().unwrap()
}

/// How many different colours a frame in the middle has, over a coarse raster: nothing that is only black has many.
fn colours(file: &std::path::Path) -> usize {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-ss", "0.9", "-i"]).arg(file);
    command.args(["-frames:v", "1", "-vf", "scale=64:36", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
    let pixels = command.output().unwrap().stdout;
    assert_eq!(pixels.len(), 64 * 36 * 3);
    pixels.chunks(3).map(|pixel| pixel.to_vec()).collect::<std::collections::HashSet<_>>().len()
}

#[tokio::test]
async fn a_video_plays_everywhere_and_is_what_was_asked_for() {
    let attempt = Attempt::new();
    let made = attempt.make(&LOCAL, &video(1, "A lighthouse dances in the rain", 2)).await.unwrap();
    assert_eq!(made.format, Format::Mp4);
    let probed = probe(&made.file);
    let (picture, sound) = (stream(&probed, "video"), stream(&probed, "audio"));
    assert_eq!((picture["codec_name"].as_str(), picture["pix_fmt"].as_str()), (Some("h264"), Some("yuv420p")));
    assert_eq!((picture["width"].as_u64(), picture["height"].as_u64()), (Some(854), Some(480)));
    assert_eq!(sound["codec_name"], "aac");
    assert!((seconds(&probed) - 2.0).abs() < 0.1, "{}", seconds(&probed));
    assert!(colours(&made.file) > 100);
    assert!(attempt.progress.now() > 0);
    // It begins to play before all of it is there.
    let bytes = fs::read(&made.file).unwrap();
    let at = |what: &[u8]| bytes.windows(4).position(|window| window == what).unwrap();
    assert!(at(b"moov") < at(b"mdat"));
}

#[tokio::test]
async fn the_same_job_looks_the_same_and_another_one_does_not() {
    let make = async |job: &JobSpec| {
        let attempt = Attempt::new();
        let made = attempt.make(&LOCAL, job).await.unwrap();
        fs::read(made.file).unwrap()
    };
    let job = video(7, "same", 1);
    let first = make(&job).await;
    assert!(first == make(&JobSpec { attempt: 2, ..job.clone() }).await);
    assert!(first != make(&video(8, "same", 1)).await);
}

#[tokio::test]
async fn no_prompt_breaks_or_commands_it() {
    let attempt = Attempt::new();
    let secret = attempt.folder.path().join("canary");
    let prompt = format!(
        "灯塔在雨中跳舞。 こんにちは مرحبا 🕺🌊✨ %{{localtime}} {{\\fs400}}\\N',[v];movie={0}[x];\ndrawtext=textfile={0}:x=\"$(touch {0})\" ` -y {0} \u{202e}\u{0}\u{1b}[31m",
        secret.display()
    );
    let made = attempt.make(&LOCAL, &video(3, &prompt, 1)).await.unwrap();
    assert!((seconds(&probe(&made.file)) - 1.0).abs() < 0.1);
    let made = attempt.make(&LOCAL, &speech(&prompt, None, 2)).await.unwrap();
    assert!(seconds(&probe(&made.file)) <= 2.1);
    assert!(!secret.exists());
    // Nor does one that says nothing, or very much.
    for prompt in [String::new(), "x".repeat(8_000)] {
        attempt.make(&LOCAL, &video(4, &prompt, 1)).await.unwrap();
    }
}

#[tokio::test]
async fn speech_is_as_long_as_it_takes_and_no_longer_than_was_paid_for() {
    let attempt = Attempt::new();
    let made = attempt.make(&LOCAL, &speech("Hello from the lighthouse.", Some("en-gb"), 10)).await.unwrap();
    assert_eq!(made.format, Format::M4a);
    let probed = probe(&made.file);
    assert_eq!(stream(&probed, "audio")["codec_name"], "aac");
    assert!((0.5..6.0).contains(&seconds(&probed)), "{}", seconds(&probed));
    let long = speech(&"and then it danced ".repeat(50), Some("de"), 2);
    let made = attempt.make(&LOCAL, &long).await.unwrap();
    assert!((1.9..2.1).contains(&seconds(&probe(&made.file))));
}

#[tokio::test]
async fn what_cannot_be_said_is_refused_for_good() {
    let attempt = Attempt::new();
    for (job, says) in [
        (speech("Hello", Some("klingon"), 5), "there is no voice klingon"),
        (speech("Hello", Some("-version"), 5), "there is no voice -version"),
        (speech("Hello", Some("..-..-etc"), 5), "there is no voice"),
        (speech(" … !", None, 5), "nothing to say"),
    ] {
        let Err(Ended::Failed(Failure { reason, retryable: false, .. })) = attempt.make(&LOCAL, &job).await else {
            panic!("{job:?}")
        };
        assert!(reason.contains(says), "{reason}");
    }
}

#[tokio::test]
async fn a_stop_ends_its_program_at_once() {
    let attempt = Attempt::new();
    let job = video(5, "long", 60);
    let mut making = Box::pin(attempt.make(&LOCAL, &job));
    let begun = eventually("its program", async || {
        tokio::select! {
            ended = &mut making => panic!("{ended:?}"),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        works_in(attempt.folder.path()).then_some(())
    });
    begun.await;
    attempt.stopper.say(Why::Over);
    assert_eq!(making.await, Err(Ended::Stopped(Why::Over)));
    eventually("its end", async || (!works_in(attempt.folder.path())).then_some(())).await;
}

/// Whether an ffmpeg works in a folder.
fn works_in(folder: &std::path::Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut folders = processes.filter_map(|process| {
        let program = fs::read_to_string(process.path().join("comm")).ok()?;
        program.starts_with("ffmpeg").then(|| fs::read_link(process.path().join("cwd")).ok())?
    });
    let folder = folder.canonicalize().unwrap();
    folders.any(|cwd| cwd == folder)
}
