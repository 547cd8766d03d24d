//! An executor's one connection: made when it is needed, given up when it does not answer in time.

use std::time::Duration;

use sqlx::ConnectOptions;
use tokio::time::timeout;

use super::Executor;
use crate::event_store::{self, StoreError};

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl Executor {
    /// Connect if need be. Memory starts empty, with the heads as they are before anything is loaded.
    pub(super) async fn connect(&mut self) -> Result<(), StoreError> {
        if self.connection.is_some() {
            return Ok(());
        }
        let options = self.options.clone().application_name("skyriff command");
        let connect = async {
            let mut connection = options.connect().await?;
            event_store::prepare(&mut connection, self.settings.limits.append_timeout).await?;
            if let Some(given_up) = self.backend {
                event_store::end_backend(&mut connection, given_up).await?;
            }
            let backend = event_store::backend(&mut connection).await?;
            if self.settings.limits.require_standby && !event_store::commits_on_a_standby(&mut connection).await? {
                let reason =
                    "a standby is required, and the event store commits without one (synchronous_standby_names)";
                return Err(StoreError::Lost(sqlx::Error::Configuration(reason.into())));
            }
            let heads = event_store::heads(&mut connection, &self.settings.shards).await?;
            Ok::<_, StoreError>((connection, backend, heads))
        };
        // Whatever the reason, a store that one cannot work with is not there.
        let (connection, backend, heads) = match within(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected,
            Err(
                StoreError::Lost(error)
                | StoreError::TryAgain(error)
                | StoreError::Conflict(error)
                | StoreError::Rejected(error),
            ) => {
                tracing::warn!(executor = %self.settings.name, %error, "cannot connect to the event store");
                return Err(StoreError::Lost(error));
            }
            Err(error @ StoreError::Unreadable(_)) => return Err(error),
        };
        self.backend = Some(backend);
        self.cache.clear();
        self.known.clear();
        for (shard, head) in self.settings.shards.iter().zip(heads) {
            let missing = || format!("the event store database does not hold shard {shard}");
            let head = head.ok_or_else(|| StoreError::Lost(sqlx::Error::Configuration(missing().into())))?;
            self.known.insert(*shard, head);
        }
        self.connection = Some(connection);
        Ok(())
    }

    pub(super) fn disconnect(&mut self, error: &sqlx::Error) {
        if self.connection.take().is_some() {
            self.meters.connections_lost.increment(1);
            tracing::warn!(executor = %self.settings.name, %error, "lost the event store; connecting again");
        }
        self.locked = false;
        self.cache.clear();
    }
}

/// A store that does not answer in time is as good as gone: the connection is given up.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = |_| Err(StoreError::Lost(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
    timeout(limit, answer).await.unwrap_or_else(late)
}

pub(super) fn disconnected() -> StoreError {
    StoreError::Lost(sqlx::Error::Io(std::io::ErrorKind::NotConnected.into()))
}
