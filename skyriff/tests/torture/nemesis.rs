//! What goes wrong: one thing after the other, as the seed says.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use rand::{Rng, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::{nodes::Nodes, proxy::Proxy};

pub struct Nemesis {
    random: StdRng,
    folder: PathBuf,
    nodes: Arc<Mutex<Nodes>>,
    proxies: [Proxy; 2],
    deeds: BTreeMap<&'static str, u32>,
}

impl Nemesis {
    pub fn new(random: StdRng, folder: PathBuf, nodes: Arc<Mutex<Nodes>>, proxies: [Proxy; 2]) -> Self {
        Self { random, folder, nodes, proxies, deeds: BTreeMap::new() }
    }

    /// Everything that it stopped goes on when it leaves. What it did, in words.
    pub async fn work_until(mut self, end: Instant) -> Result<String> {
        while Instant::now() < end {
            self.pause(100..1_200).await;
            let deed = self.strike().await?;
            *self.deeds.entry(deed).or_default() += 1;
            self.nodes.lock().await.restart_dead().await?;
        }
        Ok(self.deeds.iter().map(|(deed, count)| format!("{count} × {deed}")).collect::<Vec<_>>().join(", "))
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.random.random_range(ms))).await;
    }

    async fn strike(&mut self) -> Result<&'static str> {
        let proxy = self.random.random_range(0..self.proxies.len());
        Ok(match self.random.random_range(0..12) {
            0..2 => {
                let mut nodes = self.nodes.lock().await;
                let node = self.random.random_range(0..nodes.count());
                nodes.kill(node).await?;
                "kill -9 of a node"
            }
            2..4 => {
                self.signal_postmaster(Signal::KILL);
                "kill -9 of the primary"
            }
            4 => {
                let nodes = self.nodes.lock().await;
                let node = self.random.random_range(0..nodes.count());
                nodes.signal(node, Signal::STOP);
                drop(nodes);
                self.pause(200..4_000).await;
                self.nodes.lock().await.signal(node, Signal::CONT);
                "stop of a node for a while"
            }
            5 => {
                self.signal_primary(Signal::STOP);
                self.pause(200..7_000).await;
                self.signal_primary(Signal::CONT);
                "stop of the primary for a while"
            }
            6..9 => {
                self.proxies[proxy].swallow(true);
                self.pause(5..200).await;
                self.proxies[proxy].cut();
                self.proxies[proxy].swallow(false);
                "answers of the store lost, then cut"
            }
            _ => {
                self.proxies[proxy].cut();
                "connections cut"
            }
        })
    }

    fn postmaster(&self) -> Option<i32> {
        let file = self.folder.join("primary/postmaster.pid");
        fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
    }

    fn signal_postmaster(&self, signal: Signal) {
        if let Some(pid) = self.postmaster().and_then(Pid::from_raw) {
            kill_process(pid, signal).ok();
        }
    }

    /// The postmaster and all that it has started.
    fn signal_primary(&self, signal: Signal) {
        let Some(postmaster) = self.postmaster() else { return };
        self.signal_postmaster(signal);
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            // pid (name) state parent …
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            if let (true, Some(pid)) = (parent == Some(postmaster), pid) {
                kill_process(pid, signal).ok();
            }
        }
    }
}
