//! A part of the entries in the order of either time, from every database, one page at a time.

use std::cmp::Reverse;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use skyriff_domain::{Position, ShardId};
use sqlx::{FromRow, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    ledger::{ANSWER_MAX, Positions, balance::Of},
    page::{self, Place},
    replicas::{FreshParts, QueryEverywhere},
    work::{moment, numbers},
};

/// Which of the two times.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Axis {
    /// When it happened.
    #[default]
    Occurred,
    /// When it was recorded.
    Recorded,
}

/// Which comes first.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// The newest.
    #[default]
    Newest,
    /// The oldest.
    Oldest,
}

/// As the table has it.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Row {
    pub(crate) shard: i16,
    pub(crate) position: i64,
    pub(crate) line: i16,
    pub(crate) user_id: Option<Uuid>,
    pub(crate) account: String,
    pub(crate) amount: i64,
    pub(crate) event_type: String,
    pub(crate) reference: Option<String>,
    pub(crate) occurred_at: DateTime<Utc>,
    pub(crate) recorded_at: DateTime<Utc>,
}

impl Row {
    pub(crate) fn place(&self, axis: Axis) -> EntryPlace {
        let at = match axis {
            Axis::Occurred => self.occurred_at,
            Axis::Recorded => self.recorded_at,
        };
        EntryPlace { at, shard: self.shard, position: self.position, line: self.line }
    }
}

/// Where an entry is among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryPlace {
    pub(crate) at: DateTime<Utc>,
    pub(crate) shard: i16,
    pub(crate) position: i64,
    pub(crate) line: i16,
}

impl EntryPlace {
    /// Before the first.
    pub(crate) fn start(order: Order) -> Self {
        match order {
            Order::Newest => Self { at: page::latest(), shard: i16::MAX, position: i64::MAX, line: i16::MAX },
            Order::Oldest => Self { at: page::earliest(), shard: 0, position: 0, line: 0 },
        }
    }
}

impl Place for EntryPlace {
    fn text(&self) -> String {
        let Self { at, shard, position, line } = self;
        format!("{}.{shard}.{position}.{line}", at.timestamp_micros())
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let at = page::time(parts.next()?)?;
        let (shard, position) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let line = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { at, shard, position, line })
    }
}

/// What several databases have, in one order.
pub(crate) fn merge(parts: Vec<Vec<Row>>, axis: Axis, order: Order) -> Vec<Row> {
    let mut rows: Vec<_> = parts.into_iter().flatten().collect();
    match order {
        Order::Newest => rows.sort_by_key(|row| Reverse(row.place(axis))),
        Order::Oldest => rows.sort_by_key(|row| row.place(axis)),
    }
    rows
}

/// A page of entries.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) of: Of,
    pub(crate) axis: Axis,
    pub(crate) order: Order,
    /// At this time or later.
    pub(crate) from: Option<DateTime<Utc>>,
    /// Before this time.
    pub(crate) to: Option<DateTime<Utc>>,
    pub(crate) after: Option<EntryPlace>,
    /// What was recorded by then.
    pub(crate) known_at: Option<DateTime<Utc>>,
    /// No entries beyond these positions.
    pub(crate) upto: Option<Positions>,
    pub(crate) limit: i64,
}

impl Listing {
    /// The first and the last moment that there can be an entry of, which leaves partitions out.
    fn span(&self, after: EntryPlace) -> (DateTime<Utc>, DateTime<Utc>) {
        let first = self.from.unwrap_or(page::earliest());
        let last = self.to.map_or(page::latest(), |to| to - TimeDelta::microseconds(1));
        match self.order {
            Order::Newest => (first, last.min(after.at)),
            Order::Oldest => (first.max(after.at), last),
        }
    }

    /// The names in it are our own. Both forms have the same parameters; one does without the user.
    fn sql(&self) -> String {
        let column = match self.axis {
            Axis::Occurred => "occurred_at",
            Axis::Recorded => "recorded_at",
        };
        let (direction, beyond) = match self.order {
            Order::Newest => ("DESC", "<"),
            Order::Oldest => ("ASC", ">"),
        };
        // A user's entries are in one shard, and their index does without it.
        let order = |with_shard: bool| {
            let columns = [column, "shard", "position", "line"].into_iter();
            let columns = columns.filter(|name| with_shard || *name != "shard");
            columns.map(|name| format!("{name} {direction}")).collect::<Vec<_>>().join(", ")
        };
        let wanted = format!(
            "shard = ANY ($2) AND position <= ($3::bigint[])[array_position($2, shard)]
             AND {column} >= $4 AND {column} <= $5 AND ({column}, shard, position, line) {beyond} ($6, $7, $8, $9)
             AND recorded_at <= coalesce($10, 'infinity')"
        );
        match self.of {
            Of::User(..) => format!(
                "SELECT * FROM ledger_entries
                 WHERE user_id = $12 AND account = coalesce(($1::text[])[1], account) AND {wanted}
                 ORDER BY {} LIMIT $11",
                order(false)
            ),
            Of::Account(_) | Of::Everything => format!(
                "SELECT e.* FROM unnest($1::text[]) AS a (account) CROSS JOIN LATERAL (
                     SELECT * FROM ledger_entries WHERE account = a.account AND {wanted} ORDER BY {order} LIMIT $11
                 ) e WHERE $12::uuid IS NULL ORDER BY {order} LIMIT $11",
                order = order(true)
            ),
        }
    }
}

impl QueryEverywhere for Listing {
    type Rows = Vec<Row>;

    const ANSWER_MAX: std::time::Duration = ANSWER_MAX;
    const IS_ASKED_ONCE: bool = true;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Vec<Row>>> {
        let mut moment = moment(pool).await?;
        let positions = crate::ledger::positions(&mut moment, shards).await?;
        let (user, accounts) = match &self.of {
            Of::User(user, account) => (Some(user.0), account.iter().cloned().collect()),
            of @ (Of::Account(_) | Of::Everything) => (None, of.accounts(&mut moment).await?),
        };
        let last = |shard: &ShardId| match &self.upto {
            None => i64::MAX,
            Some(upto) => upto.get(shard).copied().unwrap_or(Position::START).0,
        };
        let after = self.after.unwrap_or(EntryPlace::start(self.order));
        let (first_at, last_at) = self.span(after);
        let sql = self.sql();
        let rows = sqlx::query_as(&sql)
            .bind(accounts)
            .bind(numbers(shards))
            .bind(shards.iter().map(last).collect::<Vec<_>>())
            .bind(first_at)
            .bind(last_at)
            .bind(after.at)
            .bind(after.shard)
            .bind(after.position)
            .bind(after.line)
            .bind(self.known_at)
            .bind(self.limit)
            .bind(user)
            .fetch_all(&mut *moment)
            .await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_back_and_others_are_refused() {
        let place = EntryPlace { at: DateTime::UNIX_EPOCH, shard: 3, position: 7, line: 2 };
        assert_eq!(EntryPlace::decode(&place.encode()), Some(place));
        for bad in ["", "1.2.3", "1.2.3.4.5", "a.1.1.1", "1.99999.1.1", "9223372036854775807.1.1.1"] {
            assert_eq!(EntryPlace::read(bad), None, "{bad}");
        }
    }
}
