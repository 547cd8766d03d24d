//! How far the topic is behind the log, for whoever looks at the metrics.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use metrics::gauge;
use skyriff_domain::{Position, ShardId};
use skyriff_follow::{Behind, LogDatabase, log};
use sqlx::ConnectOptions;

use super::{RelayError, shard_id};
use crate::settings::Settings;

/// Events that the log has and the topic has not, by `shard`; NaN while that is not known.
pub(super) const LAG_EVENTS: &str = "skyriff_relay_lag_events";
/// Seconds since the oldest event that is not in the topic yet was recorded; 0 when there is none, NaN while that is not known.
pub(super) const LAG_SECONDS: &str = "skyriff_relay_lag_seconds";

/// How far the topic is behind by what is written down, for shards that nobody works on.
pub(super) async fn report_idle(settings: &Settings, log: &LogDatabase) -> Result<(), RelayError> {
    let mut connection = log.options.connect().await?;
    let written: Vec<(i16, i64)> = sqlx::query_as("SELECT shard, position FROM relay_checkpoints WHERE topic = $1")
        .bind(&settings.topic)
        .fetch_all(&mut connection)
        .await?;
    let mut checkpoints: BTreeMap<_, _> = log.shards.iter().map(|shard| (*shard, Position::default())).collect();
    checkpoints.extend(written.into_iter().map(|(shard, position)| (shard_id(shard), Position(position))));
    show(&log::behind(&mut connection, &checkpoints).await?);
    Ok(())
}

pub(super) fn show(behind: &BTreeMap<ShardId, Behind>) {
    for (shard, behind) in behind {
        gauge!(LAG_EVENTS, "shard" => shard.to_string()).set(float(behind.events));
        gauge!(LAG_SECONDS, "shard" => shard.to_string()).set(float(age_s(behind)));
    }
}

/// For how long the oldest event has waited.
pub(super) fn age_s(behind: &Behind) -> i64 {
    let oldest: Option<DateTime<Utc>> = behind.oldest_recorded_at.filter(|_| behind.events > 0);
    oldest.map_or(0, |recorded_at| (Utc::now() - recorded_at).num_seconds())
}

fn float(number: i64) -> f64 {
    i32::try_from(number).map_or(f64::from(i32::MAX), f64::from)
}

/// Nobody could be asked: that is not the same as none.
pub(super) fn is_not_known(shards: &[ShardId]) {
    for shard in shards {
        for name in [LAG_EVENTS, LAG_SECONDS] {
            gauge!(name, "shard" => shard.to_string()).set(f64::NAN);
        }
    }
}
