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
//! acknowledged), sending starts from where the topic ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use metrics::{counter, gauge};
use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};
use skyriff_domain::{Position, ShardCount, ShardId};
use skyriff_follow::{Behind, LogDatabase, LogError, log};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    context,
    message::StoredEvent,
    probe::Probe,
    settings::Settings,
    topic::{self, TopicError},
};

/// Events of one shard that may be on their way.
pub(crate) const IN_FLIGHT_MAX: i64 = 1_000;
/// A shard is read again when so many more would fit, so that reads stay large.
const READ_WHEN_FREE: i64 = IN_FLIGHT_MAX / 2;
/// What all events on their way may take, in KiB.
const IN_FLIGHT_MAX_KIB: &str = "65536";
/// A notification may be lost with its connection; after this time the log is read anyway, and locks are tried for.
const READ_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// Acknowledgements within this time become one checkpoint.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(100);
/// How often the log says how far the relay is, when it got any further.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// A step that takes longer is given up, with the connection and the locks.
const STEP_MAX: Duration = Duration::from_secs(30);
/// When nothing is acknowledged for so long, see whether the topic is still there: a producer waits for ever for one that
/// is not.
const STALLED_AFTER: Duration = Duration::from_secs(3);
/// Looking at where the topic ends takes a while for each shard.
const TAKE_MAX: Duration = Duration::from_secs(120);
/// When told to stop, how long what is on its way may take to be acknowledged.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// The wait after a failure, and its growth.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// When a relay's machine is gone without a word, Postgres notices within so many seconds and frees the locks.
const KEEP_ALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "5"), ("tcp_keepalives_interval", "2"), ("tcp_keepalives_count", "3")];

