//! Projections from outside: events in a real log, rows in real read models.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod books;
mod log;

mod anew;
mod exactly_once;
mod ledger;
mod likes;
mod months;
mod placement;
mod rows;
mod standstill;
mod tips;
mod video_jobs;
mod withdrawals;
mod works;
