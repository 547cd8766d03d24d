//! What is signed of all shards together: the top checkpoint.
//!
//! ```text
//! example.org/ledger                                   the name of the signing keys
//! shards 16                                            how many the store has
//! sealed 1763754000000000                              when, in microseconds since 1970-01-01T00:00:00Z
//! 0 1042 CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=  shard, size and root: a line for each, from 0 without a gap
//! 1 0 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=
//! …
//! ```
//!
//! A signed note (see [`crate::note`]) whose text is these lines, each with a newline at its end; numbers are decimal without
//! leading zeros, roots base64. So one signature binds every event of every shard, and who keeps a top checkpoint can be
//! shown any event in it with an inclusion proof, and any later one with a consistency proof for each shard.
//!
//! It is a list and not a tree over the shards' checkpoints, because a list needs no proofs of its own: at most 1,024 lines
//! (75 KB) against one more kind of proof in everything that checks. And it is no `tlog-checkpoint`: trees of as many leaves
//! as there are shards do not continue each other, which two checkpoints of one origin must. The second line has a word where
//! a checkpoint has its size, so neither passes for the other.
//!
//! Of each shard, whoever signs must never sign less than before, nor anything that does not continue it. When it was sealed
//! is the word of whoever signs; events carry times of their own.

use std::{fmt, str::FromStr};

use skyriff_domain::{ShardCount, ShardId};

use crate::{
    Checkpoint,
    key::{KeyName, KnownKeys},
    note::{NoteError, SignedNote},
    tree::Head,
};

/// Size and root of every shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopCheckpoint {
    ledger: KeyName,
    sealed_at_us: i64,
    heads: Vec<Head>,
}

/// A text is not a top checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a top checkpoint is a name, a number of shards, a time, and a line for each shard")]
pub struct NotATopCheckpoint;

/// A top checkpoint that is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// No known key signed it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is something else, or names another ledger than the keys that signed it.
    #[error(transparent)]
    Form(#[from] NotATopCheckpoint),
}

impl TopCheckpoint {
    /// Of shard 0, 1, 2 … the heads, as they were at a time, in microseconds since 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// [`NotATopCheckpoint`], when no store has so many shards.
    pub fn new(ledger: KeyName, sealed_at_us: i64, heads: Vec<Head>) -> Result<Self, NotATopCheckpoint> {
        let shards = u16::try_from(heads.len()).ok().and_then(ShardCount::new);
        shards.map(|_| Self { ledger, sealed_at_us, heads }).ok_or(NotATopCheckpoint)
    }

    /// The top checkpoint in a note, signed by a known key that has its name.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub fn open(note: &SignedNote, known: &KnownKeys) -> Result<Self, NotOpened> {
        let opened = note.open(known)?;
        let top: Self = opened.text.parse()?;
        let is_ours = opened.signed_by.iter().any(|key| *key.name() == top.ledger);
        if is_ours { Ok(top) } else { Err(NotATopCheckpoint.into()) }
    }

    /// Whose ledger: the name of the keys that sign it.
    pub fn ledger(&self) -> &KeyName {
        &self.ledger
    }

    /// When it was sealed, in microseconds since 1970-01-01T00:00:00Z.
    pub fn sealed_at_us(&self) -> i64 {
        self.sealed_at_us
    }

    /// How far a shard is; nothing when there is no such shard.
    pub fn head(&self, shard: ShardId) -> Option<Head> {
        self.heads.get(usize::from(shard.0)).copied()
    }

    /// How far every shard is.
    pub fn heads(&self) -> impl Iterator<Item = (ShardId, Head)> {
        (0..).map(ShardId).zip(self.heads.iter().copied())
    }

    /// The checkpoints of the shards that this one is over.
    pub fn checkpoints(&self) -> impl Iterator<Item = Checkpoint> {
        self.heads().map(|(shard, head)| Checkpoint::of_shard(&self.ledger, shard, head))
    }
}

/// The text that is signed.
impl fmt::Display for TopCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nshards {}\nsealed {}", self.ledger, self.heads.len(), self.sealed_at_us)?;
        self.heads().try_for_each(|(shard, head)| writeln!(f, "{shard} {} {}", head.size, head.root))
    }
}

impl FromStr for TopCheckpoint {
    type Err = NotATopCheckpoint;

