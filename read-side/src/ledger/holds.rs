//! What is set aside, the oldest first: for what, since when, and when it ends.

use std::collections::BTreeMap;

use axum::{Json, extract::State, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{HoldId, LogPosition, Position, ShardId, UserId};
use skyriff_edge::{Caller, Problem, Query, Right, problem::ProblemBody};
use sqlx::{FromRow, PgPool};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    ANSWER_MAX, Ledger, Scope,
    as_of::AsOf,
    complete::{Completeness, completeness},
    entries::{EntryPlace, Order},
};
use crate::{
    page,
    replicas::{AtLeast, FreshParts, QueryEverywhere},
    work::{moment, numbers},
};

/// Ages that holds are counted by, in seconds: an hour, a day, a week, thirty days.
const AGES_S: [i64; 5] = [0, 3_600, 86_400, 7 * 86_400, 30 * 86_400];

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Only this user's.
    #[serde(default)]
    user: Option<UserId>,
    /// Only in this shard.
    #[param(minimum = 0, maximum = 1023)]
    #[serde(default)]
    shard: Option<u16>,
    /// What was held then; now, unless given.
    #[serde(default)]
    at: Option<DateTime<Utc>>,
    /// As it was recorded by then.
    #[serde(default)]
    known_at: Option<DateTime<Utc>>,
    /// How many.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before, asked for in the same way.
    #[serde(default)]
    cursor: Option<String>,
}

/// What is held, by age.
#[derive(Serialize, ToSchema)]
struct Holds {
    /// Ages are counted up to this time: `at`, else `known_at`, else now.
    ages_as_of: DateTime<Utc>,
    /// All of them, from the youngest class to the oldest.
    ages: Vec<Age>,
    /// A page of them, the oldest first.
    holds: Vec<OpenHold>,
    /// The cursor of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// The answer includes the log up to here.
    #[schema(example = json!(["3:1042"]))]
    positions: Vec<String>,
    #[serde(flatten)]
    completeness: Completeness,
}

/// Holds that are at least as old as this, and not as old as the next class.
#[derive(Serialize, ToSchema)]
struct Age {
    at_least_s: i64,
    holds: i64,
    points: i64,
}

/// Points that are set aside.
#[derive(Serialize, ToSchema)]
struct OpenHold {
    /// The event that set them aside.
    #[schema(example = "3:1042")]
    event: String,
    user: UserId,
    /// Named after what it is for, where that is a job, a tip or a withdrawal.
    hold: HoldId,
    #[schema(example = "video_job")]
    reason: String,
    /// What was set aside.
    points: i64,
    /// What is left of it.
    remaining: i64,
    opened_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
    /// By the business time.
    age_s: i64,
    /// When it ends by itself; never, where what it is for ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_at: Option<DateTime<Utc>>,
}

