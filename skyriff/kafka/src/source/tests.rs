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
    Feed { buffer: (100..).zip(positions).map(arrived).collect(), ..Feed::default() }
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

/// Offsets may be those of a topic that was lost and made anew: what looks like a gap is none when read from its place.
#[test]
fn a_gap_is_believed_when_it_is_met_again_from_a_place_that_was_looked_for() {
    let after = |position: i64| BTreeMap::from([(SHARD, Position(position))]);
    let with = |state: &mut State, positions: &[i64]| {
        let positions: Vec<_> = positions.iter().copied().map(Some).collect();
        state.feeds.insert(SHARD, feed(&positions));
        state.is_misplaced = false;
    };
    let mut state = State::default();
    with(&mut state, &[5, 6, 8]);
    // What comes before it is applied all the same.
    let read = state.read_after(&after(5), 10).remove(&SHARD).unwrap();
    assert_eq!(read.events, [event(6)]);
    assert!(read.stopped_by.is_none() && state.is_misplaced);

    with(&mut state, &[6, 8]);
    let read = state.read_after(&after(6), 10).remove(&SHARD).unwrap();
    assert!(matches!(read.stopped_by, Some(LogError::Gap { .. })) && !state.is_misplaced);

    // Another one may be none again.
    with(&mut state, &[8, 10]);
    assert_eq!(state.read_after(&after(7), 10)[&SHARD].events, [event(8)]);
    assert!(state.is_misplaced);
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

/// Of all sixteen shards, each some way into the topic, on a cluster that nobody reaches.
fn out_of_reach() -> Shared {
    // A port that was free a moment ago, and that nobody listens on.
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let shards: Vec<_> = (0..16).map(ShardId).collect();
    let checkpoints = shards.iter().map(|shard| (*shard, Position(5_000))).collect();
    Shared {
        settings: Settings::new(&nobody.to_string()),
        group: "group".to_owned(),
        shards,
        state: Mutex::new(State { checkpoints, ..State::default() }),
        more: Notify::new(),
        stop: CancellationToken::new(),
    }
}

#[test]
fn without_a_broker_the_search_for_where_to_go_on_ends_with_its_first_failure_and_at_once_when_told_to_stop() {
    let shared = out_of_reach();
    let all = list(&shared, shared.shards.iter().copied()).unwrap();
    let beginnings = |starts: BTreeMap<ShardId, (Offset, Position)>| {
        assert!(starts.values().all(|start| *start == (Offset::Beginning, Position(5_000))), "{starts:?}");
        starts.len()
    };
    let started = std::time::Instant::now();
    assert_eq!(beginnings(shared.starts(&all, &TopicPartitionList::new())), 16);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}: as long as one look or two, not as sixteen");

    shared.stop.cancel();
    let started = std::time::Instant::now();
    assert_eq!(beginnings(shared.starts(&all, &TopicPartitionList::new())), 16);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}
