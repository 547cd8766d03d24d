//! Every kind of stream there is, as one closed set: a new aggregate is a new line in `streams!`, and the compiler
//! names every other place that has to know.

use std::sync::LazyLock;

use cqrs_es::Aggregate;
use serde::{Deserialize, Serialize};

use crate::{
    AggregateSchema, ExceptionId, JobId, LikeId, OrderId, ReconciliationId, TipId, UserId, WithdrawalId, WorkId,
    erasure,
    erasure::Erasure,
    like,
    like::Like,
    points_account,
    points_account::PointsAccount,
    recharge_order,
    recharge_order::RechargeOrder,
    reconciliation::{self, exception::ReconciliationException, run::Reconciliation},
    tip,
    tip::{Tip, TipReceipt},
    video_job,
    video_job::{VideoJob, VideoSlots},
    withdrawal,
    withdrawal::{Withdrawal, WithdrawalAllowance},
    work,
    work::Work,
};

/// `kind / name: id => aggregate, its events`. The same shape for all: named, decoded, folded, weighed in one way.
macro_rules! streams {
    ($($(#[$doc:meta])* $kind:ident / $name:ident: $id:ty => $aggregate:ty, $event:ty;)+) => {
        /// The name of one stream.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum StreamId {
            $($(#[$doc])* $kind($id),)+
        }

        /// One event of any stream.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $kind($event),)+
        }

        /// One stream, folded.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum State {
            $($(#[$doc])* $kind($aggregate),)+
        }

        /// The current state of the streams that a command named in [`crate::Command::streams`].
        pub trait Streams {
            /// The state of a stream that was named.
            fn state(&self, stream: &StreamId) -> &State;

            $(
                $(#[$doc])*
                fn $name(&self, id: $id) -> &$aggregate {
                    /// Only for a state of another kind, which is never stored under this name.
                    static EMPTY: LazyLock<$aggregate> = LazyLock::new(Default::default);
                    if let State::$kind(state) = self.state(&StreamId::$kind(id)) { state } else { &EMPTY }
                }
            )+
        }

        impl StreamId {
            /// What `aggregate_type` may be.
            pub const AGGREGATE_TYPES: &[&str] = &[$(<$aggregate as Aggregate>::TYPE,)+];

            /// As stored in `aggregate_type`.
            pub const fn aggregate_type(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => <$aggregate as Aggregate>::TYPE,)+
                }
            }

            /// As stored in `aggregate_id`.
            pub fn aggregate_id(&self) -> String {
                match self {
                    $(Self::$kind(id) => id.to_string(),)+
                }
            }

            /// Read a name back.
            ///
            /// # Errors
            /// [`DecodeError`] for names that are none of ours.
            pub fn decode(aggregate_type: &str, aggregate_id: &str) -> Result<Self, DecodeError> {
                match aggregate_type {
                    $(<$aggregate as Aggregate>::TYPE => {
                        aggregate_id.parse().map(Self::$kind).map_err(|_| DecodeError::MalformedId {
                            aggregate_type: <$aggregate as Aggregate>::TYPE,
                            aggregate_id: aggregate_id.to_owned(),
                        })
                    })+
                    unknown => Err(DecodeError::UnknownAggregate(unknown.to_owned())),
                }
            }

            /// The stream before its first event.
            pub fn empty(&self) -> State {
                match self {
                    $(Self::$kind(_) => State::$kind(Default::default()),)+
                }
            }

            const fn known_version(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => <$event>::VERSION,)+
                }
            }

            fn parse(&self, payload: &str) -> Result<Event, serde_json::Error> {
                match self {
                    $(Self::$kind(_) => serde_json::from_str(payload).map(Event::$kind),)+
                }
            }
        }

        impl Event {
            /// The shapes of all events there are.
            pub fn schemas() -> Vec<AggregateSchema> {
                vec![$(AggregateSchema::of::<$event>(<$aggregate as Aggregate>::TYPE, <$event>::VERSION)),+]
            }

            /// As stored in `event_type`.
            pub const fn event_type(&self) -> &'static str {
                match self {
                    $(Self::$kind(event) => event.name(),)+
                }
            }

            /// As stored in `event_version`.
            pub const fn event_version(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => <$event>::VERSION,)+
                }
            }

            /// As stored in `payload`: what the stock cqrs-es repository writes and reads.
            ///
            /// # Errors
            /// None for the events there are; the signature is serde's.
            pub fn payload(&self) -> Result<String, serde_json::Error> {
                match self {
                    $(Self::$kind(event) => serde_json::to_string(event),)+
                }
            }
        }

        impl State {
            /// Fold one event in. An event of another kind of stream changes nothing; [`Event::decode`] never makes
            /// one.
            pub fn apply(&mut self, event: &Event) {
                match self {
                    $(Self::$kind(state) => {
                        if let Event::$kind(event) = event {
                            state.apply(event);
                        }
                    })+
                }
            }

            /// Roughly how much memory it takes, in bytes.
            pub fn weight(&self) -> usize {
                size_of::<Self>() + match self {
                    $(Self::$kind(state) => state.heap_bytes(),)+
                }
            }
        }
    };
}

streams! {
    /// A user's points.
    PointsAccount / points_account: UserId => PointsAccount, points_account::Event;
    /// A payment.
    RechargeOrder / recharge_order: OrderId => RechargeOrder, recharge_order::Event;
    /// A user's like of a work.
    Like / like: LikeId => Like, like::Event;
    /// A tip, where its sender lives.
    Tip / tip: TipId => Tip, tip::Event;
    /// A tip, where its receiver lives.
    TipReceipt / tip_receipt: TipId => TipReceipt, tip::receipt::Event;
    /// A withdrawal.
    Withdrawal / withdrawal: WithdrawalId => Withdrawal, withdrawal::Event;
    /// What a user may still withdraw.
    WithdrawalAllowance / withdrawal_allowance: UserId => WithdrawalAllowance, withdrawal::allowance::Event;
    /// A video or speech in the making.
    VideoJob / video_job: JobId => VideoJob, video_job::Event;
    /// How many jobs a user has in flight.
    VideoSlots / video_slots: UserId => VideoSlots, video_job::slots::Event;
    /// A published video.
    Work / work: WorkId => Work, work::Event;
    /// Whether a user is forgotten.
    Erasure / erasure: UserId => Erasure, erasure::Event;
    /// A provider's file, compared with the ledger.
    Reconciliation / reconciliation: ReconciliationId => Reconciliation, reconciliation::run::Event;
    /// What a provider's file and the ledger do not agree on.
    ReconciliationException / reconciliation_exception: ExceptionId => ReconciliationException, reconciliation::exception::Event;
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

impl Event {
    /// Read a stored event of `stream` back.
    ///
    /// # Errors
    /// [`DecodeError`], when it was not written by a version of this code that is known here.
    pub fn decode(stream: &StreamId, event_type: &str, version: &str, payload: &str) -> Result<Self, DecodeError> {
        let aggregate_type = stream.aggregate_type();
        let payload_error = |source| DecodeError::Payload { aggregate_type, event_type: event_type.to_owned(), source };
        let known = stream.known_version();
        if version != known {
            let (event_type, version) = (event_type.to_owned(), version.to_owned());
            return Err(DecodeError::UnknownVersion { aggregate_type, event_type, version });
        }
        let event = stream.parse(payload).map_err(payload_error)?;
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
    pub const VERSION: i32 = 5;
}

#[cfg(test)]
mod tests;