/// Events that the log has and the topic has not, by `shard`.
const LAG_EVENTS: &str = "skyriff_relay_lag_events";
/// Seconds since the oldest event that is not in the topic yet was recorded; 0 when there is none.
const LAG_SECONDS: &str = "skyriff_relay_lag_seconds";
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
    let ended = loop {
        let session = Session::open(&settings, shard_count, &log);
        let opened = tokio::select! {
            opened = session => opened,
            () = stop.cancelled() => break Ok(()),
        };
        let ended = match opened {
            Ok(mut session) => {
                nothing_is_ours(&log.shards);
                let ended = session.run(&appended, &stop).await;
                if session.has_sent {
                    back_off = BACK_OFF;
                }
                if ended.is_ok() {
                    session.close().await;
                }
                ended
            }
            Err(error) => Err(error),
        };
        nothing_is_ours(&log.shards);
        match ended {
            Ok(()) => break Ok(()),
            Err(RelayError::Topic(error @ TopicError::PartitionCount { .. })) => break Err(error),
            Err(error) => tracing::warn!(error = chain(&error), "the relay starts again"),
        }
        // Without Kafka there is no session, and the lag is all the more of interest.
        match tokio::time::timeout(STEP_MAX, report_idle(&settings, &log)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the lag is not known"),
            Err(_) => tracing::debug!("the lag is not known: the event store does not answer"),
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

/// A connection that holds locks, a producer, and how far each shard is.
struct Session<'a> {
    settings: &'a Settings,
    shard_count: ShardCount,
    log: &'a LogDatabase,
    connection: PgConnection,
    producer: ThreadedProducer<Deliveries>,
    deliveries: Deliveries,
    lanes: BTreeMap<ShardId, Lane>,
    has_sent: bool,
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
}

/// Since when nothing was acknowledged although something is on its way, and who looks why.
#[derive(Default)]
struct Stall {
    acked: BTreeMap<ShardId, Position>,
    since: Option<Instant>,
    looking: Option<JoinHandle<Result<bool, TopicError>>>,
}

#[derive(Default)]
struct Progress {
    since: Option<Instant>,
    events: i64,
}

impl<'a> Session<'a> {
    async fn open(settings: &'a Settings, shard_count: ShardCount, log: &'a LogDatabase) -> Result<Self, RelayError> {
        let connection = tokio::time::timeout(STEP_MAX, log.options.connect()).await;
        let connection = connection.map_err(|_| RelayError::Late)??;
        topic::ensure(settings, shard_count).await?;
        let deliveries = Deliveries::default();
        let mut config = settings.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Never given up: the next event must not get there without this one. Waiting costs nothing but lag.
            .set("message.timeout.ms", "0")
            .set("enable.gapless.guarantee", "true")
            .set("queue.buffering.max.kbytes", IN_FLIGHT_MAX_KIB)
            .set("linger.ms", "1");
        if config.get("compression.codec").or(config.get("compression.type")).is_none() {
            config.set("compression.codec", "lz4");
        }
        let producer = config.create_with_context(deliveries.clone())?;
        Ok(Self {
            settings,
            shard_count,
            log,
            connection,
            producer,
            deliveries,
            lanes: BTreeMap::new(),
            has_sent: false,
            progress: Progress::default(),
            stall: Stall::default(),
            locks_at: None,
            checkpoints_at: None,
            report_at: None,
        })
    }

    async fn run(&mut self, appended: &Notify, stop: &CancellationToken) -> Result<(), RelayError> {
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
                    () = deliveries.0.more.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        // What is on its way gets some time to be acknowledged; what is not is sent again by whoever comes next.
        let end = Instant::now() + DRAIN_MAX;
        while self.lanes.iter().any(|(shard, lane)| self.deliveries.acked(*shard) < lane.sent) {
            tokio::select! {
                () = deliveries.0.more.notified() => {}
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
        if is_due(&mut self.checkpoints_at, CHECKPOINT_EVERY) {
            self.write_checkpoints().await?;
        }
        if is_due(&mut self.report_at, READ_AT_LEAST_EVERY) {
            self.report().await?;
        }
        Ok(more)
    }

    /// A broker that is away is waited for; a topic that is gone has to be made again.
    async fn look_when_stalled(&mut self) -> Result<(), RelayError> {
        let acked = self.deliveries.all_acked();
        let in_flight = self.lanes.iter().any(|(shard, lane)| acked.get(shard).is_some_and(|acked| *acked < lane.sent));
        let stall = &mut self.stall;
        if !in_flight || acked != stall.acked {
            *stall = Stall { acked, since: None, looking: None };
            return Ok(());
        }
        let since = *stall.since.get_or_insert_with(Instant::now);
        if let Some(looking) = stall.looking.take_if(|looking| looking.is_finished()) {
            stall.since = None;
            match looking.await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Err(RelayError::TopicGone),
                Ok(Err(error @ TopicError::PartitionCount { .. })) => return Err(error.into()),
                Ok(Err(TopicError::Kafka(error))) => tracing::debug!(%error, "Kafka does not say why it takes nothing"),
                Err(error) => tracing::error!(%error, "looking for the topic ended badly"),
            }
        } else if stall.looking.is_none() && since.elapsed() >= STALLED_AFTER {
            let (settings, shard_count) = (self.settings.clone(), self.shard_count);
            stall.looking = Some(tokio::spawn(async move { topic::check(&settings, shard_count).await }));
        }
        Ok(())
    }

    /// Lock the shards that nobody has, and find out how far they are.
    async fn take_shards(&mut self) -> Result<(), RelayError> {
        let free: Vec<_> = self.log.shards.iter().filter(|shard| !self.lanes.contains_key(shard)).copied().collect();
        if free.is_empty() || !is_due(&mut self.locks_at, READ_AT_LEAST_EVERY) {
            return Ok(());
        }
        let numbers: Vec<_> = free.into_iter().map(number).collect();
        let mut taken = Vec::new();
        for shard in numbers {
            // A class of locks for each topic; held until the connection ends.
            let is_ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('skyriff relay ' || $1), $2)")
                .bind(&self.settings.topic)
                .bind(i32::from(shard))
                .fetch_one(&mut self.connection)
                .await?;
            taken.extend(is_ours.then_some(shard));
        }
        if taken.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO relay_checkpoints (topic, shard) SELECT $1, unnest($2::smallint[]) ON CONFLICT DO NOTHING",
        )
        .bind(&self.settings.topic)
        .bind(&taken)
        .execute(&mut self.connection)
        .await?;
        let checkpoints: Vec<(i16, i64)> =
            sqlx::query_as("SELECT shard, position FROM relay_checkpoints WHERE topic = $1 AND shard = ANY ($2)")
                .bind(&self.settings.topic)
                .bind(&taken)
                .fetch_all(&mut self.connection)
                .await?;
        let of = |(shard, position)| (shard_id(shard), Position(position));
        let checkpoints: BTreeMap<_, _> = checkpoints.into_iter().map(of).collect();
        tracing::info!(shards = list(checkpoints.keys()), topic = self.settings.topic, "relaying");
        let (asked, settings) = (checkpoints.clone(), self.settings.clone());
        let starts = tokio::task::spawn_blocking(move || starts(&settings, asked)).await;
        for (shard, start) in starts.unwrap_or(Err(KafkaError::Canceled))? {
            let checkpoint = checkpoints.get(&shard).copied().unwrap_or_default();
            self.deliveries.start(shard, start);
            self.lanes.insert(shard, Lane { sent: start, checkpoint, stopped: None });
            gauge!(ACTIVE, "shard" => shard.to_string()).set(1.0);
        }
        Ok(())
    }

    /// Give the producer what comes next; whether there may be more at once.
    async fn send(&mut self) -> Result<bool, RelayError> {
        let now = Instant::now();
        let mut rooms = BTreeMap::new();
        for (shard, lane) in &self.lanes {
            let room = IN_FLIGHT_MAX - (lane.sent.0 - self.deliveries.acked(*shard).0);
            if room >= READ_WHEN_FREE && lane.stopped.is_none_or(|(until, _)| until <= now) {
                rooms.insert(*shard, (lane.sent, room));
            }
        }
        if rooms.is_empty() {
            return Ok(false);
        }
        let events: Vec<StoredEvent> = sqlx::query_as(
            "SELECT e.* FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS s (shard, after, room)
             CROSS JOIN LATERAL (
                 SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                        payload::text AS payload, metadata::text AS metadata, occurred_at, recorded_at
                 FROM events e WHERE e.shard = s.shard AND e.position > s.after ORDER BY e.position LIMIT s.room
             ) e ORDER BY e.shard, e.position",
        )
        .bind(rooms.keys().copied().map(number).collect::<Vec<_>>())
        .bind(rooms.values().map(|(after, _)| after.0).collect::<Vec<_>>())
        .bind(rooms.values().map(|(_, room)| *room).collect::<Vec<_>>())
        .fetch_all(&mut self.connection)
        .await?;
        let mut more = false;
        for of_shard in events.chunk_by(|one, next| one.shard == next.shard) {
            let Some(shard) = of_shard.first().map(|event| shard_id(event.shard)) else { continue };
            let room = rooms.get(&shard).map_or(0, |(_, room)| *room);
            more |= i64::try_from(of_shard.len()).is_ok_and(|count| count >= room);
            match self.produce(shard, of_shard) {
                Ok(()) => self.go_on(shard).await?,
                Err(NotSent::QueueFull) => return Ok(false),
                Err(NotSent::StandsStill(why)) => self.stand_still(shard, &why).await?,
            }
        }
        Ok(more)
    }

    fn produce(&mut self, shard: ShardId, events: &[StoredEvent]) -> Result<(), NotSent> {
        let Some(lane) = self.lanes.get_mut(&shard) else { return Ok(()) };
        for event in events {
            if Position(event.position) != lane.sent.next() {
                let found = skyriff_domain::LogPosition { shard, position: Position(event.position) };
                return Err(NotSent::StandsStill(LogError::Gap { found, after: lane.sent }.to_string()));
            }
            let key = event.key();
            let record: BaseRecord<'_, _, _, Box<i64>> =
                BaseRecord::with_opaque_to(&self.settings.topic, Box::new(event.position))
                    .partition(i32::from(shard.0))
                    .key(&key)
                    .payload(&event.payload)
                    .timestamp(event.recorded_at.timestamp_millis())
                    .headers(event.headers(&self.settings.source));
            match self.producer.send(record) {
                Ok(()) => lane.sent = Position(event.position),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => return Err(NotSent::QueueFull),
                Err((error, _)) => {
                    let why = format!("the event at {shard}:{} cannot be sent: {error}", event.position);
                    return Err(NotSent::StandsStill(why));
                }
            }
        }
        self.has_sent = true;
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
            self.progress.events += events;
            counter!(EVENTS).increment(u64::try_from(events).unwrap_or(0));
        }
        Ok(())
    }

    /// How far behind the log the topic is.
    async fn report(&mut self) -> Result<(), RelayError> {
        let acked = self.lanes.keys().map(|shard| (*shard, self.deliveries.acked(*shard))).collect();
        let behind = log::behind(&mut self.connection, &acked).await?;
        show_lag(&behind);
        let now = Instant::now();
        let since = *self.progress.since.get_or_insert(now);
        let lag: i64 = behind.values().map(|behind| behind.events).sum();
        if now - since >= PROGRESS_EVERY && (self.progress.events > 0 || lag > 0) {
            let seconds = behind.values().map(age_s).max().unwrap_or(0);
            let events = self.progress.events;
            tracing::info!(events, lag_events = lag, lag_seconds = seconds, "relayed since the last line like this");
            self.progress = Progress { since: Some(now), events: 0 };
        }
        Ok(())
    }

    /// Give the locks back at once.
    async fn close(&mut self) {
        sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut self.connection).await.ok();
    }
}

