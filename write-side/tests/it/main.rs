//! The write side from outside: commands handed in, or sent over HTTP, and what a real Postgres then has.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod hostile_provider;
mod proxy;
mod steps;
mod store;
mod studio;

mod bulk;
mod crash_between_steps;
mod housekeeping;
mod http;
mod idempotency;
mod likes;
mod log_positions;
mod long_reads;
mod model;
mod outcome_unknown;
mod overload;
mod payment_files;
mod payouts;
mod refusals;
mod security;
mod snapshot_damage;
mod snapshots;
mod stock;
mod tips;
mod tips_between_shards;
mod together;
mod two_nodes;
mod video_queue;
mod videos;
mod withdrawals;
