//! Beside the projections: whether the books sum to zero, without anybody asking.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use metrics::gauge;
use skyriff_follow::TableDatabase;
use skyriff_projections::ledger_check;
use sqlx::ConnectOptions;
use tokio::{task::JoinHandle, time};
use tokio_util::sync::CancellationToken;

/// By `shard`: what is wrong with its books. Anything but 0 is an alarm.
const WRONG: &str = "skyriff_ledger_wrong";
/// By `shard`: when they were looked at last, in seconds of Unix time. A look that fails leaves both as they are, so minutes ago
/// is an alarm as well; 0 is never.
const LOOKED_AT: &str = "skyriff_ledger_looked_at_seconds";
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A look that takes longer is given up.
const LOOK_MAX: Duration = Duration::from_secs(50);

/// The watch, running.
#[derive(Debug)]
pub struct LedgerWatch {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl LedgerWatch {
    /// Look at once, and then every minute. Several processes that do so do no harm.
    pub fn start(places: Vec<TableDatabase>) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut ticks = time::interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
            // A first look that fails must show, too.
            for shard in places.iter().flat_map(|place| &place.shards) {
                gauge!(LOOKED_AT, "shard" => shard.to_string()).set(0);
            }
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                for place in &places {
                    tokio::select! {
                        () = stopped.cancelled() => return,
                        () = look(place) => {}
                    }
                }
            }
        });
        Self { task, stop }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "watching the books ended badly");
        }
    }
}

/// A database that cannot be reached is the projections' own alarm.
async fn look(place: &TableDatabase) {
    let looked = time::timeout(LOOK_MAX, async {
        let mut connection = place.options.clone().application_name("skyriff ledger watch").connect().await?;
        ledger_check::quick(&mut connection, &place.shards).await
    });
    let wrong = match looked.await {
        Ok(Ok(wrong)) => wrong,
        Ok(Err(error)) => return tracing::warn!(%error, "the books cannot be looked at"),
        Err(_) => return tracing::warn!("the books cannot be looked at in {LOOK_MAX:?}"),
    };
    let mut counts: BTreeMap<_, u32> = place.shards.iter().map(|shard| (*shard, 0)).collect();
    for ledger_check::Wrong { shard, what } in wrong {
        tracing::error!(%shard, what, "the books are wrong");
        *counts.entry(shard).or_default() += 1;
    }
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    for (shard, count) in counts {
        gauge!(WRONG, "shard" => shard.to_string()).set(count);
        gauge!(LOOKED_AT, "shard" => shard.to_string()).set(now_s);
    }
}
