//! Every kind of stream there is, as one closed set: a new aggregate is a new variant here, and the compiler names
//! every place that has to know.

use serde::{Deserialize, Serialize};

use crate::{
    OrderId, UserId, points_account, points_account::PointsAccount, recharge_order, recharge_order::RechargeOrder,
};

/// The name of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamId {
    /// A user's points.
    PointsAccount(UserId),
    /// A payment.
    RechargeOrder(OrderId),
}

/// One event of any stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of a user's points.
    PointsAccount(points_account::Event),
    /// Of a payment.
    RechargeOrder(recharge_order::Event),
}

/// One stream, folded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// A user's points.
    PointsAccount(PointsAccount),
    /// A payment.
    RechargeOrder(RechargeOrder),
}

/// The current state of the streams that a command named in [`crate::Command::streams`].
pub trait Streams {
    /// A user's points.
    fn points_account(&self, user: UserId) -> &PointsAccount;
    /// A payment.
    fn recharge_order(&self, order: OrderId) -> &RechargeOrder;
}

/// A stored event does not read as one of ours.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No such aggregate.
    #[error("unknown aggregate type {0:?}")]
    UnknownAggregate(String),
    /// The aggregate's id has another form.
    #[error("{aggregate_type} id {aggregate_id:?} is malformed")]
    MalformedId {
        /// Of which aggregate.
        aggregate_type: &'static str,
        /// As stored.
        aggregate_id: String,
    },
    /// No such version: written by a newer binary.
    #[error("{aggregate_type} event {event_type:?} has unknown version {version:?}")]
    UnknownVersion {
        /// Of which aggregate.
        aggregate_type: &'static str,
        /// As stored.
        event_type: String,
        /// As stored.
        version: String,
    },
    /// The payload has another form.
    #[error("{aggregate_type} event {event_type:?} does not parse")]
    Payload {
        /// Of which aggregate.
        aggregate_type: &'static str,
        /// As stored.
        event_type: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The payload holds another event than the column says.
    #[error("{aggregate_type} event is stored as {stored:?} and reads as {read:?}")]
    TypeMismatch {
        /// Of which aggregate.
        aggregate_type: &'static str,
        /// As stored.
        stored: String,
        /// As read.
        read: &'static str,
    },
}

const POINTS_ACCOUNT: &str = <PointsAccount as cqrs_es::Aggregate>::TYPE;
const RECHARGE_ORDER: &str = <RechargeOrder as cqrs_es::Aggregate>::TYPE;

impl StreamId {
    /// As stored in `aggregate_type`.
    pub const fn aggregate_type(&self) -> &'static str {
        match self {
            Self::PointsAccount(_) => POINTS_ACCOUNT,
            Self::RechargeOrder(_) => RECHARGE_ORDER,
        }
    }

    /// As stored in `aggregate_id`.
    pub fn aggregate_id(&self) -> String {
        match self {
            Self::PointsAccount(user) => user.to_string(),
            Self::RechargeOrder(order) => order.to_string(),
        }
    }

    /// Read a name back.
    ///
    /// # Errors
    /// [`DecodeError`] for names that are none of ours.
    pub fn decode(aggregate_type: &str, aggregate_id: &str) -> Result<Self, DecodeError> {
        let malformed = |aggregate_type| {
            move |_| DecodeError::MalformedId { aggregate_type, aggregate_id: aggregate_id.to_owned() }
        };
        match aggregate_type {
            POINTS_ACCOUNT => aggregate_id.parse().map(Self::PointsAccount).map_err(malformed(POINTS_ACCOUNT)),
            RECHARGE_ORDER => aggregate_id.parse().map(Self::RechargeOrder).map_err(malformed(RECHARGE_ORDER)),
            unknown => Err(DecodeError::UnknownAggregate(unknown.to_owned())),
        }
    }

    /// The stream before its first event.
    pub fn empty(&self) -> State {
        match self {
            Self::PointsAccount(_) => State::PointsAccount(PointsAccount::default()),
            Self::RechargeOrder(_) => State::RechargeOrder(RechargeOrder::default()),
        }
    }
}

impl Event {
    /// As stored in `event_type`.
    pub const fn event_type(&self) -> &'static str {
        match self {
            Self::PointsAccount(event) => event.name(),
            Self::RechargeOrder(event) => event.name(),
        }
    }

    /// As stored in `event_version`.
    pub const fn event_version(&self) -> &'static str {
        match self {
            Self::PointsAccount(_) => points_account::Event::VERSION,
            Self::RechargeOrder(_) => recharge_order::Event::VERSION,
        }
    }

    /// As stored in `payload`: what the stock cqrs-es repository writes and reads.
    ///
    /// # Errors
    /// None for the events there are; the signature is serde's.
    pub fn payload(&self) -> Result<String, serde_json::Error> {
        match self {
            Self::PointsAccount(event) => serde_json::to_string(event),
            Self::RechargeOrder(event) => serde_json::to_string(event),
        }
    }

    /// Read a stored event of `stream` back.
    ///
    /// # Errors
    /// [`DecodeError`], when it was not written by a version of this code that is known here.
    pub fn decode(stream: &StreamId, event_type: &str, version: &str, payload: &str) -> Result<Self, DecodeError> {
        let aggregate_type = stream.aggregate_type();
        let payload_error = |source| DecodeError::Payload { aggregate_type, event_type: event_type.to_owned(), source };
        let known = match stream {
            StreamId::PointsAccount(_) => points_account::Event::VERSION,
            StreamId::RechargeOrder(_) => recharge_order::Event::VERSION,
        };
        if version != known {
            let (event_type, version) = (event_type.to_owned(), version.to_owned());
            return Err(DecodeError::UnknownVersion { aggregate_type, event_type, version });
        }
        let event = match stream {
            StreamId::PointsAccount(_) => Self::PointsAccount(serde_json::from_str(payload).map_err(payload_error)?),
            StreamId::RechargeOrder(_) => Self::RechargeOrder(serde_json::from_str(payload).map_err(payload_error)?),
        };
        if event.event_type() != event_type {
            let (stored, read) = (event_type.to_owned(), event.event_type());
            return Err(DecodeError::TypeMismatch { aggregate_type, stored, read });
        }
        Ok(event)
    }
}

impl State {
    /// The shape of all states, for snapshots: raise it whenever a state's fields or an `apply` change, and every
    /// snapshot of before is thrown away and folded again.
    pub const VERSION: i32 = 1;

    /// Fold one event in. An event of another kind of stream changes nothing; [`Event::decode`] never makes one.
    pub fn apply(&mut self, event: &Event) {
        match (self, event) {
            (Self::PointsAccount(account), Event::PointsAccount(event)) => account.apply(event),
            (Self::RechargeOrder(order), Event::RechargeOrder(event)) => order.apply(event),
            (Self::PointsAccount(_), Event::RechargeOrder(_)) | (Self::RechargeOrder(_), Event::PointsAccount(_)) => {}
        }
    }

    /// Roughly how much memory it takes, in bytes.
    pub fn weight(&self) -> usize {
        match self {
            Self::PointsAccount(account) => account.weight(),
            Self::RechargeOrder(_) => size_of::<Self>(),
        }
    }
}

#[cfg(test)]
mod tests;
