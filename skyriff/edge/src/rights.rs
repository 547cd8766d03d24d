//! Who may do what: one table, read by every route through [`crate::Caller::may`].

use crate::caller::Role;

/// What a route lets its caller do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Check in.
    CheckIn,
    /// Spend available points.
    Spend,
    /// Give points: earnings, recharges.
    Credit,
    /// Hold, capture, release and refund.
    Settle,
    /// Expire what is due.
    Expire,
    /// Correct by hand.
    Adjust,
    /// Read balances and ledger entries.
    ReadAccount,
    /// Say that something happened in the past.
    Backdate,
}

/// Whose things a right reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nobody's.
    None,
    /// The caller's own.
    Own,
    /// Everybody's.
    All,
}

impl Right {
    /// How far the right goes for a role.
    pub const fn reach(self, role: Role) -> Reach {
        match (role, self) {
            (Role::User, Self::CheckIn | Self::Spend | Self::ReadAccount) => Reach::Own,
            (
                Role::Service,
                Self::CheckIn
                | Self::Spend
                | Self::Credit
                | Self::Settle
                | Self::Expire
                | Self::ReadAccount
                | Self::Backdate,
            )
            | (Role::Operator, Self::Adjust | Self::Expire | Self::ReadAccount)
            | (Role::Reviewer | Role::Auditor, Self::ReadAccount) => Reach::All,
            (Role::User, Self::Credit | Self::Settle | Self::Expire | Self::Adjust | Self::Backdate)
            | (Role::Service, Self::Adjust)
            | (Role::Operator, Self::CheckIn | Self::Spend | Self::Credit | Self::Settle | Self::Backdate)
            | (
                Role::Reviewer | Role::Auditor,
                Self::CheckIn
                | Self::Spend
                | Self::Credit
                | Self::Settle
                | Self::Expire
                | Self::Adjust
                | Self::Backdate,
            )
            | (Role::Analyst | Role::Worker, _) => Reach::None,
        }
    }
}
