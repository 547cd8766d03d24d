//! Give a store a history, through the append function itself: so every index, every command id and every position is
//! as if it had happened.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use skyriff_domain::{Position, ShardCount, ShardId, StreamId, UserId, shard_of};
use skyriff_postgres::{Server, databases};
use skyriff_write_side::event_store::{self, Appended, Batch};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use crate::{append::Maker, store};

/// Events of each account.
const EVENTS_EACH: u64 = 50;
/// Accounts whose events lie between each other in the log, and events of one append.
const ACCOUNTS_AT_ONCE: usize = 1_000;
const FILLERS: u16 = 2;
const TELL_EVERY: Duration = Duration::from_secs(5);
/// As a command node has it.
const KEEP_COMMANDS: Duration = Duration::from_secs(72 * 3_600);

/// How far a store is filled: the accounts 1 to `accounts` have their history.
#[derive(Debug, Default)]
pub struct Filled {
    pub accounts: u64,
}

impl Filled {
    /// Add accounts until the store holds about `size` events.
    pub async fn fill(&mut self, server: &Server, database: &str, size: u64) -> Result<()> {
        let before = u64::try_from(store::events(server, database).await?)?;
        let accounts = size.saturating_sub(before) / EVENTS_EACH;
        let numbers = self.accounts + 1..=self.accounts + accounts;
        let mut users: HashMap<u16, Vec<UserId>> = HashMap::new();
        for number in numbers {
            let user = store::account(number)?;
            users.entry(shard_of(user, ShardCount::default()).0 % FILLERS).or_default().push(user);
        }
        let done = Arc::new(AtomicU64::new(0));
        let mut fillers = tokio::task::JoinSet::new();
        for (filler, users) in users {
            let mut connection = server.options(databases::COMMAND, database).connect().await?;
            event_store::prepare(&mut connection, Duration::from_secs(60)).await?;
            event_store::keep_commands(&mut connection, KEEP_COMMANDS).await?;
            // What is only there to be read need not be flushed one by one.
            connection.execute("SET synchronous_commit = off").await?;
            let shards = store::shards().into_iter().filter(|shard| shard.0 % FILLERS == filler).collect();
            fillers.spawn(append_all(connection, shards, users, done.clone()));
        }
        let total = accounts * EVENTS_EACH;
        let started = Instant::now();
        loop {
            let ended = tokio::time::timeout(TELL_EVERY, fillers.join_next()).await;
            let now = done.load(Ordering::Relaxed);
            eprintln!("· filling up to {size} events: {now} of {total}, {:.0?}", started.elapsed());
            match ended {
                Err(_) => {}
                Ok(Some(filler)) => filler??,
                Ok(None) => break,
            }
        }
        self.accounts += accounts;
        Ok(())
    }
}

/// One event of each account, then the next of each, as if all of them were active at the same time.
async fn append_all(
    mut connection: PgConnection,
    shards: Vec<ShardId>,
    users: Vec<UserId>,
    done: Arc<AtomicU64>,
) -> Result<()> {
    let heads = event_store::heads(&mut connection, &shards).await?;
    let mut heads: Vec<(ShardId, Position)> = shards.into_iter().zip(heads.into_iter().flatten()).collect();
    for users in users.chunks(ACCOUNTS_AT_ONCE) {
        for sequence in (1..).take(usize::try_from(EVENTS_EACH)?) {
            let mut maker = Maker::new(Batch { shards: heads.clone(), ..Batch::default() });
            for user in users {
                let stream = StreamId::PointsAccount(*user);
                maker.batch.streams.push((stream, sequence - 1));
                maker.earn(*user, sequence);
            }
            let batch = maker.batch;
            match event_store::append(&mut connection, &batch).await? {
                Appended::Done { .. } => {}
                other @ (Appended::Stale { .. } | Appended::Repeated { .. }) => bail!("{other:?}"),
            }
            for (place, (_, head)) in heads.iter_mut().enumerate() {
                head.0 += batch.last_offset(place);
            }
            done.fetch_add(u64::try_from(users.len())?, Ordering::Relaxed);
        }
    }
    Ok(connection.close().await?)
}
