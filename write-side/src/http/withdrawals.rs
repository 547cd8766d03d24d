//! Commands for withdrawals: asked for and cancelled by their owners, decided by reviewers, cleared up by operators.
//!
//! A withdrawal lives with its owner, so whoever else acts on it names the owner in the path.

use axum::extract::State;
use serde::Deserialize;
use skyriff_domain::{
    Intent, Note, Points, Reference, UserId, WithdrawalId,
    withdrawal::{Outcome, Step, What},
};
use skyriff_edge::{Json, Path, Problem, Right};
use skyriff_vault::{Destination, Purpose};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    sealing::{Erased, Sealing, sealed, unsealed},
    submit::{Accepted, AcceptedBody, CommandResponses, Located, Sender},
};
use crate::Commands;

pub(super) fn routes() -> OpenApiRouter<Sealing> {
    OpenApiRouter::new()
        .routes(routes!(request))
        .routes(routes!(cancel))
        .routes(routes!(approve))
        .routes(routes!(reject))
        .routes(routes!(resolve))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RequestWithdrawal {
    /// How many points, the fee included.
    points: Points,
    destination: Destination,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reject {
    /// Why, for the owner and for the books. Kept sealed.
    reason: Note,
}

/// What an operator has found out about a payout.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "snake_case", deny_unknown_fields)]
enum Resolve {
    /// The money has gone.
    Paid {
        /// What the provider calls the payout.
        reference: Reference,
    },
    /// The money has not gone and will not: the points go back.
    Failed {
        /// Why. Kept sealed.
        reason: Note,
    },
}

/// Ask for income to be paid out. The points are held until it is over. The withdrawal's id follows from the caller and the
/// Idempotency-Key, so a retry is the same withdrawal.
#[utoipa::path(post, path = "/v1/withdrawals", tag = "withdrawals", params(("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
    request_body = RequestWithdrawal,
    responses(CommandResponses,
              (status = 201, description = "Recorded, durably; the points are held. Location says where the withdrawal can be read",
               body = AcceptedBody, headers(("Location" = String), ("Skyriff-Position" = String), ("Idempotent-Replayed" = bool))),
              (status = 410, description = "What belonged to this person was erased", body = skyriff_edge::problem::ProblemBody, content_type = "application/problem+json")))]
async fn request(
    State(Sealing { commands, vault }): State<Sealing>,
    sender: Sender,
    Json(body): Json<RequestWithdrawal>,
) -> Result<Located, Problem> {
    let (user, withdrawal) = (UserId(sender.caller().id), WithdrawalId(sender.command_id().0));
    // Before anything is sealed: that makes a key for the person.
    sender.caller().may(Right::Withdraw, user)?;
    let destination =
        vault.seal_destination(user, withdrawal, &body.destination).await.map_err(|error| unsealed(&error))?;
    let intent = on(withdrawal, What::Request { points: body.points, destination });
    let accepted = sender.submit(&commands, Right::Withdraw, user, None, intent).await?;
    Ok(accepted.located(&format!("/v1/users/{user}/withdrawals/{withdrawal}")))
}

/// Take a withdrawal back while it is under review.
#[utoipa::path(post, path = "/v1/users/{user}/withdrawals/{withdrawal}/cancel", tag = "withdrawals",
               params(("user" = UserId, Path), ("withdrawal" = WithdrawalId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               responses(CommandResponses, NotFound))]
async fn cancel(
    State(commands): State<Commands>,
    Path((user, withdrawal)): Path<(UserId, WithdrawalId)>,
    sender: Sender,
) -> Result<Accepted, Problem> {
    sender.submit(&commands, Right::Withdraw, user, None, on(withdrawal, What::Cancel)).await
}

/// Say yes to a withdrawal. Large ones need a second reviewer; nobody reviews their own.
#[utoipa::path(post, path = "/v1/users/{user}/withdrawals/{withdrawal}/approve", tag = "withdrawals",
               params(("user" = UserId, Path), ("withdrawal" = WithdrawalId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               responses(CommandResponses, NotFound))]
async fn approve(
    State(commands): State<Commands>,
    Path((user, withdrawal)): Path<(UserId, WithdrawalId)>,
    sender: Sender,
) -> Result<Accepted, Problem> {
    let what = What::Approve { reviewer: UserId(sender.caller().id) };
    sender.submit(&commands, Right::Review, user, None, on(withdrawal, what)).await
}

/// Say no to a withdrawal: the points go back.
#[utoipa::path(post, path = "/v1/users/{user}/withdrawals/{withdrawal}/reject", tag = "withdrawals",
               params(("user" = UserId, Path), ("withdrawal" = WithdrawalId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Reject, responses(CommandResponses, NotFound, Erased))]
async fn reject(
    State(Sealing { commands, vault }): State<Sealing>,
    Path((user, withdrawal)): Path<(UserId, WithdrawalId)>,
    sender: Sender,
    Json(body): Json<Reject>,
) -> Result<Accepted, Problem> {
    sender.caller().may(Right::Review, user)?;
    let reason = sealed(&vault, user, Purpose::WithdrawalReason, withdrawal.0, &body.reason).await?;
    let what = What::Reject { reviewer: UserId(sender.caller().id), reason };
    sender.submit(&commands, Right::Review, user, None, on(withdrawal, what)).await
}

/// Say what came of a payout that needs attention. Look it up at the provider first: what is said here is final.
#[utoipa::path(post, path = "/v1/users/{user}/withdrawals/{withdrawal}/resolve", tag = "withdrawals",
               params(("user" = UserId, Path), ("withdrawal" = WithdrawalId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Resolve, responses(CommandResponses, NotFound, Erased))]
async fn resolve(
    State(Sealing { commands, vault }): State<Sealing>,
    Path((user, withdrawal)): Path<(UserId, WithdrawalId)>,
    sender: Sender,
    Json(body): Json<Resolve>,
) -> Result<Accepted, Problem> {
    sender.caller().may(Right::ResolvePayout, user)?;
    let outcome = match body {
        Resolve::Paid { reference } => Outcome::Paid { reference },
        Resolve::Failed { reason } => {
            let reason = sealed(&vault, user, Purpose::WithdrawalReason, withdrawal.0, &reason).await?;
            Outcome::Failed { reason }
        }
    };
    let what = What::Resolve { operator: UserId(sender.caller().id), outcome };
    sender.submit(&commands, Right::ResolvePayout, user, None, on(withdrawal, what)).await
}

/// For the API's description.
#[derive(utoipa::IntoResponses)]
#[response(status = 404, description = "This user has no such withdrawal", content_type = "application/problem+json")]
#[expect(dead_code, reason = "only described, never made")]
struct NotFound(#[to_schema] skyriff_edge::problem::ProblemBody<'static>);

fn on(withdrawal: WithdrawalId, what: What) -> Intent {
    Intent::Withdrawal(Step { withdrawal, what })
}
