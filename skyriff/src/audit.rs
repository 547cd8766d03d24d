//! `skyriff audit`: what an auditor does with the log itself, without asking the API.
//!
//! ```text
//!                    ┌─ leaf ─▶ tree ─────────── root = that of each kept checkpoint?  (tree, kept, tiles)
//! rows of a shard ───┤
//!  (rows, export)    └─ decode ─▶ fold ───────── positions, sequences, zero            (fold)
//!                                  └──────────── read models at their checkpoints      (models)
//! ```
//!
//! Shards are worked through side by side and forgotten one by one, so memory is bounded by the largest shard and not by the log.

mod export;
mod findings;
mod fold;
mod kept;
mod models;
mod report;
mod rows;
mod tiles;
mod tips;
mod tree;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Check that the log is whole and is what was sealed, that the ledger sums to zero, and that the read models say what
    /// the log says. Against the live store, its replicas, or an export.
    Verify(Box<verify::Arguments>),
    /// Export whole rows of the log for an auditor, as they are stored: sealed texts stay sealed, and nothing else is left
    /// out. Keep what it writes as you would keep the database.
    Export(export::Arguments),
}

pub async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Verify(arguments) => verify::run(*arguments).await,
        Command::Export(arguments) => export::run(arguments).await,
    }
}
