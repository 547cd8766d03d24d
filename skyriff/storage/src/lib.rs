//! Object storage: where what workers made is kept, and how clients get at it for a while.
//!
//! ```text
//! worker ──put──▶ a local folder, or a bucket of S3 ◀──link, good for a while── client
//! ```
//!
//! Objects are private. A bucket's links are its own (S3 presigned URLs); a folder's are signed by us ([`link`]) and
//! served by us ([`route`]). An object's name says which attempt of which job made it ([`name`]), so that two attempts
//! never write the same one, and so that [`sweep`] can tell which ones nobody will ever ask for.
//!
//! The ledger's seals are kept here as well: tiles and signed checkpoints ([`ledger`]), each under a name that is never
//! written twice ([`keep`]).
//!
//! Deliberately absent: overwriting, and listing for clients.

pub mod keep;
pub mod ledger;
pub mod link;
pub mod name;
mod range;
pub mod route;
pub mod store;
pub mod sweep;

pub use ledger::{LedgerFolder, LedgerName};
pub use link::{Link, LinkKey, Links};
pub use name::{Format, ObjectName};
pub use store::{ObjectStorage, StorageError, Stored};
