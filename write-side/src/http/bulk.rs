//! Many commands in one request: up to a thousand in a JSON body, or any number as NDJSON, line by line in and out.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    extract::{DefaultBodyLimit, FromRequest, Request, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use skyriff_domain::{
    Bucket, CommandId, HoldId, Intent, Label, Note, OrderId, Points, SpendId, UserId, WorkId, like,
    points_account::{Action, Direction},
};
use skyriff_edge::{Caller, Json, Kind, Problem, RequestContext, Right, problem::ProblemBody};
use skyriff_vault::{Purpose, Vault};
use tokio::time::timeout;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    likes,
    sealing::{Sealing, sealed_for_the_books},
    submit::{AcceptedBody, Asked, is_key, problem, submission},
    tips::{self, Offer, Offered, TipAccepted, for_sender},
};
use crate::{Commands, Failure, Receipt, Submission, commands::NotTogether};

/// Commands in one JSON body, and lines of NDJSON that are under way at once.
const COMMANDS_MAX: usize = 1_000;
/// The longest JSON body, in bytes.
const BODY_BYTES_MAX: usize = 2 * 1_024 * 1_024;
/// The longest line of NDJSON, in bytes.
const LINE_BYTES_MAX: usize = 16 * 1_024;
/// How long the next piece of NDJSON may take to arrive.
const LINE_WAIT_MAX: Duration = Duration::from_secs(60);
const NDJSON: &str = "application/x-ndjson";

pub(super) fn routes() -> OpenApiRouter<Sealing> {
    OpenApiRouter::new().routes(routes!(bulk)).layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// Many commands.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Bulk {
    /// All or nothing; the commands must then be of users of one shard, which those of one user always are.
    #[serde(default)]
    atomic: bool,
    #[schema(min_items = 1, max_items = 1_000, value_type = Vec<BulkCommand>)]
    commands: Vec<Box<RawValue>>,
}

/// One of many commands. Members that are not known are refused, as in the bodies of single commands.
#[derive(Deserialize, ToSchema)]
struct BulkCommand {
    /// As the header Idempotency-Key of a single command, and the same as there.
    // Without one it is as with an empty one: the problem is the one that a single command has.
    #[serde(default)]
    #[schema(required, min_length = 1, max_length = 255)]
    idempotency_key: String,
    user: UserId,
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
    // All the other members: what does not belong to this command is refused there.
    #[serde(flatten)]
    what: What,
}

/// Looked at first, since serde would also take a number for the name of a variant.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(rename = "do", borrow)]
    _what: Cow<'a, str>,
}

/// What is asked, with the members of the body of the single command.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum What {
    CheckIn {},
    Earn {
        bucket: Bucket,
        points: Points,
        reason: Label,
    },
    Recharge {
        order: OrderId,
        points: Points,
    },
    Spend {
        spend: SpendId,
        points: Points,
        product: Label,
    },
    Refund {
        spend: SpendId,
        points: Option<Points>,
    },
    Hold {
        hold: HoldId,
        points: Points,
        reason: Label,
        lifetime_s: Option<u32>,
    },
    Capture {
        hold: HoldId,
        points: Option<Points>,
    },
    Release {
        hold: HoldId,
    },
    Expire {},
    Adjust {
        bucket: Bucket,
        direction: Direction,
        points: Points,
        reason: Note,
    },
    Like {
        work: WorkId,
    },
    Unlike {
        work: WorkId,
    },
    /// From the command's user.
    Tip {
        to: UserId,
        points: Points,
        work: Option<WorkId>,
    },
}

