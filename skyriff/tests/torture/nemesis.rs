//! What goes wrong, as the seed says: first each thing once, in any order, then whatever comes up.

use std::{collections::BTreeMap, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use rustix::process::Signal;
use skyriff_postgres::Server;
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    flood::flood, history::Entry, housekeeping::move_commands, moves::Move, nodes::Nodes, proxy::Proxy, signals,
    wire::Wire,
};

/// Longer than the patience of clients and executors, and than an append may take.
const LONG_STOP_MS: Range<u64> = 11_000..15_000;

pub struct Nemesis {
    pub random: StdRng,
    pub folder: PathBuf,
    pub server: Server,
    pub with_standby: bool,
    pub nodes: Arc<Mutex<Nodes>>,
    pub proxies: [Proxy; 2],
    pub wire: Wire,
}

/// What it has done.
#[derive(Default)]
pub struct Deeds {
    pub moves: BTreeMap<Move, u32>,
    /// What it asked for itself.
    pub history: Vec<Entry>,
}

impl Nemesis {
    /// Everything that it stopped goes on when it leaves.
    pub async fn work_until(mut self, end: Instant) -> Result<Deeds> {
        let mut deeds = Deeds::default();
        let moves = Move::weighted(self.with_standby);
        let mut first = moves.clone();
        first.dedup();
        first.shuffle(&mut self.random);
        let mut long_stop: Option<JoinHandle<()>> = None;
        while Instant::now() < end {
            self.pause(100..1_200).await;
            let next = first.pop().unwrap_or_else(|| moves[self.random.random_range(0..moves.len())]);
            let done = match next {
                // It goes on while other things happen; one at a time.
                Move::StopNodeForLong => match &long_stop {
                    Some(running) if !running.is_finished() => false,
                    _ => {
                        long_stop = Some(self.stop_node_for_long());
                        true
                    }
                },
                Move::Flood => {
                    let node = self.random.random_range(0..2);
                    let address = self.nodes.lock().await.addresses()[node];
                    let name = format!("flood-{}", deeds.history.len());
                    let (history, filled) = flood(&self.wire, address, &name).await;
                    deeds.history.extend(history);
                    filled
                }
                Move::KillNode
                | Move::KillPrimary
                | Move::StopNode
                | Move::StopPrimary
                | Move::LoseAnswers
                | Move::Cut
                | Move::Housekeeping
                | Move::KillStandby
                | Move::StopStandby => self.strike(next).await?,
            };
            if done {
                *deeds.moves.entry(next).or_default() += 1;
            } else if !deeds.moves.contains_key(&next) {
                first.insert(0, next);
            }
            self.nodes.lock().await.restart_dead().await?;
        }
        if let Some(running) = long_stop {
            running.await?;
        }
        Ok(deeds)
    }

    async fn pause(&mut self, ms: Range<u64>) {
        sleep(Duration::from_millis(self.random.random_range(ms))).await;
    }

    fn stop_node_for_long(&mut self) -> JoinHandle<()> {
        let node = self.random.random_range(0..2);
        let time = Duration::from_millis(self.random.random_range(LONG_STOP_MS));
        let nodes = Arc::clone(&self.nodes);
        tokio::spawn(async move {
            nodes.lock().await.signal(node, Signal::STOP);
            sleep(time).await;
            nodes.lock().await.signal(node, Signal::CONT);
        })
    }

    /// Whether it could be done.
    async fn strike(&mut self, what: Move) -> Result<bool> {
        let proxy = self.random.random_range(0..self.proxies.len());
        let (primary, standby) = (self.folder.join("primary"), self.folder.join("replica"));
        match what {
            Move::KillNode => {
                let mut nodes = self.nodes.lock().await;
                let node = self.random.random_range(0..nodes.count());
                nodes.kill(node).await?;
            }
            Move::KillPrimary => signals::to_postmaster(&primary, Signal::KILL),
            Move::StopNode => {
                let nodes = self.nodes.lock().await;
                let node = self.random.random_range(0..nodes.count());
                nodes.signal(node, Signal::STOP);
                drop(nodes);
                self.pause(200..4_000).await;
                self.nodes.lock().await.signal(node, Signal::CONT);
            }
            Move::StopPrimary => {
                signals::to_server(&primary, Signal::STOP);
                self.pause(200..7_000).await;
                signals::to_server(&primary, Signal::CONT);
            }
            Move::LoseAnswers => {
                self.proxies[proxy].swallow(true);
                self.pause(5..200).await;
                self.proxies[proxy].cut();
                self.proxies[proxy].swallow(false);
            }
            Move::Cut => self.proxies[proxy].cut(),
            Move::Housekeeping => return Ok(move_commands(&self.server).await.unwrap_or(false)),
            Move::KillStandby => signals::to_postmaster(&standby, Signal::KILL),
            // Nobody can commit meanwhile.
            Move::StopStandby => {
                signals::to_server(&standby, Signal::STOP);
                self.pause(500..7_000).await;
                signals::to_server(&standby, Signal::CONT);
            }
            // These go on beside others, or have a history.
            Move::StopNodeForLong | Move::Flood => return Ok(false),
        }
        Ok(true)
    }
}
