//! The edge of HTTP: who is asking and what they may do ([`caller`], [`rights`]), how a request is named and bounded
//! ([`request`], [`extract`]), and how everything that goes wrong leaves ([`problem`]). The one place for each.

pub mod caller;
pub mod extract;
pub mod problem;
pub mod request;
pub mod rights;

pub use caller::{Caller, Role, Tokens};
pub use extract::{Json, Path, Query};
pub use problem::{Kind, Problem};
pub use request::RequestContext;
pub use rights::Right;
