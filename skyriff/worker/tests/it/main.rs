//! Workers with real programs, a real storage, and servers that behave as badly as real ones do.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]
#![expect(unreachable_pub, reason = "a binary exports nothing")]

mod board;
mod local;
mod predictions;
mod provider;
mod workers;

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;
use skyriff_domain::{
    JobId, UserId,
    video_job::{Kind, Resolution},
};
use skyriff_worker::{Ended, JobSpec, Made, Progress, Stop, Stopper, VideoProvider, Workplace};
use tempfile::TempDir;
use uuid::Uuid;

/// Nothing in these tests takes longer when all is well, even on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(120);

/// A small video.
fn video(job: u128, prompt: &str, seconds: u32) -> JobSpec {
    JobSpec {
        job: JobId(Uuid::from_u128(job)),
        user: UserId(Uuid::from_u128(1)),
        attempt: 1,
        kind: Kind::TextToVideo,
        seconds,
        resolution: Some(Resolution::P480),
        voice: None,
        prompt: prompt.to_owned(),
    }
}

fn speech(prompt: &str, voice: Option<&str>, seconds: u32) -> JobSpec {
    let voice = voice.map(|voice| voice.parse().unwrap());
    JobSpec { kind: Kind::TextToSpeech, resolution: None, voice, ..video(2, prompt, seconds) }
}

/// An attempt's surroundings.
struct Attempt {
    folder: TempDir,
    progress: Progress,
    stopper: Stopper,
    stop: Stop,
    bytes_max: u64,
}

impl Attempt {
    fn new() -> Self {
        let stopper = Stopper::new();
        let (folder, stop) = (tempfile::tempdir().unwrap(), stopper.stop());
        Self { folder, progress: Progress::new(), stop, stopper, bytes_max: 100_000_000 }
    }

    fn at(&self) -> Workplace<'_> {
        Workplace {
            folder: self.folder.path(),
            progress: &self.progress,
            stop: &self.stop,
            bytes_max: self.bytes_max,
            anew: false,
        }
    }

    async fn make(&self, provider: &dyn VideoProvider, job: &JobSpec) -> Result<Made, Ended> {
        tokio::time::timeout(LIMIT, provider.make(job, self.at())).await.expect("it ends")
    }
}

/// What ffprobe says of a file.
fn probe(file: &Path) -> Value {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-show_format", "-show_streams", "-of", "json"]).arg(file);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `find` finds, as soon as it does.
async fn eventually<T>(what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = find().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("no {what} within {LIMIT:?}"))
}
