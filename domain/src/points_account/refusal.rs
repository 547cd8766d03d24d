//! Why an account said no.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::{HoldId, Points, SpendId, points::POINTS_MAX};

/// Why an account said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// One check-in a UTC day.
    #[error("already checked in on {day}")]
    AlreadyCheckedIn {
        /// The day asked for.
        day: NaiveDate,
    },
    /// Days are checked in from the past to the future.
    #[error("{day} is before the last check-in, on {last}")]
    CheckInBeforeLast {
        /// The day asked for.
        day: NaiveDate,
        /// The last one.
        last: NaiveDate,
    },
    /// Not that many available, after what was due has expired.
    #[error("{asked} points asked for, {available} available")]
    InsufficientPoints {
        /// How many were asked for.
        asked: Points,
        /// How many there are.
        available: Points,
    },
    /// Zero, or more than one command may move.
    #[error("an amount is 1 to {max} points")]
    AmountOutOfRange {
        /// The policy's limit.
        max: Points,
    },
    /// The account would pass [`POINTS_MAX`].
    #[error("an account holds at most {POINTS_MAX} points")]
    AccountFull,
    /// Paid points only come from a recharge.
    #[error("points are earned as promo or income, never as paid")]
    EarnedAsPaid,
    /// The id is taken by a hold that is still open.
    #[error("hold {0} is open already")]
    HoldExists(HoldId),
    /// No such open hold: never opened, captured whole, released or expired; or it is reserved for something that ends
    /// it itself.
    #[error("no open hold {0}")]
    HoldNotFound(HoldId),
    /// More was asked of a hold than is left.
    #[error("{asked} points asked of a hold of {left}")]
    HoldTooSmall {
        /// How many were asked for.
        asked: Points,
        /// How many are left.
        left: Points,
    },
    /// Open holds are bounded.
    #[error("{max} holds are open, which is the limit")]
    TooManyHolds {
        /// The policy's limit.
        max: u32,
    },
    /// A hold lasts at least a second, and no longer than the policy says.
    #[error("a hold lasts 1 to {max_s} seconds")]
    HoldLifetimeOutOfRange {
        /// The policy's limit.
        max_s: u32,
    },
    /// The id is taken by a spend that the account still remembers for refunds.
    #[error("spend {0} exists already")]
    SpendExists(SpendId),
    /// No such refundable spend: never made, refunded whole, or too long ago.
    #[error("no refundable spend {0}")]
    SpendNotFound(SpendId),
    /// More was asked back than was spent.
    #[error("{asked} points asked back of a spend of {left}")]
    SpendTooSmall {
        /// How many were asked for.
        asked: Points,
        /// How many are left to refund.
        left: Points,
    },
    /// The time is outside what the calendar can say.
    #[error("the time is out of range")]
    TimeOutOfRange,
}
