//! Projectors held up for a moment, so that two versions are where each other is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skyriff_domain::ShardId;
use skyriff_follow::Builder;
use skyriff_projections::Projection;
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use super::positions::{live_positions, positions_of};

/// Projectors wait no longer than this for the last events to be applied; it is tried again then.
pub const FREEZE_MAX: Duration = Duration::from_millis(500);
/// A lock is waited for so long at first, then twice as long each time. Queries that come meanwhile wait as well, so the
/// most is less than they are given; it is more than Postgres takes to make a vacuum give way.
pub const LOCK_WAIT: Duration = Duration::from_millis(100);
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// What whoever waited in vain is told.
pub const STANDS_NOT_STILL: &str =
    "what is live does not stand still for long enough; try again, or give it longer with --wait-s";

/// Where a version has to be beside the live one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// At the very same positions, or rows could not be compared.
    Same,
    /// Further is as good: rows and checkpoints become live together.
    NotBehind,
}

/// The transaction that holds up the live version's projectors while this one is where that is, and since when.
pub async fn freeze<'c>(
    owner: &'c mut PgConnection,
    builder: &Builder<Projection>,
    projection: Projection,
    beside: Beside,
    wait: Duration,
) -> Result<(Transaction<'c, Postgres>, Instant)> {
    let mut feeder = builder.feeder().await?;
    let mut frozen = hold_up_projectors(owner, wait).await?;
    let since = Instant::now();
    let live = positions_of(live_positions(&mut frozen, projection).await?);
    let fed = tokio::time::timeout(FREEZE_MAX, async {
        feeder.feed(&live).await?;
        feeder.positions().await
    });
    let ours = fed.await.map_err(|_| NotBeside::TooFarBehind)??;
    for (shard, live) in &live {
        let ours = ours.get(shard).with_context(|| {
            format!(
                "shard {shard} has rows here, and lives elsewhere by the configuration: end its move first (--forget)"
            )
        })?;
        ensure!(ours >= live, "the live version has read shard {shard} up to {live}, and this one up to {ours}");
    }
    let ahead = ours.iter().find(|(shard, ours)| **ours > live.get(shard).copied().unwrap_or_default());
    if let (Some((shard, _)), Beside::Same) = (ahead, beside) {
        return Err(NotBeside::Ahead(*shard).into());
    }
    Ok((frozen, since))
}

/// A transaction that does so until it ends; readers do not notice.
pub async fn hold_up_projectors(owner: &mut PgConnection, wait: Duration) -> sqlx::Result<Transaction<'_, Postgres>> {
    let mut frozen = owner.begin().await?;
    sqlx::query("SELECT set_config('lock_timeout', $1, true)")
        .bind(format!("{}ms", wait.as_millis()))
        .execute(&mut *frozen)
        .await?;
    sqlx::query("LOCK TABLE checkpoints IN EXCLUSIVE MODE").execute(&mut *frozen).await?;
    Ok(frozen)
}

/// For how long to wait for a lock the next time.
pub fn longer(wait: Duration) -> Duration {
    (wait * 2).min(LOCK_WAIT_MAX)
}

/// The version was not where it has to be beside the live one; it may be with the next try.
#[derive(Debug, thiserror::Error)]
enum NotBeside {
    #[error("applying the last events takes longer than projectors may wait ({FREEZE_MAX:?})")]
    TooFarBehind,
    #[error("the live version has not yet read what this one has of shard {0}")]
    Ahead(ShardId),
}

/// Locks that others have; a deadlock with somebody who takes them in another order.
pub fn is_in_the_way(error: &anyhow::Error) -> bool {
    let code = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<sqlx::Error>())
        .find_map(|error| error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned())));
    error.is::<NotBeside>() || code.is_some_and(|code| code == "55P03" || code == "40P01")
}
