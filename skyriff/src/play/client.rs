//! One action to the API, until it has an answer that will not change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::Rng;
use reqwest::{
    Method, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER},
};
use serde_json::Value;

use super::trace::Action;

const BACK_OFF: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Problems by which the rules say no: part of what a trace may meet.
const REFUSALS: [&str; 6] =
    ["refused", "out-of-range", "insufficient-points", "already-checked-in", "order-mismatch", TOO_MANY_IN_FLIGHT];
/// The problem that time solves.
const TOO_MANY_IN_FLIGHT: &str = "too-many-in-flight";

/// What came of one action.
#[derive(Debug)]
pub enum Outcome {
    /// Recorded now.
    Recorded,
    /// Accepted, with nothing to record.
    Nothing,
    /// An earlier request had done it.
    Replayed,
    /// The rules said no; by the problem's name.
    Refused(String),
    /// Anything else.
    Unexpected(String),
}

/// What came of one action, and what it took.
#[derive(Debug)]
pub struct Sent {
    pub outcome: Outcome,
    /// Of the request that was answered.
    pub latency: Duration,
    pub retries: u64,
}

pub struct Client {
    http: reqwest::Client,
    url: Url,
    patience: Duration,
}

impl Client {
    pub fn new(url: &str, token: &str, patience: Duration) -> Result<Self> {
        let mut token = HeaderValue::try_from(format!("Bearer {token}"))?;
        token.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, token)]);
        let http = reqwest::Client::builder().default_headers(headers).timeout(REQUEST_TIMEOUT).build()?;
        Ok(Self { http, url: url.parse()?, patience })
    }

    /// Send the action again, with the same key, for as long as the API cannot take it.
    pub async fn send(&self, action: &Action) -> Sent {
        let mut patience = Patience::new(self.patience);
        let mut key = action.idempotency_key();
        loop {
            let started = Instant::now();
            let (reason, retry_after) = match self.attempt(action, &key).await {
                // It has room again when one of the user's jobs is over; a refusal stays with its key, so with another.
                Ok(Attempt::Answered(Outcome::Refused(problem))) if problem == TOO_MANY_IN_FLIGHT => {
                    key = format!("{} {}", action.idempotency_key(), patience.retries + 1);
                    (format!("still {problem}; is a worker running that has the provider?"), None)
                }
                Ok(Attempt::Answered(outcome)) => return patience.sent(outcome, started),
                Ok(Attempt::UnderWay(outcome, tip)) => {
                    return self.settled(patience.sent(outcome, started), &tip).await;
                }
                Ok(Attempt::NotNow { status, retry_after }) => (format!("still {status}"), retry_after),
                // Not reached, or cut off: the key makes it safe to send again.
                Err(error) => (format!("{:#}", anyhow::Error::from(error)), None),
            };
            if !patience.wait(retry_after).await {
                return patience.sent(Outcome::Unexpected(reason), started);
            }
        }
    }

    /// Send many actions in one request, and again those that the API could not take.
    pub async fn send_together(&self, actions: &[Action]) -> Vec<Sent> {
        let mut patience = Patience::new(self.patience);
        let mut sent: Vec<Option<Sent>> = actions.iter().map(|_| None).collect();
        loop {
            let started = Instant::now();
            let open: Vec<_> = sent.iter().enumerate().filter(|(_, sent)| sent.is_none()).map(|(at, _)| at).collect();
            let commands: Vec<_> = open.iter().filter_map(|at| actions.get(*at)).map(Action::in_bulk).collect();
            let reason = match self.attempt_together(&commands).await {
                Ok(attempts) => {
                    for (at, attempt) in open.iter().zip(attempts) {
                        let Some(slot) = sent.get_mut(*at) else { continue };
                        *slot = match attempt {
                            Attempt::Answered(outcome) => Some(patience.sent(outcome, started)),
                            Attempt::UnderWay(outcome, tip) => {
                                Some(self.settled(patience.sent(outcome, started), &tip).await)
                            }
                            Attempt::NotNow { .. } => None,
                        };
                    }
                    "some are still not taken".to_owned()
                }
                Err(error) => format!("{error:#}"),
            };
            if sent.iter().all(Option::is_some) {
                return sent.into_iter().flatten().collect();
            }
            if !patience.wait(None).await {
                let give_up = || patience.sent(Outcome::Unexpected(reason.clone()), started);
                return sent.into_iter().map(|sent| sent.unwrap_or_else(give_up)).collect();
            }
        }
    }

    /// Wait until a tip has arrived or is back, so that what comes after it in the trace finds the points where they
    /// were: `sent`, or that it took too long.
    async fn settled(&self, sent: Sent, tip: &UnderWay) -> Sent {
        let mut patience = Patience::new(self.patience);
        loop {
            let reason = match self.state_of(tip).await {
                Ok(state) if state == "delivered" || state == "returned" => return sent,
                Ok(state) => format!("the tip at {} is still {state}", tip.location),
                Err(error) => format!("{error:#}"),
            };
            if !patience.wait(None).await {
                return Sent { outcome: Outcome::Unexpected(reason), ..sent };
            }
        }
    }

    async fn state_of(&self, tip: &UnderWay) -> Result<String> {
        let asked = self.request(Method::GET, &tip.location).header("Skyriff-At-Least", &tip.position);
        let response = asked.send().await?;
        let status = response.status();
        let body: Value = response.json().await?;
        body["state"].as_str().map(str::to_owned).with_context(|| format!("{status}: {body}"))
    }

    async fn attempt(&self, action: &Action, key: &str) -> reqwest::Result<Attempt> {
        let request = self.request(action.method(), &action.path()).header("Idempotency-Key", key);
        let response = request.json(&action.body()).send().await?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let replayed = response.headers().contains_key("idempotent-replayed");
        // Read to the end, or it was not an answer.
        let body = response.bytes().await?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok(match attempt(status, replayed, &body, &body) {
            Attempt::NotNow { status, .. } => {
                Attempt::NotNow { status, retry_after: retry_after.map(Duration::from_secs) }
            }
            // Nothing that follows waits for a video.
            Attempt::UnderWay(outcome, _) if matches!(action, Action::VideoJob { .. }) => Attempt::Answered(outcome),
            answered @ (Attempt::Answered(_) | Attempt::UnderWay(..)) => answered,
        })
    }

    async fn attempt_together(&self, commands: &[Value]) -> Result<Vec<Attempt>> {
        let body = serde_json::json!({ "commands": commands });
        let response = self.request(Method::POST, "/v1/commands:batch").json(&body).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        if !status.is_success() {
            return Ok(commands.iter().map(|_| attempt(status, false, &answer, &answer)).collect());
        }
        let results = answer["results"].as_array().context("a bulk answer has results")?;
        let of = |result: &Value| {
            let status = result["status"].as_u64().and_then(|status| u16::try_from(status).ok());
            let status = StatusCode::from_u16(status.unwrap_or_default())?;
            Ok(attempt(status, result["replayed"] == true, result, &result["problem"]))
        };
        results.iter().map(of).collect()
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut url = self.url.clone();
        url.set_path(path);
        self.http.request(method, url)
    }
}

