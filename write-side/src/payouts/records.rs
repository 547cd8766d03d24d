//! What is recorded of withdrawals, read from the log.

use std::{sync::Arc, time::Duration};

use skyriff_domain::{Event, ShardId, StreamId, WithdrawalId, withdrawal::Withdrawal};
use skyriff_follow::{LogError, log};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::time::timeout;

/// Connections that one process opens to one database of the event store for this.
const CONNECTIONS_MAX: u32 = 4;
/// A look that takes longer is given up.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Where withdrawals are looked up. Cheap to clone; connects when first used.
#[derive(Clone, Debug)]
pub struct WithdrawalRecords {
    places: Arc<[(Vec<ShardId>, PgPool)]>,
}

impl WithdrawalRecords {
    /// In these databases of the event store, each with its shards, as a role that may read events.
    pub fn new(databases: impl IntoIterator<Item = (PgConnectOptions, Vec<ShardId>)>) -> Self {
        let pool = |options: PgConnectOptions| {
            PgPoolOptions::new()
                .max_connections(CONNECTIONS_MAX)
                .acquire_timeout(LOOK_MAX)
                .connect_lazy_with(options.application_name("skyriff payouts"))
        };
        Self { places: databases.into_iter().map(|(options, shards)| (shards, pool(options))).collect() }
    }

    /// A withdrawal as it is now; one without a request when there is none in this shard.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) async fn find(&self, shard: ShardId, withdrawal: WithdrawalId) -> Result<Withdrawal, LogError> {
        let mut found = Withdrawal::default();
        let Some((_, pool)) = self.places.iter().find(|(shards, _)| shards.contains(&shard)) else {
            return Ok(found);
        };
        let look = async {
            let mut connection = pool.acquire().await?;
            log::read_stream(&mut connection, shard, &StreamId::Withdrawal(withdrawal)).await
        };
        let late = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the log does not answer"));
        for event in timeout(LOOK_MAX, look).await.unwrap_or_else(|_| Err(late().into()))? {
            if let Event::Withdrawal(event) = event.event {
                found.apply(&event);
            }
        }
        Ok(found)
    }
}
