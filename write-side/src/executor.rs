//! One executor: takes whatever commands wait for its shards, decides them one after the other on the streams in
//! memory, appends all of it at once, answers.
//!
//! Batches make themselves: while one commits, the next one gathers. A lone command commits at once; ten thousand
//! commands for one account are a few batches, and no conflicts.
//!
//! # What must hold
//! * Memory never runs ahead of the log: streams that a batch has changed are forgotten when its append did not go
//!   through, whatever the reason.
//! * Nothing is decided on stale state, not even a refusal: an append goes through only if the heads of its shards are
//!   where this executor knows them, or else if every stream that the batch read is unchanged.
//! * `known` says up to where the streams in memory have seen their shard. It only moves over events that this
//!   executor appended itself or has caught up on.
//! * Nothing is answered as long as it could still turn out otherwise. When a connection dies in the middle of an
//!   append, the same commands are decided and appended again under the same ids: what went through is found by its id.
//!   They are appended half as many at a time, since they may have been too many, and still in their order.

mod cache;
mod connection;
mod decided;
mod housekeeping;
mod meters;
mod pending;
mod queue;
mod snapshots;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use skyriff_domain::{CommandId, Event, Policy, Position, ShardId, StreamId};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    cache::StreamCache,
    connection::{disconnected, within},
    decided::{Decided, LogOffset, answer},
    meters::Meters,
    pending::{split_off_after, take_first_of_each},
    queue::Waiting,
};
pub(crate) use self::{
    housekeeping::keep_commands,
    pending::{Item, Pending},
    queue::{Queue, queue},
    snapshots::SnapshotWriter,
};
use crate::{
    Failure, Receipt, Refused, Submission,
    commands::Limits,
    event_store::{self, Appended, Batch, NewEvent, Outcome, StoreError},
};

/// How often a batch may lose a race before it takes the locks first.
const OPTIMISTIC_ATTEMPTS: u32 = 2;
/// How often a batch may meet a sequence that another shard's append has taken, before its commands are answered.
const CONFLICTS_MAX: u32 = 8;
/// More events of others than this are not read to catch up; the streams in memory are forgotten instead.
const CATCH_UP_EVENTS_MAX: i64 = 10_000;
/// Appends grow back by one part in so many each: slowly, since one that is too large is cut off again, after a long wait.
const GROWTH: usize = 8;
/// The wait before trying again what the database could not do just now, and its growth.
const BACK_OFF: Duration = Duration::from_millis(20);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

/// What makes one executor differ from another.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// For logs and metrics.
    pub(crate) name: Arc<str>,
    pub(crate) shards: Vec<ShardId>,
    pub(crate) policy: Policy,
    pub(crate) cache_bytes_max: usize,
    pub(crate) limits: Limits,
}

/// See the module.
pub(crate) struct Executor {
    settings: Settings,
    options: PgConnectOptions,
    waiting: Waiting,
    snapshots: SnapshotWriter,
    /// Commands in one append: fewer than the limit after an append that was cut off, which may have been too large.
    at_once: usize,
    connection: Option<PgConnection>,
    /// The server process of this connection, or of the last one that was given up.
    backend: Option<i32>,
    cache: StreamCache,
    known: BTreeMap<ShardId, Position>,
    /// Whether the connection is in a transaction that owns the batch's shards.
    locked: bool,
    meters: Meters,
}

impl Executor {
    pub(crate) fn new(
        settings: Settings,
        options: PgConnectOptions,
        waiting: Waiting,
        snapshots: SnapshotWriter,
    ) -> Self {
        let meters = Meters::new(&settings.name);
        let (cache, known) = (StreamCache::default(), BTreeMap::new());
        Self {
            at_once: settings.limits.batch_max,
            settings,
            options,
            waiting,
            snapshots,
            connection: None,
            backend: None,
            cache,
            known,
            locked: false,
            meters,
        }
    }

