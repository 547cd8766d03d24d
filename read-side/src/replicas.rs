//! Which database answers a query, and how fresh the answer is.
//!
//! A query reads its rows and the checkpoint that says how fresh they are in one statement, so the two always belong
//! together. Without `Skyriff-At-Least` the first replica that works answers. With it, each replica in turn, and then
//! the primary, gets a part of a bounded time to become that fresh; after that the client is told to come back.
//!
//! What is counted over all users has a part in every read database: `Replicas::read_everywhere` asks each in the same
//! way, side by side.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::metrics::counter;
use axum::{extract::FromRequestParts, http::request::Parts};
use futures::{StreamExt, TryStreamExt, stream};
use skyriff_domain::{LogPosition, Position, ShardCount, ShardId, UserId, shard_of};
use skyriff_edge::{Kind, Problem};
use sqlx::PgPool;
use tokio::time::{Instant, timeout};

/// Queries answered, by `from`: replica, primary; and those that were not: `not_yet`, `too_slow`, `unavailable`.
const QUERIES: &str = "skyriff_queries_total";
/// The most places that one `Skyriff-At-Least` may name.
pub(crate) const AT_LEAST_MAX: usize = 64;
/// A database that does not answer within this time is passed over.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// What Postgres says when the time for a statement is over.
const QUERY_CANCELED: &str = "57014";
/// When the same question may be worth another try, in seconds.
const TOO_SLOW_RETRY_S: u32 = 30;
/// Read databases that one query asks at once.
const DATABASES_AT_ONCE: usize = 16;
/// Between two looks at a checkpoint: short at first, since a projection is usually a few milliseconds behind.
const LOOK_AGAIN: Duration = Duration::from_millis(3);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(50);

/// One database of read models and its copies.
#[derive(Clone, Debug)]
pub struct ReadDatabase {
    /// Its shards.
    pub shards: Vec<ShardId>,
    /// Where it is written; read only when no replica will do.
    pub primary: PgPool,
    /// Its copies.
    pub replicas: Vec<PgPool>,
}

/// Where queries are answered. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shard_count: ShardCount,
    databases: Vec<Arc<ReadDatabase>>,
    by_shard: HashMap<ShardId, Arc<ReadDatabase>>,
    next: AtomicUsize,
    patience: Duration,
}

/// Rows, and the position of the log that they include.
#[derive(Debug)]
pub(crate) struct Fresh<T> {
    pub(crate) position: Position,
    pub(crate) rows: T,
}

/// A question to one read database.
pub(crate) trait Query: Sync {
    /// What it answers.
    type Rows: Send;

    /// The rows, and how fresh they are, of one moment.
    fn run(&self, pool: &PgPool) -> impl Future<Output = sqlx::Result<Fresh<Self::Rows>>> + Send;
}

/// A question to every read database.
pub(crate) trait QueryEverywhere: Sync {
    /// What one answers.
    type Rows: Send;

    /// How long one may take.
    const ANSWER_MAX: Duration = ANSWER_MAX;
    /// Whether a question that is too much for one database is asked no other: what takes long is the question, and each
    /// of them would take as long over it, the primary last, until nobody waits any more.
    const IS_ASKED_ONCE: bool = false;

    /// The rows of one, and how fresh they are for each of its shards, of one moment.
    fn run(
        &self,
        pool: &PgPool,
        shards: &[ShardId],
    ) -> impl Future<Output = sqlx::Result<FreshParts<Self::Rows>>> + Send;
}

/// Rows of one read database, and the positions of the log that they include.
#[derive(Debug)]
pub(crate) struct FreshParts<T> {
    pub(crate) positions: BTreeMap<ShardId, Position>,
    pub(crate) rows: T,
}

/// A question to one read database, and what freshness means for its answer.
trait Ask: Sync {
    type Answer: Send;
    const ANSWER_MAX: Duration;
    const IS_ASKED_ONCE: bool;

    fn run(&self, pool: &PgPool) -> impl Future<Output = sqlx::Result<Self::Answer>> + Send;

    /// A place that was asked for and that the answer has not come to: how far it has.
    fn behind(&self, answer: &Self::Answer) -> Option<LogPosition>;
}

struct OfOneShard<'a, Q> {
    query: &'a Q,
    shard: ShardId,
    wanted: Position,
}

impl<Q: Query> Ask for OfOneShard<'_, Q> {
    type Answer = Fresh<Q::Rows>;
    const ANSWER_MAX: Duration = ANSWER_MAX;
    const IS_ASKED_ONCE: bool = false;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Self::Answer> {
        self.query.run(pool).await
    }

    fn behind(&self, answer: &Self::Answer) -> Option<LogPosition> {
        (answer.position < self.wanted).then_some(LogPosition { shard: self.shard, position: answer.position })
    }
}

