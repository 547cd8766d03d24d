//! Whether what a worker says it has made is there.

use std::fmt;

use futures::future::BoxFuture;
use skyriff_domain::{JobId, video_job::Output};

/// Where outputs are kept, as far as accepting them needs it.
pub trait Outputs: Send + Sync + fmt::Debug {
    /// Whether the object is this attempt's of this job, and there as it is described.
    fn check<'a>(&'a self, job: JobId, attempt: u32, output: &'a Output) -> BoxFuture<'a, Result<(), OutputProblem>>;

    /// Delete an object; one that is not there is deleted already.
    fn delete<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<(), OutputProblem>>;
}

/// Why an output is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputProblem {
    /// It is another attempt's or another job's, or no object that a worker makes, or of another type.
    #[error("this attempt of this job does not make such an object")]
    NotIts,
    /// It is not there.
    #[error("there is no such object")]
    Missing,
    /// It is there, and another one.
    #[error("the object has {found} bytes")]
    OtherSize {
        /// How large it is.
        found: u64,
    },
    /// Nobody can tell now.
    #[error("the object storage cannot be asked: {0}")]
    Unavailable(String),
}

/// Takes workers at their word: for tests, and where no object storage is configured.
#[derive(Clone, Copy, Debug)]
pub struct Unchecked;

impl Outputs for Unchecked {
    fn check<'a>(&'a self, _: JobId, _: u32, _: &'a Output) -> BoxFuture<'a, Result<(), OutputProblem>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), OutputProblem>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
