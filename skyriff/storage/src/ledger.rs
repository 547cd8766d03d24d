//! What the ledger's seals are called: tiles and signed checkpoints, below a folder of their own.
//!
//! ```text
//! ledger/<shard>/tile/…                    a tile, as skyriff-proof names it
//! ledger/seals/<millions>/<thousands>/<n>  seal 1, 2, 3 …: 1234567 is 000001/234/567
//! ledger/hours/<day>/<hour>                the last seal of an hour: 2026-11-21/22
//! ledger/probes/<number>                   nothing: whether the storage keeps what is there
//! ```
//!
//! Architecture invariant: as with outputs, a name is made of its parts and never passed on as it came in. No folder is both
//! this one and one of outputs: theirs have two hexadecimal digits.

use std::fmt;

use chrono::{NaiveDate, NaiveDateTime, Timelike};
use skyriff_domain::ShardId;
use skyriff_proof::Tile;

/// The folder below which all of it is.
pub(crate) const ROOT: &str = "ledger";
/// The last seal that has a name: one a second for thirty thousand years.
pub const SEAL_MAX: u64 = 999_999_999_999;

/// The name of what the ledger keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerName {
    /// A tile of the tree of a shard.
    Tile(ShardId, Tile),
    /// The n-th seal, counted from 1.
    Seal(u64),
    /// The last seal of an hour; what is below an hour in the time does not count.
    Hour(NaiveDateTime),
    /// To try what the storage does.
    Probe(u64),
}

/// A place with names in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerFolder {
    /// Of folders of thousands of seals.
    Seals,
    /// Of folders of a thousand seals: the millions.
    Millions(u64),
    /// Of seals: the thousands, the millions among them.
    Thousands(u64),
    /// Of folders of days.
    Hours,
    /// Of hours.
    Day(NaiveDate),
    /// Of what a tile was before it was full.
    Partials(ShardId, Tile),
}

impl fmt::Display for LedgerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tile(shard, tile) => write!(f, "{shard}/{tile}"),
            Self::Seal(number) => write!(f, "{}/{:03}", LedgerFolder::Thousands(number / 1_000), number % 1_000),
            Self::Hour(time) => write!(f, "{}/{:02}", LedgerFolder::Day(time.date()), time.hour()),
            Self::Probe(number) => write!(f, "probes/{number}"),
        }
    }
}

impl fmt::Display for LedgerFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seals => f.write_str("seals"),
            Self::Millions(millions) => write!(f, "seals/{millions:06}"),
            Self::Thousands(thousands) => write!(f, "seals/{:06}/{:03}", thousands / 1_000, thousands % 1_000),
            Self::Hours => f.write_str("hours"),
            Self::Day(day) => write!(f, "hours/{day}"),
            Self::Partials(shard, tile) => write!(f, "{shard}/{}.p", tile.full()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_what_they_name_and_lead_nowhere_else() {
        let time: NaiveDateTime = "2026-11-21T22:34:47".parse().unwrap();
        let tile = |path: &str| path.parse::<Tile>().unwrap();
        for (name, text) in [
            (LedgerName::Seal(1), "seals/000000/000/001"),
            (LedgerName::Seal(1_234_567), "seals/000001/234/567"),
            (LedgerName::Seal(SEAL_MAX), "seals/999999/999/999"),
            (LedgerName::Hour(time), "hours/2026-11-21/22"),
            (LedgerName::Tile(ShardId(3), tile("tile/0/x001/234.p/5")), "3/tile/0/x001/234.p/5"),
            (LedgerName::Probe(7), "probes/7"),
        ] {
            assert_eq!(name.to_string(), text);
        }
        for (folder, text) in [
            (LedgerFolder::Millions(1), "seals/000001"),
            (LedgerFolder::Thousands(1_234), "seals/000001/234"),
            (LedgerFolder::Day(time.date()), "hours/2026-11-21"),
            (LedgerFolder::Partials(ShardId(3), tile("tile/0/x001/234.p/5")), "3/tile/0/x001/234.p"),
        ] {
            assert_eq!(folder.to_string(), text);
        }
    }
}
