//! The provider's word that there is something to look at, signed the way Standard Webhooks are:
//!
//! ```text
//! webhook-id: msg_…
//! webhook-timestamp: 1700000000
//! webhook-signature: v1,{base64(HMAC-SHA256(secret, "{webhook-id}.{webhook-timestamp}.{body}"))}
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::Sha256;
use tokio::sync::Notify;
use url::Url;

const BODY_BYTES_MAX: usize = 64 * 1_024;
/// Older ones, and ones from the future, are refused, in seconds.
const TOLERANCE_S: i64 = 300;
/// Signatures in one header: more than one while a secret is changed.
const SIGNATURES_MAX: usize = 4;

/// Who waits for which prediction.
#[derive(Clone)]
pub struct Webhooks(Arc<Inner>);

struct Inner {
    url: Url,
    secret: Vec<u8>,
    /// As many as there are predictions in hand.
    waiting: Mutex<HashMap<String, Arc<Notify>>>,
}

impl std::fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhooks").field("url", &self.0.url.as_str()).finish_non_exhaustive()
    }
}

/// Waits for what is told about one prediction. Dropped, it no longer does.
pub(super) struct Watch {
    webhooks: Webhooks,
    id: String,
    notify: Arc<Notify>,
}

impl Webhooks {
    /// Webhooks that the provider sends to `url`, signed with `secret`.
    pub fn new(url: Url, secret: &[u8]) -> Self {
        Self(Arc::new(Inner { url, secret: secret.to_vec(), waiting: Mutex::default() }))
    }

    /// Where they come in.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/webhooks/predictions", post(receive))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self.clone())
    }

    pub(super) fn url(&self) -> &Url {
        &self.0.url
    }

    pub(super) fn watch(&self, id: &str) -> Watch {
        let notify = Arc::new(Notify::new());
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(id.to_owned(), notify.clone());
        Watch { webhooks: self.clone(), id: id.to_owned(), notify }
    }

    /// Whether it is the provider's, and of now. Compares in constant time.
    fn is_genuine(&self, headers: &HeaderMap, body: &[u8], now: i64) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (Some(id), Some(timestamp), Some(signatures)) =
            (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"))
        else {
            return false;
        };
        let is_now = timestamp.parse::<i64>().is_ok_and(|sent| now.abs_diff(sent) <= TOLERANCE_S.unsigned_abs());
        let is_signed = signatures.split(' ').take(SIGNATURES_MAX).any(|signature| {
            let signature = signature.strip_prefix("v1,").and_then(|base64| BASE64_STANDARD.decode(base64).ok());
            let mac = Hmac::<Sha256>::new_from_slice(&self.0.secret).ok();
            signature.zip(mac).is_some_and(|(signature, mac)| {
                let mac = mac.chain_update(format!("{id}.{timestamp}.")).chain_update(body);
                mac.verify_slice(&signature).is_ok()
            })
        });
        is_now && is_signed
    }
}

impl Watch {
    pub(super) async fn told(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut waiting = self.webhooks.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&self.id);
    }
}

#[derive(Deserialize)]
struct Told {
    id: String,
}

async fn receive(State(webhooks): State<Webhooks>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|since| since.as_secs());
    let now = now.ok().and_then(|now| i64::try_from(now).ok()).unwrap_or_default();
    if !webhooks.is_genuine(&headers, &body, now) {
        return StatusCode::UNAUTHORIZED;
    }
    let Ok(Told { id }) = serde_json::from_slice(&body) else { return StatusCode::BAD_REQUEST };
    let waiting = webhooks.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(notify) = waiting.get(&id) {
        notify.notify_one();
    }
    // Also when nobody waits for it: another worker may, and asks by itself.
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_providers_word_of_now_counts() {
        // The example of the Standard Webhooks specification.
        let secret = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let webhooks = Webhooks::new(Url::parse("http://127.0.0.1/").unwrap(), &secret);
        let body = br#"{"test": 2432232314}"#;
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let headers = |signature: &str, timestamp: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
            headers.insert("webhook-timestamp", timestamp.parse().unwrap());
            headers.insert("webhook-signature", signature.parse().unwrap());
            headers
        };
        let sent = 1_614_265_330;
        let at = sent.to_string();
        for (signature, timestamp, body, now, genuine) in [
            (good, at.as_str(), &body[..], sent, true),
            (good, &at, body, sent + 300, true),
            (good, &at, body, sent + 301, false),
            (good, &at, body, sent - 301, false),
            (good, "1614265331", body, sent, false),
            (good, &at, br#"{"test": 2432232315}"#, sent, false),
            (&format!("v1,AAAA {good}"), &at, body, sent, true),
            ("v1,AAAA", &at, body, sent, false),
            (&good[3..], &at, body, sent, false),
            ("", &at, body, sent, false),
            (good, "", body, sent, false),
        ] {
            let headers = headers(signature, timestamp);
            assert_eq!(webhooks.is_genuine(&headers, body, now), genuine, "{signature} {timestamp} {now}");
        }
        assert!(!webhooks.is_genuine(&HeaderMap::new(), body, sent));
    }
}
