//! Whose a stream is. Those that are not named after their user say it in their first event.

use crate::{StreamId, UserId};

/// Whose a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This user's, as its name says.
    Named(UserId),
    /// The user's whose id its first event has, at one of these places of the payload.
    InFirstEvent(&'static [Place]),
}

/// Names of members from the outside in, the first one that of the event.
pub type Place = &'static [&'static str];

impl StreamId {
    /// Whose it is.
    pub const fn owner(&self) -> Owner {
        match self {
            Self::PointsAccount(user)
            | Self::WithdrawalAllowance(user)
            | Self::VideoSlots(user)
            | Self::Erasure(user) => Owner::Named(*user),
            Self::Like(like) => Owner::Named(like.user),
            Self::RechargeOrder(_) => Owner::InFirstEvent(&[&["credited", "user"]]),
            Self::Tip(_) => Owner::InFirstEvent(&[&["offered", "from"]]),
            Self::TipReceipt(_) => Owner::InFirstEvent(&[&["credited", "to"], &["declined", "terms", "to"]]),
            Self::Withdrawal(_) => Owner::InFirstEvent(&[&["requested", "user"]]),
            Self::VideoJob(_) => Owner::InFirstEvent(&[&["submitted", "user"]]),
            Self::Work(_) => Owner::InFirstEvent(&[&["published", "creator"]]),
            // One of nobody that is known says no user.
            Self::ReconciliationException(_) => Owner::InFirstEvent(&[&["found", "user"]]),
            // Nobody's.
            Self::Reconciliation(_) => Owner::InFirstEvent(&[]),
        }
    }

    /// A stream of each kind there is, all of them of no user and with no event.
    pub fn one_of_each() -> impl Iterator<Item = Self> {
        const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
        const OF_TWO: &str = "00000000-0000-0000-0000-000000000000/00000000-0000-0000-0000-000000000000";
        let of = |name: &&str| Self::decode(name, NOBODY).or_else(|_| Self::decode(name, OF_TWO)).ok();
        Self::AGGREGATE_TYPES.iter().filter_map(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_stream_has_an_example() {
        let names: Vec<_> = StreamId::one_of_each().map(|stream| stream.aggregate_type()).collect();
        assert_eq!(names, StreamId::AGGREGATE_TYPES);
    }
}
