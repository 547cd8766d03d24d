//! A command on its way: what is handed in, and what comes back.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyriff_domain::{
    Command, CommandId, Intent, LogPosition, Metadata, PointsPolicy, Refusal, ShardCount, ShardId, StreamId, UserId,
    shard_of,
};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::executor::{self, Executor, Item, Pending, SnapshotWriter};

/// A command with everything that is fixed when it arrives.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The same for every retry.
    pub id: CommandId,
    /// Tells a retry from another command under the same key.
    pub fingerprint: Fingerprint,
    /// What is asked.
    pub command: Command,
    /// Who asks; goes into every event.
    pub metadata: Metadata,
}

/// What a command asks for, as 128 bits: two that differ were not the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub Uuid);

impl Fingerprint {
    /// Over what the client said; a time that the server filled in is not part of it.
    ///
    /// # Errors
    /// None for the intents there are; the signature is serde's.
    pub fn of(user: UserId, said_at: Option<DateTime<Utc>>, intent: &Intent) -> Result<Self, serde_json::Error> {
        #[derive(Serialize)]
        struct Said<'a> {
            user: UserId,
            at: Option<DateTime<Utc>>,
            intent: &'a Intent,
        }
        let digest = Sha256::digest(serde_json::to_vec(&Said { user, at: said_at, intent })?);
        let mut half = [0; 16];
        half.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Ok(Self(Uuid::from_bytes(half)))
    }
}

/// What came of an accepted command.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The command's last event; the head of the shard when it recorded nothing.
    pub position: LogPosition,
    /// What it recorded, oldest first.
    pub recorded: Vec<Recorded>,
    /// Whether an earlier attempt did it, and this is its answer again.
    pub replayed: bool,
}

/// One recorded event, as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Where.
    pub position: LogPosition,
    /// Of which stream.
    pub stream: StreamId,
    /// Which of the stream's events.
    pub sequence: i64,
    /// Its JSON, byte for byte.
    pub payload: String,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// When the database recorded it.
    pub recorded_at: DateTime<Utc>,
}

/// How the rules refused a command. Remembered under its id for as long as an acceptance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// A rule said no.
    ByRule(Refusal),
    /// It was to be recorded together with one that a rule said no to.
    Together,
}

impl Refused {
    /// As kept beside the command's id.
    ///
    /// # Errors
    /// None for the refusals there are; the signature is serde's.
    pub(crate) fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// # Errors
    /// When it was written by a version that knows other refusals.
    pub(crate) fn decode(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Why a command was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// A rule said no; no event was recorded.
    #[error(transparent)]
    Refused(Refusal),
    /// A rule said no to an earlier attempt, and this is its answer again.
    #[error(transparent)]
    RefusedBefore(Refusal),
    /// The command itself could have been accepted, but not the ones that it was to be recorded together with.
    #[error("another command of the same atomic batch was refused")]
    RefusedTogether,
    /// The idempotency key belongs to another command; nothing was recorded.
    #[error("the idempotency key was used for another command")]
    KeyReused,
    /// The queue is full; nothing was recorded.
    #[error("the queue is full")]
    Overloaded,
    /// Others kept changing the same streams; nothing was recorded.
    #[error("the command kept losing the race for its streams")]
    Conflict,
    /// The event store cannot be reached; nothing was recorded.
    #[error("the event store cannot be reached")]
    Unavailable,
    /// The event store went away while it was appending. It may or may not be recorded.
    #[error("the event store went away in the middle of an append")]
    OutcomeUnknown,
    /// Something of ours is broken; nothing was recorded.
    #[error("the event store refused the append: {0}")]
    Fault(Arc<str>),
}

/// How much the command side takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Executors for each database. Few make large batches; two overlap deciding with committing.
    pub executors_per_database: usize,
    /// Commands that may wait for one executor; more are refused at once.
    pub queue_max: usize,
    /// Commands in one append.
    pub batch_max: usize,
    /// Memory for streams, in bytes, over all executors.
    pub cache_bytes_max: usize,
    /// Events of a stream between two snapshots of it.
    pub snapshot_every: i64,
    /// How long a command is tried for before it is answered as unavailable.
    pub patience: Duration,
    /// How long a command id is remembered at least: a retry within this time is never applied twice.
    pub keep_commands: Duration,
    /// Whether to append only where a commit means that a synchronous standby has it too.
    pub require_standby: bool,
    /// How long one append may take before its connection is given up.
    pub append_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            executors_per_database: 2,
            queue_max: 4_096,
            batch_max: 1_024,
            cache_bytes_max: 256 * 1_024 * 1_024,
            snapshot_every: 500,
            keep_commands: Duration::from_secs(72 * 3_600),
            require_standby: false,
            patience: Duration::from_secs(10),
            append_timeout: Duration::from_secs(5),
        }
    }
}

