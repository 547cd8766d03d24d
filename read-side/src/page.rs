//! Lists in pages, newest first: how many at once, and where the next one begins.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use skyriff_edge::{Kind, Problem};
use utoipa::IntoParams;
use uuid::Uuid;

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 200;

/// Which part of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// How many.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// The last of a page. Opaque to clients: what is in it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) at: DateTime<Utc>,
    pub(crate) id: Uuid,
}

impl Page {
    /// Of a route that has more parameters than these.
    pub(crate) const fn of(limit: Option<i64>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// How many, and after which.
    ///
    /// # Errors
    /// [`Kind::MALFORMED`].
    pub(crate) fn bounds(&self) -> Result<(i64, Cursor), Problem> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Problem::new(&Kind::MALFORMED).detail(format!("limit is 1 to {LIMIT_MAX}")));
        }
        let malformed = || Problem::new(&Kind::MALFORMED).detail("cursor is not one of ours");
        let after = self.cursor.as_deref().map_or(Some(Cursor::end()), Cursor::decode).ok_or_else(malformed)?;
        Ok((limit, after))
    }
}

impl Cursor {
    /// Before every entry there can be: later than any business time, and still a timestamp to Postgres.
    fn end() -> Self {
        let at = DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
        Self { at, id: Uuid::max() }
    }

    pub(crate) fn encode(self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}.{}", self.at.timestamp_micros(), self.id))
    }

    fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (at, id) = text.split_once('.')?;
        let at = DateTime::from_timestamp_micros(at.parse().ok()?)?;
        let is_time = (DateTime::UNIX_EPOCH..=Self::end().at).contains(&at);
        is_time.then_some(Self { at, id: id.parse().ok()? })
    }
}

/// Keep a page of what was found, which is one more when there is a next, and say where that begins.
pub(crate) fn cut<T>(mut found: Vec<T>, limit: i64, cursor: impl Fn(&T) -> Cursor) -> (Vec<T>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| cursor(last).encode());
    (found, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back_and_others_are_refused() {
        let cursor = Cursor { at: DateTime::UNIX_EPOCH, id: Uuid::from_u128(7) };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        for bad in ["", "x", "MC4x", &URL_SAFE_NO_PAD.encode("1.2.3"), &URL_SAFE_NO_PAD.encode("-1.00")] {
            assert_eq!(Cursor::decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_page_says_where_the_next_begins_only_when_there_is_one() {
        let cursor = |id: &u128| Cursor { at: DateTime::UNIX_EPOCH, id: Uuid::from_u128(*id) };
        assert_eq!(cut(vec![3, 2, 1], 2, cursor), (vec![3, 2], Some(cursor(&2).encode())));
        assert_eq!(cut(vec![3, 2], 2, cursor), (vec![3, 2], None));
        assert_eq!(cut(vec![], 2, cursor), (vec![], None));
    }
}
