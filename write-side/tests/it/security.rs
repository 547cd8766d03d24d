//! The database defends itself: what each role may not do, whatever its process asks for.

use skyriff_postgres::databases::{COMMAND, PROJECT, QUERY};
use sqlx::{ConnectOptions, Executor, PgConnection};

use crate::store::{Store, earn, once, some_user};

/// SQLSTATE `insufficient_privilege`.
const DENIED: &str = "42501";

async fn assert_denied(connection: &mut PgConnection, role: &str, statements: &[&str]) {
    for statement in statements {
        let error = connection.execute(*statement).await.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some(DENIED), "{role}: {statement}: {error}");
    }
}

const INSERT_EVENT: &str = "INSERT INTO events SELECT shard, position + 1, aggregate_type, aggregate_id, sequence + 1,
    event_type, event_version, payload, metadata, occurred_at, recorded_at FROM events";
const APPEND: &str =
    "SELECT append('{0}', '{0}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
    '{}', '{}', '{}', '{}', '{}', '{}', '{}')";

#[tokio::test]
async fn recorded_events_cannot_be_changed_by_anybody_who_serves() {
    let store = Store::create().await;
    let node = store.node();
    node.commands.execute(once(some_user(), earn(1))).await.unwrap();
    let never = [
        "UPDATE events SET payload = payload",
        "DELETE FROM events",
        "TRUNCATE events",
        "DROP TABLE events",
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "UPDATE commands SET events = 0",
        "DELETE FROM commands",
        "TRUNCATE commands",
        "DELETE FROM shards",
        "INSERT INTO shards (shard) VALUES (99)",
        "UPDATE store SET shard_count = 32",
        "CREATE TABLE mine (x int)",
        "CREATE OR REPLACE FUNCTION append() RETURNS void LANGUAGE sql AS ''",
    ];
    for role in [COMMAND, PROJECT, QUERY] {
        assert_denied(&mut store.connect(role).await, role, &never).await;
    }
    for role in [PROJECT, QUERY] {
        let appends = [
            INSERT_EVENT,
            APPEND,
            "SELECT lock_shards('{0}')",
            "INSERT INTO commands SELECT gen_random_uuid(), fingerprint, shard, position, events, recorded_at FROM commands",
            "INSERT INTO snapshots VALUES ('a', 'b', 1, 1, '', '')",
            "SELECT * FROM commands",
        ];
        assert_denied(&mut store.connect(role).await, role, &appends).await;
    }
    assert_eq!(store.log().await.len(), 1);
}

#[tokio::test]
async fn read_models_are_written_by_the_projector_only() {
    let store = Store::create().await;
    let writes = [
        "INSERT INTO checkpoints (projection, version, shard) VALUES ('balances', 1, 0)",
        "UPDATE checkpoints SET position = 0",
        "INSERT INTO balances VALUES (gen_random_uuid(), 0, 0, 0, 0, 0, 0, 0, 0)",
        "UPDATE balances SET available_promo = 0",
        "DELETE FROM balances",
        "INSERT INTO promo_lots VALUES (gen_random_uuid(), now(), 1)",
        "DELETE FROM promo_lots",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
        "SELECT ensure_ledger_month('2026-01-01')",
        "CREATE TABLE mine (x int)",
    ];
    let mut query = store.read_models(QUERY).connect().await.unwrap();
    assert_denied(&mut query, QUERY, &writes).await;
    let mut command = store.read_models(COMMAND).connect().await.unwrap();
    // Without the right to the schema its tables are not even seen.
    assert_denied(&mut command, COMMAND, &["SELECT * FROM public.balances", "CREATE TABLE public.mine (x int)"]).await;
    let ledger = ["UPDATE ledger_entries SET amount = 1", "DELETE FROM ledger_entries", "TRUNCATE ledger_entries"];
    let mut project = store.read_models(PROJECT).connect().await.unwrap();
    assert_denied(&mut project, PROJECT, &ledger).await;
    assert_denied(&mut project, PROJECT, &["CREATE TABLE mine (x int)", "DROP TABLE balances"]).await;
}
