//! Which shard lives where.
//!
//! | variable | what it holds |
//! |---|---|
//! | `SKYRIFF_SHARDS` | how many shards the store has; fixed when it is created; 16 |
//! | `SKYRIFF_EVENT_STORE` | the event store's databases: `0-15=postgres://host/database`; replicas follow, as below, and streams of events are read there |
//! | `SKYRIFF_READ_MODELS` | the read models' databases, primary first, then replicas: `0-6,8=postgres://a/x\|postgres://b/x;7,9-15=…` |
//! | `SKYRIFF_KAFKA_BROKERS` | the Kafka cluster: `host:port`, several with commas |
//! | `SKYRIFF_KAFKA_TOPIC`, `SKYRIFF_KAFKA_SOURCE`, `SKYRIFF_KAFKA_GROUP` | the topic, the CloudEvents source, the start of the groups' names |
//! | `SKYRIFF_KAFKA_REPLICATION` | of a topic that is made: how many brokers keep each partition |
//! | `SKYRIFF_KAFKA_OPTIONS` | librdkafka's own settings, such as security: `NAME=VALUE`, several with ';' |
//! | `SKYRIFF_FROM` | where projections take events from: `log` or `kafka` |
//! | `SKYRIFF_TOKEN_SECRET` | the key that signs tokens, at least 32 bytes |
//! | `SKYRIFF_MASTER_KEY`, or `SKYRIFF_MASTER_KEY_FILE` | the key that wraps the keys of persons: the base64 of 32 bytes |
//! | `SKYRIFF_SEAL_KEY`, or `SKYRIFF_SEAL_KEY_FILE` | the private keys that seal the log; while they change, the new one and the old one |
//! | `SKYRIFF_SEAL_PUBLIC_KEYS`, or `SKYRIFF_SEAL_PUBLIC_KEYS_FILE` | the public keys of the ledger, a line each, those of before among them |
//! | `SKYRIFF_LISTEN` | where HTTP listens; `127.0.0.1:8080` |
//! | `SKYRIFF_BEHIND_PROXY` | `true` where every request comes through a proxy of ours, which says in `X-Real-IP` from where |
//! | `SKYRIFF_TOKEN` | for `audit verify --url`: the token of an auditor |
//! | `SKYRIFF_LOG`, `SKYRIFF_LOG_FORMAT` | what is logged, and how |
//! | `SKYRIFF_POSTGRES_USER` | for `dev` as root: who the private Postgres runs as |
//!
//! | `SKYRIFF_CHECK_IN_POINTS`, `SKYRIFF_STREAK_DAYS`, `SKYRIFF_STREAK_BONUS`, `SKYRIFF_PROMO_LIFETIME_DAYS`, `SKYRIFF_HOLD_LIFETIME_S`, `SKYRIFF_HOLD_LIFETIME_MAX_S`, `SKYRIFF_OPEN_HOLDS_MAX`, `SKYRIFF_REFUND_WINDOW_S`, `SKYRIFF_AMOUNT_MAX` | the numbers of the points rules |
//! | `SKYRIFF_TIP_SHARE_PERMILLE`, `SKYRIFF_TIP_MAX` | the numbers of tips |
//! | `SKYRIFF_WITHDRAWAL_MIN`, `…_PER_DAY`, `…_PER_MONTH`, `…_REVIEW_FROM`, `…_TWO_REVIEWS_FROM`, `…_FEE_PERMILLE`, `…_MINOR_PER_100_POINTS`, `…_CURRENCY` | the numbers of withdrawals |
//! | `SKYRIFF_PAYOUT_PROVIDER` | who pays withdrawals: `local`, `http` or `none`; nobody |
//! | `SKYRIFF_PAYOUT_FOLDER` | for `local`: where the payment files are |
//! | `SKYRIFF_PAYOUT_URL`, `…_NAME`, `…_SECRET` or `…_SECRET_FILE`, `…_CONNECT_TIMEOUT_MS`, `…_TIMEOUT_MS` | for `http`: where it is, what it is called, what is signed with, how long it may take |
//! | `SKYRIFF_PAYOUT_LOOK_AGAIN_MIN_MS`, `…_LOOK_AGAIN_MAX_MS`, `…_ATTENTION_AFTER_S` | how long payouts are waited for |
//! | `SKYRIFF_VIDEO_PRICES`, `…_SECONDS_MAX`, `…_IN_FLIGHT_MAX`, `…_ATTEMPTS_MAX`, `…_BACK_OFF_S`, `…_BACK_OFF_MAX_S` | the numbers of video jobs |
//! | `SKYRIFF_VIDEO_LEASE_S`, `…_ATTEMPT_MAX_S`, `…_AGING_S`, `…_WAITING_MAX_S`, `…_PROVIDER_CAPS`, `…_BREAKER_FAILURES`, `…_BREAKER_WINDOW_S`, `…_BREAKER_PAUSE_S`, `…_BREAKER_PAUSE_MAX_S` | how the queue of video jobs works |
//! | `SKYRIFF_POINT_WORTH_MICROS` | what a point is worth in each currency, for margins: `usd=10000` |
//! | `SKYRIFF_SWEEP_EVERY_S` | how often outputs that no job names are deleted |
//! | `SKYRIFF_STORAGE`, and `AWS_…` | where outputs and what is sealed of the log are kept: `file:///FOLDER` or `s3://BUCKET/PREFIX`; the folder `objects` of `dev` |
//! | `SKYRIFF_PUBLIC_URL`, `SKYRIFF_LINK_LIFETIME_S` | links to outputs: what stands before those to a folder, and how long they are good |
//! | `SKYRIFF_URL`, `SKYRIFF_WORKER_TOKEN`, `SKYRIFF_WORKER_NAME` | for `worker`: where the API is, and who asks |
//! | `SKYRIFF_PREDICTIONS_URL`, `…_TOKEN`, `…_WEBHOOK_LISTEN`, `…_WEBHOOK_URL`, `…_WEBHOOK_SECRET` | for `worker`: the provider `predictions` |
//! | `SKYRIFF_EXECUTORS`, `SKYRIFF_QUEUE_MAX`, `SKYRIFF_BATCH_MAX`, `SKYRIFF_CACHE_MIB`, `SKYRIFF_KEEP_KEYS_HOURS`, `SKYRIFF_REQUIRE_STANDBY`, `SKYRIFF_FRESHNESS_WAIT_MS`, `SKYRIFF_EVENT_STREAMS_MAX` | how much a process takes on |
//!
//! Each process connects as the role that its work needs, so the addresses carry no user; passwords come from a
//! password file (`PGPASSFILE`), which Postgres' own tools read as well.

