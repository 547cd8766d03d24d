//! Points: whole, never negative, and kept apart by what they may do.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most points that one amount, and one account in all, may hold: 10¹⁵. Sums of any nine thousand such amounts
/// fit an `i64`, so no sum over one account's parts can overflow.
pub const POINTS_MAX: i64 = 1_000_000_000_000_000;

/// An amount of points: whole, 0 to [`POINTS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "i64", into = "i64")]
#[schema(value_type = i64, minimum = 0, maximum = 1_000_000_000_000_000_i64, example = 50)]
pub struct Points(i64);

/// The number is negative or above [`POINTS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("points are a whole number from 0 to {POINTS_MAX}")]
pub struct OutOfRange;

impl Points {
    /// None at all.
    pub const ZERO: Self = Self(0);
    /// [`POINTS_MAX`].
    pub const MAX: Self = Self(POINTS_MAX);

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Nothing to move.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// `None` above [`POINTS_MAX`].
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(|sum| Self::try_from(sum).ok())
    }

    /// `None` below zero.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).and_then(|rest| Self::try_from(rest).ok())
    }

    /// Only for folding events, whose amounts the decision has checked: folding is total.
    fn folded_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// As [`Points::folded_add`].
    fn folded_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }
}

impl TryFrom<i64> for Points {
    type Error = OutOfRange;

    fn try_from(points: i64) -> Result<Self, OutOfRange> {
        if (0..=POINTS_MAX).contains(&points) { Ok(Self(points)) } else { Err(OutOfRange) }
    }
}

impl From<Points> for i64 {
    fn from(points: Points) -> Self {
        points.0
    }
}

impl fmt::Display for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What points may do depends on where they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// Given by the platform; expires.
    Promo,
    /// Bought; refundable.
    Paid,
    /// Received from others; the only bucket that can be withdrawn.
    Income,
}

impl Bucket {
    /// All of them, in the order in which they are spent.
    pub const ALL: [Self; 3] = [Self::Promo, Self::Paid, Self::Income];

    /// As it is written in accounts, columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promo => "promo",
            Self::Paid => "paid",
            Self::Income => "income",
        }
    }
}

/// Points by bucket; promo points in lots by the moment at which they expire.
///
/// The same shape serves for what an account has, for what a hold sets aside, and for what an event moved: so a
/// release or a refund can put every point back where it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Purse {
    /// Points by the moment at which they expire.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = std::collections::HashMap<String, i64>)]
    pub promo: BTreeMap<DateTime<Utc>, Points>,
    /// Bought points.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub paid: Points,
    /// Received points.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub income: Points,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(points: &Points) -> bool {
    points.is_zero()
}

impl Purse {
    /// Promo points that expire at one moment.
    pub fn promo(points: Points, expires_at: DateTime<Utc>) -> Self {
        Self { promo: BTreeMap::from([(expires_at, points)]), ..Self::default() }
    }

    /// Bought points.
    pub fn paid(points: Points) -> Self {
        Self { paid: points, ..Self::default() }
    }

    /// Received points.
    pub fn income(points: Points) -> Self {
        Self { income: points, ..Self::default() }
    }

    /// How much there is of one bucket.
    pub fn of(&self, bucket: Bucket) -> Points {
        match bucket {
            Bucket::Promo => self.promo.values().fold(Points::ZERO, |sum, lot| sum.folded_add(*lot)),
            Bucket::Paid => self.paid,
            Bucket::Income => self.income,
        }
    }

    /// How much there is in all.
    pub fn total(&self) -> Points {
        Bucket::ALL.iter().fold(Points::ZERO, |sum, bucket| sum.folded_add(self.of(*bucket)))
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.promo.is_empty() && self.paid.is_zero() && self.income.is_zero()
    }

    /// The part that pays `points` in spending order: promo (what expires first goes first), then paid, then income.
    /// `None` when there is not enough.
    pub fn part_to_spend(&self, points: Points) -> Option<Self> {
        let mut missing = points;
        let mut part = Self::default();
        for (expires_at, lot) in &self.promo {
            if missing.is_zero() {
                break;
            }
            part.promo.insert(*expires_at, take(*lot, &mut missing));
        }
        part.paid = take(self.paid, &mut missing);
        part.income = take(self.income, &mut missing);
        missing.is_zero().then_some(part)
    }

