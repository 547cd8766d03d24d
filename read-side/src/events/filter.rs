//! Which events somebody wants, and the statement that sends them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::LazyLock,
};

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{AggregateSchema, Event, StreamId, UserId, owner::Owner};
use skyriff_proof::copy::COLUMNS;

/// The most types that one filter may name.
const TYPES_MAX: usize = 100;

/// The events there are, by aggregate. A type that is none would let nothing through, and look like an answer.
static EVENTS: LazyLock<BTreeMap<&str, Vec<String>>> = LazyLock::new(|| {
    let names = |schema: &AggregateSchema| schema.by_type().into_iter().map(|(name, _)| name).collect();
    Event::schemas().iter().map(|schema| (schema.aggregate_type, names(schema))).collect()
});

/// Which events: those that meet everything that is set. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Only these types; empty for all.
    #[serde(default)]
    pub types: BTreeSet<EventType>,
    /// Only events of these kinds of aggregate; empty for all.
    #[serde(default)]
    pub aggregates: BTreeSet<AggregateType>,
    /// Only events of this user's streams.
    #[serde(default)]
    pub user: Option<UserId>,
    /// Only what happened at this time or later.
    #[serde(default)]
    pub from: Option<DateTime<Utc>>,
    /// Only what happened before this time.
    #[serde(default)]
    pub to: Option<DateTime<Utc>>,
}

/// A part of a shard's log: the positions after the first one, up to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Of which shard.
    pub shard: i16,
    /// Not this one.
    pub after: i64,
    /// This one included.
    pub upto: i64,
}

/// A kind of aggregate, as in `aggregate_type`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AggregateType(String);

/// A type of events, written `aggregate.event`, as in `points_account.checked_in`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventType {
    aggregate: AggregateType,
    event: String,
}

impl FromStr for AggregateType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = StreamId::AGGREGATE_TYPES.iter().find(|known| **known == text);
        let all = || StreamId::AGGREGATE_TYPES.join(", ");
        known
            .map(|known| Self((*known).to_owned()))
            .ok_or_else(|| format!("{text:?} is no kind of aggregate; there are {}", all()))
    }
}

impl FromStr for EventType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (aggregate, event) = text
            .split_once('.')
            .ok_or_else(|| format!("{text:?} is not aggregate.event, as in points_account.spent"))?;
        let aggregate: AggregateType = aggregate.parse()?;
        let known = EVENTS.get(aggregate.0.as_str()).map(Vec::as_slice).unwrap_or_default();
        if !known.iter().any(|known| known == event) {
            return Err(format!("{event:?} is no event of {}; there are {}", aggregate.0, known.join(", ")));
        }
        Ok(Self { aggregate, event: event.to_owned() })
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.aggregate.0, self.event)
    }
}

impl TryFrom<String> for AggregateType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for EventType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AggregateType> for String {
    fn from(aggregate: AggregateType) -> Self {
        aggregate.0
    }
}

impl From<EventType> for String {
    fn from(event_type: EventType) -> Self {
        event_type.to_string()
    }
}

/// Several of them, with commas between them.
///
/// # Errors
/// What is wrong with the first that is none.
pub fn list<T: FromStr<Err = String> + Ord>(text: &str) -> Result<BTreeSet<T>, String> {
    let items: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if items.is_empty() {
        return Err("the list is empty; leave it out for everything".to_owned());
    }
    if items.len() > TYPES_MAX {
        return Err(format!("more than {TYPES_MAX} types"));
    }
    items.into_iter().map(str::parse).collect()
}

