//! What others notice of a broker that is away, of events that brokers do not take, and of a log or a topic that is not
//! what it was.

use std::time::Duration;

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use skyriff_domain::{ShardCount, ShardId, UserId, shard_of};
use skyriff_kafka::{
    Settings,
    testing::{Broker, Cluster, unique_topic},
    topic,
};
use sqlx::Executor;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    feed::{Feed, give, service},
    gate::Gate,
    projectors::{COMMANDS_AND_QUERIES, FROM_KAFKA, caught_up, forget_everything, rows, stop},
    relay::{COMMANDS_ONLY, active},
};
use crate::support::{Api, Folder, eventually};

fn user_of(shard: u16) -> Uuid {
    std::iter::repeat_with(Uuid::new_v4)
        .find(|user| shard_of(UserId(*user), ShardCount::default()) == ShardId(shard))
        .unwrap()
}

/// What a process says of one shard.
async fn of_shard(api: &Api, url: &str, name: &str, shard: u16) -> f64 {
    api.at(url).metric(name, &format!("shard=\"{shard}\"")).await
}

/// A relay that reaches the event store and not Kafka is in nobody's way.
#[tokio::test]
async fn a_relay_that_is_cut_off_from_kafka_gives_its_shards_to_one_that_is_not() {
    let (folder, broker) = (Folder::new(), Broker::start());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = Settings { topic: unique_topic(), ..Settings::new(&broker.address()) };
    let gate = Gate::before(&broker.address()).await;
    let through_the_gate = Settings { brokers: gate.address(), ..settings.clone() };
    let feed = Feed::start(&service(&folder, &dev).await);
    let (first, first_url) = folder.on_kafka("relay", &through_the_gate, &[]).await;
    eventually("the first has all shards", async || (active(&dev.api, &first_url).await == 16.0).then_some(())).await;
    let (second, second_url) = folder.on_kafka("relay", &settings, &[]).await;
    feed.more(400).await;
    assert_eq!(active(&dev.api, &second_url).await, 0.0);

    for round in 0..2 {
        gate.close();
        let closed_at = Instant::now();
        eventually("the second has all shards", async || (active(&dev.api, &second_url).await == 16.0).then_some(()))
            .await;
        assert!(closed_at.elapsed() < Duration::from_secs(40), "{:?}", closed_at.elapsed());
        feed.more(200).await;
        // Nobody is there for the first one, so it says how far the topic is.
        assert_eq!(active(&dev.api, &first_url).await, 0.0);
        folder.relayed_up_to_now(&settings).await;
        if round == 0 {
            // And the other way round.
            gate.open();
            second.signal(Signal::STOP);
            folder.end_connections("skyriff relay").await;
            eventually("the first has all shards again", async || {
                (active(&dev.api, &first_url).await == 16.0).then_some(())
            })
            .await;
            second.signal(Signal::CONT);
            feed.more(200).await;
        }
    }
    feed.stop().await;
    folder.relayed(&settings).await;
    folder.agrees_with(&settings).await;
    for process in [first, second] {
        process.signal(Signal::TERM);
        process.end().await.well();
    }
    dev.interrupt().await.well();
}

