//! Sends the log to the topic: every event at least once, each shard's in log order.
//!
//! ```text
//! take a shard's lock ─▶ where did we get? ─▶ read after what was sent ─▶ produce ─▶ acknowledged ─▶ checkpoint
//!                        (checkpoint, and         ▲                                                      │
//!                         the topic's own end)    └────────────── on a notification, or a second ────────┘
//! ```
//!
//! # What must hold
//! * A checkpoint is only what a broker has acknowledged, of that shard and without a gap.
//! * In the topic, every position's first message comes after that of the position before. One idempotent producer sends
//!   in order; it never gives a message up and goes on with the next. Two relays on one shard (the one of before still
//!   has messages on their way) each send in order from what was acknowledged, so even mixed they only repeat.
//! * The log is only read. What an append needs is never locked, however slow or far away the brokers are.
//! * What is in memory is bounded: a window of events for each shard.
//!
//! Each shard has one relay at a time: it holds the shard's advisory lock for as long as its connection lasts. Others try
//! again every second.
//!
//! The topic is trusted no more than the checkpoint: when it ends before it (it was made anew, or a broker has lost what it
//! acknowledged), sending starts from where the topic ends. Nor is the log: when the topic has what the log has not, the
//! log has lost events, and the shard stands still (`relay/starts.rs`).
//!
//! A shard also stands still before an event that the brokers refuse (`relay/refusals.rs`), and a relay that does not reach them
//! holds no locks.

mod lag;
mod producer;
mod refusals;
mod session;
mod starts;

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use rdkafka::error::KafkaError;
use skyriff_domain::{ShardCount, ShardId};
use skyriff_follow::{LogDatabase, LogError, log};
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{
    lag::{LAG_EVENTS, LAG_SECONDS},
    refusals::Refusals,
    session::Session,
};
use crate::{settings::Settings, topic::TopicError};

/// Events of one shard that may be on their way.
pub(crate) const IN_FLIGHT_MAX: i64 = 1_000;
/// A notification may be lost with its connection; after this time the log is read anyway, and locks are tried for.
const READ_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// A step that takes longer is given up, with the connection and the locks.
const STEP_MAX: Duration = Duration::from_secs(30);
/// The wait after a failure, and its growth.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// When a relay's machine is gone without a word, Postgres notices within so many seconds and frees the locks.
const KEEP_ALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "5"), ("tcp_keepalives_interval", "2"), ("tcp_keepalives_count", "3")];

/// Events acknowledged by a broker.
const EVENTS: &str = "skyriff_relay_events_total";
/// 1 for the shards that this process relays.
const ACTIVE: &str = "skyriff_relay_active";
/// 1 while a shard stands still before an event that cannot be sent.
const STOPPED: &str = "skyriff_relay_stopped";

/// Relays, running: one for each database of the event store.
#[derive(Debug)]
pub struct Relay {
    tasks: Vec<JoinHandle<Result<(), TopicError>>>,
    stop: CancellationToken,
}

impl Relay {
    /// Relay the log of these databases.
    pub fn start(settings: &Settings, shard_count: ShardCount, logs: &[LogDatabase]) -> Self {
        let stop = CancellationToken::new();
        let run = |log: &LogDatabase| {
            let options = log.options.clone().application_name("skyriff relay").options(KEEP_ALIVE);
            let log = LogDatabase { options, shards: log.shards.clone() };
            tokio::spawn(run(settings.clone(), shard_count, log, stop.clone()))
        };
        Self { tasks: logs.iter().map(run).collect(), stop }
    }

    /// Have what is on its way acknowledged, within reason, and end.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks.into_iter().filter(|task| !task.is_finished()) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a relay ended badly");
            }
        }
    }

    /// Ends when a relay cannot go on, with what to do about it.
    pub async fn failed(&mut self) -> String {
        let (ended, ..) = futures::future::select_all(self.tasks.iter_mut()).await;
        match ended {
            Ok(Ok(())) => "a relay ended by itself".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => format!("a relay ended badly: {error}"),
        }
    }
}

/// A relay could not go on for now.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("the event store cannot be reached")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("Kafka does not take events")]
    Kafka(#[from] KafkaError),
    #[error("an event of shard {shard} was not delivered: {why}")]
    Delivery { shard: ShardId, why: String },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the topic is gone")]
    TopicGone,
    #[error("Kafka does not answer; the locks are given back, so that a relay that reaches it can go on")]
    Away(#[source] TopicError),
    #[error("the event store or Kafka does not answer")]
    Late,
}

/// Session after session; one ends with whatever it cannot go on with.
async fn run(
    settings: Settings,
    shard_count: ShardCount,
    log: LogDatabase,
    stop: CancellationToken,
) -> Result<(), TopicError> {
    let appended = Arc::new(Notify::new());
    let listening = tokio::spawn(log::listen(log.options.clone(), vec![Arc::clone(&appended)], stop.clone()));
    let mut back_off = BACK_OFF;
    let mut refusals = Refusals::default();
    let ended = loop {
        let session = Session::open(&settings, shard_count, &log, &mut refusals);
        let opened = tokio::select! {
            opened = session => opened,
            () = stop.cancelled() => break Ok(()),
        };
        let ended = match opened {
            Ok(mut session) => {
                nothing_is_ours(&log.shards);
                let ended = session.run(&appended, &stop).await;
                if session.has_got_on {
                    back_off = BACK_OFF;
                }
                if ended.is_ok() {
                    session.close().await;
                }
                session.end();
                ended
            }
            Err(error) => Err(error),
        };
        nothing_is_ours(&log.shards);
        match ended {
            Ok(()) => break Ok(()),
            Err(RelayError::Topic(error)) if error.is_about_the_topic() => break Err(error),
            Err(error) => tracing::warn!(error = chain(&error), "the relay starts again"),
        }
        // Without Kafka there is no session, and the lag is all the more of interest.
        let reported = tokio::time::timeout(STEP_MAX, lag::report_idle(&settings, &log)).await;
        if let Err(error) = reported.unwrap_or(Err(RelayError::Late)) {
            tracing::debug!(%error, "the lag is not known");
            lag::is_not_known(&log.shards);
        }
        tokio::select! {
            () = tokio::time::sleep(back_off) => {}
            () = stop.cancelled() => break Ok(()),
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    };
    stop.cancel();
    listening.await.ok();
    ended
}

/// What this process says of shards that it has not, or no longer.
fn nothing_is_ours(shards: &[ShardId]) {
    for shard in shards {
        for name in [ACTIVE, STOPPED, LAG_EVENTS, LAG_SECONDS] {
            gauge!(name, "shard" => shard.to_string()).set(0.0);
        }
    }
}

fn number(shard: ShardId) -> i16 {
    i16::try_from(shard.0).unwrap_or(i16::MAX)
}

fn shard_id(number: i16) -> ShardId {
    ShardId(u16::try_from(number).unwrap_or_default())
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