/// One database of the event store and the shards that live there.
#[derive(Clone, Debug)]
pub struct EventDatabase {
    /// How to connect, as the role that may append.
    pub options: PgConnectOptions,
    /// Its shards.
    pub shards: Vec<ShardId>,
}

/// Where commands are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands {
    shard_count: ShardCount,
    queues: Arc<HashMap<ShardId, mpsc::Sender<Pending>>>,
}

/// The running command side.
#[derive(Debug)]
pub struct CommandSide {
    /// Where commands are handed in.
    pub commands: Commands,
    tasks: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl CommandSide {
    /// Start the executors. They connect by themselves, and again whenever the connection is lost.
    pub fn start(databases: &[EventDatabase], shard_count: ShardCount, policy: &PointsPolicy, limits: &Limits) -> Self {
        let stop = CancellationToken::new();
        let mut queues = HashMap::new();
        let mut tasks = Vec::new();
        let executors = databases.len().max(1) * limits.executors_per_database.max(1);
        for database in databases {
            let (snapshots, writer) = SnapshotWriter::start(database.options.clone());
            tasks.push(writer);
            let keep = executor::keep_commands(database.options.clone(), limits.keep_commands, stop.clone());
            tasks.push(tokio::spawn(keep));
            for index in 0..limits.executors_per_database.max(1) {
                let of_this = database.shards.iter().enumerate();
                let of_this = of_this.filter(|(place, _)| place % limits.executors_per_database.max(1) == index);
                let shards: Vec<_> = of_this.map(|(_, shard)| *shard).collect();
                let (queue, waiting) = mpsc::channel(limits.queue_max);
                queues.extend(shards.iter().map(|shard| (*shard, queue.clone())));
                let settings = executor::Settings {
                    name: format!("{}-{index}", database.options.get_database().unwrap_or("events")).into(),
                    shards,
                    policy: policy.clone(),
                    cache_bytes_max: limits.cache_bytes_max / executors,
                    limits: limits.clone(),
                };
                let executor = Executor::new(settings, database.options.clone(), waiting, snapshots.clone());
                tasks.push(tokio::spawn(executor.run(stop.clone())));
            }
        }
        Self { commands: Commands { shard_count, queues: Arc::new(queues) }, tasks, stop }
    }

    /// Take no more commands, answer the ones that wait, and end.
    pub async fn stop(self) {
        self.stop.cancel();
        drop(self.commands);
        // One that has ended was awaited already, by `failed`, or has nothing left to say.
        for task in self.tasks.into_iter().filter(|task| !task.is_finished()) {
            if let Err(error) = task.await {
                tracing::error!(%error, "an executor ended badly");
            }
        }
    }

    /// Ends when a task of the command side ended although nobody stopped it: a bug, and the process should end too.
    pub async fn failed(&mut self) -> String {
        let (ended, ..) = futures::future::select_all(self.tasks.iter_mut()).await;
        match ended {
            Ok(()) => "an executor ended by itself".to_owned(),
            Err(error) => format!("an executor ended badly: {error}"),
        }
    }
}

impl Commands {
    /// Decide a command and append what it records; answers when that is durable.
    ///
    /// # Errors
    /// [`Failure`]; every one but [`Failure::OutcomeUnknown`] means that nothing was recorded.
    pub async fn execute(&self, submission: Submission) -> Result<Receipt, Failure> {
        let shard = self.shard_of(submission.command.user);
        let (item, answered) = item(submission);
        let queue = self.queues.get(&shard).ok_or(Failure::Unavailable)?;
        queue.try_send(Pending::new(vec![item], shard, Instant::now())).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => overloaded(),
            mpsc::error::TrySendError::Closed(_) => Failure::Unavailable,
        })?;
        answered.await.unwrap_or(Err(Failure::OutcomeUnknown))
    }

    /// Hand in several commands, each on its own; commands of one user are decided in this order. Where a queue is
    /// full this waits for room, which slows whoever sends many at once instead of turning away everybody else.
    pub async fn execute_each(&self, submissions: Vec<Submission>) -> Vec<Result<Receipt, Failure>> {
        let arrived = Instant::now();
        let mut answers = Vec::with_capacity(submissions.len());
        let mut full = HashMap::new();
        for submission in submissions {
            let shard = self.shard_of(submission.command.user);
            // What comes after a command that found no room must not overtake it.
            if let Some(failure) = full.get(&shard) {
                answers.push(Err(Failure::clone(failure)));
                continue;
            }
            let (item, answered) = item(submission);
            let sent = self.send(Pending::new(vec![item], shard, arrived)).await;
            if let Err(failure) = &sent {
                full.insert(shard, failure.clone());
            }
            answers.push(sent.map(|()| answered));
        }
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(match answer {
                Ok(answered) => answered.await.unwrap_or(Err(Failure::OutcomeUnknown)),
                Err(failure) => Err(failure),
            });
        }
        results
    }

    /// Hand in commands of one shard that are recorded together or not at all.
    ///
    /// # Errors
    /// [`NotOneShard`] when they are of several.
    pub async fn execute_together(
        &self,
        submissions: Vec<Submission>,
    ) -> Result<Vec<Result<Receipt, Failure>>, NotOneShard> {
        let mut shards: Vec<_> = submissions.iter().map(|submission| self.shard_of(submission.command.user)).collect();
        shards.dedup();
        let shard = match shards.as_slice() {
            [] => return Ok(Vec::new()),
            [shard] => *shard,
            _ => return Err(NotOneShard),
        };
        let (items, answers): (Vec<_>, Vec<_>) = submissions.into_iter().map(item).unzip();
        if let Err(failure) = self.send(Pending::new(items, shard, Instant::now())).await {
            return Ok(answers.iter().map(|_| Err(failure.clone())).collect());
        }
        let mut results = Vec::with_capacity(answers.len());
        for answered in answers {
            results.push(answered.await.unwrap_or(Err(Failure::OutcomeUnknown)));
        }
        Ok(results)
    }

    /// Which shard decides for a user.
    pub fn shard_of(&self, user: UserId) -> ShardId {
        shard_of(user, self.shard_count)
    }

    async fn send(&self, pending: Pending) -> Result<(), Failure> {
        let queue = self.queues.get(&pending.shard()).ok_or(Failure::Unavailable)?;
        match tokio::time::timeout(ROOM_WAIT, queue.send(pending)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::Unavailable),
            Err(_) => Err(overloaded()),
        }
    }
}

/// How long a command of a bulk request waits for room in a queue.
const ROOM_WAIT: Duration = Duration::from_secs(5);

/// Commands that are to be recorded together are of several shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the commands of an atomic batch must be of users of one shard")]
pub struct NotOneShard;

/// An executor that dies takes its queue with it; the closed channel then says that the outcome is unknown.
fn item(submission: Submission) -> (Item, oneshot::Receiver<Result<Receipt, Failure>>) {
    let (answer, answered) = oneshot::channel();
    (Item { submission, answer }, answered)
}

fn overloaded() -> Failure {
    ::metrics::counter!(crate::metrics::OVERLOADED).increment(1);
    Failure::Overloaded
}