impl What {
    async fn asked(self, by: &BulkSender, user: UserId, key: &str) -> Result<(Right, Intent), Problem> {
        let (right, action) = match self {
            Self::Tip { to, points, work } => {
                let command = CommandId::derive(&by.caller.actor(), key);
                return Ok((Right::Tip, tips::offer(&by.commands, user, command, Offer { to, points, work })?));
            }
            Self::Recharge { order, points } => return Ok((Right::Credit, Intent::Recharge { order, points })),
            Self::Like { work } => return Ok((Right::Like, likes::intent(work, like::Command::Like)?)),
            Self::Unlike { work } => return Ok((Right::Like, likes::intent(work, like::Command::Unlike)?)),
            Self::CheckIn {} => (Right::CheckIn, Action::CheckIn),
            Self::Earn { bucket, points, reason } => (Right::Credit, Action::Earn { bucket, points, reason }),
            Self::Spend { spend, points, product } => (Right::Spend, Action::Spend { spend, points, product }),
            Self::Refund { spend, points } => (Right::Settle, Action::Refund { spend, points }),
            Self::Hold { hold, points, reason, lifetime_s } => {
                (Right::Settle, Action::Hold { hold, points, lifetime_s, reason })
            }
            Self::Capture { hold, points } => (Right::Settle, Action::Capture { hold, points }),
            Self::Release { hold } => (Right::Settle, Action::Release { hold }),
            Self::Expire {} => (Right::Expire, Action::Expire),
            Self::Adjust { bucket, direction, points, reason } => {
                by.caller.may(Right::Adjust, user)?;
                let reason = sealed_for_the_books(&by.vault, user, Purpose::AdjustmentReason, user.0, &reason).await?;
                (Right::Adjust, Action::Adjust { bucket, direction, points, reason })
            }
        };
        Ok((right, Intent::Points(action)))
    }
}

/// What came of many commands.
#[derive(Serialize, ToSchema)]
struct BulkAccepted<'a> {
    /// In the order of the commands.
    results: Vec<BulkResult<'a>>,
}

/// What came of one of many commands: what the single command would have answered.
#[derive(Serialize, ToSchema)]
struct BulkResult<'a> {
    /// The status that the single command would have had.
    status: u16,
    #[serde(flatten)]
    answer: Answer<'a>,
}

/// The single command's answer.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Answer<'a> {
    Accepted(AcceptedBody<'a>),
    Tip(TipAccepted<'a>),
    Refused { problem: ProblemBody<'a> },
}

type Outcome = Result<Done, Problem>;

/// A command that was accepted.
struct Done {
    receipt: Receipt,
    tip: Option<Offered>,
}

impl Done {
    fn of(receipt: Receipt, tip: Option<Offered>) -> Self {
        let receipt = match tip {
            None => receipt,
            Some(Offered { from, .. }) => for_sender(receipt, from),
        };
        Self { receipt, tip }
    }
}

/// The tip that a submission offers, if it does.
const fn tip_of(submission: &Submission) -> Option<Offered> {
    Offered::of(submission.command.user, &submission.command.intent)
}

/// Many commands in one request, each with its own idempotency key and its own result, in order.
///
/// With `Content-Type: application/x-ndjson` the body is one command a line, of any number, and the answer one result a
/// line, as they are recorded. Commands of one user are decided in the order in which they stand.
#[utoipa::path(post, path = "/v1/commands:batch", tag = "bulk", request_body = Bulk,
    responses((status = 200, description = "Each command's own result, in order", body = BulkAccepted),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 413, body = ProblemBody, content_type = "application/problem+json"),
              (status = 415, body = ProblemBody, content_type = "application/problem+json"),
              (status = 422, description = "An atomic batch of several shards", body = ProblemBody, content_type = "application/problem+json"),
              (status = 504, body = ProblemBody, content_type = "application/problem+json")))]