/// How far the topic is behind by what is written down, for shards that nobody works on.
async fn report_idle(settings: &Settings, log: &LogDatabase) -> Result<(), RelayError> {
    let mut connection = log.options.connect().await?;
    let written: Vec<(i16, i64)> = sqlx::query_as("SELECT shard, position FROM relay_checkpoints WHERE topic = $1")
        .bind(&settings.topic)
        .fetch_all(&mut connection)
        .await?;
    let mut checkpoints: BTreeMap<_, _> = log.shards.iter().map(|shard| (*shard, Position::default())).collect();
    checkpoints.extend(written.into_iter().map(|(shard, position)| (shard_id(shard), Position(position))));
    show_lag(&log::behind(&mut connection, &checkpoints).await?);
    Ok(())
}

fn show_lag(behind: &BTreeMap<ShardId, Behind>) {
    for (shard, behind) in behind {
        gauge!(LAG_EVENTS, "shard" => shard.to_string()).set(float(behind.events));
        gauge!(LAG_SECONDS, "shard" => shard.to_string()).set(float(age_s(behind)));
    }
}

/// For how long the oldest event has waited.
fn age_s(behind: &Behind) -> i64 {
    let oldest: Option<DateTime<Utc>> = behind.oldest_recorded_at.filter(|_| behind.events > 0);
    oldest.map_or(0, |recorded_at| (Utc::now() - recorded_at).num_seconds())
}

