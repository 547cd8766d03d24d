//! `skyriff storage sweep`: delete outputs that no job names.

use std::{collections::HashSet, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use chrono::Utc;
use clap::{Args, Subcommand};
use skyriff_postgres::databases::QUERY;
use skyriff_storage::{
    ObjectName,
    sweep::{self, Limits, Swept},
};
use sqlx::{ConnectOptions, PgConnection};

use crate::{
    config::{DatabaseArguments, Databases},
    outputs::StorageArguments,
    token,
};

#[derive(Subcommand)]
pub enum Command {
    /// Delete outputs that no job names: of attempts that did not come to their end. To be run now and then.
    Sweep(Sweep),
}

#[derive(Args)]
pub struct Sweep {
    #[command(flatten)]
    databases: DatabaseArguments,
    #[command(flatten)]
    storage: StorageArguments,
    /// The folder of `skyriff dev`, whose storage is swept when none is given.
    #[arg(long, default_value = token::FOLDER)]
    folder: PathBuf,
    /// Younger outputs are left alone, in hours: their jobs may still succeed.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=24 * 366))]
    older_than_hours: u32,
    /// At most so many are deleted.
    #[arg(long, default_value_t = Limits::default().deletions_max)]
    deletions_max: u64,
}

pub async fn run(command: Command) -> Result<ExitCode> {
    let Command::Sweep(Sweep { databases, storage, folder, older_than_hours, deletions_max }) = command;
    let (databases, storage) = (databases.databases()?, storage.open(&folder)?);
    let mut logs = connect(&databases).await?;
    let age_min = Duration::from_secs(u64::from(older_than_hours) * 3_600);
    let limits = Limits { age_min, deletions_max, ..Limits::default() };
    let named = async |names: &[ObjectName]| named(&mut logs, names).await;
    let Swept { seen, deleted, foreign, unfinished } = sweep::sweep(&storage, limits, Utc::now(), named).await?;
    println!("{seen} objects in {storage}: {deleted} that no job names and {unfinished} unfinished ones deleted");
    if foreign > 0 {
        println!("{foreign} have names that are not ours, and were left alone");
    }
    Ok(ExitCode::SUCCESS)
}

async fn connect(databases: &Databases) -> Result<Vec<PgConnection>> {
    let mut logs = Vec::new();
    for place in &databases.event_store {
        let options = place.primary.clone().username(QUERY).application_name("skyriff storage");
        logs.push(options.connect().await.context("cannot reach the event store")?);
    }
    Ok(logs)
}

/// Which of these the log says are the output of a job. Asks the primaries of the log itself: a read model or a replica
/// that is behind would let an output go that was just paid for.
async fn named(logs: &mut [PgConnection], names: &[ObjectName]) -> sqlx::Result<HashSet<ObjectName>> {
    let jobs: Vec<_> = names.iter().map(|name| name.job.to_string()).collect();
    let mut named = HashSet::new();
    for log in logs {
        let objects: Vec<Option<String>> = sqlx::query_scalar(
            "SELECT payload::jsonb #>> '{succeeded,output,object}' FROM events
             WHERE aggregate_type = 'video_job' AND event_type = 'succeeded' AND aggregate_id = ANY($1)",
        )
        .bind(&jobs)
        .fetch_all(log)
        .await?;
        named.extend(objects.into_iter().flatten().filter_map(|object| object.parse::<ObjectName>().ok()));
    }
    Ok(named)
}
