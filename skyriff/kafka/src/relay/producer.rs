//! The producer: what it is given goes to the topic in order, and what became of it is known by shard.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
};
use skyriff_domain::{Position, ShardId};
use tokio::sync::Notify;

use crate::{context, message::StoredEvent, settings::Settings, topic::Form};

/// What all events on their way may take, in KiB.
const IN_FLIGHT_MAX_KIB: &str = "65536";
/// How long an event that goes alone may take to be acknowledged.
const ALONE_MAX: Duration = Duration::from_secs(10);

pub(super) type Producer = ThreadedProducer<Deliveries>;

/// A producer, and what it is told; with every event in a batch of its own if asked for.
pub(super) fn make(settings: &Settings, form: Form, alone: bool) -> KafkaResult<(Producer, Deliveries)> {
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
    if let (Some(bytes), None) = (form.batch_bytes_max, config.get("batch.size")) {
        config.set("batch.size", bytes.clamp(1, BATCH_BYTES_MAX).to_string());
    }
    if alone {
        config.set("batch.num.messages", "1");
    }
    Ok((config.create_with_context(deliveries.clone())?, deliveries))
}

/// What a batch has at most wherever the topic takes more: librdkafka's own default.
const BATCH_BYTES_MAX: u32 = 1_000_000;

/// Have it sent after whatever was given before.
pub(super) fn give(producer: &Producer, settings: &Settings, event: &StoredEvent) -> KafkaResult<()> {
    let key = event.key();
    let record: BaseRecord<'_, _, _, Box<i64>> = BaseRecord::with_opaque_to(&settings.topic, Box::new(event.position))
        .partition(i32::from(event.shard))
        .key(&key)
        .payload(&event.payload)
        .timestamp(event.recorded_at.timestamp_millis())
        .headers(event.headers(&settings.source));
    producer.send(record).map_err(|(error, _)| error)
}

/// Deliver one event with a producer of its own, so that what becomes of it concerns no other event; or say why it was
/// not. Blocks.
pub(super) fn deliver_alone(settings: &Settings, event: &StoredEvent) -> Result<(), String> {
    let at = event.identity().at;
    let (producer, deliveries) = make(settings, Form::default(), true).map_err(|error| error.to_string())?;
    deliveries.start(at.shard, Position(at.position.0 - 1));
    give(&producer, settings, event).map_err(|error| error.to_string())?;
    let flushed = producer.flush(ALONE_MAX);
    if deliveries.acked(at.shard) == at.position {
        return Ok(());
    }
    let why = deliveries.refused().map(|refused| refused.why).or(deliveries.failure().map(|(_, why)| why));
    Err(why.unwrap_or_else(|| flushed.err().map_or_else(|| "nobody knows".to_owned(), |error| error.to_string())))
}

/// What the brokers have said, by shard.
#[derive(Clone, Default)]
pub(super) struct Deliveries(Arc<Delivered>);

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
    /// The first event that the brokers did not want for what it is.
    refused: Option<Refused>,
}

/// An event that the brokers did not want.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) shard: ShardId,
    pub(super) position: Position,
    pub(super) why: String,
}

impl Deliveries {
    fn state(&self) -> MutexGuard<'_, DeliveryState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes next of this shard comes after this position.
    pub(super) fn start(&self, shard: ShardId, at: Position) {
        let mut state = self.state();
        state.acked.insert(shard, at);
        state.offsets.remove(&shard);
    }

    pub(super) fn acked(&self, shard: ShardId) -> Position {
        self.state().acked.get(&shard).copied().unwrap_or_default()
    }

    pub(super) fn all_acked(&self) -> BTreeMap<ShardId, Position> {
        self.state().acked.clone()
    }

    pub(super) fn failure(&self) -> Option<(ShardId, String)> {
        self.state().failure.clone()
    }

    pub(super) fn refused(&self) -> Option<Refused> {
        self.state().refused.clone()
    }

    /// Ends when there is something new to be known.
    pub(super) async fn more(&self) {
        self.0.more.notified().await;
    }

    pub(super) fn say_more(&self) {
        self.0.more.notify_one();
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
        if let Some(error) = error.filter(|error| is_about_the_event(error))
            && state.refused.is_none()
        {
            state.refused = Some(Refused { shard, position, why: error.to_string() });
        }
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
        self.say_more();
    }
}

/// Whether the brokers have refused a batch for what is in it, and not for the state that they or the topic are in.
fn is_about_the_event(error: &KafkaError) -> bool {
    let about_events = [
        RDKafkaErrorCode::MessageSizeTooLarge,
        RDKafkaErrorCode::MessageBatchTooLarge,
        RDKafkaErrorCode::InvalidMessage,
        RDKafkaErrorCode::InvalidMessageSize,
        RDKafkaErrorCode::InvalidRecord,
        RDKafkaErrorCode::InvalidTimestamp,
        RDKafkaErrorCode::UnsupportedForMessageFormat,
        RDKafkaErrorCode::PolicyViolation,
    ];
    error.rdkafka_error_code().is_some_and(|code| about_events.contains(&code))
}