/// What is set aside, by age: what is held now, or what was held as of a business time, a recorded time, or both.
#[utoipa::path(get, path = "/v1/ledger/holds", tag = "ledger",
    params(Asked, ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than this position, or these, each of its own shard")),
    responses((status = 200, body = Holds, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn holds(
    State(Ledger { replicas, log }): State<Ledger>,
    caller: Caller,
    Query(asked): Query<Asked>,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_everywhere(Right::ReadLedger)?;
    let scope = Scope::of(&replicas, asked.shard, asked.user)?;
    let as_of = AsOf { at: super::time(asked.at)?, known_at: super::time(asked.known_at)? };
    let (limit, after) = page::bounds(asked.limit, asked.cursor.as_deref())?;
    let after: EntryPlace = after.unwrap_or(EntryPlace::start(Order::Oldest));
    let now = asked.at.or(asked.known_at).unwrap_or_else(Utc::now);
    let query = HeldAsOf { user: asked.user, as_of, now, after, limit: limit + 1 };
    let (positions, parts) = scope.read(&replicas, &at_least, &query).await?;
    let mut ages: BTreeMap<_, _> = AGES_S.into_iter().map(|age| (age, (0, 0))).collect();
    let mut found = Vec::new();
    for (of_part, rows) in parts {
        found.extend(rows);
        for (class, holds, points) in of_part {
            let (all_holds, all_points) = ages.entry(class).or_default();
            *all_holds += holds;
            *all_points += points;
        }
    }
    found.sort_by_key(Row::place);
    let (rows, next) = page::cut(found, limit, Row::place);
    let age = |(at_least_s, (holds, points))| Age { at_least_s, holds, points };
    let completeness = completeness(&log, &positions, asked.known_at).await;
    let body = Holds {
        ages_as_of: now,
        ages: ages.into_iter().map(age).collect(),
        holds: rows.into_iter().map(|row| row.told(now)).collect(),
        next,
        positions: super::told(&positions),
        completeness,
    };
    Ok((super::header(&positions), Json(body)))
}

#[derive(FromRow)]
struct Row {
    shard: i16,
    position: i64,
    user_id: Uuid,
    hold: Uuid,
    reason: String,
    points: i64,
    remaining: i64,
    expires_at: Option<DateTime<Utc>>,
    opened_at: DateTime<Utc>,
    opened_recorded_at: DateTime<Utc>,
}

impl Row {
    fn place(&self) -> EntryPlace {
        EntryPlace { at: self.opened_at, shard: self.shard, position: self.position, line: 0 }
    }

    fn told(self, now: DateTime<Utc>) -> OpenHold {
        let shard = ShardId(u16::try_from(self.shard).unwrap_or_default());
        OpenHold {
            event: LogPosition { shard, position: Position(self.position) }.to_string(),
            user: UserId(self.user_id),
            hold: HoldId(self.hold),
            reason: self.reason,
            points: self.points,
            remaining: self.remaining,
            opened_at: self.opened_at,
            recorded_at: self.opened_recorded_at,
            age_s: now.signed_duration_since(self.opened_at).num_seconds(),
            ends_at: self.expires_at,
        }
    }
}

struct HeldAsOf {
    user: Option<UserId>,
    as_of: AsOf,
    /// What ages are counted from.
    now: DateTime<Utc>,
    after: EntryPlace,
    limit: i64,
}

impl HeldAsOf {
    /// What remained of every hold of which anything did. Of the past, every hold is looked at that was open then or has
    /// ended since.
    fn held(&self) -> &'static str {
        match self.as_of {
            AsOf { at: None, known_at: None } => {
                "SELECT * FROM ledger_holds
                 WHERE remaining > 0 AND shard = ANY ($1) AND user_id = coalesce($2, user_id)
                   AND coalesce($3, $4) IS NULL"
            }
            AsOf { .. } => {
                "SELECT * FROM (
                     SELECT shard, position, user_id, hold, reason, points, expires_at, opened_at, opened_recorded_at,
                            points - coalesce((
                                SELECT sum((c ->> 2)::bigint) FROM jsonb_array_elements(changes) c
                                WHERE (c ->> 0)::timestamptz <= coalesce($3::timestamptz, 'infinity')
                                  AND (c ->> 1)::timestamptz <= coalesce($4::timestamptz, 'infinity')
                            ), 0)::bigint AS remaining
                     FROM ledger_holds
                     WHERE shard = ANY ($1) AND user_id = coalesce($2, user_id)
                       AND opened_at <= coalesce($3, 'infinity') AND opened_recorded_at <= coalesce($4, 'infinity')
                       AND (remaining > 0 OR closed_at > $3 OR closed_recorded_at > $4)
                 ) h WHERE remaining > 0"
            }
        }
    }
}

/// Class of age, how many, how many points.
type OfAges = Vec<(i64, i64, i64)>;

impl QueryEverywhere for HeldAsOf {
    type Rows = (OfAges, Vec<Row>);

    const ANSWER_MAX: std::time::Duration = ANSWER_MAX;
    const IS_ASKED_ONCE: bool = true;

    async fn run(&self, pool: &PgPool, shards: &[ShardId]) -> sqlx::Result<FreshParts<Self::Rows>> {
        let mut moment = moment(pool).await?;
        let positions = super::positions(&mut moment, shards).await?;
        let held = self.held();
        let (user, AsOf { at, known_at }) = (self.user.map(|user| user.0), self.as_of);
        let classes = AGES_S.to_vec();
        let ages = format!(
            "SELECT (SELECT c FROM unnest($6::bigint[]) AS c WHERE c <= greatest(extract(epoch FROM $5 - opened_at), 0)
                     ORDER BY c DESC LIMIT 1) AS class, count(*), sum(remaining)::bigint
             FROM ({held}) held GROUP BY class"
        );
        let ages = sqlx::query_as(&ages)
            .bind(numbers(shards))
            .bind(user)
            .bind(at)
            .bind(known_at)
            .bind(self.now)
            .bind(classes)
            .fetch_all(&mut *moment)
            .await?;
        let page = format!(
            "SELECT * FROM ({held}) held WHERE opened_at >= $5 AND (opened_at, shard, position) > ($5, $6, $7)
             ORDER BY opened_at, shard, position LIMIT $8"
        );
        let rows = sqlx::query_as(&page)
            .bind(numbers(shards))
            .bind(user)
            .bind(at)
            .bind(known_at)
            .bind(self.after.at)
            .bind(self.after.shard)
            .bind(self.after.position)
            .bind(self.limit)
            .fetch_all(&mut *moment)
            .await?;
        moment.commit().await?;
        Ok(FreshParts { positions, rows: (ages, rows) })
    }
}