/// What this process says of shards that it has not, or no longer.
fn nothing_is_ours(shards: &[ShardId]) {
    for shard in shards {
        for name in [ACTIVE, STOPPED, LAG_EVENTS, LAG_SECONDS] {
            gauge!(name, "shard" => shard.to_string()).set(0.0);
        }
    }
}

/// Why the producer did not take an event.
enum NotSent {
    QueueFull,
    StandsStill(String),
}

/// Where to go on: after the checkpoint, unless the topic ends before it.
fn starts(
    settings: &Settings,
    checkpoints: BTreeMap<ShardId, Position>,
) -> Result<BTreeMap<ShardId, Position>, KafkaError> {
    let probe = Probe::new(settings)?;
    let mut starts = BTreeMap::new();
    for (shard, checkpoint) in checkpoints {
        let extent = probe.extent(shard)?;
        let start = match probe.last(shard, extent)? {
            Some(last) => checkpoint.min(last),
            // Never written to, or made anew.
            None if extent.1 == 0 => Position::default(),
            // What was there is too old to be kept, or not ours.
            None => checkpoint,
        };
        if start < checkpoint {
            tracing::warn!(%shard, %checkpoint, topic_ends_at = %start, "the topic has lost events; sending them again");
        }
        starts.insert(shard, start);
    }
    Ok(starts)
}

