//! The topic: as many partitions as the store has shards, because a partition is a shard, and nothing deleted in between.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use skyriff_domain::ShardCount;

use crate::{context::Logged, probe::Probe, settings::Settings};

/// How long the cluster may take to make the topic.
const CREATE_MAX: Duration = Duration::from_secs(10);
/// How long it may take to say how the topic is configured.
const DESCRIBE_MAX: Duration = Duration::from_secs(5);

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
    /// The cluster deletes what is not the last of its stream: a gap for whoever comes later.
    #[error(
        "the topic {topic} is compacted (cleanup.policy is {policy:?}): the cluster keeps the last event of each stream and \
         deletes the others, so whoever reads it from its beginning finds a gap; set cleanup.policy to \"delete\" and \
         retention.ms to -1 before anything is compacted, or delete the topic and let the relay make it"
    )]
    Compacted {
        /// Which.
        topic: String,
        /// As configured.
        policy: String,
    },
    /// The cluster said no, or is not reached.
    #[error("Kafka cannot be asked about the topic")]
    Kafka(#[from] KafkaError),
}

impl TopicError {
    /// Whether somebody has to change the topic, or name another one, before anything can go on.
    pub fn is_about_the_topic(&self) -> bool {
        match self {
            Self::PartitionCount { .. } | Self::Compacted { .. } => true,
            Self::Kafka(_) => false,
        }
    }
}

/// What of the topic's configuration matters, as far as the cluster says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// The largest batch that it takes, in bytes.
    pub batch_bytes_max: Option<u32>,
}

/// Make the topic if it is not there, and see that it has the right form.
///
/// # Errors
/// [`TopicError`].
pub async fn ensure(settings: &Settings, shards: ShardCount) -> Result<Form, TopicError> {
    if let Some(form) = check(settings, shards).await? {
        return Ok(form);
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
    Ok(check(settings, shards).await?.unwrap_or_default())
}

/// The form of the topic, if it is there; it is a right one then.
///
/// # Errors
/// [`TopicError`].
pub async fn check(settings: &Settings, shards: ShardCount) -> Result<Option<Form>, TopicError> {
    if !is_there(settings, shards).await? {
        return Ok(None);
    }
    match configuration(settings).await {
        Ok(configuration) => form(&settings.topic, &configuration).map(Some),
        // Some have no such question, and some do not answer everybody.
        Err(error) => {
            tracing::debug!(topic = settings.topic, %error, "the cluster does not say how the topic is configured");
            Ok(Some(Form::default()))
        }
    }
}

/// Whether the topic is there; it has the right number of partitions then.
///
/// # Errors
/// [`TopicError`].
pub async fn is_there(settings: &Settings, shards: ShardCount) -> Result<bool, TopicError> {
    let (asked, topic) = (settings.clone(), settings.topic.clone());
    let count = tokio::task::spawn_blocking(move || Probe::new(&asked)?.partition_count()).await;
    let count = count.unwrap_or(Err(KafkaError::Canceled))?;
    match count {
        None => Ok(false),
        Some(partitions) if partitions == usize::from(shards.get()) => Ok(true),
        Some(partitions) => Err(TopicError::PartitionCount { topic, partitions, shards: shards.get() }),
    }
}

/// What the cluster says of the topic's configuration; nothing when it says nothing.
async fn configuration(settings: &Settings) -> KafkaResult<BTreeMap<String, String>> {
    let admin: AdminClient<Logged> = settings.client().create_with_context(Logged)?;
    let options = AdminOptions::new().request_timeout(Some(DESCRIBE_MAX));
    let described = admin.describe_configs([&ResourceSpecifier::Topic(&settings.topic)], &options).await?;
    let mut configuration = BTreeMap::new();
    for resource in described {
        let entries = resource.map_err(KafkaError::AdminOp)?.entries;
        configuration.extend(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
    }
    Ok(configuration)
}

fn form(topic: &str, configuration: &BTreeMap<String, String>) -> Result<Form, TopicError> {
    let of = |name: &str| configuration.get(name).map(String::as_str);
    if let Some(policy) = of("cleanup.policy").filter(|policy| policy.contains("compact")) {
        return Err(TopicError::Compacted { topic: topic.to_owned(), policy: policy.to_owned() });
    }
    for name in ["retention.ms", "retention.bytes"] {
        if let Some(kept) = of(name).filter(|kept| *kept != "-1") {
            tracing::warn!(
                topic,
                "the topic does not keep everything ({name} is {kept}, -1 is for ever): whoever starts from the first event, \
                 as a read model that is fed anew does, will find a gap"
            );
        }
    }
    Ok(Form { batch_bytes_max: of("max.message.bytes").and_then(|bytes| bytes.parse().ok()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form_of(configuration: &[(&str, &str)]) -> Result<Form, TopicError> {
        let configuration = configuration.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        form("topic", &configuration.collect())
    }

    #[test]
    fn a_compacted_topic_is_refused_and_one_that_says_nothing_is_not() {
        assert_eq!(form_of(&[]).unwrap(), Form::default());
        let kept = [("cleanup.policy", "delete"), ("retention.ms", "604800000"), ("max.message.bytes", "2048")];
        assert_eq!(form_of(&kept).unwrap(), Form { batch_bytes_max: Some(2_048) });
        for policy in ["compact", "compact,delete", "delete, compact"] {
            let refused = form_of(&[("cleanup.policy", policy)]).unwrap_err();
            assert!(refused.is_about_the_topic());
            assert!(refused.to_string().contains(policy), "{refused}");
        }
    }
}
