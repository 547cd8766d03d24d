//! Which events somebody wants, and the statement that reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::LazyLock,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{AggregateSchema, Event, StreamId, UserId, owner::Owner};
use sqlx::{Postgres, QueryBuilder};

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
    if items.len() > TYPES_MAX {
        return Err(format!("more than {TYPES_MAX} types"));
    }
    items.into_iter().map(str::parse).collect()
}

impl Filter {
    /// Whether it lets everything through, so that whatever is missing in a range is missing in the log.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// The events of these ranges that pass, in the columns that [`super::Exported`] takes and in whatever order they lie
    /// on disk: events of all shards lie between each other there, so whoever wants them shard by shard reads each page of
    /// the table once for every shard. Values are bound; the text is ours.
    pub fn select(&self, ranges: &[Range]) -> QueryBuilder<'static, Postgres> {
        // Shards that are equally far, as those of an export are, are one condition.
        let mut shards: BTreeMap<(i64, i64), Vec<i16>> = BTreeMap::new();
        for range in ranges {
            shards.entry((range.after, range.upto)).or_default().push(range.shard);
        }
        let mut query = QueryBuilder::new(
            "SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
                    occurred_at, recorded_at
             FROM events e WHERE (false",
        );
        for ((after, upto), shards) in shards {
            query.push(" OR e.shard = ANY (").push_bind(shards);
            query.push(") AND e.position > ").push_bind(after);
            query.push(" AND e.position <= ").push_bind(upto);
        }
        query.push(")");
        if !self.types.is_empty() {
            query.push(" AND e.aggregate_type || '.' || e.event_type = ANY (");
            query.push_bind(self.types.iter().map(ToString::to_string).collect::<Vec<_>>()).push(")");
        }
        if !self.aggregates.is_empty() {
            query.push(" AND e.aggregate_type = ANY (");
            query.push_bind(self.aggregates.iter().map(|aggregate| aggregate.0.clone()).collect::<Vec<_>>()).push(")");
        }
        if let Some(user) = self.user {
            owned_by(user, &mut query);
        }
        if let Some(from) = self.from {
            query.push(" AND e.occurred_at >= ").push_bind(from);
        }
        if let Some(to) = self.to {
            query.push(" AND e.occurred_at < ").push_bind(to);
        }
        query
    }
}

/// A stream is the user's by its name, or by what its first event says.
fn owned_by(user: UserId, query: &mut QueryBuilder<'static, Postgres>) {
    let (mut aggregates, mut places) = (Vec::new(), Vec::new());
    for stream in StreamId::one_of_each() {
        match stream.owner() {
            Owner::Named(_) => {}
            Owner::InFirstEvent(found) => {
                for place in found {
                    aggregates.push(stream.aggregate_type());
                    places.push(place.join(","));
                }
            }
        }
    }
    query.push(" AND (e.aggregate_id = ").push_bind(user.to_string());
    query.push(" OR e.aggregate_id LIKE ").push_bind(format!("{user}/%"));
    query.push(" OR EXISTS (SELECT FROM unnest(").push_bind(aggregates).push("::text[], ").push_bind(places);
    query.push(
        "::text[]) AS o (aggregate_type, place)
             JOIN events first ON first.aggregate_type = o.aggregate_type
             WHERE o.aggregate_type = e.aggregate_type AND first.aggregate_id = e.aggregate_id AND first.sequence = 1
               AND first.payload #>> string_to_array(o.place, ',') = ",
    );
    query.push_bind(user.to_string()).push("))");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_back_and_others_are_refused() {
        let types: BTreeSet<EventType> = list("points_account.spent, like.liked").unwrap();
        assert_eq!(types.iter().map(ToString::to_string).collect::<Vec<_>>(), ["like.liked", "points_account.spent"]);
        for bad in ["spent", "points_account.", "points_account.'", "nothing.spent", "points_account.Spent", "like.spent"] {
            assert!(list::<EventType>(bad).is_err(), "{bad}");
        }
        assert!(list::<AggregateType>("points_account,tip").is_ok());
        assert!(list::<AggregateType>("points").is_err());
        assert!(list::<AggregateType>(&"tip,".repeat(101)).is_err());
    }

    #[test]
    fn what_is_asked_never_becomes_text_of_the_statement() {
        let filter = Filter {
            types: list("points_account.spent").unwrap(),
            aggregates: list("tip").unwrap(),
            user: Some(UserId(uuid::Uuid::from_u128(7))),
            from: Some(DateTime::UNIX_EPOCH),
            to: Some(DateTime::UNIX_EPOCH),
        };
        let sql = filter.select(&[Range { shard: 3, after: 7_777, upto: 8_888 }]).into_sql();
        for value in ["spent", "'tip'", "0000007", "1970", "7777", "8888"] {
            assert!(!sql.contains(value), "{value} in {sql}");
        }
    }
}
