//! How far a follower's tables have come: the table `checkpoints` beside them.
//!
//! Whichever `checkpoints` and tables stand first in the connection's search path are meant, so a version of a read model
//! in a schema of its own is fed like the live one.

use std::collections::BTreeMap;

use skyriff_domain::{Position, RecordedEvent, ShardId};
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::follower::Follower;

/// Make the checkpoints that are not there yet, at the beginning of the log.
///
/// # Errors
/// [`OpenError::OtherVersion`] when the tables were filled by another version of the follower: applying events to them
/// from the beginning would count everything twice.
pub(crate) async fn open<F: Follower>(
    follower: F,
    shards: &[ShardId],
    tables: &mut PgConnection,
) -> Result<(), OpenError> {
    let other: Option<i32> =
        sqlx::query_scalar("SELECT version FROM checkpoints WHERE projection = $1 AND version <> $2 LIMIT 1")
            .bind(follower.name())
            .bind(follower.version())
            .fetch_optional(&mut *tables)
            .await?;
    if let Some(found) = other {
        return Err(OpenError::OtherVersion { name: follower.name(), found, ours: follower.version() });
    }
    sqlx::query(
        "INSERT INTO checkpoints (projection, version, shard) SELECT $1, $2, unnest($3::smallint[])
         ON CONFLICT DO NOTHING",
    )
    .bind(follower.name())
    .bind(follower.version())
    .bind(shards.iter().map(|shard| number(*shard)).collect::<Vec<_>>())
    .execute(tables)
    .await?;
    Ok(())
}

/// The checkpoints could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database said no, or is gone.
    #[error("the checkpoints cannot be read")]
    Database(#[from] sqlx::Error),
    /// What is there means something else.
    #[error(
        "the tables of {name} are of its version {found}, and this program has {ours}: build them anew, with \
         `skyriff rebuild {name}` where it is a read model"
    )]
    OtherVersion {
        /// Of which follower.
        name: &'static str,
        /// What made the tables.
        found: i32,
        /// What would go on with them.
        ours: i32,
    },
}

/// How far each of these shards has come; those without a checkpoint are left out.
///
/// # Errors
/// As sqlx's.
pub(crate) async fn read<F: Follower>(
    follower: F,
    shards: &[ShardId],
    tables: &mut PgConnection,
) -> sqlx::Result<BTreeMap<ShardId, Position>> {
    let rows: Vec<(i16, i64)> = sqlx::query_as(
        "SELECT shard, position FROM checkpoints WHERE projection = $1 AND version = $2 AND shard = ANY ($3)",
    )
    .bind(follower.name())
    .bind(follower.version())
    .bind(shards.iter().map(|shard| number(*shard)).collect::<Vec<_>>())
    .fetch_all(tables)
    .await?;
    let of = |(shard, position): (i16, i64)| (ShardId(u16::try_from(shard).unwrap_or_default()), Position(position));
    Ok(rows.into_iter().map(of).collect())
}

/// Begin a transaction that moves the checkpoints from where they were read to the last event of each shard; the tables
/// are to be changed and it is to be committed by the caller. None when somebody else has moved them.
///
/// The statement that moves the checkpoints comes first: it waits for whoever works on the same rows, and for a switch of
/// versions, and nothing is locked before it.
///
/// # Errors
/// As sqlx's.
pub(crate) async fn begin_move<'c, F: Follower>(
    follower: F,
    tables: &'c mut PgConnection,
    checkpoints: &BTreeMap<ShardId, Position>,
    events: &[RecordedEvent],
) -> sqlx::Result<Option<Transaction<'c, Postgres>>> {
    let mut last = BTreeMap::new();
    for event in events {
        last.insert(event.at.shard, event.at.position);
    }
    let mut transaction = tables.begin().await?;
    let before = last.keys().map(|shard| checkpoints.get(shard).copied().unwrap_or_default().0);
    let moved = sqlx::query(
        "UPDATE checkpoints c SET position = m.last, updated_at = now(), stopped = NULL
         FROM unnest($3::smallint[], $4::bigint[], $5::bigint[]) AS m (shard, before, last)
         WHERE c.projection = $1 AND c.version = $2 AND c.shard = m.shard AND c.position = m.before",
    )
    .bind(follower.name())
    .bind(follower.version())
    .bind(last.keys().map(|shard| number(*shard)).collect::<Vec<_>>())
    .bind(before.collect::<Vec<_>>())
    .bind(last.values().map(|position| position.0).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    if moved.rows_affected() != u64::try_from(last.len()).unwrap_or(u64::MAX) {
        transaction.rollback().await?;
        return Ok(None);
    }
    Ok(Some(transaction))
}

/// A shard as the tables have it.
pub(crate) fn number(shard: ShardId) -> i16 {
    i16::try_from(shard.0).unwrap_or(i16::MAX)
}
