//! Whether what a worker says it has made is there.

use std::fmt;

use futures::future::BoxFuture;

/// Where outputs are kept, as far as accepting them needs it.
pub trait Outputs: Send + Sync + fmt::Debug {
    /// Whether the object is there, with so many bytes.
    fn check<'a>(&'a self, object: &'a str, bytes: u64) -> BoxFuture<'a, Result<(), OutputProblem>>;
}

/// Why an output is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputProblem {
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
    fn check<'a>(&'a self, _: &'a str, _: u64) -> BoxFuture<'a, Result<(), OutputProblem>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
