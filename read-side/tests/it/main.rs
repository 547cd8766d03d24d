//! The read side from outside: rows in real databases and their real replica, asked for over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod api;
mod rows;

mod balance;
mod freshness;
mod hot_works;
mod ledger;
mod ledger_entries;
mod likes;
mod tips;
mod withdrawals;
