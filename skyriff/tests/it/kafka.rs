//! The log on Kafka: what the relay sends, and read models that are fed from there.
//!
//! Each test has a broker of its own, or a topic of its own in the cluster that `KAFKA_BROKERS` names.

mod feed;
mod gate;
mod outages;
mod projectors;
mod relay;
mod schemas;
