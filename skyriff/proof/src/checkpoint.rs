//! What is signed of one shard: a checkpoint, as C2SP `tlog-checkpoint` has it.
//!
//! ```text
//! example.org/ledger/3                             origin: which log
//! 1042                                             size: how many events it has
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=     root of the tree over them
//! ```
//!
//! The origin of a shard is the name of the signing keys, a slash, and the shard's number. Where the ledger's address is
//! `https://` and that name, the shard's tiles are below the origin, as `tlog-tiles` asks for.
//!
//! What is signed must always be a continuation of what was signed before. That is for whoever signs to see to, and for
//! auditors to check.

use std::{fmt, str::FromStr};

use skyriff_domain::ShardId;

use crate::{
    key::{KeyName, KnownKeys},
    note::{NoteError, SignedNote},
    tree::Head,
};

/// Which log: a line that is not empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(String);

/// Size and root of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose.
    pub origin: Origin,
    /// How far.
    pub head: Head,
    /// Further lines, which the specification allows and advises against. Ours have none.
    pub extensions: Vec<String>,
}

/// A text is not a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a checkpoint is an origin, a size and a root, each on a line")]
pub struct NotACheckpoint;

/// A checkpoint that is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// No known key signed it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is something else.
    #[error(transparent)]
    Form(#[from] NotACheckpoint),
    /// It is that of another log.
    #[error("this is the checkpoint of {found}, and not of {expected}")]
    Origin {
        /// What it says.
        found: Origin,
        /// What was asked for.
        expected: Origin,
    },
}

impl Origin {
    /// The log of a shard.
    pub fn of_shard(ledger: &KeyName, shard: ShardId) -> Self {
        Self(format!("{ledger}/{shard}"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = NotACheckpoint;

    fn from_str(origin: &str) -> Result<Self, NotACheckpoint> {
        let is_one = !origin.is_empty() && !origin.contains(char::is_control);
        is_one.then(|| Self(origin.to_owned())).ok_or(NotACheckpoint)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Checkpoint {
    /// What is signed of a shard.
    pub fn of_shard(ledger: &KeyName, shard: ShardId, head: Head) -> Self {
        Self { origin: Origin::of_shard(ledger, shard), head, extensions: Vec::new() }
    }

    /// The checkpoint in a note that one of the log's keys has signed. The known keys must be those of this log only: any of
    /// them will do.
    ///
    /// # Errors
    /// [`NotOpened`].
    pub fn open(note: &SignedNote, origin: &Origin, known: &KnownKeys) -> Result<Self, NotOpened> {
        let checkpoint: Self = note.open(known)?.text.parse()?;
        if checkpoint.origin == *origin {
            Ok(checkpoint)
        } else {
            Err(NotOpened::Origin { found: checkpoint.origin, expected: origin.clone() })
        }
    }
}

/// The text that is signed.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.head.size, self.head.root)?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Checkpoint {
    type Err = NotACheckpoint;

    /// Only of a text as [`fmt::Display`] writes it.
    fn from_str(text: &str) -> Result<Self, NotACheckpoint> {
        let mut lines = text.strip_suffix('\n').ok_or(NotACheckpoint)?.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(NotACheckpoint);
        };
        let size = size.parse().map_err(|_| NotACheckpoint)?;
        let root = root.parse().map_err(|_| NotACheckpoint)?;
        let extensions = lines.map(|line| if line.is_empty() { Err(NotACheckpoint) } else { Ok(line.to_owned()) });
        let extensions = extensions.collect::<Result<_, _>>()?;
        let checkpoint = Self { origin: origin.parse()?, head: Head { size, root }, extensions };
        if checkpoint.to_string() == text { Ok(checkpoint) } else { Err(NotACheckpoint) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    const TEXT: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn a_checkpoint_is_read_as_it_is_written_and_nothing_else_is_one() {
        let checkpoint: Checkpoint = TEXT.parse().unwrap();
        assert_eq!((checkpoint.head.size, checkpoint.to_string().as_str()), (20_852_163, TEXT));
        let extended = format!("{TEXT}one more line\n");
        assert_eq!(extended.parse::<Checkpoint>().unwrap().extensions, ["one more line"]);
        let empty = Head { size: 0, root: Hash::of_nothing() };
        let ours = Checkpoint::of_shard(&"example.org/ledger".parse().unwrap(), ShardId(3), empty);
        let written = "example.org/ledger/3\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
        assert_eq!((ours.to_string().as_str(), written.parse()), (written, Ok(ours.clone())));
        for bad in [
            "",
            "\n",
            &TEXT[..TEXT.len() - 1],
            &TEXT[1 + TEXT.find('\n').unwrap()..],
            &format!("\n{TEXT}"),
            &format!("{TEXT}\n"),
            &format!("{TEXT}\nafter an empty line\n"),
            &TEXT.replace("208", "0208"),
            &TEXT.replace("208", "+208"),
            &TEXT.replace("208", "-208"),
            &TEXT.replace("208", " 208"),
            &TEXT.replace("208", "9999999999999999999999208"),
            &TEXT.replace("xq2I=", "xq2J="),
            &TEXT.replace("xq2I=", "xq2I"),
            &TEXT.replace("CsUY", ""),
            &TEXT.replace("example.com/behind-the-sofa", ""),
            &TEXT.replace('\n', "\r\n"),
        ] {
            assert_eq!(bad.parse::<Checkpoint>(), Err(NotACheckpoint), "{bad:?}");
        }
    }

    /// Published by sum.golang.org, whose key is known everywhere: the example of the specification, under its real origin.
    #[test]
    fn a_checkpoint_of_a_log_that_runs_is_believed() {
        let note = "go.sum database tree\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— sum.golang.org \
            Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";
        let known = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8".parse().unwrap();
        let origin = "go.sum database tree".parse().unwrap();
        let checkpoint = Checkpoint::open(&note.parse().unwrap(), &origin, &known).unwrap();
        assert_eq!(checkpoint.head.size, 20_852_163);
        let other = "go.sum database".parse().unwrap();
        let refused = Checkpoint::open(&note.parse().unwrap(), &other, &known).unwrap_err();
        assert_eq!(refused, NotOpened::Origin { found: origin.clone(), expected: other });
        let forged = note.replace("20852163", "20852164").parse().unwrap();
        assert!(matches!(Checkpoint::open(&forged, &origin, &known), Err(NotOpened::Note(NoteError::Forged { .. }))));
        let nobody = KnownKeys::default();
        let refused = Checkpoint::open(&note.parse().unwrap(), &origin, &nobody);
        assert_eq!(refused, Err(NotOpened::Note(NoteError::Unknown)));
    }
}
