//! The names of things: one type each, so that a hold can never be passed where a user is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// A person. Everything of a user lives in the one shard that [`crate::shard_of`] gives.
    UserId
);
id!(
    /// A payment at the payment provider; credited at most once.
    OrderId
);
id!(
    /// Points set aside; chosen by the caller.
    HoldId
);
id!(
    /// Points spent, which may be refunded; chosen by the caller.
    SpendId
);
id!(
    /// A video or speech in the making.
    JobId
);
id!(
    /// A published video.
    WorkId
);
id!(
    /// Points on their way from one user to another.
    TipId
);
id!(
    /// Points on their way out, as money.
    WithdrawalId
);
id!(
    /// A provider's file, compared with the ledger; see [`ReconciliationId::of`].
    ReconciliationId
);
id!(
    /// What a provider's file and the ledger do not agree on; see [`ExceptionId::of`].
    ExceptionId
);
id!(
    /// One command of one actor, see [`CommandId::derive`].
    CommandId
);

/// One user's like of one work, which may be taken back and given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LikeId {
    /// Who likes.
    pub user: UserId,
    /// What.
    pub work: WorkId,
}

/// `user/work`.
impl fmt::Display for LikeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.work)
    }
}

impl FromStr for LikeId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, work) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self { user: user.parse()?, work: work.parse()? })
    }
}

/// The name space of command ids (RFC 9562, version 5). Changing it would let every retry apply a second time.
const COMMANDS: Uuid = Uuid::from_u128(0x3f1c_5a52_8c1b_4d6e_9a50_7b1d_0c4e_7711);

/// The name space of the ids of reconciliations and their exceptions. Changing it would make the same file another one.
const RECONCILIATIONS: Uuid = Uuid::from_u128(0x5b0e_6a1d_27c4_4f83_b1c9_4de2_93a8_60f5);

impl ReconciliationId {
    /// Of a file and of what it is compared with: the same file is the same reconciliation.
    pub fn of(file: &crate::reconciliation::run::File) -> Self {
        let crate::reconciliation::run::File { kind, provider, from, to, sha256, lines: _ } = file;
        let name = format!("reconciliation {} {provider} {from} {to} {sha256}", kind.as_str());
        Self(Uuid::new_v5(&RECONCILIATIONS, name.as_bytes()))
    }
}

impl ExceptionId {
    /// Of a payment and a provider: whatever runs find about it is one exception. One that was found while the ledger did
    /// not know whose the payment is, is another one than those of its user: it lives elsewhere.
    pub fn of(kind: crate::reconciliation::Kind, provider: &crate::Label, subject: Uuid, user: Option<UserId>) -> Self {
        let user = user.map(|user| user.to_string()).unwrap_or_default();
        let name = format!("exception {} {provider} {subject} {user}", kind.as_str());
        Self(Uuid::new_v5(&RECONCILIATIONS, name.as_bytes()))
    }
}

impl CommandId {
    /// The id of the command that `actor` sends under the idempotency key `key`: the same for ever, so a retry after
    /// any failure finds what the first attempt did. Two actors never share one, whatever keys they choose.
    pub fn derive(actor: &str, key: &str) -> Self {
        let mut name = Vec::with_capacity(actor.len() + key.len() + 1);
        name.extend_from_slice(actor.as_bytes());
        name.push(0);
        name.extend_from_slice(key.as_bytes());
        Self(Uuid::new_v5(&COMMANDS, &name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_ids_are_stable_and_belong_to_one_actor() {
        let id = CommandId::derive("user:1", "key");
        assert_eq!(id.to_string(), "e873007a-4dd4-5411-a32e-2745ce451a1a");
        assert_eq!(id, CommandId::derive("user:1", "key"));
        assert_ne!(id, CommandId::derive("user:2", "key"));
        assert_ne!(id, CommandId::derive("user:1k", "ey"));
    }

    #[test]
    fn a_file_is_one_reconciliation_and_a_payment_one_exception_of_a_provider() {
        use crate::reconciliation::{Kind, run::File};
        let day = |day| chrono::NaiveDate::from_ymd_opt(2026, 1, day).unwrap();
        let file = |provider: &str, to| File {
            kind: Kind::Payouts,
            provider: provider.parse().unwrap(),
            from: day(1),
            to: day(to),
            sha256: "ab12".parse().unwrap(),
            lines: 1,
        };
        let of = |provider: &str, to| ReconciliationId::of(&file(provider, to));
        assert_eq!(of("acme", 2).to_string(), "ec10e63a-b70f-513f-bce7-111887823108");
        assert!(of("acme", 2) != of("acme", 3) && of("acme", 2) != of("other", 2));
        let of =
            |kind, provider: &str, user| ExceptionId::of(kind, &provider.parse().unwrap(), Uuid::from_u128(7), user);
        let (here, user) = (of(Kind::Payouts, "acme", None), UserId(Uuid::from_u128(1)));
        assert_eq!(here.to_string(), "13202951-8fd2-5330-8878-fc3bb318b8fa");
        for other in
            [of(Kind::Recharges, "acme", None), of(Kind::Payouts, "b", None), of(Kind::Payouts, "acme", Some(user))]
        {
            assert_ne!(here, other);
        }
    }
}
