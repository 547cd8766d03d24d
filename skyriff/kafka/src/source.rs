//! Following the topic instead of the log: the same followers, the same checkpoints.
//!
//! ```text
//! a thread polls the consumer ──▶ a bounded buffer for each shard ──▶ the runner reads after its checkpoints
//! ```
//!
//! The consumer group spreads the partitions, which are the shards, over the processes. Where to start in a partition is
//! found by position, with the committed offset as a hint, so it does not matter what became of the offsets. An event
//! stays in the buffer until the checkpoint has passed it; a full buffer pauses its partition. What the checkpoint has
//! passed is dropped, whether it comes for the first time or again; what comes too early is a gap, and stops the shard.
//!
//! A topic may be lost and made anew. Offsets mean nothing then, and groups have given their partitions away while there
//! were none. So a consumer whose topic is gone ends, and the next one waits until it is there; and one that meets a gap
//! looks for its place once more before it believes it.
//!
//! How far behind the tables are is asked of the log itself: a topic that nobody fills, and a broker that is away, look
//! from here as if there were nothing to do.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::gauge;
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use skyriff_domain::{LogPosition, Position, RecordedEvent, ShardId};
use skyriff_follow::{Behind, Lag, LogDatabase, LogError, ShardEvents, Source};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{context, message, probe::Probe, relay::IN_FLIGHT_MAX, settings::Settings};

/// Events of one shard that wait to be applied.
const BUFFER_MAX: usize = 2_000;
/// A paused shard is fetched again when no more wait than this.
const BUFFER_LOW: usize = BUFFER_MAX / 2;
/// Where two relays have sent at once, positions fall back by what each of them may have had on its way; reading from so
/// many messages earlier sees everything that came before in its order.
const START_EARLIER: i64 = 2 * IN_FLIGHT_MAX;
/// How long a poll waits, and with it how long everything else that the thread does.
const POLL_MAX: Duration = Duration::from_millis(100);
/// How often the thread looks for shards to go on with.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// A member that says nothing for so long, in milliseconds, loses its shards to the others.
const SESSION_MAX_MS: &str = "10000";
/// What a consumer fetches ahead of the buffers, in KiB.
const FETCHED_MAX_KIB: &str = "16384";
/// The wait before a consumer that failed is made anew, and before it is looked again whether the topic is there.
const BACK_OFF: Duration = Duration::from_secs(1);
/// How long the cluster may take to say whether the topic is there.
const ASK_MAX: Duration = Duration::from_secs(2);
/// A member that was given nothing joins again after this time, once: whoever spread the partitions may not have known of
/// the topic yet.
const JOIN_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Shards that a group has given to this process, by `group`.
const SHARDS: &str = "skyriff_kafka_shards";

/// The log, as the topic carries it.
#[derive(Debug)]
pub struct KafkaSource {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    lag: Lag,
}

impl KafkaSource {
    /// Join `group` and follow what it gives of these shards. Whoever is in the group must follow these and no others: it
    /// gives each partition to one member, whether that member wants it or not. The log is only asked how far it is.
    pub fn start(settings: &Settings, group: String, shards: &[ShardId], logs: &[LogDatabase]) -> Self {
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            group,
            shards: shards.to_vec(),
            state: Mutex::default(),
            more: Notify::new(),
            stop: CancellationToken::new(),
        });
        let thread = thread(&shared);
        Self { shared, thread, lag: Lag::new(logs) }
    }
}

