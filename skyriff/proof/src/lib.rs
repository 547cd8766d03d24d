//! Each shard's log as a transparency log: what an auditor needs to see that nobody has edited it.
//!
//! ```text
//! a row of events ──leaf──▶ a hash ──▶ Merkle tree of the shard ──▶ its root ──▶ checkpoint, signed
//!                                        │                                          ▲
//!                                      tiles (what is kept) ──▶ inclusion and consistency proofs
//! ```
//!
//! Read in this order: what is hashed of an event ([`leaf`]), how ([`hash`]), the tree over all events of a shard and what
//! can be proved of it ([`tree`]), the pieces in which it is kept ([`tile`]) and made ([`frontier`]), who signs
//! ([`key`], [`note`]) what ([`checkpoint`] of one shard, [`top`] of all shards together), and what an auditor is given
//! ([`answer`]). `verify.py`, beside this crate's sources, checks such answers and shares no code with it.
//!
//! Everything is somebody else's format, so that other people's tools can read it: trees and proofs are those of RFC 6962
//! and RFC 9162, tiles, notes and checkpoints those of C2SP (`tlog-tiles`, `signed-note`, `tlog-checkpoint`). Ours are the
//! leaf and the top checkpoint, which have no standard.
//!
//! Architecture invariant: no IO, no clock, no randomness, no panics. Whoever keeps tiles fetches them and hands them in
//! ([`tree::Plan`] says which); seeds of keys and times are arguments.
//!
//! Deliberately absent: entry bundles, the part of `tlog-tiles` that serves what the leaves are made of. An entry there has
//! at most 65,535 bytes, events may have more, and they hold what not everybody may see. The log itself has them.

pub mod copy;
pub mod hash;
pub mod leaf;

pub mod frontier;
pub mod tile;
pub mod tree;

pub mod checkpoint;
pub mod key;
pub mod note;
pub mod top;

pub mod answer;

pub use checkpoint::{Checkpoint, Origin};
pub use frontier::Frontier;
pub use hash::Hash;
pub use key::{KeyName, KnownKeys, SignerKey, VerifierKey};
pub use leaf::EventRow;
pub use note::SignedNote;
pub use tile::Tile;
pub use top::TopCheckpoint;
pub use tree::{Head, Plan, Tiles};
