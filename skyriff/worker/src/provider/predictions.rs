//! `predictions`: a video model behind HTTP, the way most of them are sold.
//!
//! ```text
//! POST /predictions               Idempotency-Key: {job}.{attempt}   ──▶ 201 {id, status …}
//! GET  /predictions?key={key}     what a create with that key made   ──▶ 200 {results: […]}
//! GET  /predictions?job={job}     what was made for that job         ──▶ 200 {results: […]}
//! GET  /predictions/{id}          starting, processing, succeeded, failed or canceled
//! POST /predictions/{id}/cancel
//! ```
//!
//! A prediction costs money, so it is never made twice by accident. When nobody knows whether a create was heard, it is
//! looked up by its key; only when the provider says that there is none is it sent again, under the same key. A later
//! attempt of a job first looks for what an earlier one has left, and takes that over.
//!
//! Each prediction's cost is told by one attempt: the one that comes to an end with it. Whoever cannot fetch an output for
//! now leaves prediction and cost to the next attempt. Whoever finds that an output has vanished or is wrong tells its
//! cost, and the next attempt, which finds the same, makes a new prediction under its own key.
//!
//! A webhook ([`webhooks`]) says nothing but "look now": what counts is what the provider answers to us, so a repeated
//! or invented one changes nothing. Without one we ask at growing intervals.

mod client;
mod endings;
pub mod webhooks;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use skyriff_domain::video_job::{Cost, Kind, WorkerFault};
use skyriff_storage::Format;
use tokio::time::{Instant, sleep};
use url::Url;

use self::client::{CallError, Client, Prediction, Status};
use self::endings::Endings;
use self::webhooks::Webhooks;
use super::{Ended, Failure, JobSpec, Kept, Made, TOO_LONG, VideoProvider, Workplace};
use crate::{Stop, Why, api::jittered};

/// How it goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One request.
    pub request_max: Duration,
    /// Everything until it is known that the prediction exists.
    pub create_max: Duration,
    /// How long the provider may not answer at all while a prediction runs.
    pub silence_max: Duration,
    /// The first wait between two looks; it grows.
    pub poll: Duration,
    /// The longest one.
    pub poll_max: Duration,
    /// Fetching the output.
    pub download_max: Duration,
    /// How often fetching the output is tried.
    pub download_attempts: u32,
    /// The first wait before something is tried again; it doubles.
    pub back_off: Duration,
    /// The longest wait, also of those that the provider asks for.
    pub back_off_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_max: Duration::from_secs(20),
            create_max: Duration::from_secs(90),
            silence_max: Duration::from_secs(120),
            poll: Duration::from_millis(500),
            poll_max: Duration::from_secs(5),
            download_max: Duration::from_secs(300),
            download_attempts: 4,
            back_off: Duration::from_millis(250),
            back_off_max: Duration::from_secs(30),
        }
    }
}

/// A provider behind HTTP.
#[derive(Debug)]
pub struct Predictions {
    calls: Arc<Calls>,
    endings: Endings,
}

/// What is said to it, for attempts and for what outlives them.
#[derive(Debug)]
struct Calls {
    client: Client,
    webhooks: Option<Webhooks>,
    limits: Limits,
}

impl Predictions {
    /// The provider at `url`, with its token; told by `webhooks`, where there are some.
    ///
    /// # Errors
    /// As reqwest's, when there is no TLS.
    pub fn new(url: &Url, token: &str, webhooks: Option<Webhooks>, limits: Limits) -> reqwest::Result<Self> {
        let client = Client::new(url, token, limits.request_max)?;
        Ok(Self { calls: Arc::new(Calls { client, webhooks, limits }), endings: Endings::new(&limits) })
    }
}