mod videos;

use std::{str::FromStr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use skyriff_domain::{Label, PointsPolicy, Policy, ShardCount, ShardId, tip::TipPolicy, withdrawal::WithdrawalPolicy};
use skyriff_postgres::databases;
use skyriff_read_side::events::log;
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use url::Url;

pub use videos::{VideoArguments, VideoQueueArguments};

/// Connections that one process opens to one read database.
const READ_CONNECTIONS_MAX: u32 = 16;
/// Connections of a pool that is asked now and then.
const SMALL_CONNECTIONS_MAX: u32 = 4;

/// The databases, from options or the environment.
#[derive(Args, Clone, Debug)]
pub struct DatabaseArguments {
    /// How many shards the store has; fixed when it is created.
    #[arg(long, env = "SKYRIFF_SHARDS", default_value_t = ShardCount::default().get())]
    shards: u16,
    /// The event store: SHARDS=URL, several with ';'. Example: 0-15=postgres://db/skyriff_events. Beside a running
    /// `skyriff dev`, load the file databases.env of its folder.
    #[arg(long, env = "SKYRIFF_EVENT_STORE")]
    event_store: Placement,
    /// The read models: SHARDS=PRIMARY|REPLICA|…, several with ';'.
    #[arg(long, env = "SKYRIFF_READ_MODELS")]
    read_models: Placement,
}

/// The same for what may work without any database.
#[derive(Args, Clone, Debug)]
pub struct OptionalDatabaseArguments {
    /// How many shards the store has; fixed when it is created.
    #[arg(long, env = "SKYRIFF_SHARDS", default_value_t = ShardCount::default().get())]
    shards: u16,
    /// The event store: SHARDS=URL, several with ';'.
    #[arg(long, env = "SKYRIFF_EVENT_STORE")]
    event_store: Option<Placement>,
    /// The read models: SHARDS=PRIMARY|REPLICA|…, several with ';'.
    #[arg(long, env = "SKYRIFF_READ_MODELS")]
    read_models: Option<Placement>,
}

impl OptionalDatabaseArguments {
    /// The databases, which have to be named now.
    pub fn databases(self) -> Result<Databases> {
        let event_store = self.event_store.context("which store? Give --event-store or set SKYRIFF_EVENT_STORE")?;
        let read_models =
            self.read_models.context("which read models? Give --read-models or set SKYRIFF_READ_MODELS")?;
        DatabaseArguments { shards: self.shards, event_store, read_models }.databases()
    }
}

/// The numbers of the points rules. They only concern what is decided from now on: what was decided is in the events.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The numbers of the points rules")]
pub struct PolicyArguments {
    /// Promo points for a check-in.
    #[arg(long, env = "SKYRIFF_CHECK_IN_POINTS", default_value_t = PointsPolicy::default().check_in.get())]
    check_in_points: i64,
    /// So many days in a row earn a bonus; 0 for never.
    #[arg(long, env = "SKYRIFF_STREAK_DAYS", default_value_t = PointsPolicy::default().streak_days)]
    streak_days: u32,
    /// The bonus, in promo points.
    #[arg(long, env = "SKYRIFF_STREAK_BONUS", default_value_t = PointsPolicy::default().streak_bonus.get())]
    streak_bonus: i64,
    /// For how many whole days promo points are good after the day on which they were given.
    #[arg(long, env = "SKYRIFF_PROMO_LIFETIME_DAYS", default_value_t = PointsPolicy::default().promo_lifetime_days)]
    promo_lifetime_days: u32,
    /// How long a hold lasts unless the command says otherwise, in seconds.
    #[arg(long, env = "SKYRIFF_HOLD_LIFETIME_S", default_value_t = PointsPolicy::default().hold_lifetime_s)]
    hold_lifetime_s: u32,
    /// The longest hold that a command may ask for, in seconds.
    #[arg(long, env = "SKYRIFF_HOLD_LIFETIME_MAX_S", default_value_t = PointsPolicy::default().hold_lifetime_max_s)]
    hold_lifetime_max_s: u32,
    /// Holds that an account may have open.
    #[arg(long, env = "SKYRIFF_OPEN_HOLDS_MAX", default_value_t = PointsPolicy::default().open_holds_max)]
    open_holds_max: u32,
    /// For how long a spend may be refunded, in seconds.
    #[arg(long, env = "SKYRIFF_REFUND_WINDOW_S", default_value_t = PointsPolicy::default().refund_window_s)]
    refund_window_s: u32,
    /// The most points that one command may move.
    #[arg(long, env = "SKYRIFF_AMOUNT_MAX", default_value_t = PointsPolicy::default().amount_max.get())]
    amount_max: i64,
    #[command(flatten)]
    tips: TipArguments,
    #[command(flatten)]
    withdrawals: WithdrawalArguments,
    #[command(flatten)]
    videos: VideoArguments,
}

/// The numbers of tips.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The numbers of tips")]
struct TipArguments {
    /// What the platform keeps of a tip, in thousandths.
    #[arg(long, env = "SKYRIFF_TIP_SHARE_PERMILLE", default_value_t = TipPolicy::default().share_permille, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    tip_share_permille: u16,
    /// The largest tip, in points.
    #[arg(long, env = "SKYRIFF_TIP_MAX", default_value_t = TipPolicy::default().points_max.get())]
    tip_max: i64,
}

impl TipArguments {
    fn policy(&self) -> Result<TipPolicy> {
        let points_max = self.tip_max.try_into().context("--tip-max")?;
        Ok(TipPolicy { share_permille: self.tip_share_permille, points_max })
    }
}

/// The numbers of withdrawals.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The numbers of withdrawals")]
struct WithdrawalArguments {
    /// The smallest withdrawal, in points.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_MIN", default_value_t = WithdrawalPolicy::default().points_min.get())]
    withdrawal_min: i64,
    /// What one user may withdraw in one UTC day, in points.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_PER_DAY", default_value_t = WithdrawalPolicy::default().points_per_day.get())]
    withdrawal_per_day: i64,
    /// What one user may withdraw in one month, in points.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_PER_MONTH", default_value_t = WithdrawalPolicy::default().points_per_month.get())]
    withdrawal_per_month: i64,
    /// From so many points on, a reviewer has to approve a withdrawal.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_REVIEW_FROM", default_value_t = WithdrawalPolicy::default().review_from.get())]
    withdrawal_review_from: i64,
    /// From so many points on, two different reviewers have to.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_TWO_REVIEWS_FROM", default_value_t = WithdrawalPolicy::default().two_reviews_from.get())]
    withdrawal_two_reviews_from: i64,
    /// What the platform keeps of a withdrawal, in thousandths.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_FEE_PERMILLE", default_value_t = WithdrawalPolicy::default().fee_permille, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    withdrawal_fee_permille: u16,
    /// What a hundred points are worth, in the currency's smallest unit.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_MINOR_PER_100_POINTS", default_value_t = WithdrawalPolicy::default().minor_per_100_points)]
    withdrawal_minor_per_100_points: u32,
    /// In which currency withdrawals are paid: ISO 4217, in small letters.
    #[arg(long, env = "SKYRIFF_WITHDRAWAL_CURRENCY", default_value_t = WithdrawalPolicy::default().currency)]
    withdrawal_currency: Label,
}

impl WithdrawalArguments {
    fn policy(&self) -> Result<WithdrawalPolicy> {
        let policy = WithdrawalPolicy {
            points_min: self.withdrawal_min.try_into().context("--withdrawal-min")?,
            points_per_day: self.withdrawal_per_day.try_into().context("--withdrawal-per-day")?,
            points_per_month: self.withdrawal_per_month.try_into().context("--withdrawal-per-month")?,
            review_from: self.withdrawal_review_from.try_into().context("--withdrawal-review-from")?,
            two_reviews_from: self.withdrawal_two_reviews_from.try_into().context("--withdrawal-two-reviews-from")?,
            fee_permille: self.withdrawal_fee_permille,
            minor_per_100_points: self.withdrawal_minor_per_100_points,
            currency: self.withdrawal_currency.clone(),
        };
        let reviewed = policy.review_from <= policy.two_reviews_from;
        let max = policy.points_per_day.min(policy.points_per_month);
        ensure!(policy.points_min <= max, "--withdrawal-min must not be more than a day's and a month's limit");
        ensure!(reviewed, "--withdrawal-two-reviews-from must not be less than --withdrawal-review-from");
        Ok(policy)
    }
}

impl PolicyArguments {
    /// The policy, if its numbers are possible.
    pub fn policy(&self) -> Result<Policy> {
        Ok(Policy {
            points: self.points()?,
            tips: self.tips.policy()?,
            withdrawals: self.withdrawals.policy()?,
            videos: self.videos.policy(),
        })
    }

    fn points(&self) -> Result<PointsPolicy> {
        Ok(PointsPolicy {
            check_in: self.check_in_points.try_into().context("--check-in-points")?,
            streak_bonus: self.streak_bonus.try_into().context("--streak-bonus")?,
            streak_days: self.streak_days,
            promo_lifetime_days: self.promo_lifetime_days,
            hold_lifetime_s: self.hold_lifetime_s,
            hold_lifetime_max_s: self.hold_lifetime_max_s,
            open_holds_max: self.open_holds_max,
            refund_window_s: self.refund_window_s,
            amount_max: self.amount_max.try_into().context("--amount-max")?,
        })
    }
}

/// The Kafka cluster.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kafka")]
pub struct KafkaArguments {
    /// The cluster: HOST:PORT, several with commas.
    #[arg(long, env = "SKYRIFF_KAFKA_BROKERS")]
    kafka_brokers: Option<String>,
    /// The topic that carries the log.
    #[arg(long, env = "SKYRIFF_KAFKA_TOPIC", default_value = skyriff_kafka::settings::TOPIC)]
    kafka_topic: String,
    /// The CloudEvents source of the events: which store they are of, when there are several.
    #[arg(long, env = "SKYRIFF_KAFKA_SOURCE", default_value = skyriff_kafka::settings::SOURCE)]
    kafka_source: String,
    /// How the names of our consumer groups start.
    #[arg(long, env = "SKYRIFF_KAFKA_GROUP", default_value = "skyriff.project")]
    kafka_group: String,
    /// Of a topic that is made: how many brokers keep each partition. The cluster's own default unless given.
    #[arg(long, env = "SKYRIFF_KAFKA_REPLICATION")]
    kafka_replication: Option<u16>,
    /// librdkafka's own settings, such as security: NAME=VALUE, several with ';'.
    #[arg(long, env = "SKYRIFF_KAFKA_OPTIONS", hide_env_values = true, default_value = "")]
    kafka_options: KafkaOptions,
}

/// librdkafka's own settings, which may hold secrets.
#[derive(Clone)]
struct KafkaOptions(Vec<(String, String)>);

impl FromStr for KafkaOptions {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let options = text.split(';').filter(|option| !option.trim().is_empty()).map(|option| {
            // What follows the name may be a secret, so the message has none of it.
            let (name, value) = option.split_once('=').context("a Kafka option is NAME=VALUE")?;
            Ok((name.trim().to_owned(), value.to_owned()))
        });
        Ok(Self(options.collect::<Result<_>>()?))
    }
}

