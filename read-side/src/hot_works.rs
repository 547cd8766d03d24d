//! What is liked most these days.
//!
//! A like weighs less the older it is, half as much with every day (`HALF_LIFE_H`):
//!
//! ```text
//! score(work) = Σ over the hours h of the last 14 days  likes(work, h) · 2^(−(H − h) / 24)
//! ```
//!
//! where `H` is the hour of the question and `likes(work, h)` are the likes given in hour `h` that still stand. This is
//! exponential decay as in Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay: A Practical Time Decay Model for
//! Streaming Systems" (ICDE 2009), where the order of two works is shown not to change by the passing of time alone.
//! What is kept are whole numbers by the hour instead of their one weighted sum: that sum outgrows every floating-point
//! number within years, and depends in its last digits on the order in which likes came; whole numbers do neither, and
//! a like that is taken back leaves no trace. A like of more than 14 days weighs less than 2^-14 and is left out.
//!
//! The hours of a work are spread over the read databases, as its likes are. Each names its first thousand, and all are
//! asked for all of those, so the sums are exact. A work could only be missed that is beyond the first thousand in
//! every database and yet among the first hundred in all; users are spread by a hash, so what is hot is hot everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use axum::{Json, extract::State, response::IntoResponse};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde::Serialize;
use skyriff_domain::{ShardId, WorkId};
use skyriff_edge::{Caller, Problem, Right, problem::ProblemBody};
use sqlx::PgPool;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    cached::{Aged, Cached},
    replicas::{AtLeast, FreshParts, QueryEverywhere, Replicas},
    work::numbers,
};

/// A like weighs half as much after so many hours.
const HALF_LIFE_H: f64 = 24.0;
/// Older likes are left out.
const WINDOW_DAYS: i64 = 14;
/// Works on the list.
const LIST_MAX: usize = 100;
/// Works that each read database proposes.
const CANDIDATES_MAX: i64 = 1_000;
/// How long a list is good.
const GOOD_FOR: Duration = Duration::from_secs(300);
/// It reads the likes of two weeks.
const ANSWER_MAX: Duration = Duration::from_secs(6);

/// The list, and where to get it.
#[derive(Clone)]
pub(crate) struct HotWorks {
    replicas: Replicas,
    cached: Cached<List>,
}

struct List {
    as_of: DateTime<Utc>,
    works: Vec<HotWork>,
}

/// What is liked most these days, first things first.
#[derive(Serialize, ToSchema)]
struct HotList<'a> {
    #[schema(max_items = 100)]
    works: &'a [HotWork],
    /// When it was made.
    as_of: DateTime<Utc>,
    /// How long ago that is, in seconds.
    #[schema(minimum = 0)]
    age_s: u64,
    /// It is older than it should be (five minutes): a newer one is being made, or could not be made.
    stale: bool,
}

/// A work that is liked these days.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
struct HotWork {
    work: WorkId,
    /// All of its likes.
    likes: i64,
    /// Its likes of the last 14 days, each halved for every day of its age.
    score: f64,
}

impl HotWorks {
    pub(crate) fn new(replicas: Replicas) -> Self {
        Self { replicas, cached: Cached::new(GOOD_FOR) }
    }
}

/// The hundred works that are liked most these days.
///
/// A like weighs 1 when it is given and half as much with every day that passes; likes of more than 14 days are left
/// out. The list is made at most every five minutes in each process of the API, so it takes no `Skyriff-At-Least`.
#[utoipa::path(get, path = "/v1/works/hot", tag = "likes",
    responses((status = 200, body = HotList),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 500, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32))),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn hot_works(
    State(HotWorks { replicas, cached }): State<HotWorks>,
    caller: Caller,
) -> Result<impl IntoResponse, Problem> {
    caller.may_at_all(Right::ReadWorks)?;
    let Aged { value: list, age, stale } = cached.get(move || make(replicas, Utc::now())).await?;
    // Serialized here, since the answer must not borrow from the list.
    let body = HotList { works: &list.works, as_of: list.as_of, age_s: age.as_secs(), stale };
    serde_json::to_value(&body).map(Json).map_err(|error| Problem::fault(&error))
}

