//! What is to be ended at the provider when nobody waits for it any more: tasks that outlive their attempts.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};
use tokio_util::task::TaskTracker;

use super::Limits;

/// So many at once; whoever comes on top waits for its own.
const ENDINGS_MAX: usize = 256;

/// Endings that are under way. Each takes a bounded time, and how it went wrong is logged.
#[derive(Debug)]
pub(super) struct Endings {
    tasks: TaskTracker,
    room: Arc<Semaphore>,
    time_max: Duration,
}

impl Endings {
    pub(super) fn new(limits: &Limits) -> Self {
        // A create, two tries to cancel it, and a look.
        let time_max = limits.create_max + 3 * limits.request_max;
        Self { tasks: TaskTracker::new(), room: Arc::new(Semaphore::new(ENDINGS_MAX)), time_max }
    }

    /// It goes on by itself.
    pub(super) async fn see_to(&self, ending: impl Future<Output = ()> + Send + 'static) {
        if self.room.available_permits() == 0 {
            self.see_through(ending).await;
        } else {
            self.start(ending);
        }
    }

    /// Wait for what comes of it; it goes on also when nobody waits any more. Nothing when it came to no end.
    pub(super) async fn see_through<T: Send + 'static>(
        &self,
        ending: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.start(ending).await.ok()
    }

    fn start<T: Send + 'static>(
        &self,
        ending: impl Future<Output = T> + Send + 'static,
    ) -> tokio::sync::oneshot::Receiver<T> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let (room, time_max) = (Arc::clone(&self.room), self.time_max);
        self.tasks.spawn(async move {
            let Ok(_room) = room.acquire_owned().await else { return };
            match tokio::spawn(timeout(time_max, ending)).await {
                Ok(Ok(ended)) => drop(answer.send(ended)),
                Ok(Err(_)) => tracing::warn!("a prediction that nobody wants could not be ended in time"),
                Err(error) => tracing::error!(%error, "the ending of a prediction ended badly"),
            }
        });
        answered
    }

    /// Wait until there is none any more.
    pub(super) async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }
}
