//! What belongs to a person, sealed under a key of theirs before it enters the log.
//!
//! ```text
//! master key (in no database) ──wraps──▶ a person's key (table person_keys) ──seals──▶ text in an event
//! ```
//!
//! Events are kept for ever, so what identifies a person is in them only sealed; destroying the person's key is how it is
//! forgotten, in every copy of the log, in read models and exports at once. The [`Vault`] makes, finds and uses the keys;
//! [`Destination`] is where a withdrawal is paid to; beside it, prompts and whatever people say in words of their own
//! ([`Purpose`] has all of it).
//!
//! Sealing is AES-256-GCM-SIV (RFC 8452) with a nonce that is derived from what is sealed for what: the same text for the
//! same thing gives the same bytes, so a retry of a command has the fingerprint of the first attempt. That is what the
//! SIV mode is for: a nonce that comes twice shows no more than whether two texts are equal.
//!
//! Deliberately absent: a cache of keys. A destroyed key is gone with the next look, on a replica as soon as
//! that has caught up.

pub mod destination;
pub mod master_keys;
pub mod person_key;
pub mod rewrap;
pub mod vault;

pub use destination::{Destination, Masked};
pub use master_keys::{MasterKeys, NoMasterKey};
pub use person_key::Purpose;
pub use vault::{Column, Error, KeyDatabase, Vault};
