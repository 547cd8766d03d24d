//! Following the log of an event store: reading it in order without a gap ([`log`]), from where it is or from whatever
//! else carries its events ([`source`]), keeping tables up with it ([`runner`]), and building some of them anew ([`build`]).
//!
//! A [`Follower`] says how a batch of events changes its tables. The runner gives it the batch and a transaction on the
//! database of those tables; rows and checkpoint commit together, so every event counts once, wherever it came from and
//! however often. Read models are kept this way, and so is what processes have to do.

pub mod build;
pub mod checkpoints;
pub mod follower;
pub mod lag;
pub mod log;
pub mod runner;
pub mod source;

pub use build::{BuildError, Builder, Feeder, ReadModel};
pub use checkpoints::OpenError;
pub use follower::{ApplyError, Batch, Follower};
pub use lag::Lag;
pub use log::{LogError, ShardEvents};
pub use runner::{Followers, LogDatabase, TableDatabase};
pub use source::{Behind, Source};
