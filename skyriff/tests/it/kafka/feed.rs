//! Events to send: points given to many users.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures::future::join_all;
use reqwest::StatusCode;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::{Api, Dev, Folder};

/// Requests at once.
const AT_ONCE: usize = 16;
/// Requests at once of a feed that does not end: enough to always have something on its way, and not so many that whatever
/// is tested beside it has a backlog of minutes.
const FEED_AT_ONCE: usize = 2;
/// Events of a feed between two looks at whether it should stop.
const ROUND: usize = 64;

/// Somebody who gives points.
pub(super) async fn service(folder: &Folder, dev: &Dev) -> Api {
    dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await)
}

/// Users of every shard, for all practical purposes.
fn user(number: usize) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &(number % 100).to_be_bytes())
}

/// Give points so many times.
pub(super) async fn give(api: &Api, what: &str, times: usize) {
    give_by(AT_ONCE, api, what, times).await;
}

async fn give_by(at_once: usize, api: &Api, what: &str, times: usize) {
    for first in (0..times).step_by(at_once) {
        let commands = (first..times.min(first + at_once)).map(async |number| {
            let answer = api.earn(user(number), &format!("{what} {number}"), 1).await.unwrap();
            answer.with(StatusCode::CREATED);
        });
        join_all(commands).await;
    }
}

/// Points given without an end, until stopped.
pub(super) struct Feed {
    stop: Arc<AtomicBool>,
    given: Arc<AtomicUsize>,
    giving: JoinHandle<()>,
}

impl Feed {
    pub(super) fn start(api: &Api) -> Self {
        let (stop, given) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let giving = tokio::spawn({
            let (api, stop, given) = (api.clone(), Arc::clone(&stop), Arc::clone(&given));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let round = given.load(Ordering::Relaxed);
                    give_by(FEED_AT_ONCE, &api, &format!("round {round}"), ROUND).await;
                    given.fetch_add(ROUND, Ordering::Relaxed);
                }
            }
        });
        Self { stop, given, giving }
    }

    /// Wait until so many more were given.
    pub(super) async fn more(&self, times: usize) {
        let enough = self.given.load(Ordering::Relaxed) + times;
        crate::support::eventually("more events", async || {
            (self.given.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }

    pub(super) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.giving.await.unwrap();
    }
}
