//! The streams in memory, bounded by bytes, least recently used out first.

use std::collections::HashSet;

use lru::LruCache;
use skyriff_domain::{Event, State, StreamId, Streams};

use crate::event_store::{Loaded, Snapshot};

/// What an entry takes beside its state, in bytes: keys, links, numbers.
const ENTRY_BYTES: usize = 160;
/// A stream that is put out with fewer events than this since its last snapshot (as a part of the usual interval) is
/// not worth one.
const EVICTED_WORTH: i64 = 8;

#[derive(Debug)]
struct Entry {
    sequence: i64,
    snapshot_sequence: i64,
    state: State,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct StreamCache {
    streams: LruCache<StreamId, Entry>,
    bytes: usize,
    /// Changed since the last look for due snapshots.
    changed: HashSet<StreamId>,
}

impl Default for StreamCache {
    fn default() -> Self {
        Self { streams: LruCache::unbounded(), bytes: 0, changed: HashSet::new() }
    }
}

impl StreamCache {
    /// Whether the stream is here; if so it was used now.
    pub(super) fn touch(&mut self, stream: &StreamId) -> bool {
        self.streams.get(stream).is_some()
    }

    pub(super) fn insert(&mut self, loaded: Loaded) {
        let Loaded { stream, sequence, snapshot_sequence, state } = loaded;
        self.forget(&stream);
        let bytes = ENTRY_BYTES + state.weight();
        self.bytes += bytes;
        self.streams.put(stream, Entry { sequence, snapshot_sequence, state, bytes });
    }

    /// The stream's last event; 0 for a stream without any.
    pub(super) fn sequence(&self, stream: &StreamId) -> i64 {
        self.streams.peek(stream).map_or(0, |entry| entry.sequence)
    }

    /// Apply an event that was just decided; its sequence.
    pub(super) fn apply(&mut self, stream: &StreamId, event: &Event) -> i64 {
        let Some(entry) = self.streams.peek_mut(stream) else { return 0 };
        entry.state.apply(event);
        entry.sequence += 1;
        entry.sequence
    }

    /// Apply an event that somebody else appended, if the stream is here and has not seen it.
    pub(super) fn follow(&mut self, stream: &StreamId, sequence: i64, event: &Event) {
        let Some(entry) = self.streams.peek_mut(stream) else { return };
        if sequence == entry.sequence + 1 {
            entry.state.apply(event);
            entry.sequence = sequence;
        } else if sequence > entry.sequence {
            self.forget(stream);
        }
    }

    /// The streams as they are now, to go back to with [`StreamCache::restore`].
    pub(super) fn remember(&self, streams: impl Iterator<Item = StreamId>) -> Vec<(StreamId, i64, State)> {
        let entries = streams.filter_map(|stream| Some((stream, self.streams.peek(&stream)?)));
        entries.map(|(stream, entry)| (stream, entry.sequence, entry.state.clone())).collect()
    }

    pub(super) fn restore(&mut self, streams: Vec<(StreamId, i64, State)>) {
        for (stream, sequence, state) in streams {
            if let Some(entry) = self.streams.peek_mut(&stream) {
                entry.sequence = sequence;
                entry.state = state;
            }
        }
    }

    pub(super) fn forget(&mut self, stream: &StreamId) {
        if let Some(entry) = self.streams.pop(stream) {
            self.bytes -= entry.bytes;
        }
    }

    pub(super) fn clear(&mut self) {
        self.streams.clear();
        self.changed.clear();
        self.bytes = 0;
    }

    /// What was applied to these streams is in the log now.
    pub(super) fn settle(&mut self, changed: &HashSet<StreamId>) {
        for stream in changed {
            if let Some(entry) = self.streams.peek_mut(stream) {
                self.bytes -= entry.bytes;
                entry.bytes = ENTRY_BYTES + entry.state.weight();
                self.bytes += entry.bytes;
            }
        }
        self.changed.extend(changed);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Offer a snapshot of each stream that has gone `every` events without one. A snapshot that is not taken is
    /// offered again with a later event.
    pub(super) fn snapshots_due(&mut self, every: i64, mut offer: impl FnMut(Snapshot) -> bool) {
        for stream in self.changed.drain() {
            if let Some(entry) = self.streams.peek_mut(&stream)
                && entry.sequence - entry.snapshot_sequence >= every
                && offer(Snapshot { stream, sequence: entry.sequence, state: entry.state.clone() })
            {
                entry.snapshot_sequence = entry.sequence;
            }
        }
    }

    /// Put streams out until the rest fits, offering a snapshot of each that is worth one.
    pub(super) fn shrink(&mut self, bytes_max: usize, every: i64, mut offer: impl FnMut(Snapshot) -> bool) {
        while self.bytes > bytes_max {
            let Some((stream, entry)) = self.streams.pop_lru() else { return };
            self.bytes -= entry.bytes;
            if entry.sequence - entry.snapshot_sequence > every / EVICTED_WORTH {
                offer(Snapshot { stream, sequence: entry.sequence, state: entry.state });
            }
        }
    }
}

/// Every stream that a command names is loaded before the command is decided.
impl Streams for StreamCache {
    fn state(&self, stream: &StreamId) -> &State {
        match self.streams.peek(stream) {
            Some(entry) => &entry.state,
            None => unreachable!("the stream was named and is loaded"),
        }
    }
}
