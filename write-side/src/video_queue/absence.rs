//! Databases in which jobs could not be claimed.
//!
//! A claim in one that is away waits for as long as a statement may take, and all workers of the node wait with it. So when
//! one has failed, the database is left out until a question of its own, asked beside the claims, has been answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet};

use super::{Place, within};

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Which databases are left out. Asks each at most once at a time; dropped, no more.
pub(super) struct Absent {
    places: Arc<[Place]>,
    absent: Arc<[AtomicBool]>,
    asking: JoinSet<()>,
    /// Told when one is back.
    ready: Arc<Notify>,
}

impl Absent {
    pub(super) fn new(places: Arc<[Place]>, ready: Arc<Notify>) -> Self {
        let absent = places.iter().map(|_| AtomicBool::new(false)).collect();
        Self { places, absent, asking: JoinSet::new(), ready }
    }

    pub(super) fn has(&self, place: usize) -> bool {
        self.absent.get(place).is_some_and(|absent| absent.load(Ordering::Acquire))
    }

    /// Leave a database out until it answers.
    pub(super) fn leave_out(&mut self, place: usize) {
        while self.asking.try_join_next().is_some() {}
        let (absent, ready) = (Arc::clone(&self.absent), Arc::clone(&self.ready));
        let Some(pool) = self.places.get(place).map(|place| place.pool.clone()) else { return };
        let was_absent = absent.get(place).is_none_or(|absent| absent.swap(true, Ordering::AcqRel));
        if was_absent {
            return;
        }
        self.asking.spawn(async move {
            loop {
                tokio::time::sleep(ASK_EVERY).await;
                if within(sqlx::query("SELECT 1").execute(&pool)).await.is_ok() {
                    break;
                }
            }
            if let Some(absent) = absent.get(place) {
                absent.store(false, Ordering::Release);
            }
            ready.notify_one();
        });
    }
}
