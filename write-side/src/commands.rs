//! A command on its way: what is handed in, and what comes back.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyriff_domain::{
    Command, CommandId, Intent, LogPosition, Metadata, Policy, Refusal, ShardCount, ShardId, StreamId, UserId, shard_of,
};
use sqlx::postgres::PgConnectOptions;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    executor::{self, Executor, Item, Pending, Queue, SnapshotWriter},
    shown_works::ShownWorks,
};

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
    /// Commands that may wait for one executor; more are refused at once. Bulk requests may have half of it.
    pub queue_max: usize,
    /// Commands in one append, unless one atomic batch alone has more.
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

impl Limits {
    /// Commands of bulk requests that may wait for one executor, which is also how many an atomic batch may have. The
    /// rest of the queue is always there for commands that come one by one.
    pub fn bulk_queue_max(&self) -> usize {
        (self.queue_max / 2).max(1)
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
    queues: Arc<Queues>,
    works: Arc<ShownWorks>,
    bulk_queue_max: usize,
}

/// One for each executor.
#[derive(Debug, Default)]
struct Queues {
    queues: Vec<Queue>,
    /// Places in `queues`.
    of_shards: HashMap<ShardId, usize>,
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
    pub fn start(databases: &[EventDatabase], shard_count: ShardCount, policy: &Policy, limits: &Limits) -> Self {
        let stop = CancellationToken::new();
        let mut queues = Queues::default();
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
                let name = format!("{}-{index}", database.options.get_database().unwrap_or("events"));
                let (queue, waiting) = executor::queue(&name, limits);
                queues.of_shards.extend(shards.iter().map(|shard| (*shard, queues.queues.len())));
                queues.queues.push(queue);
                let settings = executor::Settings {
                    name: name.into(),
                    shards,
                    policy: policy.clone(),
                    cache_bytes_max: limits.cache_bytes_max / executors,
                    limits: limits.clone(),
                };
                let executor = Executor::new(settings, database.options.clone(), waiting, snapshots.clone());
                tasks.push(tokio::spawn(executor.run(stop.clone())));
            }
        }
        let works = Arc::new(ShownWorks::new(databases));
        let commands =
            Commands { shard_count, queues: Arc::new(queues), works, bulk_queue_max: limits.bulk_queue_max() };
        Self { commands, tasks, stop }
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
    pub async fn execute(&self, mut submission: Submission) -> Result<Receipt, Failure> {
        self.works.mark(std::slice::from_mut(&mut submission)).await;
        let shard = self.shard_of(submission.command.user);
        let (item, answered) = item(submission);
        let (_, queue) = self.queues.of(shard).ok_or(Failure::Unavailable)?;
        queue.try_send(Pending::new(vec![item], shard, Instant::now())).inspect_err(|failure| counted(failure, 1))?;
        answered.await.unwrap_or(Err(Failure::OutcomeUnknown))
    }

    /// Hand in several commands, each on its own; commands of one user are decided in this order. They wait for room in
    /// the share of each queue that bulk requests may have, which slows whoever sends many at once and nobody else.
    pub async fn execute_each(&self, mut submissions: Vec<Submission>) -> Vec<Result<Receipt, Failure>> {
        self.works.mark(&mut submissions).await;
        let arrived = Instant::now();
        let mut results: Vec<_> = submissions.iter().map(|_| Err(Failure::Unavailable)).collect();
        let mut by_queue = BTreeMap::<_, (_, Vec<_>)>::new();
        for (place, submission) in submissions.into_iter().enumerate() {
            let shard = self.shard_of(submission.command.user);
            if let Some((index, queue)) = self.queues.of(shard) {
                by_queue.entry(index).or_insert((queue, Vec::new())).1.push((place, shard, submission));
            }
        }
        let sent = join_all(by_queue.into_values().map(|(queue, group)| send_each(queue, group, arrived))).await;
        for (place, answer) in sent.into_iter().flatten() {
            let result = match answer {
                Ok(answered) => answered.await.unwrap_or(Err(Failure::OutcomeUnknown)),
                Err(failure) => Err(failure),
            };
            if let Some(slot) = results.get_mut(place) {
                *slot = result;
            }
        }
        results
    }

