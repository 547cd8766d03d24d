//! Video jobs, for the people who order them.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event as Sent, KeepAlive, Sse},
    },
};
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use skyriff_domain::{
    Event, Intent, JobId, Label, Points, UserId,
    video_job::{self, Kind, Resolution, Step, steps::What},
    words,
};
use skyriff_edge::{Caller, Json, Kind as Problems, Path, Problem, Right, Role, problem::IDEMPOTENT_REPLAYED};
use skyriff_vault::{Column, Purpose, Vault};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    VideoApi,
    sealing::unsealed,
    submit::{Accepted, Asked, CommandResponses, OnlyWhen, OptionalJson, POSITION, Sender},
};
use crate::{
    Receipt,
    video_queue::{Change, NotWatched, Outlook},
};

/// The longest prompt, in characters.
const PROMPT_MAX: usize = 1_000;
/// The highest priority.
const PRIORITY_MAX: u8 = 9;
/// A stream that has no news says that it is still there.
const STREAM_HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a browser waits before it comes again, in milliseconds.
const STREAM_RETRY: Duration = Duration::from_secs(1);

pub(super) fn routes() -> OpenApiRouter<VideoApi> {
    OpenApiRouter::new()
        .routes(routes!(submit))
        .routes(routes!(cancel))
        .routes(routes!(follow))
        .routes(routes!(follow_own))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SubmitVideoJob {
    kind: Kind,
    /// What it is to show or say: 1 to 1000 characters. Kept sealed.
    #[schema(min_length = 1, max_length = 1000)]
    prompt: String,
    /// How long it is to be, at most. What is made shorter costs less.
    #[schema(minimum = 1)]
    seconds: u32,
    /// Of a video, which needs it.
    #[serde(default)]
    resolution: Option<Resolution>,
    /// Of speech.
    #[serde(default)]
    voice: Option<Label>,
    /// What it is to be made with; anything that can, unless given.
    #[serde(default)]
    provider: Option<Label>,
    /// For whom; the caller, unless a service says otherwise.
    #[serde(default)]
    user: Option<UserId>,
    /// Services may choose the id; else it comes of the caller and the Idempotency-Key.
    #[serde(default)]
    job: Option<JobId>,
    /// 0 to 9, higher ones first; services only. Each step is worth a minute of waiting, unless set otherwise.
    #[serde(default)]
    #[schema(maximum = 9)]
    priority: Option<u8>,
    /// When it happened; now, unless a service says otherwise.
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

/// A job that was taken on.
#[derive(Serialize, ToSchema)]
struct SubmittedVideoJob {
    job: JobId,
    user: UserId,
    kind: Kind,
    seconds: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution: Option<Resolution>,
    #[serde(skip_serializing_if = "Option::is_none")]
    voice: Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<Label>,
    priority: u8,
    /// What is held for it; what is not used comes back.
    held: Points,
    /// Its place among the jobs of its kind that wait; none when it waits no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<i64>,
    /// When it will be made, in seconds, going by how long jobs have taken lately; none while nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate_s: Option<u64>,
    submitted_at: DateTime<Utc>,
    /// Where it landed, `shard:position`; send it as `Skyriff-At-Least` to read your own write.
    #[schema(example = "3:1042")]
    position: String,
    /// Whether an earlier request with the same key did it.
    replayed: bool,
}

/// Order a video or speech: points are held, and the job waits for a worker.
#[utoipa::path(post, path = "/v1/video-jobs", tag = "videos", params(("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
    request_body = SubmitVideoJob,
    responses((status = 202, body = SubmittedVideoJob, description = "Taken on, durably. Also the answer to a repeated request, then with `Idempotent-Replayed: true`.",
               headers(("Location" = String, description = "the job"), ("Skyriff-Position" = String), ("Idempotent-Replayed" = bool))),
              (status = 410, description = "What belonged to this person was erased", body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              CommandResponses))]
async fn submit(
    State(api): State<VideoApi>,
    sender: Sender,
    Json(body): Json<SubmitVideoJob>,
) -> Result<Response, Problem> {
    let caller = sender.caller().clone();
    let user = match (body.user, caller.role) {
        (Some(user), _) => user,
        (None, Role::User) => UserId(caller.id),
        (None, Role::Service | Role::Operator | Role::Reviewer | Role::Auditor | Role::Analyst | Role::Worker) => {
            caller.may(Right::OrderVideos, UserId(caller.id))?;
            return Err(Problem::new(&Problems::MALFORMED).detail("a service says for which user"));
        }
    };
    caller.may(Right::OrderVideos, user)?;
    if body.job.is_some() || body.priority.is_some() {
        caller.may(Right::ImportVideos, user)?;
    }
    check(&body)?;
    // A command's id is as good a name for what it makes as any.
    let job = body.job.unwrap_or(JobId(sender.command_id().0));
    let prompt = api.vault.seal_prompt(user, job, &body.prompt).await.map_err(|error| unsealed(&error))?;
    let SubmitVideoJob { kind, seconds, resolution, voice, provider, priority, occurred_at, .. } = body;
    let what = What::Submit { kind, seconds, resolution, voice, provider, prompt, priority: priority.unwrap_or(0) };
    let intent = Intent::VideoJob(Step { job, what });
    let receipt =
        sender.execute(&api.commands, Asked { right: Right::OrderVideos, user, said_at: occurred_at, intent }).await?;
    accepted(&api, user, job, &receipt).await
}

fn check(body: &SubmitVideoJob) -> Result<(), Problem> {
    let out_of_range = |detail: String| Err(Problem::new(&Problems::OUT_OF_RANGE).detail(detail));
    let length = body.prompt.chars().count();
    let odd = |character: char| character.is_control() && !matches!(character, '\n' | '\t' | '\r');
    if !(1..=PROMPT_MAX).contains(&length) || body.prompt.trim().is_empty() || body.prompt.chars().any(odd) {
        return out_of_range(format!(
            "a prompt is 1 to {PROMPT_MAX} characters, not only spaces, without control characters"
        ));
    }
    match body.kind {
        Kind::TextToVideo if body.voice.is_some() => out_of_range("a video has no voice".to_owned()),
        Kind::TextToVideo if body.resolution.is_none() => out_of_range("a video needs a resolution".to_owned()),
        Kind::TextToSpeech if body.resolution.is_some() => out_of_range("speech has no resolution".to_owned()),
        Kind::TextToVideo | Kind::TextToSpeech if body.priority.is_some_and(|priority| priority > PRIORITY_MAX) => {
            out_of_range(format!("a priority is 0 to {PRIORITY_MAX}"))
        }
        Kind::TextToVideo | Kind::TextToSpeech => Ok(()),
    }
}

async fn accepted(api: &VideoApi, user: UserId, job: JobId, receipt: &Receipt) -> Result<Response, Problem> {
    let submitted = receipt.recorded.iter().find_map(|recorded| {
        let event = Event::decode(&recorded.stream, "submitted", video_job::Event::VERSION, &recorded.payload).ok()?;
        let Event::VideoJob(video_job::Event::Submitted(order)) = event else { return None };
        Some((order, recorded.occurred_at, recorded.recorded_at))
    });
    let is_new = !receipt.replayed && submitted.is_some();
    let (order, submitted_at, recorded_at) = match submitted {
        Some(submitted) => submitted,
        // It was submitted before, under another key.
        None => {
            let watched = api.queue.watch(user, job, 0, 0).await.map_err(not_watched)?;
            match watched.past.into_iter().next() {
                Some(Change::Event { event: video_job::Event::Submitted(order), occurred_at, .. }) => {
                    (order, occurred_at, occurred_at)
                }
                Some(Change::Event { .. } | Change::Progress { .. }) | None => {
                    return Err(Problem::new(&Problems::NOT_FOUND));
                }
            }
        }
    };
    let outlook = api.queue.outlook(user, job, order.kind, order.priority, recorded_at, is_new).await;
    let held = order.price();
    let video_job::Order { kind, seconds, resolution, voice, provider, priority, .. } = order;
    let position = receipt.position.to_string();
    let body = SubmittedVideoJob {
        job,
        user,
        kind,
        seconds,
        resolution,
        voice,
        provider,
        priority,
        held,
        place: outlook.map(|outlook| outlook.place),
        estimate_s: outlook.and_then(|Outlook { estimate, .. }| estimate).map(|estimate| estimate.as_secs().max(1)),
        submitted_at,
        position: position.clone(),
        replayed: receipt.replayed,
    };
    let mut response = (StatusCode::ACCEPTED, axum::Json(body)).into_response();
    let headers = response.headers_mut();
    for (name, value) in [(header::LOCATION, format!("/v1/users/{user}/video-jobs/{job}")), (POSITION, position)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    if receipt.replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Take an order back: whatever is held for it comes back. A job that has been made is paid for.
#[utoipa::path(post, path = "/v1/users/{user}/video-jobs/{job}/cancel", tag = "videos",
    params(("user" = UserId, Path), ("job" = JobId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
    request_body(content = Option<OnlyWhen>), responses(CommandResponses))]
async fn cancel(
    State(api): State<VideoApi>,
    Path((user, job)): Path<(UserId, JobId)>,
    sender: Sender,
    OptionalJson(body): OptionalJson<OnlyWhen>,
) -> Result<Accepted, Problem> {
    let intent = Intent::VideoJob(Step { job, what: What::Cancel });
    sender.submit(&api.commands, Right::OrderVideos, user, body.occurred_at, intent).await
}

/// Follow a job: what becomes of it, as server-sent events, until it is over.
///
/// `state` says what it became, `progress` how far the attempt is, in per cent. Comes again with `Last-Event-ID` from
/// where it was, at any node. 204 when there is nothing more to tell.
#[utoipa::path(get, path = "/v1/users/{user}/video-jobs/{job}/events", tag = "videos",
    params(("user" = UserId, Path), ("job" = JobId, Path), ("Last-Event-ID" = Option<String>, Header, description = "the id of the last event that was seen")),
    responses((status = 200, description = "events, each with an id", content_type = "text/event-stream", body = String),
              (status = 204, description = "the job is over, and all of it was seen"),
              (status = 400, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 404, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
async fn follow(
    State(api): State<VideoApi>,
    Path((user, job)): Path<(UserId, JobId)>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.may(Right::ReadAccount, user)?;
    changes(&api, user, job, &headers).await
}

/// The same, of a job of the caller.
#[utoipa::path(get, path = "/v1/video-jobs/{job}/events", tag = "videos",
    params(("job" = JobId, Path), ("Last-Event-ID" = Option<String>, Header, description = "the id of the last event that was seen")),
    responses((status = 200, description = "events, each with an id", content_type = "text/event-stream", body = String),
              (status = 204, description = "the job is over, and all of it was seen"),
              (status = 400, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 404, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
async fn follow_own(
    State(api): State<VideoApi>,
    Path(job): Path<JobId>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let user = UserId(caller.id);
    caller.may(Right::OrderVideos, user)?;
    changes(&api, user, job, &headers).await
}

async fn changes(api: &VideoApi, user: UserId, job: JobId, headers: &HeaderMap) -> Result<Response, Problem> {
    let (seen, progress) = match headers.get("last-event-id") {
        None => (0, 0),
        Some(id) => last_seen(id.to_str().unwrap_or_default())
            .ok_or_else(|| Problem::new(&Problems::MALFORMED).detail("Last-Event-ID is not one of ours"))?,
    };
    let watched = api.queue.watch(user, job, seen, progress).await.map_err(not_watched)?;
    if watched.past.is_empty() && watched.news.is_none() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let news = watched.news.map(|news| stream::unfold(news, async |mut news| Some((news.recv().await?, news))));
    // What is known is told in any case; what is awaited, for as long as the node runs.
    let closing = api.queue.closing().clone().cancelled_owned();
    let news = stream::iter(news).flatten().take_until(closing);
    let first = stream::iter([Ok(Sent::default().retry(STREAM_RETRY).comment("following"))]);
    let vault = api.vault.clone();
    let changes = stream::iter(watched.past).chain(news).then(move |change| {
        let vault = vault.clone();
        async move {
            let reason = reason(&vault, user, job, &change).await;
            Ok::<_, Infallible>(sent(job, &change, reason))
        }
    });
    let all = first.chain(changes);
    let heartbeat = KeepAlive::new().interval(STREAM_HEARTBEAT).text("still here");
    let mut response = Sse::new(all).keep_alive(heartbeat).into_response();
    // Asks proxies to pass each event on at once.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn not_watched(error: NotWatched) -> Problem {
    match error {
        NotWatched::Busy(_) => Problem::new(&Problems::OVERLOADED).retry_after_s(2),
        NotWatched::Erased => Problem::new(&Problems::ERASED),
        NotWatched::NotFound => Problem::new(&Problems::NOT_FOUND).detail(video_job::Refusal::NotSubmitted.to_string()),
        NotWatched::Unavailable(error) => {
            tracing::warn!(%error, "a video job cannot be followed for now");
            Problem::new(&Problems::UNAVAILABLE).retry_after_s(2)
        }
    }
}

/// `sequence` or `sequence.progress`.
fn last_seen(id: &str) -> Option<(i64, u8)> {
    let (sequence, progress) = id.split_once('.').unwrap_or((id, "0"));
    let (sequence, progress) = (sequence.parse().ok()?, progress.parse().ok()?);
    (sequence >= 0 && progress <= 100).then_some((sequence, progress))
}

/// Why an attempt failed, in the clear, for the owner. None when it did not, or when nobody can read it any more.
async fn reason(vault: &Vault, user: UserId, job: JobId, change: &Change) -> Option<String> {
    use video_job::Event as E;
    let Change::Event {
        event: E::AttemptFailed { reason, words: sealed, .. } | E::Failed { reason, words: sealed, .. },
        ..
    } = change
    else {
        return None;
    };
    let text = words::to_column(reason, sealed.as_ref());
    let column = Column { person: user, purpose: Purpose::AttemptReason, thing: job.0, text: &text };
    vault.open_columns(&[column]).await.pop().flatten()
}

fn sent(job: JobId, change: &Change, reason: Option<String>) -> Sent {
    use video_job::Event as E;
    let (id, name, mut data) = match change {
        Change::Progress { sequence, attempt, progress } => (
            format!("{sequence}.{progress}"),
            "progress",
            json!({ "job": job, "attempt": attempt, "progress": progress }),
        ),
        Change::Event { sequence, event, occurred_at } => {
            let (status, more) = match event {
                E::Submitted(order) => (video_job::Status::Queued, json!({ "attempt": 0, "held": order.price() })),
                E::Leased { attempt, .. } => (video_job::Status::Leased, json!({ "attempt": attempt })),
                E::AttemptFailed { attempt, reason: _, words: _, retry_at, cost: _ } => {
                    (video_job::Status::Queued, json!({ "attempt": attempt, "reason": reason, "retry_at": retry_at }))
                }
                E::Succeeded { attempt, output, used, cost: _ } => (
                    video_job::Status::Succeeded,
                    json!({ "attempt": attempt, "used": used, "seconds": output.seconds, "bytes": output.bytes,
                            "content_type": output.content_type }),
                ),
                E::Failed { attempt, .. } => {
                    (video_job::Status::Failed, json!({ "attempt": attempt, "reason": reason }))
                }
                E::Cancelled {} => (video_job::Status::Cancelled, json!({})),
                E::Expired {} => (video_job::Status::Expired, json!({})),
            };
            let mut data = json!({ "job": job, "state": status, "occurred_at": occurred_at });
            if let (Some(data), serde_json::Value::Object(more)) = (data.as_object_mut(), more) {
                data.extend(more);
            }
            (sequence.to_string(), "state", data)
        }
    };
    Sent::default().id(id).event(name).data(data.take().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_events_are_read_back_and_others_are_refused() {
        assert_eq!(last_seen("0"), Some((0, 0)));
        assert_eq!(last_seen("3"), Some((3, 0)));
        assert_eq!(last_seen("3.40"), Some((3, 40)));
        for bad in ["", "x", "-1", "3.", "3.101", "3.4.5", "3.-1"] {
            assert_eq!(last_seen(bad), None, "{bad}");
        }
    }
}
