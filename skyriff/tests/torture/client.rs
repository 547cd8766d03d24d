//! A client that keeps a history. What it does not know it asks again, at once or much later, mostly on the other node;
//! and now and then it asks again what it knows.

use std::{net::SocketAddr, time::Duration};

use chrono::Utc;
use rand::{Rng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use crate::{
    ask::{self, Ask, What},
    history::{Entry, Via},
    wire::{Wire, command_id},
};

/// How often an unknown outcome is asked about at once, at most.
const ATTEMPTS_MAX: u32 = 6;
/// How much later is much later, in milliseconds.
const LATER_MS: std::ops::Range<u64> = 1_000..20_000;

pub struct Client {
    number: u64,
    random: StdRng,
    nodes: [SocketAddr; 2],
    wire: Wire,
    history: Vec<Entry>,
    later: Vec<(Instant, Request)>,
}

/// Commands of the history that go together.
#[derive(Clone)]
struct Request {
    via: Via,
    entries: Vec<usize>,
}

impl Client {
    pub fn new(number: u64, random: StdRng, nodes: [SocketAddr; 2], wire: Wire) -> Self {
        Self { number, random, nodes, wire, history: Vec::new(), later: Vec::new() }
    }

    pub async fn work_until(mut self, end: Instant) -> Self {
        while Instant::now() < end {
            if let Some(due) = self.later.iter().position(|(at, _)| *at <= Instant::now()) {
                let (_, request) = self.later.swap_remove(due);
                self.until_known(&request).await;
            } else {
                let request = self.request();
                self.until_known(&request).await;
                self.maybe_again(request).await;
            }
        }
        self
    }

    /// Ask once more, now that all is well, about what was left for later; then hand over the history.
    pub async fn finish(mut self) -> Vec<Entry> {
        for (_, request) in std::mem::take(&mut self.later) {
            let node = self.random.random_range(0..self.nodes.len());
            self.send(node, &request).await;
        }
        self.history
    }

    fn request(&mut self) -> Request {
        let (via, commands) = match self.random.random_range(0..20) {
            0 | 1 => (Via::Bulk, self.of_several_users(2..=30)),
            2..5 => {
                let user = ask::user(&mut self.random);
                let together = What::together(&mut self.random);
                (Via::Atomic, together.into_iter().map(|what| (user, what)).collect())
            }
            5 => (Via::Stream, self.of_several_users(5..=40)),
            _ => (Via::Single, self.of_several_users(1..=1)),
        };
        let first = self.history.len();
        let together = (via == Via::Atomic).then(|| format!("{}-{first}", self.number));
        let mut taken = 0;
        for (user, what) in commands {
            let key = format!("{}-{}", self.number, self.history.len());
            let needs = what.takes() + if together.is_some() { taken } else { 0 };
            taken += what.takes() - what.gives();
            let ask = Ask { key, user, what };
            self.history.push(Entry::new(command_id(&ask.key), ask, via, together.clone(), needs));
        }
        Request { via, entries: (first..self.history.len()).collect() }
    }

    fn of_several_users(&mut self, count: std::ops::RangeInclusive<usize>) -> Vec<(uuid::Uuid, What)> {
        let count = self.random.random_range(count);
        let mut one = || {
            let user = ask::user(&mut self.random);
            (user, What::any(&mut self.random, user))
        };
        (0..count).map(|_| one()).collect()
    }

    async fn until_known(&mut self, request: &Request) {
        let mut node = self.random.random_range(0..self.nodes.len());
        for _ in 0..self.random.random_range(1..=ATTEMPTS_MAX) {
            // All of it again, or only what is not known of it; an atomic batch is one thing.
            let whole = request.via == Via::Atomic || self.random.random_bool(0.3);
            let ask = |entry: &usize| whole || self.history[*entry].is_unknown();
            let entries = request.entries.iter().copied().filter(ask).collect();
            self.send(node, &Request { via: request.via, entries }).await;
            if !self.is_unknown(request) {
                return;
            }
            sleep(Duration::from_millis(self.random.random_range(1..300))).await;
            if self.random.random_bool(0.7) {
                node = self.nodes.len() - 1 - node;
            }
        }
    }

    fn is_unknown(&self, request: &Request) -> bool {
        request.entries.iter().any(|entry| self.history[*entry].is_unknown())
    }

    async fn maybe_again(&mut self, request: Request) {
        let refused = request.entries.iter().any(|entry| self.history[*entry].is_refused());
        let unknown = self.is_unknown(&request);
        if refused && self.random.random_bool(0.1) {
            for node in 0..self.nodes.len() {
                self.send(node, &request).await;
            }
        }
        let again = if unknown { 0.7 } else { 0.05 };
        if self.random.random_bool(again) {
            let at = Instant::now() + Duration::from_millis(self.random.random_range(LATER_MS));
            self.later.push((at, request));
        }
    }

    async fn send(&mut self, node: usize, request: &Request) {
        let asks: Vec<_> = request.entries.iter().map(|entry| self.history[*entry].ask.clone()).collect();
        let (node, sent_at) = (self.nodes[node], Utc::now());
        let answers = match (request.via, asks.as_slice()) {
            (_, []) => return,
            (Via::Single | Via::Flood, [ask, ..]) => vec![self.wire.single(node, ask).await],
            (Via::Bulk, asks) => self.wire.batch(node, asks, false).await,
            (Via::Atomic, asks) => self.wire.batch(node, asks, true).await,
            (Via::Stream, asks) => self.wire.stream(node, asks).await,
        };
        for (entry, answer) in request.entries.iter().zip(answers) {
            self.history[*entry].hear(answer, sent_at);
        }
    }
}
