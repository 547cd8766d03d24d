//! The worker's side of the worker API: leases, heartbeats, and how attempts end.

use std::time::Duration;

use rand::Rng;
use reqwest::{Client, StatusCode, header::RETRY_AFTER};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skyriff_domain::video_job::{Cost, Kind, WorkerFault};
use skyriff_storage::{ObjectName, Stored};
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use crate::{JobSpec, Why};

/// One request, beside what a lease may wait.
const REQUEST_MAX: Duration = Duration::from_secs(20);
/// How long we try to say what came of an attempt; after that its lease is long over.
const TELL_MAX: Duration = Duration::from_secs(120);
const BACK_OFF: Duration = Duration::from_millis(200);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// More often than this nobody needs to hear of us, and a lease is not believed to be longer than this.
const BEAT_MIN: Duration = Duration::from_millis(50);
const LEASE_MAX: Duration = Duration::from_secs(3_600);
/// Jobs that may be asked for at once.
const JOBS_MAX: usize = 64;
/// Answers of ours are small.
const ANSWER_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// A job that is ours for a while.
#[derive(Clone, Debug, Deserialize)]
pub struct Lease {
    /// What is to be made.
    #[serde(flatten)]
    pub job: JobSpec,
    /// With what.
    pub provider: String,
    /// For how long, unless a heartbeat comes, in seconds.
    pub lease_s: f64,
}

impl Lease {
    /// How often it is to be heard of: three times in a lease, so that two heartbeats may be lost.
    pub fn beat(&self) -> Duration {
        let lease = Duration::try_from_secs_f64(self.lease_s).unwrap_or_default().min(LEASE_MAX);
        (lease / 3).max(BEAT_MIN)
    }
}

/// What came of telling the API something about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It knows.
    Heard,
    /// The attempt is over; what is to become of what was begun.
    Over(Why),
}

/// The API cannot be asked, or does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer.
    #[error("the API does not answer")]
    Unreachable(#[source] reqwest::Error),
    /// Not now.
    #[error("the API answered {status}")]
    NotNow {
        /// With this status.
        status: StatusCode,
        /// After which it may be asked again.
        retry_after: Option<Duration>,
    },
    /// No.
    #[error("the API refused: {status} {detail}")]
    Refused {
        /// With this status.
        status: StatusCode,
        /// In its words.
        detail: String,
    },
}

/// The worker API at one address, with one worker's token.
#[derive(Clone)]
pub struct WorkerApi {
    http: Client,
    url: String,
    token: String,
    worker: String,
}

#[derive(Serialize)]
struct Ask<'a> {
    worker: &'a str,
    kinds: &'a [Kind],
    providers: &'a [&'a str],
    max: usize,
    wait_s: u64,
}

#[derive(Deserialize)]
struct Leases {
    jobs: Vec<Lease>,
}

