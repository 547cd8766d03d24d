//! Video jobs, for the workers that make them.
//!
//! A worker asks for jobs, keeps each with heartbeats, and says what came of it. The attempt's number is its right to
//! speak: whoever is told `stale-attempt` stops, since the job is somebody else's, or over.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{
    Command, CommandId, Intent, JobId, Label, Metadata, Note, UserId, Words,
    video_job::{Cost, Kind, Output, Resolution, Step, WorkerFault, steps::What},
};
use skyriff_edge::{Caller, Json, Kind as Problems, Path, Problem, RequestContext, Right, problem::ProblemBody};
use skyriff_vault::{Error, Purpose};
use utoipa::{IntoResponses, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    VideoApi,
    sealing::unsealed,
    submit::{POSITION, problem},
};
use crate::{
    Fingerprint, Submission,
    outputs::OutputProblem,
    payouts,
    video_queue::{Ask, Beat},
};

/// Jobs that one worker may ask for at once.
const JOBS_MAX: u32 = 64;
/// The longest that a worker waits for jobs; it then asks again. Less than any request may take.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// The highest cost of one attempt, in millionths of a currency's unit: whatever is more is a mistake.
const COST_MICROS_MAX: u64 = 1_000_000_000_000;
/// Providers that a worker may name.
const PROVIDERS_MAX: usize = 16;

