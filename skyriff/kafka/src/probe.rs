//! Looking into a partition: where it ends, and which position is at which offset. Blocks; every look is bounded.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use skyriff_domain::{Position, ShardId};

use crate::{
    context::Logged,
    message::{self, Identity},
    settings::Settings,
};

/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Nobody is ever in this group: a consumer that is told where to read still has to name one.
const GROUP: &str = "skyriff.probe";

/// What is in a partition, by offset: from the first to before the second.
pub(crate) type Extent = (i64, i64);

pub(crate) struct Probe {
    consumer: BaseConsumer<Logged>,
    topic: String,
}

impl Probe {
    pub(crate) fn new(settings: &Settings) -> KafkaResult<Self> {
        let mut config = settings.consumer(GROUP);
        // One message is all that a look takes, and it has to know when there is none.
        config
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("queued.min.messages", "1")
            .set("fetch.message.max.bytes", "65536");
        Ok(Self { consumer: config.create_with_context(Logged)?, topic: settings.topic.clone() })
    }

    /// How many partitions the topic has; none when there is no such topic.
    pub(crate) fn partition_count(&self) -> KafkaResult<Option<usize>> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), LOOK_MAX)?;
        let found = metadata.topics().iter().find(|topic| topic.name() == self.topic);
        Ok(found.map(|topic| topic.partitions().len()).filter(|count| *count > 0))
    }

    pub(crate) fn extent(&self, shard: ShardId) -> KafkaResult<Extent> {
        self.consumer.fetch_watermarks(&self.topic, i32::from(shard.0), LOOK_MAX)
    }

    /// The event of the first message at an offset or after; none when there is none.
    fn event_at(&self, shard: ShardId, offset: i64) -> KafkaResult<Option<Identity>> {
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&self.topic, i32::from(shard.0), Offset::Offset(offset))?;
        self.consumer.assign(&place)?;
        let end = Instant::now() + LOOK_MAX;
        let found = loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.consumer.poll(left) {
                // What is not one of our messages is for whoever follows to stop at.
                Some(Ok(message)) => break Ok(message::identity(&message).ok()),
                Some(Err(KafkaError::PartitionEOF(_))) => break Ok(None),
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown))) | None
                    if left.is_zero() =>
                {
                    break Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
                }
                Some(Err(error)) if error.rdkafka_error_code().is_none_or(is_lasting) => break Err(error),
                Some(Err(_)) | None => {}
            }
        };
        self.consumer.unassign()?;
        found
    }

    fn position_at(&self, shard: ShardId, offset: i64) -> KafkaResult<Option<Position>> {
        Ok(self.event_at(shard, offset)?.map(|event| event.at.position))
    }

    /// The event of the last message that the partition has; none when it has none.
    pub(crate) fn last(&self, shard: ShardId, (first, end): Extent) -> KafkaResult<Option<Identity>> {
        if first == end { Ok(None) } else { self.event_at(shard, end - 1) }
    }

    /// Where to start reading what comes after a position: never too late, seldom much too early, with few looks.
    ///
    /// Every position is there once at least, so one that is `n` later than the first has at least `n` messages before it.
    /// `hint`, an offset that was committed, is taken when it gets us further and the message before it is not later than
    /// the position. Right whenever positions only grow; where messages were sent again they fall back, by no more than
    /// was in flight, so start that much earlier.
    pub(crate) fn offset_after(&self, shard: ShardId, after: Position, hint: Option<i64>) -> KafkaResult<i64> {
        let (first, end) = self.extent(shard)?;
        if first == end {
            return Ok(end);
        }
        // What is not one of our messages is for whoever follows to stop at.
        let Some(Position(first_position)) = self.position_at(shard, first)? else { return Ok(first) };
        let at_least = first.saturating_add((after.0 - first_position).max(0)).min(end);
        match hint.filter(|hint| (at_least + 1..=end).contains(hint)) {
            Some(hint) if self.position_at(shard, hint - 1)?.is_some_and(|before| before <= after) => Ok(hint),
            _ => Ok(at_least),
        }
    }
}

/// Others pass: a broker is away, a leader moves.
fn is_lasting(code: RDKafkaErrorCode) -> bool {
    [
        RDKafkaErrorCode::UnknownTopic,
        RDKafkaErrorCode::UnknownPartition,
        RDKafkaErrorCode::UnknownTopicOrPartition,
        RDKafkaErrorCode::TopicAuthorizationFailed,
        RDKafkaErrorCode::GroupAuthorizationFailed,
        RDKafkaErrorCode::Fatal,
    ]
    .contains(&code)
}