async fn make(replicas: Replicas, now: DateTime<Utc>) -> Result<List, Problem> {
    let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now);
    let proposed = replicas.read_everywhere(&AtLeast::default(), &Candidates { hour }).await?;
    let works: BTreeSet<_> = proposed.into_iter().flat_map(|part| part.rows).collect();
    let query = Scores { hour, works: works.into_iter().collect() };
    let parts = replicas.read_everywhere(&AtLeast::default(), &query).await?;
    Ok(List { as_of: now, works: first(parts.into_iter().flat_map(|part| part.rows)) })
}

/// Add up what the databases say; equal scores in the order of their ids, so that the order does not flicker.
fn first(parts: impl Iterator<Item = (Uuid, f64, i64)>) -> Vec<HotWork> {
    let mut sums: BTreeMap<Uuid, (f64, i64)> = BTreeMap::new();
    for (work, score, likes) in parts {
        let sum = sums.entry(work).or_default();
        sum.0 += score;
        sum.1 += likes;
    }
    let mut works: Vec<_> =
        sums.into_iter().map(|(work, (score, likes))| HotWork { work: WorkId(work), likes, score }).collect();
    works.sort_by(|one, other| other.score.total_cmp(&one.score).then(one.work.cmp(&other.work)));
    works.truncate(LIST_MAX);
    works
}

/// What an hour of likes weighs. A clock that is ahead of ours makes no like weigh more than one of now.
macro_rules! score {
    () => {
        "sum(likes * power(0.5::float8, greatest(extract(epoch FROM $1 - hour)::float8, 0) / 3600 / $2))"
    };
}

struct Candidates {
    hour: DateTime<Utc>,
}

impl QueryEverywhere for Candidates {
    type Rows = Vec<Uuid>;
    const ANSWER_MAX: Duration = ANSWER_MAX;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Vec<Uuid>>> {
        let rows = sqlx::query_scalar(concat!(
            "SELECT work_id FROM work_likes_by_hour WHERE hour > $3 AND shard = ANY ($5) GROUP BY work_id ORDER BY ",
            score!(),
            " DESC, work_id LIMIT $4"
        ))
        .bind(self.hour)
        .bind(HALF_LIFE_H)
        .bind(self.hour - TimeDelta::days(WINDOW_DAYS))
        .bind(CANDIDATES_MAX)
        .bind(numbers(shards))
        .fetch_all(pool)
        .await?;
        Ok(FreshParts { positions: BTreeMap::new(), rows })
    }
}

struct Scores {
    hour: DateTime<Utc>,
    works: Vec<Uuid>,
}

impl QueryEverywhere for Scores {
    /// Work, its score here, all of its likes here.
    type Rows = Vec<(Uuid, f64, i64)>;
    const ANSWER_MAX: Duration = ANSWER_MAX;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Self::Rows>> {
        let rows = sqlx::query_as(concat!(
            "SELECT asked.work_id, coalesce(hot.score, 0), coalesce(w.likes, 0)::bigint FROM unnest($4) AS asked (work_id)
             LEFT JOIN (SELECT work_id, ",
            score!(),
            " AS score FROM work_likes_by_hour WHERE hour > $3 AND work_id = ANY ($4) AND shard = ANY ($5) GROUP BY work_id) hot
                 USING (work_id)
             LEFT JOIN (SELECT work_id, sum(likes) AS likes FROM work_likes
                        WHERE work_id = ANY ($4) AND shard = ANY ($5) GROUP BY work_id) w USING (work_id)"
        ))
        .bind(self.hour)
        .bind(HALF_LIFE_H)
        .bind(self.hour - TimeDelta::days(WINDOW_DAYS))
        .bind(&self.works)
        .bind(numbers(shards))
        .fetch_all(pool)
        .await?;
        Ok(FreshParts { positions: BTreeMap::new(), rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_work_are_added_and_the_first_hundred_are_the_list() {
        let id = Uuid::from_u128;
        let list = first([(id(1), 1.0, 1), (id(2), 0.75, 9), (id(3), 1.0, 1), (id(2), 0.5, 2)].into_iter());
        let of = |work, score, likes| HotWork { work: WorkId(id(work)), likes, score };
        assert_eq!(list, [of(2, 1.25, 11), of(1, 1.0, 1), of(3, 1.0, 1)]);
        let many = first((0..500).map(|number| (id(number), 1.0, 1)));
        assert_eq!((many.len(), many.last()), (100, Some(&of(99, 1.0, 1))));
    }
}