struct OfItsShards<'a, Q> {
    query: &'a Q,
    shards: &'a [ShardId],
    at_least: &'a AtLeast,
}

impl<Q: QueryEverywhere> Ask for OfItsShards<'_, Q> {
    type Answer = FreshParts<Q::Rows>;
    const ANSWER_MAX: Duration = Q::ANSWER_MAX;
    const IS_ASKED_ONCE: bool = Q::IS_ASKED_ONCE;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Self::Answer> {
        self.query.run(pool, self.shards).await
    }

    fn behind(&self, answer: &Self::Answer) -> Option<LogPosition> {
        self.shards.iter().find_map(|shard| {
            let position = answer.positions.get(shard).copied().unwrap_or_default();
            (position < self.at_least.of(*shard)).then_some(LogPosition { shard: *shard, position })
        })
    }
}

impl Replicas {
    /// Answer from these, waiting for freshness no longer than `patience` for each.
    pub fn new(shard_count: ShardCount, databases: Vec<ReadDatabase>, patience: Duration) -> Self {
        let databases: Vec<_> = databases.into_iter().map(Arc::new).collect();
        let mut by_shard = HashMap::new();
        for database in &databases {
            by_shard.extend(database.shards.iter().map(|shard| (*shard, Arc::clone(database))));
        }
        Self(Arc::new(Inner { shard_count, databases, by_shard, next: AtomicUsize::new(0), patience }))
    }

    /// How many shards there are.
    pub(crate) fn shard_count(&self) -> ShardCount {
        self.0.shard_count
    }

    /// The shard of a user's rows.
    pub(crate) fn shard_of(&self, user: UserId) -> ShardId {
        shard_of(user, self.0.shard_count)
    }

    /// Run a query where its answer is as fresh as asked for.
    ///
    /// # Errors
    /// [`Kind::NOT_YET`] when no database is that fresh in time; [`Kind::UNAVAILABLE`] when none can be reached.
    pub(crate) async fn read<Q: Query>(
        &self,
        shard: ShardId,
        at_least: &AtLeast,
        query: &Q,
    ) -> Result<Fresh<Q::Rows>, Problem> {
        let database = self.0.by_shard.get(&shard).ok_or_else(unavailable)?;
        self.ask(database, &OfOneShard { query, shard, wanted: at_least.of(shard) }).await
    }

    /// Run a query on every read database, a bounded number of them at once, each as fresh as asked for; in no order.
    ///
    /// # Errors
    /// As [`Self::read`], for the first that has no answer: a part of a sum is no answer.
    pub(crate) async fn read_everywhere<Q: QueryEverywhere>(
        &self,
        at_least: &AtLeast,
        query: &Q,
    ) -> Result<Vec<FreshParts<Q::Rows>>, Problem> {
        let asked: Vec<_> =
            self.0.databases.iter().map(|database| self.ask_for_part(database, at_least, query)).collect();
        stream::iter(asked).buffer_unordered(DATABASES_AT_ONCE).try_collect().await
    }

