use chrono::TimeZone;
use rdkafka::{Timestamp, message::OwnedMessage};

use super::*;

fn stored() -> StoredEvent {
    StoredEvent {
        shard: 9,
        position: 42,
        aggregate_type: "points_account".to_owned(),
        aggregate_id: "00000000-0000-0000-0000-000000000001".to_owned(),
        sequence: 7,
        event_type: "earned".to_owned(),
        event_version: "1".to_owned(),
        payload: r#"{"earned":{"credited":{"income":5},"reason":"task"}}"#.to_owned(),
        metadata: r#"{"command_id":"c","actor":"user:1","request_id":"r","causation":"9:41"}"#.to_owned(),
        occurred_at: Utc.timestamp_micros(1_768_478_400_123_456).unwrap(),
        recorded_at: Utc.timestamp_micros(1_768_478_401_000_000).unwrap(),
    }
}

fn message(event: &StoredEvent, headers: OwnedHeaders) -> OwnedMessage {
    let (payload, key) = (event.payload.clone().into_bytes(), event.key().into_bytes());
    OwnedMessage::new(Some(payload), Some(key), "t".to_owned(), Timestamp::NotAvailable, 9, 100, Some(headers))
}

fn headers(event: &StoredEvent) -> Vec<(String, String)> {
    let headers = event.headers(crate::settings::SOURCE);
    let text = |header: Header<'_, &[u8]>| {
        (header.key.to_owned(), std::str::from_utf8(header.value.unwrap()).unwrap().to_owned())
    };
    headers.iter().map(text).collect()
}

/// Others read this: a change of it is a new topic.
#[test]
fn a_message_keeps_its_shape() {
    let event = stored();
    assert_eq!(event.key(), "points_account/00000000-0000-0000-0000-000000000001");
    let expected = [
        ("ce_specversion", "1.0"),
        ("ce_id", "9:42"),
        ("ce_source", "/skyriff"),
        ("ce_type", "skyriff.points_account.earned.v1"),
        ("ce_subject", "points_account/00000000-0000-0000-0000-000000000001"),
        ("ce_time", "2026-01-15T12:00:00.123456Z"),
        ("ce_shard", "9"),
        ("ce_position", "42"),
        ("ce_streamsequence", "7"),
        ("ce_recordedtime", "2026-01-15T12:00:01.000000Z"),
        ("ce_commandid", "c"),
        ("ce_correlationid", "r"),
        ("ce_causationid", "9:41"),
        ("content-type", "application/json"),
    ];
    assert_eq!(headers(&event), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn a_message_says_which_event_it_is() {
    let event = stored();
    let identity = identity(&message(&event, event.headers("/skyriff"))).unwrap();
    assert_eq!(identity, event.identity());
    for other in [
        StoredEvent { recorded_at: event.occurred_at, ..event.clone() },
        StoredEvent { aggregate_id: "00000000-0000-0000-0000-000000000002".to_owned(), ..event.clone() },
        StoredEvent { sequence: 8, ..event.clone() },
        StoredEvent { position: 43, ..event.clone() },
        StoredEvent { event_type: "spent".to_owned(), ..event.clone() },
    ] {
        assert_ne!(identity, other.identity());
    }
}

#[test]
fn what_is_sent_is_read_back_as_the_log_has_it() {
    let event = stored();
    let read = decode(&message(&event, event.headers("/elsewhere"))).unwrap();
    let stream = StreamId::decode(&event.aggregate_type, &event.aggregate_id).unwrap();
    let expected = RecordedEvent {
        at: LogPosition { shard: ShardId(9), position: Position(42) },
        event: Event::decode(&stream, "earned", "1", &event.payload).unwrap(),
        stream,
        sequence: 7,
        occurred_at: event.occurred_at,
        recorded_at: event.recorded_at,
    };
    assert_eq!(read, expected);
}

#[test]
fn a_message_that_is_not_ours_says_where_it_is_and_why() {
    let table: [(&str, &str, &str); 8] = [
        ("ce_specversion", "2.0", "ce_specversion"),
        ("ce_position", "x", "ce_position is \"x\""),
        ("ce_shard", "8", "says shard 8"),
        ("ce_type", "skyriff.recharge_order.earned.v1", "no type of points_account"),
        ("ce_type", "skyriff.points_account.earned.v9", "9:42"),
        ("ce_subject", "points_account", "no stream"),
        ("ce_subject", "unheard_of/1", "ce_type"),
        ("ce_time", "noon", "ce_time is \"noon\""),
    ];
    for (name, value, why) in table {
        let event = stored();
        let changed = headers(&event).into_iter().fold(OwnedHeaders::new(), |changed, (key, before)| {
            let value = if key == name { value.to_owned() } else { before };
            changed.insert(Header { key: &key, value: Some(&value) })
        });
        let error = decode(&message(&event, changed)).unwrap_err();
        assert_eq!(error.shard(), Some(ShardId(9)), "{error}");
        // The type is looked at with the subject at hand, so either may be named.
        let said = error.to_string();
        assert!(said.contains(why) || why == "ce_type", "{name}={value}: {said}");
    }
    let none = decode(&message(&stored(), OwnedHeaders::new())).unwrap_err();
    assert!(none.to_string().contains("offset 100") && none.to_string().contains("ce_specversion"), "{none}");
}
