//! From a request to a submission, and from what came of it to an answer: the same for every command.

use axum::{
    body::HttpBody,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use skyriff_domain::{
    Command, CommandId, Intent, Metadata, Refusal, UserId, erasure, points_account, recharge_order,
    reconciliation::{exception, run},
    tip, video_job, withdrawal,
    withdrawal::allowance,
    work,
};
use skyriff_edge::{Caller, Json, Kind, Problem, RequestContext, Right, Role, problem::IDEMPOTENT_REPLAYED};
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use crate::{Commands, Failure, Fingerprint, Receipt, Submission};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On every accepted command: where it landed, for `Skyriff-At-Least` of the next read.
pub(super) const POSITION: HeaderName = HeaderName::from_static("skyriff-position");
/// How far ahead of our clock a business time may be, in seconds.
const CLOCK_SKEW_MAX_S: i64 = 300;
/// Nothing happened before.
const EARLIEST: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// Who sends a command, under which key, in which request.
pub(super) struct Sender {
    caller: Caller,
    key: String,
    context: RequestContext,
}

impl<S: Send + Sync> FromRequestParts<S> for Sender {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let context = RequestContext::from_request_parts(parts, state).await?;
        let key = parts.headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
        if !is_key(key) {
            return Err(Problem::new(&Kind::KEY_MISSING));
        }
        Ok(Self { key: key.to_owned(), caller, context })
    }
}

/// Who sends a command that asks for a state and not for a change, so that it may be sent again without a key: then it
/// is a new command each time, which records nothing when all is as asked already.
pub(super) struct SenderOfState(pub(super) Sender);

impl<S: Send + Sync> FromRequestParts<S> for SenderOfState {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if parts.headers.contains_key(IDEMPOTENCY_KEY) {
            return Sender::from_request_parts(parts, state).await.map(Self);
        }
        let caller = Caller::from_request_parts(parts, state).await?;
        let context = RequestContext::from_request_parts(parts, state).await?;
        Ok(Self(Sender { caller, key: Uuid::new_v4().to_string(), context }))
    }
}

impl Sender {
    pub(super) const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The id that the command will have, whatever it is.
    pub(super) fn command_id(&self) -> CommandId {
        CommandId::derive(&self.caller.actor(), &self.key)
    }

    /// The user that a command is for: the caller itself unless another is named, if it has the right to.
    pub(super) fn acts_for(&self, right: Right, named: Option<UserId>) -> Result<UserId, Problem> {
        let itself = UserId(self.caller.id);
        let user = named.unwrap_or(itself);
        self.caller.may(right, user)?;
        if named.is_none() && self.caller.role != Role::User {
            let detail = "user says for whom; only the token of a user says so by itself";
            return Err(Problem::new(&Kind::MALFORMED).detail(detail));
        }
        Ok(user)
    }

    /// Hand the command in, if the caller has the right to, and answer what came of it.
    pub(super) async fn submit(
        self,
        commands: &Commands,
        right: Right,
        user: UserId,
        said_at: Option<DateTime<Utc>>,
        intent: Intent,
    ) -> Result<Accepted, Problem> {
        self.execute(commands, Asked { right, user, said_at, intent }).await.map(Accepted)
    }

    /// The same, for an answer of another form.
    pub(super) async fn execute(self, commands: &Commands, asked: Asked) -> Result<Receipt, Problem> {
        let Self { caller, key, context } = self;
        let submission = submission(&caller, &context, &key, asked)?;
        commands.execute(submission).await.map_err(problem)
    }
}

/// What is asked for, and the right that it takes.
pub(super) struct Asked {
    pub(super) right: Right,
    pub(super) user: UserId,
    /// When the client says that it happened.
    pub(super) said_at: Option<DateTime<Utc>>,
    pub(super) intent: Intent,
}

