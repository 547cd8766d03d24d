//! Events become read models.
//!
//! A projection is a file: what it serves, its tables, and how a batch of events changes them ([`balances`],
//! [`ledger_entries`]). The [`runner`] gives it the batch and a transaction on the read database that holds the
//! shards; rows and checkpoint commit together, so every event counts once, wherever it came from and however often.
//! Events come from the log ([`log`]), which demands the next position and takes nothing else.

pub mod balances;
pub mod ledger_entries;

pub mod log;
pub mod projection;
pub mod runner;

pub use projection::{Batch, ProjectError, Projection};
pub use runner::{EventDatabase, Projector, ReadDatabase};
