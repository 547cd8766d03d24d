//! Every event of the log is in the topic, in order, whatever happens to the relay, the broker, or both.

use std::time::Duration;

use rdkafka::{mocking::MockCluster, types::RDKafkaApiKey, types::RDKafkaRespErr};
use rustix::process::Signal;
use skyriff_domain::ShardCount;
use skyriff_kafka::{
    Settings,
    testing::{Broker, Cluster, unique_topic},
    topic,
};

use super::feed::{Feed, give, service};
use crate::support::{Api, Folder, eventually};

pub(super) const COMMANDS_ONLY: [&str; 2] = ["--roles", "command"];

/// How many shards a relay has.
pub(super) async fn active(api: &Api, url: &str) -> f64 {
    api.at(url).metric("skyriff_relay_active", "").await
}

#[tokio::test]
async fn a_relay_killed_again_and_again_sends_everything_in_order() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = cluster.settings();
    let feed = Feed::start(&service(&folder, &dev).await);
    for _ in 0..4 {
        let (relay, url) = folder.on_kafka("relay", &settings, &[]).await;
        let sent = async || dev.api.at(&url).metric("skyriff_relay_events_total", "").await > 200.0;
        eventually("events were sent", async || sent().await.then_some(())).await;
        relay.signal(Signal::KILL);
        relay.end().await;
        feed.more(200).await;
    }
    let (relay, url) = folder.on_kafka("relay", &settings, &[]).await;
    feed.more(200).await;
    feed.stop().await;
    folder.relayed(&settings).await;
    folder.agrees_with(&settings).await;
    eventually("no lag", async || {
        let metrics = dev.api.at(&url);
        let lag = metrics.metric("skyriff_relay_lag_events", "").await
            + metrics.metric("skyriff_relay_lag_seconds", "").await;
        (lag == 0.0).then_some(())
    })
    .await;
    relay.signal(Signal::TERM);
    relay.end().await.well();
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_relay_told_to_stop_repeats_nothing_when_it_starts_again() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = cluster.settings();
    let feed = Feed::start(&service(&folder, &dev).await);
    for _ in 0..3 {
        let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
        feed.more(200).await;
        relay.signal(Signal::TERM);
        relay.end().await.well();
    }
    feed.stop().await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    folder.relayed(&settings).await;
    assert_eq!(folder.agrees_with(&settings).await, 0);
    relay.signal(Signal::TERM);
    relay.end().await.well();
    dev.interrupt().await.well();
}

#[tokio::test]
async fn another_relay_takes_over_when_the_first_dies() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = cluster.settings();
    let feed = Feed::start(&service(&folder, &dev).await);
    let (first, first_url) = folder.on_kafka("relay", &settings, &[]).await;
    eventually("the first has all shards", async || (active(&dev.api, &first_url).await == 16.0).then_some(())).await;
    let (second, second_url) = folder.on_kafka("relay", &settings, &[]).await;
    feed.more(400).await;
    assert_eq!(active(&dev.api, &second_url).await, 0.0);
    first.signal(Signal::KILL);
    first.end().await;
    let killed_at = std::time::Instant::now();
    eventually("the second has all shards", async || (active(&dev.api, &second_url).await == 16.0).then_some(())).await;
    assert!(killed_at.elapsed() < Duration::from_secs(20), "{:?}", killed_at.elapsed());
    feed.more(200).await;
    feed.stop().await;
    folder.relayed(&settings).await;
    folder.agrees_with(&settings).await;
    second.signal(Signal::TERM);
    second.end().await.well();
    dev.interrupt().await.well();
}

