//! `skyriff keys`: the master key is changed.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use skyriff_postgres::databases::OWNER;
use skyriff_vault::rewrap::{Rewrapped, rewrap};
use sqlx::ConnectOptions;

use crate::{config::DatabaseArguments, master_key::MasterKeyArguments, token};

#[derive(Subcommand)]
pub enum Command {
    /// Wrap every person's key by the first of the master keys. Every process has to have `new,old` before, or it goes on
    /// wrapping new persons' keys by the old one. Afterwards give every process the new one alone, and run this once more with
    /// that one: when it ends well, nothing in the databases needs the old one.
    Rewrap(Rewrap),
}

/// What becomes of an old master key. The same words as in the documents.
pub const THE_OLD_ONE: &str = "destroy the old master key once no backup from before the change may have to be restored: until then \
                               it opens those backups, and with them what belonged to persons who were erased";

#[derive(Args)]
pub struct Rewrap {
    #[command(flatten)]
    databases: DatabaseArguments,
    #[command(flatten)]
    master_key: MasterKeyArguments,
    /// The folder of `skyriff dev`, whose master key is used when none is given.
    #[arg(long, default_value = token::FOLDER)]
    folder: PathBuf,
}

pub async fn run(command: Command) -> Result<ExitCode> {
    let Command::Rewrap(Rewrap { databases, master_key, folder }) = command;
    let (databases, keys) = (databases.databases()?, master_key.keys(&folder)?);
    let mut sum = Rewrapped::default();
    for place in &databases.event_store {
        let options = place.primary.as_role(OWNER).application_name("skyriff keys");
        let mut owner = options.connect().await.context("cannot reach the event store")?;
        let done = rewrap(&mut owner, &keys).await?;
        sum.rewrapped += done.rewrapped;
        sum.current += done.current;
        sum.destroyed += done.destroyed;
        sum.left += done.left;
    }
    let Rewrapped { rewrapped, current, destroyed, left } = sum;
    println!("{rewrapped} keys of persons were wrapped anew, {current} were already, {destroyed} are destroyed");
    if left > 0 {
        eprintln!(
            "{left} keys are wrapped by another master key still: some process makes new ones by it. Give every process the new \
             one first, as new,old, and run this again; without the old one nothing of these persons would open any more"
        );
        return Ok(ExitCode::FAILURE);
    }
    println!(
        "the current master key opens all of them. When every process has it alone, run this once more with it alone,"
    );
    println!("and {THE_OLD_ONE}");
    Ok(ExitCode::SUCCESS)
}
