//! How to reach a private server.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

/// A Postgres server behind a unix socket.
#[derive(Clone, Debug)]
pub struct Server {
    /// The folder of its socket.
    pub socket_folder: PathBuf,
}

/// The number in the socket's file name; each server has a folder of its own, so it is always the same.
pub(crate) const PORT: u16 = 5432;

impl Server {
    /// How to connect as `role` to `database`.
    pub fn options(&self, role: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.socket_folder)
            .port(PORT)
            .username(role)
            .database(database)
            .log_statements(tracing::log::LevelFilter::Trace)
    }

    /// Where a database is, as a URL without a role.
    pub fn url(&self, database: &str) -> String {
        let folder = self.socket_folder.to_string_lossy().replace('%', "%25").replace('/', "%2F").replace(' ', "%20");
        format!("postgres://{folder}:{PORT}/{database}")
    }

    /// Connect as the private server's superuser.
    ///
    /// # Errors
    /// As sqlx's.
    pub async fn superuser(&self, database: &str) -> sqlx::Result<PgConnection> {
        self.options(SUPERUSER, database).connect().await
    }

    /// Wait until it answers a query.
    ///
    /// # Errors
    /// When it does not within `limit`; the message has the last reason.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let attempt = async {
                let mut connection = self.superuser("postgres").await?;
                sqlx::query("SELECT 1").execute(&mut connection).await?;
                connection.close().await
            };
            let reason = match tokio::time::timeout_at(end, attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it accepted the connection and did not answer".to_owned(),
            };
            if tokio::time::Instant::now() >= end {
                bail!("Postgres in {} is not ready after {limit:?}: {reason}", self.socket_folder.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The superuser of the private servers.
pub(crate) const SUPERUSER: &str = "postgres";
