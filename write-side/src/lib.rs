//! Commands in: HTTP takes them ([`http`]), executors decide them in batches ([`executor`]), and the event store
//! appends what was decided ([`event_store`]). What reacts to events with more commands is a process ([`processes`]); who pays
//! withdrawals is in [`payouts`], and which video job is whose turn is the [`video_queue`]'s.
//!
//! ```text
//! request ─▶ http ─▶ Commands ─▶ queue of the shard's executor ─▶ load ─▶ decide ─▶ append ─▶ answer
//! ```

pub mod commands;
pub mod event_store;
pub mod executor;
pub mod http;
pub mod metrics;
pub mod outputs;
pub mod payouts;
pub mod processes;
mod shown_works;
pub mod video_queue;

pub use commands::{CommandSide, Commands, Failure, Fingerprint, Receipt, Recorded, Refused, Submission};
