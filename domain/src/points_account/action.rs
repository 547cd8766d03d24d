//! What an account can be asked to do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Bucket, HoldId, Label, OrderId, Points, SpendId, TipId, UserId, WithdrawalId, Words};

/// What an account can be asked to do. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Once a UTC day; every so many days in a row earn a bonus.
    CheckIn,
    /// Points from the platform: promo for tasks, income for a creator's earnings.
    Earn {
        /// Promo or income; paid points only come from a recharge.
        bucket: Bucket,
        /// How many; not zero.
        points: Points,
        /// For what.
        reason: Label,
    },
    /// Points bought with a payment. That an order is credited once is the order's own stream to see to.
    Recharge {
        /// The payment.
        order: OrderId,
        /// How many; not zero.
        points: Points,
    },
    /// Points for a product, at once; may be refunded for a while.
    Spend {
        /// Chosen by the caller.
        spend: SpendId,
        /// How many; not zero.
        points: Points,
        /// For what.
        product: Label,
    },
    /// Points set aside until captured, released or over.
    Hold {
        /// Chosen by the caller.
        hold: HoldId,
        /// How many; not zero.
        points: Points,
        /// For how long, in seconds; the policy's default unless given.
        lifetime_s: Option<u32>,
        /// For what.
        reason: Label,
    },
    /// Spend a hold, or part of it; the rest stays held.
    Capture {
        /// Which.
        hold: HoldId,
        /// All that is left unless given.
        points: Option<Points>,
    },
    /// Give back all that is left of a hold.
    Release {
        /// Which.
        hold: HoldId,
    },
    /// Give back a spend, or part of it, into the buckets that it came from.
    Refund {
        /// Which.
        spend: SpendId,
        /// All that is left unless given.
        points: Option<Points>,
    },
    /// Only expire what is due.
    Expire,
    /// Correct by hand.
    Adjust {
        /// Which points.
        bucket: Bucket,
        /// Up or down.
        direction: Direction,
        /// How many; not zero.
        points: Points,
        /// Why, for whoever reads the books.
        reason: Words,
    },
    /// Set points aside for something that takes its time, such as a tip or a payout: until that ends them, and no
    /// longer or shorter. Only other decisions ask for it, and only they can end it.
    Reserve {
        /// Named after what it is for.
        hold: HoldId,
        /// How many; not zero.
        points: Points,
        /// Which points may be taken.
        from: Source,
        /// For what.
        purpose: Label,
    },
    /// End a reserve: what it was for did not come about.
    Undo {
        /// Which.
        hold: HoldId,
    },
    /// End a reserve: pay what was used of it, and give the rest back.
    Use {
        /// Which.
        hold: HoldId,
        /// How many.
        points: Points,
        /// What was paid with them.
        product: Label,
    },
    /// Hand the points that a tip has reserved over.
    PayTip {
        /// Which; its id names the hold.
        tip: TipId,
        /// To whom.
        to: UserId,
    },
    /// Receive a tip.
    ReceiveTip {
        /// Which.
        tip: TipId,
        /// From whom.
        from: UserId,
        /// What the receiver gets.
        income: Points,
        /// What the platform keeps.
        share: Points,
    },
    /// The payout of a reserved withdrawal is under way.
    StartPayout {
        /// Which; its id names the hold.
        withdrawal: WithdrawalId,
    },
    /// It was paid.
    FinishPayout {
        /// Which.
        withdrawal: WithdrawalId,
        /// The platform's part of the points.
        fee: Points,
    },
    /// It was not, and the points come back.
    ReturnPayout {
        /// Which.
        withdrawal: WithdrawalId,
    },
}

/// Which points may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Source {
    /// All of them, in spending order.
    Any,
    /// All but promo points.
    NotPromo,
    /// Income only.
    Income,
}

/// Whether an adjustment gives or takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AdjustmentDirection)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Points are given.
    Credit,
    /// Points are taken.
    Debit,
}
