//! Deleting outputs that no job names: `skyriff storage sweep`, and now and then beside the processes.

use std::{collections::HashSet, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use chrono::Utc;
use clap::{Args, Subcommand};
use metrics::counter;
use skyriff_postgres::databases::{self, PROCESS, QUERY};
use skyriff_storage::{
    ObjectName, ObjectStorage,
    sweep::{self, Limits, SweepError, Swept},
};
use sqlx::{ConnectOptions, PgConnection};
use tokio::{sync::Mutex, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

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
    deletions_max: usize,
    /// Delete also when no job names most of them, which looks as if the log were another system's.
    #[arg(long)]
    even_most: bool,
}

/// How long after its start a process sweeps first, so that one that does not live for long does it too.
const FIRST_AFTER: Duration = Duration::from_secs(600);
/// Outputs that were deleted since no job names them.
const SWEPT: &str = "skyriff_storage_swept_total";

pub async fn run(command: Command) -> Result<ExitCode> {
    let Command::Sweep(Sweep { databases, storage, folder, older_than_hours, deletions_max, even_most }) = command;
    let (databases, storage) = (databases.databases()?, storage.open(&folder)?);
    let age_min = Duration::from_secs(u64::from(older_than_hours) * 3_600);
    let limits = Limits { age_min, deletions_max, even_most, ..Limits::default() };
    let logs = connect(&databases, QUERY).await?;
    let Swept { seen, deleted, foreign, unfinished } = sweep(&storage, logs, limits).await.map_err(|error| {
        let is_most = matches!(error, SweepError::Most { .. });
        let error = anyhow::Error::from(error);
        if is_most { error.context("nothing was deleted; --even-most deletes them all the same") } else { error }
    })?;
    println!("{seen} objects in {storage}: {deleted} that no job names and {unfinished} unfinished ones deleted");
    if foreign > 0 {
        println!("{foreign} have names that are not ours, and were left alone");
    }
    Ok(ExitCode::SUCCESS)
}

/// Sweeps beside the processes, running.
#[derive(Debug)]
pub struct Sweeps {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Sweeps {
    /// Sweep soon, and then as often as this. Several processes that do so at once do no harm.
    pub fn start(databases: &Databases, storage: ObjectStorage, every: Duration) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(now_and_then(databases.clone(), storage, every, stop.clone()));
        Self { task, stop }
    }

    /// End; a sweep in hand goes on where it was, the next time.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "sweeping the object storage ended badly");
        }
    }

    /// Ends when it ended although nobody stopped it: a bug, and the process should end too.
    pub async fn failed(&mut self) -> String {
        let ended = (&mut self.task).await;
        format!("sweeping the object storage ended by itself: {ended:?}")
    }
}

async fn now_and_then(databases: Databases, storage: ObjectStorage, every: Duration, stop: CancellationToken) {
    let mut wait = FIRST_AFTER.min(every);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
        wait = every;
        let once = async {
            let logs = connect(&databases, PROCESS).await?;
            Ok::<_, anyhow::Error>(sweep(&storage, logs, Limits::default()).await?)
        };
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            swept = once => swept,
        };
        match swept {
            Ok(Swept { seen, deleted, foreign, unfinished }) => {
                counter!(SWEPT).increment(u64::try_from(deleted).unwrap_or(u64::MAX));
                tracing::info!(seen, deleted, foreign, unfinished, "outputs that no job names are swept");
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the object storage is not swept"),
        }
    }
}

/// Every database of the log, each with the shards that it should have: one that is missing would let outputs go that its
/// jobs name.
async fn connect(databases: &Databases, role: &str) -> Result<Vec<PgConnection>> {
    let mut logs = Vec::new();
    for place in &databases.event_store {
        let options = place.primary.as_role(role).application_name("skyriff storage");
        let mut log = options.connect().await.context("cannot reach the event store")?;
        databases::check_shard_count(&mut log, databases.shard_count).await?;
        logs.push(log);
    }
    Ok(logs)
}

async fn sweep(
    storage: &ObjectStorage,
    logs: Vec<PgConnection>,
    limits: Limits,
) -> Result<Swept, SweepError<sqlx::Error>> {
    let logs = Arc::new(Mutex::new(logs));
    let ask = |names: Vec<ObjectName>| {
        let logs = Arc::clone(&logs);
        async move { named(logs.lock().await.as_mut_slice(), &names).await }
    };
    sweep::sweep(storage, limits, Utc::now(), ask).await
}

/// Which of these the log says are the output of a job, of somebody who is not forgotten. Asks the primaries of the log itself: a read model or a replica
/// that is behind would let an output go that was just paid for.
async fn named(logs: &mut [PgConnection], names: &[ObjectName]) -> sqlx::Result<HashSet<ObjectName>> {
    let jobs: Vec<_> = names.iter().map(|name| name.job.to_string()).collect();
    let mut named = HashSet::new();
    for log in logs {
        let objects: Vec<Option<String>> = sqlx::query_scalar(
            "SELECT payload::jsonb #>> '{succeeded,output,object}' FROM events made
             WHERE aggregate_type = 'video_job' AND event_type = 'succeeded' AND aggregate_id = ANY($1)
               AND NOT EXISTS (
                   SELECT FROM events ordered JOIN events erased
                     ON erased.aggregate_type = 'erasure' AND erased.aggregate_id = ordered.payload #>> '{submitted,user}'
                   WHERE ordered.aggregate_type = 'video_job' AND ordered.aggregate_id = made.aggregate_id
                     AND ordered.sequence = 1
               )",
        )
        .bind(&jobs)
        .fetch_all(log)
        .await?;
        named.extend(objects.into_iter().flatten().filter_map(|object| object.parse::<ObjectName>().ok()));
    }
    Ok(named)
}
