//! One session of a relay: a connection to the event store that holds locks, and a producer.

mod sending;
mod taking;

use std::{collections::BTreeMap, time::Duration};

use metrics::{counter, gauge};
use rdkafka::{error::KafkaError, producer::Producer as _};
use skyriff_domain::{Position, ShardCount, ShardId};
use skyriff_follow::{LogDatabase, log};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    BACK_OFF, BACK_OFF_MAX, EVENTS, READ_AT_LEAST_EVERY, RelayError, STEP_MAX, STOPPED, lag, number,
    producer::{self, Deliveries, Producer},
    refusals::Refusals,
};
use crate::{
    settings::Settings,
    topic::{self, TopicError},
};

/// Acknowledgements within this time become one checkpoint.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(100);
/// How often the log says how far the relay is, when it got any further.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// When nothing is acknowledged for so long, see whether the topic is still there: a producer waits for ever for one that
/// is not.
const STALLED_AFTER: Duration = Duration::from_secs(3);
/// When nothing is acknowledged and Kafka does not answer for so long, give the locks back: a relay that reaches it may
/// wait for them. Longer than a broker takes to be started again or a leader to be elected, since what is on its way is
/// sent again afterwards.
const UNANSWERED_MAX: Duration = Duration::from_secs(15);
/// Looking at where the topic ends takes a while for each shard.
const TAKE_MAX: Duration = Duration::from_secs(120);
/// When told to stop, how long what is on its way may take to be acknowledged.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// A connection that holds locks, a producer, and how far each shard is.
pub(super) struct Session<'a> {
    settings: &'a Settings,
    shard_count: ShardCount,
    log: &'a LogDatabase,
    refusals: &'a mut Refusals,
    connection: PgConnection,
    producer: Producer,
    deliveries: Deliveries,
    lanes: BTreeMap<ShardId, Lane>,
    /// Whether a checkpoint has moved.
    pub(super) has_got_on: bool,
    progress: Progress,
    stall: Stall,
    /// When locks were tried for, checkpoints written and lag measured.
    locks_at: Option<Instant>,
    checkpoints_at: Option<Instant>,
    report_at: Option<Instant>,
}

/// One shard that is ours.
struct Lane {
    /// Read, and given to the producer.
    sent: Position,
    /// As in the table.
    checkpoint: Position,
    /// It stands still, until then.
    stopped: Option<(Instant, Duration)>,
    /// The topic has events that the log has not: nothing is sent.
    parted: bool,
    /// Somebody tries to deliver the event that the brokers have refused.
    trial: Option<JoinHandle<Result<(), String>>>,
}

/// Since when nothing was acknowledged although something is on its way, who looks why, and since when nobody has told.
#[derive(Default)]
struct Stall {
    acked: BTreeMap<ShardId, Position>,
    since: Option<Instant>,
    looking: Option<JoinHandle<Result<bool, TopicError>>>,
    unanswered_since: Option<Instant>,
}

#[derive(Default)]
struct Progress {
    since: Option<Instant>,
    events: i64,
}

impl<'a> Session<'a> {
    pub(super) async fn open(
        settings: &'a Settings,
        shard_count: ShardCount,
        log: &'a LogDatabase,
        refusals: &'a mut Refusals,
    ) -> Result<Self, RelayError> {
        let connection = tokio::time::timeout(STEP_MAX, log.options.connect()).await;
        let connection = connection.map_err(|_| RelayError::Late)??;
        // Kafka is asked before any lock is taken: a relay that does not reach it is in nobody's way.
        let form = topic::ensure(settings, shard_count).await?;
        let (producer, deliveries) = producer::make(settings, form, refusals.one_by_one())?;
        Ok(Self {
            settings,
            shard_count,
            log,
            refusals,
            connection,
            producer,
            deliveries,
            lanes: BTreeMap::new(),
            has_got_on: false,
            progress: Progress::default(),
            stall: Stall::default(),
            locks_at: None,
            checkpoints_at: None,
            report_at: None,
        })
    }

