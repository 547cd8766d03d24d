//! Read models fed from the topic are those fed from the log.

use std::time::Duration;

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
    mocking::MockCluster,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use rustix::process::Signal;
use skyriff_kafka::{
    Settings,
    testing::{Cluster, unique_topic},
};
use skyriff_projections::Projection;
use sqlx::{Executor, PgConnection};

use super::feed::{Feed, give, service};
use crate::support::{Api, Folder, LIMIT, Process, eventually};

pub(super) const COMMANDS_AND_QUERIES: [&str; 2] = ["--roles", "command,query"];
pub(super) const FROM_KAFKA: [&str; 2] = ["--from", "kafka"];
const READS: [&str; 2] = ["skyriff_reads_0", "skyriff_reads_1"];
/// Read models there are.
const PROJECTIONS: usize = Projection::ALL.len();

/// What a process has whose groups have given it every shard of every read model.
fn all_shards() -> f64 {
    f64::from(16 * u16::try_from(PROJECTIONS).unwrap())
}

/// The tables of the read models, but for the checkpoints.
async fn tables(reads: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
         AND NOT relispartition AND relname NOT IN ('_sqlx_migrations', 'checkpoints') ORDER BY 1",
    )
    .fetch_all(reads)
    .await
    .unwrap()
}

/// As if nothing had ever been applied.
pub(super) async fn forget_everything(folder: &Folder) {
    for database in READS {
        let mut owner = folder.connect("skyriff_owner", database).await;
        let tables = tables(&mut owner).await.join(", ");
        owner.execute(format!("TRUNCATE checkpoints, {tables}").as_str()).await.unwrap();
    }
}

/// What the read models have, as text, but for when it was written.
pub(super) async fn rows(folder: &Folder) -> Vec<String> {
    let mut all = Vec::new();
    for database in READS {
        let mut reads = folder.connect("skyriff_owner", database).await;
        let of_tables = tables(&mut reads).await.into_iter().map(|table| format!("SELECT t::text FROM {table} t"));
        let checkpoints = "SELECT (projection, version, shard, position, stopped)::text FROM checkpoints";
        for query in of_tables.chain([checkpoints.to_owned()]) {
            let mut rows: Vec<String> = sqlx::query_scalar(&query).fetch_all(&mut reads).await.unwrap();
            rows.sort();
            all.extend(rows);
        }
    }
    all
}

/// Wait until every read model has applied the whole log.
pub(super) async fn caught_up(folder: &Folder) {
    let mut events = folder.connect("skyriff_query", "skyriff_events").await;
    let head: i64 = sqlx::query_scalar("SELECT sum(position)::bigint FROM heads").fetch_one(&mut events).await.unwrap();
    let mut reads = Vec::new();
    for database in READS {
        reads.push(folder.connect("skyriff_query", database).await);
    }
    eventually("the read models are caught up", async || {
        let mut applied = 0;
        for reads in &mut reads {
            let of_it = sqlx::query_scalar("SELECT coalesce(sum(position), 0)::bigint FROM checkpoints");
            applied += of_it.fetch_one(&mut *reads).await.unwrap_or(0_i64);
        }
        (applied == i64::try_from(PROJECTIONS).unwrap() * head).then_some(())
    })
    .await;
}

/// Shards that the groups have given to a process, over all read models.
async fn given(api: &Api, url: &str) -> f64 {
    api.at(url).metric("skyriff_kafka_shards", "").await
}

pub(super) async fn stop(process: Process) -> String {
    process.signal(Signal::TERM);
    process.end().await.well().stderr
}

#[tokio::test]
async fn switching_from_log_to_kafka_and_back_changes_nothing() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_AND_QUERIES).await;
    let settings = cluster.settings();
    let service = service(&folder, &dev).await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    let feed = Feed::start(&service);
    for turn in 0..4 {
        let from = ["log", "kafka"][turn % 2];
        let (project, url) = folder.on_kafka("project", &settings, &["--from", from]).await;
        let applied = async || dev.api.at(&url).metric("skyriff_follower_events_total", "").await;
        eventually("it applies events", async || (applied().await > 200.0).then_some(())).await;
        // Killed in the middle of it once each.
        let signal = if turn < 2 { Signal::KILL } else { Signal::TERM };
        project.signal(signal);
        project.end().await;
    }
    feed.stop().await;
    let (project, _) = folder.on_kafka("project", &settings, &["--from", "log"]).await;
    caught_up(&folder).await;
    stop(project).await;
    let of_both = rows(&folder).await;

    // From nothing, and from the first message.
    forget_everything(&folder).await;
    let (project, _) = folder.on_kafka("project", &settings, &FROM_KAFKA).await;
    caught_up(&folder).await;
    assert_eq!(rows(&folder).await, of_both);
    folder.audit().await;
    stop(project).await;
    stop(relay).await;
    dev.interrupt().await.well();
}

