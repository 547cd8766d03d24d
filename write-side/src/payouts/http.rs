//! Pays through somebody else's HTTP API, which behaves as this page says.
//!
//! # For whoever implements the other side
//!
//! Every request, in both directions, is signed: [`super::signature`] has it byte by byte. Bodies are JSON, UTF-8.
//!
//! **Create**: `POST {url}/payouts` with the header `Idempotency-Key`, which is the member `id` too.
//!
//! ```json
//! {"id": "6f9d…", "merchant_reference": "959d…/6f9d…", "amount_minor": 9900, "currency": "cny",
//!  "destination": {"kind": "alipay", "account": "mei@example.com", "name": "Mei Lin"}}
//! ```
//!
//! `merchant_reference` is the user's id, `/` and the withdrawal's, at most 73 characters; it is said again in every
//! answer and callback. `amount_minor` is in the currency's smallest unit. The answer is 200, 201 or 202 with the
//! *payout*:
//!
//! ```json
//! {"id": "6f9d…", "merchant_reference": "959d…/6f9d…", "amount_minor": 9900, "currency": "cny",
//!  "status": "paid", "reference": "po_7Hq2"}
//! ```
//!
//! * `status` is `paid` (then `reference` names the payment: 1 to 128 printable ASCII characters without spaces, the same
//!   for ever), `pending`, or `declined` (then `reason` may say why, in one word of `a-z 0-9 _ . -`; anything
//!   else is not kept, since it could name the person, and what is recorded stays for ever). `paid` and `declined` are final: a payout that is
//!   one of them never becomes anything else. A payout that cannot be made, also for what is in the request, is
//!   `declined`, and not an error.
//! * **One `id`, one payout.** A second request with a known `id` pays nothing; it is answered with the payout as it is,
//!   or, when it asks for something else, with 409. Keys are remembered for ever, or at least for a year.
//! * 429 and 503 may carry `Retry-After` in seconds. They, and everything else, mean to us that we do not know, and we
//!   look up.
//!
//! **Look up**: `GET {url}/payouts/{id}` is answered with 200 and the payout; when there is none, with 404 and
//! `{"id": "6f9d…", "status": "not_known"}`. A 404 without this body is no answer: it could be any proxy's.
//!
//! **Callback**: when a payout becomes `paid` or `declined`, `POST {SkyRiff}/v1/payout-callbacks/{name}` with the payout,
//! signed with the same secret. It may come at any time after the request, also before its answer, and as often as
//! wanted. 204: we have it. 401: signature or timestamp are not right. 404: no such payout. 409: we have recorded
//! something else; a person has to find out. 503: send it again.

use std::time::Duration;

use chrono::Utc;
use futures::future::BoxFuture;
use metrics::{counter, histogram};
use rand::Rng;
use reqwest::{Method, StatusCode, Url, header::RETRY_AFTER};
use serde::{Deserialize, Serialize};
use skyriff_domain::{Label, Note, Reference};
use skyriff_vault::Destination;
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use super::{
    Doubt, Payout, PayoutProvider, REQUEST_SECONDS, REQUESTS, Said,
    breaker::Breaker,
    signature::{SIGNATURE, Secret, Signed, TIMESTAMP},
};

/// Tries of one request that cannot have had an effect: a look-up, or one for which there was no connection.
const TRIES_MAX: u32 = 3;
/// The wait before the second try, which doubles.
const BACK_OFF: Duration = Duration::from_millis(100);
/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 * 1_024;

/// How to reach a provider.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As in events, and in the address of its callbacks.
    pub name: Label,
    /// Where its API is: `https://provider.example/v2`.
    pub url: Url,
    /// What both sides know.
    pub secret: Secret,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long paying or looking up may take, with all tries.
    pub timeout: Duration,
}

/// A provider behind HTTP.
#[derive(Debug)]
pub struct HttpProvider {
    settings: Settings,
    http: reqwest::Client,
    breaker: Breaker,
}

#[derive(Serialize)]
struct Create<'a> {
    id: String,
    merchant_reference: String,
    amount_minor: i64,
    currency: &'a str,
    destination: &'a Destination,
}