fn thread(shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || follow(&shared))
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Source for KafkaSource {
    async fn read_after(
        &mut self,
        after: &BTreeMap<ShardId, Position>,
        limit: u16,
    ) -> Result<BTreeMap<ShardId, ShardEvents>, LogError> {
        if self.thread.is_finished() {
            return Err(LogError::Ended("the consumer has ended by itself"));
        }
        Ok(self.shared.state().read_after(after, usize::from(limit)))
    }

    async fn behind(&mut self, after: &BTreeMap<ShardId, Position>) -> Result<BTreeMap<ShardId, Behind>, LogError> {
        Ok(self.lag.behind(after).await)
    }

    async fn more(&mut self) {
        self.shared.more.notified().await;
    }

    fn has(&self, shard: ShardId) -> bool {
        self.shared.state().feeds.contains_key(&shard)
    }

    /// What is in the buffers is still right; only a thread that is gone has to be started again.
    fn reset(&mut self) {
        if self.thread.is_finished() {
            self.shared.state().feeds.clear();
            self.thread = thread(&self.shared);
        }
    }

    async fn close(mut self) {
        self.shared.stop.cancel();
        if let Err(error) = (&mut self.thread).await {
            tracing::error!(%error, "a consumer ended badly");
        }
    }
}

/// What the thread and the runner share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    group: String,
    /// What the tables hold; the group gives others as well, which are left alone.
    shards: Vec<ShardId>,
    state: Mutex<State>,
    more: Notify,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// As last read beside the tables.
    checkpoints: BTreeMap<ShardId, Position>,
    /// The shards that the group has given us.
    feeds: BTreeMap<ShardId, Feed>,
    /// Since when the group gives us nothing at all.
    given_nothing_since: Option<Instant>,
    /// After which positions there was a gap, and its shard's place was looked for again.
    doubted: BTreeMap<ShardId, Position>,
    /// The consumer may be at the wrong place, and another has to look for the right one.
    is_misplaced: bool,
}

impl State {
    fn read_after(&mut self, after: &BTreeMap<ShardId, Position>, limit: usize) -> BTreeMap<ShardId, ShardEvents> {
        self.checkpoints.extend(after);
        let mut all = BTreeMap::new();
        for (shard, after) in after {
            let Some(feed) = self.feeds.get_mut(shard) else { continue };
            feed.drop_until(*after);
            if feed.buffer.is_empty() {
                continue;
            }
            let mut read = feed.read(*shard, *after, limit);
            if let Some(LogError::Gap { after, .. }) = read.stopped_by
                && self.doubted.insert(*shard, after) != Some(after)
            {
                read.stopped_by = None;
                self.is_misplaced = true;
            }
            all.insert(*shard, read);
        }
        all
    }
}

/// One shard's messages.
#[derive(Debug, Default)]
struct Feed {
    buffer: VecDeque<Arrived>,
    /// The highest position that was dropped: what comes after it is in the buffer or still to come.
    floor: Position,
    /// After the last message that was dropped, when it was not committed yet.
    done_offset: Option<i64>,
    paused: bool,
}

#[derive(Debug)]
struct Arrived {
    offset: i64,
    event: Result<RecordedEvent, Rejected>,
}

/// A message that is no event of ours, or not one that this program knows.
#[derive(Debug)]
struct Rejected {
    /// When the message says so.
    position: Option<Position>,
    why: String,
}

impl Arrived {
    fn position(&self) -> Option<Position> {
        match &self.event {
            Ok(event) => Some(event.at.position),
            Err(rejected) => rejected.position,
        }
    }
}

impl Feed {
    fn drop_until(&mut self, after: Position) {
        while let Some(first) = self.buffer.front() {
            // Somebody has been past a message that says nothing of itself when there is a later one that is done.
            let is_done = |arrived: &Arrived| arrived.position().is_some_and(|position| position <= after);
            let done = is_done(first) || (first.position().is_none() && self.buffer.iter().any(is_done));
            if !done {
                break;
            }
            self.done_offset = Some(first.offset + 1);
            self.buffer.pop_front();
        }
        self.floor = self.floor.max(after);
    }

