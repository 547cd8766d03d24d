//! `local`: makes videos with ffmpeg and speech with espeak-ng, on this machine, with no account anywhere.

mod look;
mod speech;
mod titles;
mod video;

use std::time::Duration;

use futures::future::BoxFuture;
use skyriff_domain::video_job::{Cost, Kind, WorkerFault};

use super::{Ended, Failure, JobSpec, Kept, Made, VideoProvider, Workplace};
use crate::{
    Why,
    process::{Bounds, RunError},
};

/// What every attempt may take, and what a second of it may take on top: a machine with other things to do needs longer
/// than the video does.
const TIME_MAX: Duration = Duration::from_secs(60);
const TIME_PER_SECOND_MAX: Duration = Duration::from_secs(30);

/// Makes videos and speech on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// How much its programs stand back for others: 0 not at all, 19 as far as possible.
    pub niceness: i32,
}

impl Local {
    /// Whether its programs are here.
    ///
    /// # Errors
    /// Which one is not.
    pub fn check() -> Result<(), String> {
        for (program, argument) in [("ffmpeg", "-version"), ("ffprobe", "-version"), ("espeak-ng", "--version")] {
            let mut command = std::process::Command::new(program);
            command.arg(argument).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            if !command.status().is_ok_and(|status| status.success()) {
                return Err(format!("{program} is missing; `make setup` installs it"));
            }
        }
        Ok(())
    }

    fn bounds(self, job: &JobSpec) -> Bounds {
        Bounds { niceness: self.niceness, time_max: TIME_MAX + TIME_PER_SECOND_MAX * job.seconds }
    }
}

impl VideoProvider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn kinds(&self) -> &'static [Kind] {
        &Kind::ALL
    }

    fn make<'a>(&'a self, job: &'a JobSpec, at: Workplace<'a>) -> BoxFuture<'a, Result<Made, Ended>> {
        Box::pin(async move {
            let bounds = self.bounds(job);
            let (file, format) = match job.kind {
                Kind::TextToVideo => video::make(job, at, bounds).await?,
                Kind::TextToSpeech => speech::make(job, at, bounds).await?,
            };
            Ok(Made { file, format, said_seconds: None, cost: Cost::none(), kept: Kept::Nowhere })
        })
    }
}

impl From<RunError> for Ended {
    fn from(error: RunError) -> Self {
        let failure = match &error {
            RunError::Stopped { why: why @ (Why::Over | Why::Lost | Why::Leaving), .. } => return Self::Stopped(*why),
            RunError::Stopped { program, why: Why::TooLong } => {
                return Failure::retryable(format!("{program} took too long")).into();
            }
            RunError::Failed { program, .. } => Failure::retryable(format!("{program} failed")),
            RunError::Missing { .. } | RunError::Io { .. } => Failure::of_worker(WorkerFault::NoProgram),
        };
        // What a program complains about nobody hears: it may quote what it was given to say or show.
        tracing::warn!(%error, "a program of the worker failed");
        failure.into()
    }
}

fn cannot_write(error: &std::io::Error) -> Ended {
    tracing::warn!(%error, "cannot write to the scratch folder");
    Failure::of_worker(WorkerFault::NoScratch).into()
}
