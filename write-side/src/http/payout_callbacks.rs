//! What a payout provider says by itself. It has no token: its signature says who it is.

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, Method, StatusCode, Uri},
};
use chrono::{SubsecRound, Utc};
use metrics::counter;
use skyriff_domain::{
    Command, CommandId, Intent, Label, Metadata, Refusal, ShardCount, shard_of,
    withdrawal::{Step, steps::What},
};
use skyriff_edge::{Kind, Path, Problem, RequestContext};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::submit;
use crate::{
    Commands, Failure, Fingerprint, Submission,
    payouts::{
        CALLBACKS, Doubt, Payout, Said, WithdrawalRecords, contradiction,
        http::PayoutBody,
        signature::{NotBelieved, SIGNATURE, Secret, Signed, TIMESTAMP},
    },
};

/// What taking callbacks takes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PayoutCallbacks {
    /// Where commands are handed in.
    pub commands: Commands,
    /// Which shard decides for a user.
    pub shards: ShardCount,
    /// What is recorded of withdrawals.
    pub records: WithdrawalRecords,
    /// Whose callbacks are believed; nobody's without one.
    pub provider: Option<(Label, Secret)>,
}

pub(super) fn routes(callbacks: PayoutCallbacks) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(take)).with_state(callbacks)
}

