//! The numbers of withdrawals. What a request used of them is written into its event.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Refusal, Request};
use crate::{Label, Points, Sealed, UserId};

/// An amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// In the currency's smallest unit: fen, cents.
    #[schema(minimum = 0)]
    pub minor: i64,
    /// ISO 4217, in small letters.
    #[schema(example = "cny")]
    pub currency: Label,
}

/// The numbers of withdrawals, from configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithdrawalPolicy {
    /// The fewest points that are worth a payout.
    pub points_min: Points,
    /// The most points that one user may withdraw in one UTC day.
    pub points_per_day: Points,
    /// The same for one month.
    pub points_per_month: Points,
    /// From so many points on, a reviewer has to approve.
    pub review_from: Points,
    /// From so many points on, two different ones have to.
    pub two_reviews_from: Points,
    /// What the platform keeps, in thousandths of the points; at most 1,000.
    pub fee_permille: u16,
    /// What a hundred points are worth, in the currency's smallest unit.
    pub minor_per_100_points: u32,
    /// In which currency.
    pub currency: Label,
}

impl Default for WithdrawalPolicy {
    fn default() -> Self {
        let points = |points: i64| Points::try_from(points).unwrap_or_default();
        Self {
            points_min: points(100),
            points_per_day: points(50_000),
            points_per_month: points(500_000),
            review_from: points(1_000),
            two_reviews_from: points(20_000),
            fee_permille: 10,
            minor_per_100_points: 100,
            currency: Label::of("cny"),
        }
    }
}

impl WithdrawalPolicy {
    /// A request as it is recorded. Fee and money are rounded down: the fee in favour of the user, the money to what
    /// can be paid.
    pub(super) fn request(&self, user: UserId, points: Points, destination: Sealed) -> Result<Request, Refusal> {
        let max = self.points_per_day.min(self.points_per_month);
        if points < self.points_min || points.is_zero() || points > max {
            return Err(Refusal::AmountOutOfRange { min: self.points_min, max });
        }
        let too_much = || Refusal::AmountOutOfRange { min: self.points_min, max };
        let fee = per(points.get(), i64::from(self.fee_permille), 1_000).ok_or_else(too_much)?;
        let fee = Points::try_from(fee).unwrap_or_default().min(points);
        let paid = points.checked_sub(fee).unwrap_or_default();
        let minor = per(paid.get(), i64::from(self.minor_per_100_points), 100).ok_or_else(too_much)?;
        if minor == 0 {
            return Err(Refusal::WorthNothing { points });
        }
        let reviews_needed = match points {
            points if points >= self.two_reviews_from => 2,
            points if points >= self.review_from => 1,
            _ => 0,
        };
        let money = Money { minor, currency: self.currency.clone() };
        Ok(Request { user, points, fee, money, destination, reviews_needed })
    }
}

/// `amount * rate / unit`, rounded down; nothing when that is more than there are numbers for.
fn per(amount: i64, rate: i64, unit: i64) -> Option<i64> {
    let whole = i128::from(amount) * i128::from(rate) / i128::from(unit.max(1));
    i64::try_from(whole).ok()
}