/// The broker is stopped, and started again, and loses everything that it had: read models that are fed from it come to
/// the end of the log each time, and are those that the log would give. Meanwhile they say that they are behind.
#[tokio::test]
async fn read_models_outlive_their_broker_and_say_that_they_are_behind() {
    let (folder, mut broker) = (Folder::new(), Broker::start());
    let settings = Settings { topic: unique_topic(), ..Settings::new(&broker.address()) };
    let dev = folder.dev_with(&COMMANDS_AND_QUERIES).await;
    let service = service(&folder, &dev).await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    give(&service, "before", 200).await;
    folder.relayed(&settings).await;
    let (project, url) = folder.on_kafka("project", &settings, &FROM_KAFKA).await;
    caught_up(&folder).await;
    let lag = async || {
        let at = dev.api.at(&url);
        let events = at.metric("skyriff_follower_lag_events", "follower=\"balances\"").await;
        (events, at.metric("skyriff_follower_lag_seconds", "follower=\"balances\"").await)
    };
    let none = async || eventually("there is no lag", async || (lag().await == (0.0, 0.0)).then_some(())).await;
    none().await;

    // Nobody fills the topic.
    stop(relay).await;
    give(&service, "without a relay", 50).await;
    eventually("the lag shows", async || (lag().await.0 == 50.0).then_some(())).await;
    eventually("and how old it is", async || (lag().await.1 > 0.0).then_some(())).await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    caught_up(&folder).await;
    none().await;

    for round in 0..2 {
        broker.down().unwrap();
        give(&service, &format!("without a broker {round}"), 50).await;
        eventually("the lag shows", async || (lag().await.0 == 50.0).then_some(())).await;
        broker.up().unwrap();
        give(&service, &format!("with a broker {round}"), 50).await;
        caught_up(&folder).await;
        none().await;
    }
    let feed = Feed::start(&service);
    feed.more(100).await;
    broker.lose_everything().unwrap();
    feed.more(200).await;
    feed.stop().await;
    caught_up(&folder).await;
    none().await;
    let from_kafka = rows(&folder).await;
    folder.audit().await;

    stop(project).await;
    forget_everything(&folder).await;
    let (project, _) = folder.on_kafka("project", &settings, &["--from", "log"]).await;
    caught_up(&folder).await;
    assert_eq!(rows(&folder).await, from_kafka);
    for process in [project, relay] {
        stop(process).await;
    }
    dev.interrupt().await.well();
}

/// While the log cannot be asked, nobody knows how far behind it the read models are, and nobody says that they are not.
#[tokio::test]
async fn without_the_log_the_lag_is_not_known() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let settings = cluster.settings();
    let dev = folder.dev_with(&COMMANDS_AND_QUERIES).await;
    let service = service(&folder, &dev).await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    give(&service, "before", 50).await;
    let (project, url) = folder.on_kafka("project", &settings, &FROM_KAFKA).await;
    caught_up(&folder).await;
    let lag = async || dev.api.at(&url).metric("skyriff_follower_lag_events", "follower=\"balances\"").await;
    eventually("there is no lag", async || (lag().await == 0.0).then_some(())).await;
    let mut owner = folder.superuser("skyriff_events").await;
    owner.execute("REVOKE SELECT ON heads FROM skyriff_project").await.unwrap();
    eventually("the lag is not known", async || lag().await.is_nan().then_some(())).await;
    give(&service, "meanwhile", 50).await;
    caught_up(&folder).await;
    owner.execute("GRANT SELECT ON heads TO skyriff_project").await.unwrap();
    eventually("it is known again", async || (lag().await == 0.0).then_some(())).await;
    for process in [project, relay] {
        stop(process).await;
    }
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_compacted_topic_is_refused() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = cluster.settings();
    topic::ensure(&settings, ShardCount::default()).await.unwrap();
    assert!(topic::check(&settings, ShardCount::default()).await.unwrap().is_some());
    configure(&settings, "cleanup.policy", "compact").await;
    for (command, arguments) in [("relay", vec![]), ("project", vec!["--from", "kafka"])] {
        let refused = folder.spawn_on_kafka(command, &settings, &arguments).end().await;
        refused.refused(&[&settings.topic, "compacted", "finds a gap", "cleanup.policy"]);
    }
    // Kept for a week: that is for whoever starts it to know.
    configure(&settings, "cleanup.policy", "delete").await;
    configure(&settings, "retention.ms", "604800000").await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    relay.signal(Signal::TERM);
    let said = relay.end().await.well().stderr;
    assert!(said.contains("retention.ms is 604800000"), "{said}");
    dev.interrupt().await.well();
}

async fn configure(settings: &Settings, name: &str, value: &str) {
    use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
    let admin: AdminClient<_> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &settings.brokers).create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&settings.topic)).set(name, value);
    for result in admin.alter_configs([&change], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
}

