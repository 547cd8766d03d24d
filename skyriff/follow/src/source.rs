//! Where the events that a runner applies come from.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use skyriff_domain::{Position, ShardId};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::sync::Notify;

use crate::log::{self, LogError, ShardEvents};

/// How far the tables are behind the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Events that the log has and the tables have not.
    pub events: i64,
    /// When the oldest of them was recorded; none when there is none.
    pub oldest_recorded_at: Option<DateTime<Utc>>,
}

/// A source of events, by shard and position. Whatever it is, the checkpoints beside the tables decide what comes next.
pub trait Source: Send + 'static {
    /// The events right after each shard's position, at most `limit` of each, without waiting for more to come.
    ///
    /// A shard about which nothing is known is left out.
    ///
    /// # Errors
    /// When nothing can be read at all; what is wrong with one shard's events is in its [`ShardEvents`].
    fn read_after(
        &mut self,
        after: &BTreeMap<ShardId, Position>,
        limit: u16,
    ) -> impl Future<Output = Result<BTreeMap<ShardId, ShardEvents>, LogError>> + Send;

    /// How far shards at these positions are behind the log; those of which that is not known are left out.
    ///
    /// # Errors
    /// As [`Source::read_after`].
    fn behind(
        &mut self,
        after: &BTreeMap<ShardId, Position>,
    ) -> impl Future<Output = Result<BTreeMap<ShardId, Behind>, LogError>> + Send;

    /// Ends when there may be more to read. The runner also looks by itself, now and then.
    fn more(&mut self) -> impl Future<Output = ()> + Send;

    /// Whether it is at this source to follow the shard at the moment. Some spread the shards over processes.
    fn has(&self, shard: ShardId) -> bool;

    /// Something went wrong or took too long: start the next read from scratch.
    fn reset(&mut self);

    /// Nothing will be read any more.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// The log itself.
#[derive(Debug)]
pub struct LogSource {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    appended: Arc<Notify>,
}

impl LogSource {
    /// The log of one database; `appended` is notified when there is more.
    pub fn new(options: PgConnectOptions, appended: Arc<Notify>) -> Self {
        Self { options, connection: None, appended }
    }

    async fn connection(&mut self) -> Result<&mut PgConnection, LogError> {
        Ok(match &mut self.connection {
            Some(open) => open,
            closed => closed.insert(self.options.connect().await?),
        })
    }
}

impl Source for LogSource {
    async fn read_after(
        &mut self,
        after: &BTreeMap<ShardId, Position>,
        limit: u16,
    ) -> Result<BTreeMap<ShardId, ShardEvents>, LogError> {
        log::read_after(self.connection().await?, after, i64::from(limit)).await
    }

    async fn behind(&mut self, after: &BTreeMap<ShardId, Position>) -> Result<BTreeMap<ShardId, Behind>, LogError> {
        log::behind(self.connection().await?, after).await
    }

    async fn more(&mut self) {
        self.appended.notified().await;
    }

    fn has(&self, _: ShardId) -> bool {
        true
    }

    fn reset(&mut self) {
        self.connection = None;
    }

    async fn close(self) {}
}
