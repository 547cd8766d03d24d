//! The same HTTP with answers that are always the same: what is left when nothing is decided or recorded.

use std::sync::LazyLock;

use axum::{body::Bytes, http::StatusCode};
use skyriff_domain::UserId;
use skyriff_edge::{Caller, Json, Path};

use crate::{servers::Earn, wrk::BULK};

pub async fn constant(Path(_): Path<UserId>, _caller: Caller, Json(_): Json<Earn>) -> (StatusCode, &'static str) {
    (StatusCode::CREATED, "{}")
}

/// Reads the body as bytes and not as JSON, and answers as much as the commands would have been answered with.
pub async fn constant_bulk(_caller: Caller, _body: Bytes) -> Bytes {
    static RESULTS: LazyLock<Bytes> = LazyLock::new(|| RESULT.repeat(usize::try_from(BULK).unwrap_or_default()).into());
    RESULTS.clone()
}

const RESULT: &str = concat!(
    r#"{"status":201,"position":"9:104200","replayed":false,"recorded":[{"position":"9:104200","#,
    r#""aggregate_type":"points_account","aggregate_id":"00000000-0000-4000-8000-000000010000","sequence":7,"#,
    r#""event":{"earned":{"credited":{"income":1},"reason":"bench"}},"#,
    r#""occurred_at":"2026-01-31T12:00:00.123456Z","recorded_at":"2026-01-31T12:00:00.123456Z"}]}"#,
    "\n"
);
