//! The numbers of the points rules. What a decision used of them is written into its event, so a changed policy
//! never changes the past.

use super::Refusal;
use crate::Points;

/// The numbers of the points rules, from configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointsPolicy {
    /// Promo points for a check-in.
    pub check_in: Points,
    /// More promo points on every so many days in a row.
    pub streak_bonus: Points,
    /// How many days in a row earn the bonus; 0 for never.
    pub streak_days: u32,
    /// For how many whole days promo points are good after the day on which they were given.
    pub promo_lifetime_days: u32,
    /// How long a hold lasts unless the command says otherwise, in seconds.
    pub hold_lifetime_s: u32,
    /// The longest that a command may ask for, in seconds.
    pub hold_lifetime_max_s: u32,
    /// How many holds an account may have open.
    pub open_holds_max: u32,
    /// For how long a spend may be refunded, in seconds.
    pub refund_window_s: u32,
    /// The most points that one command may move.
    pub amount_max: Points,
}

const DAY_S: u32 = 86_400;

impl PointsPolicy {
    /// What a check-in gives on the `days_in_a_row`-th day in a row.
    pub(super) fn check_in_points(&self, days_in_a_row: u32) -> Points {
        match days_in_a_row.checked_rem(self.streak_days) {
            Some(0) => self.check_in.checked_add(self.streak_bonus).unwrap_or(self.check_in),
            Some(_) | None => self.check_in,
        }
    }

    /// An amount that one command may move.
    pub(super) fn amount(&self, points: Points) -> Result<Points, Refusal> {
        if points.is_zero() || points > self.amount_max {
            return Err(Refusal::AmountOutOfRange { max: self.amount_max });
        }
        Ok(points)
    }
}

impl Default for PointsPolicy {
    fn default() -> Self {
        let points = |points: i64| Points::try_from(points).unwrap_or_default();
        Self {
            check_in: points(10),
            streak_bonus: points(30),
            streak_days: 7,
            promo_lifetime_days: 365,
            hold_lifetime_s: DAY_S,
            hold_lifetime_max_s: 30 * DAY_S,
            open_holds_max: 100,
            refund_window_s: 30 * DAY_S,
            amount_max: points(1_000_000_000),
        }
    }
}
