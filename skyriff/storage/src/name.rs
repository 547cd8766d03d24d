//! What an object is called: `{job}.{attempt}.{extension}`, and nothing else.
//!
//! Architecture invariant: a name is made of its parts and never passed on as it came in, so no name can lead out of the
//! storage, whatever it was read from.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use skyriff_domain::JobId;
use uuid::Uuid;

/// What is in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// Video: H.264 and AAC in MP4.
    Mp4,
    /// Sound: AAC in MP4.
    M4a,
    /// Sound: MP3.
    Mp3,
    /// Nothing to watch or listen to: what load runs make.
    Noop,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mp4, Self::M4a, Self::Mp3, Self::Noop];

    /// The end of the name.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::M4a => "m4a",
            Self::Mp3 => "mp3",
            Self::Noop => "noop",
        }
    }

    /// The media type that it is served with.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Mp4 => "video/mp4",
            Self::M4a => "audio/mp4",
            Self::Mp3 => "audio/mpeg",
            Self::Noop => "application/octet-stream",
        }
    }
}

/// The name of an object: what one attempt of one job made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName {
    /// Whose output it is.
    pub job: JobId,
    /// Which attempt made it.
    pub attempt: u32,
    /// What it is.
    pub format: Format,
}

/// A text is not the name of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an object is called JOB.ATTEMPT.EXTENSION")]
pub struct NotAName;

impl ObjectName {
    /// The folder that it is in: the end of the job's id, which spreads evenly however the ids were made.
    pub(crate) fn folder(&self) -> String {
        let [.., last] = self.job.0.into_bytes();
        format!("{last:02x}")
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.job.0.hyphenated(), self.attempt, self.format.extension())
    }
}

impl FromStr for ObjectName {
    type Err = NotAName;

    /// Only of a name as [`fmt::Display`] writes it: every object has one name.
    fn from_str(text: &str) -> Result<Self, NotAName> {
        let mut parts = text.split('.');
        let (Some(job), Some(attempt), Some(extension), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAName);
        };
        let format = Format::ALL.into_iter().find(|format| format.extension() == extension).ok_or(NotAName)?;
        let job = JobId(Uuid::try_parse(job).map_err(|_| NotAName)?);
        let name = Self { job, attempt: attempt.parse().map_err(|_| NotAName)?, format };
        if name.to_string() == text { Ok(name) } else { Err(NotAName) }
    }
}

impl TryFrom<String> for ObjectName {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_nothing_else_is_a_name() {
        let good = "959de6e1-d9ef-5a29-a884-f19f971b9c27.3.mp4";
        let name: ObjectName = good.parse().unwrap();
        assert_eq!((name.attempt, name.format, name.to_string()), (3, Format::Mp4, good.to_owned()));
        assert_eq!(name.folder(), "27");
        for bad in [
            "",
            ".",
            "..",
            "../../etc/passwd",
            "/etc/passwd",
            "959de6e1-d9ef-5a29-a884-f19f971b9c27.3.mp4/..",
            "../959de6e1-d9ef-5a29-a884-f19f971b9c27.3.mp4",
            "959DE6E1-d9ef-5a29-a884-f19f971b9c27.3.mp4",
            "959de6e1d9ef5a29a884f19f971b9c27.3.mp4",
            "{959de6e1-d9ef-5a29-a884-f19f971b9c27}.3.mp4",
            "959de6e1-d9ef-5a29-a884-f19f971b9c27.03.mp4",
            "959de6e1-d9ef-5a29-a884-f19f971b9c27.+3.mp4",
            "959de6e1-d9ef-5a29-a884-f19f971b9c27.3.exe",
            "959de6e1-d9ef-5a29-a884-f19f971b9c27.3.mp4.mp4",
            "959de6e1-d9ef-5a29-a884-f19f971b9c27.3.mp4#1",
            "959de6e1-d9ef-5a29-a884-f19f971b9c27.3.mp4\0",
        ] {
            assert_eq!(bad.parse::<ObjectName>(), Err(NotAName), "{bad}");
        }
    }
}
