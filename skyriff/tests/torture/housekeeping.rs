//! Moves the command ids while they are looked up.

use anyhow::Result;
use skyriff_postgres::Server;
use sqlx::{Connection, PgConnection};

use crate::EVENTS;

/// Whether ids have moved: into the partition for the rest, as in a store whose housekeeping has not run for long, and
/// from there, by the housekeeping itself, into new partitions of the shortest width.
pub async fn move_commands(server: &Server) -> Result<bool> {
    let mut connection = server.superuser(EVENTS).await?;
    let moved = async {
        neglect(&mut connection).await?;
        let before = partitions(&mut connection).await?;
        // With the nodes' own calls in the way it may not get its locks; they are then the ones who do it.
        for _ in 0..5 {
            let kept = sqlx::query("SELECT keep_commands('1 hour')").execute(&mut connection).await;
            if kept.is_ok() {
                break;
            }
        }
        Ok::<_, sqlx::Error>(partitions(&mut connection).await? > before)
    };
    Ok(moved.await.unwrap_or(false))
}

async fn partitions(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM command_partitions").fetch_one(connection).await
}

/// Nobody looks an id up meanwhile, so that this is no fault that an append could see.
async fn neglect(connection: &mut PgConnection) -> sqlx::Result<()> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql("SET LOCAL lock_timeout = '2s'; LOCK TABLE commands IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await?;
    let names: Vec<String> =
        sqlx::query_scalar("SELECT name FROM command_partitions").fetch_all(&mut *transaction).await?;
    for name in names {
        // A table's name cannot be bound; these come from the housekeeping.
        let fold = format!(
            "ALTER TABLE commands DETACH PARTITION {name};
             INSERT INTO commands SELECT * FROM {name};
             DROP TABLE {name};
             DELETE FROM command_partitions WHERE name = '{name}'"
        );
        sqlx::raw_sql(&fold).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}