impl std::fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl KafkaArguments {
    /// The cluster, which must have been named.
    pub fn settings(&self) -> Result<skyriff_kafka::Settings> {
        let brokers = self.kafka_brokers.clone().context(
            "no Kafka cluster: give --kafka-brokers HOST:PORT or set SKYRIFF_KAFKA_BROKERS (`make broker` runs one to try)",
        )?;
        Ok(skyriff_kafka::Settings {
            brokers,
            topic: self.kafka_topic.clone(),
            source: self.kafka_source.clone(),
            replication: self.kafka_replication,
            options: self.kafka_options.0.clone(),
        })
    }

    /// How the names of our consumer groups start.
    pub fn group(&self) -> &str {
        &self.kafka_group
    }
}

/// The databases of a store.
#[derive(Clone, Debug)]
pub struct Databases {
    pub shard_count: ShardCount,
    pub event_store: Vec<Place>,
    pub read_models: Vec<Place>,
}

/// One database: its shards, where it is written, and its replicas.
#[derive(Clone, Debug)]
pub struct Place {
    pub shards: Vec<ShardId>,
    pub primary: Address,
    pub replicas: Vec<Address>,
}

/// Where a database is. As whom to connect is said where it is used: a password file is looked into for that role.
#[derive(Clone)]
pub struct Address {
    url: Url,
    /// As whoever the environment says.
    parsed: PgConnectOptions,
}

