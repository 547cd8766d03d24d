//! The formats against files that are checked in, and the answers against a verifier that shares no code with them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod answers;
mod leaves;
mod python;
mod vectors;