    /// What comes after a position, in order; and what is in its way.
    fn read(&self, shard: ShardId, after: Position, limit: usize) -> ShardEvents {
        let mut read = ShardEvents::default();
        let mut last = after;
        for arrived in &self.buffer {
            if read.events.len() >= limit {
                break;
            }
            match (arrived.position(), &arrived.event) {
                // It came again.
                (Some(position), _) if position <= last => {}
                (Some(position), _) if position != last.next() => {
                    let found = LogPosition { shard, position };
                    read.stopped_by = Some(LogError::Gap { found, after: last });
                    break;
                }
                (Some(position), Ok(event)) => {
                    read.events.push(event.clone());
                    last = position;
                }
                (_, Err(rejected)) => {
                    read.stopped_by = Some(LogError::Malformed { shard, why: rejected.why.clone() });
                    break;
                }
                // An event says where it is.
                (None, Ok(_)) => {}
            }
        }
        read
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take a message in; whether its shard has enough for now.
    fn arrived(&self, message: &BorrowedMessage<'_>) -> bool {
        let shard = shard_of_partition(message.partition());
        let event = message::decode(message).map_err(|error| Rejected {
            position: message::position(message).ok().map(|at| at.position),
            why: chain(&error),
        });
        let arrived = Arrived { offset: message.offset(), event };
        let mut state = self.state();
        let done = state.checkpoints.get(&shard).copied().unwrap_or_default();
        let Some(feed) = state.feeds.get_mut(&shard) else { return false };
        if feed.buffer.is_empty() && arrived.position().is_some_and(|position| position <= done.min(feed.floor)) {
            feed.done_offset = Some(message.offset() + 1);
            return false;
        }
        feed.buffer.push_back(arrived);
        feed.paused = feed.buffer.len() >= BUFFER_MAX;
        feed.paused
    }

    /// Where to start in those of the given partitions that are followed here: from the beginning when it cannot be found
    /// out, which is always right. Blocks, and nothing else of the consumer goes on meanwhile: so the first look that
    /// fails is the last one, and there is none after we were told to stop.
    fn starts(
        &self,
        given: &TopicPartitionList,
        committed: &TopicPartitionList,
    ) -> BTreeMap<ShardId, (Offset, Position)> {
        let mut probe = Probe::new(&self.settings);
        let checkpoints = self.state().checkpoints.clone();
        let mut starts = BTreeMap::new();
        let mut not_found = Vec::new();
        for partition in given.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition) {
            let shard = shard_of_partition(partition);
            if !self.shards.contains(&shard) {
                continue;
            }
            let checkpoint = checkpoints.get(&shard).copied().unwrap_or_default();
            let start = match &probe {
                _ if checkpoint == Position::default() || self.stop.is_cancelled() => Ok(0),
                Ok(probe) => {
                    let hint = committed.find_partition(&self.settings.topic, partition);
                    let hint = hint.and_then(|found| found.offset().to_raw()).filter(|offset| *offset >= 0);
                    probe.offset_after(shard, checkpoint, hint)
                }
                Err(error) => Err(error.clone()),
            };
            let start = match start {
                Ok(offset) if offset > START_EARLIER => Offset::Offset(offset - START_EARLIER),
                Ok(_) => Offset::Beginning,
                Err(error) => {
                    not_found.push(shard);
                    probe = Err(error);
                    Offset::Beginning
                }
            };
            starts.insert(shard, (start, checkpoint));
        }
        if let Err(error) = probe {
            let shards = not_found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            tracing::warn!(shards, %error, "cannot find where to go on in the topic; reading from its beginning");
        }
        starts
    }
}

