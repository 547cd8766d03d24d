//! What a connection that appends is set up with, and the locks that it may take ahead of an append.

use std::time::Duration;

use skyriff_domain::{Position, ShardId};
use sqlx::PgConnection;

use super::{StoreError, append::number};

/// How long the streams of a batch may take to load; one with a long history and no snapshot takes its time once.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Bound every wait on the server as well, so that an append that was given up here ends there too; and keep the
/// planner to look-ups by index: plans are made once, maybe on a store that is still empty, where reading a whole table
/// looks cheap.
///
/// # Errors
/// [`StoreError`].
pub async fn prepare(connection: &mut PgConnection, append_timeout: Duration) -> Result<(), StoreError> {
    let ms = |limit: Duration| limit.as_millis().to_string();
    sqlx::query(
        "SELECT set_config('lock_timeout', $1, false), set_config('statement_timeout', $2, false),
                set_config('idle_in_transaction_session_timeout', $1, false),
                set_config('synchronous_commit', 'on', false),
                set_config('default_transaction_isolation', 'read committed', false), set_config('plan_cache_mode', 'force_generic_plan', false),
                set_config('enable_seqscan', 'off', false), set_config('enable_mergejoin', 'off', false)",
    )
    .bind(ms(append_timeout))
    .bind(ms(append_timeout.max(LOAD_TIMEOUT)))
    .execute(connection)
    .await?;
    Ok(())
}

/// Begin a transaction that owns these shards (ascending) until [`commit`] or [`abandon`]; their heads.
///
/// # Errors
/// [`StoreError`].
pub async fn lock(connection: &mut PgConnection, shards: &[ShardId]) -> Result<Vec<Position>, StoreError> {
    sqlx::query("BEGIN").execute(&mut *connection).await?;
    let numbers: Vec<_> = shards.iter().map(|shard| number(*shard)).collect();
    sqlx::query("SELECT lock_shards($1)").bind(&numbers).execute(&mut *connection).await?;
    let heads: Vec<(i64,)> = sqlx::query_as("SELECT position FROM heads WHERE shard = ANY ($1) ORDER BY shard")
        .bind(numbers)
        .fetch_all(connection)
        .await?;
    Ok(heads.into_iter().map(|(head,)| Position(head)).collect())
}

/// Make what was done since [`lock`] durable.
///
/// # Errors
/// [`StoreError`]; with [`StoreError::Lost`] nobody knows whether it is.
pub async fn commit(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(())
}

/// Undo what was done since [`lock`].
///
/// # Errors
/// [`StoreError`].
pub async fn abandon(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("ROLLBACK").execute(connection).await?;
    Ok(())
}

/// The server process behind a connection.
///
/// # Errors
/// [`StoreError`].
pub async fn backend(connection: &mut PgConnection) -> Result<i32, StoreError> {
    Ok(sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await?)
}

/// End the server process of a connection that was given up, and wait until it has ended: what it was still to do is
/// then done or never will be.
///
/// # Errors
/// [`StoreError`].
pub async fn end_backend(connection: &mut PgConnection, backend: i32) -> Result<(), StoreError> {
    sqlx::query(
        "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE pid = $1 AND usename = current_user",
    )
    .bind(backend)
    .execute(connection)
    .await?;
    Ok(())
}

/// Wait until everything that was committed so far is as durable as a commit of now would be: on the standby too, where
/// one is required.
///
/// # Errors
/// [`StoreError`].
pub async fn await_durability(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_logical_emit_message(true, 'skyriff', '')").execute(connection).await?;
    Ok(())
}

/// Whether a commit waits until a synchronous standby has it too.
///
/// # Errors
/// [`StoreError`].
pub async fn commits_on_a_standby(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let standbys: String =
        sqlx::query_scalar("SELECT current_setting('synchronous_standby_names')").fetch_one(connection).await?;
    Ok(!standbys.trim().is_empty())
}

/// Have room for new command ids, and forget those that are older than `keep`.
///
/// # Errors
/// [`StoreError`].
pub async fn keep_commands(connection: &mut PgConnection, keep: Duration) -> Result<(), StoreError> {
    let seconds = i64::try_from(keep.as_secs()).unwrap_or(i64::MAX);
    sqlx::query("SELECT keep_commands(make_interval(secs => $1))").bind(seconds).execute(connection).await?;
    Ok(())
}
