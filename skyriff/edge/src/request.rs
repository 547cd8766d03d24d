//! What every request goes through: it gets a name, a time limit and a size limit, and its problems get its name.

use std::{
    any::Any,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Request},
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer,
        predicate::{NotForContentType, Predicate, SizeAbove},
    },
};
use uuid::Uuid;

use crate::{
    Tokens,
    problem::{self, Kind, Problem},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Smaller answers are sent as they are: compressing them costs more than it saves.
const COMPRESS_ABOVE_BYTES: u16 = 1_024;

/// How much one request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest body, in bytes.
    pub body_bytes_max: usize,
    /// The longest time until the answer begins.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes_max: 64 * 1_024, timeout: Duration::from_secs(15) }
    }
}

/// What a request is called.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The client's X-Request-Id when it has a usable one, else ours.
    pub request_id: String,
    /// W3C trace context, when the client sent one that is well-formed.
    pub traceparent: Option<String>,
    /// The network of the client's address, see [`network_of`].
    pub address: Option<String>,
}

/// Put beside the connection's address when requests come through a proxy of ours, which says in `X-Real-IP` for whom; from
/// anybody else that header says nothing.
#[derive(Clone, Copy, Debug)]
pub struct BehindProxy;

/// As much of an address as is kept: the network that it is in, of 256 addresses of version 4, or of one site of version 6.
pub fn network_of(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            format!("{}/24", Ipv4Addr::new(a, b, c, 0))
        }
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            format!("{}/48", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
    }
}

fn address(request: &Request) -> Option<IpAddr> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    match request.extensions().get::<BehindProxy>() {
        None => peer,
        Some(BehindProxy) => request.headers().get(REAL_IP)?.to_str().ok()?.trim().parse().ok(),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestContext {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or(Problem::new(&Kind::FAULT))
    }
}

/// Put the edge around the routes.
pub fn around(routes: Router, tokens: Tokens, limits: Limits) -> Router {
    routes
        .route("/problems/{slug}", get(problem::explain))
        .fallback(async || Problem::new(&Kind::NOT_FOUND))
        .method_not_allowed_fallback(async || Problem::new(&Kind::METHOD_NOT_ALLOWED))
        .layer(DefaultBodyLimit::max(limits.body_bytes_max))
        .layer(Extension(tokens))
        .layer(CompressionLayer::new().compress_when(worth_compressing()))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(move |request, next| name_and_bound(limits.timeout, request, next)))
}

/// Events go out one by one, and video and sound are compressed as they are.
fn worth_compressing() -> impl Predicate {
    SizeAbove::new(COMPRESS_ABOVE_BYTES)
        .and(NotForContentType::SSE)
        .and(NotForContentType::const_new("video/"))
        .and(NotForContentType::const_new("audio/"))
        .and(NotForContentType::const_new("application/octet-stream"))
}

async fn name_and_bound(timeout: Duration, mut request: Request, next: Next) -> Response {
    let context = RequestContext {
        request_id: client_request_id(request.headers()).unwrap_or_else(|| Uuid::now_v7().to_string()),
        traceparent: traceparent(request.headers()),
        address: address(&request).map(network_of),
    };
    let request_id = context.request_id.clone();
    request.extensions_mut().insert(context);
    let response = tokio::time::timeout(timeout, next.run(request)).await;
    let response = response.unwrap_or_else(|_| Problem::new(&Kind::TIMEOUT).into_response());
    let mut response = match response.extensions().get::<Arc<Problem>>().cloned() {
        Some(problem) => {
            if *problem.kind == Kind::FAULT {
                tracing::error!(request_id, "answered with a fault");
            }
            name_in_body(&problem, &request_id, response)
        }
        None => response,
    };
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The problem's answer again, now with the request's id in the body, and with what other layers put into the headers.
fn name_in_body(problem: &Problem, request_id: &str, unnamed: Response) -> Response {
    let mut named = problem.respond(Some(request_id));
    for (name, value) in unnamed.headers() {
        if *name != header::CONTENT_LENGTH && !named.headers().contains_key(name) {
            named.headers_mut().append(name.clone(), value.clone());
        }
    }
    named
}

#[expect(clippy::needless_pass_by_value, reason = "tower-http passes the box")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("of another type"), "a handler panicked");
    Problem::new(&Kind::FAULT).into_response()
}

/// 1 to 64 of `A-Z a-z 0-9 - _ . :`, so that it can be logged and searched for as it is.
fn client_request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let formed = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    (formed && (1..=64).contains(&id.len())).then(|| id.to_owned())
}

/// `00-<32 hex>-<16 hex>-<2 hex>` (W3C Trace Context, version 00).
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let lengths: Vec<_> = text.split('-').map(str::len).collect();
    let hex = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (hex && lengths == [2, 32, 16, 2] && text.starts_with("00-")).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_the_network_is_kept_and_a_header_counts_only_behind_a_proxy() {
        for (address, network) in [
            ("203.0.113.77", "203.0.113.0/24"),
            ("::ffff:203.0.113.77", "203.0.113.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
            ("::1", "::/48"),
        ] {
            assert_eq!(network_of(address.parse().unwrap()), network);
        }
        let from = |proxy: bool, header: Option<&str>| {
            let mut request = Request::new(axum::body::Body::empty());
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([10, 0, 0, 9], 80))));
            if proxy {
                request.extensions_mut().insert(BehindProxy);
            }
            if let Some(header) = header {
                request.headers_mut().insert(REAL_IP, header.parse().unwrap());
            }
            super::address(&request).map(network_of)
        };
        assert_eq!(from(false, Some("203.0.113.77")).as_deref(), Some("10.0.0.0/24"));
        assert_eq!(from(true, Some("203.0.113.77")).as_deref(), Some("203.0.113.0/24"));
        for nothing in [None, Some(""), Some("203.0.113"), Some("203.0.113.77, 10.0.0.1")] {
            assert_eq!(from(true, nothing), None);
        }
    }

    #[test]
    fn names_from_outside_are_taken_only_when_well_formed() {
        let with = |name: &HeaderName, value: &'static str| {
            HeaderMap::from_iter([(name.clone(), HeaderValue::from_static(value))])
        };
        assert_eq!(client_request_id(&with(&REQUEST_ID, "a-1")).as_deref(), Some("a-1"));
        for bad in ["", "a b", "a\"b", "0123456789012345678901234567890123456789012345678901234567890123x"] {
            assert_eq!(client_request_id(&with(&REQUEST_ID, bad)), None, "{bad}");
        }
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent(&with(&TRACEPARENT, good)).as_deref(), Some(good));
        for bad in ["", "00-1-2-3", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] {
            assert_eq!(traceparent(&with(&TRACEPARENT, bad)), None, "{bad}");
        }
    }
}
