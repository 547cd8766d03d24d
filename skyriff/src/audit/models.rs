//! The read models of a shard beside the fold of its events, at the very position that each of them has come to.
//!
//! All of it is seen at one moment (a transaction that begins with `checkpoints`, like any query), and each read model is
//! compared when the fold is where its checkpoint is: so a store that is in use is compared as exactly as one that rests.

mod balances;
mod entries;
mod likes;
mod tips;
mod videos;

pub use videos::check_holds;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use skyriff_domain::{Position, ShardId};
use skyriff_follow::Follower;
use skyriff_projections::Projection;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use tokio::time::Instant;

use super::fold::Shard;

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A moment of the read models, and how far each of them was then.
pub struct Moment<'c> {
    transaction: Transaction<'c, Postgres>,
    pub positions: BTreeMap<Position, Vec<Projection>>,
}

/// The first moment in which every read model of the shard has come at least this far.
pub async fn moment(
    connection: &mut PgConnection,
    shard: ShardId,
    at_least: Position,
    patience: Duration,
) -> Result<Moment<'_>> {
    let end = Instant::now() + patience;
    loop {
        let behind = positions(&mut *connection, shard).await?;
        match behind.into_iter().min_by_key(|checkpoint| checkpoint.position) {
            Some(first) if first.position < at_least => {
                let Checkpoint { projection, position, stopped } = first;
                if Instant::now() > end {
                    let why = stopped.as_deref().unwrap_or("no projector seems to be running, or it is slow");
                    bail!(
                        "the read model {projection} of shard {shard} is at {position}, and the log at {at_least}, after \
                         {patience:?}: {why}"
                    );
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Some(_) | None => break,
        }
    }
    // The door first, as a lock: see `moment` of the queries.
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE checkpoints IN ACCESS SHARE MODE";
    let mut transaction = connection.begin_with(begin).await.context("the read models cannot be read")?;
    let mut positions_now: BTreeMap<Position, Vec<Projection>> = BTreeMap::new();
    for Checkpoint { projection, position, .. } in positions(&mut transaction, shard).await? {
        positions_now.entry(position).or_default().push(projection);
    }
    Ok(Moment { transaction, positions: positions_now })
}

struct Checkpoint {
    projection: Projection,
    position: Position,
    stopped: Option<String>,
}

/// One that has never run is at the start.
async fn positions(connection: &mut PgConnection, shard: ShardId) -> Result<Vec<Checkpoint>> {
    let rows: Vec<(String, i64, Option<String>)> = sqlx::query_as(
        "SELECT p.projection, coalesce(c.position, 0), c.stopped
         FROM unnest($1::text[], $2::integer[]) AS p (projection, version)
         LEFT JOIN checkpoints c ON c.projection = p.projection AND c.version = p.version AND c.shard = $3",
    )
    .bind(Projection::ALL.map(Projection::name))
    .bind(Projection::ALL.map(Projection::version))
    .bind(number(shard)?)
    .fetch_all(connection)
    .await
    .context("the read models cannot be read")?;
    let of = |(name, position, stopped): (String, i64, Option<String>)| {
        Ok(Checkpoint { projection: name.parse()?, position: Position(position), stopped })
    };
    rows.into_iter().map(of).collect()
}

impl Moment<'_> {
    /// Compare one with the fold, which is where its checkpoint is.
    pub async fn compare(&mut self, projection: Projection, log: &mut PgConnection, shard: &mut Shard) -> Result<()> {
        let connection = &mut *self.transaction;
        match projection {
            Projection::Balances => balances::compare(connection, shard).await,
            Projection::LedgerEntries => entries::compare(connection, log, shard).await,
            Projection::Likes => likes::compare(connection, shard).await,
            Projection::Tips => tips::compare(connection, shard).await,
            Projection::VideoJobs => videos::compare(connection, shard).await,
            // What they show is in no books; `skyriff rebuild` compares them with what the log makes of them.
            Projection::Reconciliations | Projection::Withdrawals | Projection::Works => Ok(()),
        }
        .with_context(|| format!("the read model {projection} of shard {} cannot be compared", shard.id))
    }
}

fn number(shard: ShardId) -> Result<i16> {
    Ok(i16::try_from(shard.0)?)
}
