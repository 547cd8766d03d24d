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
use skyriff_vault::{Error, Purpose};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    sealing::{Sealing, unsealed},
    submit::{Accepted, CommandResponses, Sender},
};
use crate::payouts;

pub(super) fn routes() -> OpenApiRouter<Sealing> {
    OpenApiRouter::new().routes(routes!(resolve))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResolveException {
    /// What came of it.
    outcome: Outcome,
    /// Why. Kept sealed when it is about somebody's payment.
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
    let is_about_somebody = home.0 != exception.0;
    let reason = if is_about_somebody {
        match vault.seal_words(home, Purpose::ExceptionReason, exception.0, &reason).await {
            Ok(words) => words,
            // The books go on without the person; what is said of them cannot be kept.
            Err(Error::Erased) => payouts::note("not kept: the person was erased").into(),
            Err(error) => return Err(unsealed(&error)),
        }
    } else {
        reason.into()
    };
    let operator = UserId(sender.caller().id);
    let command = Command::Resolve { operator, outcome, reason };
    let intent = Intent::Reconcile(Step::Exception { exception, command });
    sender.submit(&commands, Right::Reconcile, home, None, intent).await
}
