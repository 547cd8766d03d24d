//! What is said to the provider, and what its answers mean. It is a stranger: nothing that it says is taken on trust.

use std::{path::Path, time::Duration};

use reqwest::{Response, StatusCode, header::RETRY_AFTER, redirect};
use serde::Deserialize;
use serde_json::{Value, json};
use skyriff_domain::{
    JobId, Label,
    video_job::{Cost, Resolution},
};
use tokio::{fs::File, io::AsyncWriteExt};
use url::Url;

use crate::JobSpec;

/// Its answers are small.
const ANSWER_BYTES_MAX: usize = 256 * 1_024;
const REDIRECTS_MAX: usize = 3;
/// What an error of its is cut to.
const ERROR_CHARS_MAX: usize = 150;
/// Ids become part of paths.
const ID_CHARS_MAX: usize = 128;

/// What a prediction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    /// Waits.
    Starting,
    /// Is being made.
    Processing,
    /// Over: it was made.
    Succeeded,
    /// Over: it did not work.
    Failed,
    /// Over: somebody cancelled it.
    Canceled,
    /// Something that we have not heard of; it is waited for.
    #[serde(other)]
    Unknown,
}

impl Status {
    pub(super) fn is_over(self) -> bool {
        match self {
            Self::Starting | Self::Processing | Self::Unknown => false,
            Self::Succeeded | Self::Failed | Self::Canceled => true,
        }
    }
}

/// As the provider tells it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Prediction {
    pub(super) id: String,
    pub(super) status: Status,
    #[serde(default)]
    progress: Option<f64>,
    #[serde(default)]
    output: Option<String>,
    #[serde(default)]
    output_type: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    retryable: bool,
    #[serde(default)]
    cost: Option<Value>,
    #[serde(default)]
    metadata: Option<Value>,
}

#[derive(Deserialize)]
struct Results {
    results: Vec<Prediction>,
}

impl Prediction {
    /// From a fraction, as they tell it.
    pub(super) fn percent(&self) -> u8 {
        let tenths = self.progress.unwrap_or(0.0).clamp(0.0, 1.0);
        (0..=100).rev().find(|percent| f64::from(*percent) / 100.0 <= tenths).unwrap_or(0)
    }

    /// What it wants for it. What is not understood counts as nothing, and that it was is in the log: what it said instead may be
    /// anything.
    pub(super) fn cost(&self) -> Cost {
        #[derive(Deserialize)]
        struct Asked {
            micros: u64,
            currency: Label,
        }
        let Some(cost) = &self.cost else { return Cost::none() };
        match serde_json::from_value::<Asked>(cost.clone()) {
            Ok(Asked { micros, currency }) => Cost { micros, currency },
            Err(_) => {
                tracing::warn!(prediction = self.id, "the provider's cost is not understood");
                Cost::none()
            }
        }
    }

    pub(super) fn error(&self) -> Option<String> {
        self.error.as_ref().map(|error| error.chars().take(ERROR_CHARS_MAX).collect())
    }

    pub(super) fn is_retryable(&self) -> bool {
        self.retryable
    }

    pub(super) fn output_url(&self) -> Option<Url> {
        let url = self.output.as_ref().and_then(|output| Url::parse(output).ok());
        url.filter(|url| matches!(url.scheme(), "http" | "https"))
    }

    pub(super) fn output_is_mp3(&self) -> bool {
        self.output_type.as_deref() == Some("audio/mpeg")
    }

    /// For which attempt it was made; 0 when the provider does not say.
    fn attempt(&self) -> u64 {
        self.metadata.as_ref().and_then(|metadata| metadata.get("attempt")?.as_u64()).unwrap_or(0)
    }

    /// Something to take over, or that was made already.
    pub(super) fn is_of_use(&self) -> bool {
        match self.status {
            Status::Starting | Status::Processing | Status::Succeeded | Status::Unknown => true,
            Status::Failed | Status::Canceled => false,
        }
    }