    /// Run such a query for one shard alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) async fn read_part<Q: QueryEverywhere>(
        &self,
        shard: ShardId,
        at_least: &AtLeast,
        query: &Q,
    ) -> Result<FreshParts<Q::Rows>, Problem> {
        let database = self.0.by_shard.get(&shard).ok_or_else(unavailable)?;
        self.ask(database, &OfItsShards { query, shards: &[shard], at_least }).await
    }

    async fn ask_for_part<Q: QueryEverywhere>(
        &self,
        database: &ReadDatabase,
        at_least: &AtLeast,
        query: &Q,
    ) -> Result<FreshParts<Q::Rows>, Problem> {
        self.ask(database, &OfItsShards { query, shards: &database.shards, at_least }).await
    }

    /// Each replica in turn, and then the primary, until one has an answer that is fresh enough.
    async fn ask<A: Ask>(&self, database: &ReadDatabase, ask: &A) -> Result<A::Answer, Problem> {
        let first = self.0.next.fetch_add(1, Ordering::Relaxed);
        let count = database.replicas.len();
        let turns = (0..count).filter_map(|turn| database.replicas.get((first + turn) % count));
        let pools = turns.map(|pool| (pool, "replica")).chain([(&database.primary, "primary")]);
        let mut newest: Option<LogPosition> = None;
        for (pool, from) in pools {
            match self.wait_for(pool, ask).await {
                Ok(Ok(answer)) => {
                    counter!(QUERIES, "from" => from).increment(1);
                    return Ok(answer);
                }
                Ok(Err(behind)) => newest = newest.max(Some(behind)),
                Err(NoAnswer::TooSlow) if A::IS_ASKED_ONCE => {
                    counter!(QUERIES, "from" => "too_slow").increment(1);
                    return Err(Problem::new(&Kind::TOO_SLOW).retry_after_s(TOO_SLOW_RETRY_S));
                }
                Err(error) => {
                    let shards = database.shards.len();
                    tracing::warn!(from, shards, %error, "a read database does not answer; trying the next");
                }
            }
        }
        let Some(newest) = newest else {
            counter!(QUERIES, "from" => "unavailable").increment(1);
            return Err(unavailable());
        };
        counter!(QUERIES, "from" => "not_yet").increment(1);
        Err(Problem::new(&Kind::NOT_YET).retry_after_s(1).with("newest", newest.to_string()))
    }

    /// The answer, or how far it had come when the time was over.
    async fn wait_for<A: Ask>(&self, pool: &PgPool, ask: &A) -> Result<Result<A::Answer, LogPosition>, NoAnswer> {
        let end = Instant::now() + self.0.patience;
        let mut pause = LOOK_AGAIN;
        loop {
            let answer = timeout(A::ANSWER_MAX, ask.run(pool)).await.map_err(|_| NoAnswer::TooSlow)??;
            let Some(behind) = ask.behind(&answer) else { return Ok(Ok(answer)) };
            if Instant::now() + pause > end {
                return Ok(Err(behind));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AGAIN_MAX);
        }
    }
}

/// Why a database has no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    /// It was there, and the question too much for it.
    #[error("the question takes too long")]
    TooSlow,
    #[error(transparent)]
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for NoAnswer {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        if code.as_deref() == Some(QUERY_CANCELED) { Self::TooSlow } else { Self::Failed(error) }
    }
}

fn unavailable() -> Problem {
    Problem::new(&Kind::READS_UNAVAILABLE).retry_after_s(2)
}

/// How fresh the client wants an answer: the header `Skyriff-At-Least`, `shard:position`, several with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AtLeast(Vec<LogPosition>);

impl AtLeast {
    /// No older than these.
    pub(crate) fn these(positions: &BTreeMap<ShardId, Position>) -> Self {
        Self(positions.iter().map(|(shard, position)| LogPosition { shard: *shard, position: *position }).collect())
    }

    /// The position of a shard that is asked for; the first, when none is.
    pub(crate) fn of(&self, shard: ShardId) -> Position {
        let of_shard = self.0.iter().filter(|place| place.shard == shard);
        of_shard.map(|place| place.position).max().unwrap_or_default()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AtLeast {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(header) = parts.headers.get("skyriff-at-least") else { return Ok(Self::default()) };
        let malformed = || Problem::new(&Kind::MALFORMED).detail("Skyriff-At-Least is shard:position, as in 3:1042");
        let places: Vec<_> = header.to_str().map_err(|_| malformed())?.split(',').collect();
        if places.len() > AT_LEAST_MAX {
            return Err(malformed());
        }
        let places = places.into_iter().map(str::parse).collect::<Result<_, _>>();
        places.map(Self).map_err(|_| malformed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;

    /// Never answered, and how often it was asked.
    #[derive(Default)]
    struct Endless<const ONCE: bool>(AtomicU32);

    impl<const ONCE: bool> QueryEverywhere for Endless<ONCE> {
        type Rows = ();

        const ANSWER_MAX: Duration = Duration::from_millis(5);
        const IS_ASKED_ONCE: bool = ONCE;

        async fn run(&self, _: &PgPool, _: &[ShardId]) -> sqlx::Result<FreshParts<()>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }
    }

    async fn ask<const ONCE: bool>() -> (&'static Kind, u32) {
        let pool = || PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new_without_pgpass());
        let database = ReadDatabase { shards: vec![ShardId(0)], primary: pool(), replicas: vec![pool(), pool()] };
        let replicas = Replicas::new(ShardCount::default(), vec![database], Duration::ZERO);
        let endless = Endless::<ONCE>::default();
        let problem = replicas.read_everywhere(&AtLeast::default(), &endless).await.unwrap_err();
        (problem.kind, endless.0.into_inner())
    }

    #[tokio::test]
    async fn a_question_that_is_too_much_for_one_database_is_not_asked_of_the_others() {
        assert_eq!(ask::<true>().await, (&Kind::TOO_SLOW, 1));
        assert_eq!(ask::<false>().await, (&Kind::READS_UNAVAILABLE, 3));
    }
}