pub(super) fn routes() -> OpenApiRouter<VideoApi> {
    OpenApiRouter::new()
        .routes(routes!(lease))
        .routes(routes!(heartbeat))
        .routes(routes!(complete))
        .routes(routes!(fail))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LeaseRequest {
    /// What the worker calls itself; stands in the events.
    worker: Label,
    /// What it can make.
    kinds: Vec<Kind>,
    /// With what, in the order in which it prefers them.
    #[schema(min_items = 1, max_items = 16)]
    providers: Vec<Label>,
    /// How many jobs it takes at once.
    #[schema(minimum = 1, maximum = 64)]
    #[serde(default = "one")]
    max: u32,
    /// How long it waits for jobs if there are none, in seconds; no longer than 10.
    #[serde(default)]
    wait_s: u32,
}

const fn one() -> u32 {
    1
}

#[derive(Serialize, ToSchema)]
struct Leases {
    /// None when there was nothing to do for as long as the worker waited.
    jobs: Vec<Lease>,
}

/// A job in the hands of a worker.
#[derive(Serialize, ToSchema)]
struct Lease {
    job: JobId,
    user: UserId,
    /// The right to speak for the job.
    attempt: u32,
    kind: Kind,
    /// How long it is to be, at most.
    seconds: u32,
    /// Of a video.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution: Option<Resolution>,
    /// Of speech.
    #[serde(skip_serializing_if = "Option::is_none")]
    voice: Option<Label>,
    /// What it is to be made with.
    provider: Label,
    /// What it is to show or say.
    prompt: String,
    /// Until then it must be heard of.
    lease_until: DateTime<Utc>,
    /// So long is a lease from each heartbeat on; three heartbeats in that time are a good measure.
    lease_s: f64,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Heartbeat {
    /// In per cent.
    #[serde(default)]
    #[schema(maximum = 100)]
    progress: u8,
}

#[derive(Serialize, ToSchema)]
struct Kept {
    /// Until then it must be heard of again.
    lease_until: DateTime<Utc>,
    lease_s: f64,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Completion {
    output: Output,
    /// What the provider wants for it; nothing, unless given.
    #[serde(default = "Cost::none")]
    cost: Cost,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Failure {
    reason: Note,
    /// Whether another attempt may work.
    retryable: bool,
    /// What the provider wants all the same; nothing, unless given.
    #[serde(default = "Cost::none")]
    cost: Cost,
}

/// What was recorded.
#[derive(Serialize, ToSchema)]
struct Heard {
    #[schema(example = "3:1042")]
    position: String,
    /// Whether it had been said before.
    replayed: bool,
}

#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never made")]
enum WorkerProblems {
    /// Malformed.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(#[to_schema] ProblemBody<'static>),
    /// No valid token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(#[to_schema] ProblemBody<'static>),
    /// Not a worker.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] ProblemBody<'static>),
    /// A value is out of range.
    #[response(status = 422, content_type = "application/problem+json")]
    OutOfRange(#[to_schema] ProblemBody<'static>),
    /// Not now: send it again after `Retry-After` seconds.
    #[response(status = 503, content_type = "application/problem+json", headers(("Retry-After" = u32)))]
    Unavailable(#[to_schema] ProblemBody<'static>),
}

/// `stale-attempt`: stop working on it.
#[derive(IntoResponses)]
#[response(status = 409, content_type = "application/problem+json")]
#[expect(dead_code, reason = "only described, never made")]
struct Stale(#[to_schema] ProblemBody<'static>);

/// Ask for jobs, and wait for them.
///
/// Whoever asks gets each job alone, until its lease is over. A worker that stops waiting before it is answered loses
/// nothing: what it would have got is given to others when that lease is over.
#[utoipa::path(post, path = "/v1/worker/leases", tag = "workers", request_body = LeaseRequest,
    responses((status = 200, body = Leases), WorkerProblems))]
async fn lease(
    State(api): State<VideoApi>,
    caller: Caller,
    context: RequestContext,
    Json(body): Json<LeaseRequest>,
) -> Result<axum::Json<Leases>, Problem> {
    may_work(&caller)?;
    let LeaseRequest { worker, kinds, providers, max, wait_s } = body;
    let out_of_range = |detail: String| Problem::new(&Problems::OUT_OF_RANGE).detail(detail);
    if !(1..=JOBS_MAX).contains(&max) {
        return Err(out_of_range(format!("max is 1 to {JOBS_MAX}")));
    }
    if kinds.is_empty() || kinds.len() > Kind::ALL.len() || providers.is_empty() || providers.len() > PROVIDERS_MAX {
        return Err(out_of_range(format!("a worker names each kind once, and 1 to {PROVIDERS_MAX} providers")));
    }
    let wait = Duration::from_secs(u64::from(wait_s)).min(WAIT_MAX);
    let (actor, request_id) = (caller.actor(), context.request_id);
    let max = usize::try_from(max).unwrap_or(1);
    let ask = Ask { worker, kinds, providers, max, wait, actor, request_id };
    let jobs = api.queue.lease(ask).await.map_err(|_| busy())?;
    let lease_s = api.queue.lease_time().as_secs_f64();
    let jobs = jobs.into_iter().map(|leased| Lease {
        job: leased.job,
        user: leased.user,
        attempt: leased.attempt,
        kind: leased.kind,
        seconds: leased.seconds,
        resolution: leased.resolution,
        voice: leased.voice,
        provider: leased.provider,
        prompt: leased.prompt,
        lease_until: leased.lease_until,
        lease_s,
    });
    Ok(axum::Json(Leases { jobs: jobs.collect() }))
}

/// Still at it.
#[utoipa::path(post, path = "/v1/worker/jobs/{user}/{job}/attempts/{attempt}/heartbeat", tag = "workers",
    params(("user" = UserId, Path), ("job" = JobId, Path), ("attempt" = u32, Path)), request_body = Heartbeat,
    responses((status = 200, body = Kept), Stale, WorkerProblems))]
async fn heartbeat(
    State(api): State<VideoApi>,
    Path((user, job, attempt)): Path<(UserId, JobId, u32)>,
    caller: Caller,
    Json(Heartbeat { progress }): Json<Heartbeat>,
) -> Result<axum::Json<Kept>, Problem> {
    may_work(&caller)?;
    if progress > 100 {
        return Err(Problem::new(&Problems::OUT_OF_RANGE).detail("progress is 0 to 100"));
    }
    let kept = api.queue.beat(Beat { user, job, attempt, progress }).await.map_err(|_| busy())?;
    let kept = kept.map_err(|_| Problem::new(&Problems::UNAVAILABLE).retry_after_s(1))?;
    let stale = || Problem::new(&Problems::STALE_ATTEMPT).detail(format!("attempt {attempt} is over"));
    let lease_s = api.queue.lease_time().as_secs_f64();
    Ok(axum::Json(Kept { lease_until: kept.ok_or_else(stale)?, lease_s }))
}

/// It is made: the output is in the object storage. What was used is paid for, the rest comes back.
#[utoipa::path(post, path = "/v1/worker/jobs/{user}/{job}/attempts/{attempt}/complete", tag = "workers",
    params(("user" = UserId, Path), ("job" = JobId, Path), ("attempt" = u32, Path)), request_body = Completion,
    responses((status = 200, body = Heard), Stale, WorkerProblems))]
async fn complete(
    State(api): State<VideoApi>,
    Path(attempt): Path<(UserId, JobId, u32)>,
    caller: Caller,
    context: RequestContext,
    Json(Completion { output, cost }): Json<Completion>,
) -> Result<Response, Problem> {
    may_work(&caller)?;
    let digits = output.sha256.as_str();
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit)) {
        return Err(Problem::new(&Problems::OUT_OF_RANGE).detail("sha256 is 64 hexadecimal digits, small letters"));
    }
    // A job must not succeed with nothing to show for it.
    api.outputs.check(attempt.1, attempt.2, &output).await.map_err(|problem| match problem {
        OutputProblem::NotIts => Problem::new(&Problems::OUT_OF_RANGE)
            .detail("object is JOB.ATTEMPT.EXTENSION of this very attempt, and content_type what the extension says"),
        OutputProblem::Missing => {
            Problem::new(&Problems::OUT_OF_RANGE).detail("the output is not in the object storage")
        }
        OutputProblem::OtherSize { found } => Problem::new(&Problems::OUT_OF_RANGE)
            .detail(format!("the output in the object storage has {found} bytes, not {}", output.bytes)),
        OutputProblem::Unavailable(reason) => {
            tracing::warn!(reason, "an output cannot be checked for now");
            Problem::new(&Problems::UNAVAILABLE).retry_after_s(2)
        }
    })?;
    say(&api, &caller, context, attempt, "complete", What::Complete { attempt: attempt.2, output, cost }).await
}