/// A process that follows the topic as a member of a group, and its address.
async fn member(folder: &Folder, settings: &Settings) -> (Process, String) {
    let arguments = ["--from", "kafka", "--kafka-group", &settings.topic];
    folder.on_kafka("project", settings, &arguments).await
}

/// Both have half of the shards, of each read model.
async fn share(api: &Api, first: &str, second: &str) {
    eventually("both have shards", async || {
        let shares = (given(api, first).await, given(api, second).await);
        (shares == (all_shards() / 2.0, all_shards() / 2.0)).then_some(())
    })
    .await;
}

async fn has_all(api: &Api, url: &str) {
    eventually("it has all shards", async || (given(api, url).await == all_shards()).then_some(())).await;
}

/// From librdkafka's own cluster of pretended brokers, which notices a dead member as a real one does.
#[tokio::test]
async fn a_member_that_is_killed_loses_its_shards_to_the_other() {
    let folder = Folder::new();
    let dev = folder.dev_with(&COMMANDS_AND_QUERIES).await;
    let mock = MockCluster::new(1).unwrap();
    let settings = Settings { topic: unique_topic(), ..Settings::new(&mock.bootstrap_servers()) };
    mock.create_topic(&settings.topic, 16, 1).unwrap();
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    let feed = Feed::start(&service(&folder, &dev).await);
    let (first, first_url) = member(&folder, &settings).await;
    has_all(&dev.api, &first_url).await;
    let (second, second_url) = member(&folder, &settings).await;
    share(&dev.api, &first_url, &second_url).await;
    feed.more(200).await;
    first.signal(Signal::KILL);
    first.end().await;
    has_all(&dev.api, &second_url).await;
    feed.more(200).await;
    feed.stop().await;
    caught_up(&folder).await;
    folder.audit().await;
    for process in [second, relay] {
        stop(process).await;
    }
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_group_spreads_the_shards_and_gives_those_of_one_that_stops_to_the_other() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_AND_QUERIES).await;
    let settings = cluster.settings();
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    let feed = Feed::start(&service(&folder, &dev).await);
    feed.more(100).await;
    let (first, first_url) = member(&folder, &settings).await;
    has_all(&dev.api, &first_url).await;
    let (second, second_url) = member(&folder, &settings).await;
    share(&dev.api, &first_url, &second_url).await;
    feed.more(200).await;
    let applied = async || dev.api.at(&second_url).metric("skyriff_follower_events_total", "").await;
    eventually("the second applies events", async || (applied().await > 0.0).then_some(())).await;
    stop(first).await;
    has_all(&dev.api, &second_url).await;
    feed.more(200).await;
    feed.stop().await;
    caught_up(&folder).await;
    let from_kafka = rows(&folder).await;

    forget_everything(&folder).await;
    stop(second).await;
    let (project, _) = folder.on_kafka("project", &settings, &["--from", "log"]).await;
    caught_up(&folder).await;
    assert_eq!(rows(&folder).await, from_kafka);
    for process in [project, relay] {
        stop(process).await;
    }
    dev.interrupt().await.well();
}

/// While shards move there are two kinds of projectors: with the old places, and with the new ones. Each kind feeds all of
/// its own, a shard that both have in both databases.
#[tokio::test]
async fn a_shard_with_two_places_is_fed_in_both() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_AND_QUERIES).await;
    let settings = cluster.settings();
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    let service = service(&folder, &dev).await;
    give(&service, "before", 200).await;

    let configured = folder.with_databases(crate::support::skyriff(&[]));
    let (_, old) = configured.as_std().get_envs().find(|(name, _)| *name == "SKYRIFF_READ_MODELS").unwrap();
    let old = old.unwrap().to_str().unwrap().to_owned();
    let (first, second) = old.split_once(';').unwrap();
    let new = format!("{};{}", first.replacen("0-7=", "0-2,4,6-7=", 1), second.replacen("8-15=", "3,5,8-15=", 1));
    let mut projectors = Vec::new();
    for places in [&old, &new] {
        let arguments = ["--from", "kafka", "--kafka-group", &settings.topic, "--read-models", places];
        projectors.push(folder.on_kafka("project", &settings, &arguments).await);
    }
    // Both with everything that they want, and with more to come.
    for (_, url) in &projectors {
        has_all(&dev.api, url).await;
    }
    give(&service, "meanwhile", 200).await;
    let mut events = folder.connect("skyriff_query", "skyriff_events").await;
    let heads: Vec<(i16, i64)> =
        sqlx::query_as("SELECT shard, position FROM heads ORDER BY 1").fetch_all(&mut events).await.unwrap();
    let (of_first, of_second): (Vec<i16>, Vec<i16>) = ((0..8).collect(), [3, 5].into_iter().chain(8..16).collect());
    for (database, here) in [(READS[0], of_first), (READS[1], of_second)] {
        let mut reads = folder.connect("skyriff_query", database).await;
        let expected: Vec<_> = heads.iter().filter(|(shard, _)| here.contains(shard)).copied().collect();
        eventually(&format!("all shards of {database} are at their ends"), async || {
            let least = "SELECT shard, min(position) FROM checkpoints GROUP BY 1 ORDER BY 1";
            let found: Vec<(i16, i64)> = sqlx::query_as(least).fetch_all(&mut reads).await.unwrap();
            (found == expected).then_some(())
        })
        .await;
    }
    for (process, _) in projectors {
        stop(process).await;
    }
    stop(relay).await;
    dev.interrupt().await.well();
}

