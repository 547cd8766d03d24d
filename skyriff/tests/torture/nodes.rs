//! The processes under torture: two command nodes, each behind a proxy to the store, and one that projects.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use skyriff_postgres::Server;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{EVENTS, READS, proxy::Proxy};

pub const SECRET: &str = "a secret that is only for torture";
/// 32 bytes that are only for torture.
const MASTER_KEY: &str = "dG9ydHVyZSB0b3J0dXJlIHRvcnR1cmUgdG9ydHVyZSE=";
/// Small, so that a burst fills it.
const QUEUE_MAX: &str = "64";

struct Node {
    event_store: String,
    roles: &'static str,
    listen: SocketAddr,
    child: Child,
}

pub struct Nodes {
    /// Two for commands, then one for projections.
    nodes: Vec<Node>,
    folder: PathBuf,
    server: Server,
    require_standby: bool,
}

impl Nodes {
    pub async fn start(folder: &Path, proxies: &[Proxy; 2], server: &Server, require_standby: bool) -> Result<Self> {
        let any: SocketAddr = "127.0.0.1:0".parse()?;
        let mut this = Self { nodes: Vec::new(), folder: folder.to_owned(), server: server.clone(), require_standby };
        for (event_store, roles) in
            [(proxies[0].url(), "command"), (proxies[1].url(), "command"), (server.url(EVENTS), "project")]
        {
            let (child, listen) = this.spawn(&event_store, roles, any).await?;
            this.nodes.push(Node { event_store, roles, listen, child });
        }
        Ok(this)
    }

    async fn spawn(&self, event_store: &str, roles: &str, listen: SocketAddr) -> Result<(Child, SocketAddr)> {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join(format!("{roles}.log")))?;
        let mut skyriff = self.skyriff(event_store);
        if self.require_standby {
            skyriff.env("SKYRIFF_REQUIRE_STANDBY", "true");
        }
        let mut child = skyriff
            .args(["serve", "--roles", roles, "--queue-max", QUEUE_MAX, "--listen", &listen.to_string()])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take().context("its output is piped")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        // The store may be away just now; whoever watches starts it again.
        let address = line.as_deref().and_then(|line| line.rsplit("http://").next()?.parse().ok()).unwrap_or(listen);
        Ok((child, address))
    }

    fn skyriff(&self, event_store: &str) -> Command {
        let mut skyriff = Command::new(env!("CARGO_BIN_EXE_skyriff"));
        skyriff
            .env("SKYRIFF_EVENT_STORE", format!("0-15={event_store}"))
            .env("SKYRIFF_READ_MODELS", format!("0-15={}", self.server.url(READS)))
            .env("SKYRIFF_TOKEN_SECRET", SECRET)
            .env("SKYRIFF_MASTER_KEY", MASTER_KEY)
            .kill_on_drop(true);
        skyriff
    }

    pub fn addresses(&self) -> [SocketAddr; 2] {
        [self.nodes[0].listen, self.nodes[1].listen]
    }

    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn signal(&self, node: usize, signal: Signal) {
        let pid = self.nodes[node].child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, signal).ok();
        }
    }

    pub async fn kill(&mut self, node: usize) -> Result<()> {
        Ok(self.nodes[node].child.kill().await?)
    }

    /// Start what has ended, on the address that it had.
    pub async fn restart_dead(&mut self) -> Result<()> {
        for node in 0..self.nodes.len() {
            if self.nodes[node].child.try_wait()?.is_some() {
                let Node { event_store, roles, listen, .. } = &self.nodes[node];
                let (child, _) = self.spawn(event_store, roles, *listen).await?;
                self.nodes[node].child = child;
            }
        }
        Ok(())
    }

    /// `skyriff audit verify`, once the read models have caught up.
    pub async fn audit(&mut self) -> Result<Output> {
        self.restart_dead().await?;
        Ok(self.skyriff(&self.server.url(EVENTS)).args(["audit", "verify"]).output().await?)
    }

    pub async fn stop(mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.child.kill().await?;
        }
        Ok(())
    }
}