/// It did not work: it is tried again, unless that is of no use or was done too often; then the points go back.
#[utoipa::path(post, path = "/v1/worker/jobs/{user}/{job}/attempts/{attempt}/fail", tag = "workers",
    params(("user" = UserId, Path), ("job" = JobId, Path), ("attempt" = u32, Path)), request_body = Failure,
    responses((status = 200, body = Heard), Stale, WorkerProblems))]
async fn fail(
    State(api): State<VideoApi>,
    Path(attempt): Path<(UserId, JobId, u32)>,
    caller: Caller,
    context: RequestContext,
    Json(Failure { reason, retryable, cost }): Json<Failure>,
) -> Result<Response, Problem> {
    may_work(&caller)?;
    let reason = said(&api, attempt.0, attempt.1, reason).await?;
    let what = What::FailAttempt { attempt: attempt.2, reason, retryable, cost };
    say(&api, &caller, context, attempt, "fail", what).await
}

/// A worker's own faults are known by their words. Whatever else it says may quote the prompt.
async fn said(api: &VideoApi, user: UserId, job: JobId, reason: Note) -> Result<Words, Problem> {
    if WorkerFault::is_in(&reason) {
        return Ok(reason.into());
    }
    match api.vault.seal_words(user, Purpose::AttemptReason, job.0, &reason).await {
        // Its end is recorded all the same.
        Err(Error::Erased) => Ok(forgotten().into()),
        sealed => sealed.map_err(|error| unsealed(&error)),
    }
}

/// The reason of an attempt at a job of a person who is forgotten.
fn forgotten() -> Note {
    payouts::note("it failed")
}

/// Workers belong to no user, and may work for all.
fn may_work(caller: &Caller) -> Result<(), Problem> {
    caller.may(Right::WorkVideos, UserId(caller.id))
}

fn busy() -> Problem {
    Problem::new(&Problems::OVERLOADED).retry_after_s(1)
}

/// What a worker says of its attempt. It needs no key: the attempt is one, so saying it again gives the first answer.
async fn say(
    api: &VideoApi,
    caller: &Caller,
    context: RequestContext,
    (user, job, attempt): (UserId, JobId, u32),
    name: &str,
    what: What,
) -> Result<Response, Problem> {
    if let What::Complete { cost, .. } | What::FailAttempt { cost, .. } = &what
        && cost.micros > COST_MICROS_MAX
    {
        return Err(Problem::new(&Problems::OUT_OF_RANGE).detail(format!("a cost is at most {COST_MICROS_MAX} micros")));
    }
    let intent = Intent::VideoJob(Step { job, what });
    let fingerprint = Fingerprint::of(user, None, &intent).map_err(|error| Problem::fault(&error))?;
    // With what is said in it: another output is another thing to say, and the job's stream answers to that.
    let id = CommandId::derive(&caller.actor(), &format!("{user} {job} {attempt} {name} {}", fingerprint.0));
    let RequestContext { request_id, traceparent, address } = context;
    let metadata =
        Metadata { command_id: id, actor: caller.actor(), request_id, causation: None, traceparent, address };
    let command = Command { user, at: Utc::now().trunc_subsecs(6), intent };
    let receipt = api.commands.execute(Submission { id, fingerprint, command, metadata }).await.map_err(problem)?;
    let position = receipt.position.to_string();
    let header = HeaderValue::try_from(&position);
    let body = Heard { position, replayed: receipt.replayed };
    let mut response = (StatusCode::OK, axum::Json(body)).into_response();
    if let Ok(header) = header {
        response.headers_mut().insert(POSITION, header);
    }
    Ok(response)
}