impl Address {
    /// How to connect as a role.
    pub fn as_role(&self, role: &str) -> PgConnectOptions {
        let mut url = self.url.clone();
        // The parts were parsed before, so neither can fail.
        let options = url.set_username(role).ok().and_then(|()| PgConnectOptions::from_url(&url).ok());
        options.unwrap_or_else(|| self.parsed.clone()).username(role)
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        // The message has no address: it may have a password in it.
        let url: Url = text.parse().context("not an address like postgres://HOST/DATABASE")?;
        let parsed = PgConnectOptions::from_url(&url).context("not an address like postgres://HOST/DATABASE")?;
        Ok(Self { url, parsed })
    }
}

impl From<PgConnectOptions> for Address {
    fn from(options: PgConnectOptions) -> Self {
        Self { url: options.to_url_lossy(), parsed: options }
    }
}

/// Without a password.
impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (host, database) = (self.parsed.get_host(), self.parsed.get_database());
        f.debug_struct("Address").field("host", &host).field("database", &database).finish_non_exhaustive()
    }
}

/// The places of a store's shards, as written in the configuration.
#[derive(Clone, Debug)]
pub struct Placement(Vec<Place>);

impl FromStr for Placement {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let places = text.split(';').map(str::trim).filter(|place| !place.is_empty()).map(place);
        Ok(Self(places.collect::<Result<_>>()?))
    }
}

