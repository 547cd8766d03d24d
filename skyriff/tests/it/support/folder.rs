//! A folder for `skyriff dev`, and `skyriff dev` running in it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::process::Command;
use uuid::Uuid;

use super::{Api, Ended, Process, eventually, skyriff};

/// Where a `skyriff dev` keeps everything. Dropped, it takes every process that works in it along.
pub struct Folder(TempDir);

impl Folder {
    /// One that does not exist yet, at a place that every user can enter: Postgres never runs as root.
    pub fn new() -> Self {
        let place = tempfile::Builder::new().prefix("skyriff-it-").permissions(Permissions::from_mode(0o755)).tempdir();
        Self(place.unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("folder")
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn as_str(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    /// `skyriff dev`, not waited for.
    pub fn spawn_dev(&self, listen: &str) -> Process {
        self.spawn_dev_with(listen, &[])
    }

    pub fn spawn_dev_with(&self, listen: &str, arguments: &[&str]) -> Process {
        let folder = self.as_str();
        Process::spawn(skyriff(&[&["dev", "--folder", &folder, "--listen", listen], arguments].concat()))
    }

    /// `skyriff dev`, when it says that it runs.
    pub async fn dev_at(&self, listen: &str) -> Dev {
        self.dev_of(self.spawn_dev(listen)).await
    }

    /// The same, with more arguments.
    pub async fn dev_with(&self, arguments: &[&str]) -> Dev {
        self.dev_of(self.spawn_dev_with("127.0.0.1:0", arguments)).await
    }

    /// Likewise, with these variables.
    pub async fn dev_with_variables(&self, listen: &str, variables: &[(&str, &str)]) -> Dev {
        let mut command = skyriff(&["dev", "--folder", &self.as_str(), "--listen", listen]);
        command.envs(variables.iter().copied());
        self.dev_of(Process::spawn(command)).await
    }

    /// A `skyriff dev` that was spawned, when it says that it runs.
    pub async fn dev_of(&self, mut process: Process) -> Dev {
        let welcome = process.says("its welcome", |said| said.contains("/ledger-entries").then(|| said.to_owned()));
        let welcome = welcome.await;
        let after = |start: &str, end: char| {
            let (_, rest) = welcome.split_once(start).unwrap_or_else(|| panic!("no {start:?} in {welcome}"));
            rest.split_once(end).unwrap().0.to_owned()
        };
        let address = after("running at http://", ' ').trim_end_matches(':').to_owned();
        let user = after("token for the user ", ',').parse().unwrap();
        let token = after("30 days:\n\n", '\n').trim().to_owned();
        Dev { api: Api::new(&format!("http://{address}"), &token), process, user, welcome }
    }

    pub async fn dev(&self) -> Dev {
        self.dev_at("127.0.0.1:0").await
    }

    /// Run the binary on this folder's databases until it ends.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        Process::spawn(self.with_databases(skyriff(arguments))).end().await
    }

    /// The command with the variables that lead to this folder's databases.
    pub fn with_databases(&self, mut command: Command) -> Command {
        let variables = fs::read_to_string(self.join("databases.env")).unwrap();
        for line in variables.lines() {
            let (name, value) = line.split_once('=').unwrap();
            command.env(name, value.trim_matches('\''));
        }
        command
    }

    /// A token, minted the way an operator does.
    pub async fn token(&self, role: &str, id: Uuid) -> String {
        let (id, folder) = (id.to_string(), self.as_str());
        let minted = self.run(&["token", "--user", &id, "--role", role, "--folder", &folder]).await.well();
        minted.stdout.trim().to_owned()
    }

    /// The replica stands still from now on, until it is told `pg_wal_replay_resume()`: what comes back is a connection to it.
    pub async fn pause_replica(&self) -> PgConnection {
        let options = PgConnectOptions::new_without_pgpass().socket(self.join("run/replica")).username("postgres");
        let mut replica = PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap();
        replica.execute("SELECT pg_wal_replay_pause()").await.unwrap();
        eventually("a replica that stands still", async || {
            let state = sqlx::query_scalar::<_, String>("SELECT pg_get_wal_replay_pause_state()");
            (state.fetch_one(&mut replica).await.unwrap() == "paused").then_some(())
        })
        .await;
        replica
    }

    /// What `skyriff audit verify` reports, when it finds nothing wrong.
    pub async fn audit(&self) -> Value {
        let report = self.run(&["audit", "verify", "--json"]).await.well();
        serde_json::from_str(&report.stdout).unwrap()
    }

    /// The process of `primary` or `replica`, if its pid file is there and does not lie.
    pub fn postmaster(&self, server: &str) -> Option<Pid> {
        let data = self.join(server);
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.parse().ok()?)?;
        works_in(pid, &data).then_some(pid)
    }

    /// Every process with an argument that is this folder or something in it; of a Postgres only its first process.
    pub fn processes(&self) -> Vec<Pid> {
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        all.filter_map(Pid::from_raw).filter(|pid| works_in(*pid, &self.path())).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let processes = self.processes();
            if processes.is_empty() || Instant::now() > end {
                return;
            }
            // Whoever would start a server again goes first. A server gets the signal that lets it clean up.
            let is_server =
                |pid: &Pid| self.postmaster("primary") == Some(*pid) || self.postmaster("replica") == Some(*pid);
            let (servers, others): (Vec<_>, Vec<_>) = processes.into_iter().partition(is_server);
            let (now, signal) = if others.is_empty() { (servers, Signal::QUIT) } else { (others, Signal::KILL) };
            for pid in now {
                kill_process(pid, signal).ok();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A process that has ended and was not waited for yet has no arguments any more.
fn works_in(pid: Pid, folder: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    arguments
        .split(|byte| *byte == 0)
        .any(|argument| std::str::from_utf8(argument).is_ok_and(|argument| Path::new(argument).starts_with(folder)))
}

/// A running `skyriff dev`.
pub struct Dev {
    pub process: Process,
    /// The API, as the demo user.
    pub api: Api,
    pub user: Uuid,
    /// What it said when it was ready.
    pub welcome: String,
}

impl Dev {
    /// Ctrl-C.
    pub async fn interrupt(self) -> Ended {
        self.process.signal(Signal::INT);
        self.process.end().await
    }

    /// kill -9, of it alone.
    pub async fn kill(self) {
        self.process.signal(Signal::KILL);
        self.process.end().await;
    }
}
