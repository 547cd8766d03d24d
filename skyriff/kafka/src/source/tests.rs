use chrono::{DateTime, Utc};
use skyriff_domain::{Event, StreamId};

use super::*;

const SHARD: ShardId = ShardId(3);

fn event(position: i64) -> RecordedEvent {
    let stream = StreamId::decode("points_account", "00000000-0000-0000-0000-000000000001").unwrap();
    let event =
        Event::decode(&stream, "earned", "1", r#"{"earned":{"credited":{"income":5},"reason":"task"}}"#).unwrap();
    let at = LogPosition { shard: SHARD, position: Position(position) };
    let when = DateTime::<Utc>::from_timestamp(position, 0).unwrap();
    RecordedEvent { at, stream, sequence: position, event, occurred_at: when, recorded_at: when }
}

/// Messages at offsets 100, 101 …: a position, or none for what is no event.
fn feed(positions: &[Option<i64>]) -> Feed {
    let rejected = || Err(Rejected { position: None, why: "no header".to_owned() });
    let arrived = |(offset, position): (i64, &Option<i64>)| Arrived {
        offset,
        event: position.map_or_else(rejected, |position| Ok(event(position))),
    };
    let next_offset = 100 + i64::try_from(positions.len()).unwrap();
    Feed { buffer: (100..).zip(positions).map(arrived).collect(), next_offset, ..Feed::default() }
}

/// What came, after which position, what is read, and what it stops at.
type Row = (Vec<Option<i64>>, i64, &'static [i64], Option<&'static str>);

#[test]
fn positions_decide_what_is_read() {
    let ours = |positions: &[i64]| positions.iter().copied().map(Some).collect::<Vec<_>>();
    let table: [Row; 9] = [
        (ours(&[1, 2, 3]), 0, &[1, 2, 3], None),
        (ours(&[1, 2, 3]), 2, &[3], None),
        (ours(&[1, 2, 3]), 3, &[], None),
        // A relay was started again and has repeated itself.
        (ours(&[5, 6, 7, 6, 7, 8]), 5, &[6, 7, 8], None),
        // Two relays at once, each in order.
        (ours(&[5, 6, 5, 7, 6, 8, 7, 8, 9]), 5, &[6, 7, 8, 9], None),
        (ours(&[5, 7, 8]), 5, &[], Some("a gap: 7 comes after 5")),
        (ours(&[6, 7, 9]), 5, &[6, 7], Some("a gap: 9 comes after 7")),
        (vec![Some(6), None, Some(7)], 5, &[6], Some("no header")),
        // Somebody else has been past it.
        (vec![Some(6), None, Some(7), Some(8)], 7, &[8], None),
    ];
    for (positions, after, expected, stopped_by) in table {
        let mut feed = feed(&positions);
        feed.drop_until(Position(after));
        let read = feed.read(SHARD, Position(after), 1_000);
        assert_eq!(read.events, expected.iter().copied().map(event).collect::<Vec<_>>(), "{positions:?} after {after}");
        let said = read.stopped_by.map(|error| error.to_string());
        match stopped_by {
            Some(why) => assert!(said.as_ref().is_some_and(|said| said.contains(why)), "{positions:?}: {said:?}"),
            None => assert_eq!(said, None, "{positions:?} after {after}"),
        }
    }
}

#[test]
fn what_is_read_stays_until_it_is_done_and_is_then_committed() {
    let mut feed = feed(&[Some(1), Some(2), Some(3)]);
    for _ in 0..2 {
        let read = feed.read(SHARD, Position(0), 2);
        assert_eq!(read.events, [event(1), event(2)]);
    }
    assert_eq!((feed.buffer.len(), feed.done_offset), (3, None));
    feed.drop_until(Position(2));
    assert_eq!((feed.buffer.len(), feed.done_offset), (1, Some(102)));
}

#[test]
fn how_far_behind_counts_what_waits_and_what_is_still_to_come() {
    let mut feed = feed(&[Some(8), Some(9), Some(10)]);
    feed.end_offset = feed.next_offset + 5;
    let behind = feed.behind(Position(8));
    assert_eq!(behind, Behind { events: 7, oldest_recorded_at: Some(event(9).recorded_at) });
    feed.end_offset = 0;
    assert_eq!(feed.behind(Position(10)), Behind::default());
}
