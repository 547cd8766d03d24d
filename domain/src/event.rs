//! How a decision is kept: an event with its place, its times, and who caused it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{CommandId, Event, LogPosition, StreamId};

/// Who caused an event, and in the course of what. Stored as a flat JSON object of strings, which is what the stock
/// cqrs-es repository reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The command that recorded it.
    pub command_id: CommandId,
    /// Who sent the command: `user:…`, `service:…`.
    pub actor: String,
    /// The HTTP request.
    pub request_id: String,
    /// The event that made a process send the command; absent when a person or another system did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation: Option<String>,
    /// W3C trace context of the request, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// From where the request came: the network of its address, as in `203.0.113.0/24`; absent when none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// An event as the log has it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedEvent {
    /// Where it is.
    pub at: LogPosition,
    /// Of which stream.
    pub stream: StreamId,
    /// Which of the stream's events, from 1.
    pub sequence: i64,
    /// What happened.
    pub event: Event,
    /// When it happened in the world.
    pub occurred_at: DateTime<Utc>,
    /// When the database recorded it.
    pub recorded_at: DateTime<Utc>,
}
