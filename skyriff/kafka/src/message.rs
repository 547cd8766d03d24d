//! What a message looks like: a CloudEvent 1.0 in Kafka's binary mode.
//!
//! | part | holds |
//! |---|---|
//! | partition | the shard |
//! | key | the stream: `points_account/959de6e1-…` |
//! | value | the event's payload, the very bytes of the log: JSON |
//! | timestamp | when the log recorded it, in milliseconds |
//!
//! | header | holds |
//! |---|---|
//! | `ce_specversion` | `1.0` |
//! | `ce_id` | `shard:position`, unique within the source, the same however often it is sent |
//! | `ce_source` | the store, `/skyriff` unless configured |
//! | `ce_type` | `skyriff.AGGREGATE.EVENT.vVERSION`, the name of its schema |
//! | `ce_subject` | the stream, as in the key |
//! | `ce_time` | when it happened in the world |
//! | `content-type` | `application/json` |
//! | `ce_shard`, `ce_position` | where the log has it: positions of a shard are 1, 2, 3 … |
//! | `ce_streamsequence` | which of the stream's events it is, from 1 |
//! | `ce_recordedtime` | when the log recorded it |
//! | `ce_commandid` | the command that recorded it |
//! | `ce_correlationid` | the request; `ce_causationid`: the event that made a process send the command |
//! | `ce_traceparent` | W3C trace context |
//!
//! The last four are absent where the log has none. Deliberately absent: who sent the command, which is nobody's business
//! outside.
//!
//! Delivery is at least once and in order: take an event when its position is the next after the last that was taken,
//! drop it when it is not later than that, and treat anything else as an alarm.

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::{
    Message,
    message::{Header, Headers, OwnedHeaders},
};
use serde::Deserialize;
use skyriff_domain::{Event, LogPosition, Position, RecordedEvent, ShardId, StreamId};
use skyriff_follow::LogError;

/// Before the name of every CloudEvents attribute.
const PREFIX: &str = "ce_";

/// An event as the log stores it, not decoded: the relay sends what it does not know as well.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct StoredEvent {
    /// Of which shard.
    pub shard: i16,
    /// Where.
    pub position: i64,
    /// Of which kind of stream.
    pub aggregate_type: String,
    /// Of which stream of that kind.
    pub aggregate_id: String,
    /// Which of the stream's events.
    pub sequence: i64,
    /// What happened.
    pub event_type: String,
    /// In which shape.
    pub event_version: String,
    /// The bytes.
    pub payload: String,
    /// Who, and in the course of what: JSON.
    pub metadata: String,
    /// When it happened in the world.
    pub occurred_at: DateTime<Utc>,
    /// When the log recorded it.
    pub recorded_at: DateTime<Utc>,
}

/// Which event it is: what two different events never have in common, and one event always has, in the log and in the
/// topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Where the log has it.
    pub at: LogPosition,
    /// The stream.
    pub stream: String,
    /// The CloudEvents type.
    pub kind: String,
    /// Which of the stream's events.
    pub sequence: i64,
    /// When the log recorded it.
    pub recorded_at: DateTime<Utc>,
}

/// What of the metadata others may see.
#[derive(Default, Deserialize)]
struct Shown {
    command_id: Option<String>,
    request_id: Option<String>,
    causation: Option<String>,
    traceparent: Option<String>,
}

impl StoredEvent {
    /// The stream.
    pub fn key(&self) -> String {
        format!("{}/{}", self.aggregate_type, self.aggregate_id)
    }

    /// Which event it is.
    pub fn identity(&self) -> Identity {
        let shard = ShardId(u16::try_from(self.shard).unwrap_or_default());
        Identity {
            at: LogPosition { shard, position: Position(self.position) },
            stream: self.key(),
            kind: type_of(&self.aggregate_type, &self.event_type, &self.event_version),
            sequence: self.sequence,
            recorded_at: self.recorded_at,
        }
    }

    /// The CloudEvents attributes.
    pub fn headers(&self, source: &str) -> OwnedHeaders {
        let mut headers = OwnedHeaders::new();
        let mut add = |name: &str, value: &str| {
            let name = format!("{PREFIX}{name}");
            headers = std::mem::take(&mut headers).insert(Header { key: &name, value: Some(value) });
        };
        let (shard, position) = (self.shard.to_string(), self.position.to_string());
        add("specversion", "1.0");
        add("id", &format!("{shard}:{position}"));
        add("source", source);
        add("type", &type_of(&self.aggregate_type, &self.event_type, &self.event_version));
        add("subject", &self.key());
        add("time", &time(self.occurred_at));
        add("shard", &shard);
        add("position", &position);
        add("streamsequence", &self.sequence.to_string());
        add("recordedtime", &time(self.recorded_at));
        let shown: Shown = serde_json::from_str(&self.metadata).unwrap_or_default();
        let shown = [
            ("commandid", shown.command_id),
            ("correlationid", shown.request_id),
            ("causationid", shown.causation),
            ("traceparent", shown.traceparent),
        ];
        for (name, value) in shown {
            if let Some(value) = value {
                add(name, &value);
            }
        }
        headers.insert(Header { key: "content-type", value: Some("application/json") })
    }
}