/// Whether a text can be an idempotency key: 1 to 255 printable ASCII characters.
pub(super) fn is_key(key: &str) -> bool {
    (1..=255).contains(&key.len()) && key.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// The command as it is handed in, if the caller has the right to.
pub(super) fn submission(
    caller: &Caller,
    context: &RequestContext,
    key: &str,
    asked: Asked,
) -> Result<Submission, Problem> {
    let Asked { right, user, said_at, intent } = asked;
    caller.may(right, user)?;
    let now = Utc::now();
    let at = match said_at {
        None => now,
        Some(at) => {
            caller.may(Right::Backdate, user)?;
            if (at - now).num_seconds() > CLOCK_SKEW_MAX_S || at < EARLIEST {
                let detail = "occurred_at is after 1970 and not in the future";
                return Err(Problem::new(&Kind::OUT_OF_RANGE).detail(detail));
            }
            at
        }
    };
    let actor = caller.actor();
    let id = CommandId::derive(&actor, key);
    let fingerprint = Fingerprint::of(user, said_at, &intent).map_err(|error| Problem::fault(&error))?;
    // The database keeps microseconds; what is decided on must be what is stored.
    let command = Command { user, at: at.trunc_subsecs(6), intent };
    let RequestContext { request_id, traceparent, address } = context.clone();
    let metadata = Metadata { command_id: id, actor, request_id, causation: None, traceparent, address };
    Ok(Submission { id, fingerprint, command, metadata })
}

/// A JSON body that may also be left out, if none of its members is required.
pub(super) struct OptionalJson<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        // Not by its headers: over HTTP/2 a body needs none that tells of it.
        if request.body().is_end_stream() {
            return Ok(Self(T::default()));
        }
        let Json(body): Json<Box<RawValue>> = Json::from_request(request, state).await?;
        // To serde a list is an object whose members are in order, and an empty one an object without any.
        if !body.get().starts_with('{') {
            return Err(Problem::new(&Kind::MALFORMED).detail("the body is a JSON object, if there is one"));
        }
        let body = serde_json::from_str(body.get());
        body.map(Self).map_err(|error| Problem::new(&Kind::MALFORMED).detail(error.to_string()))
    }
}

/// The body of a command that has nothing to say but, at most, when it happened.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OnlyWhen {
    /// When it happened; now, unless a service says otherwise.
    #[serde(default)]
    pub(super) occurred_at: Option<DateTime<Utc>>,
}

/// An accepted command.
pub(super) struct Accepted(Receipt);

impl Accepted {
    /// The answer also says where what was made can be read.
    pub(super) fn located(self, location: &str) -> Located {
        Located(self, HeaderValue::try_from(location).ok())
    }
}

/// An accepted command that made something, and where that is.
pub(super) struct Located(Accepted, Option<HeaderValue>);

impl IntoResponse for Located {
    fn into_response(self) -> Response {
        let Self(accepted, location) = self;
        let mut response = accepted.into_response();
        if let Some(location) = location
            && response.status().is_success()
        {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// What came of an accepted command.
#[derive(Serialize, ToSchema)]
#[schema(as = Accepted)]
pub(super) struct AcceptedBody<'a> {
    /// Where it landed, `shard:position`; send it as `Skyriff-At-Least` to read your own write.
    #[schema(example = "3:1042")]
    position: String,
    /// Whether an earlier request with the same key did it.
    replayed: bool,
    /// The recorded events, oldest first; none when all was as asked already.
    #[schema(inline)]
    recorded: Vec<RecordedBody<'a>>,
}

/// A recorded event.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordedEvent)]
struct RecordedBody<'a> {
    #[schema(example = "3:1042")]
    position: String,
    #[schema(example = "points_account")]
    aggregate_type: &'a str,
    aggregate_id: String,
    /// Which of the aggregate's events, from 1.
    sequence: i64,
    /// As stored: one member, named after the type of the event.
    #[schema(value_type = Object, example = json!({"checked_in": {"day": "2026-01-31", "days_in_a_row": 1, "points": 10, "expires_at": "2027-02-01T00:00:00Z"}}))]
    event: &'a RawValue,
    occurred_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
}

impl<'a> AcceptedBody<'a> {
    pub(super) fn of(receipt: &'a Receipt) -> Result<Self, serde_json::Error> {
        let recorded = receipt.recorded.iter().map(|event| {
            Ok(RecordedBody {
                position: event.position.to_string(),
                aggregate_type: event.stream.aggregate_type(),
                aggregate_id: event.stream.aggregate_id(),
                sequence: event.sequence,
                event: serde_json::from_str(&event.payload)?,
                occurred_at: event.occurred_at,
                recorded_at: event.recorded_at,
            })
        });
        let recorded = recorded.collect::<Result<_, serde_json::Error>>()?;
        Ok(Self { position: receipt.position.to_string(), replayed: receipt.replayed, recorded })
    }

