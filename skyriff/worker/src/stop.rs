//! Telling whoever works on an attempt that it should not, and why: what becomes of what it has begun depends on that.

use tokio::sync::watch;

/// Why an attempt is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody wants the job any more: what was begun elsewhere is to be ended there too.
    Over,
    /// Somebody else has the job, or will: what was begun elsewhere may be of use to them.
    Lost,
    /// The worker is to end, and the job goes back.
    Leaving,
    /// It takes longer than it may.
    TooLong,
}

/// Says stop.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Option<Why>>);

/// Hears it.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Option<Why>>);

impl Stopper {
    /// One for each attempt.
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// For those who are to hear it.
    pub fn stop(&self) -> Stop {
        Stop(self.0.subscribe())
    }

    /// Stop. What is said first counts.
    pub fn say(&self, why: Why) {
        self.0.send_if_modified(|said| {
            let first = said.is_none();
            said.get_or_insert(why);
            first
        });
    }
}

impl Default for Stopper {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// What was said, if anything was.
    pub fn said(&self) -> Option<Why> {
        *self.0.borrow()
    }

    /// Wait for it.
    pub async fn heard(&self) -> Why {
        let mut said = self.0.clone();
        let why = said.wait_for(Option::is_some).await.map(|why| *why);
        match why {
            Ok(Some(why)) => why,
            // Nobody can say it any more.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}