/// The CloudEvents type of an event, which is also the name of its schema.
pub fn type_of(aggregate_type: &str, event_type: &str, version: &str) -> String {
    format!("skyriff.{aggregate_type}.{event_type}.v{version}")
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Where the event of a message is in the log.
///
/// # Errors
/// [`LogError::Malformed`] when the message does not say.
pub fn position(message: &impl Message) -> Result<LogPosition, LogError> {
    let read = Read::of(message)?;
    let position = read.number("position")?;
    let shard: i64 = read.number("shard")?;
    if shard != i64::from(read.shard.0) {
        return Err(read.malformed(format!("it is in partition {} and says shard {shard}", read.shard)));
    }
    Ok(LogPosition { shard: read.shard, position: Position(position) })
}

/// Which event a message has.
///
/// # Errors
/// [`LogError::Malformed`] when the message does not say.
pub fn identity(message: &impl Message) -> Result<Identity, LogError> {
    let at = position(message)?;
    let read = Read::of(message)?;
    let (stream, kind) = (read.text("subject")?.to_owned(), read.text("type")?.to_owned());
    let (sequence, recorded_at) = (read.number("streamsequence")?, read.time("recordedtime")?);
    Ok(Identity { at, stream, kind, sequence, recorded_at })
}

/// The event of a message.
///
/// # Errors
/// [`LogError::Malformed`] and [`LogError::Unreadable`].
pub fn decode(message: &impl Message) -> Result<RecordedEvent, LogError> {
    let at = position(message)?;
    let read = Read::of(message)?;
    let subject = read.text("subject")?;
    let (aggregate_type, aggregate_id) =
        subject.split_once('/').ok_or_else(|| read.malformed(format!("{subject:?} is no stream")))?;
    let named = read.text("type")?;
    let of_type = named.strip_prefix("skyriff.").and_then(|rest| rest.strip_prefix(aggregate_type));
    let (event_type, version) = of_type
        .and_then(|rest| rest.strip_prefix('.')?.rsplit_once(".v"))
        .ok_or_else(|| read.malformed(format!("{named:?} is no type of {aggregate_type}")))?;
    let payload = message.payload().and_then(|payload| std::str::from_utf8(payload).ok());
    let payload = payload.ok_or_else(|| read.malformed("it has no payload of text".to_owned()))?;

    let unreadable = |source| LogError::Unreadable { at, source };
    let stream = StreamId::decode(aggregate_type, aggregate_id).map_err(unreadable)?;
    let event = Event::decode(&stream, event_type, version, payload).map_err(unreadable)?;
    let (sequence, occurred_at, recorded_at) =
        (read.number("streamsequence")?, read.time("time")?, read.time("recordedtime")?);
    Ok(RecordedEvent { at, stream, sequence, event, occurred_at, recorded_at })
}

struct Read<'a, M: Message> {
    shard: ShardId,
    offset: i64,
    headers: Option<&'a M::Headers>,
}

impl<'a, M: Message> Read<'a, M> {
    fn of(message: &'a M) -> Result<Self, LogError> {
        let shard = ShardId(u16::try_from(message.partition()).unwrap_or(u16::MAX));
        let read = Self { shard, offset: message.offset(), headers: message.headers() };
        match read.text("specversion")? {
            "1.0" => Ok(read),
            other => Err(read.malformed(format!("ce_specversion is {other:?}, not 1.0"))),
        }
    }

    fn malformed(&self, why: String) -> LogError {
        LogError::Malformed { shard: self.shard, why: format!("at offset {} of its partition {why}", self.offset) }
    }

    fn text(&self, name: &str) -> Result<&'a str, LogError> {
        let is_it = |header: &Header<'a, &'a [u8]>| header.key.strip_prefix(PREFIX) == Some(name);
        let header = self.headers.and_then(|headers| headers.iter().find(is_it));
        let text = header.and_then(|header| std::str::from_utf8(header.value?).ok());
        text.ok_or_else(|| self.malformed(format!("there is no header {PREFIX}{name}")))
    }

    fn number(&self, name: &str) -> Result<i64, LogError> {
        let text = self.text(name)?;
        text.parse().map_err(|_| self.malformed(format!("{PREFIX}{name} is {text:?}, not a number")))
    }

    fn time(&self, name: &str) -> Result<DateTime<Utc>, LogError> {
        let text = self.text(name)?;
        text.parse().map_err(|_| self.malformed(format!("{PREFIX}{name} is {text:?}, not a time")))
    }
}

#[cfg(test)]
mod tests;
