//! The likes that are stored, and what they are counted to, beside the fold of their events.

use std::collections::HashMap;

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use skyriff_domain::{LikeId, State, StreamId, UserId, WorkId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{super::fold::Shard, number};

type Row = (Uuid, Uuid, DateTime<Utc>);

/// Who likes what since when, how many likes each work has from the users of the shard, and how many of each hour.
pub(super) async fn compare(connection: &mut PgConnection, shard: &mut Shard) -> Result<()> {
    let (id, number) = (shard.id, number(shard.id)?);
    let findings = &mut shard.findings;
    // What stands and is not found in the table yet.
    let mut missing: HashMap<LikeId, DateTime<Utc>> = HashMap::new();
    let mut counts: HashMap<WorkId, i64> = HashMap::new();
    for (stream, folded) in &shard.streams {
        let (StreamId::Like(like), State::Like(state)) = (stream, &folded.state) else { continue };
        if state.stands() {
            let last_at = DateTime::from_timestamp_micros(folded.last_at_us).unwrap_or(DateTime::<Utc>::MAX_UTC);
            missing.insert(*like, last_at);
            *counts.entry(like.work).or_default() += 1;
        }
    }
    let mut stored = sqlx::query_as::<_, Row>("SELECT user_id, work_id, liked_at FROM likes WHERE shard = $1")
        .bind(number)
        .fetch(&mut *connection);
    while let Some((user, work, liked_at)) = stored.try_next().await? {
        match missing.remove(&LikeId { user: UserId(user), work: WorkId(work) }) {
            None => findings.of(id, format!("user {user} likes work {work} without an event that says so")),
            Some(folded_at) if folded_at != liked_at => {
                findings.of(id, format!("user {user} likes work {work} since {folded_at}, and not {liked_at}"));
            }
            Some(_) => {}
        }
    }
    drop(stored);
    for like in missing.keys() {
        findings.of(id, format!("user {} likes work {}, and no row says so", like.user, like.work));
    }
    let stored: Vec<(Uuid, i64)> =
        sqlx::query_as("SELECT work_id, sum(likes)::bigint FROM work_likes WHERE shard = $1 GROUP BY 1")
            .bind(number)
            .fetch_all(&mut *connection)
            .await?;
    for (work, likes) in stored {
        let folded = counts.remove(&WorkId(work)).unwrap_or_default();
        if folded != likes {
            findings.of(id, format!("work {work} has {folded} likes from the users of the shard, and not {likes}"));
        }
    }
    for (work, likes) in counts {
        findings.of(id, format!("work {work} has {likes} likes from the users of the shard, and no count"));
    }
    // The likes were compared with the log above, so their hours need only be compared with them.
    let hours: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
        "SELECT work_id, hour
         FROM (SELECT work_id, hour, likes FROM work_likes_by_hour WHERE shard = $1) w
         FULL JOIN (
             SELECT work_id, date_trunc('hour', liked_at, 'UTC') AS hour, count(*) AS likes FROM likes
             WHERE shard = $1 GROUP BY 1, 2
         ) l USING (work_id, hour) WHERE w.likes IS DISTINCT FROM l.likes",
    )
    .bind(number)
    .fetch_all(connection)
    .await?;
    for (work, hour) in hours {
        findings.of(id, format!("the likes of work {work} in the hour from {hour} are not those that stand"));
    }
    Ok(())
}