    fn is_formed(&self) -> bool {
        let id = &self.id;
        !id.is_empty()
            && id.len() <= ID_CHARS_MAX
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    }
}

/// A call that did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It never got there.
    #[error("it cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// It may have got there, and no answer came back.
    #[error("its answer was lost")]
    Lost(#[source] reqwest::Error),
    /// Not now.
    #[error("it answered {status}")]
    NotNow { status: StatusCode, retry_after: Option<Duration> },
    /// No.
    #[error("it refused: {status} {said}")]
    Refused { status: StatusCode, said: String },
    /// What it answered makes no sense.
    #[error("its answer is not understood: {0}")]
    Nonsense(String),
    /// What it sent is larger than it may be.
    #[error("it sent more than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    /// The output cannot be written.
    #[error("the output cannot be written")]
    File(#[from] std::io::Error),
}

impl CallError {
    /// What went wrong, in a word of ours. What the provider said of it may quote the prompt.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Lost(_) => "answer lost",
            Self::NotNow { .. } => "not now",
            Self::Refused { .. } => "refused",
            Self::Nonsense(_) => "not understood",
            Self::TooLarge { .. } => "too large",
            Self::File(_) => "not written",
        }
    }

    /// What the provider answered, where it did.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::NotNow { status, .. } | Self::Refused { status, .. } => Some(status.as_u16()),
            Self::Unreachable(_) | Self::Lost(_) | Self::Nonsense(_) | Self::TooLarge { .. } | Self::File(_) => None,
        }
    }

    /// Whether a create that ended so may have been carried out.
    pub(super) fn is_ambiguous(&self) -> bool {
        match self {
            Self::Lost(_) | Self::Nonsense(_) => true,
            // Told to wait: not carried out. Any other trouble of its own: who knows.
            Self::NotNow { status, .. } => *status != StatusCode::TOO_MANY_REQUESTS,
            // Another create with this key is on its way.
            Self::Refused { status, .. } => *status == StatusCode::CONFLICT,
            Self::Unreachable(_) | Self::TooLarge { .. } | Self::File(_) => false,
        }
    }

    /// Whether asking again may help.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Lost(_) | Self::NotNow { .. } | Self::Nonsense(_) => true,
            Self::Refused { status, .. } => *status == StatusCode::CONFLICT,
            Self::TooLarge { .. } | Self::File(_) => false,
        }
    }

    /// Whether another attempt may work: not when it is the job that is wrong.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { status, .. } => !matches!(status.as_u16(), 400 | 413 | 422),
            Self::Unreachable(_)
            | Self::Lost(_)
            | Self::NotNow { .. }
            | Self::Nonsense(_)
            | Self::TooLarge { .. }
            | Self::File(_) => true,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotNow { retry_after, .. } => *retry_after,
            Self::Unreachable(_)
            | Self::Lost(_)
            | Self::Refused { .. }
            | Self::Nonsense(_)
            | Self::TooLarge { .. }
            | Self::File(_) => None,
        }
    }
}

impl From<reqwest::Error> for CallError {
    fn from(error: reqwest::Error) -> Self {
        // Addresses may have something signed in them.
        let error = error.without_url();
        if error.is_connect() || error.is_builder() { Self::Unreachable(error) } else { Self::Lost(error) }
    }
}

