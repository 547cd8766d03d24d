//! What every test here stands on: a folder that leaves no process behind, processes whose output is kept, HTTP, and
//! the trace with what must come of it.

mod api;
mod books;
mod description;
mod folder;
mod process;
pub mod schema;
mod topic;

use std::time::{Duration, Instant};

pub use self::{
    api::{Answer, Api},
    books::{Books, Move, TRACE},
    folder::{Dev, Folder},
    process::{Ended, Process, skyriff},
};

/// Longer than anything takes on a slow machine that does not hang.
pub const LIMIT: Duration = Duration::from_secs(120);

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What `look` finds, as soon as it finds something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