/// A payout, as a provider says it. Members that are not ours are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Payout)]
pub(crate) struct PayoutBody {
    /// The idempotency key.
    id: String,
    /// The user's id, `/`, the withdrawal's.
    pub(crate) merchant_reference: String,
    amount_minor: i64,
    currency: String,
    status: StatusBody,
    /// What the provider calls it; of a paid one.
    #[serde(default)]
    reference: Option<Reference>,
    /// Why; of a declined one.
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[schema(as = PayoutStatus)]
#[serde(rename_all = "snake_case")]
enum StatusBody {
    Paid,
    Pending,
    Declined,
}

#[derive(Deserialize)]
struct NotKnownBody {
    id: String,
    status: NotKnown,
}

#[derive(Deserialize)]
enum NotKnown {
    #[serde(rename = "not_known")]
    NotKnown,
}

impl PayoutBody {
    /// What it says, if it says it of this payout.
    pub(crate) fn of(self, payout: &Payout) -> Result<Said, Doubt> {
        let ours = (payout.withdrawal.to_string(), payout.merchant_reference());
        if (&self.id, &self.merchant_reference) != (&ours.0, &ours.1) {
            return Err(Doubt::Mismatch { reason: "another id or merchant reference".to_owned() });
        }
        let money = (payout.money.minor, payout.money.currency.as_str());
        if (self.amount_minor, self.currency.as_str()) != money {
            return Err(Doubt::Mismatch { reason: "another amount or currency".to_owned() });
        }
        match (self.status, self.reference) {
            (StatusBody::Paid, Some(reference)) => Ok(Said::Paid { reference }),
            (StatusBody::Paid, None) => Err(Doubt::unknown("paid, and without a reference")),
            (StatusBody::Pending, _) => Ok(Said::Pending),
            (StatusBody::Declined, _) => Ok(Said::Declined { reason: declined(self.reason.as_deref()) }),
        }
    }
}

/// The provider's reason when it is a code. Words could name the person, and an event keeps them for ever.
fn declined(reason: Option<&str>) -> Note {
    let code = reason.and_then(|reason| reason.parse::<Label>().ok());
    super::note(&code.map_or("declined by the provider".to_owned(), |code| format!("declined by the provider: {code}")))
}

/// An answer that came whole.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
    retry_after: Option<Duration>,
}

/// Why there is none.
struct NoAnswer {
    reason: String,
    /// Whether the provider cannot have had the request.
    not_sent: bool,
    retry_after: Option<Duration>,
}

