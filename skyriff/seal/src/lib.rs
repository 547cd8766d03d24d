//! Sealing the log: each shard's tree is grown, kept as tiles, and signed, so that auditors can be shown that nobody edits it.
//!
//! ```text
//! log ──rows──▶ lanes, one a shard ──tiles──▶ object storage ◀──tiles and seals── ledger, which makes proofs
//!               (grow, compare)    ──then a seal, signed──▶
//! ```
//!
//! Read in this order: who signs ([`keys`]), what is signed at a time ([`seal`]), where it is kept and what fences it
//! ([`store`]), reading rows as they are stored ([`rows`]), what must agree before anything is signed (`lane`, `database`), the
//! loop ([`sealer`]), and proofs from what is kept ([`ledger`]).
//!
//! # What must hold
//! * **What is signed is never contradicted.** A seal continues the one before it: trees only grow, from tiles that lead to the
//!   signed root, and the last sealed events are compared with the log before anything is added. A shard whose log says
//!   something else stands still, loudly, and keeps the size that was signed.
//! * **A crash anywhere leaves nothing half-signed.** Tiles are durable before the seal that needs them, and a seal is one
//!   object. Whoever comes next goes on from the newest seal.
//! * **There is one history.** Seals are numbered, and the storage makes seal n + 1 once, whoever tries: a sealer that lost
//!   its lock without knowing finds the number taken and has signed in vain.
//!
//! Nothing is added to the write path: the log is only read, from replicas where they are up to date.

pub mod keys;
pub mod seal;
pub mod store;

pub mod rows;

mod database;
mod lane;

pub mod error;
pub mod sealer;

pub mod ledger;

pub use error::SealError;
pub use keys::{PublicKeys, SealKeys};
pub use ledger::{Ledger, LedgerError};
pub use rows::LogPlace;
pub use seal::Seal;
pub use sealer::{Sealer, Settings};
pub use store::{SealStore, StoreError};
