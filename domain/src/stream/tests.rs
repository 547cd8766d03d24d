use uuid::Uuid;

use super::*;
use crate::Points;

const ID: Uuid = Uuid::from_u128(0xab);
const TEXT: &str = "00000000-0000-0000-0000-0000000000ab";
const ACCOUNT: StreamId = StreamId::PointsAccount(UserId(ID));
const ORDER: StreamId = StreamId::RechargeOrder(OrderId(ID));

/// One event of each kind of stream: where, what, and as stored.
fn events() -> [(StreamId, Event, &'static str, String); 2] {
    let (user, order, points) = (UserId(ID), OrderId(ID), Points::try_from(50).unwrap());
    let recharged = Event::PointsAccount(points_account::Event::Recharged { order, points });
    let credited = Event::RechargeOrder(recharge_order::Event::Credited { user, points });
    [
        (ACCOUNT, recharged, "recharged", format!(r#"{{"recharged":{{"order":"{TEXT}","points":50}}}}"#)),
        (ORDER, credited, "credited", format!(r#"{{"credited":{{"user":"{TEXT}","points":50}}}}"#)),
    ]
}

#[test]
fn a_stream_is_found_under_the_name_that_it_is_stored_under() {
    for (stream, aggregate_type) in [(ACCOUNT, "points_account"), (ORDER, "recharge_order")] {
        assert_eq!((stream.aggregate_type(), stream.aggregate_id().as_str()), (aggregate_type, TEXT));
        assert_eq!(StreamId::decode(aggregate_type, TEXT).unwrap(), stream);
    }
    assert_ne!(ACCOUNT, ORDER, "one id is two streams");
}

#[test]
fn names_that_are_none_of_ours_are_refused() {
    for aggregate_type in ["", "account", "POINTS_ACCOUNT"] {
        let result = StreamId::decode(aggregate_type, TEXT);
        assert!(matches!(result, Err(DecodeError::UnknownAggregate(unknown)) if unknown == aggregate_type));
    }
    for (stream, id) in [(ACCOUNT, ""), (ACCOUNT, "7"), (ORDER, "order-7"), (ORDER, &TEXT[1..])] {
        let result = StreamId::decode(stream.aggregate_type(), id);
        assert!(
            matches!(result, Err(DecodeError::MalformedId { aggregate_type, aggregate_id })
                if aggregate_type == stream.aggregate_type() && aggregate_id == id),
            "{id:?}"
        );
    }
}

#[test]
fn an_event_reads_as_it_was_written() {
    for (stream, event, event_type, payload) in events() {
        assert_eq!((event.event_type(), event.event_version()), (event_type, "1"));
        assert_eq!(event.payload().unwrap(), payload);
        assert_eq!(Event::decode(&stream, event_type, "1", &payload).unwrap(), event);
    }
}

#[test]
fn an_event_that_was_not_written_here_is_refused() {
    type Expected = fn(&DecodeError) -> bool;
    let unknown_version: Expected =
        |error| matches!(error, DecodeError::UnknownVersion { version, .. } if version == "2" || version.is_empty());
    let payload: Expected = |error| matches!(error, DecodeError::Payload { .. });
    let mismatch: Expected =
        |error| matches!(error, DecodeError::TypeMismatch { stored, read, .. } if stored == "other" && read != stored);
    for (stream, _, event_type, stored) in &events() {
        let (.., of_the_other) = &events().into_iter().find(|(other, ..)| other != stream).unwrap();
        let table: [(&str, &str, &str, Expected); 9] = [
            (event_type, "2", stored, unknown_version),
            (event_type, "", stored, unknown_version),
            (event_type, "2", "not even JSON", unknown_version),
            (event_type, "1", "not even JSON", payload),
            (event_type, "1", "{}", payload),
            (event_type, "1", &stored.replace("50", "-50"), payload),
            (event_type, "1", &stored.replace("50", r#"50,"more":1"#), payload),
            (event_type, "1", of_the_other, payload),
            ("other", "1", stored, mismatch),
        ];
        for (event_type, version, stored, expected) in table {
            let error = Event::decode(stream, event_type, version, stored).unwrap_err();
            assert!(expected(&error), "{event_type} {version} {stored}: {error}");
            assert!(error.to_string().starts_with(stream.aggregate_type()), "{error}");
        }
    }
}

#[test]
fn a_state_folds_the_events_of_its_own_kind_only() {
    for (stream, event, ..) in events() {
        let mut state = stream.empty();
        for (_, other, ..) in events().into_iter().filter(|(other, ..)| *other != stream) {
            state.apply(&other);
        }
        assert_eq!(state, stream.empty());
        state.apply(&event);
        assert_ne!(state, stream.empty());
        let snapshot = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&snapshot).unwrap(), state);
    }
}
