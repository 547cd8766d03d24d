//! Where the cluster is, and how to talk to it.

use std::fmt;

use rdkafka::ClientConfig;

/// The topic that carries the log, unless configured otherwise.
pub const TOPIC: &str = "skyriff.events.v1";
/// The CloudEvents source, unless configured otherwise.
pub const SOURCE: &str = "/skyriff";

/// How long one request to the cluster may take, in milliseconds.
const REQUEST_MAX_MS: &str = "10000";
/// The first and the longest wait before a broker is connected to again, in milliseconds.
const RECONNECT_MS: (&str, &str) = ("50", "2000");
/// How often the cluster is asked what topics and partitions it has, in milliseconds.
const METADATA_EVERY_MS: &str = "5000";

/// Where the cluster is, and how to talk to it.
#[derive(Clone)]
pub struct Settings {
    /// `host:port`, several with commas.
    pub brokers: String,
    /// The topic that carries the log.
    pub topic: String,
    /// What the events' CloudEvents source is: which store they are of, when there are several.
    pub source: String,
    /// Of a topic that is made: how many brokers keep each partition; none for what the cluster's own default says.
    pub replication: Option<u16>,
    /// librdkafka's own settings: security, for one. May hold secrets.
    pub options: Vec<(String, String)>,
}

impl Settings {
    /// The defaults, on this cluster.
    pub fn new(brokers: &str) -> Self {
        let (brokers, topic, source) = (brokers.to_owned(), TOPIC.to_owned(), SOURCE.to_owned());
        Self { brokers, topic, source, replication: None, options: Vec::new() }
    }

    /// What every client is made with.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "skyriff")
            .set("socket.timeout.ms", REQUEST_MAX_MS)
            .set("reconnect.backoff.ms", RECONNECT_MS.0)
            .set("reconnect.backoff.max.ms", RECONNECT_MS.1)
            .set("topic.metadata.refresh.interval.ms", METADATA_EVERY_MS);
        for (name, value) in &self.options {
            config.set(name, value);
        }
        // After the options: these are not for choosing.
        config.set("bootstrap.servers", &self.brokers).set("allow.auto.create.topics", "false");
        config
    }

    /// What every consumer is made with: it starts where it is told to, and at the beginning when that is gone.
    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest");
        config
    }
}

/// Without the values of the options, which may be secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<_> = self.options.iter().map(|(name, _)| name).collect();
        f.debug_struct("Settings")
            .field("brokers", &self.brokers)
            .field("topic", &self.topic)
            .field("source", &self.source)
            .field("replication", &self.replication)
            .field("options", &options)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_add_to_what_is_ours_and_are_not_shown() {
        let mut settings = Settings::new("broker:9092");
        settings.options = [("sasl.password", "hush"), ("allow.auto.create.topics", "true")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        let config = settings.client();
        assert_eq!(config.get("sasl.password"), Some("hush"));
        assert_eq!(config.get("allow.auto.create.topics"), Some("false"));
        let shown = format!("{settings:?}");
        assert!(shown.contains("sasl.password") && !shown.contains("hush"), "{shown}");
    }
}