/// The last message of a partition.
fn last_message(settings: &Settings, partition: i32) -> OwnedMessage {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", "skyriff.test.last")
        .create()
        .unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&settings.topic, partition, Offset::OffsetTail(1)).unwrap();
    consumer.assign(&place).unwrap();
    let end = std::time::Instant::now() + LIMIT;
    loop {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            return message.detach();
        }
        assert!(std::time::Instant::now() < end, "no message");
    }
}

/// Send a message again as if it were at another position.
fn send_as(settings: &Settings, message: &OwnedMessage, position: i64) {
    let producer: ThreadedProducer<DefaultProducerContext> =
        ClientConfig::new().set("bootstrap.servers", &settings.brokers).create().unwrap();
    let position = position.to_string();
    let headers = message.headers().unwrap().iter().fold(OwnedHeaders::new(), |headers, Header { key, value }| {
        let value = if key == "ce_position" { Some(position.as_bytes()) } else { value };
        headers.insert(Header { key, value })
    });
    let record = BaseRecord::to(&settings.topic)
        .partition(message.partition())
        .key(message.key().unwrap())
        .payload(message.payload().unwrap())
        .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(LIMIT).unwrap();
}

async fn stopped(reads: &mut PgConnection) -> Vec<(String, i16, i64, String)> {
    sqlx::query_as("SELECT projection, shard, position, stopped FROM checkpoints WHERE stopped IS NOT NULL ORDER BY 1")
        .fetch_all(reads)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_gap_stops_its_shard_loudly_until_the_log_has_helped() {
    let (folder, cluster) = (Folder::new(), Cluster::for_test());
    let dev = folder.dev_with(&COMMANDS_AND_QUERIES).await;
    let settings = cluster.settings();
    let service = service(&folder, &dev).await;
    let (relay, _) = folder.on_kafka("relay", &settings, &[]).await;
    give(&service, "before", 200).await;
    folder.relayed(&settings).await;
    let (project, url) = folder.on_kafka("project", &settings, &FROM_KAFKA).await;
    caught_up(&folder).await;

    // Shard 3 gets a message that is one too far; shard 4 one that came before, which is nothing.
    let head = folder.log().await.iter().filter(|event| event.shard == 3).map(|event| event.position).max().unwrap();
    send_as(&settings, &last_message(&settings, 3), head + 2);
    send_as(&settings, &last_message(&settings, 4), 1);
    let mut reads = folder.connect("skyriff_query", READS[0]).await;
    let said = eventually("every read model stands still", async || {
        Some(stopped(&mut reads).await).filter(|stopped| stopped.len() == PROJECTIONS)
    })
    .await;
    for (_, shard, position, why) in &said {
        assert_eq!((*shard, *position), (3, head), "{said:?}");
        assert!(why.contains("gap") && why.contains(&(head + 2).to_string()), "{why}");
    }
    assert_eq!(dev.api.at(&url).metric("skyriff_follower_stopped", "").await, all_shards() / 16.0);

    // The others go on.
    give(&service, "meanwhile", 100).await;
    folder.relayed(&settings).await;
    let heads = folder.log().await;
    let behind = async |reads: &mut PgConnection| {
        let positions: Vec<(i16, i64)> =
            sqlx::query_as("SELECT shard, position FROM checkpoints ORDER BY 1").fetch_all(reads).await.unwrap();
        let head = |shard: i16| heads.iter().filter(|event| event.shard == i32::from(shard)).count();
        let behind = |(shard, position): &(i16, i64)| usize::try_from(*position).unwrap() < head(*shard);
        positions.into_iter().filter(behind).map(|(shard, _)| shard).collect::<std::collections::BTreeSet<_>>()
    };
    eventually("only shard 3 is behind", async || {
        (behind(&mut reads).await.into_iter().collect::<Vec<_>>() == [3]).then_some(())
    })
    .await;
    let log = stop(project).await;
    assert!(log.contains("stands still") && log.contains("gap"), "{log}");

    // From the log it gets past, and then from Kafka as well.
    let (project, _) = folder.on_kafka("project", &settings, &["--from", "log"]).await;
    caught_up(&folder).await;
    assert_eq!(stopped(&mut reads).await, []);
    stop(project).await;
    let (project, _) = folder.on_kafka("project", &settings, &FROM_KAFKA).await;
    give(&service, "after", 100).await;
    caught_up(&folder).await;
    assert_eq!(stopped(&mut reads).await, []);
    folder.audit().await;
    for process in [project, relay] {
        stop(process).await;
    }
    dev.interrupt().await.well();
}