fn place(text: &str) -> Result<Place> {
    let (shards, urls) = text.split_once('=').context("a place is SHARDS=URL")?;
    let mut urls = urls.split('|').map(|url| url.trim().parse::<Address>().with_context(|| format!("shards {shards}")));
    let primary = urls.next().context("no URL")??;
    Ok(Place { shards: shards_listed(shards)?, primary, replicas: urls.collect::<Result<_>>()? })
}

/// Some shards, as in `0-3,7`.
pub fn shards(text: &str) -> Result<std::collections::BTreeSet<ShardId>> {
    Ok(shards_listed(text)?.into_iter().collect())
}

fn shards_listed(text: &str) -> Result<Vec<ShardId>> {
    let ranges = text.split(',').map(shards_from_to).collect::<Result<Vec<_>>>()?;
    Ok(ranges.into_iter().flatten().collect())
}

fn shards_from_to(text: &str) -> Result<Vec<ShardId>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<u16>().with_context(|| format!("{text:?} is not a shard"));
    Ok((number(first)?..=number(last)?).map(ShardId).collect())
}

impl DatabaseArguments {
    /// The databases, if every shard has one place in each.
    pub fn databases(self) -> Result<Databases> {
        let shard_count = ShardCount::new(self.shards).context("--shards is 1 to 1024")?;
        let databases = Databases { shard_count, event_store: self.event_store.0, read_models: self.read_models.0 };
        databases.check()?;
        Ok(databases)
    }
}

