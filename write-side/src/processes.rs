//! What reacts to events by sending commands.
//!
//! ```text
//! log ─▶ follow: which events ask for something ─▶ tasks ─▶ worker: react, with commands ─▶ task deleted
//! ```
//!
//! A process is a file: which events it reacts to, and how ([`tips`], [`payouts`], [`erasures`]). `follow` turns those events into tasks, in one
//! transaction with its checkpoint; `worker` does the tasks, several at once, each until it is done.
//!
//! # What must hold
//! * A reaction is safe to repeat, at any time and beside itself: the streams that it commands remember what has been
//!   done, for ever. The ids of its commands derive from the event that caused them.
//! * A task goes only when its reaction is durable. One that fails is tried again with back-off, without end, and says
//!   why in its row and in a metric: giving up would lose somebody's points.

mod absent;
pub mod erasures;
mod follow;
pub mod payouts;
pub mod tips;
mod worker;

use std::time::Duration;

use chrono::{SubsecRound, Utc};
use skyriff_domain::{Command, CommandId, Intent, Metadata, RecordedEvent, ShardCount, ShardId, UserId, shard_of};
use skyriff_follow::{Followers, LogDatabase, TableDatabase};
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::{absent::AbsentShards, erasures::Erasures};
use crate::{Commands, Failure, Fingerprint, Receipt, Submission, payouts::Payouts};

/// The processes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    /// Brings tips from one shard to another.
    Tips,
    /// Pays withdrawals.
    Payouts,
    /// Takes down what belonged to persons who are forgotten.
    Erasures,
}

impl Process {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tips, Self::Payouts, Self::Erasures];

    /// As in tasks, and in the actor of its commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tips => "tips",
            Self::Payouts => "payouts",
            Self::Erasures => "erasures",
        }
    }

    /// Whether an event asks something of the process.
    fn concerns(self, event: &RecordedEvent, shards: ShardCount) -> bool {
        match self {
            Self::Tips => tips::concerns(event, shards),
            Self::Payouts => payouts::concerns(event),
            Self::Erasures => erasures::concerns(event),
        }
    }

    async fn react(self, event: &RecordedEvent, with: &Services) -> Reaction {
        match self {
            Self::Tips => tips::react(event, with).await,
            Self::Payouts => payouts::react(event, with).await,
            Self::Erasures => erasures::react(event, with).await,
        }
    }

    /// Whether a node with these services runs it.
    const fn runs_with(self, services: &Services) -> bool {
        match self {
            Self::Tips => true,
            Self::Payouts => services.payouts.is_some(),
            Self::Erasures => services.erasures.is_some(),
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
    payouts: Option<Payouts>,
    erasures: Option<Erasures>,
}

/// What came of reacting to an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Everything is done.
    Done,
    /// Not yet.
    Later {
        /// When to look again, if that is how it should go; by back-off, when something went wrong.
        after: Option<Duration>,
        /// Why, for whoever is called at night.
        reason: String,
    },
    /// A person has to do something first: the alarm.
    NeedsAttention {
        /// When to look whether it was done.
        look_again: Duration,
        /// What is wrong.
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
        Self { commands, shards, absent: AbsentShards::default(), payouts: None, erasures: None }
    }

    /// What paying withdrawals takes; a node without it leaves that to others.
    #[must_use]
    pub fn with_payouts(self, payouts: Option<Payouts>) -> Self {
        Self { payouts, ..self }
    }

    /// What forgetting persons takes; a node without it leaves that to others.
    #[must_use]
    pub fn with_erasures(self, erasures: Option<Erasures>) -> Self {
        Self { erasures, ..self }
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
        // When it happened is when its cause did: so a repeated command is the same, and its streams keep their order.
        self.command_at(process, cause, step, Command { user, at: cause.occurred_at, intent }, true).await
    }

    /// Likewise, of something that happens when it is found out, and not when its cause did.
    async fn command_now(
        &self,
        process: Process,
        cause: &RecordedEvent,
        step: &str,
        user: UserId,
        intent: Intent,
    ) -> Result<Receipt, Failure> {
        // The database keeps microseconds; what is decided on must be what is stored.
        let at = Utc::now().trunc_subsecs(6);
        self.command_at(process, cause, step, Command { user, at, intent }, false).await
    }

    async fn command_at(
        &self,
        process: Process,
        cause: &RecordedEvent,
        step: &str,
        command: Command,
        same_time: bool,
    ) -> Result<Receipt, Failure> {
        let (actor, causation) = (format!("process:{}", process.name()), cause.at.to_string());
        let id = CommandId::derive(&actor, &format!("{causation} {step}"));
        let fingerprint = Fingerprint::of(command.user, same_time.then_some(command.at), &command.intent);
        let fingerprint = fingerprint.map_err(|error| Failure::Fault(error.to_string().into()))?;
        let metadata = Metadata {
            command_id: id,
            actor,
            request_id: format!("{}-{causation}", process.name()),
            causation: Some(causation),
            traceparent: None,
            address: None,
        };
        let pass = self.absent.enter(shard_of(command.user, self.shards)).ok_or(Failure::Unavailable)?;
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
        let processes: Vec<_> = Process::ALL.into_iter().filter(|process| process.runs_with(services)).collect();
        let followers =
            processes.iter().map(|process| follow::TaskFinder { process: *process, shards: services.shards });
        let followers: Vec<_> = followers.collect();
        let followers = Followers::start(&followers, "skyriff process", &logs, &tables);
        let mut workers = Vec::new();
        for place in databases {
            for process in &processes {
                let worker = worker::Worker {
                    process: *process,
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
