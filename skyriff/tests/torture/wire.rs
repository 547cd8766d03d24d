//! Requests and answers over HTTP.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chrono::{TimeDelta, Utc};
use reqwest::{RequestBuilder, header};
use serde_json::{Value, json};
use skyriff_domain::CommandId;
use skyriff_edge::{Caller, Role, Tokens};
use uuid::Uuid;

use crate::{
    ask::{Ask, What},
    history::Answer,
    nodes::SECRET,
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// A connection pool, and how long answers of full queues took.
#[derive(Clone)]
pub struct Wire {
    http: reqwest::Client,
    token: String,
    overloaded: Arc<Mutex<Vec<Duration>>>,
}

fn caller() -> Caller {
    Caller { role: Role::Service, id: Uuid::nil() }
}

pub fn command_id(key: &str) -> CommandId {
    CommandId::derive(&caller().actor(), key)
}

impl Wire {
    pub fn new() -> Self {
        let tokens = Tokens::new(SECRET.as_bytes()).expect("the secret is long enough");
        let token = tokens.mint(&caller(), Utc::now(), TimeDelta::days(1)).expect("these claims can be signed");
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        Self { http: http.expect("without TLS there is nothing to fail"), token, overloaded: Arc::default() }
    }

    /// How long the answers `overloaded` took, shortest first.
    pub fn overloaded(&self) -> Vec<Duration> {
        let mut times = self.overloaded.lock().expect("nobody panics with it").clone();
        times.sort_unstable();
        times
    }

    /// A single shard has to answer for the node; which one does not matter. Why not, if it does not.
    pub async fn is_taking_commands(&self, node: SocketAddr) -> Result<(), String> {
        let path = format!("/v1/users/{}/expirations", Uuid::max());
        let request = self.post(node, &path).header("Idempotency-Key", Uuid::new_v4().to_string());
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(response.text().await.unwrap_or_default()),
            Err(error) => Err(format!("{error:?}")),
        }
    }

    fn post(&self, node: SocketAddr, path: &str) -> RequestBuilder {
        self.http.post(format!("http://{node}{path}")).bearer_auth(&self.token)
    }

    pub async fn single(&self, node: SocketAddr, ask: &Ask) -> Answer {
        let (path, body) = ask.what.single();
        let (path, body) = match ask.what {
            What::Tip { to, points } => {
                ("/v1/tips".to_owned(), json!({ "from": ask.user, "to": to, "points": points }))
            }
            What::Earn { .. }
            | What::Recharge { .. }
            | What::Spend { .. }
            | What::Refund { .. }
            | What::Hold { .. }
            | What::Capture { .. }
            | What::Release { .. } => (format!("/v1/users/{}/{path}", ask.user), body),
        };
        let request = self.post(node, &path);
        let sent = Instant::now();
        let Ok(response) = request.header("Idempotency-Key", &ask.key).json(&body).send().await else {
            return Answer::Lost;
        };
        let status = response.status().as_u16();
        let says_when = response.headers().contains_key(header::RETRY_AFTER);
        let Ok(body) = response.json::<Value>().await else { return Answer::Lost };
        if status == 503 && !says_when {
            return Answer::Fault(format!("503 without Retry-After: {body}"));
        }
        if slug(&body) == "overloaded" {
            self.overloaded.lock().expect("nobody panics with it").push(sent.elapsed());
        }
        answer(status, &body, &body)
    }

    pub async fn batch(&self, node: SocketAddr, asks: &[Ask], atomic: bool) -> Vec<Answer> {
        let commands: Vec<_> = asks.iter().map(in_bulk).collect();
        let body = json!({ "atomic": atomic, "commands": commands });
        let Ok(response) = self.post(node, "/v1/commands:batch").json(&body).send().await else {
            return vec![Answer::Lost; asks.len()];
        };
        let status = response.status().as_u16();
        let Ok(body) = response.json::<Value>().await else { return vec![Answer::Lost; asks.len()] };
        match body["results"].as_array() {
            Some(results) if status == 200 && results.len() == asks.len() => results.iter().map(of_result).collect(),
            Some(_) => vec![Answer::Fault(format!("{status}, with other results than asked for: {body}")); asks.len()],
            None => vec![answer(status, &body, &body); asks.len()],
        }
    }

    /// As NDJSON. What arrives before the connection breaks counts.
    pub async fn stream(&self, node: SocketAddr, asks: &[Ask]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(asks.len());
        let lines: String = asks.iter().map(|ask| format!("{}\n", in_bulk(ask))).collect();
        let request = self.post(node, "/v1/commands:batch").header("Content-Type", "application/x-ndjson").body(lines);
        if let Ok(mut response) = request.send().await {
            let mut rest = Vec::new();
            while let Ok(Some(bytes)) = response.chunk().await {
                rest.extend_from_slice(&bytes);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<_> = rest.drain(..=end).collect();
                    let result = serde_json::from_slice(&line);
                    answers.push(result.map_or_else(|error| Answer::Fault(error.to_string()), |line| of_result(&line)));
                }
            }
        }
        if answers.len() > asks.len() {
            return vec![Answer::Fault("more results than commands".to_owned()); asks.len()];
        }
        answers.resize(asks.len(), Answer::Lost);
        answers
    }
}

fn in_bulk(ask: &Ask) -> Value {
    let (_, mut body) = ask.what.single();
    body["do"] = ask.what.name().into();
    body["idempotency_key"] = ask.key.as_str().into();
    body["user"] = ask.user.to_string().into();
    match ask.what {
        What::Refund { spend, .. } => body["spend"] = json!(spend),
        What::Capture { hold, .. } | What::Release { hold } => body["hold"] = json!(hold),
        What::Earn { .. } | What::Recharge { .. } | What::Spend { .. } | What::Hold { .. } | What::Tip { .. } => {}
    }
    body
}

fn slug(problem: &Value) -> &str {
    problem["type"].as_str().and_then(|kind| kind.strip_prefix("/problems/")).unwrap_or_default()
}

fn of_result(result: &Value) -> Answer {
    let status = result["status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or_default();
    answer(status, result, &result["problem"])
}

fn answer(status: u16, accepted: &Value, problem: &Value) -> Answer {
    match (status, slug(problem)) {
        (200..=202, _) => {
            let recorded = accepted["recorded"].as_array().expect("an accepted command says what it recorded");
            let position = |event: &Value| event["position"].as_str()?.parse().ok();
            Answer::Ok(recorded.iter().map(|event| position(event).expect("an event has a position")).collect())
        }
        (409, kind @ ("insufficient-points" | "refused" | "refused-together")) => Answer::Refused(kind.to_owned()),
        (503, "overloaded" | "unavailable" | "conflict") => Answer::NotDone,
        (503, "outcome-unknown") | (504, "timeout") => Answer::Lost,
        _ => Answer::Fault(format!("{status}: {problem}")),
    }
}
