//! Commands for a user's points.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use skyriff_domain::{
    Bucket, HoldId, Intent, Label, Note, OrderId, Points, SpendId, UserId,
    points_account::{Action, Direction},
};
use skyriff_edge::{Json, Path, Problem, Right};
use skyriff_vault::Purpose;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    sealing::{Sealing, sealed_for_the_books},
    submit::{Accepted, CommandResponses, OnlyWhen, OptionalJson, Sender},
};
use crate::Commands;

pub(super) fn routes() -> OpenApiRouter<Sealing> {
    OpenApiRouter::new()
        .routes(routes!(check_in))
        .routes(routes!(earn))
        .routes(routes!(recharge))
        .routes(routes!(spend))
        .routes(routes!(refund))
        .routes(routes!(hold))
        .routes(routes!(capture))
        .routes(routes!(release))
        .routes(routes!(expire))
        .routes(routes!(adjust))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Earn {
    bucket: Bucket,
    points: Points,
    /// For what.
    reason: Label,
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Recharge {
    /// The payment at the payment provider; credited once, whatever the Idempotency-Key.
    order: OrderId,
    points: Points,
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Spend {
    /// Chosen by the client; names the spend in a refund.
    spend: SpendId,
    points: Points,
    product: Label,
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Hold {
    /// Chosen by the client; names the hold in a capture or release.
    hold: HoldId,
    points: Points,
    reason: Label,
    /// How long until it is released by itself.
    #[serde(default)]
    lifetime_s: Option<u32>,
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

/// Of a capture or a refund.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Part {
    /// All that is left, unless given.
    #[serde(default)]
    points: Option<Points>,
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Adjust {
    bucket: Bucket,
    direction: Direction,
    points: Points,
    /// Why, for whoever reads the books. Kept sealed, and not at all when the person was erased.
    reason: Note,
}

/// Check in: once a UTC day, with a bonus on every seventh day in a row.
#[utoipa::path(post, path = "/v1/users/{user}/check-ins", tag = "points", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<OnlyWhen>), responses(CommandResponses))]
async fn check_in(
    State(commands): State<Commands>,
    Path(user): Path<UserId>,
    sender: Sender,
    OptionalJson(body): OptionalJson<OnlyWhen>,
) -> Result<Accepted, Problem> {
    sender.submit(&commands, Right::CheckIn, user, body.occurred_at, Intent::Points(Action::CheckIn)).await
}

/// Points from the platform: promo for tasks, income for a creator's earnings.
#[utoipa::path(post, path = "/v1/users/{user}/earnings", tag = "points", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Earn, responses(CommandResponses))]
async fn earn(
    State(commands): State<Commands>,
    Path(user): Path<UserId>,
    sender: Sender,
    Json(body): Json<Earn>,
) -> Result<Accepted, Problem> {
    let Earn { bucket, points, reason, occurred_at } = body;
    let intent = Intent::Points(Action::Earn { bucket, points, reason });
    sender.submit(&commands, Right::Credit, user, occurred_at, intent).await
}

/// Points bought with a payment.
#[utoipa::path(post, path = "/v1/users/{user}/recharges", tag = "points", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Recharge, responses(CommandResponses))]
async fn recharge(
    State(commands): State<Commands>,
    Path(user): Path<UserId>,
    sender: Sender,
    Json(body): Json<Recharge>,
) -> Result<Accepted, Problem> {
    let Recharge { order, points, occurred_at } = body;
    sender.submit(&commands, Right::Credit, user, occurred_at, Intent::Recharge { order, points }).await
}

/// Spend points: promo first (what expires first), then paid, then income.
#[utoipa::path(post, path = "/v1/users/{user}/spends", tag = "points", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Spend, responses(CommandResponses))]
async fn spend(
    State(commands): State<Commands>,
    Path(user): Path<UserId>,
    sender: Sender,
    Json(body): Json<Spend>,
) -> Result<Accepted, Problem> {
    let Spend { spend, points, product, occurred_at } = body;
    let intent = Intent::Points(Action::Spend { spend, points, product });
    sender.submit(&commands, Right::Spend, user, occurred_at, intent).await
}

/// Give a spend back, whole or in part, into the buckets that it came from.
#[utoipa::path(post, path = "/v1/users/{user}/spends/{spend}/refund", tag = "points",
               params(("user" = UserId, Path), ("spend" = SpendId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<Part>), responses(CommandResponses))]
async fn refund(
    State(commands): State<Commands>,
    Path((user, spend)): Path<(UserId, SpendId)>,
    sender: Sender,
    OptionalJson(body): OptionalJson<Part>,
) -> Result<Accepted, Problem> {
    let intent = Intent::Points(Action::Refund { spend, points: body.points });
    sender.submit(&commands, Right::Settle, user, body.occurred_at, intent).await
}

/// Set points aside.
#[utoipa::path(post, path = "/v1/users/{user}/holds", tag = "points", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Hold, responses(CommandResponses))]
async fn hold(
    State(commands): State<Commands>,
    Path(user): Path<UserId>,
    sender: Sender,
    Json(body): Json<Hold>,
) -> Result<Accepted, Problem> {
    let Hold { hold, points, reason, lifetime_s, occurred_at } = body;
    let intent = Intent::Points(Action::Hold { hold, points, lifetime_s, reason });
    sender.submit(&commands, Right::Settle, user, occurred_at, intent).await
}

/// Spend a hold, or part of it; the rest stays held.
#[utoipa::path(post, path = "/v1/users/{user}/holds/{hold}/capture", tag = "points",
               params(("user" = UserId, Path), ("hold" = HoldId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<Part>), responses(CommandResponses))]
async fn capture(
    State(commands): State<Commands>,
    Path((user, hold)): Path<(UserId, HoldId)>,
    sender: Sender,
    OptionalJson(body): OptionalJson<Part>,
) -> Result<Accepted, Problem> {
    let intent = Intent::Points(Action::Capture { hold, points: body.points });
    sender.submit(&commands, Right::Settle, user, body.occurred_at, intent).await
}

/// Give all that is left of a hold back.
#[utoipa::path(post, path = "/v1/users/{user}/holds/{hold}/release", tag = "points",
               params(("user" = UserId, Path), ("hold" = HoldId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<OnlyWhen>), responses(CommandResponses))]
async fn release(
    State(commands): State<Commands>,
    Path((user, hold)): Path<(UserId, HoldId)>,
    sender: Sender,
    OptionalJson(body): OptionalJson<OnlyWhen>,
) -> Result<Accepted, Problem> {
    let intent = Intent::Points(Action::Release { hold });
    sender.submit(&commands, Right::Settle, user, body.occurred_at, intent).await
}

/// Expire what is due, without waiting for the account's next command.
#[utoipa::path(post, path = "/v1/users/{user}/expirations", tag = "points", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body(content = Option<OnlyWhen>), responses(CommandResponses))]
async fn expire(
    State(commands): State<Commands>,
    Path(user): Path<UserId>,
    sender: Sender,
    OptionalJson(body): OptionalJson<OnlyWhen>,
) -> Result<Accepted, Problem> {
    sender.submit(&commands, Right::Expire, user, body.occurred_at, Intent::Points(Action::Expire)).await
}

/// Correct an account by hand, with a reason.
#[utoipa::path(post, path = "/v1/users/{user}/adjustments", tag = "points", params(("user" = UserId, Path), ("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")),
               request_body = Adjust, responses(CommandResponses))]
async fn adjust(
    State(Sealing { commands, vault }): State<Sealing>,
    Path(user): Path<UserId>,
    sender: Sender,
    Json(body): Json<Adjust>,
) -> Result<Accepted, Problem> {
    let Adjust { bucket, direction, points, reason } = body;
    sender.caller().may(Right::Adjust, user)?;
    let reason = sealed_for_the_books(&vault, user, Purpose::AdjustmentReason, user.0, &reason).await?;
    let intent = Intent::Points(Action::Adjust { bucket, direction, points, reason });
    sender.submit(&commands, Right::Adjust, user, None, intent).await
}
