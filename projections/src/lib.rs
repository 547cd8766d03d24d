//! Events become read models.
//!
//! A projection is a file: what it serves, its tables, and how a batch of events changes them. [`projection`] lists them;
//! [`skyriff_follow`] gives each the batch and a transaction on the read database that holds the shards; rows and
//! checkpoint commit together.

pub mod balances;
pub mod ledger_check;
pub mod ledger_entries;
pub mod likes;
pub mod reconciliations;
pub mod tips;
pub mod video_jobs;
pub mod withdrawals;
pub mod work_likes;
pub mod works;

pub mod projection;

pub use projection::{Projection, UnknownProjection};
