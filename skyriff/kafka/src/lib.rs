//! The log on Kafka: what a message looks like ([`message`], and [`schema`] for others), the topic ([`topic`]), sending the log to it ([`relay`]),
//! and following it from there ([`source`]).
//!
//! ```text
//! events ──relay, in log order──▶ topic: partition = shard ──source──▶ the same followers, the same checkpoints
//! ```
//!
//! Positions decide everything. A message may come twice, and offsets may be lost: who follows drops what it has seen by
//! position, and stops at a gap. So the relay only has to send everything at least once and in order, nobody needs
//! Kafka's transactions, and committed offsets are no more than a hint.

pub mod message;
pub mod schema;
pub mod settings;
pub mod topic;

pub mod relay;
pub mod source;

mod context;
mod probe;

#[cfg(feature = "testing")]
pub mod testing;

pub use relay::Relay;
pub use settings::Settings;
pub use source::KafkaSource;
pub use topic::TopicError;