    /// The part that gives `points` back, in the opposite order: income, then paid, then promo (what expires last
    /// first). `None` when there is not enough.
    pub fn part_to_return(&self, points: Points) -> Option<Self> {
        let mut missing = points;
        let mut part = Self { income: take(self.income, &mut missing), ..Self::default() };
        part.paid = take(self.paid, &mut missing);
        for (expires_at, lot) in self.promo.iter().rev() {
            if missing.is_zero() {
                break;
            }
            part.promo.insert(*expires_at, take(*lot, &mut missing));
        }
        missing.is_zero().then_some(part)
    }

    /// The part of one bucket only; `None` when there is not enough of it.
    pub fn part_of(&self, bucket: Bucket, points: Points) -> Option<Self> {
        let only = match bucket {
            Bucket::Promo => Self { promo: self.promo.clone(), ..Self::default() },
            Bucket::Paid => Self::paid(self.paid),
            Bucket::Income => Self::income(self.income),
        };
        only.part_to_spend(points)
    }

    /// The promo lots that expire at `at` or before.
    pub fn due(&self, at: DateTime<Utc>) -> Self {
        let promo = self.promo.range(..=at).map(|(expires_at, lot)| (*expires_at, *lot)).collect();
        Self { promo, ..Self::default() }
    }

    /// Put a part in. Total: the decision has checked that it fits.
    pub fn put(&mut self, part: &Self) {
        for (expires_at, lot) in part.promo.iter().filter(|(_, lot)| !lot.is_zero()) {
            let have = self.promo.entry(*expires_at).or_default();
            *have = have.folded_add(*lot);
        }
        self.paid = self.paid.folded_add(part.paid);
        self.income = self.income.folded_add(part.income);
    }

    /// Take a part out. Total: the decision has checked that it is there.
    pub fn take(&mut self, part: &Self) {
        for (expires_at, lot) in &part.promo {
            if let Some(have) = self.promo.get_mut(expires_at) {
                *have = have.folded_sub(*lot);
                if have.is_zero() {
                    self.promo.remove(expires_at);
                }
            }
        }
        self.paid = self.paid.folded_sub(part.paid);
        self.income = self.income.folded_sub(part.income);
    }
}

/// As much of `have` as is missing.
fn take(have: Points, missing: &mut Points) -> Points {
    let taken = have.min(*missing);
    *missing = missing.folded_sub(taken);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(day: u32) -> DateTime<Utc> {
        chrono::NaiveDate::from_ymd_opt(2026, 1, day).unwrap().and_hms_opt(0, 0, 0).unwrap().and_utc()
    }

    fn points(points: i64) -> Points {
        points.try_into().unwrap()
    }

    fn purse(lots: &[(u32, i64)], paid: i64, income: i64) -> Purse {
        let promo = lots.iter().map(|(d, lot)| (day(*d), points(*lot))).collect();
        Purse { promo, paid: points(paid), income: points(income) }
    }

    #[test]
    fn spends_what_expires_first_and_returns_in_the_opposite_order() {
        let have = purse(&[(3, 10), (1, 5)], 7, 4);
        let table = [
            (0, Some(purse(&[], 0, 0)), Some(purse(&[], 0, 0))),
            (4, Some(purse(&[(1, 4)], 0, 0)), Some(purse(&[], 0, 4))),
            (8, Some(purse(&[(1, 5), (3, 3)], 0, 0)), Some(purse(&[], 4, 4))),
            (17, Some(purse(&[(1, 5), (3, 10)], 2, 0)), Some(purse(&[(3, 6)], 7, 4))),
            (26, Some(have.clone()), Some(have.clone())),
            (27, None, None),
        ];
        for (amount, spent, returned) in table {
            assert_eq!(have.part_to_spend(points(amount)), spent, "spend {amount}");
            assert_eq!(have.part_to_return(points(amount)), returned, "return {amount}");
        }
    }

    #[test]
    fn takes_one_bucket_only_when_asked() {
        let have = purse(&[(1, 5)], 7, 4);
        assert_eq!(have.part_of(Bucket::Income, points(4)), Some(purse(&[], 0, 4)));
        assert_eq!(have.part_of(Bucket::Income, points(5)), None);
        assert_eq!(have.part_of(Bucket::Promo, points(2)), Some(purse(&[(1, 2)], 0, 0)));
    }

    #[test]
    fn amounts_are_bounded() {
        assert_eq!(Points::try_from(-1), Err(OutOfRange));
        assert_eq!(Points::try_from(POINTS_MAX + 1), Err(OutOfRange));
        assert_eq!(points(POINTS_MAX).checked_add(points(1)), None);
        assert_eq!(points(1).checked_sub(points(2)), None);
        assert!(serde_json::from_str::<Points>("1.5").is_err());
        assert!(serde_json::from_str::<Points>("-1").is_err());
    }
}
