//! What happened to an account.

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};

use super::Direction;
use crate::{HoldId, Label, Note, OrderId, Points, Purse, Sealed, SpendId, TipId, UserId, WithdrawalId};

/// What happened to an account. Kept for ever: a changed shape is a new version with an upcaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The day's points were given.
    CheckedIn {
        /// The UTC day.
        day: NaiveDate,
        /// Days in a row, this one included.
        days_in_a_row: u32,
        /// Base and bonus together.
        points: Points,
        /// When they expire.
        expires_at: DateTime<Utc>,
    },
    /// Points came from the platform.
    Earned {
        /// With the lot's end, when promo.
        credited: Purse,
        /// For what.
        reason: Label,
    },
    /// Points were bought.
    Recharged {
        /// The payment.
        order: OrderId,
        /// How many.
        points: Points,
    },
    /// Points went for a product.
    Spent {
        /// Which spend.
        spend: SpendId,
        /// From where.
        taken: Purse,
        /// For what.
        product: Label,
        /// A refund is possible before this moment.
        refundable_until: DateTime<Utc>,
        /// Whose revenue it is: the product's. Events from before revenue was kept by product do not have it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revenue: Option<Label>,
    },
    /// Points were set aside.
    Held {
        /// Which hold.
        hold: HoldId,
        /// From where.
        taken: Purse,
        /// For what.
        reason: Label,
        /// Released at this moment unless captured before; without one it stays until what it is for ends it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<DateTime<Utc>>,
    },
    /// Held points were spent.
    Captured {
        /// Which hold.
        hold: HoldId,
        /// The part.
        taken: Purse,
        /// Whose revenue it is: the product's. Events from before revenue was kept by product do not have it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revenue: Option<Label>,
    },
    /// What was left of a hold went back.
    Released {
        /// Which hold.
        hold: HoldId,
        /// All that was left.
        returned: Purse,
        /// Why.
        cause: ReleaseCause,
    },
    /// A spend, or part of it, went back.
    Refunded {
        /// Which spend.
        spend: SpendId,
        /// Into where.
        returned: Purse,
        /// Whose revenue it was: as the spend has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revenue: Option<Label>,
    },
    /// Promo points reached their end.
    Expired {
        /// The lots.
        lots: Purse,
    },
    /// Corrected by hand.
    Adjusted {
        /// Up or down.
        direction: Direction,
        /// Which points.
        moved: Purse,
        /// Why.
        reason: Note,
        /// The same, when a person has said it: for whoever has the key of the person whom it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Sealed>,
    },
    /// The points held for a tip went on their way.
    TipPaid {
        /// Which tip.
        tip: TipId,
        /// To whom.
        to: UserId,
        /// All that was held for it.
        taken: Purse,
    },
    /// A tip arrived.
    TipReceived {
        /// Which tip.
        tip: TipId,
        /// From whom.
        from: UserId,
        /// What the receiver got.
        income: Points,
        /// What the platform kept.
        share: Points,
    },
    /// The points held for a withdrawal are with the payout provider.
    PayoutStarted {
        /// Which withdrawal.
        withdrawal: WithdrawalId,
        /// All that was held for it.
        taken: Purse,
    },
    /// A withdrawal was paid.
    PaidOut {
        /// Which withdrawal.
        withdrawal: WithdrawalId,
        /// What went out as money.
        points: Points,
        /// What the platform kept.
        fee: Points,
    },
    /// A withdrawal was not paid.
    PayoutReturned {
        /// Which withdrawal.
        withdrawal: WithdrawalId,
        /// All that was taken for it.
        returned: Purse,
    },
}

/// Why a hold ended without being captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseCause {
    /// Somebody asked.
    Requested,
    /// Its time was over.
    Expired,
    /// What it was reserved for did not come about, or took less.
    Undone,
}

crate::stored::stored_by_name!(Event);

impl Event {
    /// The version of every variant so far.
    pub const VERSION: &str = "1";

    /// As stored in `event_type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CheckedIn { .. } => "checked_in",
            Self::Earned { .. } => "earned",
            Self::Recharged { .. } => "recharged",
            Self::Spent { .. } => "spent",
            Self::Held { .. } => "held",
            Self::Captured { .. } => "captured",
            Self::Released { .. } => "released",
            Self::Refunded { .. } => "refunded",
            Self::Expired { .. } => "expired",
            Self::Adjusted { .. } => "adjusted",
            Self::TipPaid { .. } => "tip_paid",
            Self::TipReceived { .. } => "tip_received",
            Self::PayoutStarted { .. } => "payout_started",
            Self::PaidOut { .. } => "paid_out",
            Self::PayoutReturned { .. } => "payout_returned",
        }
    }
}
