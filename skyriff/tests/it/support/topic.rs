//! What is in a topic, and what is in the log: they must say the same.

use std::collections::BTreeMap;

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers},
};
use skyriff_kafka::{Settings, testing::unique_topic};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::Instant;

use super::{Folder, LIMIT, Process, eventually, schema, skyriff};

/// An event as either has it: what is not the same in both is not in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    pub shard: i32,
    pub position: i64,
    pub stream: String,
    pub kind: String,
    pub payload: String,
}

/// All that is in a topic.
#[derive(Debug, Default)]
pub struct Topic {
    /// Each event once, as a follower takes it.
    pub events: Vec<Sent>,
    /// Messages that a follower drops.
    pub repeated: usize,
    /// Each shard's highest position.
    pub heads: BTreeMap<i32, i64>,
    /// What is not as `schemas/` describes it.
    wrong: Vec<String>,
}

impl Topic {
    /// Read it until every shard is at the head that the log has. Positions must come without a gap, and every event as
    /// `schemas/` describes it.
    pub async fn read(settings: &Settings, heads: BTreeMap<i32, i64>) -> Self {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || read(&settings, &heads)).await.unwrap()
    }
}

fn read(settings: &Settings, heads: &BTreeMap<i32, i64>) -> Topic {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", "skyriff.test.reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "20")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for shard in heads.keys() {
        list.add_partition_offset(&settings.topic, *shard, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut topic = Topic::default();
    let end = Instant::now() + LIMIT;
    // To the very end of every partition: repeats that come after the head count as well.
    let mut ended = std::collections::BTreeSet::new();
    while ended.len() < heads.len() || heads.iter().any(|(shard, head)| topic.heads.get(shard).unwrap_or(&0) < head) {
        assert!(Instant::now() < end, "the topic has {:?} of {heads:?}", topic.heads);
        match consumer.poll(std::time::Duration::from_millis(100)) {
            Some(Ok(message)) => {
                ended.remove(&message.partition());
                topic.take(&message);
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(_)) | None => {}
        }
    }
    topic.events.sort();
    assert_eq!(topic.wrong, [""; 0], "schemas/ describes it otherwise");
    topic
}

impl Topic {
    fn take(&mut self, message: &impl Message) {
        let header = |name: &str| {
            let headers = message.headers().unwrap();
            let found = headers.iter().find(|Header { key, .. }| *key == name).unwrap_or_else(|| panic!("no {name}"));
            std::str::from_utf8(found.value.unwrap()).unwrap().to_owned()
        };
        let text = |bytes: Option<&[u8]>| std::str::from_utf8(bytes.unwrap()).unwrap().to_owned();
        let position: i64 = header("ce_position").parse().unwrap();
        assert_eq!(header("ce_shard"), message.partition().to_string());
        assert_eq!(header("ce_id"), format!("{}:{position}", message.partition()));
        assert_eq!(header("ce_subject"), text(message.key()));
        let head = self.heads.entry(message.partition()).or_default();
        if position <= *head {
            self.repeated += 1;
            return;
        }
        assert_eq!(position, *head + 1, "a gap in partition {}", message.partition());
        *head = position;
        let event = Sent {
            shard: message.partition(),
            position,
            stream: text(message.key()),
            kind: header("ce_type"),
            payload: text(message.payload()),
        };
        let headers = message.headers().unwrap().iter().map(|Header { key, value }| (key.to_owned(), text(value)));
        self.wrong.extend(schema::wrong(&event.kind, &event.payload, &headers.collect::<Vec<_>>()));
        self.events.push(event);
    }
}

impl Folder {
    /// Of the primary's databases.
    pub async fn connect(&self, role: &str, database: &str) -> PgConnection {
        let options = PgConnectOptions::new_without_pgpass().socket(self.join("run/primary")).username(role);
        PgConnection::connect_with(&options.database(database)).await.unwrap()
    }

    /// What the topic must have.
    pub async fn log(&self) -> Vec<Sent> {
        let mut connection = self.connect("skyriff_query", "skyriff_events").await;
        let rows: Vec<(i16, i64, String, String, String)> = sqlx::query_as(
            "SELECT shard, position, aggregate_type || '/' || aggregate_id,
                    'skyriff.' || aggregate_type || '.' || event_type || '.v' || event_version, payload::text
             FROM events ORDER BY shard, position",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let sent = |(shard, position, stream, kind, payload)| Sent {
            shard: i32::from(shard),
            position,
            stream,
            kind,
            payload,
        };
        rows.into_iter().map(sent).collect()
    }

    /// The log and the topic say the same; how many messages were repeated.
    pub async fn agrees_with(&self, settings: &Settings) -> usize {
        self.topic(settings).await.repeated
    }

    /// The topic, which says the same as the log.
    pub async fn topic(&self, settings: &Settings) -> Topic {
        let log = self.log().await;
        let mut heads: BTreeMap<i32, i64> = (0..16).map(|shard| (shard, 0)).collect();
        heads.extend(log.iter().map(|event| (event.shard, event.position)));
        let topic = Topic::read(settings, heads).await;
        assert!(topic.events == log, "{} events in the topic, {} in the log", topic.events.len(), log.len());
        topic
    }

    /// `skyriff relay` or `skyriff project`, not waited for.
    pub fn spawn_on_kafka(&self, command: &str, settings: &Settings, arguments: &[&str]) -> Process {
        let mut command = self.with_databases(skyriff(&[&[command, "--listen", "127.0.0.1:0"], arguments].concat()));
        command.env("SKYRIFF_KAFKA_BROKERS", &settings.brokers).env("SKYRIFF_KAFKA_TOPIC", &settings.topic);
        // A group of its own, unless the arguments name one: a small broker keeps a killed member in its group for ever.
        command.env("SKYRIFF_KAFKA_GROUP", unique_topic());
        Process::spawn(command)
    }

    /// The same, when it listens; with its address.
    pub async fn on_kafka(&self, command: &str, settings: &Settings, arguments: &[&str]) -> (Process, String) {
        let mut process = self.spawn_on_kafka(command, settings, arguments);
        let url = process.says("its address", |said| {
            said.lines().find_map(|line| line.strip_prefix("SkyRiff listens on ").map(str::to_owned))
        });
        let url = url.await;
        (process, url)
    }

    /// Events that the relay has not written down as acknowledged.
    pub async fn not_relayed(&self, settings: &Settings) -> i64 {
        let mut connection = self.connect("skyriff_query", "skyriff_events").await;
        sqlx::query_scalar(
            "SELECT coalesce(sum(h.position - coalesce(c.position, 0)), 0)::bigint FROM heads h
             LEFT JOIN relay_checkpoints c ON c.shard = h.shard AND c.topic = $1",
        )
        .bind(&settings.topic)
        .fetch_one(&mut connection)
        .await
        .unwrap()
    }

    /// Wait until the relay has written down that everything was acknowledged.
    pub async fn relayed(&self, settings: &Settings) {
        eventually("everything is relayed", async || (self.not_relayed(settings).await == 0).then_some(())).await;
    }

    /// Wait until it has written that down of everything that there is now.
    pub async fn relayed_up_to_now(&self, settings: &Settings) {
        let mut connection = self.connect("skyriff_query", "skyriff_events").await;
        let heads: Vec<(i16, i64)> =
            sqlx::query_as("SELECT shard, position FROM heads").fetch_all(&mut connection).await.unwrap();
        eventually("what there was is relayed", async || {
            for (shard, head) in &heads {
                if self.relayed_of(settings, *shard).await < *head {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// How far the relay is in a shard, as written down.
    pub async fn relayed_of(&self, settings: &Settings, shard: i16) -> i64 {
        self.relay_checkpoint(settings, shard).await.map_or(0, |(position, _)| position)
    }

    /// Wait until the relay stands still in a shard and says so with these words.
    pub async fn stands_still(&self, settings: &Settings, shard: i16, words: &str) {
        eventually(&format!("{words:?} of shard {shard}"), async || {
            let (_, why) = self.relay_checkpoint(settings, shard).await?;
            why.is_some_and(|why| why.contains(words)).then_some(())
        })
        .await;
    }

    async fn relay_checkpoint(&self, settings: &Settings, shard: i16) -> Option<(i64, Option<String>)> {
        let mut connection = self.connect("skyriff_query", "skyriff_events").await;
        sqlx::query_as("SELECT position, stopped FROM relay_checkpoints WHERE topic = $1 AND shard = $2")
            .bind(&settings.topic)
            .bind(shard)
            .fetch_optional(&mut connection)
            .await
            .unwrap()
    }

    /// As whom Postgres trusts with everything.
    pub async fn superuser(&self, database: &str) -> PgConnection {
        self.connect("postgres", database).await
    }

    /// Since when each relay has its connection that holds locks.
    pub async fn relay_connections(&self) -> Vec<String> {
        let mut log = self.superuser("skyriff_events").await;
        sqlx::query_scalar(
            "SELECT DISTINCT a.backend_start::text FROM pg_stat_activity a JOIN pg_locks l USING (pid)
             WHERE a.application_name = 'skyriff relay' AND l.locktype = 'advisory' ORDER BY 1",
        )
        .fetch_all(&mut log)
        .await
        .unwrap()
    }

    /// As when the network between a process and Postgres is cut.
    pub async fn end_connections(&self, program: &str) {
        let mut log = self.superuser("skyriff_events").await;
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1")
            .bind(program)
            .execute(&mut log)
            .await
            .unwrap();
    }
}
