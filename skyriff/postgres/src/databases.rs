//! The databases of a store: made, migrated, and checked against what they were created as.

use anyhow::{Context, Result, bail};
use skyriff_domain::{ShardCount, ShardId};
use sqlx::{ConnectOptions, Connection, PgConnection, migrate::Migrator, postgres::PgConnectOptions};

use crate::server::Server;

/// The role that owns the tables.
pub const OWNER: &str = "skyriff_owner";
/// The role that appends events.
pub const COMMAND: &str = "skyriff_command";
/// The role that writes read models.
pub const PROJECT: &str = "skyriff_project";
/// The role that keeps what processes have yet to do.
pub const PROCESS: &str = "skyriff_process";
/// The role that reads.
pub const QUERY: &str = "skyriff_query";
/// The role that sends the log on.
pub const RELAY: &str = "skyriff_relay";
/// The role that seals the log.
pub const SEAL: &str = "skyriff_seal";

static EVENT_STORE: Migrator = sqlx::migrate!("../../migrations/event-store");
static READ_MODELS: Migrator = sqlx::migrate!("../../migrations/read-models");
const ROLES: &str = include_str!("../../../migrations/roles.sql");

/// Make the roles, and the databases that are not there yet, on a private server.
///
/// # Errors
/// As sqlx's.
pub async fn create(server: &Server, databases: &[&str]) -> Result<()> {
    let mut connection = server.superuser("postgres").await?;
    sqlx::raw_sql(ROLES).execute(&mut connection).await?;
    for database in databases {
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(database)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            // A database's name cannot be bound; these come from our own code.
            sqlx::raw_sql(&format!("CREATE DATABASE {database} OWNER {OWNER}")).execute(&mut connection).await?;
        }
        let mut database = server.superuser(database).await?;
        sqlx::raw_sql(&format!("ALTER SCHEMA public OWNER TO {OWNER}")).execute(&mut database).await?;
        database.close().await?;
    }
    connection.close().await?;
    Ok(())
}

/// Bring an event store's database up to date, as its owner, and give it the shards that are new to it.
///
/// # Errors
/// When the store was created with another shard count, or a migration fails.
pub async fn migrate_event_store(owner: &PgConnectOptions, count: ShardCount, shards: &[ShardId]) -> Result<()> {
    let mut connection = owner.clone().connect().await.context("cannot reach the event store")?;
    EVENT_STORE.run(&mut connection).await.context("cannot migrate the event store")?;
    let numbers = |shard: &ShardId| i16::try_from(shard.0);
    let shards = shards.iter().map(numbers).collect::<Result<Vec<_>, _>>()?;
    sqlx::query("INSERT INTO store (shard_count) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(i16::try_from(count.get())?)
        .execute(&mut connection)
        .await?;
    sqlx::query("INSERT INTO shards (shard) SELECT unnest($1::smallint[]) ON CONFLICT DO NOTHING")
        .bind(&shards)
        .execute(&mut connection)
        .await?;
    check_shard_count(&mut connection, count).await?;
    connection.close().await?;
    Ok(())
}

/// Bring a read database up to date, as its owner.
///
/// # Errors
/// When a migration fails.
pub async fn migrate_read_models(owner: &PgConnectOptions) -> Result<()> {
    let mut connection = owner.clone().connect().await.context("cannot reach the read models")?;
    READ_MODELS.run(&mut connection).await.context("cannot migrate the read models")?;
    connection.close().await?;
    Ok(())
}

/// Refuse to work on a store of another shard count: it would look for users in other logs.
///
/// # Errors
/// When the counts differ, or the store was never migrated.
pub async fn check_shard_count(connection: &mut PgConnection, count: ShardCount) -> Result<()> {
    let stored: i16 = sqlx::query_scalar("SELECT shard_count FROM store")
        .fetch_one(connection)
        .await
        .context("cannot read what the event store was created as; run `skyriff migrate` first")?;
    if stored != i16::try_from(count.get())? {
        bail!(
            "the event store was created with {stored} shards and the configuration says {}: \
             the count is fixed for the life of a store, so set it back",
            count.get()
        );
    }
    Ok(())
}