impl WorkerApi {
    /// The API at `url`, for the worker of this name.
    ///
    /// # Errors
    /// As reqwest's, when there is no TLS.
    pub fn new(url: &Url, token: &str, worker: &str) -> reqwest::Result<Self> {
        let http = Client::builder().connect_timeout(Duration::from_secs(5)).build()?;
        let url = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { http, url, token: token.to_owned(), worker: worker.to_owned() })
    }

    /// Up to `max` jobs of these kinds for these providers; none after `wait`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn lease(
        &self,
        kinds: &[Kind],
        providers: &[&str],
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Lease>, ApiError> {
        let ask = Ask { worker: &self.worker, kinds, providers, max: max.min(JOBS_MAX), wait_s: wait.as_secs() };
        let body = serde_json::to_value(ask).unwrap_or_default();
        // Each time anew: an answer that was lost leaves leases that run out.
        let answer = self.post("/v1/worker/leases", &Uuid::new_v4().to_string(), &body, REQUEST_MAX + wait).await?;
        let leases: Leases = serde_json::from_value(answer).map_err(|error| ApiError::Refused {
            status: StatusCode::OK,
            detail: format!("what it answered is not understood: {error}"),
        })?;
        Ok(leases.jobs)
    }

    /// Still at it. Asked once; the next heartbeat comes soon.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn heartbeat(&self, job: &JobSpec, progress: u8) -> Result<Told, ApiError> {
        match self.beat(job, progress).await? {
            Told::Heard => Ok(Told::Heard),
            // A heartbeat is not told why; whoever speaks of the job itself is. And should the attempt be over only for
            // those who hear heartbeats, then it is now.
            Told::Over(_) => {
                let body =
                    json!({ "reason": WorkerFault::Dismissed.reason(), "retryable": true, "cost": Cost::none() });
                match told(self.post(&path(job, "fail"), &key(job, "fail"), &body, REQUEST_MAX).await) {
                    Ok(Told::Over(why)) => Ok(Told::Over(why)),
                    Ok(Told::Heard) | Err(_) => Ok(Told::Over(Why::Lost)),
                }
            }
        }
    }

    /// The same, when nothing follows from the answer: what there is to be said of the attempt is being said.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn beat(&self, job: &JobSpec, progress: u8) -> Result<Told, ApiError> {
        let body = json!({ "progress": progress });
        told(self.post(&path(job, "heartbeat"), &Uuid::new_v4().to_string(), &body, REQUEST_MAX).await)
    }

    /// It was made. Told until it is heard, for a bounded time.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn complete(
        &self,
        job: &JobSpec,
        object: &ObjectName,
        stored: &Stored,
        seconds: u32,
        cost: &Cost,
    ) -> Result<Told, ApiError> {
        let body = json!({
            "output": {
                "object": object.to_string(), "seconds": seconds, "bytes": stored.bytes, "sha256": stored.sha256,
                "content_type": object.format.content_type(),
            },
            "cost": cost,
        });
        self.tell(job, "complete", &body).await
    }

    /// It was not. Told until it is heard, for a bounded time.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn fail(&self, job: &JobSpec, reason: &str, retryable: bool, cost: &Cost) -> Result<Told, ApiError> {
        let body = json!({ "reason": note(reason), "retryable": retryable, "cost": cost });
        self.tell(job, "fail", &body).await
    }

    async fn tell(&self, job: &JobSpec, what: &str, body: &Value) -> Result<Told, ApiError> {
        let key = key(job, what);
        let end = Instant::now() + TELL_MAX;
        let mut back_off = BACK_OFF;
        loop {
            let answer = told(self.post(&path(job, what), &key, body, REQUEST_MAX).await);
            let wait = match &answer {
                Err(ApiError::Unreachable(_)) => Duration::ZERO,
                Err(ApiError::NotNow { retry_after, .. }) => retry_after.unwrap_or_default(),
                Ok(_) | Err(ApiError::Refused { .. }) => return answer,
            };
            if Instant::now() > end {
                return answer;
            }
            tokio::time::sleep(wait.min(BACK_OFF_MAX).max(jittered(back_off))).await;
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    async fn post(&self, path: &str, key: &str, body: &Value, limit: Duration) -> Result<Value, ApiError> {
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.token);
        let request = request.header("Idempotency-Key", key).timeout(limit).json(body);
        let mut response = request.send().await.map_err(|error| ApiError::Unreachable(error.without_url()))?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| ApiError::Unreachable(error.without_url()))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(ApiError::Refused { status, detail: "its answer is too long".to_owned() });
            }
        }
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
            return Err(ApiError::NotNow { status, retry_after: retry_after.map(Duration::from_secs) });
        }
        let said = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let detail = format!("{} {}: {}", said("type"), said("title"), said("detail"));
        Err(ApiError::Refused { status, detail })
    }
}

impl std::fmt::Debug for WorkerApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerApi").field("url", &self.url).field("worker", &self.worker).finish_non_exhaustive()
    }
}

fn path(job: &JobSpec, what: &str) -> String {
    format!("/v1/worker/jobs/{}/{}/attempts/{}/{what}", job.user, job.job, job.attempt)
}

/// The same for every try, so that none is applied twice.
fn key(job: &JobSpec, what: &str) -> String {
    format!("{what} {} {}", job.job, job.attempt)
}

fn told(answer: Result<Value, ApiError>) -> Result<Told, ApiError> {
    match answer {
        Ok(_) => Ok(Told::Heard),
        Err(ApiError::Refused { status: StatusCode::CONFLICT | StatusCode::NOT_FOUND, detail })
            if detail.contains("/problems/stale-attempt") || detail.contains("/problems/not-found") =>
        {
            Ok(Told::Over(over(&detail)))
        }
        Err(error) => Err(error),
    }
}

/// A job that waits or was given to somebody else is still wanted; one that has ended is not.
fn over(detail: &str) -> Why {
    let is = |state: &str| detail.ends_with(&format!("the job is {state}"));
    if ["cancelled", "failed", "expired", "succeeded"].into_iter().any(is) { Why::Over } else { Why::Lost }
}

/// As a reason is kept: one line of at most 200 characters.
fn note(reason: &str) -> String {
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if line.trim().is_empty() { "no reason was given".to_owned() } else { line }
}

/// So that those who were turned away together do not come back together.
pub(crate) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_means_for_an_attempt() {
        let refused = |status, detail: &str| Err(ApiError::Refused { status, detail: detail.to_owned() });
        let stale = "/problems/stale-attempt The attempt is over: attempt 1 is over; the job is ";
        for (answer, expected) in [
            (Ok(Value::Null), Some(Told::Heard)),
            (refused(StatusCode::CONFLICT, &format!("{stale}cancelled")), Some(Told::Over(Why::Over))),
            (refused(StatusCode::CONFLICT, &format!("{stale}queued")), Some(Told::Over(Why::Lost))),
            (refused(StatusCode::CONFLICT, &format!("{stale}leased")), Some(Told::Over(Why::Lost))),
            (refused(StatusCode::FORBIDDEN, "/problems/forbidden"), None),
            (refused(StatusCode::CONFLICT, "/problems/refused"), None),
        ] {
            assert_eq!(told(answer).ok(), expected);
        }
        assert_eq!(note("a\nb"), "a b");
        assert_eq!(note(&"ü".repeat(300)).chars().count(), 200);
        assert_eq!(note(" \n"), "no reason was given");
    }
}
