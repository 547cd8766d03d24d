//! Works: what users show.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use skyriff_domain::{
    Intent, JobId, Note, UserId, WorkId,
    work::{Command, Visibility},
};
use skyriff_edge::{Json, Path, Problem, Right};
use skyriff_vault::Purpose;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    sealing::{Erased, Sealing, sealed},
    submit::{Accepted, CommandResponses, OptionalJson, SenderOfState},
};
use crate::Commands;

pub(super) fn routes() -> OpenApiRouter<Sealing> {
    OpenApiRouter::new().routes(routes!(publish, unpublish))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Publish {
    /// What it is called. Kept sealed.
    title: Note,
    visibility: Visibility,
    /// Who made it. The caller, unless a service says otherwise, which has to.
    #[serde(default)]
    user: Option<UserId>,
    /// Whether it was made elsewhere, which only a service may say. Otherwise it is what the job of the same id made.
    #[serde(default)]
    imported: bool,
    /// When it happened; now, unless a service says otherwise.
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Unpublish {
    /// Who made it. The caller, unless a service says otherwise, which has to.
    #[serde(default)]
    user: Option<UserId>,
    /// When it happened; now, unless a service says otherwise.
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

/// Show a work: what the job of the same id has made. Again with another title or visibility, that is changed.
///
/// A work has the id of its job, so a job is shown once and nobody can show another's. `Idempotency-Key` is as for likes.
#[utoipa::path(put, path = "/v1/works/{work}", tag = "works", params(("work" = WorkId, Path), ("Idempotency-Key" = Option<String>, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Publish, responses(CommandResponses, Erased))]
async fn publish(
    State(Sealing { commands, vault }): State<Sealing>,
    Path(work): Path<WorkId>,
    SenderOfState(sender): SenderOfState,
    Json(body): Json<Publish>,
) -> Result<Accepted, Problem> {
    let Publish { title, visibility, user, imported, occurred_at } = body;
    let creator = sender.acts_for(Right::Publish, user)?;
    let right = if imported { Right::ImportWork } else { Right::Publish };
    sender.caller().may(right, creator)?;
    let title = sealed(&vault, creator, Purpose::WorkTitle, work.0, &title).await?;
    let job = (!imported).then_some(JobId(work.0));
    let intent = Intent::Work { work, command: Command::Publish { creator, job, title, visibility } };
    sender.submit(&commands, right, creator, occurred_at, intent).await
}

/// No longer show a work. Its likes stay, and count again when it is shown again.
#[utoipa::path(delete, path = "/v1/works/{work}", tag = "works", params(("work" = WorkId, Path), ("Idempotency-Key" = Option<String>, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<Unpublish>), responses(CommandResponses))]
async fn unpublish(
    State(commands): State<Commands>,
    Path(work): Path<WorkId>,
    SenderOfState(sender): SenderOfState,
    OptionalJson(body): OptionalJson<Unpublish>,
) -> Result<Accepted, Problem> {
    let Unpublish { user, occurred_at } = body;
    let creator = sender.acts_for(Right::Publish, user)?;
    let intent = Intent::Work { work, command: Command::Unpublish { creator } };
    sender.submit(&commands, Right::Publish, creator, occurred_at, intent).await
}