    /// Work until stopped, then answer what already waits, and end.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut closing = false;
        loop {
            let batch = tokio::select! {
                biased;
                () = stop.cancelled(), if !closing => {
                    self.waiting.close();
                    closing = true;
                    continue;
                }
                taken = self.waiting.take(self.at_once) => taken,
            };
            if batch.is_empty() {
                break;
            }
            self.meters.batch.record(count(pending::commands(&batch)));
            for pending in &batch {
                self.meters.wait.record_many(pending.arrived.elapsed(), pending.items.len());
            }
            self.process(batch).await;
            self.tidy();
        }
        if let Some(connection) = self.connection.take() {
            connection.close().await.ok();
        }
    }

    /// Answer every command of a batch, in one append or, where fewer commands go into one, several.
    async fn process(&mut self, mut todo: Vec<Pending>) {
        let (mut races_lost, mut conflicts, mut back_off) = (0, 0, BACK_OFF);
        loop {
            todo = self.give_up_on_overdue(todo);
            if todo.is_empty() {
                return;
            }
            // Nothing overtakes: what comes later is looked at when this has been answered.
            let later = split_off_after(&mut todo, self.at_once);
            let commands = pending::commands(&todo);
            let attempt = if races_lost < OPTIMISTIC_ATTEMPTS {
                self.attempt(&mut todo).await
            } else {
                self.attempt_with_locks(&mut todo).await
            };
            match attempt {
                Ok(Attempt::Progress) => self.more_at_once(commands),
                Ok(Attempt::Stale) => {
                    races_lost += 1;
                    self.meters.conflicts.increment(1);
                }
                Err(StoreError::Lost(error)) => {
                    if self.connection.is_some() && todo.len() > 1 {
                        self.at_once = commands / 2;
                    }
                    self.disconnect(&error);
                    tokio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
                Err(StoreError::TryAgain(error)) => {
                    tracing::warn!(executor = %self.settings.name, %error, "the event store could not append; trying again");
                    tokio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
                Err(StoreError::Conflict(_)) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    self.meters.conflicts.increment(1);
                }
                Err(StoreError::Conflict(_)) => {
                    todo.drain(..).for_each(|pending| pending.fail(&Failure::Conflict));
                }
                // One command that the database will never take must not harm its neighbours.
                Err(StoreError::Rejected(_) | StoreError::Unreadable(_)) if todo.len() > 1 => {
                    for pending in todo.drain(..) {
                        Box::pin(self.process(vec![pending])).await;
                    }
                }
                Err(error @ (StoreError::Rejected(_) | StoreError::Unreadable(_))) => {
                    let reason = explain(&error);
                    tracing::error!(executor = %self.settings.name, error = %reason, "the event store rejected a command");
                    let fault = Failure::Fault(reason.into());
                    todo.drain(..).for_each(|pending| pending.fail(&fault));
                }
            }
            if todo.is_empty() {
                (races_lost, conflicts, back_off) = (0, 0, BACK_OFF);
            }
            todo.extend(later);
        }
    }

    /// After an append that went through. It says something about larger ones only if it was nearly as large as allowed.
    fn more_at_once(&mut self, commands: usize) {
        if commands > self.at_once / 2 {
            let more = (self.at_once / GROWTH).max(1);
            self.at_once = (self.at_once + more).min(self.settings.limits.batch_max);
        }
    }

    /// Answer the commands that were tried for long enough, and drop those that nobody waits for and nothing tried.
    fn give_up_on_overdue(&self, todo: Vec<Pending>) -> Vec<Pending> {
        let (now, patience) = (Instant::now(), self.settings.limits.patience);
        let (overdue, rest): (Vec<_>, Vec<_>) =
            todo.into_iter().partition(|pending| now.duration_since(pending.arrived) > patience);
        for pending in overdue {
            let failure = if pending.attempted { Failure::OutcomeUnknown } else { Failure::Unavailable };
            pending.fail(&failure);
        }
        let awaited = |pending: &Pending| pending.items.iter().any(|item| !item.answer.is_closed());
        rest.into_iter().filter(|pending| pending.attempted || awaited(pending)).collect()
    }

    /// As [`Executor::attempt`], but holding the locks of the shards from before the streams are read until the commit:
    /// nobody can win the race any more.
    async fn attempt_with_locks(&mut self, todo: &mut Vec<Pending>) -> Result<Attempt, StoreError> {
        let shards: Vec<_> =
            todo.iter().map(|pending| pending.shard).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        self.connect().await?;
        let limit = self.settings.limits.append_timeout;
        // From before the locks are had: asking for them in vain has begun a transaction too.
        self.locked = true;
        let attempt = async {
            let connection = self.connection.as_mut().ok_or_else(disconnected)?;
            let locked = within(limit, event_store::lock(connection, &shards)).await?;
            for (shard, head) in shards.into_iter().zip(locked) {
                self.catch_up(shard, head).await?;
            }
            self.attempt(todo).await
        }
        .await;
        if std::mem::take(&mut self.locked)
            && !matches!(attempt, Err(StoreError::Lost(_)))
            && let Some(connection) = self.connection.as_mut()
        {
            within(limit, event_store::abandon(connection)).await?;
        }
        attempt
    }

    /// Decide the commands and append what they record, once. Answered commands leave `todo`; the others stay, and
    /// memory is as if they had not been decided.
    async fn attempt(&mut self, todo: &mut Vec<Pending>) -> Result<Attempt, StoreError> {
        self.connect().await?;
        let waiting = take_first_of_each(todo);
        let mut waiting = match self.load(&waiting).await {
            Ok(()) => waiting,
            Err(error) => {
                todo.splice(0..0, waiting);
                return Err(error);
            }
        };
        let started = Instant::now();
        let (batch, decided) = self.decide(&waiting);
        self.meters.decide.record(started.elapsed());

        let changed: HashSet<_> = batch.events.iter().map(|event| event.stream).collect();
        let appended = self.append(&batch).await;
        if !matches!(appended, Ok(Appended::Done { .. })) {
            changed.iter().for_each(|stream| self.cache.forget(stream));
        }
        match appended {
            Ok(Appended::Done { heads, recorded_at }) => {
                let shards = batch.shards.clone();
                let new_events: Vec<_> = (0..shards.len()).map(|shard| batch.last_offset(shard)).collect();
                self.cache.settle(&changed);
                answer(waiting, decided, batch, &heads, recorded_at);
                for (((shard, known), head), new_events) in shards.into_iter().zip(heads).zip(new_events) {
                    if head != known {
                        self.catch_up(shard, head).await?;
                    }
                    self.known.insert(shard, Position(head.0 + new_events));
                }
                Ok(Attempt::Progress)
            }
            Ok(Appended::Stale { heads, streams }) => {
                for place in streams {
                    if let Some((stream, _)) = batch.streams.get(place) {
                        self.cache.forget(stream);
                    }
                }
                let shards: Vec<_> = batch.shards.iter().map(|(shard, _)| *shard).collect();
                todo.splice(0..0, waiting);
                for (shard, head) in shards.into_iter().zip(heads) {
                    self.catch_up(shard, head).await?;
                }
                Ok(Attempt::Stale)
            }
            Ok(Appended::Repeated { commands }) => {
                todo.splice(0..0, waiting);
                self.answer_again(&commands, todo).await?;
                Ok(Attempt::Progress)
            }
            Err(error) => {
                if matches!(error, StoreError::Conflict(_)) {
                    batch.streams.iter().for_each(|(stream, _)| self.cache.forget(stream));
                }
                if matches!(error, StoreError::Lost(_)) {
                    waiting.iter_mut().for_each(|pending| pending.attempted = true);
                }
                todo.splice(0..0, waiting);
                Err(error)
            }
        }
    }

    /// Answer commands that were recorded before, with their first answer; the rest of their company stays.
    async fn answer_again(&mut self, repeated: &[CommandId], todo: &mut Vec<Pending>) -> Result<(), StoreError> {
        let connection = self.connection.as_mut().ok_or_else(disconnected)?;
        let limit = self.settings.limits.append_timeout;
        let answers = within(limit, event_store::first_answers(connection, repeated)).await?;
        // Whoever recorded them may have been cut off while it waited for the standby.
        if self.settings.limits.require_standby {
            within(limit, event_store::await_durability(connection)).await?;
        }
        for pending in todo.iter_mut() {
            // When our own append did it and only its answer was lost, this is the first answer.
            let replayed = !pending.attempted;
            let is_other = |item: &Item| {
                answers.get(&item.id()).is_some_and(|first| first.fingerprint != item.submission.fingerprint)
            };
            let was_refused = |item: &Item| answers.get(&item.id()).is_some_and(|first| first.answer.is_err());
            // A key of another command spoils its company too, and so does one that was refused: the rest alone is not
            // what was asked for.
            let spoilt = pending.items.iter().any(|item| is_other(item) || was_refused(item));
            for item in pending.items.extract_if(.., |item| spoilt || answers.contains_key(&item.submission.id)) {
                let answer = match answers.get(&item.id()) {
                    Some(_) if is_other(&item) => Err(Failure::KeyReused),
                    Some(first) => match &first.answer {
                        Ok(receipt) => Ok(Receipt { replayed, ..receipt.clone() }),
                        Err(Refused::ByRule(refusal)) if replayed => Err(Failure::RefusedBefore(refusal.clone())),
                        Err(Refused::ByRule(refusal)) => Err(Failure::Refused(refusal.clone())),
                        Err(Refused::Together) => Err(Failure::RefusedTogether),
                    },
                    None => Err(Failure::RefusedTogether),
                };
                item.answer(answer);
            }
        }
        todo.retain(|pending| !pending.items.is_empty());
        Ok(())
    }

    /// Bring every stream of the batch into memory.
    async fn load(&mut self, waiting: &[Pending]) -> Result<(), StoreError> {
        let mut missing = Vec::new();
        let mut asked = HashSet::new();
        for stream in waiting.iter().flat_map(Pending::streams) {
            if self.cache.touch(&stream) {
                self.meters.hits.increment(1);
            } else if asked.insert(stream) {
                missing.push(stream);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.meters.misses.increment(u64::try_from(missing.len()).unwrap_or(u64::MAX));
        let started = Instant::now();
        let connection = self.connection.as_mut().ok_or_else(disconnected)?;
        for loaded in within(event_store::LOAD_TIMEOUT, event_store::load(connection, &missing)).await? {
            self.cache.insert(loaded);
        }
        self.meters.load.record(started.elapsed());
        Ok(())
    }

    /// Decide each command in turn, each on what the ones before it recorded.
    fn decide(&mut self, waiting: &[Pending]) -> (Batch, Vec<Vec<Decided>>) {
        let mut batch = Batch::default();
        let mut places = BTreeMap::new();
        for pending in waiting {
            places.insert(pending.shard, 0);
        }
        for (place, (shard, index)) in places.iter_mut().enumerate() {
            *index = place;
            batch.shards.push((*shard, self.known.get(shard).copied().unwrap_or_default()));
        }
        let mut read = HashMap::new();
        for stream in waiting.iter().flat_map(Pending::streams) {
            read.entry(stream).or_insert_with(|| self.cache.sequence(&stream));
        }
        batch.streams = read.into_iter().collect();
        let decided = waiting.iter().map(|pending| {
            let shard = places.get(&pending.shard).copied().unwrap_or_default();
            self.decide_together(pending, shard, &mut batch)
        });
        let decided = decided.collect();
        (batch, decided)
    }

    /// Decide the commands of one [`Pending`]: all are accepted, or all are refused and memory is as before.
    fn decide_together(&mut self, pending: &Pending, shard: usize, batch: &mut Batch) -> Vec<Decided> {
        // A lone command changes nothing before it is decided, so there is nothing to go back to.
        let before = (pending.items.len() > 1).then(|| self.cache.remember(pending.streams()));
        let (events_before, outcomes_before) = (batch.events.len(), batch.outcomes.len());
        let mut decided = Vec::with_capacity(pending.items.len());
        for (place, Item { submission, .. }) in pending.items.iter().enumerate() {
            match submission.command.decide(&self.cache, &self.settings.policy) {
                Ok(events) => decided.push(Ok(self.accept(submission, events, shard, batch))),
                Err(refusal) => {
                    batch.events.truncate(events_before);
                    batch.outcomes.truncate(outcomes_before);
                    self.cache.restore(before.unwrap_or_default());
                    let mut refused = vec![Refused::Together; pending.items.len()];
                    if let Some(own) = refused.get_mut(place) {
                        *own = Refused::ByRule(refusal);
                    }
                    let last_offset = batch.last_offset(shard);
                    batch.outcomes.extend(pending.items.iter().zip(&refused).map(|(item, refused)| Outcome {
                        id: item.id(),
                        fingerprint: item.submission.fingerprint,
                        shard,
                        last_offset,
                        events: 0,
                        refused: Some(refused.clone()),
                    }));
                    return refused.into_iter().map(Err).collect();
                }
            }
        }
        decided
    }

    /// Put what a command records into the batch and into memory.
    fn accept(
        &mut self,
        submission: &Submission,
        events: Vec<(StreamId, Event)>,
        shard: usize,
        batch: &mut Batch,
    ) -> (LogOffset, usize) {
        let recorded = events.len();
        // A struct of strings; serde_json cannot fail on it, nor on events, which are plain data with string keys.
        let metadata = serde_json::to_string(&submission.metadata).unwrap_or_default();
        let mut last = LogOffset { shard, offset: batch.last_offset(shard) };
        for (stream, event) in events {
            last.offset += 1;
            batch.events.push(NewEvent {
                shard,
                offset: last.offset,
                stream,
                sequence: self.cache.apply(&stream, &event),
                event_type: event.event_type(),
                event_version: event.event_version(),
                payload: event.payload().unwrap_or_default(),
                metadata: metadata.clone(),
                occurred_at: submission.command.at,
            });
        }
        batch.outcomes.push(Outcome {
            id: submission.id,
            fingerprint: submission.fingerprint,
            shard,
            last_offset: last.offset,
            events: i32::try_from(recorded).unwrap_or(i32::MAX),
            refused: None,
        });
        (last, recorded)
    }

    /// An append that takes too long counts as a lost connection: nobody knows what comes of it.
    async fn append(&mut self, batch: &Batch) -> Result<Appended, StoreError> {
        let started = Instant::now();
        let connection = self.connection.as_mut().ok_or_else(disconnected)?;
        let (locked, commit_seconds) = (&mut self.locked, &self.meters.commit);
        let append = async {
            let appended = event_store::append(connection, batch).await?;
            if *locked && matches!(appended, Appended::Done { .. }) {
                let started = Instant::now();
                event_store::commit(connection).await?;
                commit_seconds.record(started.elapsed());
                *locked = false;
            }
            Ok(appended)
        };
        let appended = within(self.settings.limits.append_timeout, append).await;
        self.meters.append.record(started.elapsed());
        appended
    }

    /// Apply what others have appended to the streams in memory, so that `known` is `head`.
    async fn catch_up(&mut self, shard: ShardId, head: Position) -> Result<(), StoreError> {
        let known = self.known.get(&shard).copied().unwrap_or_default();
        if head == known {
            return Ok(());
        }
        // A log that is shorter than what we knew is another log: a restored backup, a replica promoted too early.
        if head < known || head.0 - known.0 > CATCH_UP_EVENTS_MAX {
            self.cache.clear();
        } else {
            let connection = self.connection.as_mut().ok_or_else(disconnected)?;
            let caught_up = event_store::catch_up(connection, shard, known, head);
            let events = match within(self.settings.limits.append_timeout, caught_up).await {
                Ok(events) => events,
                // An event of a newer binary, perhaps: memory that is empty has missed nothing, and whoever needs that
                // stream will say so.
                Err(StoreError::Unreadable(error)) => {
                    tracing::warn!(%shard, %error, "cannot follow another node's events; reading streams anew");
                    self.cache.clear();
                    Vec::new()
                }
                Err(error) => {
                    self.cache.clear();
                    return Err(error);
                }
            };
            self.meters.caught_up.increment(u64::try_from(events.len()).unwrap_or(0));
            for (stream, sequence, event) in events {
                self.cache.follow(&stream, sequence, &event);
            }
        }
        self.known.insert(shard, head);
        Ok(())
    }

    /// Between batches: snapshots that are due, and memory back within its bound.
    fn tidy(&mut self) {
        let (every, bytes_max) = (self.settings.limits.snapshot_every, self.settings.cache_bytes_max);
        let snapshots = &self.snapshots;
        self.cache.snapshots_due(every, |snapshot| snapshots.offer(snapshot));
        self.cache.shrink(bytes_max, every, |snapshot| snapshots.offer(snapshot));
        self.meters.cache_bytes.set(count(self.cache.bytes()));
    }
}

enum Attempt {
    /// What could be answered has been.
    Progress,
    /// Somebody else was faster.
    Stale,
}

fn explain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// For gauges, which are floating-point; the numbers are small.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}
