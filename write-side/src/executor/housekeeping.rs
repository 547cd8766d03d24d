//! What a database of the event store needs done now and then.

use std::time::Duration;

use sqlx::{ConnectOptions, Connection, postgres::PgConnectOptions};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::event_store::{self, StoreError};

const EVERY: Duration = Duration::from_secs(600);
/// After a failure; there is always a partition for what has none.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Keep command ids for as long as they are promised, and no longer than twice that.
pub(crate) async fn keep_commands(options: PgConnectOptions, keep: Duration, stop: CancellationToken) {
    let options = options.application_name("skyriff housekeeping");
    loop {
        let kept = async {
            let mut connection = options.connect().await?;
            event_store::keep_commands(&mut connection, keep).await?;
            Ok::<_, StoreError>(connection.close().await?)
        };
        let wait = tokio::select! {
            kept = timeout(CALL_TIMEOUT, kept) => match kept {
                Ok(Ok(())) => EVERY,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "command ids were not tidied; trying again");
                    AGAIN_AFTER
                }
                Err(_) => AGAIN_AFTER,
            },
            () = stop.cancelled() => return,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}
