//! A worker: leases as many jobs as it has places for, and sees each attempt through to its end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use skyriff_domain::video_job::{Cost, Kind, WorkerFault};
use skyriff_storage::{ObjectName, ObjectStorage, StorageError};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    WorkerApi,
    api::{ApiError, Lease, Told, jittered},
    check::{Unfit, check},
    provider::{Ended, Failure, Kept, Progress, TOO_LONG, VideoProvider, Workplace},
    scratch::Scratch,
    stop::{Stop, Stopper, Why},
};

/// How long a provider that was told to stop may take to do so.
const STOPPING_MAX: Duration = Duration::from_secs(10);
const BACK_OFF: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// How much a worker takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Attempts at the same time.
    pub concurrency: usize,
    /// How long one question for jobs waits for some.
    pub lease_wait: Duration,
    /// How long an attempt may take, whatever its provider says, and a second of its job on top.
    pub attempt_max: Duration,
    /// On top for each second that is to be made.
    pub attempt_per_second_max: Duration,
    /// How large an output may be.
    pub bytes_max: u64,
    /// How long attempts in hand may go on when the worker is to end; then they are given back.
    pub grace: Duration,
    /// How much the programs it runs stand back for others: 0 not at all, 19 as far as possible.
    pub niceness: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: 2,
            lease_wait: Duration::from_secs(5),
            attempt_max: Duration::from_secs(600),
            attempt_per_second_max: Duration::from_secs(30),
            bytes_max: 512 * 1_024 * 1_024,
            grace: Duration::from_secs(20),
            niceness: 10,
        }
    }
}

/// A worker.
pub struct Worker {
    api: WorkerApi,
    storage: ObjectStorage,
    scratch: Scratch,
    /// In the order in which it prefers them, each once.
    providers: Vec<Arc<dyn VideoProvider>>,
    limits: Limits,
}

impl Worker {
    /// A worker with these providers, the preferred ones first, making things in `scratch`.
    pub fn new(
        api: WorkerApi,
        storage: ObjectStorage,
        scratch: Scratch,
        mut providers: Vec<Arc<dyn VideoProvider>>,
        limits: Limits,
    ) -> Self {
        let mut names = BTreeSet::new();
        providers.retain(|provider| names.insert(provider.name()));
        Self { api, storage, scratch, providers, limits }
    }

    /// Work until told to end; then finish what is in hand, or give it back after the grace.
    pub async fn until(self, end: CancellationToken) {
        let worker = Arc::new(self);
        let (places, attempts) = (Arc::new(Semaphore::new(worker.limits.concurrency)), TaskTracker::new());
        let leave = CancellationToken::new();
        tokio::select! {
            () = worker.clone().take(&places, &attempts, &leave) => {}
            () = end.cancelled() => {}
        }
        attempts.close();
        if !attempts.is_empty() {
            tracing::info!(attempts = attempts.len(), "no more jobs are taken; finishing those in hand");
        }
        if timeout(worker.limits.grace, attempts.wait()).await.is_err() {
            tracing::info!(attempts = attempts.len(), "giving back what is not finished");
            leave.cancel();
            if timeout(STOPPING_MAX * 2, attempts.wait()).await.is_err() {
                tracing::warn!("attempts that do not stop are left to their leases");
            }
        }
        let settled = join_all(worker.providers.iter().map(|provider| provider.settled()));
        if timeout(STOPPING_MAX * 2, settled).await.is_err() {
            tracing::warn!("a provider may go on with what nobody wants any more");
        }
    }

