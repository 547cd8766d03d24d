//! Events become read models.
//!
//! A projection is a file: what it serves, its tables, and how a batch of events changes them ([`balances`],
//! [`ledger_entries`], [`withdrawals`], [`video_jobs`]). [`skyriff_follow`] gives it the batch and a transaction on the read database that holds the
//! shards; rows and checkpoint commit together.

pub mod balances;
pub mod ledger_entries;
pub mod video_jobs;
pub mod withdrawals;

pub mod projection;

pub use projection::Projection;
