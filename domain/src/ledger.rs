//! The books: every event as postings between accounts that sum to zero.
//!
//! A pure function of the event, so the ledger can be written again from the log at any time, and nobody can move a
//! point without an event. A positive amount means that the account has more points than before.

pub mod chart;

use std::fmt;

use crate::{
    Bucket, Event, Label, Points, Purse, StreamId, UserId, points_account,
    points_account::{Direction, ReleaseCause},
    video_job,
    video_job::Cost,
};

/// An account in the books.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// A user's own points.
    User {
        /// Whose.
        user: UserId,
        /// Spendable, or set aside.
        standing: Standing,
        /// Which.
        bucket: Bucket,
    },
    /// Where points come from; negative by all the points that were ever given out for this reason.
    Issuance(Issuance),
    /// What users spent on a product; on any, in events from before revenue was kept by product.
    Revenue(Option<Label>),
    /// What nobody spent in time.
    Expiry,
    /// Tips that have left one account and not reached the other, or the other way round: zero when none is under way.
    Transit,
    /// The platform's part of tips.
    TipShare,
    /// What payouts are under way with.
    Payouts(Payouts),
    /// The platform's part of withdrawals.
    WithdrawalFee,
    /// What providers wanted for making videos, in millionths of a currency's unit.
    ProviderCost(Label),
    /// The other side of it: negative by all that providers ever wanted.
    ProviderPayable(Label),
}

/// What an account counts. The postings of an event sum to zero in each unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// Points.
    Points,
    /// Millionths of a currency's unit.
    Micros(Label),
}

/// How far a payout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payouts {
    /// With the provider; nobody knows yet.
    Pending,
    /// Gone, as money.
    Paid,
}

/// Whether a user can use the points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// May be spent or held.
    Available,
    /// Set aside by a hold.
    Held,
}

/// Why the platform gave points out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Issuance {
    /// For checking in.
    CheckIn,
    /// For tasks, and as creators' earnings.
    Earning,
    /// For money.
    Recharge,
    /// By hand.
    Adjustment,
}

/// One line of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Which account.
    pub account: Account,
    /// By how many points it changed.
    pub amount: i64,
}

impl Account {
    /// Whose account it is; the platform's when nobody's.
    pub const fn user(&self) -> Option<UserId> {
        match self {
            Self::User { user, .. } => Some(*user),
            Self::Issuance(_)
            | Self::Revenue(_)
            | Self::Expiry
            | Self::Transit
            | Self::TipShare
            | Self::Payouts(_)
            | Self::WithdrawalFee
            | Self::ProviderCost(_)
            | Self::ProviderPayable(_) => None,
        }
    }

    /// What it counts.
    pub fn unit(&self) -> Unit {
        match self {
            Self::ProviderCost(currency) | Self::ProviderPayable(currency) => Unit::Micros(currency.clone()),
            Self::User { .. }
            | Self::Issuance(_)
            | Self::Revenue(_)
            | Self::Expiry
            | Self::Transit
            | Self::TipShare
            | Self::Payouts(_)
            | Self::WithdrawalFee => Unit::Points,
        }
    }
}

/// The account's name in the chart of accounts, without the user: `user:available:promo`, `platform:revenue`.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { standing: Standing::Available, bucket, .. } => write!(f, "user:available:{}", bucket.as_str()),
            Self::User { standing: Standing::Held, bucket, .. } => write!(f, "user:held:{}", bucket.as_str()),
            Self::Issuance(Issuance::CheckIn) => f.write_str("platform:issuance:check_in"),
            Self::Issuance(Issuance::Earning) => f.write_str("platform:issuance:earning"),
            Self::Issuance(Issuance::Recharge) => f.write_str("platform:issuance:recharge"),
            Self::Issuance(Issuance::Adjustment) => f.write_str("platform:issuance:adjustment"),
            Self::Revenue(None) => f.write_str("platform:revenue"),
            Self::Revenue(Some(product)) => write!(f, "platform:revenue:{product}"),
            Self::Expiry => f.write_str("platform:expiry"),
            Self::Transit => f.write_str("platform:transit"),
            Self::TipShare => f.write_str("platform:tip_share"),
            Self::Payouts(Payouts::Pending) => f.write_str("platform:payouts:pending"),
            Self::Payouts(Payouts::Paid) => f.write_str("platform:payouts:paid"),
            Self::WithdrawalFee => f.write_str("platform:withdrawal_fee"),
            Self::ProviderCost(currency) => write!(f, "platform:provider_cost:{currency}"),
            Self::ProviderPayable(currency) => write!(f, "platform:provider_payable:{currency}"),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Points => f.write_str("points"),
            Self::Micros(currency) => write!(f, "millionths of {currency}"),
        }
    }
}

/// What an event means in the books. The amounts of one event always sum to zero in each unit.
pub fn postings(stream: &StreamId, event: &Event) -> Vec<Posting> {
    match event {
        Event::PointsAccount(event) => match stream {
            StreamId::PointsAccount(user) => of_points_account(*user, event),
            // No such event can be decoded.
            StreamId::RechargeOrder(_)
            | StreamId::Like(_)
            | StreamId::Tip(_)
            | StreamId::TipReceipt(_)
            | StreamId::Withdrawal(_)
            | StreamId::WithdrawalAllowance(_)
            | StreamId::VideoJob(_)
            | StreamId::VideoSlots(_)
            | StreamId::Work(_)
            | StreamId::Erasure(_)
            | StreamId::Reconciliation(_)
            | StreamId::ReconciliationException(_) => Vec::new(),
        },
        Event::VideoJob(event) => of_video_job(event),
        // They say what becomes of something; what it does to points is the account's events'.
        Event::RechargeOrder(_)
        | Event::Like(_)
        | Event::Tip(_)
        | Event::TipReceipt(_)
        | Event::Withdrawal(_)
        | Event::WithdrawalAllowance(_)
        | Event::VideoSlots(_)
        | Event::Work(_)
        | Event::Erasure(_)
        | Event::Reconciliation(_)
        | Event::ReconciliationException(_) => Vec::new(),
    }
}