    /// Lease and begin, as long as there are places. Does not end by itself.
    async fn take(self: Arc<Self>, places: &Arc<Semaphore>, attempts: &TaskTracker, leave: &CancellationToken) {
        let kinds: Vec<_> = Kind::ALL
            .into_iter()
            .filter(|kind| self.providers.iter().any(|provider| provider.kinds().contains(kind)))
            .collect();
        let providers: Vec<_> = self.providers.iter().map(|provider| provider.name()).collect();
        let mut back_off = BACK_OFF;
        let mut is_away = false;
        loop {
            let mut free: Vec<OwnedSemaphorePermit> = Vec::new();
            // At least one place, and whatever others are free at this moment.
            let Ok(first) = places.clone().acquire_owned().await else { return };
            free.push(first);
            while let Ok(another) = places.clone().try_acquire_owned() {
                free.push(another);
            }
            match self.api.lease(&kinds, &providers, free.len(), self.limits.lease_wait).await {
                Ok(leases) => {
                    if is_away {
                        tracing::info!("the API answers again");
                    }
                    (is_away, back_off) = (false, BACK_OFF);
                    for lease in leases {
                        let worker = self.clone();
                        let (place, leave) = (free.pop(), leave.clone());
                        attempts.spawn(async move {
                            worker.attempt(lease, &leave).await;
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    if !is_away {
                        tracing::warn!(error = %chain(&error), "cannot ask for jobs; trying again");
                    }
                    is_away = true;
                    drop(free);
                    sleep(jittered(back_off)).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }

    /// See one attempt through.
    async fn attempt(&self, lease: Lease, leave: &CancellationToken) {
        let job = &lease.job;
        let (name, attempt) = (job.job, job.attempt);
        let started = Instant::now();
        tracing::info!(job = %name, attempt, provider = lease.provider, kind = job.kind.as_str(), seconds = job.seconds, "making");
        let (stopper, progress) = (Stopper::new(), Progress::new());
        let stop = stopper.stop();
        let made = {
            let limit = self.limits.attempt_max + self.limits.attempt_per_second_max * job.seconds;
            let made = self.make(&lease, &progress, &stop);
            tokio::pin!(made);
            let watch = self.watch(&lease, &progress, &stopper, leave);
            tokio::pin!(watch);
            tokio::select! {
                made = &mut made => made,
                () = &mut watch => Err(Ended::Stopped(Why::Lost)),
                () = sleep(limit) => {
                    stopper.say(Why::TooLong);
                    let stopped = self.beside_heartbeats(&lease, &progress, timeout(STOPPING_MAX, &mut made)).await;
                    stopped.unwrap_or(Err(Ended::Stopped(Why::TooLong)))
                }
                why = stop.heard() => {
                    // It has heard that too, and may have something to end.
                    let stopped = self.beside_heartbeats(&lease, &progress, timeout(STOPPING_MAX, &mut made)).await;
                    stopped.unwrap_or(Err(Ended::Stopped(why)))
                }
            }
        };
        // It may take a while until it is heard, and until then the lease must not run out.
        let told = self.beside_heartbeats(&lease, &progress, self.tell(&lease, made, started)).await;
        match told {
            Ok(Told::Heard) => {}
            Ok(Told::Over(why)) => tracing::info!(job = %name, attempt, ?why, "the attempt is over"),
            // Its lease runs out, and the job is tried again.
            Err(error) => tracing::warn!(job = %name, attempt, error = %chain(&error), "cannot say what came of it"),
        }
    }

    /// Say what came of an attempt.
    async fn tell(&self, lease: &Lease, made: Result<Delivered, Ended>, started: Instant) -> Result<Told, ApiError> {
        let job = &lease.job;
        let (name, attempt) = (job.job, job.attempt);
        match made {
            Ok(delivered) => {
                let Delivered { object, stored, seconds, cost } = &delivered;
                let told = self.api.complete(job, object, stored, *seconds, cost).await;
                if let Ok(Told::Over(_)) = told {
                    // Nobody will ask for it; the sweep would find it, too.
                    self.storage.delete(object).await.ok();
                }
                if let Ok(Told::Heard) = told {
                    let took = started.elapsed();
                    tracing::info!(job = %name, attempt, object = %object, bytes = stored.bytes, seconds, ?took, "delivered");
                }
                told
            }
            Err(Ended::Failed(Failure { reason, class, retryable, cost })) => {
                tracing::warn!(job = %name, attempt, retryable, class, "failed");
                self.api.fail(job, &reason, retryable, &cost).await
            }
            Err(Ended::Stopped(Why::TooLong)) => {
                tracing::warn!(job = %name, attempt, "took too long");
                self.api.fail(job, TOO_LONG, true, &Cost::none()).await
            }
            Err(Ended::Stopped(Why::Leaving)) => {
                tracing::info!(job = %name, attempt, "given back");
                self.api.fail(job, WorkerFault::Stopped.as_str(), true, &Cost::none()).await
            }
            Err(Ended::Stopped(why @ (Why::Over | Why::Lost))) => Ok(Told::Over(why)),
        }
    }

    /// Make it, look at it, and put it where it is to be.
    async fn make(&self, lease: &Lease, progress: &Progress, stop: &Stop) -> Result<Delivered, Ended> {
        let job = &lease.job;
        let mut providers = self.providers.iter();
        let provider =
            providers.find(|provider| provider.name() == lease.provider && provider.kinds().contains(&job.kind));
        let provider = provider.ok_or_else(|| Failure::of_worker(WorkerFault::NoProvider))?;
        let folder = self.scratch.attempt().map_err(|error| {
            tracing::warn!(%error, "no folder for an attempt");
            Failure::of_worker(WorkerFault::NoScratch)
        })?;
        let Limits { bytes_max, niceness, .. } = self.limits;
        let at = Workplace { folder: folder.path(), progress, stop, bytes_max, anew: false };
        let mut made = provider.make(job, at).await?;
        let mut looked = check(job, &made, bytes_max, niceness, stop).await;
        if made.kept == Kept::SinceBefore && matches!(looked, Err(Unfit::Wrong(_))) {
            tracing::info!(job = %job.job, "what an earlier attempt has left is wrong; making another");
            made = provider.make(job, Workplace { anew: true, ..at }).await?;
            looked = check(job, &made, bytes_max, niceness, stop).await;
        }
        let seconds = looked.map_err(|unfit| match unfit {
            Unfit::Wrong(reason) => made.wrong(reason).into(),
            Unfit::Unseen(Ended::Failed(failure)) => made.undelivered(failure).into(),
            Unfit::Unseen(stopped @ Ended::Stopped(_)) => stopped,
        })?;
        if let Some(why) = stop.said() {
            return Err(Ended::Stopped(why));
        }
        let object = ObjectName { job: job.job, attempt: job.attempt, format: made.format };
        let stored = self.storage.put(&object, &made.file, bytes_max).await.map_err(|error| {
            tracing::warn!(job = %job.job, error = %chain(&error), "cannot store the output");
            match error {
                StorageError::TooLarge { bytes_max } => {
                    made.wrong(format!("the output is larger than {bytes_max} bytes"))
                }
                StorageError::Address(_) | StorageError::File { .. } | StorageError::Store(_) => {
                    made.undelivered(Failure::of_worker(WorkerFault::NotStored))
                }
            }
        })?;
        Ok(Delivered { object, stored, seconds, cost: made.cost })
    }

    /// Do what is not to be interrupted any more, and keep the lease meanwhile, whatever comes of that.
    async fn beside_heartbeats<T>(&self, lease: &Lease, progress: &Progress, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut beats = interval(lease.beat());
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One was sent a moment ago.
        beats.reset();
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beats.tick() => {}
            }
            tokio::select! {
                done = &mut work => return done,
                told = self.api.beat(&lease.job, progress.now()) => if let Err(error) = told {
                    tracing::debug!(job = %lease.job.job, error = %chain(&error), "a heartbeat was not heard");
                },
            }
        }
    }

    /// Keep the lease, tell the progress, and hear what there is to hear. Does not end by itself.
    async fn watch(&self, lease: &Lease, progress: &Progress, stopper: &Stopper, leave: &CancellationToken) {
        let job = &lease.job;
        let mut beats = interval(lease.beat());
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats.tick().await;
        let mut told_quarter = 0;
        loop {
            tokio::select! {
                _ = beats.tick() => {}
                () = leave.cancelled() => {
                    stopper.say(Why::Leaving);
                    return std::future::pending().await;
                }
            }
            let percent = progress.now();
            if percent / 25 > told_quarter {
                told_quarter = percent / 25;
                tracing::info!(job = %job.job, attempt = job.attempt, "{percent} %");
            }
            match self.api.heartbeat(job, percent).await {
                Ok(Told::Heard) => {}
                Ok(Told::Over(why)) => stopper.say(why),
                // The lease may run out; then the next one that is heard says so.
                Err(error) => tracing::debug!(job = %job.job, error = %chain(&error), "a heartbeat was not heard"),
            }
        }
    }
}

/// What an attempt comes to when all goes well.
struct Delivered {
    object: ObjectName,
    stored: skyriff_storage::Stored,
    seconds: u32,
    cost: Cost,
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("api", &self.api).field("storage", &self.storage).finish_non_exhaustive()
    }
}
