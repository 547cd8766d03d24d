//! A client that keeps a history: what it sent, and what it was told.

use std::{net::SocketAddr, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use rand::{Rng, rngs::StdRng};
use reqwest::StatusCode;
use serde_json::{Value, json};
use skyriff_domain::{CommandId, LogPosition};
use skyriff_edge::{Caller, Role, Tokens};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::nodes::SECRET;

/// Few, so that nodes and clients meet on them.
const USERS: u32 = 12;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// How often an unknown outcome is asked about again, at most.
const RETRIES_MAX: u32 = 6;

/// One command, and what became of it as far as its client knows.
#[derive(Debug)]
pub struct Entry {
    pub command_id: CommandId,
    pub user: Uuid,
    /// How many events it records when it is accepted.
    pub events: usize,
    /// How many points it spends.
    pub spends: i64,
    pub outcome: Outcome,
    /// When the last attempt was sent, and when it was answered.
    pub sent_at: DateTime<Utc>,
    pub answered_at: DateTime<Utc>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged, with these events.
    Ok(Vec<LogPosition>),
    /// Refused by a rule.
    Refused,
    /// The server called itself broken, which nothing here should make it.
    Fault,
    /// Anything else: a lost answer, a timeout, a 503.
    Unknown,
}

pub struct Client {
    number: u64,
    random: StdRng,
    nodes: [SocketAddr; 2],
    http: reqwest::Client,
    token: String,
}

fn caller() -> Caller {
    Caller { role: Role::Service, id: Uuid::nil() }
}

fn token() -> String {
    let tokens = Tokens::new(SECRET.as_bytes()).expect("the secret is long enough");
    tokens.mint(&caller(), Utc::now(), TimeDelta::days(1)).expect("these claims can be signed")
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build().expect("without TLS there is nothing to fail")
}

/// A single shard has to answer for the node; which one does not matter. Why not, if it does not.
pub async fn is_taking_commands(node: SocketAddr) -> Result<(), String> {
    let path = format!("http://{node}/v1/users/{}/expirations", Uuid::nil());
    let request = http().post(path).bearer_auth(token()).header("Idempotency-Key", Uuid::new_v4().to_string());
    match request.send().await {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => Err(response.text().await.unwrap_or_default()),
        Err(error) => Err(format!("{error:?}")),
    }
}

impl Client {
    pub fn new(number: u64, random: StdRng, nodes: [SocketAddr; 2]) -> Self {
        Self { number, random, nodes, http: http(), token: token() }
    }

    pub async fn work_until(mut self, end: Instant) -> Vec<Entry> {
        let mut history = Vec::new();
        for count in 0_u64.. {
            if Instant::now() >= end {
                break;
            }
            let key = format!("{}-{count}", self.number);
            let user = Uuid::from_u128(u128::from(self.random.random_range(0..USERS)));
            let (path, body, events) = self.command(user);
            let (sent_at, outcome) = self.send_until_known(&key, &path, &body).await;
            let command_id = CommandId::derive(&caller().actor(), &key);
            let spends = if path.ends_with("spends") { body["points"].as_i64().unwrap_or(0) } else { 0 };
            history.push(Entry { command_id, user, events, spends, outcome, sent_at, answered_at: Utc::now() });
            // Now and then a burst, more than the queues hold.
            if self.random.random_bool(0.002) {
                self.burst(&key, user, &mut history).await;
            }
        }
        history
    }

    fn command(&mut self, user: Uuid) -> (String, Value, usize) {
        let points = self.random.random_range(1..20);
        let path = |what: &str| format!("/v1/users/{user}/{what}");
        match self.random.random_range(0..10) {
            0..4 => (path("earnings"), json!({ "bucket": "income", "points": points, "reason": "torture" }), 1),
            4..6 => (path("recharges"), json!({ "order": Uuid::new_v4(), "points": points }), 2),
            _ => (path("spends"), json!({ "spend": Uuid::new_v4(), "points": points * 2, "product": "torture" }), 1),
        }
    }

    async fn send_until_known(&mut self, key: &str, path: &str, body: &Value) -> (DateTime<Utc>, Outcome) {
        for _ in 0..self.random.random_range(1..=RETRIES_MAX) {
            let node = self.nodes[self.random.random_range(0..self.nodes.len())];
            let sent_at = Utc::now();
            match send(&self.http, &self.token, node, key, path, body).await {
                Outcome::Unknown => sleep(Duration::from_millis(self.random.random_range(1..300))).await,
                known @ (Outcome::Ok(_) | Outcome::Refused | Outcome::Fault) => return (sent_at, known),
            }
        }
        (Utc::now(), Outcome::Unknown)
    }

    async fn burst(&mut self, key: &str, user: Uuid, history: &mut Vec<Entry>) {
        let node = self.nodes[self.random.random_range(0..self.nodes.len())];
        let path = format!("/v1/users/{user}/earnings");
        let body = json!({ "bucket": "income", "points": 1, "reason": "burst" });
        let sends = (0..300).map(|count| {
            let (http, token, path, body) = (self.http.clone(), self.token.clone(), path.clone(), body.clone());
            let key = format!("{key}-burst-{count}");
            tokio::spawn(async move {
                let sent_at = Utc::now();
                let outcome = send(&http, &token, node, &key, &path, &body).await;
                let command_id = CommandId::derive(&caller().actor(), &key);
                Entry { command_id, user, events: 1, spends: 0, outcome, sent_at, answered_at: Utc::now() }
            })
        });
        for sent in sends.collect::<Vec<_>>() {
            history.push(sent.await.expect("sending does not panic"));
        }
    }
}

async fn send(http: &reqwest::Client, token: &str, node: SocketAddr, key: &str, path: &str, body: &Value) -> Outcome {
    let request = http.post(format!("http://{node}{path}")).bearer_auth(token).header("Idempotency-Key", key);
    let Ok(response) = request.json(body).send().await else { return Outcome::Unknown };
    let status = response.status();
    let Ok(body) = response.json::<Value>().await else { return Outcome::Unknown };
    match status {
        StatusCode::OK | StatusCode::CREATED => {
            let recorded = body["recorded"].as_array().expect("an accepted command says what it recorded");
            let position = |event: &Value| event["position"].as_str()?.parse().ok();
            Outcome::Ok(recorded.iter().map(|event| position(event).expect("an event has a position")).collect())
        }
        StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => Outcome::Refused,
        StatusCode::INTERNAL_SERVER_ERROR => Outcome::Fault,
        _ => Outcome::Unknown,
    }
}
