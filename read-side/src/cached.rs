//! One value that is much work to make, kept for a while in this process.
//!
//! It is made anew when somebody asks for it and it is too old, by one at a time: whoever asks meanwhile gets the old
//! one. When that fails, the old one stays, and says how old it is; for a moment nobody tries again.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skyriff_edge::Problem;
use tokio::time::Instant;

/// After a failure, the old value is given for so long before it is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// See the module. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Cached<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    good_for: Duration,
    kept: Mutex<Kept<T>>,
    /// Whoever has it makes the value.
    making: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Kept<T> {
    value: Option<(Arc<T>, Instant)>,
    failed: Option<(Problem, Instant)>,
}

/// The value, and since when it is that.
#[derive(Debug)]
pub(crate) struct Aged<T> {
    pub(crate) value: Arc<T>,
    pub(crate) age: Duration,
    /// Older than it should be: it is being made anew, or that has failed.
    pub(crate) stale: bool,
}

impl<T> Clone for Cached<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Cached<T> {
    /// Nothing yet.
    pub(crate) fn new(good_for: Duration) -> Self {
        let kept = Mutex::new(Kept { value: None, failed: None });
        Self(Arc::new(Inner { good_for, kept, making: Arc::default() }))
    }

    /// The value; made by `make` if there is none, or if it is too old and nobody else is at it.
    ///
    /// # Errors
    /// What `make` says, while there is no value at all.
    pub(crate) async fn get<F>(&self, make: impl FnOnce() -> F + Send) -> Result<Aged<T>, Problem>
    where
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        if let Some(known) = self.0.known() {
            return known;
        }
        let turn = match (Arc::clone(&self.0.making).try_lock_owned(), self.0.aged()) {
            (Ok(turn), _) => turn,
            (Err(_), Some(old)) => return Ok(old),
            // The very first: there is nothing to give meanwhile.
            (Err(_), None) => Arc::clone(&self.0.making).lock_owned().await,
        };
        // Somebody else may have made it while this one waited for its turn.
        if let Some(known) = self.0.known() {
            return known;
        }
        let (inner, making) = (Arc::clone(&self.0), make());
        // In a task of its own, so that it is not lost when the client that happened to ask goes away.
        let made = tokio::spawn(async move {
            let made = making.await;
            let failed = made.as_ref().err().cloned();
            inner.keep(made);
            drop(turn);
            failed
        });
        let failed = made.await.map_err(|error| Problem::fault(&error))?;
        match (self.0.aged(), failed) {
            (Some(aged), _) => Ok(aged),
            (None, Some(problem)) => Err(problem),
            (None, None) => Err(Problem::new(&skyriff_edge::Kind::FAULT)),
        }
    }
}