    /// Only of a text as [`fmt::Display`] writes it.
    fn from_str(text: &str) -> Result<Self, NotATopCheckpoint> {
        let read = || {
            let mut lines = text.lines();
            let ledger = lines.next()?.parse().ok()?;
            lines.next()?.strip_prefix("shards ")?;
            let sealed_at_us = lines.next()?.strip_prefix("sealed ")?.parse().ok()?;
            let heads = lines.map(|line| {
                let (size, root) = line.split_once(' ')?.1.split_once(' ')?;
                Some(Head { size: size.parse().ok()?, root: root.parse().ok()? })
            });
            Self::new(ledger, sealed_at_us, heads.collect::<Option<_>>()?).ok()
        };
        // Writing it again is what checks the counts and the shards' numbers.
        read().filter(|top| top.to_string() == text).ok_or(NotATopCheckpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hash, SignerKey};

    fn top() -> TopCheckpoint {
        let head = |size: u64| Head { size, root: Hash([u8::try_from(size).unwrap(); 32]) };
        let empty = Head { size: 0, root: Hash::of_nothing() };
        let heads = vec![head(3), empty, head(200)];
        TopCheckpoint::new("example.org/ledger".parse().unwrap(), 1_763_754_000_000_000, heads).unwrap()
    }

    const TEXT: &str = "example.org/ledger\n\
        shards 3\n\
        sealed 1763754000000000\n\
        0 3 AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\n\
        1 0 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\
        2 200 yMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMg=\n";

    #[test]
    fn it_is_read_as_it_is_written_and_nothing_else_is_one() {
        assert_eq!((top().to_string().as_str(), TEXT.parse()), (TEXT, Ok(top())));
        assert_eq!((top().head(ShardId(2)).unwrap().size, top().head(ShardId(3))), (200, None));
        let of_shard_1 = "example.org/ledger/1\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
        assert_eq!(top().checkpoints().nth(1).unwrap().to_string(), of_shard_1);
        for (from, to) in [
            ("shards 3", "shards 2"),
            ("shards 3", "shards 03"),
            ("shards 3", "3"),
            ("sealed ", ""),
            ("sealed 1", "sealed +1"),
            ("\n1 0", "\n0 0"),
            ("\n1 0", "\n2 0"),
            ("\n1 0", "\n 1 0"),
            ("\n1 0", "\n1  0"),
            ("\n1 0", "\n1 00"),
            ("\n1 0", "\n\n1 0"),
            ("200 ", "-200 "),
            ("yMg=\n", "yMh=\n"),
            ("yMg=\n", "yMg=\n3 0 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"),
            ("yMg=\n", "yMg=\n\n"),
            ("yMg=\n", "yMg="),
            ("yMg=\n", "yMg= \n"),
            ("yMg=\n", "yMg=\r\n"),
            ("example.org/ledger", ""),
            ("example.org/ledger", "example org"),
        ] {
            let bad = TEXT.replace(from, to);
            assert_eq!(bad.parse::<TopCheckpoint>(), Err(NotATopCheckpoint), "{bad}");
        }
        assert!(TEXT.parse::<Checkpoint>().is_err() && of_shard_1.parse::<TopCheckpoint>().is_err());
        for shards in [0, 1_025] {
            let heads = vec![top().heads[0]; shards];
            assert_eq!(TopCheckpoint::new("x".parse().unwrap(), 0, heads), Err(NotATopCheckpoint));
        }
    }

    #[test]
    fn the_largest_fits_a_note() {
        let head = Head { size: u64::MAX, root: Hash([255; 32]) };
        let name: KeyName = "example.org/ledger".parse().unwrap();
        let key = SignerKey::from_seed(name.clone(), &[1; 32]).unwrap();
        let top = TopCheckpoint::new(name, i64::MIN, vec![head; 1_024]).unwrap();
        let note = SignedNote::sign(top.to_string(), &[&key]).unwrap();
        assert!(note.to_string().len() < 75_000);
        let known = KnownKeys::new([key.verifier().clone()]).unwrap();
        assert_eq!(TopCheckpoint::open(&note.to_string().parse().unwrap(), &known), Ok(top));
    }

    #[test]
    fn a_key_signs_for_its_own_ledger_only() {
        let key = |name: &str| SignerKey::from_seed(name.parse().unwrap(), &[1; 32]).unwrap();
        let (ours, others) = (key("example.org/ledger"), key("example.org/other"));
        let known = KnownKeys::new([ours.verifier().clone(), others.verifier().clone()]).unwrap();
        let open = |key| TopCheckpoint::open(&SignedNote::sign(TEXT.to_owned(), &[key]).unwrap(), &known);
        assert_eq!(open(&ours), Ok(top()));
        assert_eq!(open(&others), Err(NotOpened::Form(NotATopCheckpoint)));
    }
}
