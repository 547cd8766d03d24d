//! The likes that are stored, and what they are counted to, beside the fold of their events.

use std::collections::HashMap;

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use skyriff_domain::{LikeId, ShardCount, State, StreamId, UserId, WorkId, shard_of};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Folded, Report};
use crate::config::Place;

type Row = (Uuid, Uuid, DateTime<Utc>);

/// One read database: who likes what since when, how many likes each work has, and how many of each hour.
pub(super) async fn compare(
    connection: &mut PgConnection,
    place: &Place,
    streams: &HashMap<StreamId, Folded>,
    shard_count: ShardCount,
    report: &mut Report,
) -> Result<()> {
    // What stands and is not found in the table yet.
    let mut missing: HashMap<LikeId, DateTime<Utc>> = HashMap::new();
    let mut counts: HashMap<WorkId, i64> = HashMap::new();
    for (stream, folded) in streams {
        let (StreamId::Like(like), State::Like(state)) = (stream, &folded.state) else { continue };
        if state.stands() && place.shards.contains(&shard_of(like.user, shard_count)) {
            missing.insert(*like, folded.last_at);
            *counts.entry(like.work).or_default() += 1;
        }
    }
    let mut stored = sqlx::query_as::<_, Row>("SELECT user_id, work_id, liked_at FROM likes").fetch(&mut *connection);
    while let Some((user, work, liked_at)) = stored.try_next().await? {
        match missing.remove(&LikeId { user: UserId(user), work: WorkId(work) }) {
            None => report.wrong(format!("user {user} likes work {work} without an event that says so")),
            Some(folded_at) if folded_at != liked_at => {
                report.wrong(format!("user {user} likes work {work} since {folded_at}, and not {liked_at}"));
            }
            Some(_) => {}
        }
    }
    drop(stored);
    for like in missing.keys() {
        report.wrong(format!("user {} likes work {}, and no row says so", like.user, like.work));
    }
    let stored: Vec<(Uuid, i64)> = sqlx::query_as("SELECT work_id, sum(likes)::bigint FROM work_likes GROUP BY 1")
        .fetch_all(&mut *connection)
        .await?;
    for (work, likes) in stored {
        let folded = counts.remove(&WorkId(work)).unwrap_or_default();
        if folded != likes {
            report
                .wrong(format!("work {work} has {folded} likes from the users of one read database, and not {likes}"));
        }
    }
    for (work, likes) in counts {
        report.wrong(format!("work {work} has {likes} likes from the users of one read database, and no count"));
    }
    // The likes were compared with the log above, so their hours need only be compared with them.
    let hours: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
        "SELECT work_id, hour FROM work_likes_by_hour w FULL JOIN (
             SELECT work_id, shard, date_trunc('hour', liked_at, 'UTC') AS hour, count(*) AS likes FROM likes GROUP BY 1, 2, 3
         ) l USING (work_id, shard, hour) WHERE w.likes IS DISTINCT FROM l.likes",
    )
    .fetch_all(connection)
    .await?;
    for (work, hour) in hours {
        report.wrong(format!("the likes of work {work} in the hour from {hour} are not those that stand"));
    }
    Ok(())
}
