//! What an executor measures of itself.

use std::sync::Arc;

use ::metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::metrics;

/// Handles that are looked up once.
pub(super) struct Meters {
    pub(super) batch: Histogram,
    pub(super) wait: Histogram,
    pub(super) load: Histogram,
    pub(super) decide: Histogram,
    pub(super) append: Histogram,
    pub(super) commit: Histogram,
    pub(super) conflicts: Counter,
    pub(super) caught_up: Counter,
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) cache_bytes: Gauge,
    pub(super) connections_lost: Counter,
}

impl Meters {
    pub(super) fn new(name: &Arc<str>) -> Self {
        let label = || [("executor", name.to_string())];
        Self {
            batch: histogram!(metrics::BATCH_COMMANDS, &label()),
            wait: histogram!(metrics::WAIT_SECONDS, &label()),
            load: histogram!(metrics::LOAD_SECONDS, &label()),
            decide: histogram!(metrics::DECIDE_SECONDS, &label()),
            append: histogram!(metrics::APPEND_SECONDS, &label()),
            commit: histogram!(metrics::COMMIT_SECONDS, &label()),
            conflicts: counter!(metrics::CONFLICTS, &label()),
            caught_up: counter!(metrics::CAUGHT_UP, &label()),
            hits: counter!(metrics::CACHE_HITS, &label()),
            misses: counter!(metrics::CACHE_MISSES, &label()),
            cache_bytes: gauge!(metrics::CACHE_BYTES, &label()),
            connections_lost: counter!(metrics::CONNECTIONS_LOST, &label()),
        }
    }
}
