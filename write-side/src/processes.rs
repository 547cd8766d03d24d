//! What reacts to events by sending commands.
//!
//! ```text
//! log ─▶ follow: which events ask for something ─▶ tasks ─▶ worker: react, with commands ─▶ task deleted
//! ```
//!
//! A process is a file: which events it reacts to, and how ([`tips`]). [`follow`] turns those events into tasks, in one
//! transaction with its checkpoint; [`worker`] does the tasks, several at once, each until it is done.
//!
//! # What must hold
//! * A reaction is safe to repeat, at any time and beside itself: the streams that it commands remember what has been
//!   done, for ever. The ids of its commands derive from the event that caused them.
//! * A task goes only when its reaction is durable. One that fails is tried again with back-off, without end, and says
//!   why in its row and in a metric: giving up would lose somebody's points.

mod absent;
mod follow;
pub mod tips;
mod worker;

use std::time::Duration;

use skyriff_domain::{Command, CommandId, Intent, Metadata, RecordedEvent, ShardCount, ShardId, UserId, shard_of};
use skyriff_follow::{Followers, LogDatabase, TableDatabase};
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::absent::AbsentShards;
use crate::{Commands, Failure, Fingerprint, Receipt, Submission};

/// The processes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    /// Brings tips from one shard to another.
    Tips,
}

impl Process {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Tips];

    /// As in tasks, and in the actor of its commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tips => "tips",
        }
    }

    /// Whether an event asks something of the process.
    fn concerns(self, event: &RecordedEvent, shards: ShardCount) -> bool {
        match self {
            Self::Tips => tips::concerns(event, shards),
        }
    }

    async fn react(self, event: &RecordedEvent, with: &Services) -> Reaction {
        match self {
            Self::Tips => tips::react(event, with).await,
        }
    }
}

/// What reactions work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Services {
    /// Where commands are handed in.
    pub commands: Commands,
    /// Which shard decides for a user.
    pub shards: ShardCount,
    absent: AbsentShards,
}

/// What came of reacting to an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Everything is done.
    Done,
    /// Not yet.
    Later {
        /// When to look again; by back-off, unless given.
        after: Option<Duration>,
        /// Why, for whoever is called at night.
        reason: String,
    },
}

impl Reaction {
    fn later(reason: impl ToString) -> Self {
        Self::Later { after: None, reason: reason.to_string() }
    }
}

impl Services {
    /// For reactions that send commands.
    pub fn new(commands: Commands, shards: ShardCount) -> Self {
        Self { commands, shards, absent: AbsentShards::default() }
    }

    /// Send a command because of an event, the same command whenever it is sent again.
    async fn command(
        &self,
        process: Process,
        cause: &RecordedEvent,
        step: &str,
        user: UserId,
        intent: Intent,
    ) -> Result<Receipt, Failure> {
        let (actor, causation) = (format!("process:{}", process.name()), cause.at.to_string());
        let id = CommandId::derive(&actor, &format!("{causation} {step}"));
        // When it happened is when its cause did: so a repeated command is the same, and its streams keep their order.
        let fingerprint = Fingerprint::of(user, Some(cause.occurred_at), &intent);
        let fingerprint = fingerprint.map_err(|error| Failure::Fault(error.to_string().into()))?;
        let metadata = Metadata {
            command_id: id,
            actor,
            request_id: format!("{}-{causation}", process.name()),
            causation: Some(causation),
            traceparent: None,
        };
        let command = Command { user, at: cause.occurred_at, intent };
        let pass = self.absent.enter(shard_of(user, self.shards)).ok_or(Failure::Unavailable)?;
        let result = self.commands.execute(Submission { id, fingerprint, command, metadata }).await;
        pass.came_back_with(&result);
        result
    }
}

/// How much the processes of one node take on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Reactions of one process and database that run at once.
    pub reactions_max: usize,
    /// How long one reaction may take; its task is then tried again.
    pub reaction_timeout: Duration,
    /// The longest wait before a task is tried again.
    pub back_off_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reactions_max: 64, reaction_timeout: Duration::from_secs(30), back_off_max: Duration::from_secs(60) }
    }
}

/// One database of the event store and the shards that live there.
#[derive(Clone, Debug)]
pub struct ProcessDatabase {
    /// How to connect, as the role that keeps what processes have to do.
    pub options: PgConnectOptions,
    /// Its shards.
    pub shards: Vec<ShardId>,
}

/// The running processes.
#[derive(Debug)]
pub struct ProcessSide {
    followers: Followers,
    workers: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl ProcessSide {
    /// Follow the log and do what it asks for. Connects by itself, and again whenever the connection is lost.
    pub fn start(databases: &[ProcessDatabase], services: &Services, limits: &Limits) -> Self {
        let stop = CancellationToken::new();
        let logs: Vec<_> = databases
            .iter()
            .map(|place| LogDatabase { options: place.options.clone(), shards: place.shards.clone() })
            .collect();
        let tables: Vec<_> = databases
            .iter()
            .map(|place| TableDatabase { options: place.options.clone(), shards: place.shards.clone() })
            .collect();
        let followers = Process::ALL.map(|process| follow::TaskFinder { process, shards: services.shards });
        let followers = Followers::start(&followers, "skyriff process", &logs, &tables);
        let mut workers = Vec::new();
        for place in databases {
            for process in Process::ALL {
                let worker = worker::Worker {
                    process,
                    options: place.options.clone().application_name("skyriff process"),
                    services: services.clone(),
                    limits: limits.clone(),
                };
                workers.push(tokio::spawn(worker.run(stop.clone())));
            }
        }
        Self { followers, workers, stop }
    }

    /// Finish the reactions in hand and end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.followers.stop().await;
        for worker in self.workers.into_iter().filter(|worker| !worker.is_finished()) {
            if let Err(error) = worker.await {
                tracing::error!(%error, "the worker of a process ended badly");
            }
        }
    }

    /// Ends when a task of the processes ended although nobody stopped it: a bug, and the process should end too.
    pub async fn failed(&mut self) -> String {
        tokio::select! {
            reason = self.followers.failed() => reason,
            (ended, ..) = futures::future::select_all(self.workers.iter_mut()) => match ended {
                Ok(()) => "the worker of a process ended by itself".to_owned(),
                Err(error) => format!("the worker of a process ended badly: {error}"),
            },
        }
    }
}
