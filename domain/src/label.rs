//! Short texts with a form, checked where they enter.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text is not of the form that its type asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// What points are earned, held or spent for: `daily_task`, `video.720p`. 1 to 64 of `a-z 0-9 _ . -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, min_length = 1, max_length = 64, pattern = "^[a-z0-9_.-]+$", example = "daily_task")]
pub struct Label(String);

/// A reason in a person's words: 1 to 200 characters, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, min_length = 1, max_length = 200, example = "goodwill after the outage")]
pub struct Note(String);

/// A text that only whoever has the person's key can read: base64 of what a cipher made of it. 1 to 8,192 characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, min_length = 1, max_length = 8192)]
pub struct Sealed(String);

/// What a payout provider calls something: 1 to 128 printable ASCII characters without spaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, min_length = 1, max_length = 128, pattern = "^[!-~]+$", example = "po_7Hq2")]
pub struct Reference(String);

impl Sealed {
    /// The base64.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Reference {
    /// One of our own, which is well-formed.
    pub(crate) fn of(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Note {
    /// One of our own, which is well-formed.
    pub(crate) fn of(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Sealed {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        let formed = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/-_=".contains(&b));
        if formed && (1..=8_192).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err(Malformed("a sealed text is 1 to 8,192 characters of base64"))
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        if text.bytes().all(|b| b.is_ascii_graphic()) && (1..=128).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err(Malformed("a reference is 1 to 128 printable characters without spaces"))
        }
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        sealed.0
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.0
    }
}

impl Label {
    /// One of our own, which is well-formed.
    pub(crate) fn of(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Label {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        let formed = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b));
        if formed && (1..=64).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err(Malformed("a label is 1 to 64 characters of a-z, 0-9, '_', '.' and '-'"))
        }
    }
}

impl TryFrom<String> for Note {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        let length = text.chars().count();
        if (1..=200).contains(&length) && !text.chars().any(char::is_control) {
            Ok(Self(text))
        } else {
            Err(Malformed("a note is 1 to 200 characters without control characters"))
        }
    }
}

impl FromStr for Label {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        text.to_owned().try_into()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl From<Note> for String {
    fn from(note: Note) -> Self {
        note.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_notes_are_checked_where_they_enter() {
        for good in ["a", "video.720p", "daily_task", &"x".repeat(64)] {
            assert!(Label::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "Video", "a b", "ü", &"x".repeat(65)] {
            assert!(Label::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for good in ["ok", "Grüße, 你好", &"ü".repeat(200)] {
            assert!(Note::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "a\nb", "nul \0", &"ü".repeat(201)] {
            assert!(Note::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