impl Filter {
    /// Whether anything can pass.
    ///
    /// # Errors
    /// Why nothing can.
    pub fn check(&self) -> Result<(), &'static str> {
        match self.from.zip(self.to) {
            Some((from, to)) if from >= to => Err("from must be before to"),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether it lets everything through, so that whatever is missing in a range is missing in the log.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// The statement that sends the events of these ranges that pass, in the columns that [`super::Row`] takes and in
    /// whatever order they lie on disk: events of all shards lie between each other there, so whoever wants them shard by
    /// shard reads each page of the table once for every shard.
    ///
    /// `COPY` takes no parameters. What is in its text is of types that cannot say anything else: numbers, times, ids, and
    /// names that are known to the code.
    pub(super) fn copy(&self, ranges: &[Range]) -> String {
        let mut conditions = vec![in_ranges(ranges)];
        if !self.types.is_empty() {
            let of_type = |EventType { aggregate, event }: &EventType| format!("('{}', '{event}')", aggregate.0);
            conditions
                .push(format!("(e.aggregate_type, e.event_type) IN ({})", listed(self.types.iter().map(of_type))));
        }
        if !self.aggregates.is_empty() {
            let aggregates = self.aggregates.iter().map(|AggregateType(name)| format!("'{name}'"));
            conditions.push(format!("e.aggregate_type IN ({})", listed(aggregates)));
        }
        conditions.extend(self.user.map(owned_by));
        conditions.extend(self.from.map(|from| format!("e.occurred_at >= {}", time(from))));
        conditions.extend(self.to.map(|to| format!("e.occurred_at < {}", time(to))));
        format!("COPY (SELECT {COLUMNS} FROM events e WHERE {}) TO STDOUT (FORMAT binary)", conditions.join(" AND "))
    }
}

fn in_ranges(ranges: &[Range]) -> String {
    // Shards that are equally far, as those of an export are, are one condition.
    let mut shards: BTreeMap<(i64, i64), Vec<i16>> = BTreeMap::new();
    for range in ranges {
        shards.entry((range.after, range.upto)).or_default().push(range.shard);
    }
    let of_range = |((after, upto), shards): ((i64, i64), Vec<i16>)| {
        let shards = listed(shards.into_iter().map(|shard| shard.to_string()));
        format!(" OR e.shard IN ({shards}) AND e.position > {after} AND e.position <= {upto}")
    };
    let any: String = shards.into_iter().map(of_range).collect();
    format!("(false{any})")
}

/// A stream is the user's by its name, or by what its first event says.
fn owned_by(user: UserId) -> String {
    let first = StreamId::one_of_each().flat_map(|stream| {
        let places = match stream.owner() {
            Owner::Named(_) => &[],
            Owner::InFirstEvent(places) => places,
        };
        places.iter().map(move |place| format!("('{}', '{}')", stream.aggregate_type(), place.join(",")))
    });
    let first = listed(first);
    format!(
        "(e.aggregate_id = '{user}' OR e.aggregate_id LIKE '{user}/%'
          OR EXISTS (SELECT FROM (VALUES {first}) AS o (aggregate_type, place)
                     JOIN events first ON first.aggregate_type = o.aggregate_type
                     WHERE o.aggregate_type = e.aggregate_type AND first.aggregate_id = e.aggregate_id
                       AND first.sequence = 1
                       AND first.payload #>> string_to_array(o.place, ',') = '{user}'))"
    )
}

/// In microseconds, as Postgres keeps it. What is beyond the years that its text has is before or after everything.
fn time(time: DateTime<Utc>) -> String {
    match time.year() {
        ..1 => "'-infinity'".to_owned(),
        1..10_000 => format!("'{}'", time.format("%Y-%m-%dT%H:%M:%S%.6fZ")),
        10_000.. => "'infinity'".to_owned(),
    }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_back_and_others_are_refused() {
        let types: BTreeSet<EventType> = list("points_account.spent, like.liked").unwrap();
        assert_eq!(types.iter().map(ToString::to_string).collect::<Vec<_>>(), ["like.liked", "points_account.spent"]);
        for bad in
            ["spent", "points_account.", "points_account.'", "nothing.spent", "points_account.Spent", "like.spent"]
        {
            assert!(list::<EventType>(bad).is_err(), "{bad}");
        }
        assert!(list::<AggregateType>("points_account,tip").is_ok());
        assert!(list::<AggregateType>("points").is_err());
        assert!(list::<AggregateType>(&"tip,".repeat(101)).is_err());
    }

    #[test]
    fn times_are_those_that_postgres_reads() {
        let at = |text: &str| time(text.parse().unwrap());
        assert_eq!(at("0001-01-01T00:00:00Z"), "'0001-01-01T00:00:00.000000Z'");
        assert_eq!(at("9999-12-31T23:59:59.999999999Z"), "'9999-12-31T23:59:59.999999Z'");
        assert_eq!(
            (time(DateTime::<Utc>::MIN_UTC), time(DateTime::<Utc>::MAX_UTC)),
            ("'-infinity'".into(), "'infinity'".into())
        );
    }

    #[test]
    fn no_stored_filter_brings_text_of_its_own_into_a_statement() {
        for text in ["like.liked') OR ('a'='a", "like.liked;", "points_account'.spent", "like.\u{0}"] {
            let type_of = serde_json::json!({ "types": [text] });
            assert!(serde_json::from_value::<Filter>(type_of).is_err(), "{text}");
            let aggregate = serde_json::json!({ "aggregates": [text] });
            assert!(serde_json::from_value::<Filter>(aggregate).is_err(), "{text}");
        }
    }
}
