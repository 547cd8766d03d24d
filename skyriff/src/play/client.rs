//! One action to the API, until it has an answer that will not change.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::Rng;
use reqwest::{
    StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER},
};
use serde_json::Value;

use super::trace::Action;

const BACK_OFF: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Problems by which the rules say no: part of what a trace may meet.
const REFUSALS: [&str; 5] = ["refused", "out-of-range", "insufficient-points", "already-checked-in", "order-mismatch"];

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
        let mut sent = Sent { outcome: Outcome::Nothing, latency: Duration::ZERO, retries: 0 };
        let end = Instant::now() + self.patience;
        let mut back_off = BACK_OFF;
        loop {
            let started = Instant::now();
            let (outcome, retry_after) = match self.attempt(action).await {
                Ok(Attempt::Answered(outcome)) => {
                    return Sent { outcome, latency: started.elapsed(), ..sent };
                }
                Ok(Attempt::NotNow { status, retry_after }) => (format!("still {status}"), retry_after),
                // Not reached, or cut off: the key makes it safe to send again.
                Err(error) => (format!("{:#}", anyhow::Error::from(error)), None),
            };
            if Instant::now() > end {
                return Sent { outcome: Outcome::Unexpected(outcome), latency: started.elapsed(), ..sent };
            }
            sent.retries += 1;
            // With jitter, so that those who were turned away together do not come back together.
            let jittered = back_off.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::time::sleep(retry_after.unwrap_or_default().min(BACK_OFF_MAX).max(jittered)).await;
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    async fn attempt(&self, action: &Action) -> reqwest::Result<Attempt> {
        let mut url = self.url.clone();
        url.set_path(&action.path());
        let request = self.http.post(url).header("Idempotency-Key", action.idempotency_key()).json(&action.body());
        let response = request.send().await?;
        let status = response.status();
        if matches!(status.as_u16(), 429 | 502 | 503 | 504) {
            let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Ok(Attempt::NotNow { status, retry_after: retry_after.map(Duration::from_secs) });
        }
        let replayed = response.headers().contains_key("idempotent-replayed");
        let recorded = status == StatusCode::CREATED;
        // Read to the end, or it was not an answer.
        let body = response.bytes().await?;
        if status.is_success() {
            let outcome = match (replayed, recorded) {
                (true, _) => Outcome::Replayed,
                (false, true) => Outcome::Recorded,
                (false, false) => Outcome::Nothing,
            };
            return Ok(Attempt::Answered(outcome));
        }
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let name = problem["type"].as_str().and_then(|name| name.strip_prefix("/problems/")).unwrap_or_default();
        Ok(Attempt::Answered(if REFUSALS.contains(&name) {
            Outcome::Refused(name.to_owned())
        } else {
            Outcome::Unexpected(format!("{status}: {}", String::from_utf8_lossy(&body)))
        }))
    }
}

enum Attempt {
    Answered(Outcome),
    NotNow { status: StatusCode, retry_after: Option<Duration> },
}
