//! Lets a provider that is down rest, and us with it.
//!
//! ```text
//! closed ──failures in a row──▶ open ──cool-down──▶ half open ──success──▶ closed
//!                                ▲                      └──failure──▶ open, for twice as long
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::{Gauge, gauge};
use tokio::time::Instant;

use super::BREAKER;

/// So many failures in a row open it.
const FAILURES_MAX: u32 = 5;
/// For how long, at first; twice as long after each trial that fails.
const COOL_DOWN: Duration = Duration::from_secs(1);
/// The longest, also when the provider asks for more.
const COOL_DOWN_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(super) struct Breaker(Arc<Mutex<State>>);

struct State {
    failures: u32,
    cool_down: Duration,
    /// Open until then, and half open after that; closed when there is none.
    open_until: Option<Instant>,
    /// Half open, and somebody is trying.
    trying: bool,
    gauge: Gauge,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("failures", &self.failures).field("open_until", &self.open_until).finish()
    }
}

/// Leave for one request. Dropped without a verdict, it changes nothing.
#[derive(Debug)]
pub(super) struct Permit {
    breaker: Breaker,
    /// Whether it is the one that is let through to try.
    trial: bool,
}

impl Breaker {
    pub(super) fn new(provider: &str) -> Self {
        let gauge = gauge!(BREAKER, "provider" => provider.to_owned());
        gauge.set(0.0);
        let state = State { failures: 0, cool_down: COOL_DOWN, open_until: None, trying: false, gauge };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Whether a request may go; if not, how long to wait.
    pub(super) fn admit(&self, now: Instant) -> Result<Permit, Duration> {
        let mut state = self.state();
        let trial = match state.open_until {
            None => false,
            Some(until) => {
                let left = until.saturating_duration_since(now);
                if !left.is_zero() {
                    return Err(left);
                }
                if state.trying {
                    return Err(COOL_DOWN);
                }
                state.trying = true;
                state.gauge.set(1.0);
                true
            }
        };
        Ok(Permit { breaker: self.clone(), trial })
    }

    /// Every change of it is whole, so a panic elsewhere leaves nothing half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The provider answered.
    pub(super) fn answered(self) {
        let mut state = self.breaker.state();
        // What was sent before it opened says nothing of now.
        if self.trial || state.open_until.is_none() {
            state.failures = 0;
            state.cool_down = COOL_DOWN;
            state.open_until = None;
            state.gauge.set(0.0);
        }
    }

    /// The provider did not answer, or that it is broken.
    pub(super) fn failed(self, now: Instant) {
        let mut state = self.breaker.state();
        if state.open_until.is_some() && !self.trial {
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if self.trial || state.failures >= FAILURES_MAX {
            state.open_until = Some(now + state.cool_down);
            state.cool_down = (state.cool_down * 2).min(COOL_DOWN_MAX);
            state.gauge.set(2.0);
        }
    }

    /// The provider asked to be left alone for a while.
    pub(super) fn told_to_wait(self, wait: Duration, now: Instant) {
        let mut state = self.breaker.state();
        let until = now + wait.min(COOL_DOWN_MAX);
        state.open_until = Some(state.open_until.map_or(until, |open| open.max(until)));
        state.gauge.set(2.0);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.trial {
            self.breaker.state().trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_tries_one_at_a_time_and_closes() {
        let breaker = Breaker::new("test");
        let now = Instant::now();
        let before = breaker.admit(now).unwrap();
        for _ in 0..FAILURES_MAX {
            breaker.admit(now).unwrap().failed(now);
        }
        assert_eq!(breaker.admit(now).unwrap_err(), COOL_DOWN);
        before.answered();
        assert!(breaker.admit(now).is_err(), "what was sent before says nothing of now");

        let now = now + COOL_DOWN;
        let trial = breaker.admit(now).unwrap();
        assert!(breaker.admit(now).is_err(), "one at a time");
        trial.failed(now);
        assert_eq!(breaker.admit(now).unwrap_err(), COOL_DOWN * 2);

        let now = now + COOL_DOWN * 2;
        drop(breaker.admit(now).unwrap());
        breaker.admit(now).expect("one that was given up leaves room for another").answered();
        for _ in 0..FAILURES_MAX - 1 {
            breaker.admit(now).unwrap().failed(now);
        }
        breaker.admit(now).expect("closed, and from the start").answered();

        breaker.admit(now).unwrap().told_to_wait(Duration::from_secs(3_600), now);
        assert_eq!(breaker.admit(now).unwrap_err(), COOL_DOWN_MAX, "bounded, whatever it asks for");
    }
}
