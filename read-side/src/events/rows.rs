//! Rows of the log, as they were sent and not yet looked at.

use std::collections::{BTreeMap, VecDeque};

use skyriff_domain::{LogPosition, ShardId};
use skyriff_proof::copy::{self, Columns};

/// The rows of several shards.
pub type ByShard = BTreeMap<ShardId, Rows>;

/// A little more than what most rows have, in bytes.
const USUAL_BYTES: usize = 448;

/// What is kept of the rows of one shard, one after the other in one piece of memory, which is there to be used again:
/// asking the system for new memory takes longer than copying the rows into some that is there.
#[derive(Debug, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    places: VecDeque<Place>,
    is_out_of_order: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    at: LogPosition,
    start: usize,
    end: usize,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Row<'r> {
    /// Where the event is.
    pub at: LogPosition,
    /// As Postgres has sent it.
    pub bytes: &'r [u8],
}

/// The row has other columns than the log's, or a time that no clock shows (`infinity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the event log has another form")]
pub struct OtherForm;

impl<'r> Row<'r> {
    /// What one message of `COPY` has; nothing for its beginning and its end.
    pub(super) fn in_message(message: &'r [u8]) -> Result<Option<Self>, OtherForm> {
        let Some(bytes) = copy::row(message) else { return Ok(None) };
        Ok(Some(Self { at: copy::at(bytes).ok_or(OtherForm)?, bytes }))
    }

    /// In microseconds of Unix time.
    pub(super) fn recorded_at_us(self) -> Result<i64, OtherForm> {
        copy::recorded_at_us(self.bytes).ok_or(OtherForm)
    }

    pub(super) fn columns(self) -> Result<Columns<'r>, OtherForm> {
        Columns::parse(self.bytes).ok_or(OtherForm)
    }
}

impl Rows {
    /// Add it to the end, wherever the event is.
    pub(super) fn push(&mut self, row: Row<'_>) {
        self.is_out_of_order |= self.places.back().is_some_and(|last| row.at.position < last.at.position);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(row.bytes);
        self.places.push_back(Place { at: row.at, start, end: self.bytes.len() });
    }

    /// Have memory for so many rows of the usual length, and for an eighth more when it is not there: what grows later is
    /// copied, into memory that the system has to clear before.
    pub(super) fn reserve(&mut self, rows: usize) {
        let bytes = rows.saturating_mul(USUAL_BYTES);
        if self.bytes.capacity() - self.bytes.len() < bytes {
            self.bytes.reserve_exact(bytes.saturating_add(bytes / 8));
        }
        if self.places.capacity() - self.places.len() < rows {
            self.places.reserve_exact(rows.saturating_add(rows / 8));
        }
    }

    /// Rows lie on disk as they were appended, but for places that were free there: order them by position.
    pub(super) fn order(&mut self) {
        if std::mem::take(&mut self.is_out_of_order) {
            self.places.make_contiguous().sort_by_key(|place| place.at.position);
        }
    }

    /// Take in what comes after these, and leave the memory that is not needed.
    pub(super) fn append(&mut self, later: &mut Self) {
        if self.is_empty() {
            std::mem::swap(self, later);
        } else {
            self.forget_the_taken();
            let moved = self.bytes.len();
            self.bytes.append(&mut later.bytes);
            let places = later.places.drain(..);
            self.places.extend(places.map(|Place { at, start, end }| Place {
                at,
                start: start + moved,
                end: end + moved,
            }));
        }
        later.clear();
    }

    /// Whoever is never without any rows would otherwise keep all that it ever had.
    fn forget_the_taken(&mut self) {
        let taken = self.places.iter().map(|place| place.start).min().unwrap_or(self.bytes.len());
        self.bytes.drain(..taken);
        for place in &mut self.places {
            (place.start, place.end) = (place.start - taken, place.end - taken);
        }
    }

    /// None is left, but for their memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
        self.is_out_of_order = false;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.places.iter().map(|place| self.row(*place))
    }

    pub(super) fn first(&self) -> Option<Row<'_>> {
        self.places.front().map(|place| self.row(*place))
    }

    pub(super) fn pop_first(&mut self) -> Option<Row<'_>> {
        let place = self.places.pop_front()?;
        Some(self.row(place))
    }

    fn row(&self, Place { at, start, end }: Place) -> Row<'_> {
        Row { at, bytes: self.bytes.get(start..end).unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use skyriff_domain::Position;

    use super::*;

    fn push(rows: &mut Rows, at: LogPosition) {
        rows.push(Row { at, bytes: format!("row {}", at.position).as_bytes() });
    }

    fn rows(positions: &[i64]) -> Rows {
        let mut rows = Rows::default();
        for position in positions {
            let at = LogPosition { shard: ShardId(3), position: Position(*position) };
            push(&mut rows, at);
        }
        rows
    }

    fn texts(rows: &Rows) -> Vec<String> {
        rows.iter().map(|row| format!("{}: {}", row.at, String::from_utf8_lossy(row.bytes))).collect()
    }

    #[test]
    fn rows_come_in_the_order_of_their_positions_however_they_arrive() {
        let mut found = rows(&[1, 3, 2]);
        found.order();
        assert_eq!(texts(&found), ["3:1: row 1", "3:2: row 2", "3:3: row 3"]);
        assert_eq!(found.pop_first().map(|row| row.bytes.to_vec()), Some(b"row 1".to_vec()));
        let mut later = rows(&[4, 5]);
        found.append(&mut later);
        assert_eq!(texts(&found), ["3:2: row 2", "3:3: row 3", "3:4: row 4", "3:5: row 5"]);
        assert!(later.is_empty());
    }

    #[test]
    fn what_was_taken_is_forgotten_although_there_always_is_more() {
        let mut found = rows(&[0]);
        for position in 1..1_000 {
            found.append(&mut rows(&[position]));
            assert_eq!(
                found.pop_first().map(|row| row.bytes.to_vec()),
                Some(format!("row {}", position - 1).into_bytes())
            );
        }
        assert!(found.len() == 1 && found.bytes.len() < 50, "{} bytes", found.bytes.len());
    }

    #[test]
    fn memory_is_used_again() {
        let mut found = Rows::default();
        let mut memory = rows(&[1, 2, 3]);
        let place = memory.bytes.as_ptr();
        found.append(&mut memory);
        assert_eq!((found.bytes.as_ptr(), found.len(), memory.len()), (place, 3, 0));
        while found.pop_first().is_some() {}
        push(&mut memory, LogPosition { shard: ShardId(3), position: Position(4) });
        found.append(&mut memory);
        assert_eq!(
            (texts(&found), memory.bytes.as_ptr(), memory.bytes.len()),
            (vec!["3:4: row 4".to_owned()], place, 0)
        );
    }
}