/// Why another consumer has to be made.
#[derive(Debug, thiserror::Error)]
enum Anew {
    #[error("it failed: {0}")]
    Failed(#[from] KafkaError),
    #[error("the topic, or a part of it, is gone")]
    TopicGone,
    #[error("the group gave it nothing")]
    GivenNothing,
    #[error("there is a gap where it reads")]
    Misplaced,
    #[error("the tables have gone back")]
    TablesGoneBack,
}

/// The thread: consumers, one after the other.
fn follow(shared: &Arc<Shared>) {
    // Where to start is known from the first look at the tables on.
    while shared.state().checkpoints.is_empty() && !shared.stop.is_cancelled() {
        std::thread::sleep(LOOK_EVERY);
    }
    let mut may_join_again = true;
    while !shared.stop.is_cancelled() {
        match consume(shared, may_join_again) {
            Ok(()) => break,
            Err(why) => {
                tracing::warn!(group = shared.group, %why, "making another consumer");
                may_join_again = !matches!(why, Anew::GivenNothing);
            }
        }
        let mut state = shared.state();
        state.feeds.clear();
        (state.given_nothing_since, state.is_misplaced) = (None, false);
        drop(state);
        std::thread::sleep(BACK_OFF);
    }
}

/// A group that spreads the partitions of a topic that is not there gives nobody any, and may leave it at that when it
/// is made.
fn wait_for_topic(shared: &Shared, consumer: &BaseConsumer<Member>) {
    let topic = &shared.settings.topic;
    let mut is_told = false;
    while !shared.stop.is_cancelled() {
        match consumer.fetch_metadata(Some(topic), ASK_MAX) {
            Ok(metadata) if !metadata.topics().iter().any(|of| of.name() == topic && !of.partitions().is_empty()) => {}
            // The consumer waits for brokers by itself.
            Ok(_) | Err(_) => return,
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(group = shared.group, topic, "there is no such topic; waiting until a relay has made it");
        }
        std::thread::sleep(BACK_OFF);
    }
}

fn consume(shared: &Arc<Shared>, may_join_again: bool) -> Result<(), Anew> {
    let mut config = shared.settings.consumer(&shared.group);
    config
        .set("partition.assignment.strategy", "roundrobin")
        .set("session.timeout.ms", SESSION_MAX_MS)
        .set("heartbeat.interval.ms", "1000")
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", FETCHED_MAX_KIB);
    let consumer: BaseConsumer<Member> = config.create_with_context(Member(Arc::clone(shared)))?;
    wait_for_topic(shared, &consumer);
    consumer.subscribe(&[&shared.settings.topic])?;
    let mut looked_at = Instant::now();
    let mut committed_at = Instant::now();
    while !shared.stop.is_cancelled() {
        match consumer.poll(POLL_MAX) {
            Some(Ok(message)) => {
                if shared.arrived(&message) {
                    consumer.pause(&list(shared, [shard_of_partition(message.partition())])?)?;
                }
                shared.more.notify_one();
            }
            None => {}
            Some(Err(error)) => {
                if let Some((code, why)) = consumer.client().fatal_error() {
                    tracing::error!(%code, why, "a consumer cannot go on");
                    return Err(error.into());
                }
                if error.rdkafka_error_code().is_some_and(is_about_the_topic) {
                    return Err(Anew::TopicGone);
                }
                context::warn(&error, "consuming");
            }
        }
        if looked_at.elapsed() >= LOOK_EVERY {
            looked_at = Instant::now();
            go_on(shared, &consumer)?;
            let since = shared.state().given_nothing_since;
            if may_join_again && since.is_some_and(|since| since.elapsed() >= JOIN_AGAIN_AFTER) {
                return Err(Anew::GivenNothing);
            }
        }
        if committed_at.elapsed() >= COMMIT_EVERY {
            committed_at = Instant::now();
            commit(shared, &consumer, CommitMode::Async);
        }
    }
    commit(shared, &consumer, CommitMode::Sync);
    Ok(())
}

fn is_about_the_topic(code: RDKafkaErrorCode) -> bool {
    [RDKafkaErrorCode::UnknownTopic, RDKafkaErrorCode::UnknownPartition, RDKafkaErrorCode::UnknownTopicOrPartition]
        .contains(&code)
}

/// Fetch shards again whose buffers have room; whether this consumer still is where it has to be.
fn go_on(shared: &Shared, consumer: &BaseConsumer<Member>) -> Result<(), Anew> {
    let mut roomy = Vec::new();
    let mut gone_back = false;
    let is_misplaced;
    {
        let mut state = shared.state();
        is_misplaced = state.is_misplaced;
        let State { checkpoints, feeds, .. } = &mut *state;
        for (shard, feed) in feeds {
            if feed.paused && feed.buffer.len() <= BUFFER_LOW {
                feed.paused = false;
                roomy.push(*shard);
            }
            gone_back |= checkpoints.get(shard).is_some_and(|checkpoint| *checkpoint < feed.floor);
        }
    }
    if !roomy.is_empty() {
        consumer.resume(&list(shared, roomy)?)?;
    }
    if gone_back {
        // Rare: somebody builds the tables anew. A new member starts where they are.
        return Err(Anew::TablesGoneBack);
    }
    if is_misplaced { Err(Anew::Misplaced) } else { Ok(()) }
}

/// A hint for whoever starts here next.
fn commit(shared: &Shared, consumer: &BaseConsumer<Member>, mode: CommitMode) {
    let mut offsets = TopicPartitionList::new();
    for (shard, feed) in &mut shared.state().feeds {
        if let Some(offset) = feed.done_offset.take() {
            offsets.add_partition_offset(&shared.settings.topic, i32::from(shard.0), Offset::Offset(offset)).ok();
        }
    }
    if offsets.count() > 0
        && let Err(error) = consumer.commit(&offsets, mode)
    {
        tracing::debug!(%error, "offsets are not committed");
    }
}

/// What a member of the group does when it is given partitions, and when they are taken.
struct Member(Arc<Shared>);

impl Member {
    fn count(&self, state: &State) {
        let shards = u32::try_from(state.feeds.len()).map_or(f64::INFINITY, f64::from);
        gauge!(SHARDS, "group" => self.0.group.clone()).set(shards);
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        context::warn(&error, reason);
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let shared = &self.0;
        match rebalance {
            Rebalance::Assign(given) => {
                let committed = consumer.committed_offsets((*given).clone(), POLL_MAX * 20).unwrap_or_default();
                let starts = shared.starts(given, &committed);
                for mut partition in given.elements() {
                    if let Some((offset, _)) = starts.get(&shard_of_partition(partition.partition())) {
                        partition.set_offset(*offset).ok();
                    }
                }
                let mut state = shared.state();
                for (shard, (_, floor)) in starts {
                    state.feeds.insert(shard, Feed { floor, ..Feed::default() });
                }
                state.given_nothing_since = (given.count() == 0).then(Instant::now);
                self.count(&state);
                let shards = state.feeds.keys().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                tracing::info!(group = shared.group, shards, "the group gives us shards");
            }
            Rebalance::Revoke(_) => {
                commit(shared, consumer, CommitMode::Async);
                let mut state = shared.state();
                state.feeds.clear();
                state.given_nothing_since = None;
                self.count(&state);
                tracing::info!(group = shared.group, "the group spreads the shards anew");
            }
            Rebalance::Error(error) => {
                tracing::warn!(group = shared.group, %error, "the group cannot spread the shards")
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(given) = rebalance {
            let given = given.elements();
            let others = given.iter().map(|partition| shard_of_partition(partition.partition()));
            let others = others.filter(|shard| !self.0.shards.contains(shard));
            // They belong to tables elsewhere, which another group follows; nobody in this one wants them.
            if let Err(error) = list(&self.0, others).and_then(|others| consumer.pause(&others)) {
                tracing::warn!(%error, "partitions that are not needed are fetched all the same");
            }
        }
    }
}

fn list(shared: &Shared, shards: impl IntoIterator<Item = ShardId>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for shard in shards {
        list.add_partition(&shared.settings.topic, i32::from(shard.0));
    }
    Ok(list)
}

fn shard_of_partition(partition: i32) -> ShardId {
    ShardId(u16::try_from(partition).unwrap_or(u16::MAX))
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
