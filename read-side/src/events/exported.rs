//! An event as it leaves: what is personal is masked, and the rest is passed on as it is stored.
//!
//! Events are not decoded on the way, only cut out of the row: reading many of them costs about as much as Postgres
//! needs to send them. One event of each type is decoded, to ask it which of its members are personal.

use std::{borrow::Cow, io::Write};

use chrono::{Datelike, NaiveDate};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use skyriff_domain::{Event, LogPosition, StreamId, personal::Members, stream::DecodeError};
use skyriff_proof::copy::Columns;

use super::rows::{OtherForm, Row};

const DAY_US: i64 = 86_400_000_000;

/// One event, ready to be written in any format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported<'r> {
    /// Where it is.
    pub at: LogPosition,
    /// As in `aggregate_type`.
    pub aggregate_type: &'r str,
    /// As in `aggregate_id`.
    pub aggregate_id: &'r str,
    /// Which of the stream's events, from 1.
    pub sequence: i64,
    /// As in `event_type`.
    pub event_type: &'r str,
    /// As in `event_version`.
    pub version: &'r str,
    /// When it happened, in microseconds of Unix time.
    pub occurred_at_us: i64,
    /// When it was recorded, in microseconds of Unix time.
    pub recorded_at_us: i64,
    /// In which role its command was sent; not by whom.
    pub actor: Cow<'r, str>,
    /// The command that recorded it.
    pub command_id: Cow<'r, str>,
    /// The event that made a process send the command.
    pub causation: Option<Cow<'r, str>>,
    /// The event's members, as a JSON object on one line; the personal ones are null.
    pub data: Cow<'r, str>,
}

/// A stored event that cannot leave.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It is not one of ours, so nobody knows what of it is personal.
    #[error("the event at {at} cannot be read")]
    Unreadable {
        /// Where.
        at: LogPosition,
        /// Why.
        source: DecodeError,
    },
    /// Its payload or metadata is not the JSON that it should be.
    #[error("the event at {at} is damaged")]
    Damaged {
        /// Where.
        at: LogPosition,
        /// Why.
        source: serde_json::Error,
    },
    /// The row has other columns.
    #[error(transparent)]
    Form(#[from] OtherForm),
}

#[derive(Deserialize)]
struct Metadata<'m> {
    #[serde(borrow)]
    command_id: Cow<'m, str>,
    #[serde(borrow)]
    actor: Cow<'m, str>,
    #[serde(borrow, default)]
    causation: Option<Cow<'m, str>>,
}

/// What is personal, by type of event; asked once for each.
#[derive(Debug, Default)]
pub struct Masks(Vec<Mask>);

#[derive(Debug)]
struct Mask {
    aggregate_type: String,
    event_type: String,
    version: String,
    members: Members,
}

impl Masks {
    fn of(&mut self, event: &Columns<'_>) -> Result<Members, DecodeError> {
        let known = self.0.iter().find(|mask| {
            mask.event_type == event.event_type
                && mask.aggregate_type == event.aggregate_type
                && mask.version == event.event_version
        });
        if let Some(known) = known {
            return Ok(known.members);
        }
        let stream = StreamId::decode(event.aggregate_type, event.aggregate_id)?;
        let members = Event::decode(&stream, event.event_type, event.event_version, event.payload)?.personal();
        self.0.push(Mask {
            aggregate_type: event.aggregate_type.to_owned(),
            event_type: event.event_type.to_owned(),
            version: event.event_version.to_owned(),
            members,
        });
        Ok(members)
    }
}

