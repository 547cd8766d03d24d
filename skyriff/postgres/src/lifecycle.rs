//! One private server: made once, started, watched, restarted when it dies, stopped.

use std::{
    fs::{self, File},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    binaries::Binaries,
    os_user::OsUser,
    server::{PORT, Server},
};

/// How long a server may take to answer after its start; recovery after a crash is part of it.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a server may take to stop before it is stopped the hard way.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The wait before a server that ended by itself is started again, and its growth. After a kill -9, its children may hold
/// its memory for a while, and every start before they have gone fails.
const RESTART_AFTER: Duration = Duration::from_millis(100);
const RESTART_AFTER_MAX: Duration = Duration::from_secs(2);
/// A server that has run for this long is well.
const WELL_AFTER: Duration = Duration::from_secs(5);
/// A server that has not been well for this long is left alone, with its log as the explanation.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// What a server is made of.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// `primary` or `replica`.
    pub(crate) name: &'static str,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) settings: Vec<String>,
    pub(crate) binaries: Binaries,
    pub(crate) user: OsUser,
    pub(crate) server: Server,
}

/// A started server and the task that keeps it running.
#[derive(Debug)]
pub(crate) struct Running {
    instance: Instance,
    stop: CancellationToken,
    keeper: JoinHandle<Result<()>>,
}

impl Instance {
    /// Fill the data folder with `fill`, which writes into the folder it is given. Half-made folders never get the
    /// final name; one that an earlier, interrupted run left is removed.
    pub(crate) fn make(&self, fill: impl FnOnce(&Path) -> Command) -> Result<()> {
        let half_made = self.data.with_extension("half-made");
        if half_made.exists() {
            fs::remove_dir_all(&half_made)?;
        }
        if self.data.exists() {
            return Ok(());
        }
        fs::DirBuilder::new().mode(0o700).create(&half_made)?;
        self.user.own(&half_made)?;
        let mut command = fill(&half_made);
        let output = self.user.run(&mut command).current_dir("/").output().with_context(|| format!("{command:?}"))?;
        if !output.status.success() {
            bail!("cannot make the {}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::rename(&half_made, &self.data)?;
        File::open(self.data.parent().unwrap_or(&self.data))?.sync_all()?;
        Ok(())
    }

    /// Start it, wait until it answers, and keep it running from then on.
    pub(crate) async fn start(self) -> Result<Running> {
        self.take_over_or_forget_earlier_run().await?;
        fs::create_dir_all(&self.server.socket_folder)?;
        fs::set_permissions(&self.server.socket_folder, fs::Permissions::from_mode(0o700))?;
        self.user.own(&self.server.socket_folder)?;

        let mut child = self.spawn()?;
        let ready = self.server.ready(READY_LIMIT);
        tokio::select! {
            ready = ready => ready.with_context(|| self.explain())?,
            exit = child.wait() => {
                // After a kill -9, children of the old server may hold its memory for a moment more.
                tracing::debug!(server = self.name, ?exit, "ended while starting; trying again");
                child = self.spawn_again().await?;
            }
        }
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(self.clone().keep(child, stop.clone()));
        Ok(Running { instance: self, stop, keeper })
    }

    async fn spawn_again(&self) -> Result<tokio::process::Child> {
        let end = Instant::now() + STOP_LIMIT;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut child = self.spawn()?;
            tokio::select! {
                ready = self.server.ready(READY_LIMIT) => { ready.with_context(|| self.explain())?; return Ok(child) }
                _ = child.wait() => if Instant::now() > end { bail!("{}", self.explain()) },
            }
        }
    }

    fn explain(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n  ");
        format!("the private Postgres {} did not start. Its log, {}, ends:\n  {tail}", self.name, self.log.display())
    }

    fn spawn(&self) -> Result<tokio::process::Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(self.binaries.program("postgres"));
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.server.socket_folder).arg("-p").arg(PORT.to_string());
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        command.current_dir(&self.data).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.user.run(&mut command);
        tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {}", self.name))
    }

    async fn keep(self, mut child: tokio::process::Child, stop: CancellationToken) -> Result<()> {
        let mut last_well = Instant::now();
        let mut wait = RESTART_AFTER;
        loop {
            let started = Instant::now();
            tokio::select! {
                exit = child.wait() => {
                    if started.elapsed() > WELL_AFTER {
                        (last_well, wait) = (Instant::now(), RESTART_AFTER);
                        tracing::warn!(server = self.name, ?exit, "Postgres ended by itself; starting it again");
                    }
                    if last_well.elapsed() > GIVE_UP_AFTER {
                        bail!("{}", self.explain());
                    }
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                    wait = (wait * 2).min(RESTART_AFTER_MAX);
                    child = self.spawn()?;
                }
                () = stop.cancelled() => return self.end(child).await,
            }
        }
    }

    /// A fast shutdown: no new work, roll back what is open, write a checkpoint.
    async fn end(&self, mut child: tokio::process::Child) -> Result<()> {
        for (signal, limit) in [(Signal::INT, STOP_LIMIT), (Signal::QUIT, STOP_LIMIT)] {
            if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                kill_process(pid, signal).ok();
            }
            if tokio::time::timeout(limit, child.wait()).await.is_ok() {
                return Ok(());
            }
        }
        child.kill().await.context("cannot stop Postgres")
    }

    /// A pid file of an earlier run: either a server that outlived us, which is stopped, or a lie.
    async fn take_over_or_forget_earlier_run(&self) -> Result<()> {
        let file = self.data.join("postmaster.pid");
        let Ok(text) = fs::read_to_string(&file) else { return Ok(()) };
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| self.is_ours(*pid)) {
            tracing::info!(server = self.name, pid = pid.as_raw_nonzero(), "stopping a Postgres of an earlier run");
            kill_process(pid, Signal::INT)?;
            let end = Instant::now() + STOP_LIMIT;
            while test_kill_process(pid).is_ok() && self.is_ours(pid) {
                if Instant::now() > end {
                    kill_process(pid, Signal::QUIT)?;
                    bail!("the Postgres of an earlier run, process {}, does not stop", pid.as_raw_nonzero());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn is_ours(&self, pid: Pid) -> bool {
        let command_line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let data = self.data.as_os_str().as_encoded_bytes();
        command_line.split(|byte| *byte == 0).any(|argument| argument == data)
    }
}

impl Running {
    pub(crate) fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Ends only when the server could not be kept running.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.keeper).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => anyhow::anyhow!("the private Postgres {} was stopped", self.instance.name),
            Err(error) => error.into(),
        }
    }

    /// Stop it and wait until it has stopped.
    pub(crate) async fn stop(self) -> Result<()> {
        if self.keeper.is_finished() {
            // It gave up, and `failed` has said why.
            return Ok(());
        }
        self.stop.cancel();
        self.keeper.await?
    }
}
