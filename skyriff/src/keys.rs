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
    /// Wrap every person's key by the first of the master keys; afterwards the others are needed no more. Every process has
    /// to have `new,old` before, or it goes on wrapping new persons' keys by the old one.
    Rewrap(Rewrap),
}

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
    }
    let Rewrapped { rewrapped, current, destroyed } = sum;
    println!("{rewrapped} keys of persons were wrapped anew, {current} were already, {destroyed} are destroyed");
    println!("the current master key opens all of them; keep the others only for backups from before");
    Ok(ExitCode::SUCCESS)
}
