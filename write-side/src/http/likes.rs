//! Likes of works.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use skyriff_domain::{Intent, UserId, WorkId, like};
use skyriff_edge::{Kind, Path, Problem, Right};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::submit::{Accepted, CommandResponses, OptionalJson, SenderOfState};
use crate::Commands;

pub(super) fn routes() -> OpenApiRouter<Commands> {
    OpenApiRouter::new().routes(routes!(put, take_back))
}

/// Of a like, or of its taking back.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Like {
    /// Who likes. The caller, unless a service says otherwise, which has to.
    #[serde(default)]
    user: Option<UserId>,
    /// When it happened; now, unless a service says otherwise.
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

/// Like a work. Whoever likes it already, likes it still: nothing is recorded, and 200 says so.
///
/// Anybody may like any work once, also whoever made it, and also one that nobody here has heard of; only the ids that
/// stand for no id at all (nil and max) are refused. A work that was shown and is no longer cannot be liked (404); that is
/// known within two seconds.
///
/// Without an `Idempotency-Key` each request is a command of its own, which is safe to send again: what is asked for is
/// a state. A key protects from more: a request that arrives again after the like was taken back is answered as the
/// first time, and does not like anew.
#[utoipa::path(put, path = "/v1/works/{work}/like", tag = "likes", params(("work" = WorkId, Path), ("Idempotency-Key" = Option<String>, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<Like>), responses(CommandResponses))]
async fn put(
    State(commands): State<Commands>,
    Path(work): Path<WorkId>,
    sender: SenderOfState,
    OptionalJson(body): OptionalJson<Like>,
) -> Result<Accepted, Problem> {
    change(commands, work, sender, body, like::Command::Like).await
}

/// Take a like back. Where there is none, nothing is recorded, and 200 says so.
///
/// `Idempotency-Key` and the body are as for the like itself.
#[utoipa::path(delete, path = "/v1/works/{work}/like", tag = "likes", params(("work" = WorkId, Path), ("Idempotency-Key" = Option<String>, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<Like>), responses(CommandResponses))]
async fn take_back(
    State(commands): State<Commands>,
    Path(work): Path<WorkId>,
    sender: SenderOfState,
    OptionalJson(body): OptionalJson<Like>,
) -> Result<Accepted, Problem> {
    change(commands, work, sender, body, like::Command::Unlike).await
}

async fn change(
    commands: Commands,
    work: WorkId,
    SenderOfState(sender): SenderOfState,
    Like { user, occurred_at }: Like,
    command: like::Command,
) -> Result<Accepted, Problem> {
    let user = sender.acts_for(Right::Like, user)?;
    sender.submit(&commands, Right::Like, user, occurred_at, intent(work, command)?).await
}

/// What is asked of a like, if the work can be one.
pub(super) fn intent(work: WorkId, command: like::Command) -> Result<Intent, Problem> {
    if work.0.is_nil() || work.0.is_max() {
        return Err(Problem::new(&Kind::OUT_OF_RANGE).detail("work is neither the nil nor the max UUID (RFC 9562)"));
    }
    // Whether it is still shown is looked up on the way to the decision.
    Ok(Intent::Like { work, command, taken_back: false })
}