impl<T> Inner<T> {
    fn kept(&self) -> MutexGuard<'_, Kept<T>> {
        // What is behind it is whole whenever the lock is let go.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, made: Result<T, Problem>) {
        let mut kept = self.kept();
        match made {
            Ok(value) => *kept = Kept { value: Some((Arc::new(value), Instant::now())), failed: None },
            Err(problem) => kept.failed = Some((problem, Instant::now())),
        }
    }

    fn aged(&self) -> Option<Aged<T>> {
        let kept = self.kept();
        let (value, made_at) = kept.value.as_ref()?;
        let age = made_at.elapsed();
        Some(Aged { value: Arc::clone(value), age, stale: age >= self.good_for })
    }

    /// What can be said without making anything.
    fn known(&self) -> Option<Result<Aged<T>, Problem>> {
        let aged = self.aged();
        let failed =
            self.kept().failed.as_ref().filter(|(_, at)| at.elapsed() < TRY_AGAIN_AFTER).map(|(why, _)| why.clone());
        match (aged, failed) {
            (Some(aged), _) if !aged.stale => Some(Ok(aged)),
            (Some(old), Some(_)) => Some(Ok(old)),
            (None, Some(problem)) => Some(Err(problem)),
            (Some(_) | None, None) => None,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::{join_all, poll_immediate};
    use skyriff_edge::Kind;
    use tokio::{sync::Notify, time::advance};

    use super::*;

    const GOOD_FOR: Duration = Duration::from_secs(300);

    /// Makes the numbers 1, 2, 3 …, each when it is let go.
    #[derive(Clone, Default)]
    struct Maker {
        made: Arc<AtomicU32>,
        go: Arc<Notify>,
    }

    impl Maker {
        async fn make(self) -> Result<u32, Problem> {
            let number = self.made.fetch_add(1, Ordering::SeqCst) + 1;
            self.go.notified().await;
            Ok(number)
        }

        fn started(&self) -> u32 {
            self.made.load(Ordering::SeqCst)
        }
    }

    async fn fails() -> Result<u32, Problem> {
        Err(Problem::new(&Kind::READS_UNAVAILABLE))
    }

    fn seen(got: Result<Aged<u32>, Problem>) -> (u32, u64, bool) {
        let aged = got.unwrap();
        (*aged.value, aged.age.as_secs(), aged.stale)
    }

    #[tokio::test(start_paused = true)]
    async fn one_makes_it_while_the_others_get_the_old_one() {
        let (cached, maker) = (Cached::new(GOOD_FOR), Maker::default());
        let get = || cached.get(|| maker.clone().make());
        // At first everybody waits for the one.
        let (all, ()) = tokio::join!(join_all((0..50).map(|_| get())), async { maker.go.notify_one() });
        assert!(all.into_iter().all(|got| seen(got) == (1, 0, false)));
        assert_eq!(maker.started(), 1);

        advance(GOOD_FOR - Duration::from_secs(1)).await;
        assert_eq!(seen(get().await), (1, 299, false));
        advance(Duration::from_secs(1)).await;
        let mut one = looked_at(get());
        assert!(one.is_waiting().await, "the first one after that makes it");
        for got in join_all((0..50).map(|_| get())).await {
            assert_eq!(seen(got), (1, 300, true));
        }
        assert_eq!(maker.started(), 2);
        maker.go.notify_one();
        assert_eq!(seen(one.end().await), (2, 0, false));
        assert_eq!((seen(get().await), maker.started()), ((2, 0, false), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_goes_away_does_not_take_the_value_along() {
        let (cached, maker) = (Cached::new(GOOD_FOR), Maker::default());
        let mut one = looked_at(cached.get(|| maker.clone().make()));
        assert!(one.is_waiting().await);
        drop(one);
        maker.go.notify_one();
        assert_eq!(seen(cached.get(|| maker.clone().make()).await), (1, 0, false));
        assert_eq!(maker.started(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_keeps_the_old_one_and_says_how_old_it_is() {
        let (cached, maker) = (Cached::new(GOOD_FOR), Maker::default());
        let problem = cached.get(fails).await.unwrap_err();
        assert_eq!(problem.kind, &Kind::READS_UNAVAILABLE);
        // Nobody tries again at once.
        assert_eq!(cached.get(|| maker.clone().make()).await.unwrap_err().kind, &Kind::READS_UNAVAILABLE);
        assert_eq!(maker.started(), 0);
        advance(TRY_AGAIN_AFTER).await;
        maker.go.notify_one();
        assert_eq!(seen(cached.get(|| maker.clone().make()).await), (1, 0, false));

        advance(GOOD_FOR * 2).await;
        assert_eq!(seen(cached.get(fails).await), (1, 600, true));
        assert_eq!(seen(cached.get(|| maker.clone().make()).await), (1, 600, true));
        assert_eq!(maker.started(), 1);
        advance(TRY_AGAIN_AFTER).await;
        maker.go.notify_one();
        assert_eq!(seen(cached.get(|| maker.clone().make()).await), (2, 0, false));
    }

    /// A future that is looked at while it waits.
    struct Looked<F: Future>(std::pin::Pin<Box<F>>);

    fn looked_at<F: Future>(future: F) -> Looked<F> {
        Looked(Box::pin(future))
    }

    impl<F: Future> Looked<F> {
        /// Let it get as far as it can.
        async fn is_waiting(&mut self) -> bool {
            for _ in 0..10 {
                if poll_immediate(&mut self.0).await.is_some() {
                    return false;
                }
                tokio::task::yield_now().await;
            }
            true
        }

        async fn end(self) -> F::Output {
            self.0.await
        }
    }
}