/// The provider at one address.
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    token: String,
    request_max: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(url: &Url, token: &str, request_max: Duration) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5).min(request_max))
            .redirect(redirect::Policy::limited(REDIRECTS_MAX))
            .build()?;
        Ok(Self { http, url: url.clone(), token: token.to_owned(), request_max })
    }

    pub(super) async fn create(
        &self,
        job: &JobSpec,
        key: &str,
        webhook: Option<&Url>,
    ) -> Result<Prediction, CallError> {
        let body = json!({
            "input": {
                "kind": job.kind, "prompt": job.prompt, "seconds": job.seconds, "voice": job.voice,
                "resolution": job.resolution.map(Resolution::as_str),
            },
            "metadata": { "job": job.job, "attempt": job.attempt },
            "webhook": webhook.map(Url::as_str),
        });
        let request = self.http.post(self.at(&["predictions"])).header("Idempotency-Key", key).json(&body);
        self.prediction(request).await
    }

    pub(super) async fn get(&self, id: &str) -> Result<Prediction, CallError> {
        self.prediction(self.http.get(self.at(&["predictions", id]))).await
    }

    pub(super) async fn cancel(&self, id: &str) -> Result<(), CallError> {
        self.answer(self.http.post(self.at(&["predictions", id, "cancel"]))).await.map(drop)
    }

    /// What a create with this key has made.
    pub(super) async fn of_key(&self, key: &str) -> Result<Option<Prediction>, CallError> {
        Ok(self.search("key", key).await?.into_iter().next())
    }

    /// What can be taken over of what was made for a job: of the latest attempt, since the ones before it were found to be
    /// of no use.
    pub(super) async fn of_job(&self, job: JobId) -> Result<Option<Prediction>, CallError> {
        let of_use = self.search("job", &job.to_string()).await?.into_iter().filter(Prediction::is_of_use);
        Ok(of_use.max_by_key(|prediction| (prediction.attempt(), !prediction.status.is_over())))
    }

    async fn search(&self, by: &str, value: &str) -> Result<Vec<Prediction>, CallError> {
        let answer = self.answer(self.http.get(self.at(&["predictions"])).query(&[(by, value)])).await?;
        let results: Results =
            serde_json::from_slice(&answer).map_err(|error| CallError::Nonsense(error.to_string()))?;
        Ok(results.results.into_iter().filter(Prediction::is_formed).collect())
    }

    async fn prediction(&self, request: reqwest::RequestBuilder) -> Result<Prediction, CallError> {
        let answer = self.answer(request).await?;
        let prediction: Prediction =
            serde_json::from_slice(&answer).map_err(|error| CallError::Nonsense(error.to_string()))?;
        if prediction.is_formed() {
            Ok(prediction)
        } else {
            Err(CallError::Nonsense("its id has no form that can be used".to_owned()))
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, CallError> {
        let request = request.bearer_auth(&self.token).timeout(self.request_max);
        let mut response = well(request.send().await?).await?;
        body(&mut response, ANSWER_BYTES_MAX).await
    }

    /// Fetch an output. Our token goes only to the provider itself.
    pub(super) async fn download(&self, url: &Url, file: &Path, bytes_max: u64) -> Result<(), CallError> {
        let mut request = self.http.get(url.clone());
        if url.origin() == self.url.origin() {
            request = request.bearer_auth(&self.token);
        }
        let mut response = well(request.send().await?).await?;
        let too_large = CallError::TooLarge { bytes_max };
        let said = response.content_length();
        if said.is_some_and(|bytes| bytes > bytes_max) {
            return Err(too_large);
        }
        let (mut to, mut bytes) = (File::create(file).await?, 0_u64);
        while let Some(chunk) = response.chunk().await? {
            bytes = bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if bytes > bytes_max {
                return Err(too_large);
            }
            to.write_all(&chunk).await?;
        }
        to.flush().await?;
        Ok(())
    }

    fn at(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }
}

/// The answer, when it is a good one.
async fn well(mut response: Response) -> Result<Response, CallError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let not_now = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY);
    if not_now {
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        return Err(CallError::NotNow { status, retry_after: seconds.map(Duration::from_secs) });
    }
    let said = body(&mut response, ANSWER_BYTES_MAX).await.unwrap_or_default();
    let said = serde_json::from_slice::<Value>(&said).unwrap_or_default();
    let said = said.get("detail").and_then(Value::as_str).unwrap_or_default();
    Err(CallError::Refused { status, said: said.chars().take(ERROR_CHARS_MAX).collect() })
}

async fn body(response: &mut Response, bytes_max: usize) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > bytes_max {
            return Err(CallError::Nonsense(format!("it has more than {bytes_max} bytes")));
        }
    }
    Ok(bytes)
}
