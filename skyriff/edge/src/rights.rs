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
    /// Forget a person.
    Erase,
    /// Like works, and take likes back.
    Like,
    /// Show works, and no longer.
    Publish,
    /// Bring in works that were made elsewhere.
    ImportWork,
    /// Give tips.
    Tip,
    /// Ask for withdrawals, and cancel them.
    Withdraw,
    /// See the withdrawals that wait, and decide them.
    Review,
    /// Say what came of a payout that nobody can tell.
    ResolvePayout,
    /// Read balances, ledger entries, likes, tips and withdrawals.
    ReadAccount,
    /// Read the books of everybody: accounts, entries, balances as of any time.
    ReadLedger,
    /// Read what everybody may see of works: how often they are liked, and which are liked most.
    ReadWorks,
    /// Order videos and take orders back.
    OrderVideos,
    /// Choose the ids and priorities of orders.
    ImportVideos,
    /// Make videos.
    WorkVideos,
    /// Read what videos cost and brought in.
    ReadVideoCosts,
    /// Read the events of everybody, without what is personal.
    ReadEvents,
    /// Read what is sealed of the log, and proofs with whole events.
    ReadProofs,
    /// Read what providers' files say beside the ledger.
    ReadReconciliations,
    /// Say why a file and the ledger do not agree.
    Reconcile,
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
    #[rustfmt::skip]
    pub const fn reach(self, role: Role) -> Reach {
        use Reach::{All, None, Own};
        let [user, service, operator, reviewer, auditor, analyst, worker] = match self {
            //                      user  service operator reviewer auditor analyst worker
            Self::CheckIn       => [Own,  All,    None,    None,    None,   None,   None],
            Self::Spend         => [Own,  All,    None,    None,    None,   None,   None],
            Self::Credit        => [None, All,    None,    None,    None,   None,   None],
            Self::Settle        => [None, All,    None,    None,    None,   None,   None],
            Self::Expire        => [None, All,    All,     None,    None,   None,   None],
            Self::Adjust        => [None, None,   All,     None,    None,   None,   None],
            Self::Erase         => [None, None,   All,     None,    None,   None,   None],
            Self::Like          => [Own,  All,    None,    None,    None,   None,   None],
            Self::Publish       => [Own,  All,    None,    None,    None,   None,   None],
            Self::ImportWork    => [None, All,    None,    None,    None,   None,   None],
            Self::Tip           => [Own,  All,    None,    None,    None,   None,   None],
            Self::Withdraw      => [Own,  None,   None,    None,    None,   None,   None],
            Self::Review        => [None, None,   None,    All,     None,   None,   None],
            Self::ResolvePayout => [None, None,   All,     None,    None,   None,   None],
            Self::ReadAccount   => [Own,  All,    All,     All,     All,    None,   None],
            Self::ReadLedger    => [None, None,   None,    None,    All,    None,   None],
            Self::ReadWorks     => [All,  All,    All,     All,     All,    All,    None],
            Self::OrderVideos   => [Own,  All,    None,    None,    None,   None,   None],
            Self::ImportVideos  => [None, All,    None,    None,    None,   None,   None],
            Self::WorkVideos    => [None, None,   None,    None,    None,   None,   All],
            Self::ReadVideoCosts => [None, None,  All,     None,    None,   All,    None],
            Self::ReadEvents    => [None, None,   None,    None,    None,   All,    None],
            Self::ReadProofs    => [None, None,   None,    None,    All,    None,   None],
            Self::ReadReconciliations => [None, None, All,  None,    All,    None,   None],
            Self::Reconcile     => [None, None,   All,     None,    None,   None,   None],
            Self::Backdate      => [None, All,    None,    None,    None,   None,   None],
        };
        match role {
            Role::User => user,
            Role::Service => service,
            Role::Operator => operator,
            Role::Reviewer => reviewer,
            Role::Auditor => auditor,
            Role::Analyst => analyst,
            Role::Worker => worker,
        }
    }
}
