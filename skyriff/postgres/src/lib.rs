//! Postgres as SkyRiff needs it: its databases, roles and migrations, and, on one machine, a private primary and
//! streaming replica of its own, so that nobody has to set anything up.
//!
//! The private servers listen on unix sockets only, in folders that only their user may enter, never run as root, and
//! live in one folder that can be deleted when they are stopped.

pub mod binaries;
pub mod cluster;
pub mod databases;
mod lifecycle;
mod os_user;
pub mod server;
pub mod testing;

pub use cluster::{Cluster, Durability, Servers};
pub use server::Server;
