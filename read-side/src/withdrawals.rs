//! Withdrawals: their owners' (`own`), and those that wait for somebody to decide (`queue`).
//!
//! Where a withdrawal goes is stored as it is in its event, sealed. It is opened here for owners and reviewers, to be
//! shown masked; nobody sees it in the clear. When the keys cannot be reached, everything else is shown.

pub(crate) mod own;
pub(crate) mod queue;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use skyriff_domain::{
    Label, Sealed, UserId, WithdrawalId,
    withdrawal::{Money, Status},
};
use skyriff_edge::{Caller, Kind, Problem, Role};
use skyriff_vault::{Column, Error, Masked, Purpose, Vault};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::replicas::Replicas;

const LIMIT_DEFAULT: i64 = 20;
const LIMIT_MAX: i64 = 100;

/// What these queries need: who answers, and who opens what is sealed.
#[derive(Clone, Debug)]
pub(crate) struct Withdrawals {
    pub(crate) replicas: Replicas,
    pub(crate) vault: Vault,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// How many withdrawals.
    #[param(minimum = 1, maximum = 100, default = 20)]
    #[serde(default)]
    limit: Option<i64>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// Income on its way to becoming money.
#[derive(Serialize, ToSchema)]
struct Withdrawal {
    withdrawal: WithdrawalId,
    user: UserId,
    status: Status,
    /// The fee included.
    points: i64,
    /// What the platform keeps of them.
    fee: i64,
    /// What is paid for the others.
    money: Money,
    /// For its owner and for reviewers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<ShownDestination>,
    /// How many different reviewers have to approve.
    reviews_needed: i16,
    /// How many have.
    approvals: usize,
    /// Why it was rejected, has failed or needs attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What the provider calls the payout.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    requested_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    /// Not for its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    decided: Option<Decided>,
    /// For reviewers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    risk: Option<Risk>,
}

/// Where the money goes.
#[derive(Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
enum ShownDestination {
    /// As much of it as may be shown.
    Masked(Masked),
    /// The person asked to be forgotten.
    Erased,
    /// It cannot be opened now; ask again later.
    Unavailable,
}

/// By whom.
#[derive(Serialize, ToSchema)]
struct Decided {
    approved_by: Vec<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_by: Option<UserId>,
    /// Which provider pays.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<Label>,
}

/// What is known of the person, as of this answer.
#[derive(Serialize, ToSchema)]
struct Risk {
    /// When the account first had points moved.
    account_since: DateTime<Utc>,
    /// All income that the person ever had, in points, by where it came from.
    income: IncomeSources,
    /// What became of the person's withdrawals that are over.
    withdrawals: Outcomes,
}

#[derive(Serialize, ToSchema)]
struct IncomeSources {
    earned: i64,
    tips: i64,
    /// By hand; negative when more was taken than given.
    adjusted: i64,
}

#[derive(Serialize, ToSchema)]
struct Outcomes {
    paid: Sum,
    failed: Sum,
    rejected: Sum,
    cancelled: Sum,
}

#[derive(Serialize, ToSchema)]
struct Sum {
    count: i64,
    points: i64,
}

/// As the projection has it. Read as JSON, so that rows and checkpoints come in one statement.
#[derive(Clone, Deserialize)]
struct Row {
    withdrawal_id: Uuid,
    user_id: Uuid,
    status: Status,
    points: i64,
    fee: i64,
    minor: i64,
    currency: Label,
    destination: Sealed,
    reviews_needed: i16,
    approved_by: Vec<Uuid>,
    rejected_by: Option<Uuid>,
    reason: Option<String>,
    provider: Option<Label>,
    reference: Option<String>,
    requested_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    requested_position: i64,
    risk: Option<RiskRow>,
}

#[derive(Clone, Deserialize)]
struct RiskRow {
    first_seen_at: DateTime<Utc>,
    earned_points: i64,
    tips_points: i64,
    adjusted_points: i64,
    paid_count: i64,
    paid_points: i64,
    failed_count: i64,
    failed_points: i64,
    rejected_count: i64,
    rejected_points: i64,
    cancelled_count: i64,
    cancelled_points: i64,
}

/// Rows as this caller may see them.
async fn shown(vault: &Vault, caller: &Caller, rows: Vec<Row>) -> Vec<Withdrawal> {
    let destinations = if matches!(caller.role, Role::User | Role::Reviewer) {
        let sealed = |row: &'_ Row| (UserId(row.user_id), WithdrawalId(row.withdrawal_id));
        let sealed: Vec<_> = rows
            .iter()
            .map(|row| {
                let (user, withdrawal) = sealed(row);
                (user, withdrawal, &row.destination)
            })
            .collect();
        vault.open_destinations(&sealed).await.into_iter().map(|opened| Some(masked(opened))).collect()
    } else {
        rows.iter().map(|_| None).collect::<Vec<_>>()
    };
    let columns: Vec<_> = rows
        .iter()
        .map(|row| Column {
            person: UserId(row.user_id),
            purpose: Purpose::WithdrawalReason,
            thing: row.withdrawal_id,
            text: row.reason.as_deref().unwrap_or_default(),
        })
        .collect();
    let opened = vault.open_columns(&columns).await;
    let rows = rows.into_iter().zip(opened).map(|(row, opened)| Row { reason: row.reason.and(opened), ..row });
    rows.zip(destinations).map(|(row, destination)| body(caller.role, row, destination)).collect()
}

fn masked(opened: Result<skyriff_vault::Destination, Error>) -> ShownDestination {
    match opened {
        Ok(destination) => ShownDestination::Masked(destination.masked()),
        Err(Error::Erased) => ShownDestination::Erased,
        Err(error @ (Error::NoKey | Error::UnknownMasterKey(_) | Error::Damaged | Error::Unavailable(_))) => {
            tracing::warn!(%error, "a destination cannot be opened, and is not shown");
            ShownDestination::Unavailable
        }
    }
}

fn body(role: Role, row: Row, destination: Option<ShownDestination>) -> Withdrawal {
    let approvals = row.approved_by.len();
    let decided = (role != Role::User).then(|| Decided {
        approved_by: row.approved_by.into_iter().map(UserId).collect(),
        rejected_by: row.rejected_by.map(UserId),
        provider: row.provider,
    });
    Withdrawal {
        withdrawal: WithdrawalId(row.withdrawal_id),
        user: UserId(row.user_id),
        status: row.status,
        points: row.points,
        fee: row.fee,
        money: Money { minor: row.minor, currency: row.currency },
        destination,
        reviews_needed: row.reviews_needed,
        approvals,
        // Until a person has looked, why is between us and the provider.
        reason: row.reason.filter(|_| role != Role::User || row.status != Status::NeedsAttention),
        reference: row.reference,
        requested_at: row.requested_at,
        updated_at: row.updated_at,
        decided,
        risk: row.risk.filter(|_| role == Role::Reviewer).map(risk),
    }
}

fn risk(row: RiskRow) -> Risk {
    let sum = |count, points| Sum { count, points };
    Risk {
        account_since: row.first_seen_at,
        income: IncomeSources { earned: row.earned_points, tips: row.tips_points, adjusted: row.adjusted_points },
        withdrawals: Outcomes {
            paid: sum(row.paid_count, row.paid_points),
            failed: sum(row.failed_count, row.failed_points),
            rejected: sum(row.rejected_count, row.rejected_points),
            cancelled: sum(row.cancelled_count, row.cancelled_points),
        },
    }
}

impl Page {
    /// How many, and after which.
    fn read<C>(&self, decode: impl Fn(&str) -> Option<C>) -> Result<(i64, Option<C>), Problem> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Problem::new(&Kind::MALFORMED).detail(format!("limit is 1 to {LIMIT_MAX}")));
        }
        let decoded = self.cursor.as_ref().map(|text| {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            decode(std::str::from_utf8(&bytes).ok()?)
        });
        match decoded {
            None => Ok((limit, None)),
            Some(Some(cursor)) => Ok((limit, Some(cursor))),
            Some(None) => Err(Problem::new(&Kind::MALFORMED).detail("cursor is not one of ours")),
        }
    }
}

/// The page's rows out of one more, and the cursor of the next page if there is one. Opaque to clients.
fn paged(mut rows: Vec<Row>, limit: i64, encode: impl Fn(&Row) -> String) -> (Vec<Row>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| URL_SAFE_NO_PAD.encode(encode(row)));
    (rows, next)
}