impl<'r> Exported<'r> {
    /// The event of a row.
    ///
    /// # Errors
    /// [`ExportError`]: an event that is not known cannot be masked, so it does not leave.
    pub fn of(row: Row<'r>, masks: &mut Masks) -> Result<Self, ExportError> {
        let (at, event) = (row.at, row.columns()?);
        let damaged = |source| ExportError::Damaged { at, source };
        let personal = masks.of(&event).map_err(|source| ExportError::Unreadable { at, source })?;
        let metadata: Metadata<'r> = serde_json::from_str(event.metadata).map_err(damaged)?;
        let kind = |actor: &str| actor.bytes().position(|byte| byte == b':').unwrap_or(actor.len());
        Ok(Self {
            at,
            aggregate_type: event.aggregate_type,
            aggregate_id: event.aggregate_id,
            sequence: event.sequence,
            event_type: event.event_type,
            version: event.event_version,
            occurred_at_us: event.occurred_at_us,
            recorded_at_us: event.recorded_at_us,
            actor: match metadata.actor {
                Cow::Borrowed(actor) => Cow::Borrowed(actor.get(..kind(actor)).unwrap_or_default()),
                Cow::Owned(actor) => Cow::Owned(actor.get(..kind(&actor)).unwrap_or_default().to_owned()),
            },
            command_id: metadata.command_id,
            causation: metadata.causation,
            data: data(event.event_type, event.payload, personal).map_err(damaged)?,
        })
    }

    /// As a line of JSON, with its end.
    pub fn write_json_line(&self, out: &mut Vec<u8>) {
        let LogPosition { shard, position } = self.at;
        out.extend_from_slice(b"{\"id\":\"");
        write_number(i64::from(shard.0), out);
        out.push(b':');
        write_number(position.0, out);
        // These are names of ours, or the event would not be known: there is nothing in them to escape.
        out.extend_from_slice(b"\",\"type\":\"");
        out.extend_from_slice(self.aggregate_type.as_bytes());
        out.push(b'.');
        out.extend_from_slice(self.event_type.as_bytes());
        out.extend_from_slice(b"\",\"version\":\"");
        out.extend_from_slice(self.version.as_bytes());
        out.extend_from_slice(b"\",\"shard\":");
        write_number(i64::from(shard.0), out);
        out.extend_from_slice(b",\"position\":");
        write_number(position.0, out);
        out.extend_from_slice(b",\"stream\":\"");
        out.extend_from_slice(self.aggregate_type.as_bytes());
        out.push(b'/');
        escaped(self.aggregate_id, out);
        out.extend_from_slice(b"\",\"sequence\":");
        write_number(self.sequence, out);
        out.extend_from_slice(b",\"occurred_at\":\"");
        write_time(self.occurred_at_us, out);
        out.extend_from_slice(b"\",\"recorded_at\":\"");
        write_time(self.recorded_at_us, out);
        out.extend_from_slice(b"\",\"actor\":\"");
        escaped(&self.actor, out);
        out.extend_from_slice(b"\",\"command_id\":\"");
        escaped(&self.command_id, out);
        if let Some(causation) = &self.causation {
            out.extend_from_slice(b"\",\"causation\":\"");
            escaped(causation, out);
        }
        out.extend_from_slice(b"\",\"data\":");
        out.extend_from_slice(self.data.as_bytes());
        out.extend_from_slice(b"}\n");
    }
}

/// The object below the member that is named after the event. Almost always that is all but the ends of the payload.
fn data<'r>(event_type: &str, payload: &'r str, personal: Members) -> Result<Cow<'r, str>, serde_json::Error> {
    let cut = payload.strip_prefix("{\"").and_then(|rest| rest.strip_prefix(event_type));
    let cut = cut.and_then(|rest| rest.strip_prefix("\":")).and_then(|rest| rest.strip_suffix('}'));
    let object = match cut {
        Some(object) => object,
        None => {
            let members: std::collections::HashMap<Cow<'_, str>, &'r RawValue> = serde_json::from_str(payload)?;
            members.get(event_type).map_or("{}", |object| object.get())
        }
    };
    if personal.is_empty() && !object.as_bytes().contains(&b'\n') {
        return Ok(Cow::Borrowed(object));
    }
    let mut object: Value = serde_json::from_str(object)?;
    for member in personal {
        mask(&mut object, member);
    }
    Ok(Cow::Owned(object.to_string()))
}

/// A member that is not there stays away: that something was left out is no secret, what it said is.
fn mask(object: &mut Value, member: &str) {
    match member.split_once('.') {
        Some((outer, inner)) => object.get_mut(outer).into_iter().for_each(|object| mask(object, inner)),
        None => object.get_mut(member).into_iter().for_each(|value| *value = Value::Null),
    }
}