impl Databases {
    fn check(&self) -> Result<()> {
        for (what, places) in [("event store", &self.event_store), ("read models", &self.read_models)] {
            for shard in self.shard_count.shards() {
                let homes = places.iter().filter(|place| place.shards.contains(&shard)).count();
                ensure!(homes == 1, "the {what} has {homes} places for shard {shard}; it must be one");
            }
            let beyond = places.iter().flat_map(|place| &place.shards).find(|shard| shard.0 >= self.shard_count.get());
            if let Some(shard) = beyond {
                bail!("the {what} has a place for shard {shard}, and there are {} shards", self.shard_count.get());
            }
        }
        Ok(())
    }

    /// What is built for a database is built for all of its shards, so it has to have one place.
    pub fn check_that_read_databases_are_named_once(&self) -> Result<()> {
        let name = |place: &Place| {
            let of = place.primary.as_role(databases::PROJECT);
            (of.get_socket().cloned(), of.get_host().to_owned(), of.get_port(), of.get_database().map(str::to_owned))
        };
        for (number, place) in self.read_models.iter().enumerate() {
            let again = self.read_models.iter().skip(number + 1).any(|other| name(other) == name(place));
            let (.., database) = name(place);
            let database = database.unwrap_or_default();
            ensure!(!again, "the read models have two places in {database}; list its shards in one, as in 0-2,4-7=URL");
        }
        Ok(())
    }

    /// For executors.
    pub fn to_append(&self) -> Vec<skyriff_write_side::commands::EventDatabase> {
        let of = |place: &Place| skyriff_write_side::commands::EventDatabase {
            options: place.primary.as_role(databases::COMMAND),
            shards: place.shards.clone(),
        };
        self.event_store.iter().map(of).collect()
    }

    /// For processes.
    pub fn to_react(&self) -> Vec<skyriff_write_side::processes::ProcessDatabase> {
        let of = |place: &Place| skyriff_write_side::processes::ProcessDatabase {
            options: place.primary.as_role(databases::PROCESS),
            shards: place.shards.clone(),
        };
        self.event_store.iter().map(of).collect()
    }

    /// For projections: the log.
    pub fn to_follow(&self) -> Vec<skyriff_follow::LogDatabase> {
        let of = |place: &Place| skyriff_follow::LogDatabase {
            options: place.primary.as_role(databases::PROJECT),
            shards: place.shards.clone(),
        };
        self.event_store.iter().map(of).collect()
    }

    /// For the relay.
    pub fn to_relay(&self) -> Vec<skyriff_follow::LogDatabase> {
        let of = |place: &Place| skyriff_follow::LogDatabase {
            options: place.primary.as_role(databases::RELAY),
            shards: place.shards.clone(),
        };
        self.event_store.iter().map(of).collect()
    }

    /// For the sealer: where it holds its lock.
    pub fn to_lock_seals(&self) -> Option<PgConnectOptions> {
        let first = self.event_store.iter().find(|place| place.shards.contains(&ShardId(0)));
        first.map(|place| place.primary.as_role(databases::SEAL))
    }

    /// For the sealer: to be told of appends.
    pub fn to_listen_for_seals(&self) -> Vec<PgConnectOptions> {
        self.event_store.iter().map(|place| place.primary.as_role(databases::SEAL)).collect()
    }

    /// For whoever reads rows of the log as they are stored, in this role. Connects when first used.
    pub fn to_read_rows(&self, role: &str, name: &str) -> Vec<skyriff_seal::LogPlace> {
        let of = |place: &Place| skyriff_seal::LogPlace {
            shards: place.shards.clone(),
            primary: small_pool(&place.primary, role, name),
            replicas: place.replicas.iter().map(|replica| small_pool(replica, role, name)).collect(),
        };
        self.event_store.iter().map(of).collect()
    }

