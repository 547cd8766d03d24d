//! A private primary and its streaming replica in one folder.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use sqlx::Connection;

use crate::{
    binaries::Binaries,
    lifecycle::{Instance, Running},
    os_user::OsUser,
    server::{PORT, SUPERUSER, Server},
};

/// The longest path of a unix socket, less one for its end (`sun_path` on Linux).
const SOCKET_PATH_MAX: usize = 107;
/// The primary's replication slot: keeps the log that the replica has not read, up to the limit in its settings.
const SLOT: &str = "replica";

/// What survives when the machine loses power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Everything acknowledged: for anything but tests.
    Full,
    /// Everything acknowledged, even if the primary's machine never comes back: a commit waits for the replica.
    OnReplicaToo,
    /// Only for tests, whose databases live for seconds. A killed process loses nothing either way.
    UntilPowerLoss,
}

/// Which servers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// A primary and a replica that follows it.
    PrimaryAndReplica,
    /// Only a primary, for measuring what one costs.
    Primary,
}

/// A running private primary and replica. Stop it with [`Cluster::stop`].
#[derive(Debug)]
pub struct Cluster {
    primary: Running,
    replica: Option<Running>,
    /// Held while we run, so that two never work in one folder.
    _lock: File,
}

impl Cluster {
    /// Make what is missing in `folder`, recover what an earlier run left, and start both servers. `say` gets one line
    /// before each step that takes time.
    ///
    /// # Errors
    /// When another process uses the folder, no Postgres is found, or a server does not start; the message says why
    /// and what to do.
    pub async fn start(folder: &Path, servers: Servers, durability: Durability, say: impl Fn(&str)) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = &folder.canonicalize()?;
        let lock = lock(folder)?;
        let binaries = Binaries::find(&folder.join("postgres"))?;
        let user = OsUser::choose()?;
        let data = data_folder(folder, user)?;
        let instance = |name, settings: Vec<String>| Instance {
            name,
            data: data.join(name),
            log: folder.join(format!("{name}.log")),
            settings,
            binaries: binaries.clone(),
            user,
            server: Server { socket_folder: socket_folder(folder, name) },
        };

