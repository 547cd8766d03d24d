//! Whether an answer has everything that was recorded by a time.
//!
//! The books are made from the log, and a shard of them that stands still or is behind has only what it had. Nothing in the
//! books tells that: a shard in which nothing happens looks the same. So the log is asked, of each shard, for the event after
//! the last one that the answer includes:
//!
//! | the log | the answer has everything |
//! |---|---|
//! | has one, which was recorded later | yes |
//! | has one, which was recorded by then | no |
//! | has none, as its primary says, and the time is over | yes |
//! | has none, and the time is not over | no: what is recorded until then is still to come |
//! | cannot be asked | nobody knows, so no |
//!
//! Within a shard recorded times ascend with positions, as far as the clock of its database never goes back.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use serde::Serialize;
use skyriff_domain::ShardId;
use sqlx::PgPool;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::Positions;
use crate::{
    replicas::ReadDatabase,
    story::{Question, Stories},
};

/// All databases of the log together may take so long; the books are there without them.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Databases of the log that are asked at once.
const DATABASES_AT_ONCE: usize = 16;

/// Whether an answer has everything. Part of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Completeness {
    /// Whether everything is in it that was recorded by `known_at`; without that, until ten seconds ago. If not, another answer may
    /// come to something else: a shard of the books stands still or is behind, `known_at` is not over yet, or the log could not
    /// be asked.
    pub(super) complete: bool,
    /// The shards of which it is not known.
    pub(super) incomplete: Vec<u16>,
}

/// Whether an answer that includes the log up to these positions has everything that was recorded by then.
pub(super) async fn completeness(
    log: &Stories,
    positions: &Positions,
    known_at: Option<DateTime<Utc>>,
) -> Completeness {
    let questions = log.databases().iter().map(|database| async move {
        let asked = positions.iter().filter(|(shard, _)| database.shards.contains(shard));
        let (shards, positions): (Vec<ShardId>, Vec<i64>) = asked.map(|(shard, position)| (*shard, position.0)).unzip();
        if shards.is_empty() { Vec::new() } else { heard_of(log, database, &shards, positions, known_at).await }
    });
    // Built first: a closure that lends a place to each would not be general enough for the stream.
    let questions: Vec<_> = questions.collect();
    let answers = stream::iter(questions).buffer_unordered(DATABASES_AT_ONCE).collect::<Vec<_>>();
    let heard_of: Vec<_> = timeout(ANSWER_MAX, answers).await.unwrap_or_default().into_iter().flatten().collect();
    let incomplete: Vec<_> = positions.keys().filter(|shard| !heard_of.contains(shard)).map(|shard| shard.0).collect();
    Completeness { complete: incomplete.is_empty(), incomplete }
}

/// The shards of one database that have everything.
async fn heard_of(
    log: &Stories,
    database: &ReadDatabase,
    shards: &[ShardId],
    positions: Vec<i64>,
    known_at: Option<DateTime<Utc>>,
) -> Vec<ShardId> {
    let question = Next { shards: crate::work::numbers(shards), positions, known_at };
    match log.ask(database, &question).await {
        Ok(Some(answers)) => {
            let heard_of = answers.into_iter().filter(|(_, is_all)| *is_all);
            heard_of.filter_map(|(shard, _)| u16::try_from(shard).ok().map(ShardId)).collect()
        }
        // The primary does not answer, and only it knows where the log ends; or nobody does.
        Ok(None) | Err(_) => Vec::new(),
    }
}

struct Next {
    shards: Vec<i16>,
    positions: Vec<i64>,
    known_at: Option<DateTime<Utc>>,
}

impl Question for Next {
    /// Each shard, and whether it has everything.
    type Answer = Vec<(i16, bool)>;

    /// Nothing of a replica that has no next event of some shard: it may only not have come yet.
    async fn run(&self, pool: &PgPool) -> sqlx::Result<Option<Self::Answer>> {
        // An append that has taken its time is given up long before ten seconds are over.
        let answers: Vec<(i16, Option<bool>)> = sqlx::query_as(
            "SELECT p.shard,
                    CASE WHEN n.recorded_at IS NOT NULL THEN n.recorded_at > t.until
                         WHEN NOT pg_is_in_recovery() THEN t.until <= clock_timestamp() - interval '10 seconds' END
             FROM unnest($1::smallint[], $2::bigint[]) AS p (shard, position)
             CROSS JOIN (SELECT coalesce($3, clock_timestamp() - interval '10 seconds') AS until) t
             LEFT JOIN events n ON n.shard = p.shard AND n.position = p.position + 1",
        )
        .bind(&self.shards)
        .bind(&self.positions)
        .bind(self.known_at)
        .fetch_all(pool)
        .await?;
        Ok(answers.into_iter().map(|(shard, is_all)| Some((shard, is_all?))).collect())
    }
}