impl Calls {
    /// The prediction for this attempt: one that an earlier attempt has left, unless it is to be made anew, or a new one.
    async fn begin(&self, job: &JobSpec, anew: bool) -> Result<Begun, Failure> {
        let end = Instant::now() + self.limits.create_max;
        let mut wait = Wait::new(&self.limits, end);
        if job.attempt > 1 && !anew {
            loop {
                match self.client.of_job(job.job).await {
                    Ok(Some(left)) => return Ok(Begun { prediction: left, is_left: true }),
                    Ok(None) => break,
                    Err(error) => wait.after(&error).await?,
                }
            }
        }
        let key = format!("{}.{}", job.job, job.attempt);
        let webhook = self.webhooks.as_ref().map(Webhooks::url);
        loop {
            let unclear = match self.client.create(job, &key, webhook).await {
                Ok(prediction) => return Ok(Begun { prediction, is_left: false }),
                Err(error) if error.is_ambiguous() => error,
                Err(error) => {
                    wait.after(&error).await?;
                    continue;
                }
            };
            let (class, status) = (unclear.class(), unclear.status());
            tracing::info!(job = %job.job, class, status, "nobody knows whether the prediction exists; looking it up");
            loop {
                wait.after(&unclear).await?;
                match self.client.of_key(&key).await {
                    Ok(Some(prediction)) => return Ok(Begun { prediction, is_left: false }),
                    // It is known not to exist.
                    Ok(None) => break,
                    Err(error) if error.may_pass() => {
                        tracing::debug!(class = error.class(), "cannot look a prediction up")
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    /// Wait for its end.
    async fn follow(&self, mut prediction: Prediction, at: &Workplace<'_>) -> Result<Prediction, Unmade> {
        let told = self.webhooks.as_ref().map(|webhooks| webhooks.watch(&prediction.id));
        let mut poll = self.limits.poll;
        let mut heard = Instant::now();
        while !prediction.status.is_over() {
            at.progress.percent(u64::from(prediction.percent()));
            let mut pause = jittered(poll);
            poll = (poll * 3 / 2).min(self.limits.poll_max);
            tokio::select! {
                () = sleep(pause) => {}
                () = async { match &told { Some(told) => told.told().await, None => std::future::pending().await } } => {}
            }
            match self.client.get(&prediction.id).await {
                Ok(now) => (prediction, heard) = (now, Instant::now()),
                Err(CallError::Refused { status, .. }) if matches!(status.as_u16(), 404 | 410) => {
                    return Err(Unmade::Forgotten(Failure::retryable("the provider no longer knows the prediction")));
                }
                Err(error) if !error.may_pass() => return Err(Failure::from(error).into()),
                Err(error) => {
                    if heard.elapsed() > self.limits.silence_max {
                        return Err(Failure::retryable("the provider has not answered for too long").into());
                    }
                    pause = error.retry_after().unwrap_or_default().min(self.limits.back_off_max);
                    sleep(pause).await;
                }
            }
        }
        Ok(prediction)
    }

    /// Copy the output to the attempt's folder, at once: providers keep them for an hour.
    async fn fetch(
        &self,
        job: &JobSpec,
        prediction: &Prediction,
        at: &Workplace<'_>,
    ) -> Result<(PathBuf, Format), Unmade> {
        let gone = |reason: String| {
            Unmade::Gone(Failure { class: "output gone", cost: prediction.cost(), ..Failure::retryable(reason) })
        };
        let format = match job.kind {
            Kind::TextToVideo => Format::Mp4,
            Kind::TextToSpeech if prediction.output_is_mp3() => Format::Mp3,
            Kind::TextToSpeech => Format::M4a,
        };
        let url = prediction.output_url().ok_or_else(|| gone("the provider named no output".to_owned()))?;
        let file = at.folder.join(format!("output.{}", format.extension()));
        let mut wait = Wait::new(&self.limits, Instant::now() + self.limits.download_max);
        for _ in 0..self.limits.download_attempts {
            let fetched = self.client.download(&url, &file, at.bytes_max);
            match tokio::time::timeout_at(wait.end, fetched).await {
                Ok(Ok(())) => return Ok((file, format)),
                // Its cost is told by the attempt that takes it over.
                Ok(Err(error)) if error.may_pass() => wait.after(&error).await?,
                Ok(Err(CallError::Refused { status, .. })) => {
                    return Err(gone(format!("the provider no longer has the output ({status})")));
                }
                Ok(Err(error @ CallError::TooLarge { .. })) => {
                    return Err(gone(format!("cannot fetch the output: {error}")));
                }
                Ok(Err(error)) => {
                    tracing::warn!(job = %job.job, class = error.class(), "cannot write an output to the scratch folder");
                    return Err(Failure::of_worker(WorkerFault::NoScratch).into());
                }
                Err(_) => break,
            }
        }
        Err(Failure::retryable("the output could not be fetched in time").into())
    }

    /// Tell the provider that nobody wants it any more, and hear what it costs; nothing where it is not known to be over, or
    /// the next attempt takes it over and tells its cost. Tried twice: it costs only money.
    async fn cancel(&self, prediction: &Prediction) -> Cost {
        for _ in 0..2 {
            match self.client.cancel(&prediction.id).await {
                Ok(()) => {
                    let now = self.client.get(&prediction.id).await.ok();
                    let over = now.filter(|now| now.status.is_over() && !now.is_of_use());
                    return over.map_or_else(Cost::none, |over| over.cost());
                }
                Err(error) => {
                    let (class, status) = (error.class(), error.status());
                    tracing::warn!(prediction = prediction.id, class, status, "cannot cancel a prediction");
                }
            }
        }
        Cost::none()
    }
}

impl Predictions {
    /// As [`Calls::begin`], and not cut off by a stop: half a create is the one thing that nobody can tell the outcome of.
    async fn begin(&self, job: &JobSpec, anew: bool, stop: &Stop) -> Result<Begun, Ended> {
        if let Some(why) = stop.said() {
            return Err(Ended::Stopped(why));
        }
        let (calls, job) = (Arc::clone(&self.calls), job.clone());
        let mut begin = Box::pin(async move { calls.begin(&job, anew).await });
        let why = tokio::select! {
            begun = &mut begin => return Ok(begun?),
            why = stop.heard() => why,
        };
        match why {
            // Nobody waits for it, and what comes of it is paid for until it is cancelled.
            Why::Over => {
                let calls = Arc::clone(&self.calls);
                let end = async move {
                    if let Ok(begun) = begin.await {
                        calls.cancel(&begun.prediction).await;
                    }
                };
                self.endings.see_to(end).await;
            }
            // Whoever has the job next takes it over, once it is there.
            Why::Lost | Why::Leaving | Why::TooLong => drop(self.endings.see_through(begin).await),
        }
        Err(Ended::Stopped(why))
    }

    async fn make(&self, job: &JobSpec, at: Workplace<'_>) -> Result<Made, Ended> {
        let begun = self.begin(job, at.anew, at.stop).await?;
        let (is_left, was_over) = (begun.is_left, begun.was_over());
        let class = match self.finish(job, begun, &at).await {
            // Nobody knows what it cost.
            Err(Unmade::Forgotten(failure)) if is_left => failure.class,
            // An earlier attempt has found that out, and told its cost.
            Err(Unmade::Gone(failure)) if was_over => failure.class,
            made => return Ok(made?),
        };
        tracing::info!(job = %job.job, class, "what an earlier attempt has left is of no use; making another");
        let begun = self.begin(job, true, at.stop).await?;
        Ok(self.finish(job, begun, &at).await?)
    }

    /// See a prediction through to its end.
    async fn finish(&self, job: &JobSpec, begun: Begun, at: &Workplace<'_>) -> Result<Made, Unmade> {
        let kept = if begun.was_over() { Kept::SinceBefore } else { Kept::ByProvider };
        let prediction = begun.prediction;
        let finish = async {
            let prediction = self.calls.follow(prediction.clone(), at).await?;
            let failed = |reason: String, retryable| Failure {
                reason,
                class: "prediction failed",
                retryable,
                cost: prediction.cost(),
            };
            match prediction.status {
                Status::Succeeded => {
                    let (file, format) = self.calls.fetch(job, &prediction, at).await?;
                    Ok(Made { file, format, said_seconds: None, cost: prediction.cost(), kept })
                }
                Status::Failed => {
                    let reason = prediction.error().unwrap_or_else(|| "the provider could not make it".to_owned());
                    Err(failed(reason, prediction.is_retryable()).into())
                }
                Status::Canceled | Status::Starting | Status::Processing | Status::Unknown => {
                    Err(failed("the prediction was cancelled at the provider".to_owned(), true).into())
                }
            }
        };
        tokio::select! {
            made = finish => made,
            why = at.stop.heard() => {
                let calls = Arc::clone(&self.calls);
                match why {
                    Why::Over => self.endings.see_to(async move { drop(calls.cancel(&prediction).await) }).await,
                    Why::TooLong => {
                        let cost = self.endings.see_through(async move { calls.cancel(&prediction).await }).await;
                        let cost = cost.unwrap_or_else(Cost::none);
                        return Err(Failure { cost, ..Failure::retryable(TOO_LONG) }.into());
                    }
                    // Whoever has the job next takes the prediction over.
                    Why::Lost | Why::Leaving => {}
                }
                Err(Unmade::Ended(Ended::Stopped(why)))
            }
        }
    }
}

/// A prediction for an attempt.
struct Begun {
    prediction: Prediction,
    /// By an earlier attempt.
    is_left: bool,
}

impl Begun {
    /// Whether an earlier attempt has left it finished.
    fn was_over(&self) -> bool {
        self.is_left && self.prediction.status.is_over()
    }
}

/// Why a prediction comes to nothing.
enum Unmade {
    /// The provider no longer knows it.
    Forgotten(Failure),
    /// It was made, and cannot be had: it has vanished, or is too large.
    Gone(Failure),
    /// Anything else.
    Ended(Ended),
}

impl From<Failure> for Unmade {
    fn from(failure: Failure) -> Self {
        Self::Ended(failure.into())
    }
}

impl From<Unmade> for Ended {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Forgotten(failure) | Unmade::Gone(failure) => failure.into(),
            Unmade::Ended(ended) => ended,
        }
    }
}

impl VideoProvider for Predictions {
    fn name(&self) -> &'static str {
        "predictions"
    }

    fn kinds(&self) -> &'static [Kind] {
        &Kind::ALL
    }

    fn make<'a>(&'a self, job: &'a JobSpec, at: Workplace<'a>) -> BoxFuture<'a, Result<Made, Ended>> {
        Box::pin(self.make(job, at))
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.endings.settled())
    }
}

/// Waits between tries: longer each time, as long as the provider asks for, and not beyond the end.
struct Wait {
    end: Instant,
    back_off: Duration,
    back_off_max: Duration,
}

impl Wait {
    fn new(limits: &Limits, end: Instant) -> Self {
        Self { end, back_off: limits.back_off, back_off_max: limits.back_off_max }
    }

    /// Wait until it may be tried again, if that can help and there is time.
    async fn after(&mut self, error: &CallError) -> Result<(), Failure> {
        if !error.may_pass() {
            return Err(Failure::from(error));
        }
        let asked = error.retry_after().unwrap_or_default().min(self.back_off_max);
        let pause = asked.max(jittered(self.back_off));
        if Instant::now() + pause > self.end {
            return Err(Failure::from(error));
        }
        sleep(pause).await;
        self.back_off = (self.back_off * 2).min(self.back_off_max);
        Ok(())
    }
}

impl From<&CallError> for Failure {
    fn from(error: &CallError) -> Self {
        let (reason, class) = (format!("the provider failed: {error}"), error.class());
        Self { reason, class, retryable: error.is_retryable(), cost: Cost::none() }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::from(&error)
    }
}
