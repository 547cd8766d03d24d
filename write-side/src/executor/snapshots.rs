//! Writes snapshots in the background: what cannot be written now is not, since a snapshot only saves time.

use std::time::Duration;

use ::metrics::counter;
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use crate::{
    event_store::{Snapshot, save_snapshot},
    metrics,
};

/// Snapshots that may wait to be written.
const QUEUE_MAX: usize = 64;
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where executors leave snapshots. The writer ends when the last of these is gone.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotWriter(mpsc::Sender<Snapshot>);

impl SnapshotWriter {
    pub(crate) fn start(options: PgConnectOptions) -> (Self, JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        (Self(queue), tokio::spawn(write(options.application_name("skyriff snapshots"), waiting)))
    }

    /// Whether it will be written.
    pub(super) fn offer(&self, snapshot: Snapshot) -> bool {
        self.0.try_send(snapshot).is_ok()
    }
}

async fn write(options: PgConnectOptions, mut waiting: mpsc::Receiver<Snapshot>) {
    let mut connection: Option<PgConnection> = None;
    while let Some(snapshot) = waiting.recv().await {
        let write = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => options.connect().await?,
            };
            save_snapshot(&mut open, &snapshot).await.map_err(sqlx_of)?;
            Ok::<_, sqlx::Error>(open)
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(open)) => {
                connection = Some(open);
                counter!(metrics::SNAPSHOTS).increment(1);
            }
            Ok(Err(error)) => tracing::warn!(%error, stream = ?snapshot.stream, "a snapshot was not written"),
            Err(_) => tracing::warn!(stream = ?snapshot.stream, "a snapshot took too long and was given up"),
        }
    }
}

fn sqlx_of(error: crate::event_store::StoreError) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(error))
}
