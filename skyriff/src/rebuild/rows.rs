//! Rows of one table in two databases that cannot ask each other.
//!
//! Both add up what they have in parts, by a hash of the key. The rows themselves are fetched of a few parts that differ.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::Value;
use sqlx::PgConnection;

/// So many parts, less one: what is fetched is a small part of any table.
const PARTS_MASK: i64 = 4_095;
/// Rows that are told.
const EXAMPLES_MAX: usize = 5;

/// Some rows of a table.
pub struct Rows<'a> {
    pub table: &'static str,
    /// The condition, with `$1`.
    pub of_shards: &'static str,
    pub shards: &'a [i16],
}

/// What two databases have of them.
pub struct Compared {
    pub rows_there: i64,
    pub rows_here: i64,
    /// Some that are not the same, there and here; none when all are.
    pub examples: Vec<(Option<Value>, Option<Value>)>,
}

/// How many rows a part has, and the sum of their hashes.
type Parts = BTreeMap<i64, (i64, String)>;
/// A row by its key: as text, which is what is compared, and to be told.
type Found = BTreeMap<String, (String, Value)>;

impl Rows<'_> {
    /// In the transactions that these connections are in.
    pub async fn compare(&self, there: &mut PgConnection, here: &mut PgConnection) -> Result<Compared> {
        let (of_there, of_here) = (self.parts(there).await?, self.parts(here).await?);
        let count = |parts: &Parts| parts.values().map(|(rows, _)| rows).sum();
        let (rows_there, rows_here) = (count(&of_there), count(&of_here));
        let parts: BTreeSet<_> = of_there.keys().chain(of_here.keys()).copied().collect();
        let differ = parts.into_iter().filter(|part| of_there.get(part) != of_here.get(part));
        let differ: Vec<_> = differ.take(EXAMPLES_MAX).collect();
        let mut examples = Vec::new();
        if !differ.is_empty() {
            let (mut there, mut here) = (self.rows(there, &differ).await?, self.rows(here, &differ).await?);
            let keys: BTreeSet<_> = there.keys().chain(here.keys()).cloned().collect();
            for key in keys {
                let (there, here) = (there.remove(&key), here.remove(&key));
                if there.as_ref().map(|(text, _)| text) != here.as_ref().map(|(text, _)| text) {
                    examples.push((there.map(|(_, row)| row), here.map(|(_, row)| row)));
                }
            }
            examples.truncate(EXAMPLES_MAX);
        }
        Ok(Compared { rows_there, rows_here, examples })
    }

    async fn parts(&self, connection: &mut PgConnection) -> Result<Parts> {
        let Self { table, of_shards, shards } = *self;
        let key = self.key(connection).await?;
        // Names cannot be bound; these come from our own code and the table's own key.
        let parts = format!(
            "SELECT hashtextextended({key}, 0) & $2, count(*), sum(hashtextextended(t::text, 0))::text
             FROM {table} t WHERE {of_shards} GROUP BY 1"
        );
        let parts = sqlx::query_as(&parts).bind(shards).bind(PARTS_MASK).fetch_all(connection).await?;
        Ok(parts.into_iter().map(|(part, rows, sum): (i64, i64, String)| (part, (rows, sum))).collect())
    }

    async fn rows(&self, connection: &mut PgConnection, parts: &[i64]) -> Result<Found> {
        let Self { table, of_shards, shards } = *self;
        let key = self.key(connection).await?;
        let rows = format!(
            "SELECT {key}, t::text, to_jsonb(t) FROM {table} t
             WHERE {of_shards} AND hashtextextended({key}, 0) & $2 = ANY ($3)"
        );
        let rows = sqlx::query_as(&rows).bind(shards).bind(PARTS_MASK).bind(parts).fetch_all(connection).await?;
        Ok(rows.into_iter().map(|(key, text, row): (String, String, Value)| (key, (text, row))).collect())
    }

    /// The primary key of a row `t`, as a text.
    async fn key(&self, connection: &mut PgConnection) -> Result<String> {
        let key = sqlx::query_scalar(
            "SELECT 'ROW(' || string_agg(format('t.%I', a.attname), ', ' ORDER BY k.place) || ')::text'
             FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = to_regclass($1) AND i.indisprimary",
        );
        Ok(key.bind(self.table).fetch_one(connection).await?)
    }
}
