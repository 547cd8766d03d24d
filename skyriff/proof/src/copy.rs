//! Rows as Postgres sends them with `COPY (SELECT …) TO STDOUT (FORMAT binary)`.
//!
//! Of each row how many columns it has (2 bytes), and of each column its length (4 bytes) and its bytes: no number or time is
//! written as text on one side to be read on the other, and the text of the JSON is what is stored.

use skyriff_domain::{LogPosition, Position, ShardId};

use crate::EventRow;

/// What is sent before the first row: a signature, flags, and the length of what follows them, which is nothing.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What is sent after the last row, where the number of columns would be.
const TRAILER: [u8; 2] = [0xff; 2];
/// The epoch of Postgres' timestamps, 2000-01-01, in microseconds of Unix time.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// The columns of the table `events`, as they are selected.
pub const COLUMNS: &str = "shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version, payload, \
                           metadata, occurred_at, recorded_at";

/// The row in a message of `COPY`; none in its beginning and its end.
pub fn row(message: &[u8]) -> Option<&[u8]> {
    let message = message.strip_prefix(HEADER).unwrap_or(message);
    (!message.is_empty() && message != TRAILER).then_some(message)
}

/// Where the event of a row is, without looking at the rest of it. Nothing when that is no row of [`COLUMNS`].
pub fn at(row: &[u8]) -> Option<LogPosition> {
    Fields::of(row)?.at()
}

/// When the event of a row was recorded, in microseconds of Unix time, likewise: it is in the last column.
pub fn recorded_at_us(row: &[u8]) -> Option<i64> {
    let (_, last) = row.split_last_chunk::<12>()?;
    Fields(last).time()
}

/// A row of [`COLUMNS`], in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns<'r> {
    /// Where it is in the log.
    pub at: LogPosition,
    /// The kind of its stream.
    pub aggregate_type: &'r str,
    /// The name of its stream.
    pub aggregate_id: &'r str,
    /// Where in its stream: 1, 2, 3 ….
    pub sequence: i64,
    /// What happened.
    pub event_type: &'r str,
    /// In which form it is written.
    pub event_version: &'r str,
    /// The text of the JSON, as it was written.
    pub payload: &'r str,
    /// Likewise.
    pub metadata: &'r str,
    /// When it happened, in microseconds of Unix time.
    pub occurred_at_us: i64,
    /// When it was recorded, likewise.
    pub recorded_at_us: i64,
}

impl<'r> Columns<'r> {
    /// Nothing when the row has other columns, or a time that no clock shows (`infinity`).
    pub fn parse(row: &'r [u8]) -> Option<Self> {
        let mut fields = Fields::of(row)?;
        let columns = Self {
            at: fields.at()?,
            aggregate_type: fields.text()?,
            aggregate_id: fields.text()?,
            sequence: i64::from_be_bytes(fields.number()?),
            event_type: fields.text()?,
            event_version: fields.text()?,
            payload: fields.text()?,
            metadata: fields.text()?,
            occurred_at_us: fields.time()?,
            recorded_at_us: fields.time()?,
        };
        fields.0.is_empty().then_some(columns)
    }
}

impl<'r> From<Columns<'r>> for EventRow<'r> {
    fn from(columns: Columns<'r>) -> Self {
        Self {
            shard: columns.at.shard,
            position: columns.at.position,
            aggregate_type: columns.aggregate_type.into(),
            aggregate_id: columns.aggregate_id.into(),
            sequence: columns.sequence,
            event_type: columns.event_type.into(),
            event_version: columns.event_version.into(),
            payload: columns.payload.into(),
            metadata: columns.metadata.into(),
            occurred_at_us: columns.occurred_at_us,
            recorded_at_us: columns.recorded_at_us,
        }
    }
}

/// What is left of a row.
struct Fields<'r>(&'r [u8]);

impl<'r> Fields<'r> {
    fn of(row: &'r [u8]) -> Option<Self> {
        Some(Self(row.split_first_chunk::<2>()?.1))
    }

    fn next(&mut self) -> Option<&'r [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        // A null has the length -1, which is longer than any row.
        let (field, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        self.0 = rest;
        Some(field)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.next()?.try_into().ok()
    }

    fn text(&mut self) -> Option<&'r str> {
        str::from_utf8(self.next()?).ok()
    }

    fn time(&mut self) -> Option<i64> {
        i64::from_be_bytes(self.number()?).checked_add(POSTGRES_EPOCH_US)
    }

    fn at(&mut self) -> Option<LogPosition> {
        let shard = ShardId(u16::from_be_bytes(self.number()?));
        Some(LogPosition { shard, position: Position(i64::from_be_bytes(self.number()?)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    #[test]
    fn a_row_is_what_copy_sends_and_nothing_less_or_more() {
        let fields = [
            field(&3_u16.to_be_bytes()),
            field(&42_i64.to_be_bytes()),
            field(b"points_account"),
            field(b"id"),
            field(&7_i64.to_be_bytes()),
            field(b"checked_in"),
            field(b"1"),
            field(b"{ }"),
            field("{\"ü\": 1}".as_bytes()),
            field(&1_i64.to_be_bytes()),
            field(&(-POSTGRES_EPOCH_US).to_be_bytes()),
        ];
        let row = [&11_u16.to_be_bytes()[..], &fields.concat()].concat();
        let parsed = EventRow::from(Columns::parse(&row).unwrap());
        assert_eq!((at(&row), recorded_at_us(&row)), (Some(parsed.at()), Some(parsed.recorded_at_us)));
        assert_eq!((parsed.at().to_string().as_str(), parsed.sequence), ("3:42", 7));
        assert_eq!((&*parsed.payload, &*parsed.metadata), ("{ }", "{\"ü\": 1}"));
        assert_eq!((parsed.occurred_at_us, parsed.recorded_at_us), (POSTGRES_EPOCH_US + 1, 0));
        // A leaf has the same lengths before the same bytes, but for the two times.
        assert_eq!(parsed.entry().unwrap()[1..row.len() - 1 - 24], row[2..row.len() - 24]);
        for end in 0..row.len() {
            assert_eq!(Columns::parse(&row[..end]), None);
        }
        assert_eq!(Columns::parse(&[&row[..], &[0]].concat()), None);
        let infinite = [&row[..row.len() - 8], &i64::MAX.to_be_bytes()].concat();
        assert_eq!(Columns::parse(&infinite), None);
        assert_eq!(
            (super::row(&[HEADER, &row].concat()), super::row(HEADER), super::row(&TRAILER)),
            (Some(&row[..]), None, None)
        );
    }
}