/// A payout provider says what became of a payout. Signed, as the module `payouts::signature` describes; may be repeated.
#[utoipa::path(post, path = "/v1/payout-callbacks/{provider}", tag = "withdrawals", security(()),
    params(("provider" = Label, Path),
           ("Skyriff-Timestamp" = i64, Header, description = "Unix time in seconds"),
           ("Skyriff-Signature" = String, Header, description = "v1= and the HMAC-SHA256 in hexadecimal")),
    request_body(content = PayoutBody, content_type = "application/json"),
    responses((status = 204, description = "Recorded, now or before; or nothing to record yet."),
              (status = 400, description = "Signed, and not a payout.", content_type = "application/problem+json", body = skyriff_edge::problem::ProblemBody<'static>),
              (status = 401, description = "Not signed by this provider, or not just now.", content_type = "application/problem+json", body = skyriff_edge::problem::ProblemBody<'static>),
              (status = 404, description = "No such payout.", content_type = "application/problem+json", body = skyriff_edge::problem::ProblemBody<'static>),
              (status = 409, description = "Something else is recorded: a person has to find out.", content_type = "application/problem+json", body = skyriff_edge::problem::ProblemBody<'static>),
              (status = 413, description = "The body is too large.", content_type = "application/problem+json", body = skyriff_edge::problem::ProblemBody<'static>),
              (status = 500, description = "Something is broken on our side.", content_type = "application/problem+json", body = skyriff_edge::problem::ProblemBody<'static>),
              (status = 503, description = "Not now: send it again.", content_type = "application/problem+json", headers(("Retry-After" = u32)), body = skyriff_edge::problem::ProblemBody<'static>),
              (status = 504, description = "It took too long; send it again.", content_type = "application/problem+json", body = skyriff_edge::problem::ProblemBody<'static>)))]
async fn take(
    State(callbacks): State<PayoutCallbacks>,
    Path(name): Path<String>,
    context: RequestContext,
    (method, uri, headers): (Method, Uri, HeaderMap),
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let body = body.map_err(|_| Problem::new(&Kind::BODY_TOO_LARGE))?;
    let believed = callbacks.believed(&name, &method, &uri, &headers, &body);
    let (outcome, answer) = match believed {
        Err(NotBelieved::Forged) => {
            ("forged", Err(Problem::new(&Kind::UNAUTHENTICATED).detail("the signature is not valid")))
        }
        Err(NotBelieved::Stale) => (
            "stale",
            Err(Problem::new(&Kind::UNAUTHENTICATED).detail("the timestamp is not within 300 seconds of now")),
        ),
        Ok(provider) => callbacks.take(provider, &context, &body).await,
    };
    counter!(CALLBACKS, "outcome" => outcome).increment(1);
    answer.map(|()| StatusCode::NO_CONTENT)
}

type Taken = (&'static str, Result<(), Problem>);

impl PayoutCallbacks {
    /// Which provider it is from. One of another name is not told apart from a wrong signature.
    fn believed(
        &self,
        name: &str,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<&Label, NotBelieved> {
        let (provider, secret) = self.provider.as_ref().ok_or(NotBelieved::Forged)?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let timestamp = header(TIMESTAMP).parse::<i64>().map_err(|_| NotBelieved::Forged)?;
        // As it is signed: "+1" and "01" would parse too.
        if timestamp.to_string() != header(TIMESTAMP) {
            return Err(NotBelieved::Forged);
        }
        let path = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
        let signed = Signed { timestamp, method: method.as_str(), path, body };
        secret.verify(signed, header(SIGNATURE), Utc::now().timestamp())?;
        if name == provider.as_str() { Ok(provider) } else { Err(NotBelieved::Forged) }
    }

    async fn take(&self, provider: &Label, context: &RequestContext, body: &[u8]) -> Taken {
        let unknown = || ("unknown_payout", Err(Problem::new(&Kind::NOT_FOUND)));
        // What serde says would quote the body, which may name whom it pays.
        let Ok(body) = serde_json::from_slice::<PayoutBody>(body) else {
            return ("malformed", Err(Problem::new(&Kind::MALFORMED).detail("the body is not a payout")));
        };
        let Some((user, withdrawal)) = Payout::parse_merchant_reference(&body.merchant_reference) else {
            return unknown();
        };
        let found = match self.records.find(shard_of(user, self.shards), withdrawal).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "a callback waits for the log");
                return ("failed", Err(Problem::new(&Kind::UNAVAILABLE).retry_after_s(2)));
            }
        };
        // Another provider's payout is none of this one's, whatever it says about it.
        if found.provider() != Some(provider) {
            return unknown();
        }
        let Some(request) = found.request().filter(|request| request.user == user) else { return unknown() };
        let payout = Payout::of(withdrawal, request);
        let (what, says) = match body.of(&payout) {
            Ok(Said::Pending) => return ("nothing_new", Ok(())),
            Ok(Said::Paid { reference }) => {
                let says = format!("the provider has paid it as {}", reference.as_str());
                (What::Settle { reference }, says)
            }
            Ok(Said::Declined { reason }) => (What::Fail { reason }, "the provider has declined it".to_owned()),
            Err(doubt @ Doubt::Mismatch { .. }) => {
                contradiction(provider, &payout, &doubt.to_string());
                return ("mismatch", Err(Problem::new(&Kind::REFUSED).detail("the payout is another one")));
            }
            Err(Doubt::Unknown { .. }) => {
                return ("malformed", Err(Problem::new(&Kind::MALFORMED).detail("a paid payout has a reference")));
            }
        };
        let intent = Intent::Withdrawal(Step { withdrawal, what });
        match self.record(provider, context, &payout, intent).await {
            Ok(true) => ("recorded", Ok(())),
            Ok(false) => ("nothing_new", Ok(())),
            Err(Failure::Refused(refusal @ Refusal::Withdrawal(_))) => {
                contradiction(provider, &payout, &format!("{says}, and {refusal}"));
                ("contradiction", Err(Problem::new(&Kind::REFUSED).detail("something else is recorded")))
            }
            Err(failure) => ("failed", Err(submit::problem(failure))),
        }
    }

    async fn record(
        &self,
        provider: &Label,
        context: &RequestContext,
        payout: &Payout,
        intent: Intent,
    ) -> Result<bool, Failure> {
        // Each callback is a command of its own: the streams know what has been done, and an answer of before, that may
        // have been a refusal, must not stand in for what is so now.
        let id = CommandId(Uuid::now_v7());
        let fingerprint = Fingerprint::of(payout.user, None, &intent);
        let fingerprint = fingerprint.map_err(|error| Failure::Fault(error.to_string().into()))?;
        let RequestContext { request_id, traceparent, address } = context.clone();
        let actor = format!("payout-provider:{provider}");
        let metadata = Metadata { command_id: id, actor, request_id, causation: None, traceparent, address };
        // The database keeps microseconds; what is decided on must be what is stored.
        let command = Command { user: payout.user, at: Utc::now().trunc_subsecs(6), intent };
        let receipt = self.commands.execute(Submission { id, fingerprint, command, metadata }).await?;
        Ok(!receipt.recorded.is_empty())
    }
}
