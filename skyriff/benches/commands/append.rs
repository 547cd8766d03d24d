//! The append function alone, with batches that are made before the clock starts: the limit that SQL sets.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use chrono::Utc;
use skyriff_domain::{CommandId, LikeId, Position, ShardCount, ShardId, StreamId, UserId, WorkId, shard_of};
use skyriff_postgres::{Server, databases};
use skyriff_write_side::{
    Fingerprint,
    event_store::{self, Appended, Batch, NewEvent, Outcome},
};
use sqlx::{ConnectOptions, PgConnection};
use uuid::Uuid;

use crate::{
    ACCOUNTS,
    report::{Figure, percentiles},
};

/// Enough to fill the time on any machine, without filling its memory.
const COMMANDS_MAX: usize = 400_000;

pub async fn run(
    server: &Server,
    database: &str,
    title: &str,
    executors: usize,
    batch: usize,
    time: Duration,
) -> Result<Figure> {
    let mut tasks = Vec::new();
    for index in 0..executors {
        let mut connection = server.options(databases::COMMAND, database).connect().await?;
        event_store::prepare(&mut connection, Duration::from_secs(30)).await?;
        let shards: Vec<_> =
            ShardCount::default().shards().filter(|shard| usize::from(shard.0) % executors == index).collect();
        // A lone command at a time does not need as many.
        let commands = if batch == 1 { COMMANDS_MAX / 20 } else { COMMANDS_MAX / executors };
        let batches = make(&mut connection, &shards, batch, commands).await?;
        tasks.push((connection, batches));
    }
    let started = Instant::now();
    let running: Vec<_> =
        tasks.into_iter().map(|(connection, batches)| tokio::spawn(append(connection, batches, time))).collect();
    let (mut commands, mut latencies) = (0, Vec::new());
    for task in running {
        let (done, took) = task.await??;
        commands += done;
        latencies.extend(took);
    }
    let seconds = started.elapsed().as_secs_f64();
    let (p50, p99) = percentiles(latencies);
    Ok(Figure {
        title: format!("{title}, {executors} × {batch}"),
        accounts: ACCOUNTS,
        connections: u32::try_from(executors)?,
        per_second: f64::from(u32::try_from(commands)?) / seconds,
        p50,
        p99,
        ..Figure::default()
    })
}

async fn append(mut connection: PgConnection, batches: Vec<Batch>, time: Duration) -> Result<(usize, Vec<Duration>)> {
    let end = Instant::now() + time;
    let (mut commands, mut latencies) = (0, Vec::new());
    for batch in batches {
        let started = Instant::now();
        if started > end {
            break;
        }
        match event_store::append(&mut connection, &batch).await? {
            Appended::Done { .. } => commands += batch.outcomes.len(),
            other @ (Appended::Stale { .. } | Appended::Repeated { .. }) => bail!("{other:?}"),
        }
        latencies.push(started.elapsed());
    }
    Ok((commands, latencies))
}

/// Batches of one-event commands that follow each other on accounts of these shards.
async fn make(connection: &mut PgConnection, shards: &[ShardId], size: usize, commands: usize) -> Result<Vec<Batch>> {
    let heads = event_store::heads(connection, shards).await?;
    let mut heads: HashMap<_, _> = shards.iter().copied().zip(heads.into_iter().flatten()).collect();
    // Accounts of this run only.
    let accounts = (0..u128::from(ACCOUNTS)).map(|_| UserId(Uuid::new_v4()));
    let accounts: Vec<_> =
        accounts.filter(|user| heads.contains_key(&shard_of(*user, ShardCount::default()))).collect();
    let mut sequences: HashMap<UserId, i64> = HashMap::new();
    let mut batches = Vec::new();
    let mut next = accounts.iter().cycle();
    for _ in 0..commands / size {
        let mut places: Vec<(ShardId, Position)> = heads.iter().map(|(shard, head)| (*shard, *head)).collect();
        places.sort_unstable();
        let mut maker = Maker::new(Batch { shards: places, ..Batch::default() });
        for user in next.by_ref().take(size) {
            let stream = StreamId::PointsAccount(*user);
            let sequence = sequences.entry(*user).or_default();
            if !maker.batch.streams.iter().any(|(read, _)| *read == stream) {
                maker.batch.streams.push((stream, *sequence));
            }
            *sequence += 1;
            maker.earn(*user, *sequence);
        }
        let Maker { batch, offsets } = maker;
        for ((shard, _), events) in batch.shards.iter().zip(offsets) {
            if let Some(head) = heads.get_mut(shard) {
                head.0 += events;
            }
        }
        batches.push(batch);
    }
    Ok(batches)
}

/// Puts commands of one event each into a batch.
pub struct Maker {
    pub batch: Batch,
    /// Of each of the batch's shards, how many events it has by now.
    offsets: Vec<i64>,
}

impl Maker {
    pub fn new(batch: Batch) -> Self {
        Self { offsets: vec![0; batch.shards.len()], batch }
    }

    pub fn earn(&mut self, user: UserId, sequence: i64) {
        let payload = r#"{"earned":{"credited":{"income":1},"reason":"bench"}}"#;
        self.record(user, StreamId::PointsAccount(user), sequence, "earned", payload);
    }

    /// By a user who has not liked the work before.
    pub fn like(&mut self, user: UserId, work: WorkId) {
        self.record(user, StreamId::Like(LikeId { user, work }), 1, "liked", r#"{"liked":{}}"#);
    }

    fn record(&mut self, user: UserId, stream: StreamId, sequence: i64, event_type: &'static str, payload: &str) {
        let of = shard_of(user, ShardCount::default());
        let shard = self.batch.shards.iter().position(|(shard, _)| *shard == of).unwrap_or_default();
        let Some(offset) = self.offsets.get_mut(shard) else { return };
        *offset += 1;
        let id = CommandId(Uuid::new_v4());
        let fingerprint = Fingerprint(Uuid::new_v4());
        self.batch.outcomes.push(Outcome { id, fingerprint, shard, last_offset: *offset, events: 1, refused: None });
        self.batch.events.push(NewEvent {
            shard,
            offset: *offset,
            stream,
            sequence,
            event_type,
            event_version: "1",
            payload: payload.to_owned(),
            metadata: format!(
                r#"{{"command_id":"{id}","actor":"service:{}","request_id":"{}"}}"#,
                Uuid::nil(),
                Uuid::now_v7()
            ),
            occurred_at: Utc::now(),
        });
    }
}