/// Ids have nothing to escape; what has is escaped.
fn escaped(text: &str, out: &mut Vec<u8>) {
    // Looking at all of them is faster than stopping at the first that has to be escaped, which is hardly ever there.
    if text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\')) {
        out.extend_from_slice(text.as_bytes());
    } else if let Some(inside) = Value::from(text).to_string().get(1..).and_then(|text| text.strip_suffix('"')) {
        out.extend_from_slice(inside.as_bytes());
    }
}

/// A number as text.
pub fn write_number(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// RFC 3339 in UTC with microseconds, as in `2026-01-31T12:00:00.000001Z`.
pub fn write_time(time_us: i64, out: &mut Vec<u8>) {
    let (day, in_day) = (time_us.div_euclid(DAY_US), time_us.rem_euclid(DAY_US));
    write_day(day, out);
    let (seconds, micros) = (in_day / 1_000_000, in_day % 1_000_000);
    let [[h, i], [m, n], [s, t]] = [seconds / 3_600, seconds / 60 % 60, seconds % 60].map(two_digits);
    let [[a, b], [c, d], [e, f]] = [micros / 10_000, micros / 100, micros].map(two_digits);
    out.extend_from_slice(&[b'T', h, i, b':', m, n, b':', s, t, b'.', a, b, c, d, e, f, b'Z']);
}

/// The date of a day counted from 1970-01-01.
pub fn write_day(day: i64, out: &mut Vec<u8>) {
    let date = i32::try_from(day).ok().and_then(NaiveDate::from_epoch_days).unwrap_or(NaiveDate::MAX);
    if !(0..10_000).contains(&date.year()) {
        // Writing to memory does not fail.
        write!(out, "{date}").ok();
        return;
    }
    let year = i64::from(date.year());
    let [[c, e], [y, z]] = [year / 100, year].map(two_digits);
    let [[m, n], [d, f]] = [date.month(), date.day()].map(i64::from).map(two_digits);
    out.extend_from_slice(&[c, e, y, z, b'-', m, n, b'-', d, f]);
}

/// The day of a time, counted from 1970-01-01.
pub const fn day_of(time_us: i64) -> i64 {
    time_us.div_euclid(DAY_US)
}

/// The last two digits of what is not negative.
fn two_digits(number: i64) -> [u8; 2] {
    [number / 10 % 10, number % 10].map(|digit| b'0' + u8::try_from(digit).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn times_are_written_as_others_write_them() {
        for time_us in [0, -1, 1, DAY_US, 1_769_860_800_000_001, -62_135_596_800_000_000, 253_402_300_799_999_999] {
            let mut out = Vec::new();
            write_time(time_us, &mut out);
            let expected =
                DateTime::from_timestamp_micros(time_us).unwrap().format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    fn data_of(event_type: &'static str, payload: &'static str, personal: Members) -> String {
        data(event_type, payload, personal).unwrap().into_owned()
    }

    #[test]
    fn what_is_personal_is_masked_wherever_it_is_and_the_rest_is_as_it_was() {
        let plain = r#"{"spent":{"b":1,"a":"x"}}"#;
        assert_eq!(data_of("spent", plain, &[]), r#"{"b":1,"a":"x"}"#);
        assert_eq!(data_of("spent", "{ \"spent\" :\n {\"a\":\n1} }", &[]), r#"{"a":1}"#);
        let personal = r#"{"failed":{"at":{"name":"x","size":1},"reason":"y"}}"#;
        assert_eq!(
            data_of("failed", personal, &["reason", "at.name", "none"]),
            r#"{"at":{"name":null,"size":1},"reason":null}"#
        );
    }

    #[test]
    fn texts_are_escaped_only_when_they_have_to_be() {
        for text in ["plain", "a\"b", "back\\slash", "line\nend", "ü"] {
            let mut out = Vec::new();
            escaped(text, &mut out);
            assert_eq!(format!("\"{}\"", String::from_utf8(out).unwrap()), Value::from(text).to_string());
        }
    }
}
