//! How far the live version in a read database has come.

use std::collections::BTreeMap;

use skyriff_domain::{Position, ShardId};
use skyriff_follow::Follower;
use skyriff_projections::Projection;
use sqlx::PgConnection;

/// How far each shard has come.
pub type Positions = BTreeMap<ShardId, Position>;

/// How far the live version has come with a shard, and why it stands still there if it does.
#[derive(Clone, Debug, Default)]
pub struct Live {
    pub position: Position,
    pub stopped: Option<String>,
}

pub fn positions_of(live: BTreeMap<ShardId, Live>) -> Positions {
    live.into_iter().map(|(shard, live)| (shard, live.position)).collect()
}

/// As the tables have it.
pub fn shard(number: i16) -> ShardId {
    ShardId(u16::try_from(number).unwrap_or_default())
}

pub async fn live_positions(
    connection: &mut PgConnection,
    projection: Projection,
) -> sqlx::Result<BTreeMap<ShardId, Live>> {
    let rows: Vec<(i16, i64, Option<String>)> =
        sqlx::query_as("SELECT shard, position, stopped FROM public.checkpoints WHERE projection = $1")
            .bind(projection.name())
            .fetch_all(connection)
            .await?;
    let of = |(number, position, stopped): (i16, i64, Option<String>)| {
        (shard(number), Live { position: Position(position), stopped })
    };
    Ok(rows.into_iter().map(of).collect())
}
