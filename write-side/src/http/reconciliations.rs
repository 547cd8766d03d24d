//! What operators find out about exceptions of reconciliations.

use axum::extract::State;
use serde::Deserialize;
use skyriff_domain::{
    ExceptionId, Intent, Note, UserId,
    reconciliation::{
        Step,
        exception::{Command, Outcome},
    },
};
use skyriff_edge::{Json, Path, Problem, Right};
use skyriff_vault::Purpose;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    sealing::{Sealing, sealed_for_the_books},
    submit::{Accepted, CommandResponses, Sender},
};

pub(super) fn routes() -> OpenApiRouter<Sealing> {
    OpenApiRouter::new().routes(routes!(resolve))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResolveException {
    /// What came of it.
    outcome: Outcome,
    /// Why. Kept sealed.
    reason: Note,
}

/// Say why a provider's file and the ledger do not agree. Once, and not about one's own payments.
///
/// `home` is as the list of exceptions says: whose payment it is, or the exception itself when nobody knows.
#[utoipa::path(post, path = "/v1/ledger/reconciliations/exceptions/{home}/{exception}/resolve", tag = "reconciliation",
               params(("home" = UserId, Path), ("exception" = ExceptionId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = ResolveException, responses(CommandResponses))]
async fn resolve(
    State(Sealing { commands, vault }): State<Sealing>,
    Path((home, exception)): Path<(UserId, ExceptionId)>,
    sender: Sender,
    Json(body): Json<ResolveException>,
) -> Result<Accepted, Problem> {
    sender.caller().may(Right::Reconcile, home)?;
    let ResolveException { outcome, reason } = body;
    // Nobody can tell what is in the words, also when it is not known whose payment it is: then the exception has a key.
    let reason = sealed_for_the_books(&vault, home, Purpose::ExceptionReason, exception.0, &reason).await?;
    let operator = UserId(sender.caller().id);
    let command = Command::Resolve { operator, outcome, reason };
    let intent = Intent::Reconcile(Step::Exception { exception, command });
    sender.submit(&commands, Right::Reconcile, home, None, intent).await
}
