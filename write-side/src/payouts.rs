//! Withdrawals leave as money: the providers that pay, and what has to be known of a payout to ask them.
//!
//! ```text
//! approved ─▶ start (durable) ─▶ look up ─ not known ─▶ pay ─▶ settle, fail, or look again
//!                                   └─ known ─────────────────────┘        ▲
//!                                             signed callback ─────────────┘
//! ```
//!
//! The process that goes this way is [`crate::processes::payouts`]; [`local`] and [`http`] are the providers, and
//! [`http`] says how the other side of it has to behave.
//!
//! # What must hold
//! * A payout's idempotency key is its withdrawal's id, for ever. Nothing is ever sent under another key, so whatever is
//!   lost on the way, the provider can tell a repetition from a second payout.
//! * Only the provider's own word ends a payout: `paid` or `declined`, of this payout, with this amount. No status code,
//!   no silence and no time-out does; they mean that nobody knows, and the provider is asked what it knows.
//! * A clear destination is only ever on its way to the provider: not in an event, a log line or an error.

mod breaker;
pub mod http;
pub mod local;
mod records;
pub mod signature;

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use skyriff_domain::{
    Label, Note, Reference, UserId, WithdrawalId,
    withdrawal::{Money, Request},
};
use skyriff_vault::{Destination, Vault};

pub use records::WithdrawalRecords;

/// Payouts that the provider says one thing of and the log another, by `provider`: the alarm. A person has to find out.
pub const CONTRADICTIONS: &str = "skyriff_payout_contradictions_total";
/// What the provider was asked, by `provider`, `request` (pay, look_up) and `outcome` (paid, pending, declined,
/// not_known, unknown, mismatch).
pub const REQUESTS: &str = "skyriff_payout_requests_total";
/// Seconds that one HTTP request to the provider took, by `provider`.
pub const REQUEST_SECONDS: &str = "skyriff_payout_request_seconds";
/// Whether requests to the provider go through, by `provider`: 0 they do, 1 one is let through to try, 2 they do not.
pub const BREAKER: &str = "skyriff_payout_breaker_state";
/// Callbacks, by `outcome`: recorded, nothing_new, forged, stale, malformed, unknown_payout, contradiction, mismatch,
/// failed.
pub const CALLBACKS: &str = "skyriff_payout_callbacks_total";

/// What a provider is asked to pay, but for where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payout {
    /// The idempotency key.
    pub withdrawal: WithdrawalId,
    /// Whose.
    pub user: UserId,
    /// How much.
    pub money: Money,
}

impl Payout {
    /// Of a request.
    pub fn of(withdrawal: WithdrawalId, request: &Request) -> Self {
        Self { withdrawal, user: request.user, money: request.money.clone() }
    }

    /// What the provider keeps with the payout and says in callbacks: `user/withdrawal`.
    pub fn merchant_reference(&self) -> String {
        format!("{}/{}", self.user, self.withdrawal)
    }

    /// Read a merchant reference back.
    pub fn parse_merchant_reference(text: &str) -> Option<(UserId, WithdrawalId)> {
        let (user, withdrawal) = text.split_once('/')?;
        Some((user.parse().ok()?, withdrawal.parse().ok()?))
    }
}

/// What a provider says of a payout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The money has gone.
    Paid {
        /// What the provider calls it.
        reference: Reference,
    },
    /// It is under way; ask again.
    Pending,
    /// The money has not gone and will not.
    Declined {
        /// Why.
        reason: Note,
    },
}

impl Said {
    const fn name(&self) -> &'static str {
        match self {
            Self::Paid { .. } => "paid",
            Self::Pending => "pending",
            Self::Declined { .. } => "declined",
        }
    }
}

/// Nobody can tell from what came back, if anything did, whether the provider pays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// No answer, or none that says it.
    #[error("{reason}")]
    Unknown {
        /// What came instead.
        reason: String,
        /// When the provider wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The provider has another payout under this key: asking again gives the same, and a person has to find out.
    #[error("the provider speaks of another payout: {reason}")]
    Mismatch {
        /// What differs.
        reason: String,
    },
}

impl Doubt {
    const fn name(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Mismatch { .. } => "mismatch",
        }
    }

    fn unknown(reason: impl ToString) -> Self {
        Self::Unknown { reason: reason.to_string(), retry_after: None }
    }
}

/// Whoever pays.
pub trait PayoutProvider: fmt::Debug + Send + Sync {
    /// As in the event that starts a payout: only the provider that was asked first is ever asked about it.
    fn name(&self) -> &Label;

    /// Pay, once, however often it is asked for under the payout's key.
    ///
    /// # Errors
    /// [`Doubt`]: it may or may not be paid.
    fn pay<'a>(&'a self, payout: &'a Payout, to: &'a Destination) -> BoxFuture<'a, Result<Said, Doubt>>;

    /// What is known of a payout; nothing when the provider has never heard of its key. That is no promise that it
    /// never will: a request may still be on its way. So it allows to ask again under the same key, and nothing else.
    ///
    /// # Errors
    /// [`Doubt`].
    fn look_up<'a>(&'a self, payout: &'a Payout) -> BoxFuture<'a, Result<Option<Said>, Doubt>>;
}

/// How long payouts are waited for.
#[derive(Clone, Debug)]
pub struct Patience {
    /// The first wait before the provider is asked again; waits grow with the payout's age, to half of it.
    pub look_again_min: Duration,
    /// The longest wait.
    pub look_again_max: Duration,
    /// What is not decided so long after it was started needs a person's attention.
    pub attention_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            look_again_min: Duration::from_secs(1),
            look_again_max: Duration::from_secs(600),
            attention_after: Duration::from_secs(24 * 3_600),
        }
    }
}

/// What paying takes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Payouts {
    /// Whoever pays.
    pub provider: Arc<dyn PayoutProvider>,
    /// Opens destinations.
    pub vault: Vault,
    /// What is recorded of withdrawals.
    pub records: WithdrawalRecords,
    /// How long payouts are waited for.
    pub patience: Patience,
}

/// As much of a text as a note can hold.
pub(crate) fn note(text: &str) -> Note {
    let text: String = text.chars().filter(|char| !char.is_control()).take(200).collect();
    let empty = || skyriff_domain::Note::try_from("no reason was given".to_owned());
    Note::try_from(text).or_else(|_| empty()).unwrap_or_else(|_| unreachable!("the text above is a note"))
}

/// The provider says one thing and the log another. Counted, and logged as an error, so that somebody looks.
pub(crate) fn contradiction(provider: &Label, payout: &Payout, what: &str) {
    metrics::counter!(CONTRADICTIONS, "provider" => provider.to_string()).increment(1);
    let withdrawal = payout.withdrawal;
    tracing::error!(%provider, %withdrawal, what, "a payout contradicts the log: a person has to find out");
}