    /// 201 when something was recorded.
    pub(super) fn status(&self) -> StatusCode {
        if self.recorded.is_empty() { StatusCode::OK } else { StatusCode::CREATED }
    }
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let Self(receipt) = self;
        match AcceptedBody::of(&receipt) {
            Ok(body) => accepted(&receipt, body.status(), &body),
            Err(error) => Problem::fault(&error).into_response(),
        }
    }
}

/// The answer to an accepted command, with what every one of them says in its headers.
pub(super) fn accepted(receipt: &Receipt, status: StatusCode, body: &impl Serialize) -> Response {
    let mut response = (status, axum::Json(body)).into_response();
    if let Ok(header) = HeaderValue::try_from(receipt.position.to_string()) {
        response.headers_mut().insert(POSITION, header);
    }
    if receipt.replayed {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// What every command may answer, for the API's description.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never made")]
pub(super) enum CommandResponses {
    /// Recorded, durably. Also the answer to a repeated request, then with `Idempotent-Replayed: true`.
    #[response(status = 201, headers(("Skyriff-Position" = String, description = "where it landed"),
                                     ("Idempotent-Replayed" = bool, description = "true on a replay")))]
    Recorded(#[to_schema] AcceptedBody<'static>),
    /// Accepted, and all was as asked already: nothing recorded.
    #[response(status = 200, headers(("Skyriff-Position" = String, description = "the head of the shard")))]
    Nothing(#[to_schema] AcceptedBody<'static>),
    /// Malformed, or without an Idempotency-Key.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// No valid token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// Not the caller's to do.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// Refused by a rule; nothing was recorded.
    #[response(status = 409, content_type = "application/problem+json")]
    Refused(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// The body is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// The body is not JSON.
    #[response(status = 415, content_type = "application/problem+json")]
    NotJson(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// A value is out of range, or the key was used for another command.
    #[response(status = 422, content_type = "application/problem+json")]
    OutOfRange(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// Something is broken on our side.
    #[response(status = 500, content_type = "application/problem+json")]
    Fault(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// Not now: send it again with the same key, after `Retry-After` seconds.
    #[response(status = 503, content_type = "application/problem+json", headers(("Retry-After" = u32)))]
    Unavailable(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
    /// The request took too long; send it again with the same key.
    #[response(status = 504, content_type = "application/problem+json")]
    Timeout(#[to_schema] skyriff_edge::problem::ProblemBody<'static>),
}

pub(super) fn problem(failure: Failure) -> Problem {
    match failure {
        Failure::Refused(refusal) => of_refusal(&refusal),
        Failure::RefusedBefore(refusal) => of_refusal(&refusal).replayed(),
        Failure::RefusedTogether => Problem::new(&Kind::REFUSED_TOGETHER),
        Failure::KeyReused => Problem::new(&Kind::KEY_REUSED),
        Failure::Overloaded => Problem::new(&Kind::OVERLOADED).retry_after_s(1),
        Failure::Conflict => Problem::new(&Kind::CONFLICT).retry_after_s(1),
        Failure::Unavailable => Problem::new(&Kind::UNAVAILABLE).retry_after_s(2),
        Failure::OutcomeUnknown => Problem::new(&Kind::OUTCOME_UNKNOWN).retry_after_s(2),
        // Logged where it happened.
        Failure::Fault(_) => Problem::new(&Kind::FAULT),
    }
}

/// Every refusal by name: a new one has to say here how it is answered.
fn of_refusal(refusal: &Refusal) -> Problem {
    let kind = match refusal {
        Refusal::Points(refusal) => of_account(refusal),
        Refusal::RechargeOrder(recharge_order::Refusal::OrderMismatch) => &Kind::ORDER_MISMATCH,
        Refusal::Tip(refusal) => match refusal {
            tip::Refusal::ToOneself | tip::Refusal::AmountOutOfRange { .. } => &Kind::OUT_OF_RANGE,
            tip::Refusal::InsufficientPoints { .. } => &Kind::INSUFFICIENT_POINTS,
            // A tip's id is made of its key, which is remembered in the tip for ever.
            tip::Refusal::Mismatch => &Kind::KEY_REUSED,
            tip::Refusal::Declined { .. } | tip::Refusal::NotOffered | tip::Refusal::Ended => &Kind::REFUSED,
        },
        Refusal::TipReceipt(tip::receipt::Refusal::Mismatch) => &Kind::REFUSED,
        Refusal::Withdrawal(refusal) => match refusal {
            withdrawal::Refusal::AmountOutOfRange { .. } | withdrawal::Refusal::WorthNothing { .. } => {
                &Kind::OUT_OF_RANGE
            }
            withdrawal::Refusal::OwnRequest | withdrawal::Refusal::SameReviewer => &Kind::FOUR_EYES,
            withdrawal::Refusal::NotRequested => &Kind::NOT_FOUND,
            withdrawal::Refusal::NotNow { .. } | withdrawal::Refusal::OtherProvider { .. } => &Kind::WITHDRAWAL_STATUS,
            withdrawal::Refusal::Mismatch => &Kind::KEY_REUSED,
        },
        Refusal::WithdrawalAllowance(refusal) => match refusal {
            allowance::Refusal::OneIsOpen(_) => &Kind::WITHDRAWAL_OPEN,
            allowance::Refusal::DailyLimit { .. } | allowance::Refusal::MonthlyLimit { .. } => &Kind::WITHDRAWAL_LIMIT,
            allowance::Refusal::NotOpen(_) => &Kind::REFUSED,
        },
        Refusal::VideoJob(refusal) => match refusal {
            video_job::Refusal::SecondsOutOfRange { .. }
            | video_job::Refusal::NotSold
            | video_job::Refusal::NothingMade
            | video_job::Refusal::TimeOutOfRange => &Kind::OUT_OF_RANGE,
            video_job::Refusal::NotSubmitted => &Kind::NOT_FOUND,
            video_job::Refusal::StaleAttempt { .. } => &Kind::STALE_ATTEMPT,
            video_job::Refusal::Mismatch | video_job::Refusal::NotNow { .. } => &Kind::REFUSED,
        },
        Refusal::VideoSlots(video_job::slots::Refusal::TooManyInFlight { .. }) => &Kind::TOO_MANY_IN_FLIGHT,
        Refusal::Work(refusal) => match refusal {
            work::Refusal::NotPublished => &Kind::NOT_FOUND,
            work::Refusal::Mismatch | work::Refusal::NothingMade => &Kind::REFUSED,
        },
        Refusal::Erasure(refusal) => match refusal {
            erasure::Refusal::WithdrawalOpen(_) => &Kind::WITHDRAWAL_OPEN,
            erasure::Refusal::JobsInFlight { .. } => &Kind::JOBS_IN_FLIGHT,
            erasure::Refusal::Erased => &Kind::ERASED,
        },
        Refusal::Reconciliation(refusal) => match refusal {
            run::Refusal::NotStarted => &Kind::NOT_FOUND,
            run::Refusal::Mismatch => &Kind::REFUSED,
        },
        Refusal::ReconciliationException(refusal) => match refusal {
            exception::Refusal::NotFound => &Kind::NOT_FOUND,
            exception::Refusal::NotOpen { .. } => &Kind::REFUSED,
            exception::Refusal::OwnException => &Kind::FOUR_EYES,
        },
    };
    Problem::new(kind).detail(refusal.to_string())
}

fn of_account(refusal: &points_account::Refusal) -> &'static Kind {
    use points_account::Refusal as R;
    match refusal {
        R::AlreadyCheckedIn { .. } => &Kind::ALREADY_CHECKED_IN,
        R::InsufficientPoints { .. } => &Kind::INSUFFICIENT_POINTS,
        R::AmountOutOfRange { .. } | R::HoldLifetimeOutOfRange { .. } | R::EarnedAsPaid | R::TimeOutOfRange => {
            &Kind::OUT_OF_RANGE
        }
        R::CheckInBeforeLast { .. }
        | R::AccountFull
        | R::HoldExists(_)
        | R::HoldNotFound(_)
        | R::HoldTooSmall { .. }
        | R::TooManyHolds { .. }
        | R::SpendExists(_)
        | R::SpendNotFound(_)
        | R::SpendTooSmall { .. } => &Kind::REFUSED,
    }
}
