//! Event stores to measure on. Each part of the run has its own, so that none starts on what another has left.

use anyhow::Result;
use skyriff_domain::{ShardCount, ShardId, UserId};
use skyriff_postgres::{Server, databases};
use skyriff_write_side::event_store;
use sqlx::{ConnectOptions, Connection};

/// Make an empty one, in the place of one that is there.
pub async fn fresh(server: &Server, database: &str) -> Result<()> {
    let mut connection = server.superuser("postgres").await?;
    // A name from our own code.
    sqlx::raw_sql(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).execute(&mut connection).await?;
    connection.close().await?;
    databases::create(server, &[database]).await?;
    databases::migrate_event_store(&server.options(databases::OWNER, database), ShardCount::default(), &shards()).await
}

/// All of its shards.
pub fn shards() -> Vec<ShardId> {
    ShardCount::default().shards().collect()
}

/// How many events it has: positions have no gaps.
pub async fn events(server: &Server, database: &str) -> Result<i64> {
    let mut connection = server.options(databases::COMMAND, database).connect().await?;
    let heads = event_store::heads(&mut connection, &shards()).await?;
    connection.close().await?;
    Ok(heads.into_iter().flatten().map(|head| head.0).sum())
}

/// The account that the load calls by this number.
pub fn account(number: u64) -> Result<UserId> {
    Ok(format!("00000000-0000-4000-8000-{number:012}").parse()?)
}
