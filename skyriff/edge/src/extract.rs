//! What a route takes from a request; a refusal is a problem like every other.

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use crate::problem::{Kind, Problem};

/// The body, read as `T`.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

/// The variable parts of the path, read as `T`.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

/// What follows the question mark, read as `T`.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(of_json(&rejection)),
        }
    }
}

fn of_json(rejection: &JsonRejection) -> Problem {
    let kind = match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => &Kind::BODY_TOO_LARGE,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => &Kind::UNSUPPORTED_MEDIA_TYPE,
        _ => &Kind::MALFORMED,
    };
    Problem::new(kind).detail(rejection.body_text())
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|rejection| Problem::new(&Kind::MALFORMED).detail(rejection.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query
            .map(|query| Self(query.0))
            .map_err(|rejection| Problem::new(&Kind::MALFORMED).detail(rejection.body_text()))
    }
}