/// How long to go on, and the growing waits in between.
struct Patience {
    end: Instant,
    back_off: Duration,
    retries: u64,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { end: Instant::now() + limit, back_off: BACK_OFF, retries: 0 }
    }

    fn sent(&self, outcome: Outcome, started: Instant) -> Sent {
        Sent { outcome, latency: started.elapsed(), retries: self.retries }
    }

    /// Wait before the next attempt; false when there is to be none.
    async fn wait(&mut self, retry_after: Option<Duration>) -> bool {
        if Instant::now() > self.end {
            return false;
        }
        self.retries += 1;
        // With jitter, so that those who were turned away together do not come back together.
        let jittered = self.back_off.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(retry_after.unwrap_or_default().min(BACK_OFF_MAX).max(jittered)).await;
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
        true
    }
}

enum Attempt {
    Answered(Outcome),
    /// Accepted, and not over yet.
    UnderWay(Outcome, UnderWay),
    NotNow {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
}

/// A tip that goes to another shard.
struct UnderWay {
    location: String,
    position: String,
}

/// What an answer means.
fn attempt(status: StatusCode, replayed: bool, accepted: &Value, problem: &Value) -> Attempt {
    if matches!(status.as_u16(), 429 | 502 | 503 | 504) {
        return Attempt::NotNow { status, retry_after: None };
    }
    let name = problem["type"].as_str().and_then(|name| name.strip_prefix("/problems/")).unwrap_or_default();
    if status == StatusCode::ACCEPTED {
        let member = |name: &str| accepted[name].as_str().unwrap_or_default().to_owned();
        let tip = UnderWay { location: member("location"), position: member("position") };
        return Attempt::UnderWay(if replayed { Outcome::Replayed } else { Outcome::Recorded }, tip);
    }
    Attempt::Answered(match status {
        _ if status.is_success() && replayed => Outcome::Replayed,
        StatusCode::CREATED => Outcome::Recorded,
        StatusCode::OK => Outcome::Nothing,
        _ if REFUSALS.contains(&name) => Outcome::Refused(name.to_owned()),
        _ => Outcome::Unexpected(format!("{status}: {problem}")),
    })
}
