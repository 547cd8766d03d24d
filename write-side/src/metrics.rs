//! The names of what the command side measures, in one place for dashboards.

/// Commands answered, by `outcome`: accepted, replayed, refused, key_reused, conflict, unavailable, unknown, fault.
pub const COMMANDS: &str = "skyriff_commands_total";
/// Commands turned away because a queue, or the share of it that bulk requests may have, was full.
pub const OVERLOADED: &str = "skyriff_commands_overloaded_total";
/// Commands waiting for an executor.
pub const QUEUE_DEPTH: &str = "skyriff_executor_queue_depth";
/// Commands that may wait for an executor.
pub const QUEUE_LIMIT: &str = "skyriff_executor_queue_limit";
/// Commands in one batch.
pub const BATCH_COMMANDS: &str = "skyriff_executor_batch_commands";
/// Seconds that a command waited for its batch.
pub const WAIT_SECONDS: &str = "skyriff_executor_wait_seconds";
/// Seconds to load the streams of a batch.
pub const LOAD_SECONDS: &str = "skyriff_executor_load_seconds";
/// Seconds to decide a batch.
pub const DECIDE_SECONDS: &str = "skyriff_executor_decide_seconds";
/// Seconds to append and commit a batch. One number, since both are one statement: the server commits before it answers,
/// and its clock, which it could send along from before the commit, is not ours to subtract from.
pub const APPEND_SECONDS: &str = "skyriff_executor_append_seconds";
/// Seconds of the commit alone, of batches that took their locks first: only they commit in a statement of its own.
pub const COMMIT_SECONDS: &str = "skyriff_executor_commit_seconds";
/// Batches decided again because a stream had moved on.
pub const CONFLICTS: &str = "skyriff_executor_conflicts_total";
/// Events of other nodes that were read to catch up.
pub const CAUGHT_UP: &str = "skyriff_executor_caught_up_events_total";
/// Streams found in memory.
pub const CACHE_HITS: &str = "skyriff_executor_cache_hits_total";
/// Streams read from the database.
pub const CACHE_MISSES: &str = "skyriff_executor_cache_misses_total";
/// Memory taken by streams.
pub const CACHE_BYTES: &str = "skyriff_executor_cache_bytes";
/// Connections lost to the event store.
pub const CONNECTIONS_LOST: &str = "skyriff_executor_connections_lost_total";
/// Snapshots written.
pub const SNAPSHOTS: &str = "skyriff_snapshots_written_total";
/// Snapshots that were not used: another version, another log, or damaged.
pub const SNAPSHOTS_REJECTED: &str = "skyriff_snapshots_rejected_total";
