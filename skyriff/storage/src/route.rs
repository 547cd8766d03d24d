//! `GET /v1/objects/{object}`: what a folder's signed links lead to, in parts if asked, so that a player can seek.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::Utc;
use serde::Deserialize;
use skyriff_edge::{Kind, Path, Problem, Query, problem::ProblemBody};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Links, ObjectName, link::BadLink, range, range::Asked, store::Head};

/// The route; none for a bucket, whose links lead to it.
pub fn routes(links: Links) -> OpenApiRouter {
    if links.storage.is_folder() {
        OpenApiRouter::new().routes(routes!(object)).with_state(links)
    } else {
        OpenApiRouter::new()
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Signed {
    /// Until when the link is good, in unix seconds.
    expires: i64,
    /// That it is one of ours.
    signature: String,
}

/// What a job made, through a signed link.
///
/// The link is all that is asked for: no token. `Range` and `If-Range` are understood.
#[utoipa::path(get, path = "/v1/objects/{object}", tag = "video jobs", security(()),
    params(("object" = String, Path), Signed, ("Range" = Option<String>, Header), ("If-Range" = Option<String>, Header),
           ("If-None-Match" = Option<String>, Header)),
    responses((status = 200, description = "All of it", content_type = "video/mp4", headers(("ETag" = String), ("Accept-Ranges" = String))),
              (status = 206, description = "The part that was asked for", content_type = "video/mp4", headers(("Content-Range" = String))),
              (status = 304, description = "The one that If-None-Match names"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 404, body = ProblemBody, content_type = "application/problem+json"),
              (status = 416, body = ProblemBody, content_type = "application/problem+json", headers(("Content-Range" = String)))))]
async fn object(
    State(links): State<Links>,
    Path(object): Path<String>,
    Query(signed): Query<Signed>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let now = Utc::now();
    // What is no name has no signature either: the answer is the same as for one that is forged.
    let object: ObjectName = object.parse().map_err(|_| of_link(BadLink::Forged))?;
    links.key.check(&object, signed.expires, &signed.signature, now).map_err(of_link)?;
    let head = links.storage.head(&object).await.map_err(|error| Problem::fault(&error))?;
    let head = head.ok_or(Problem::new(&Kind::NOT_FOUND))?;
    let lifetime = signed.expires.saturating_sub(now.timestamp());
    let mut answer = answer(&links, &object, &head, &headers).await?;
    let out = answer.headers_mut();
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::try_from(format!("private, max-age={lifetime}")) {
        out.insert(header::CACHE_CONTROL, value);
    }
    if let Some(etag) = head.etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
        out.insert(header::ETAG, etag);
    }
    Ok(answer)
}

async fn answer(links: &Links, object: &ObjectName, head: &Head, headers: &HeaderMap) -> Result<Response, Problem> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_this = |given: &str| head.etag.as_deref() == Some(given.trim());
    if text(header::IF_NONE_MATCH).is_some_and(|given| given.split(',').any(is_this)) {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    // A part of something else would be put together with what the client has: then it gets the whole.
    let same = text(header::IF_RANGE).is_none_or(is_this);
    let asked = range::asked(text(header::RANGE).filter(|_| same), head.bytes);
    let (status, part) = match asked {
        Asked::Whole => (StatusCode::OK, 0..head.bytes),
        Asked::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Asked::NotThere => {
            let mut refused = Problem::new(&Kind::RANGE_NOT_SATISFIABLE).into_response();
            if let Ok(value) = HeaderValue::try_from(format!("bytes */{}", head.bytes)) {
                refused.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return Ok(refused);
        }
    };
    let bytes = links.storage.read(object, part.clone()).await.map_err(|error| Problem::fault(&error))?;
    let mut answer = (status, Body::from_stream(bytes)).into_response();
    let out = answer.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(object.format.content_type()));
    out.insert(header::CONTENT_LENGTH, (part.end - part.start).into());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{}", part.start, part.end.saturating_sub(1), head.bytes);
        if let Ok(value) = HeaderValue::try_from(range) {
            out.insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(answer)
}

fn of_link(bad: BadLink) -> Problem {
    Problem::new(match bad {
        BadLink::Forged => &Kind::LINK_INVALID,
        BadLink::Expired => &Kind::LINK_EXPIRED,
    })
}
