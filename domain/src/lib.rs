//! The pure rules of SkyRiff. No IO, no clock, no randomness, no panics: ids and times arrive in the commands, and
//! every function gives the same answer for the same input for ever, because events are folded again for ever.
//!
//! Read in this order: what things are called ([`id`], [`points`], [`shard`], [`words`]), what the aggregates decide
//! ([`points_account`], [`recharge_order`], [`like`], [`tip`], [`withdrawal`], [`video_job`], [`work`], [`erasure`],
//! [`reconciliation`]; their numbers in [`policy`]), what one request may change at once ([`command`], [`stream`]), how a
//! decision is kept ([`event`]), what it means in the books ([`ledger`]), whose it is ([`owner`]), what of it is a person's
//! ([`personal`]), and what others need to know of it ([`schema`]).

mod stored;

pub mod id;
pub mod label;
pub mod points;
pub mod shard;
pub mod words;

pub mod erasure;
pub mod like;
pub mod points_account;
pub mod policy;
pub mod recharge_order;
pub mod reconciliation;
pub mod tip;
pub mod video_job;
pub mod withdrawal;
pub mod work;

pub mod command;
pub mod stream;

pub mod event;
pub mod ledger;
pub mod owner;
pub mod personal;
pub mod schema;

pub use command::{Command, Intent, Refusal};
pub use event::{Metadata, RecordedEvent};
pub use id::{
    CommandId, ExceptionId, HoldId, JobId, LikeId, OrderId, ReconciliationId, SpendId, TipId, UserId, WithdrawalId,
    WorkId,
};
pub use label::{Label, Note, Reference, Sealed};
pub use points::{Bucket, Points, Purse};
pub use points_account::PointsPolicy;
pub use policy::Policy;
pub use schema::AggregateSchema;
pub use shard::{LogPosition, Position, ShardCount, ShardId, shard_of};
pub use stream::{Event, State, StreamId, Streams};
pub use withdrawal::WithdrawalAllowance;
pub use words::Words;