    /// Hand in commands of one shard that are recorded together or not at all.
    ///
    /// # Errors
    /// [`NotTogether`] when they cannot be.
    pub async fn execute_together(
        &self,
        mut submissions: Vec<Submission>,
    ) -> Result<Vec<Result<Receipt, Failure>>, NotTogether> {
        self.works.mark(&mut submissions).await;
        // One with the same id would wait for the first one's answer, which waits for it.
        let mut ids = HashSet::new();
        if let Some(twice) = submissions.iter().find(|submission| !ids.insert(submission.id)) {
            return Err(NotTogether::Repeated(twice.id));
        }
        let mut shards: Vec<_> = submissions.iter().map(|submission| self.shard_of(submission.command.user)).collect();
        shards.dedup();
        let shard = match shards.as_slice() {
            [] => return Ok(Vec::new()),
            [shard] => *shard,
            _ => return Err(NotTogether::SeveralShards),
        };
        if submissions.len() > self.bulk_queue_max {
            return Err(NotTogether::TooMany { max: self.bulk_queue_max });
        }
        let (items, answers): (Vec<_>, Vec<_>) = submissions.into_iter().map(item).unzip();
        let arrived = Instant::now();
        let sent = match self.queues.of(shard) {
            Some((_, queue)) => queue.send_by(arrived + ROOM_WAIT, Pending::new(items, shard, arrived)).await,
            None => Err(Failure::Unavailable),
        };
        if let Err(failure) = sent {
            counted(&failure, answers.len());
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
}

impl Queues {
    fn of(&self, shard: ShardId) -> Option<(usize, &Queue)> {
        let index = *self.of_shards.get(&shard)?;
        Some((index, self.queues.get(index)?))
    }
}

/// How long a bulk request waits for room in a queue, for all its commands together.
const ROOM_WAIT: Duration = Duration::from_secs(5);

/// Why commands cannot be recorded together, whatever they are: a mistake of whoever sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTogether {
    /// They are of several shards.
    #[error("the commands of an atomic batch must be of users of one shard")]
    SeveralShards,
    /// One of them is there twice.
    #[error("a command stands twice in an atomic batch")]
    Repeated(CommandId),
    /// They would never find room.
    #[error("an atomic batch has at most {max} commands")]
    TooMany {
        /// As [`Limits::bulk_queue_max`] says.
        max: usize,
    },
}

/// Where an answer comes, if the command was handed in.
type Sent = Result<oneshot::Receiver<Result<Receipt, Failure>>, Failure>;

/// Hand in commands for one queue, in order; what comes after one that found no room must not overtake it.
async fn send_each(queue: &Queue, group: Vec<(usize, ShardId, Submission)>, arrived: Instant) -> Vec<(usize, Sent)> {
    let mut failed = None;
    let mut sent = Vec::with_capacity(group.len());
    for (place, shard, submission) in group {
        let (item, answered) = item(submission);
        if failed.is_none() {
            failed = queue.send_by(arrived + ROOM_WAIT, Pending::new(vec![item], shard, arrived)).await.err();
        }
        sent.push((
            place,
            match &failed {
                None => Ok(answered),
                Some(failure) => {
                    counted(failure, 1);
                    Err(failure.clone())
                }
            },
        ));
    }
    sent
}

/// An executor that dies takes its queue with it; the closed channel then says that the outcome is unknown.
fn item(submission: Submission) -> (Item, oneshot::Receiver<Result<Receipt, Failure>>) {
    let (answer, answered) = oneshot::channel();
    (Item { submission, answer }, answered)
}

/// Commands that were not handed in, if it was for want of room.
fn counted(failure: &Failure, commands: usize) {
    if *failure == Failure::Overloaded {
        let commands = u64::try_from(commands).unwrap_or(u64::MAX);
        ::metrics::counter!(crate::metrics::OVERLOADED).increment(commands);
    }
}
