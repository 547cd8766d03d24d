//! Each shard's log as a transparency log: what an auditor needs to see that nobody has edited it.
//!
//! ```text
//! a row of events ──leaf──▶ a hash ──▶ Merkle tree of the shard ──▶ its root ──▶ checkpoint, signed
//!                                        │                                          ▲
//!                                      tiles (what is kept) ──▶ inclusion and consistency proofs
//! ```
//!
//! Read in this order: what is hashed of an event ([`leaf`]), how ([`hash`]), the tree over all events of a shard and what
//! can be proved of it ([`tree`]), and the pieces in which it is kept ([`tile`]) and made ([`frontier`]).
//!
//! Architecture invariant: no IO, no clock, no randomness, no panics. Whoever keeps tiles fetches them and hands them in
//! ([`tree::Plan`] says which); seeds of keys and times are arguments.
//!
//! Deliberately absent: entry bundles, the part of `tlog-tiles` that serves what the leaves are made of. An entry there has
//! at most 65,535 bytes, events may have more, and they hold what not everybody may see. The log itself has them.

pub mod hash;
pub mod leaf;

pub mod frontier;
pub mod tile;
pub mod tree;

pub use frontier::Frontier;
pub use hash::Hash;
pub use leaf::EventRow;
pub use tile::Tile;
pub use tree::{Head, Plan, Tiles};
