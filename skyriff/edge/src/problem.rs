//! Everything that goes wrong leaves as `application/problem+json` (RFC 9457), with a `type` that never changes, what
//! was wrong, and what to do about it.

use std::{borrow::Cow, fmt};

use axum::{
    extract::Path,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// On an answer that is the one to an earlier attempt with the same key.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A kind of problem: its name is part of the API and is never given to another meaning.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The end of the `type`, `/problems/{slug}`.
    pub slug: &'static str,
    /// The status it is answered with.
    pub status: StatusCode,
    /// What it is called.
    pub title: &'static str,
    /// What the client can do.
    pub remedy: &'static str,
}

macro_rules! kinds {
    ($($name:ident = $status:ident $slug:literal, $title:literal, $remedy:literal;)*) => {
        impl Kind {
            $(
                #[doc = $title]
                pub const $name: Self =
                    Self { slug: $slug, status: StatusCode::$status, title: $title, remedy: $remedy };
            )*

            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

kinds! {
    MALFORMED = BAD_REQUEST "malformed-request", "The request does not have the form that is asked for",
        "Compare it with the API's description at /v1/docs.";
    KEY_MISSING = BAD_REQUEST "idempotency-key-missing", "A command needs an Idempotency-Key",
        "Send the header Idempotency-Key with 1 to 255 printable ASCII characters, new for each command and the same for each retry of it.";
    UNAUTHENTICATED = UNAUTHORIZED "unauthenticated", "Who is asking is not known",
        "Send Authorization: Bearer with a token that is signed by this server and has not expired.";
    FORBIDDEN = FORBIDDEN "forbidden", "The caller may not do this",
        "Act for yourself, or ask for a token with the role that may.";
    NOT_FOUND = NOT_FOUND "not-found", "There is nothing here",
        "Check the address; the API's description is at /v1/docs.";
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED "method-not-allowed", "This address does not answer this method",
        "The header Allow says which it answers.";
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE "body-too-large", "The body is larger than the limit",
        "Send less at once.";
    UNSUPPORTED_MEDIA_TYPE = UNSUPPORTED_MEDIA_TYPE "unsupported-media-type", "The body is not JSON",
        "Send Content-Type: application/json.";
    LINK_INVALID = FORBIDDEN "link-invalid", "The link is not one of ours",
        "Take the link as it was given, or ask for a new one where this one came from.";
    LINK_EXPIRED = FORBIDDEN "link-expired", "The link is no longer good",
        "Ask for a new one where this one came from.";
    RANGE_NOT_SATISFIABLE = RANGE_NOT_SATISFIABLE "range-not-satisfiable", "There are no such bytes",
        "Content-Range says how many there are.";
    KEY_REUSED = UNPROCESSABLE_ENTITY "idempotency-key-reused", "This key was used for another command",
        "Use a new key for a new command.";
    REFUSED = CONFLICT "refused", "The rules do not allow this now",
        "See detail for the rule; to ask again later, take a new Idempotency-Key.";
    REFUSED_TOGETHER = CONFLICT "refused-together", "Another command of the same atomic batch was refused",
        "Look for the one that was refused by itself; no event of the batch was recorded. To ask again, take new keys.";
    SHARDS_MIXED = UNPROCESSABLE_ENTITY "shards-mixed", "An atomic batch is of users of several shards",
        "Send the commands of each user in a batch of their own.";
    OUT_OF_RANGE = UNPROCESSABLE_ENTITY "out-of-range", "A value is outside its limits",
        "See detail for the limits.";
    INSUFFICIENT_POINTS = CONFLICT "insufficient-points", "There are not enough points",
        "Read the balance; points past their expiry or held ones cannot be spent, and only income can be withdrawn. To ask again, take a new Idempotency-Key.";
    ALREADY_CHECKED_IN = CONFLICT "already-checked-in", "The day was checked in already",
        "Check in again on the next UTC day.";
    FOUR_EYES = FORBIDDEN "four-eyes", "Somebody else has to decide this",
        "Leave it to somebody else: nobody decides their own withdrawal, and a second approval comes from a second person.";
    WITHDRAWAL_STATUS = CONFLICT "withdrawal-status", "The withdrawal is not where this can be done",
        "Read the withdrawal: it is cancelled, approved or rejected while it is under review, and resolved while it needs attention.";
    WITHDRAWAL_OPEN = CONFLICT "withdrawal-open", "Another withdrawal is still open",
        "Wait until it is over, or cancel it while it is under review. What needs attention is resolved by an operator.";
    TOO_MANY_IN_FLIGHT = CONFLICT "too-many-in-flight", "Too many jobs are in flight",
        "Wait until one of them is over, or cancel one.";
    JOBS_IN_FLIGHT = CONFLICT "jobs-in-flight", "Video jobs of this person are in flight",
        "Cancel them, or wait until they are over; then ask again with a new Idempotency-Key.";
    STALE_ATTEMPT = CONFLICT "stale-attempt", "The attempt is over",
        "Stop working on it: the job was given to another worker, or has ended.";
    WITHDRAWAL_LIMIT = CONFLICT "withdrawal-limit", "The limit for a day or a month is reached",
        "Ask for less, or wait until the next UTC day or month.";
    ERASED = GONE "erased", "What belonged to this person was erased at their request",
        "Nothing can be kept or shown for this person any more; an account of theirs that is used again needs a new user id.";
    ORDER_MISMATCH = CONFLICT "order-mismatch", "The order was credited before, with other contents",
        "Look the order up at the payment provider; nothing was credited now.";
    CONFLICT = SERVICE_UNAVAILABLE "conflict", "The command kept losing a race",
        "Send it again with the same Idempotency-Key.";
    OVERLOADED = SERVICE_UNAVAILABLE "overloaded", "More is asked than can be done now",
        "Wait as Retry-After says, and send it again with the same Idempotency-Key.";
    UNAVAILABLE = SERVICE_UNAVAILABLE "unavailable", "The database cannot be reached, and nothing was recorded",
        "Wait as Retry-After says, and send it again with the same Idempotency-Key.";
    OUTCOME_UNKNOWN = SERVICE_UNAVAILABLE "outcome-unknown", "The command may or may not have been recorded",
        "Send it again with the same Idempotency-Key: it is never applied twice, and the answer says what came of it.";
    READS_UNAVAILABLE = SERVICE_UNAVAILABLE "reads-unavailable", "No database that could answer can be reached",
        "Wait as Retry-After says, and ask again.";
    TOO_SLOW = SERVICE_UNAVAILABLE "takes-too-long", "The answer takes longer than is waited for",
        "Ask for less: a shorter time, one user, one account, or one shard.";
    TOO_MANY_STREAMS = SERVICE_UNAVAILABLE "too-many-streams", "As many streams are open as this server allows",
        "Wait as Retry-After says, and ask again, or ask another server.";
    NOT_YET = SERVICE_UNAVAILABLE "not-that-fresh-yet", "No database is as fresh as asked for",
        "Wait as Retry-After says, or ask without Skyriff-At-Least.";
    NOT_SEALED = SERVICE_UNAVAILABLE "not-sealed-yet", "It is recorded, and not sealed yet",
        "Wait as Retry-After says, and ask again: what is recorded is sealed about a second later.";
    TIMEOUT = GATEWAY_TIMEOUT "timeout", "The request took too long",
        "Send it again; a command with the same Idempotency-Key is never applied twice.";
    FAULT = INTERNAL_SERVER_ERROR "fault", "Something is broken on our side",
        "Report the request id; it names the lines in the log that say what happened.";
}

/// One thing that went wrong, ready to be answered.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Which kind.
    pub kind: &'static Kind,
    detail: Option<Cow<'static, str>>,
    members: Map<String, Value>,
    retry_after_s: Option<u32>,
}

/// As it is answered.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Stable; the page at this address explains it.
    #[schema(example = "/problems/insufficient-points")]
    r#type: String,
    /// What the kind is called.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// What was wrong this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    /// What to do.
    remedy: &'a str,
    /// Names the request in logs; also in the header X-Request-Id.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// More about this time, by kind.
    #[serde(flatten)]
    #[schema(value_type = std::collections::HashMap<String, Value>)]
    members: &'a Map<String, Value>,
}

impl Problem {
    /// A problem of this kind, with nothing more to say.
    pub fn new(kind: &'static Kind) -> Self {
        Self { kind, detail: None, members: Map::new(), retry_after_s: None }
    }

    /// What was wrong this time.
    #[must_use]
    pub fn detail(self, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// One more member of the answer.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// An earlier attempt with the same key was answered with it, and it is answered again.
    #[must_use]
    pub fn replayed(self) -> Self {
        self.with("replayed", true)
    }

    /// When to try again, in seconds.
    #[must_use]
    pub fn retry_after_s(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// A fault of ours: logged here, once, with everything that is known; the client learns only the request id.
    pub fn fault(error: &dyn std::error::Error) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        let chain = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        tracing::error!(error = chain, "fault");
        Self::new(&Kind::FAULT)
    }

    /// The body of the answer, which also stands in the results of bulk requests.
    pub fn body<'a>(&'a self, request_id: Option<&'a str>) -> ProblemBody<'a> {
        ProblemBody {
            r#type: format!("/problems/{}", self.kind.slug),
            title: self.kind.title,
            status: self.kind.status.as_u16(),
            detail: self.detail.as_deref(),
            remedy: self.kind.remedy,
            request_id,
            members: &self.members,
        }
    }

    /// The answer, naming the request.
    pub(crate) fn respond(&self, request_id: Option<&str>) -> Response {
        let mut response = (self.kind.status, axum::Json(self.body(request_id))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.members.contains_key("replayed") {
            headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        if self.kind.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.title, self.detail.as_deref().unwrap_or_default())
    }
}

impl IntoResponse for Problem {
    /// The outermost layer writes the body again, with the request's id.
    fn into_response(self) -> Response {
        let mut response = self.respond(None);
        response.extensions_mut().insert(std::sync::Arc::new(self));
        response
    }
}

/// The page behind a problem's `type`.
///
/// # Errors
/// [`Kind::NOT_FOUND`] for names that are none.
pub async fn explain(Path(slug): Path<String>) -> Result<Html<String>, Problem> {
    let kind = Kind::ALL.iter().find(|kind| kind.slug == slug).ok_or(Problem::new(&Kind::NOT_FOUND))?;
    Ok(Html(format!(
        "<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1><p>Status {status}. {remedy}",
        title = kind.title,
        status = kind.status.as_u16(),
        remedy = kind.remedy,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let mut slugs: Vec<_> = Kind::ALL.iter().map(|kind| kind.slug).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), Kind::ALL.len());
    }
}