    /// For projections: the read models.
    pub fn to_project(&self) -> Vec<skyriff_follow::TableDatabase> {
        let of = |place: &Place| skyriff_follow::TableDatabase {
            options: place.primary.as_role(databases::PROJECT),
            shards: place.shards.clone(),
        };
        self.read_models.iter().map(of).collect()
    }

    /// For queries. Connects when first used.
    pub fn to_query(&self) -> Vec<skyriff_read_side::ReadDatabase> {
        self.read_models.iter().map(|place| to_read(place, &[])).collect()
    }

    /// For streams of events. Connects when first used.
    pub fn to_stream(&self) -> Vec<skyriff_read_side::ReadDatabase> {
        self.event_store.iter().map(|place| to_read(place, &log::BY_RANGE)).collect()
    }
}

/// With these settings of the session.
fn to_read(place: &Place, settings: &[(&str, &str)]) -> skyriff_read_side::ReadDatabase {
    let pool = |address: &Address| read_pool(address, settings);
    skyriff_read_side::ReadDatabase {
        shards: place.shards.clone(),
        primary: pool(&place.primary),
        replicas: place.replicas.iter().map(pool).collect(),
    }
}

/// A few connections for what is asked for now and then. Connects when first used.
pub fn small_pool(address: &Address, role: &str, name: &str) -> PgPool {
    let options = address.as_role(role).application_name(name);
    PgPoolOptions::new()
        .max_connections(SMALL_CONNECTIONS_MAX)
        .acquire_timeout(Duration::from_secs(2))
        .idle_timeout(Duration::from_secs(600))
        .connect_lazy_with(options.options([("statement_timeout", "10s")]))
}

fn read_pool(address: &Address, settings: &[(&str, &str)]) -> PgPool {
    let options = address.as_role(databases::QUERY).application_name("skyriff query").options(settings.iter().copied());
    // A query that takes longer than its client waits is of no use to anybody.
    let options = options.options([("statement_timeout", "10s"), ("default_transaction_read_only", "on")]);
    PgPoolOptions::new()
        .max_connections(READ_CONNECTIONS_MAX)
        .acquire_timeout(Duration::from_secs(2))
        .idle_timeout(Duration::from_secs(600))
        .connect_lazy_with(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases(shards: u16, event_store: &str, read_models: &str) -> Result<Databases> {
        let (event_store, read_models) = (event_store.parse()?, read_models.parse()?);
        DatabaseArguments { shards, event_store, read_models }.databases()
    }

    #[test]
    fn an_address_is_used_as_the_role_that_the_work_needs() {
        let shown = |text: &str| {
            let address: Address = text.parse().unwrap();
            assert!(!format!("{address:?}").contains("hush"), "{address:?}");
            address.as_role("skyriff_command").to_url_lossy().to_string()
        };
        assert!(shown("postgres://host:1/d").starts_with("postgres://skyriff_command@host:1/d?"));
        assert!(shown("postgres://else:hush@host/d").starts_with("postgres://skyriff_command:hush@host:5432/d?"));
        let socket = shown("postgres://%2Fvar%2Frun/d?application_name=x&sslmode=disable");
        assert!(socket.starts_with("postgres://skyriff_command@%2Fvar%2Frun:5432/d?sslmode=disable"), "{socket}");
        let again: Address = Address::from(socket.parse::<PgConnectOptions>().unwrap());
        assert_eq!(again.as_role("skyriff_query").get_socket(), Some(&"/var/run".into()));
    }

    #[test]
    fn every_shard_has_one_place() {
        let good = databases(4, "0-3=postgres://a/e", "0-1=postgres://a/r|postgres://b/r; 2-3=postgres://c/r").unwrap();
        assert_eq!(good.event_store.len(), 1);
        assert_eq!(good.read_models.iter().map(|place| place.replicas.len()).collect::<Vec<_>>(), [1, 0]);
        for (events, reads) in [
            ("0-2=postgres://a/e", "0-3=postgres://a/r"),
            ("0-3=postgres://a/e", "0-2=postgres://a/r;2-3=postgres://b/r"),
            ("0-4=postgres://a/e", "0-3=postgres://a/r"),
            ("0-3", "0-3=postgres://a/r"),
            ("x=postgres://a/e", "0-3=postgres://a/r"),
            ("", "0-3=postgres://a/r"),
        ] {
            assert!(databases(4, events, reads).is_err(), "{events} {reads}");
        }
    }
}
