//! Who makes videos. A provider is a file: how it makes, what it costs, and when trying again may help.

pub mod local;
pub mod noop;
pub mod predictions;

use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use serde::Deserialize;
use skyriff_domain::{
    JobId, Label, UserId,
    video_job::{Cost, Kind, Resolution, WorkerFault},
};
use skyriff_storage::Format;
use tokio::sync::watch;

use crate::{Stop, Why};

/// Why an attempt is given up that takes longer than it may.
pub(crate) const TOO_LONG: &str = "the attempt took too long";

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct JobSpec {
    /// Which job.
    pub job: JobId,
    /// Whose.
    pub user: UserId,
    /// The how-manieth attempt: the fencing token.
    pub attempt: u32,
    /// What it is to be.
    pub kind: Kind,
    /// How long it is to be, at most, in seconds.
    pub seconds: u32,
    /// Of a video.
    #[serde(default)]
    pub resolution: Option<Resolution>,
    /// Of speech.
    #[serde(default)]
    pub voice: Option<Label>,
    /// What it is to show or say.
    pub prompt: String,
}

/// What an attempt has beside its job.
#[derive(Clone, Copy, Debug)]
pub struct Workplace<'a> {
    /// For files; it goes when the attempt ends.
    pub folder: &'a Path,
    /// How far it is.
    pub progress: &'a Progress,
    /// When it is to stop.
    pub stop: &'a Stop,
    /// How large the output may be.
    pub bytes_max: u64,
    /// What an earlier attempt has left was looked at, and is of no use: make another.
    pub anew: bool,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Where it is, in the attempt's folder.
    pub file: PathBuf,
    /// What it is.
    pub format: Format,
    /// How long it is when nobody is to look, in seconds; only what is nothing to look at has that.
    pub said_seconds: Option<u32>,
    /// What the provider wants for it.
    pub cost: Cost,
    /// Who else has it.
    pub kept: Kept,
}

/// Who else has what was made, and so who counts its cost: each cost is told by one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nobody: it goes with the attempt.
    Nowhere,
    /// The provider. Whichever attempt comes to an end with it, good or wrong, tells its cost.
    ByProvider,
    /// The provider, since before this attempt. Should it be wrong, an earlier one has found that out and told its cost.
    SinceBefore,
}

impl Made {
    /// It is not what was asked for. What was paid for is still paid for; another attempt may come out better.
    pub(crate) fn wrong(&self, reason: String) -> Failure {
        Failure { class: "wrong output", cost: self.cost.clone(), ..Failure::retryable(reason) }
    }

    /// It may well be what was asked for, and could not be looked at or put away: where it is kept, the next attempt takes
    /// it over, and tells its cost.
    pub(crate) fn undelivered(&self, failure: Failure) -> Failure {
        match self.kept {
            Kept::Nowhere => Failure { cost: self.cost.clone(), ..failure },
            Kept::ByProvider | Kept::SinceBefore => failure,
        }
    }
}

/// Why an attempt did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It did not work.
    Failed(Failure),
    /// It was told to stop.
    Stopped(Why),
}

/// It did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why, in words for whoever asked for it. They may be the provider's, and quote what was asked for: nothing for a log.
    pub reason: String,
    /// What kind of failure it is, in a word of ours: for the log.
    pub class: &'static str,
    /// Whether another attempt may work.
    pub retryable: bool,
    /// What the provider wants all the same.
    pub cost: Cost,
}

impl Failure {
    /// Another attempt may work.
    pub fn retryable(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), class: "provider", retryable: true, cost: Cost::none() }
    }

    /// Another attempt may work, of a worker that is better off: this says nothing about the provider.
    pub fn of_worker(fault: WorkerFault) -> Self {
        Self { class: fault.as_str(), ..Self::retryable(fault.as_str()) }
    }

    /// Nor would another attempt.
    pub fn for_good(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), class: "provider", retryable: false, cost: Cost::none() }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How far an attempt is.
#[derive(Debug)]
pub struct Progress(watch::Sender<u8>);

impl Progress {
    /// Nothing yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// So many percent, at most 99: only what is delivered is done. It never goes back.
    pub fn percent(&self, percent: u64) {
        let percent = u8::try_from(percent.min(99)).unwrap_or(99);
        self.0.send_if_modified(|now| {
            let further = percent > *now;
            *now = percent.max(*now);
            further
        });
    }

    /// What was said last.
    pub fn now(&self) -> u8 {
        *self.0.borrow()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes what a job asks for.
pub trait VideoProvider: Send + Sync {
    /// What it is called in jobs, prices and answers.
    fn name(&self) -> &'static str;

    /// What it can make.
    fn kinds(&self) -> &'static [Kind];

    /// Make it. When told to stop it does, soon, and leaves nothing running that nobody wants.
    fn make<'a>(&'a self, job: &'a JobSpec, at: Workplace<'a>) -> BoxFuture<'a, Result<Made, Ended>>;

    /// Wait for what it still ends elsewhere after its attempts are over.
    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