/// What the brokers have said, by shard.
#[derive(Clone, Default)]
struct Deliveries(Arc<Delivered>);

#[derive(Default)]
struct Delivered {
    state: Mutex<DeliveryState>,
    more: Notify,
}

#[derive(Default)]
struct DeliveryState {
    acked: BTreeMap<ShardId, Position>,
    /// Where in its partition the last acknowledged message is.
    offsets: BTreeMap<ShardId, i64>,
    /// The first thing that went wrong; nothing counts as acknowledged after it.
    failure: Option<(ShardId, String)>,
}

impl Deliveries {
    fn state(&self) -> MutexGuard<'_, DeliveryState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, shard: ShardId, at: Position) {
        self.state().acked.insert(shard, at);
    }

    fn acked(&self, shard: ShardId) -> Position {
        self.state().acked.get(&shard).copied().unwrap_or_default()
    }

    fn all_acked(&self) -> BTreeMap<ShardId, Position> {
        self.state().acked.clone()
    }

    fn failure(&self) -> Option<(ShardId, String)> {
        self.state().failure.clone()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        context::warn(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<i64>;

    fn delivery(&self, result: &DeliveryResult<'_>, position: Box<i64>) {
        let (message, error) = match result {
            Ok(message) => (message, None),
            Err((error, message)) => (message, Some(error)),
        };
        let shard = ShardId(u16::try_from(message.partition()).unwrap_or(u16::MAX));
        let position = Position(*position);
        let mut state = self.state();
        let last = state.acked.get(&shard).copied().unwrap_or_default();
        // A repeated batch may be acknowledged without an offset.
        let offset = Some(message.offset()).filter(|offset| *offset >= 0);
        let before = state.offsets.get(&shard).copied();
        if state.failure.is_none() {
            match error {
                None if offset.is_some_and(|offset| before.is_some_and(|before| offset <= before)) => {
                    let why =
                        format!("the topic has lost events: {position} is at an offset that was another's before");
                    state.failure = Some((shard, why));
                }
                None if position == last.next() => {
                    state.acked.insert(shard, position);
                    if let Some(offset) = offset {
                        state.offsets.insert(shard, offset);
                    }
                }
                None => state.failure = Some((shard, format!("{position} was acknowledged after {last}"))),
                Some(error) => state.failure = Some((shard, format!("{position}: {error}"))),
            }
        }
        drop(state);
        self.0.more.notify_one();
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

fn number(shard: ShardId) -> i16 {
    i16::try_from(shard.0).unwrap_or(i16::MAX)
}

fn shard_id(number: i16) -> ShardId {
    ShardId(u16::try_from(number).unwrap_or_default())
}

fn float(number: i64) -> f64 {
    i32::try_from(number).map_or(f64::from(i32::MAX), f64::from)
}

fn list<'a>(shards: impl Iterator<Item = &'a ShardId>) -> String {
    shards.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