    pub(super) async fn run(&mut self, appended: &Notify, stop: &CancellationToken) -> Result<(), RelayError> {
        let deliveries = self.deliveries.clone();
        while !stop.is_cancelled() {
            let more = tokio::select! {
                taken = tokio::time::timeout(TAKE_MAX, self.take_shards()) => {
                    taken.map_err(|_| RelayError::Late)??;
                    tokio::time::timeout(STEP_MAX, self.step()).await.map_err(|_| RelayError::Late)??
                }
                () = stop.cancelled() => break,
            };
            if !more {
                let waits_for_checkpoint =
                    self.lanes.iter().any(|(shard, lane)| deliveries.acked(*shard) > lane.checkpoint);
                let wait = if waits_for_checkpoint { CHECKPOINT_EVERY } else { READ_AT_LEAST_EVERY };
                tokio::select! {
                    () = appended.notified() => {}
                    () = deliveries.more() => {}
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        // What is on its way gets some time to be acknowledged; what is not is sent again by whoever comes next.
        let end = Instant::now() + DRAIN_MAX;
        while self.lanes.iter().any(|(shard, lane)| self.deliveries.acked(*shard) < lane.sent) {
            tokio::select! {
                () = deliveries.more() => {}
                () = tokio::time::sleep_until(end) => break,
            }
        }
        tokio::time::timeout(STEP_MAX, self.write_checkpoints()).await.map_err(|_| RelayError::Late)?
    }

    /// Read, produce and write checkpoints once; whether there may be more to do at once.
    async fn step(&mut self) -> Result<bool, RelayError> {
        if let Some((shard, why)) = self.deliveries.failure() {
            return Err(RelayError::Delivery { shard, why });
        }
        if let Some((code, why)) = self.producer.client().fatal_error() {
            tracing::error!(%code, why, "the producer cannot go on; it is made anew and sends again what was not acknowledged");
            return Err(KafkaError::MessageProduction(code).into());
        }
        self.look_when_stalled().await?;
        let more = self.send().await?;
        self.try_refused().await?;
        if is_due(&mut self.checkpoints_at, CHECKPOINT_EVERY) {
            self.write_checkpoints().await?;
        }
        if is_due(&mut self.report_at, READ_AT_LEAST_EVERY) {
            self.report().await?;
        }
        Ok(more)
    }

    /// A topic that is gone has to be made again, by whoever comes next; and brokers that do not answer at all are waited
    /// for without the locks, since another relay may reach them.
    async fn look_when_stalled(&mut self) -> Result<(), RelayError> {
        let acked = self.deliveries.all_acked();
        let in_flight = self.lanes.iter().any(|(shard, lane)| acked.get(shard).is_some_and(|acked| *acked < lane.sent));
        let stall = &mut self.stall;
        if !in_flight || acked != stall.acked {
            *stall = Stall { acked, ..Stall::default() };
            return Ok(());
        }
        let now = Instant::now();
        let since = *stall.since.get_or_insert(now);
        let unanswered_since = *stall.unanswered_since.get_or_insert(now);
        if let Some(looking) = stall.looking.take_if(|looking| looking.is_finished()) {
            stall.since = None;
            match looking.await {
                Ok(Ok(true)) => stall.unanswered_since = None,
                Ok(Ok(false)) => return Err(RelayError::TopicGone),
                Ok(Err(error)) if error.is_about_the_topic() => return Err(error.into()),
                Ok(Err(error)) if unanswered_since.elapsed() >= UNANSWERED_MAX => return Err(RelayError::Away(error)),
                Ok(Err(error)) => tracing::debug!(%error, "Kafka does not say why it takes nothing"),
                Err(error) => tracing::error!(%error, "looking for the topic ended badly"),
            }
        } else if stall.looking.is_none() && since.elapsed() >= STALLED_AFTER {
            let (settings, shard_count) = (self.settings.clone(), self.shard_count);
            stall.looking = Some(tokio::spawn(async move { topic::is_there(&settings, shard_count).await }));
        }
        Ok(())
    }

    async fn stand_still(&mut self, shard: ShardId, why: &str) -> Result<(), RelayError> {
        let Some(lane) = self.lanes.get_mut(&shard) else { return Ok(()) };
        let back_off = lane.stopped.map_or(BACK_OFF, |(_, back_off)| (back_off * 2).min(BACK_OFF_MAX));
        if lane.stopped.is_none() {
            tracing::error!(%shard, error = why, "a shard of the relay stands still");
        }
        lane.stopped = Some((Instant::now() + back_off, back_off));
        gauge!(STOPPED, "shard" => shard.to_string()).set(1.0);
        self.say_stopped(shard, Some(why)).await
    }

    async fn go_on(&mut self, shard: ShardId) -> Result<(), RelayError> {
        let Some(lane) = self.lanes.get_mut(&shard) else { return Ok(()) };
        if lane.stopped.take().is_none() {
            return Ok(());
        }
        tracing::info!(%shard, "a shard of the relay goes on");
        gauge!(STOPPED, "shard" => shard.to_string()).set(0.0);
        self.say_stopped(shard, None).await
    }

    async fn say_stopped(&mut self, shard: ShardId, why: Option<&str>) -> Result<(), RelayError> {
        sqlx::query("UPDATE relay_checkpoints SET stopped = $3 WHERE topic = $1 AND shard = $2")
            .bind(&self.settings.topic)
            .bind(number(shard))
            .bind(why)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Write down what was acknowledged.
    async fn write_checkpoints(&mut self) -> Result<(), RelayError> {
        let mut moved = Vec::new();
        for (shard, lane) in &self.lanes {
            let acked = self.deliveries.acked(*shard);
            if acked != lane.checkpoint && acked <= lane.sent {
                moved.push((*shard, lane.checkpoint, acked));
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        // Losing a checkpoint in a crash of the database costs sending a little again, so nothing waits for the disk.
        let mut transaction = self.connection.begin().await?;
        sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *transaction).await?;
        sqlx::query(
            "UPDATE relay_checkpoints c SET position = m.acked, updated_at = now(), stopped = NULL
             FROM unnest($2::smallint[], $3::bigint[], $4::bigint[]) AS m (shard, before, acked)
             WHERE c.topic = $1 AND c.shard = m.shard AND c.position = m.before",
        )
        .bind(&self.settings.topic)
        .bind(moved.iter().map(|(shard, ..)| number(*shard)).collect::<Vec<_>>())
        .bind(moved.iter().map(|(_, before, _)| before.0).collect::<Vec<_>>())
        .bind(moved.iter().map(|(.., acked)| acked.0).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        for (shard, before, acked) in moved {
            if let Some(lane) = self.lanes.get_mut(&shard) {
                lane.checkpoint = acked;
            }
            let events = (acked.0 - before.0).max(0);
            self.has_got_on |= events > 0;
            self.progress.events += events;
            counter!(EVENTS).increment(u64::try_from(events).unwrap_or(0));
        }
        Ok(())
    }

    /// How far behind the log the topic is.
    async fn report(&mut self) -> Result<(), RelayError> {
        let acked = self.lanes.keys().map(|shard| (*shard, self.deliveries.acked(*shard))).collect();
        let behind = log::behind(&mut self.connection, &acked).await?;
        lag::show(&behind);
        let now = Instant::now();
        let since = *self.progress.since.get_or_insert(now);
        let lag_events: i64 = behind.values().map(|behind| behind.events).sum();
        if now - since >= PROGRESS_EVERY && (self.progress.events > 0 || lag_events > 0) {
            let seconds = behind.values().map(lag::age_s).max().unwrap_or(0);
            let events = self.progress.events;
            tracing::info!(events, lag_events, lag_seconds = seconds, "relayed since the last line like this");
            self.progress = Progress { since: Some(now), events: 0 };
        }
        Ok(())
    }

    /// Give the locks back at once.
    pub(super) async fn close(&mut self) {
        sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut self.connection).await.ok();
    }

    /// End the producer, which then has told of every event what became of it, and remember what was refused.
    pub(super) fn end(self) {
        let Self { producer, deliveries, refusals, .. } = self;
        drop(producer);
        if let Some(refused) = deliveries.refused() {
            refusals.add(refused);
        }
    }
}

/// Whether it was not done for so long; it counts as done then.
fn is_due(at: &mut Option<Instant>, every: Duration) -> bool {
    let due = at.is_none_or(|at| at.elapsed() >= every);
    if due {
        *at = Some(Instant::now());
    }
    due
}
