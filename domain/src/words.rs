//! What somebody says in words of their own. Nobody can tell what is in them, so they are kept sealed.

use serde::{Deserialize, Serialize};

use crate::{Note, Sealed, label::Malformed};

/// A reason or a title: in words of ours, which say nothing about anybody, or in a person's, which are sealed.
///
/// In an event it is two members: `reason` (or `title`), in the clear, and `words`, sealed under the key of the person whom
/// the event is about. Events of before words were sealed have them in the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    clear: Note,
    sealed: Option<Sealed>,
}

/// What stands in the clear where the words are sealed.
const SEALED: &str = "in sealed words";
/// What stands in place of words about somebody who is forgotten.
const NOT_KEPT: &str = "not kept: the person was erased";
/// What stands before a sealed text in a column that may have clear ones too.
const MARK: &str = "sealed:";

impl Words {
    /// In words of ours.
    pub const fn ours(clear: Note) -> Self {
        Self { clear, sealed: None }
    }

    /// In a person's words.
    pub fn sealed(sealed: Sealed) -> Self {
        Self { clear: Note::of(SEALED), sealed: Some(sealed) }
    }

    /// About somebody who is forgotten: the books go on without the person, and what was said of them is not kept.
    pub fn not_kept() -> Self {
        Self::ours(Note::of(NOT_KEPT))
    }

    /// Of an event's two members.
    pub const fn of_members(clear: Note, sealed: Option<Sealed>) -> Self {
        Self { clear, sealed }
    }

    /// Memory beside itself.
    pub fn heap_bytes(&self) -> usize {
        self.clear.as_str().len() + self.sealed.as_ref().map_or(0, |sealed| sealed.as_str().len())
    }

    /// The two members of an event.
    pub fn into_members(self) -> (Note, Option<Sealed>) {
        (self.clear, self.sealed)
    }
}

impl From<Note> for Words {
    fn from(clear: Note) -> Self {
        Self::ours(clear)
    }
}

impl TryFrom<String> for Words {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        Note::try_from(text).map(Self::ours)
    }
}

/// The two members of an event as one column of a table has them.
pub fn to_column(clear: &Note, sealed: Option<&Sealed>) -> String {
    sealed.map_or_else(|| clear.as_str().to_owned(), |sealed| format!("{MARK}{}", sealed.as_str()))
}

/// The sealed text of such a column; none when it is in the clear.
pub fn sealed_in_column(column: &str) -> Option<Sealed> {
    Sealed::try_from(column.strip_prefix(MARK)?.to_owned()).ok()
}

/// Such a column for whoever has no key: that there are words is said, and nothing of them.
pub fn without_sealed(column: String) -> String {
    if sealed_in_column(&column).is_some() { SEALED.to_owned() } else { column }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_says_whether_its_text_is_sealed() {
        let (sealed, clear) = (Sealed::try_from("AQ-x_=".to_owned()).unwrap(), Note::of("goodwill"));
        assert_eq!(to_column(&clear, None), "goodwill");
        assert_eq!(sealed_in_column("goodwill"), None);
        let (shown, words) = Words::sealed(sealed.clone()).into_members();
        let column = to_column(&shown, words.as_ref());
        assert!(!column.contains(shown.as_str()));
        assert_eq!(sealed_in_column(&column), Some(sealed));
        // What somebody wrote before words were sealed.
        assert_eq!(sealed_in_column("sealed: with a kiss"), None);
    }

    /// Kept for ever, as what was written before words were sealed is.
    #[test]
    fn events_with_sealed_words_keep_their_shape() {
        const ID: &str = "00000000-0000-0000-0000-000000000001";
        let cost = r#""cost":{"micros":1,"currency":"usd"}"#;
        let table = [
            (
                "points_account",
                "adjusted",
                r#"{"adjusted":{"direction":"credit","moved":{"paid":5},"reason":"in sealed words","words":"AQ"}}"#
                    .to_owned(),
            ),
            (
                "withdrawal",
                "rejected",
                format!(r#"{{"rejected":{{"reviewer":"{ID}","reason":"in sealed words","words":"AQ"}}}}"#),
            ),
            ("withdrawal", "failed", r#"{"failed":{"reason":"in sealed words","words":"AQ"}}"#.to_owned()),
            (
                "video_job",
                "attempt_failed",
                format!(
                    r#"{{"attempt_failed":{{"attempt":1,"reason":"in sealed words","words":"AQ","retry_at":"2026-01-01T00:00:00Z",{cost}}}}}"#
                ),
            ),
            (
                "video_job",
                "failed",
                format!(
                    r#"{{"failed":{{"attempt":1,"reason":"in sealed words","words":"AQ","retryable":true,{cost}}}}}"#
                ),
            ),
            (
                "work",
                "published",
                format!(
                    r#"{{"published":{{"creator":"{ID}","title":"in sealed words","words":"AQ","visibility":"public"}}}}"#
                ),
            ),
        ];
        for (aggregate, event_type, stored) in table {
            let stream = crate::StreamId::decode(aggregate, ID).unwrap();
            let event = crate::Event::decode(&stream, event_type, "1", &stored).unwrap();
            assert_eq!(event.payload().unwrap(), stored);
            let personal = event.personal();
            assert!(personal.contains(&"words"), "{aggregate}.{event_type}: {personal:?}");
            let clear = stored.replace(r#","words":"AQ""#, "");
            let before = crate::Event::decode(&stream, event_type, "1", &clear).unwrap();
            assert_eq!(before.payload().unwrap(), clear);
        }
    }
}