async fn bulk(
    State(Sealing { commands, vault }): State<Sealing>,
    caller: Caller,
    context: RequestContext,
    request: Request,
) -> Result<Response, Problem> {
    let from = BulkSender { commands, vault, caller, context };
    if is_ndjson(request.headers()) {
        return Ok(from.stream(request.into_body().into_data_stream()));
    }
    let Json(Bulk { atomic, commands }) = Json::from_request(request, &()).await?;
    if !(1..=COMMANDS_MAX).contains(&commands.len()) {
        let detail = format!("commands are 1 to {COMMANDS_MAX}; more go as {NDJSON}");
        return Err(Problem::new(&Kind::MALFORMED).detail(detail));
    }
    let mut parsed = Vec::with_capacity(commands.len());
    for command in &commands {
        parsed.push(from.submission(command.get()).await);
    }
    let outcomes = if atomic { from.together(parsed).await? } else { from.each(parsed).await };
    let results = outcomes.iter().map(result).collect::<Result<_, _>>().map_err(|error| Problem::fault(&error))?;
    Ok(axum::Json(BulkAccepted { results }).into_response())
}

/// Whatever follows the type, such as a charset, does not matter.
fn is_ndjson(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.and_then(|kind| kind.split(';').next()).is_some_and(|kind| kind.trim().eq_ignore_ascii_case(NDJSON))
}

/// Whose commands they are, and where they go.
struct BulkSender {
    commands: Commands,
    vault: Vault,
    caller: Caller,
    context: RequestContext,
}

impl BulkSender {
    async fn submission(&self, text: &str) -> Result<Submission, Problem> {
        let malformed = |error: serde_json::Error| Problem::new(&Kind::MALFORMED).detail(error.to_string());
        serde_json::from_str::<Named<'_>>(text).map_err(malformed)?;
        let BulkCommand { idempotency_key, user, occurred_at, what } = serde_json::from_str(text).map_err(malformed)?;
        if !is_key(&idempotency_key) {
            let detail = "the member idempotency_key is 1 to 255 printable ASCII characters";
            return Err(Problem::new(&Kind::KEY_MISSING).detail(detail));
        }
        let (right, intent) = what.asked(self, user, &idempotency_key).await?;
        submission(&self.caller, &self.context, &idempotency_key, Asked { right, user, said_at: occurred_at, intent })
    }

    /// Each on its own.
    async fn each(&self, parsed: Vec<Result<Submission, Problem>>) -> Vec<Outcome> {
        let mut sent = Vec::with_capacity(parsed.len());
        let mut submissions = Vec::with_capacity(parsed.len());
        for parsed in parsed {
            match parsed {
                Ok(submission) => {
                    sent.push(Ok(tip_of(&submission)));
                    submissions.push(submission);
                }
                Err(problem) => sent.push(Err(problem)),
            }
        }
        let mut results = self.commands.execute_each(submissions).await.into_iter();
        let outcomes = sent.into_iter().map(|sent| {
            let tip = sent?;
            let result = results.next().unwrap_or(Err(Failure::OutcomeUnknown));
            result.map(|receipt| Done::of(receipt, tip)).map_err(problem)
        });
        outcomes.collect()
    }

    /// All or nothing.
    async fn together(&self, parsed: Vec<Result<Submission, Problem>>) -> Result<Vec<Outcome>, Problem> {
        if parsed.iter().any(Result::is_err) {
            let others = || Problem::new(&Kind::REFUSED_TOGETHER);
            return Ok(parsed.into_iter().map(|parsed| Err(parsed.err().unwrap_or_else(others))).collect());
        }
        let submissions: Vec<_> = parsed.into_iter().flatten().collect();
        let tips: Vec<_> = submissions.iter().map(tip_of).collect();
        let results = self.commands.execute_together(submissions).await.map_err(|error| match error {
            NotTogether::SeveralShards => Problem::new(&Kind::SHARDS_MIXED),
            NotTogether::Repeated(_) => {
                Problem::new(&Kind::MALFORMED).detail("an idempotency key stands twice in an atomic batch")
            }
            NotTogether::TooMany { .. } => Problem::new(&Kind::MALFORMED).detail(error.to_string()),
        })?;
        let done = |(result, tip): (Result<Receipt, Failure>, _)| {
            result.map(|receipt| Done::of(receipt, tip)).map_err(problem)
        };
        Ok(results.into_iter().zip(tips).map(done).collect())
    }

