//! Lists in pages: how many at once, and where the next one begins.

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

/// Where in a list something is. Opaque to clients: what is in it may change.
pub(crate) trait Place: Sized {
    /// As it is read back.
    fn text(&self) -> String;

    /// Only what the database can be asked for.
    fn read(text: &str) -> Option<Self>;

    /// As clients get it.
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.text())
    }

    /// None when it is not one of ours.
    fn decode(cursor: &str) -> Option<Self> {
        Self::read(&String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?)
    }
}

/// A place by a time and an id, newest first.
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
        let (limit, after) = bounds(self.limit, self.cursor.as_deref())?;
        Ok((limit, after.unwrap_or(Cursor::end())))
    }

    /// How many, and after which place, if not from the beginning.
    ///
    /// # Errors
    /// [`Kind::MALFORMED`].
    pub(crate) fn bounds_of<P: Place>(&self) -> Result<(i64, Option<P>), Problem> {
        bounds(self.limit, self.cursor.as_deref())
    }
}

/// How many, and after which place; for lists that have more to ask for.
///
/// # Errors
/// [`Kind::MALFORMED`].
pub(crate) fn bounds<P: Place>(limit: Option<i64>, cursor: Option<&str>) -> Result<(i64, Option<P>), Problem> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::new(&Kind::MALFORMED).detail(format!("limit is 1 to {LIMIT_MAX}")));
    }
    let malformed = || Problem::new(&Kind::MALFORMED).detail("cursor is not one of ours");
    let after = cursor.map(|cursor| P::decode(cursor).ok_or_else(malformed)).transpose()?;
    Ok((limit, after))
}

/// Later than any business time, and still a timestamp to Postgres.
pub(crate) fn latest() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Earlier than any business time, and a timestamp to Postgres.
pub(crate) fn earliest() -> DateTime<Utc> {
    DateTime::from_timestamp(-62_135_596_800, 0).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// A time in a place: only such times are a timestamp to Postgres as well.
pub(crate) fn time(micros: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
    (earliest()..=latest()).contains(&time).then_some(time)
}

impl Cursor {
    /// Before every entry there can be.
    fn end() -> Self {
        Self { at: latest(), id: Uuid::max() }
    }
}

impl Place for Cursor {
    fn text(&self) -> String {
        format!("{}.{}", self.at.timestamp_micros(), self.id)
    }

    fn read(text: &str) -> Option<Self> {
        let (at, id) = text.split_once('.')?;
        let at = time(at).filter(|at| *at >= DateTime::UNIX_EPOCH)?;
        Some(Self { at, id: id.parse().ok()? })
    }
}

/// Keep a page of what was found, which is one more when there is a next, and say where that begins.
pub(crate) fn cut<T, P: Place>(mut found: Vec<T>, limit: i64, place: impl Fn(&T) -> P) -> (Vec<T>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| place(last).encode());
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
