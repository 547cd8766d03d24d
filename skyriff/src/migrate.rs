//! `skyriff migrate`: bring the databases up to date.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use skyriff_postgres::databases::{OWNER, migrate_event_store, migrate_read_models};

use crate::config::{DatabaseArguments, Databases};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    migrate(&arguments.databases.databases()?).await?;
    println!("every database is up to date");
    Ok(ExitCode::SUCCESS)
}

/// As their owner. Running it again changes nothing.
pub async fn migrate(databases: &Databases) -> Result<()> {
    for place in &databases.event_store {
        let owner = place.primary.as_role(OWNER);
        let name = owner.get_database().unwrap_or_default().to_owned();
        migrate_event_store(&owner, databases.shard_count, &place.shards).await.with_context(|| name)?;
    }
    for place in &databases.read_models {
        let owner = place.primary.as_role(OWNER);
        let name = owner.get_database().unwrap_or_default().to_owned();
        migrate_read_models(&owner).await.with_context(|| name)?;
    }
    Ok(())
}
