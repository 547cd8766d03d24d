//! The binary from outside: every test starts `skyriff dev` with private Postgres servers of its own in a folder of its
//! own, and does what a user, an operator or a crash would do.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]
#![expect(unreachable_pub, reason = "a binary exports nothing")]

mod audit;
mod crashes;
mod dev;
mod erasure;
mod events;
#[path = "../../../write-side/tests/it/hostile_provider.rs"]
#[allow(dead_code, reason = "the write side's tests use all of it")]
mod hostile_provider;
mod kafka;
mod ledger;
mod nodes;
mod payouts;
mod play;
mod proofs;
mod rebuild;
mod reconcile;
mod replay;
mod story;
mod support;
mod surface;
mod videos;
mod welcome;
mod withdrawals;
mod workers;
mod works;
