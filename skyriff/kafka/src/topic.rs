//! The topic: as many partitions as the store has shards, because a partition is a shard.

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode},
};
use skyriff_domain::ShardCount;

use crate::{context::Logged, probe::Probe, settings::Settings};

/// How long the cluster may take to make the topic.
const CREATE_MAX: Duration = Duration::from_secs(10);

/// The topic cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// It would put events of one shard where those of another are expected.
    #[error(
        "the topic {topic} has {partitions} partitions and the store has {shards} shards; a partition is a shard, so they \
         must be as many: name another topic, or delete this one and let the relay make it"
    )]
    PartitionCount {
        /// Which.
        topic: String,
        /// How many it has.
        partitions: usize,
        /// How many it should have.
        shards: u16,
    },
    /// The cluster said no, or is not reached.
    #[error("Kafka cannot be asked about the topic")]
    Kafka(#[from] KafkaError),
}

/// Make the topic if it is not there, and see that it has the right form.
///
/// # Errors
/// [`TopicError`].
pub async fn ensure(settings: &Settings, shards: ShardCount) -> Result<(), TopicError> {
    if check(settings, shards).await? {
        return Ok(());
    }
    let admin: AdminClient<Logged> = settings.client().create_with_context(Logged)?;
    let replication = TopicReplication::Fixed(settings.replication.map_or(-1, i32::from));
    // Kept for ever, unless the operator says otherwise: a follower may start from the first event at any time.
    let topic = NewTopic::new(&settings.topic, i32::from(shards.get()), replication)
        .set("retention.ms", "-1")
        .set("cleanup.policy", "delete");
    let options = AdminOptions::new().operation_timeout(Some(CREATE_MAX)).request_timeout(Some(CREATE_MAX));
    for result in admin.create_topics([&topic], &options).await? {
        match result {
            Ok(_) => tracing::info!(topic = settings.topic, partitions = shards.get(), "made the topic"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(KafkaError::AdminOp(code).into()),
        }
    }
    // Whoever made it first may have made it otherwise; a cluster takes a moment until all of it knows.
    check(settings, shards).await.map(|_| ())
}

/// Whether the topic is there; it has the right form then.
///
/// # Errors
/// [`TopicError`].
pub async fn check(settings: &Settings, shards: ShardCount) -> Result<bool, TopicError> {
    let (asked, topic) = (settings.clone(), settings.topic.clone());
    let count = tokio::task::spawn_blocking(move || Probe::new(&asked)?.partition_count()).await;
    let count = count.unwrap_or(Err(KafkaError::Canceled))?;
    match count {
        None => Ok(false),
        Some(partitions) if partitions == usize::from(shards.get()) => Ok(true),
        Some(partitions) => Err(TopicError::PartitionCount { topic, partitions, shards: shards.get() }),
    }
}
