//! Databases for tests: each test has its own, copied from a migrated template in the servers of `with-postgres`.

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use skyriff_domain::ShardCount;
use sqlx::{
    Connection, Executor,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use uuid::Uuid;

use crate::{Cluster, Server, databases};

/// Where `with-postgres` says that its servers are.
pub const FOLDER: &str = "SKYRIFF_TEST_POSTGRES";

const EVENT_STORE: &str = "template_event_store";
const READ_MODELS: &str = "template_read_models";

/// Make the templates.
///
/// # Errors
/// As migrations'.
pub async fn prepare(cluster: &Cluster) -> Result<()> {
    let primary = cluster.primary();
    let count = ShardCount::default();
    databases::create(primary, &[EVENT_STORE, READ_MODELS]).await?;
    let shards: Vec<_> = count.shards().collect();
    databases::migrate_event_store(&primary.options(databases::OWNER, EVENT_STORE), count, &shards).await?;
    databases::migrate_read_models(&primary.options(databases::OWNER, READ_MODELS)).await
}

/// One test's databases, empty and migrated; they go with the servers when the tests are over.
#[derive(Debug)]
pub struct TestDatabases {
    primary: Server,
    replica: Server,
    name: String,
}

impl TestDatabases {
    /// New ones.
    ///
    /// # Panics
    /// When the tests were not started through `make test`, or the servers cannot be reached.
    #[expect(clippy::panic, reason = "only tests call it, and want to stop right here")]
    pub async fn create() -> Self {
        match Self::try_create().await {
            Ok(databases) => databases,
            Err(error) => panic!("no databases to test with: {error:#}"),
        }
    }

    async fn try_create() -> Result<Self> {
        let folder = env::var_os(FOLDER).map(PathBuf::from);
        let folder = folder.with_context(|| format!("{FOLDER} is not set; run the tests with `make test`"))?;
        let server = |name| Server { socket_folder: folder.join("run").join(name) };
        let databases =
            Self { primary: server("primary"), replica: server("replica"), name: Uuid::new_v4().simple().to_string() };
        let mut connection = databases.primary.superuser("postgres").await?;
        // Copying a template wants it for itself for a moment; other tests wait for the lock instead of failing.
        connection.execute("SELECT pg_advisory_lock(1)").await?;
        for (kind, template) in [("events", EVENT_STORE), ("reads", READ_MODELS)] {
            let database = databases.database(kind);
            let statement = format!("CREATE DATABASE {database} TEMPLATE {template} OWNER {}", databases::OWNER);
            connection.execute(statement.as_str()).await?;
        }
        connection.close().await?;
        Ok(databases)
    }

    fn database(&self, kind: &str) -> String {
        format!("{kind}_{}", self.name)
    }

    /// The event store, as `role`.
    pub fn event_store(&self, role: &str) -> PgConnectOptions {
        self.primary.options(role, &self.database("events"))
    }

    /// The read models on the primary, as `role`.
    pub fn read_models(&self, role: &str) -> PgConnectOptions {
        self.primary.options(role, &self.database("reads"))
    }

    /// The read models on the replica, as `role`.
    pub fn replica(&self, role: &str) -> PgConnectOptions {
        self.replica.options(role, &self.database("reads"))
    }

    /// A small pool that connects when first used.
    pub fn pool(options: PgConnectOptions) -> PgPool {
        PgPoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(10)).connect_lazy_with(options)
    }
}