    /// As many lines as have arrived, then their results, then the next: memory is bounded on both sides, and whoever
    /// sends faster than it is recorded waits.
    fn stream(self, body: BodyDataStream) -> Response {
        let lines = Lines { body, rest: Vec::new(), ended: false };
        let results = futures::stream::unfold((self, lines), |(from, mut lines)| async {
            let chunk = lines.next_chunk().await?;
            let mut parsed = Vec::with_capacity(chunk.len());
            for line in chunk {
                parsed.push(match line {
                    Ok(line) => from.submission(&line).await,
                    Err(problem) => Err(problem),
                });
            }
            let mut text = Vec::new();
            for outcome in from.each(parsed).await {
                if let Err(error) = result(&outcome).and_then(|result| serde_json::to_writer(&mut text, &result)) {
                    return Some((Err(error), (from, lines)));
                }
                text.push(b'\n');
            }
            Some((Ok(Bytes::from(text)), (from, lines)))
        });
        ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(results)).into_response()
    }
}

fn result(outcome: &Outcome) -> Result<BulkResult<'_>, serde_json::Error> {
    Ok(match outcome {
        Ok(Done { receipt, tip: None }) => {
            let accepted = AcceptedBody::of(receipt)?;
            BulkResult { status: accepted.status().as_u16(), answer: Answer::Accepted(accepted) }
        }
        Ok(Done { receipt, tip: Some(tip) }) => {
            let accepted = AcceptedBody::of(receipt)?;
            BulkResult { status: tip.status(&accepted).as_u16(), answer: Answer::Tip(tip.accepted(accepted)) }
        }
        Err(problem) => {
            BulkResult { status: problem.kind.status.as_u16(), answer: Answer::Refused { problem: problem.body(None) } }
        }
    })
}

fn line_too_long() -> Problem {
    Problem::new(&Kind::BODY_TOO_LARGE).detail(format!("a line has at most {LINE_BYTES_MAX} bytes"))
}

/// A body, line by line.
struct Lines {
    body: BodyDataStream,
    rest: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// The lines that are there, at least one and at most [`COMMANDS_MAX`]; `None` at the end. A line that is too long
    /// or cut off is a problem, and the last.
    async fn next_chunk(&mut self) -> Option<Vec<Result<String, Problem>>> {
        loop {
            let lines = self.whole_lines();
            if !lines.is_empty() {
                return Some(lines);
            }
            if self.ended {
                return None;
            }
            let problem = if self.rest.len() > LINE_BYTES_MAX {
                line_too_long()
            } else {
                match timeout(LINE_WAIT_MAX, self.body.next()).await {
                    Err(_) => Problem::new(&Kind::TIMEOUT).detail("no line came for too long"),
                    Ok(Some(Ok(bytes))) => {
                        self.rest.extend_from_slice(&bytes);
                        continue;
                    }
                    Ok(Some(Err(error))) => Problem::new(&Kind::MALFORMED).detail(error.to_string()),
                    Ok(None) => {
                        self.ended = true;
                        // The last line need not end with a line feed.
                        self.rest.push(b'\n');
                        continue;
                    }
                }
            };
            self.ended = true;
            self.rest.clear();
            return Some(vec![Err(problem)]);
        }
    }

    fn whole_lines(&mut self) -> Vec<Result<String, Problem>> {
        let mut lines = Vec::new();
        let mut from = 0;
        while lines.len() < COMMANDS_MAX
            && let Some(length) = self.rest.get(from..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
        {
            let line = self.rest.get(from..from + length).unwrap_or_default();
            if !line.trim_ascii().is_empty() {
                lines.push(match String::from_utf8(line.to_vec()) {
                    _ if line.len() > LINE_BYTES_MAX => Err(line_too_long()),
                    Ok(text) => Ok(text),
                    Err(error) => Err(Problem::new(&Kind::MALFORMED).detail(error.to_string())),
                });
            }
            from += length + 1;
        }
        self.rest.drain(..from);
        lines
    }
}