/// A failover to a standby that was behind: events that were sent are gone, and their positions are given to others.
#[tokio::test]
async fn a_log_that_has_lost_events_stops_its_shard_until_somebody_has_decided() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = cluster.settings();
    let service = service(&folder, &dev).await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    let (user, other) = (user_of(3), user_of(4));
    for number in 0..10 {
        service.earn(user, &format!("before {number}"), 1).await.unwrap().with(StatusCode::CREATED);
    }
    folder.relayed(&settings).await;
    stop(relay).await;
    dev.interrupt().await.well();
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let service = super::feed::service(&folder, &dev).await;
    let mut log = folder.superuser("skyriff_events").await;
    log.execute("SET session_replication_role = replica").await.unwrap();
    log.execute("DELETE FROM events WHERE shard = 3 AND position > 8").await.unwrap();
    drop(log);

    let (relay, url) = folder.on_kafka("relay", &settings, &[]).await;
    let stopped = async |url: &str| of_shard(&dev.api, url, "skyriff_relay_stopped", 3).await;
    folder.stands_still(&settings, 3, "up to 10 were sent, and the log ends at 8").await;
    assert_eq!(stopped(&url).await, 1.0);
    // Their positions are given to others, as many as there were; the other shards go on.
    for number in 0..4 {
        service.earn(user, &format!("after {number}"), 1).await.unwrap().with(StatusCode::CREATED);
        service.earn(other, &format!("of the other {number}"), 1).await.unwrap().with(StatusCode::CREATED);
    }
    eventually("the other shards go on", async || (folder.relayed_of(&settings, 4).await == 4).then_some(())).await;
    // It is looked at again and again.
    folder.stands_still(&settings, 3, "at 3:10 the topic has another event than the log").await;
    assert_eq!(stopped(&url).await, 1.0);
    let said = stop(relay).await;
    assert!(said.contains("the log and the topic have parted") && said.contains("stands still"), "{said}");

    // Whoever starts knows it again; and with another topic all of what the log has now is sent.
    let (relay, url) = folder.on_kafka("relay", &settings, &[]).await;
    eventually("it still stands still", async || (stopped(&url).await == 1.0).then_some(())).await;
    stop(relay).await;
    let another = Settings { topic: unique_topic(), ..settings };
    let (relay, url) = folder.on_kafka("relay", &another, &[]).await;
    folder.relayed(&another).await;
    folder.agrees_with(&another).await;
    assert_eq!(stopped(&url).await, 0.0);
    stop(relay).await;
    dev.interrupt().await.well();
}

/// More than an event has, and less than one with a long text in it.
const SMALL_BYTES: &str = "1500";

#[tokio::test]
async fn an_event_that_brokers_refuse_stops_its_shard_and_no_other_until_they_take_it() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_ONLY).await;
    let settings = cluster.settings();
    let service = service(&folder, &dev).await;
    let (user, other) = (user_of(3), user_of(4));
    let options = ["--kafka-options", "compression.codec=none"];
    let (relay, url) = folder.on_kafka("relay", &settings, &options).await;
    service.earn(user, "before", 1_000).await.unwrap().with(StatusCode::CREATED);
    folder.relayed(&settings).await;

    // While it is at work, so that it does not know.
    configure(&settings, "max.message.bytes", SMALL_BYTES).await;
    let owner = dev.api.as_caller(&folder.token("user", user).await);
    let long = json!({ "kind": "text_to_speech", "prompt": "long ".repeat(200), "seconds": 5 });
    owner.post("/v1/video-jobs", "long", Some(long)).await.unwrap().with(StatusCode::ACCEPTED);
    let stopped = async || of_shard(&dev.api, &url, "skyriff_relay_stopped", 3).await;
    folder.stands_still(&settings, 3, "too large").await;
    folder.stands_still(&settings, 3, "the brokers do not take the event at 3:").await;
    assert_eq!(stopped().await, 1.0);

    // More than fits into a batch of that size, of the shard that stands still and of another one.
    let started = folder.relay_connections().await;
    for number in 0..100 {
        service.earn(user, &format!("after {number}"), 1).await.unwrap().with(StatusCode::CREATED);
        service.earn(other, &format!("of the other {number}"), 1).await.unwrap().with(StatusCode::CREATED);
    }
    eventually("the other shard goes on", async || (folder.relayed_of(&settings, 4).await == 100).then_some(())).await;
    assert!(folder.relayed_of(&settings, 3).await < 5, "nothing passes it");
    assert_eq!(stopped().await, 1.0);
    assert_eq!(folder.relay_connections().await, started, "in one session");

    configure(&settings, "max.message.bytes", "1048588").await;
    folder.relayed(&settings).await;
    folder.agrees_with(&settings).await;
    assert_eq!(stopped().await, 0.0);
    let said = stop(relay).await;
    assert!(said.contains("stands still") && said.contains("goes on"), "{said}");
    assert!(said.matches("the relay starts again").count() <= 2, "{said}");
    dev.interrupt().await.well();
}
