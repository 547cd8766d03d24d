//! A person is forgotten.

use axum::extract::State;
use serde::Deserialize;
use skyriff_domain::{
    Intent, Label, UserId,
    erasure::{AskedBy, Command},
};
use skyriff_edge::{Json, Path, Problem, Right};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    sealing::Sealing,
    submit::{Accepted, CommandResponses, Sender},
};
use crate::Commands;

pub(super) fn routes() -> OpenApiRouter<Sealing> {
    OpenApiRouter::new().routes(routes!(erase))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Erase {
    /// Who wants it.
    asked_by: AskedBy,
    /// Where that is on file, such as a ticket's number. Kept for ever, in the clear: nothing that says who it is about.
    reference: Label,
}

/// Forget a person, for ever: the key is destroyed with the answer, so what was sealed under it opens nowhere any more.
/// What the person showed is shown no longer, and what was made of their prompts is deleted, soon afterwards.
///
/// Refused while a withdrawal is open or video jobs are in flight. The ledger stays as it is; a user id is never used again.
/// Doing it again records nothing.
#[utoipa::path(post, path = "/v1/users/{user}/erasure", tag = "erasure", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Erase, responses(CommandResponses))]
async fn erase(
    State(commands): State<Commands>,
    Path(user): Path<UserId>,
    sender: Sender,
    Json(body): Json<Erase>,
) -> Result<Accepted, Problem> {
    let Erase { asked_by, reference } = body;
    sender.submit(&commands, Right::Erase, user, None, Intent::Erase(Command { asked_by, reference })).await
}