        let primary = instance("primary", settings(durability));
        if !primary.data.exists() {
            say(&format!("making a private Postgres {} in {}", binaries.major(), data.display()));
        }
        primary.make(|folder| {
            let mut initdb = Command::new(binaries.program("initdb"));
            initdb.args(["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]);
            initdb.args(["--data-checksums", "--pgdata"]).arg(folder);
            initdb
        })?;
        say("starting the primary");
        let primary = primary.start().await?;
        if servers == Servers::Primary {
            return Ok(Self { primary, replica: None, _lock: lock });
        }

        let mut settings = settings(durability);
        let from = primary.instance().server.socket_folder.display().to_string();
        settings.push(format!("primary_conninfo=host='{from}' port={PORT} user={SUPERUSER}"));
        settings.push(format!("primary_slot_name={SLOT}"));
        let replica = match start_replica(&instance("replica", settings), &primary.instance().server, &say).await {
            Ok(replica) => Some(replica),
            Err(error) => {
                primary.stop().await.ok();
                return Err(error);
            }
        };
        synchronize(&primary.instance().server, durability).await?;
        Ok(Self { primary, replica, _lock: lock })
    }

    /// Where commands go.
    pub fn primary(&self) -> &Server {
        &self.primary.instance().server
    }

    /// Where queries go: the primary, if there is no replica.
    pub fn replica(&self) -> &Server {
        &self.replica.as_ref().unwrap_or(&self.primary).instance().server
    }

    /// Ends only when a server died and could not be started again.
    pub async fn failed(&mut self) -> anyhow::Error {
        let replica = async {
            match &mut self.replica {
                Some(replica) => replica.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = self.primary.failed() => error,
            error = replica => error,
        }
    }

    /// Stop both and wait until they have stopped.
    ///
    /// # Errors
    /// When one cannot be stopped.
    pub async fn stop(self) -> Result<()> {
        let replica = match self.replica {
            Some(replica) => replica.stop().await,
            None => Ok(()),
        };
        self.primary.stop().await.and(replica)
    }
}

/// Start the replica; one that cannot follow the primary any more is made again from it.
async fn start_replica(replica: &Instance, primary: &Server, say: &impl Fn(&str)) -> Result<Running> {
    let mut made_again = false;
    loop {
        let mut connection = primary.superuser("postgres").await?;
        sqlx::query(
            "SELECT pg_create_physical_replication_slot($1, true)
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
        )
        .bind(SLOT)
        .execute(&mut connection)
        .await?;
        connection.close().await?;

        if !replica.data.exists() {
            say("copying the primary to the replica");
        }
        replica.make(|folder| {
            let mut copy = Command::new(replica.binaries.program("pg_basebackup"));
            copy.args(["--username", SUPERUSER, "--checkpoint", "fast", "--wal-method", "stream", "--pgdata"]);
            copy.arg(folder).arg("--host").arg(&primary.socket_folder).arg("--port").arg(PORT.to_string());
            copy.arg("--no-password");
            copy
        })?;
        fs::write(replica.data.join("standby.signal"), "")?;
        replica.user.own(&replica.data.join("standby.signal"))?;
        say("starting the replica");
        let reason = match replica.clone().start().await {
            Err(error) => error,
            Ok(running) => match follows(primary).await {
                Ok(()) => return Ok(running),
                Err(error) => {
                    running.stop().await?;
                    error
                }
            },
        };
        if made_again {
            return Err(reason);
        }
        made_again = true;
        say(&format!("the replica cannot follow the primary, so it is made again ({reason})"));
        fs::remove_dir_all(&replica.data)?;
        let mut connection = primary.superuser("postgres").await?;
        sqlx::query("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1")
            .bind(SLOT)
            .execute(&mut connection)
            .await?;
    }
}

/// Have commits wait for the replica, or not. Only now that it follows: before, nothing could commit.
async fn synchronize(primary: &Server, durability: Durability) -> Result<()> {
    let mut connection = primary.superuser("postgres").await?;
    let setting = match durability {
        Durability::OnReplicaToo => "ALTER SYSTEM SET synchronous_standby_names = '*'",
        Durability::Full | Durability::UntilPowerLoss => "ALTER SYSTEM RESET synchronous_standby_names",
    };
    sqlx::query(setting).execute(&mut connection).await?;
    sqlx::query("SELECT pg_reload_conf()").execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Wait until the primary streams to it.
async fn follows(primary: &Server) -> Result<()> {
    let limit = Duration::from_secs(30);
    let end = tokio::time::Instant::now() + limit;
    let mut connection = primary.superuser("postgres").await?;
    loop {
        let streams: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')")
                .fetch_one(&mut connection)
                .await?;
        if streams {
            connection.close().await?;
            return Ok(());
        }
        if tokio::time::Instant::now() >= end {
            bail!("it does not stream from the primary after {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another skyriff works in {}; stop it first, or give this one another folder with --folder",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// The folder itself, unless the servers' user cannot get there (a project below `/root`).
fn data_folder(folder: &Path, user: OsUser) -> Result<PathBuf> {
    if user.can_enter(folder) {
        return Ok(folder.to_owned());
    }
    let elsewhere = PathBuf::from(format!("/var/lib/skyriff-{}", short_name(folder)));
    fs::create_dir_all(&elsewhere)
        .with_context(|| format!("Postgres cannot enter {}, so it needs another place", folder.display()))?;
    Ok(elsewhere)
}

/// Beside the data, unless that path is too long for a socket or closed to the servers' user.
fn socket_folder(folder: &Path, name: &str) -> PathBuf {
    let beside = folder.join("run").join(name);
    let socket = beside.join(format!(".s.PGSQL.{PORT}.lock"));
    let open = OsUser::choose().is_ok_and(|user| user.can_enter(folder));
    if open && socket.as_os_str().len() <= SOCKET_PATH_MAX {
        return beside;
    }
    std::env::temp_dir().join(format!("skyriff-{}-{name}", short_name(folder)))
}

fn short_name(folder: &Path) -> String {
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Enough for one machine; what a production cluster would set is in the deployment's files.
fn settings(durability: Durability) -> Vec<String> {
    let mut settings: Vec<String> = [
        "listen_addresses=",
        "max_connections=200",
        "shared_buffers=256MB",
        "wal_level=replica",
        "max_wal_size=2GB",
        "max_wal_senders=10",
        "max_replication_slots=10",
        // The replica may be away for a while; it is made again when it was away for longer.
        "max_slot_wal_keep_size=4GB",
        "hot_standby=on",
        // Vacuum waits for the replica's readers, so that they are never cancelled.
        "hot_standby_feedback=on",
        "wal_receiver_status_interval=1s",
        "wal_receiver_timeout=10s",
        "wal_retrieve_retry_interval=200ms",
        "synchronous_commit=on",
        "log_min_messages=warning",
        "log_line_prefix=%m [%p] %q%u@%d ",
        "timezone=UTC",
    ]
    .map(str::to_owned)
    .to_vec();
    if durability == Durability::UntilPowerLoss {
        settings.extend(["fsync=off", "full_page_writes=off"].map(str::to_owned));
    }
    settings
}
