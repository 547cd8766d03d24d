//! Commands for tips.

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{CommandId, Intent, Points, StreamId, TipId, UserId, WorkId, tip::Step};
use skyriff_edge::{Caller, Json, Kind, Problem, Right, Role};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::submit::{AcceptedBody, Asked, CommandResponses, Sender, accepted};
use crate::{Commands, Receipt};

pub(super) fn routes() -> OpenApiRouter<Commands> {
    OpenApiRouter::new().routes(routes!(tip))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GiveTip {
    /// Who gets it.
    to: UserId,
    /// What the sender pays; the receiver gets it as income, less the platform's share.
    points: Points,
    /// For which work, if for one.
    #[serde(default)]
    work: Option<WorkId>,
    /// Who gives it: the caller, unless a service names somebody.
    #[serde(default)]
    from: Option<UserId>,
    #[serde(default)]
    occurred_at: Option<DateTime<Utc>>,
}

/// A tip that was accepted.
#[derive(Serialize, ToSchema)]
pub(super) struct TipAccepted<'a> {
    /// Made of the caller and the Idempotency-Key: the same for every retry, after any time.
    tip: TipId,
    /// How far it got with this request.
    state: TipProgress,
    /// Where to see what becomes of it.
    location: String,
    #[serde(flatten)]
    accepted: AcceptedBody<'a>,
}

/// How far a tip is.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TipProgress {
    /// The sender's points are reserved; the receiver gets them soon, or the sender gets them back.
    Offered,
    /// The receiver has them.
    Delivered,
}

/// Give points to somebody: bought ones first, then income; never promo points.
///
/// When both users live in one shard, the tip is delivered at once: 201. Otherwise it is on its way: 202, and the address in
/// `Location` says what becomes of it. A tip that the receiver cannot have goes back to the sender.
#[utoipa::path(post, path = "/v1/tips", tag = "tips", params(("Idempotency-Key" = String, Header, pattern = "^[ -~]{1,255}$")), request_body = GiveTip,
    responses(CommandResponses,
              (status = 200, description = "Delivered or offered before, by a request whose key is forgotten: nothing recorded", body = TipAccepted,
               headers(("Location" = String), ("Skyriff-Position" = String, description = "the head of the sender's shard"))),
              (status = 201, description = "Delivered", body = TipAccepted,
               headers(("Location" = String), ("Skyriff-Position" = String), ("Idempotent-Replayed" = bool, description = "true on a replay"))),
              (status = 202, description = "Offered, durably, and on its way", body = TipAccepted,
               headers(("Location" = String, description = "says what becomes of it"), ("Skyriff-Position" = String),
                       ("Idempotent-Replayed" = bool, description = "true on a replay")))))]
async fn tip(State(commands): State<Commands>, sender: Sender, Json(body): Json<GiveTip>) -> Result<Response, Problem> {
    let GiveTip { to, points, work, from, occurred_at } = body;
    let from = giver(sender.caller(), from)?;
    let intent = offer(&commands, from, sender.command_id(), Offer { to, points, work })?;
    let offered = Offered::of(from, &intent);
    let asked = Asked { right: Right::Tip, user: from, said_at: occurred_at, intent };
    let receipt = for_sender(sender.execute(&commands, asked).await?, from);
    let body = AcceptedBody::of(&receipt).map_err(|error| Problem::fault(&error))?;
    // It is one: it was made right here.
    let offered = offered.ok_or(Problem::new(&Kind::FAULT))?;
    let location = HeaderValue::try_from(offered.location()).map_err(|error| Problem::fault(&error))?;
    let mut response = accepted(&receipt, offered.status(&body), &offered.accepted(body));
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// Whose points they are.
fn giver(caller: &Caller, named: Option<UserId>) -> Result<UserId, Problem> {
    let from = named.unwrap_or(UserId(caller.id));
    caller.may(Right::Tip, from)?;
    if named.is_none() && caller.role != Role::User {
        let detail = "from says who gives the tip; only the token of a user says so by itself";
        return Err(Problem::new(&Kind::MALFORMED).detail(detail));
    }
    Ok(from)
}

/// What a client says of a tip.
pub(super) struct Offer {
    pub(super) to: UserId,
    pub(super) points: Points,
    pub(super) work: Option<WorkId>,
}

/// The tip's id is its command's: so its stream remembers the key for ever, longer than command ids are kept.
///
/// # Errors
/// [`Kind::OUT_OF_RANGE`] when it goes to one of the ids that stand for nobody: those points would be gone.
pub(super) fn offer(commands: &Commands, from: UserId, command: CommandId, offer: Offer) -> Result<Intent, Problem> {
    let Offer { to, points, work } = offer;
    let ids = [Some(to.0), work.map(|work| work.0)];
    if ids.iter().flatten().any(|id| id.is_nil() || id.is_max()) {
        let detail = "to and work are neither the nil nor the max UUID (RFC 9562)";
        return Err(Problem::new(&Kind::OUT_OF_RANGE).detail(detail));
    }
    let beside = is_beside(commands, from, to);
    Ok(Intent::Tip(Step::Offer { tip: TipId(command.0), to, points, work, beside }))
}

/// A tip that was offered, for the answer.
#[derive(Clone, Copy)]
pub(super) struct Offered {
    tip: TipId,
    pub(super) from: UserId,
    beside: bool,
}

impl Offered {
    /// None when it is something else.
    pub(super) const fn of(from: UserId, intent: &Intent) -> Option<Self> {
        let Intent::Tip(Step::Offer { tip, beside, .. }) = intent else { return None };
        Some(Self { tip: *tip, from, beside: *beside })
    }

    pub(super) fn status(self, accepted: &AcceptedBody<'_>) -> StatusCode {
        if self.beside { accepted.status() } else { StatusCode::ACCEPTED }
    }

    fn location(self) -> String {
        format!("/v1/users/{}/tips/{}", self.from, self.tip)
    }

    pub(super) fn accepted(self, accepted: AcceptedBody<'_>) -> TipAccepted<'_> {
        let state = if self.beside { TipProgress::Delivered } else { TipProgress::Offered };
        TipAccepted { tip: self.tip, state, location: self.location(), accepted }
    }
}

fn is_beside(commands: &Commands, from: UserId, to: UserId) -> bool {
    commands.shard_of(from) == commands.shard_of(to)
}

/// A tip within one shard is recorded on the receiver's account too, and what else that records (points that expire) is
/// nobody else's to know.
pub(super) fn for_sender(mut receipt: Receipt, from: UserId) -> Receipt {
    receipt
        .recorded
        .retain(|recorded| recorded.stream == StreamId::PointsAccount(from) || !is_account(&recorded.stream));
    receipt
}

const fn is_account(stream: &StreamId) -> bool {
    matches!(stream, StreamId::PointsAccount(_))
}