fn of_points_account(user: UserId, event: &points_account::Event) -> Vec<Posting> {
    use points_account::Event as E;
    let available = User { user, standing: Standing::Available };
    let held = User { user, standing: Standing::Held };
    match event {
        E::CheckedIn { points, expires_at, day: _, days_in_a_row: _ } => {
            let credited = Purse::promo(*points, *expires_at);
            between(&Account::Issuance(Issuance::CheckIn), &available, &credited)
        }
        E::Earned { credited, reason: _ } => between(&Account::Issuance(Issuance::Earning), &available, credited),
        E::Recharged { points, order: _ } => {
            between(&Account::Issuance(Issuance::Recharge), &available, &Purse::paid(*points))
        }
        E::Spent { taken, revenue, spend: _, product: _, refundable_until: _ } => {
            between(&available, &Account::Revenue(revenue.clone()), taken)
        }
        E::Held { taken, hold: _, reason: _, expires_at: _ } => between(&available, &held, taken),
        E::Captured { taken, revenue, hold: _ } => between(&held, &Account::Revenue(revenue.clone()), taken),
        E::Released {
            returned,
            hold: _,
            cause: ReleaseCause::Requested | ReleaseCause::Expired | ReleaseCause::Undone,
        } => between(&held, &available, returned),
        E::Refunded { returned, revenue, spend: _ } => {
            between(&Account::Revenue(revenue.clone()), &available, returned)
        }
        E::Expired { lots } => between(&available, &Account::Expiry, lots),
        E::Adjusted { direction: Direction::Credit, moved, reason: _, words: _ } => {
            between(&Account::Issuance(Issuance::Adjustment), &available, moved)
        }
        E::Adjusted { direction: Direction::Debit, moved, reason: _, words: _ } => {
            between(&available, &Account::Issuance(Issuance::Adjustment), moved)
        }
        E::TipPaid { taken, tip: _, to: _ } => between(&held, &Account::Transit, taken),
        E::TipReceived { income, share, tip: _, from: _ } => {
            split(&Account::Transit, (&available, *income), (&Account::TipShare, *share))
        }
        E::PayoutStarted { taken, withdrawal: _ } => between(&held, &Account::Payouts(Payouts::Pending), taken),
        E::PaidOut { points, fee, withdrawal: _ } => {
            let paid = (&Account::Payouts(Payouts::Paid), *points);
            split(&Account::Payouts(Payouts::Pending), paid, (&Account::WithdrawalFee, *fee))
        }
        E::PayoutReturned { returned, withdrawal: _ } => {
            between(&Account::Payouts(Payouts::Pending), &available, returned)
        }
    }
}

/// What an attempt costs is owed to its provider, whatever came of it. The points that its owner pays are the account's
/// events'.
fn of_video_job(event: &video_job::Event) -> Vec<Posting> {
    use video_job::Event as E;
    match event {
        E::Succeeded { cost, .. } | E::AttemptFailed { cost, .. } | E::Failed { cost, .. } => owed(cost),
        E::Submitted(_) | E::Leased { .. } | E::Cancelled {} | E::Expired {} => Vec::new(),
    }
}

fn owed(Cost { micros, currency }: &Cost) -> Vec<Posting> {
    let amount = i64::try_from(*micros).unwrap_or(i64::MAX);
    if amount == 0 {
        return Vec::new();
    }
    let payable = Posting { account: Account::ProviderPayable(currency.clone()), amount: -amount };
    vec![payable, Posting { account: Account::ProviderCost(currency.clone()), amount }]
}

/// One side of an entry: a user's side has an account for each bucket, the platform's has one.
trait Side {
    fn post(&self, moved: &Purse, sign: i64) -> Vec<Posting>;
}

struct User {
    user: UserId,
    standing: Standing,
}

impl Side for User {
    fn post(&self, moved: &Purse, sign: i64) -> Vec<Posting> {
        let Self { user, standing } = *self;
        let of = |bucket| Posting {
            account: Account::User { user, standing, bucket },
            amount: sign * moved.of(bucket).get(),
        };
        Bucket::ALL.into_iter().map(of).filter(|posting| posting.amount != 0).collect()
    }
}

impl Side for Account {
    fn post(&self, moved: &Purse, sign: i64) -> Vec<Posting> {
        let total: Points = moved.total();
        if total.is_zero() {
            return Vec::new();
        }
        vec![Posting { account: self.clone(), amount: sign * total.get() }]
    }
}

fn between(from: &impl Side, to: &impl Side, moved: &Purse) -> Vec<Posting> {
    let mut postings = from.post(moved, -1);
    postings.extend(to.post(moved, 1));
    postings
}

/// Income that goes from one account in two parts.
fn split(from: &Account, (to, part): (&impl Side, Points), (keeper, kept): (&Account, Points)) -> Vec<Posting> {
    let (part, kept) = (Purse::income(part), Purse::income(kept));
    let mut moved = part.clone();
    moved.put(&kept);
    let mut postings = from.post(&moved, -1);
    postings.extend(to.post(&part, 1));
    postings.extend(keeper.post(&kept, 1));
    postings
}

#[cfg(test)]
mod tests;