impl HttpProvider {
    /// Connects when first asked.
    ///
    /// # Errors
    /// When the machine's TLS cannot be set up.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.timeout)
            // A signature is for one address.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let breaker = Breaker::new(settings.name.as_str());
        Ok(Self { settings, http, breaker })
    }

    async fn create(&self, payout: &Payout, to: &Destination) -> Result<Said, Doubt> {
        let create = Create {
            id: payout.withdrawal.to_string(),
            merchant_reference: payout.merchant_reference(),
            amount_minor: payout.money.minor,
            currency: payout.money.currency.as_str(),
            destination: to,
        };
        let body = serde_json::to_vec(&create).map_err(Doubt::unknown)?;
        let url = self.address(&["payouts"])?;
        let answer = self.ask(&Method::POST, &url, Some((&create.id, &body))).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED => understood(&answer)?.of(payout),
            status => Err(no_word(status, &answer)),
        }
    }

    async fn find(&self, payout: &Payout) -> Result<Option<Said>, Doubt> {
        let url = self.address(&["payouts", &payout.withdrawal.to_string()])?;
        let answer = self.ask(&Method::GET, &url, None).await?;
        match answer.status {
            StatusCode::OK => understood(&answer)?.of(payout).map(Some),
            StatusCode::NOT_FOUND => match serde_json::from_slice(&answer.body) {
                Ok(NotKnownBody { id, status: NotKnown::NotKnown }) if id == payout.withdrawal.to_string() => Ok(None),
                Ok(_) | Err(_) => Err(no_word(answer.status, &answer)),
            },
            status => Err(no_word(status, &answer)),
        }
    }

    fn address(&self, segments: &[&str]) -> Result<Url, Doubt> {
        let mut url = self.settings.url.clone();
        let path = url.path_segments_mut();
        path.map_err(|()| Doubt::unknown("the provider's URL has no path"))?.pop_if_empty().extend(segments);
        Ok(url)
    }

    /// Ask until there is an answer, the tries or the time are over. What may have had an effect is not asked again
    /// here: only after a look-up.
    async fn ask(&self, method: &Method, url: &Url, body: Option<(&str, &[u8])>) -> Result<Answer, Doubt> {
        let until = Instant::now() + self.settings.timeout;
        let mut tries = 0;
        loop {
            tries += 1;
            let permit = self.breaker.admit(Instant::now()).map_err(|left| Doubt::Unknown {
                reason: "the provider is left alone for a while, after what it answered last".to_owned(),
                retry_after: Some(left),
            })?;
            let started = Instant::now();
            let left = until.saturating_duration_since(started);
            let asked = timeout(left, self.once(method, url, body)).await;
            histogram!(REQUEST_SECONDS, "provider" => self.settings.name.to_string()).record(started.elapsed());
            let late = || NoAnswer { reason: "no answer in time".to_owned(), not_sent: false, retry_after: None };
            let none = match asked.unwrap_or_else(|_| Err(late())) {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    permit.told_to_wait(answer.retry_after.unwrap_or(BACK_OFF), Instant::now());
                    return Err(no_word(answer.status, &answer));
                }
                Ok(answer) if answer.status.is_server_error() => {
                    match answer.retry_after {
                        Some(wait) => permit.told_to_wait(wait, Instant::now()),
                        None => permit.failed(Instant::now()),
                    }
                    let reason = format!("the provider answered {}", answer.status);
                    NoAnswer { reason, not_sent: false, retry_after: answer.retry_after }
                }
                Ok(answer) => {
                    permit.answered();
                    return Ok(answer);
                }
                Err(none) => {
                    permit.failed(Instant::now());
                    none
                }
            };
            let again = none.not_sent || *method == Method::GET;
            let wait = BACK_OFF * 2_u32.pow(tries - 1);
            let wait = wait.mul_f64(rand::rng().random_range(0.5..=1.0));
            if !again || tries >= TRIES_MAX || none.retry_after.is_some() || Instant::now() + wait >= until {
                return Err(Doubt::Unknown { reason: none.reason, retry_after: none.retry_after });
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn once(&self, method: &Method, url: &Url, body: Option<(&str, &[u8])>) -> Result<Answer, NoAnswer> {
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let (key, bytes) = body.unzip();
        let bytes = bytes.unwrap_or_default();
        let timestamp = Utc::now().timestamp();
        let signed = Signed { timestamp, method: method.as_str(), path: &path, body: bytes };
        let mut request = self.http.request(method.clone(), url.clone());
        request = request.header(TIMESTAMP, timestamp).header(SIGNATURE, self.settings.secret.sign(signed));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
            request = request.header("content-type", "application/json").body(bytes.to_vec());
        }
        let no_answer = |error: reqwest::Error| NoAnswer {
            // Without the URL: nothing of whom it concerns belongs in a log line or a task's row.
            reason: chain(&error.without_url()),
            not_sent: false,
            retry_after: None,
        };
        let sent = request.send().await;
        let mut response = sent.map_err(|error| NoAnswer { not_sent: error.is_connect(), ..no_answer(error) })?;
        let (status, mut body) = (response.status(), Vec::new());
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_MAX {
                let reason = format!("an answer of more than {ANSWER_MAX} bytes");
                return Err(NoAnswer { reason, not_sent: false, retry_after: None });
            }
        }
        Ok(Answer { status, body, retry_after: retry_after.map(Duration::from_secs) })
    }

    fn count(&self, request: &'static str, outcome: &'static str) {
        let provider = self.settings.name.to_string();
        counter!(REQUESTS, "provider" => provider, "request" => request, "outcome" => outcome).increment(1);
    }
}

fn understood(answer: &Answer) -> Result<PayoutBody, Doubt> {
    // What serde says would quote the answer, which may name whom it pays.
    serde_json::from_slice(&answer.body)
        .map_err(|_| Doubt::unknown(format!("the provider answered {}, and not with a payout", answer.status)))
}

fn no_word(status: StatusCode, answer: &Answer) -> Doubt {
    Doubt::Unknown { reason: format!("the provider answered {status}"), retry_after: answer.retry_after }
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl PayoutProvider for HttpProvider {
    fn name(&self) -> &Label {
        &self.settings.name
    }

    fn pay<'a>(&'a self, payout: &'a Payout, to: &'a Destination) -> BoxFuture<'a, Result<Said, Doubt>> {
        Box::pin(async move {
            let said = self.create(payout, to).await;
            self.count("pay", said.as_ref().map_or_else(Doubt::name, Said::name));
            said
        })
    }

    fn look_up<'a>(&'a self, payout: &'a Payout) -> BoxFuture<'a, Result<Option<Said>, Doubt>> {
        Box::pin(async move {
            let said = self.find(payout).await;
            let known = |said: &Option<Said>| said.as_ref().map_or("not_known", Said::name);
            self.count("look_up", said.as_ref().map_or_else(Doubt::name, known));
            said
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_why_it_was_declined_only_a_code_is_kept() {
        for (said, kept) in [
            (Some("account_closed"), "declined by the provider: account_closed"),
            (Some("account 6222021234567890 of Mei Lin is closed"), "declined by the provider"),
            (Some(""), "declined by the provider"),
            (None, "declined by the provider"),
        ] {
            assert_eq!(declined(said).as_str(), kept);
        }
    }
}