#[tokio::test]
async fn while_the_broker_is_away_commands_go_on_and_nothing_is_lost() {
    let (folder, mut broker) = (Folder::new(), Broker::start());
    let settings = Settings { topic: unique_topic(), ..Settings::new(&broker.address()) };
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let feed = Feed::start(&service(&folder, &dev).await);
    let (relay, url) = folder.on_kafka("relay", &settings, &[]).await;
    eventually("the relay has all shards", async || (active(&dev.api, &url).await == 16.0).then_some(())).await;
    feed.more(200).await;
    for _ in 0..2 {
        broker.down().unwrap();
        feed.more(400).await;
        let lag = async || dev.api.at(&url).metric("skyriff_relay_lag_events", "").await;
        eventually("the lag shows", async || (lag().await > 300.0).then_some(())).await;
        // What is on its way is not taken for what has arrived.
        assert!(folder.not_relayed(&settings).await > 300);
        broker.up().unwrap();
        feed.more(200).await;
    }
    // Its disk is lost: the topic is made and filled again, from the first event.
    broker.lose_everything().unwrap();
    feed.more(200).await;
    feed.stop().await;
    eventually("the topic is made again", async || {
        topic::is_there(&settings, ShardCount::default()).await.is_ok_and(|is_there| is_there).then_some(())
    })
    .await;
    folder.agrees_with(&settings).await;
    relay.signal(Signal::TERM);
    relay.end().await.well();
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_relay_can_start_before_its_broker() {
    let (folder, mut broker) = (Folder::new(), Broker::start());
    let settings = Settings { topic: unique_topic(), ..Settings::new(&broker.address()) };
    broker.down().unwrap();
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let (relay, url) = folder.on_kafka("relay", &settings, &[]).await;
    give(&service(&folder, &dev).await, "early", 50).await;
    let lag = async || dev.api.at(&url).metric("skyriff_relay_lag_events", "").await;
    eventually("the lag shows", async || (lag().await == 50.0).then_some(())).await;
    broker.up().unwrap();
    folder.relayed(&settings).await;
    assert_eq!(folder.agrees_with(&settings).await, 0);
    relay.signal(Signal::TERM);
    relay.end().await.well();
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_topic_with_another_number_of_partitions_is_refused() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = cluster.settings();
    topic::ensure(&settings, ShardCount::new(8).unwrap()).await.unwrap();
    for (command, arguments) in [("relay", vec![]), ("project", vec!["--from", "kafka"])] {
        let refused = folder.spawn_on_kafka(command, &settings, &arguments).end().await;
        refused.refused(&[&settings.topic, "8 partitions", "16 shards", "delete this one"]);
    }
    let without = folder.run(&["relay", "--listen", "127.0.0.1:0"]).await;
    without.refused(&["--kafka-brokers", "SKYRIFF_KAFKA_BROKERS"]);
    dev.interrupt().await.well();
}

/// Errors that brokers give now and then, answers that come late, and brokers that go: from librdkafka's own cluster of
/// pretended brokers.
#[tokio::test]
async fn errors_delays_and_lost_brokers_lose_nothing_and_keep_the_order() {
    let folder = Folder::new();
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let mock = MockCluster::new(3).unwrap();
    let settings = Settings { topic: unique_topic(), ..Settings::new(&mock.bootstrap_servers()) };
    mock.create_topic(&settings.topic, 16, 3).unwrap();
    let feed = Feed::start(&service(&folder, &dev).await);
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    feed.more(200).await;
    let errors = [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
    ];
    for _ in 0..5 {
        mock.request_errors(RDKafkaApiKey::Produce, &errors);
        feed.more(100).await;
    }
    for broker in 1..=3 {
        mock.broker_round_trip_time(broker, Duration::from_millis(300)).unwrap();
    }
    feed.more(200).await;
    for broker in 1..=3 {
        mock.broker_round_trip_time(broker, Duration::ZERO).unwrap();
        mock.broker_down(broker).unwrap();
        feed.more(100).await;
        mock.broker_up(broker).unwrap();
    }
    feed.more(100).await;
    feed.stop().await;
    folder.relayed(&settings).await;
    folder.agrees_with(&settings).await;
    relay.signal(Signal::TERM);
    relay.end().await.well();
    dev.interrupt().await.well();
}
