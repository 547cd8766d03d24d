//! Who likes what.
//!
//! Table `likes`: the likes that stand, each beside its user. What a batch changes in it is what
//! [`crate::work_likes`] counts, in the same transaction: an event that takes a like back does not say when
//! the like was given, and the row that it removes does.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use skyriff_domain::{Event, LikeId, RecordedEvent, StreamId, UserId, WorkId, like};
use skyriff_follow::{ApplyError, Batch};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::work_likes::{self, Deltas};

/// What a batch says about one like.
struct Change<'a> {
    /// Whether the like stood before: its events take turns, so the first one of the batch tells.
    stood: bool,
    /// The event that made it stand, if it does now.
    stands: Option<&'a RecordedEvent>,
}

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let mut changes: BTreeMap<LikeId, Change<'_>> = BTreeMap::new();
    for event in batch {
        let (StreamId::Like(like), Event::Like(said)) = (event.stream, &event.event) else { continue };
        let (stood, stands) = match said {
            like::Event::Liked {} => (false, Some(event)),
            like::Event::Unliked {} => (true, None),
        };
        changes.entry(like).or_insert(Change { stood, stands }).stands = stands;
    }
    if changes.is_empty() {
        return Ok(());
    }
    let mut deltas = Deltas::default();
    let gone: Vec<_> = changes.iter().filter(|(_, change)| change.stood).map(|(like, _)| *like).collect();
    for (work, shard, liked_at) in remove(&gone, transaction).await? {
        deltas.add(work, shard, liked_at, -1);
    }
    let given: Vec<_> = changes.iter().filter_map(|(like, change)| Some((*like, change.stands?))).collect();
    for (like, event) in &given {
        let shard = i16::try_from(event.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))?;
        deltas.add(like.work, shard, event.occurred_at, 1);
    }
    insert(&given, transaction).await?;
    work_likes::apply(&deltas, transaction).await
}

/// Remove likes, all of which must be there, and say in which shard and when they were given.
async fn remove(
    likes: &[LikeId],
    transaction: &mut PgConnection,
) -> Result<Vec<(WorkId, i16, DateTime<Utc>)>, ApplyError> {
    if likes.is_empty() {
        return Ok(Vec::new());
    }
    let (users, works) = columns(likes.iter());
    let removed: Vec<(Uuid, i16, DateTime<Utc>)> = sqlx::query_as(
        "DELETE FROM likes l USING unnest($1::uuid[], $2::uuid[]) AS gone (user_id, work_id)
         WHERE l.user_id = gone.user_id AND l.work_id = gone.work_id
         RETURNING l.work_id, l.shard, l.liked_at",
    )
    .bind(users)
    .bind(works)
    .fetch_all(transaction)
    .await?;
    if removed.len() != likes.len() {
        let reason = format!("{} likes are taken back, and {} of them stand", likes.len(), removed.len());
        return Err(ApplyError::Misfit(reason));
    }
    Ok(removed.into_iter().map(|(work, shard, liked_at)| (WorkId(work), shard, liked_at)).collect())
}

/// A like that is there already would be counted twice; the primary key stops it.
async fn insert(given: &[(LikeId, &RecordedEvent)], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    if given.is_empty() {
        return Ok(());
    }
    let shards = given.iter().map(|(_, event)| i16::try_from(event.at.shard.0)).collect::<Result<Vec<_>, _>>();
    let (users, works) = columns(given.iter().map(|(like, _)| like));
    sqlx::query(
        "INSERT INTO likes (user_id, work_id, liked_at, shard, position)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::smallint[], $5::bigint[])",
    )
    .bind(users)
    .bind(works)
    .bind(given.iter().map(|(_, event)| event.occurred_at).collect::<Vec<_>>())
    .bind(shards.map_err(|error| ApplyError::Misfit(error.to_string()))?)
    .bind(given.iter().map(|(_, event)| event.at.position.0).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

fn columns<'a>(likes: impl Iterator<Item = &'a LikeId>) -> (Vec<Uuid>, Vec<Uuid>) {
    likes.map(|LikeId { user: UserId(user), work: WorkId(work) }| (*user, *work)).unzip()
}
