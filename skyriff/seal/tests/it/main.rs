//! The sealer on a real Postgres and in a real folder: what it signs, what it never signs, and who signs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod world;

mod crashes;
mod disagreements;
mod keys;
