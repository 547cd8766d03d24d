//! Gives jobs to the workers that wait at this node: one claim for all of them, one batch of Lease commands.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use metrics::{counter, gauge, histogram};
use skyriff_domain::{
    Command, CommandId, Event, Intent, JobId, Label, Metadata, Sealed, UserId,
    video_job::{self, Kind, Resolution, Step},
};
use skyriff_vault::{Error as VaultError, Vault};
use sqlx::{FromRow, PgPool, postgres::PgListener};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Busy, Limits, Place, VideoQueue, absence::Absent, keeper::CHANNEL, within};
use crate::{Commands, Failure, Fingerprint, Receipt, Submission};

/// A notification may be lost, and a job may be tried again from a certain time on: the queue is looked at anyway.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// Jobs that one claim takes.
const CLAIM_MAX: usize = 256;
/// Claims whose leases are being recorded while the next one is made.
const DELIVERIES_MAX: usize = 4;
/// For how long a claim keeps others away: longer than recording its lease may take.
const CLAIM: Duration = Duration::from_secs(30);
/// Nobody is told that there is nothing before the queue was looked at for it, however short the wait that it asked for; but
/// it is so after this.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// Kinds of workers (what they make and with what) that are looked for in one round; the others come next.
const GROUPS_MAX: usize = 32;

/// Workers that wait.
const WAITING: &str = "skyriff_video_workers_waiting";
/// Claims made, by `outcome`: empty, jobs, failed.
const CLAIMS: &str = "skyriff_video_claims_total";
/// Leases, by `outcome`: leased, refused, failed, or gone when nobody waited for the job any more.
const LEASES: &str = "skyriff_video_leases_total";
/// Seconds from a claim to its leases being recorded.
const DELIVERY_SECONDS: &str = "skyriff_video_delivery_seconds";

/// What a worker asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who, as in the log.
    pub worker: Label,
    /// What it can make.
    pub kinds: Vec<Kind>,
    /// With what, in the order in which it prefers them.
    pub providers: Vec<Label>,
    /// How many jobs, at most.
    pub max: usize,
    /// How long it waits when there is nothing. However short it is, the queue is looked at once.
    pub wait: Duration,
    /// Whose token it is, as in the metadata of events.
    pub actor: String,
    /// Of which request.
    pub request_id: String,
}

/// A job in the hands of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedJob {
    /// Which.
    pub job: JobId,
    /// Whose.
    pub user: UserId,
    /// The fencing token.
    pub attempt: u32,
    /// What is to be made.
    pub kind: Kind,
    /// How long it is to be, at most.
    pub seconds: u32,
    /// Of a video.
    pub resolution: Option<Resolution>,
    /// Of speech.
    pub voice: Option<Label>,
    /// What it is to be made with.
    pub provider: Label,
    /// What it is to show or say.
    pub prompt: String,
    /// Until then, unless it is heard of.
    pub lease_until: DateTime<Utc>,
}

#[derive(Clone, Debug)]
pub(super) struct Asks {
    sender: mpsc::UnboundedSender<Waiting>,
    /// Bounds what is in the channel and what the dispatcher has taken out of it.
    room: Arc<Semaphore>,
}

/// A worker that waits.
struct Waiting {
    ask: Ask,
    until: Instant,
    /// The queue has been looked at for it.
    looked: bool,
    /// Until when it waits for that.
    look_by: Instant,
    answer: oneshot::Sender<Vec<LeasedJob>>,
    _room: OwnedSemaphorePermit,
}

impl VideoQueue {
    /// Jobs for a worker: as soon as there are some, or none when it has waited for long enough.
    ///
    /// # Errors
    /// [`Busy`].
    pub async fn lease(&self, ask: Ask) -> Result<Vec<LeasedJob>, Busy> {
        let room = Arc::clone(&self.asks.room).try_acquire_owned().map_err(|_| Busy)?;
        let (answer, answered) = oneshot::channel();
        let now = Instant::now();
        let (until, look_by) = (now + ask.wait, now + ask.wait.max(LOOK_WITHIN));
        self.asks.sender.send(Waiting { ask, until, looked: false, look_by, answer, _room: room }).map_err(|_| Busy)?;
        tokio::select! {
            answer = answered => Ok(answer.unwrap_or_default()),
            () = self.close.cancelled() => Ok(Vec::new()),
        }
    }
}

impl Waiting {
    /// When it is to be answered, whatever there is.
    fn due(&self) -> Instant {
        if self.looked { self.until } else { self.look_by }
    }
}

pub(super) fn start(
    places: Arc<[Place]>,
    commands: Commands,
    vault: Vault,
    limits: Arc<Limits>,
    stop: CancellationToken,
) -> (Asks, Vec<JoinHandle<()>>) {
    let (sender, asks) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(limits.asks_max));
    let ready = Arc::new(Notify::new());
    let mut tasks: Vec<_> =
        places.iter().map(|place| tokio::spawn(listen(place.pool.clone(), Arc::clone(&ready), stop.clone()))).collect();
    let absent = Absent::new(Arc::clone(&places), Arc::clone(&ready));
    let lessor = Arc::new(Lessor { commands, vault, limits, places });
    let dispatcher = Dispatcher { lessor, asks, waiting: VecDeque::new(), ready, absent, turn: 0 };
    tasks.push(tokio::spawn(dispatcher.run(stop)));
    (Asks { sender, room }, tasks)
}

/// Wake the dispatcher whenever a job may be ready. Without it, it still looks once a second.
async fn listen(pool: PgPool, ready: Arc<Notify>, stop: CancellationToken) {
    let listening = async {
        loop {
            let listened: sqlx::Result<()> = async {
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen(CHANNEL).await?;
                loop {
                    listener.recv().await?;
                    ready.notify_one();
                }
            }
            .await;
            if let Err(error) = listened {
                tracing::debug!(%error, "not listening for video jobs; connecting again");
            }
            tokio::time::sleep(LOOK_AT_LEAST_EVERY).await;
        }
    };
    tokio::select! { () = listening => {} () = stop.cancelled() => {} }
}

struct Dispatcher {
    lessor: Arc<Lessor>,
    asks: mpsc::UnboundedReceiver<Waiting>,
    /// Who has waited for longest comes first.
    waiting: VecDeque<Waiting>,
    ready: Arc<Notify>,
    absent: Absent,
    /// Where the next round begins: groups and databases take turns.
    turn: usize,
}

/// What turns claims into leases.
struct Lessor {
    commands: Commands,
    vault: Vault,
    limits: Arc<Limits>,
    places: Arc<[Place]>,
}

/// A job that is claimed, as the queue has it.
#[derive(Clone, Debug, FromRow)]
struct Claimed {
    job: Uuid,
    user_id: Uuid,
    kind: String,
    seconds: i32,
    resolution: Option<String>,
    voice: Option<String>,
    prompt: String,
    turn_at: DateTime<Utc>,
    provider: String,
    #[sqlx(skip)]
    place: usize,
}

/// A worker, and the jobs that are claimed for it.
struct Delivery {
    waiting: Waiting,
    jobs: Vec<Claimed>,
}

/// What workers of one group can do.
type Group = (Vec<Kind>, Vec<Label>);

impl Dispatcher {
    async fn run(mut self, stop: CancellationToken) {
        let mut deliveries = JoinSet::new();
        let mut open = true;
        while !stop.is_cancelled() {
            while let Ok(waiting) = self.asks.try_recv() {
                self.waiting.push_back(waiting);
            }
            self.dismiss();
            gauge!(WAITING).set(u32::try_from(self.waiting.len()).unwrap_or(u32::MAX));
            let may_deliver = deliveries.len() < DELIVERIES_MAX;
            let mut more = false;
            if may_deliver && !self.waiting.is_empty() {
                let (claimed, full) = self.claim().await;
                more = full;
                if !claimed.is_empty() {
                    deliveries.spawn(Arc::clone(&self.lessor).deliver(claimed));
                }
            }
            if more && deliveries.len() < DELIVERIES_MAX {
                continue;
            }
            let look_at = Instant::now() + LOOK_AT_LEAST_EVERY;
            let look_at = self.waiting.iter().map(Waiting::due).min().map_or(look_at, |at| at.min(look_at));
            tokio::select! {
                asked = self.asks.recv(), if open => match asked {
                    Some(waiting) => self.waiting.push_back(waiting),
                    // The last handle is gone: only what is in hand is left.
                    None => open = false,
                },
                () = self.ready.notified() => {}
                Some(ended) = deliveries.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a delivery of video jobs ended badly");
                    }
                }
                () = tokio::time::sleep_until(look_at), if !self.waiting.is_empty() => {}
                () = stop.cancelled() => {}
            }
        }
        while deliveries.join_next().await.is_some() {}
    }

    /// Answer the ones that have waited for long enough, and forget the ones that have gone.
    fn dismiss(&mut self) {
        let now = Instant::now();
        let (stay, go): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(|waiting| waiting.due() > now && !waiting.answer.is_closed());
        self.waiting = stay;
        for waiting in go {
            waiting.answer.send(Vec::new()).ok();
        }
    }

    /// Claim jobs for the workers that wait, and whether there may be more of both.
    async fn claim(&mut self) -> (Vec<Delivery>, bool) {
        self.turn = self.turn.wrapping_add(1);
        let mut groups: Vec<(Group, Vec<Waiting>)> = Vec::new();
        let mut places = HashMap::<Group, usize>::new();
        for waiting in self.waiting.drain(..) {
            let mut kinds = waiting.ask.kinds.clone();
            kinds.sort_unstable();
            kinds.dedup();
            let group = (kinds, waiting.ask.providers.clone());
            let place = *places.entry(group.clone()).or_insert_with(|| {
                groups.push((group, Vec::new()));
                groups.len() - 1
            });
            if let Some((_, members)) = groups.get_mut(place) {
                members.push(waiting);
            }
        }
        let count = groups.len().max(1);
        groups.rotate_left(self.turn % count);
        let (mut deliveries, mut full) = (Vec::new(), groups.len() > GROUPS_MAX);
        for (index, (group, members)) in groups.into_iter().enumerate() {
            if index >= GROUPS_MAX {
                self.waiting.extend(members);
                continue;
            }
            let wanted: usize = members.iter().map(|member| member.ask.max).sum();
            let jobs = self.claim_for(&group, wanted.min(CLAIM_MAX)).await;
            full |= !jobs.is_empty() && jobs.len() == wanted.min(CLAIM_MAX) && jobs.len() < wanted;
            let (given, left) = share_out(members, jobs);
            deliveries.extend(given);
            self.waiting.extend(left.into_iter().map(|waiting| Waiting { looked: true, ..waiting }));
        }
        // The order of waiting is kept within a group; across groups nobody competes for the same claim.
        self.waiting.make_contiguous().sort_by_key(|waiting| waiting.until);
        (deliveries, full)
    }

    /// Jobs for workers that all can do the same, the oldest turns first.
    async fn claim_for(&mut self, (kinds, providers): &Group, wanted: usize) -> Vec<Claimed> {
        let count = self.lessor.places.len().max(1);
        let mut claimed = Vec::new();
        for offset in 0..self.lessor.places.len() {
            let index = (self.turn + offset) % count;
            if self.absent.has(index) {
                continue;
            }
            let wanted = wanted.saturating_sub(claimed.len());
            if wanted == 0 {
                break;
            }
            match self.lessor.claim_in(index, kinds, providers, wanted).await {
                Ok(jobs) => {
                    counter!(CLAIMS, "outcome" => if jobs.is_empty() { "empty" } else { "jobs" }).increment(1);
                    claimed.extend(jobs.into_iter().map(|job| Claimed { place: index, ..job }));
                }
                Err(error) => {
                    counter!(CLAIMS, "outcome" => "failed").increment(1);
                    tracing::warn!(%error, "video jobs cannot be claimed in a database for now");
                    self.absent.leave_out(index);
                }
            }
        }
        claimed.sort_by_key(|job| job.turn_at);
        claimed
    }
}

/// Each worker gets one before any gets a second.
fn share_out(members: Vec<Waiting>, jobs: Vec<Claimed>) -> (Vec<Delivery>, Vec<Waiting>) {
    let mut deliveries: Vec<_> = members.into_iter().map(|waiting| Delivery { waiting, jobs: Vec::new() }).collect();
    let mut jobs = jobs.into_iter();
    'all: for round in 0..CLAIM_MAX {
        for delivery in deliveries.iter_mut().filter(|delivery| delivery.waiting.ask.max > round) {
            let Some(job) = jobs.next() else { break 'all };
            delivery.jobs.push(job);
        }
    }
    let (given, left): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(|delivery| !delivery.jobs.is_empty());
    (given, left.into_iter().map(|delivery| delivery.waiting).collect())
}

impl Lessor {
    async fn claim_in(
        &self,
        index: usize,
        kinds: &[Kind],
        providers: &[Label],
        wanted: usize,
    ) -> sqlx::Result<Vec<Claimed>> {
        let Some(place) = self.places.get(index) else { return Ok(Vec::new()) };
        // Each database counts for itself, so each has its part.
        let databases = self.places.len();
        let cap = |provider: &Label| self.limits.provider_caps.get(provider).map(|cap| part(*cap, databases, index));
        let caps: Vec<_> =
            providers.iter().map(cap).map(|cap| cap.map(|cap| i32::try_from(cap).unwrap_or(i32::MAX))).collect();
        within(
            sqlx::query_as(
                "SELECT job, user_id, kind, seconds, resolution, voice, prompt, turn_at, provider
                 FROM claim_video_jobs($1, $2, $3, $4, $5, $6)",
            )
            .bind(kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>())
            .bind(providers.iter().map(Label::as_str).collect::<Vec<_>>())
            .bind(caps)
            .bind(i32::try_from(self.limits.breaker.trial_max).unwrap_or(i32::MAX))
            .bind(i32::try_from(wanted).unwrap_or(i32::MAX))
            .bind(CLAIM.as_secs_f64())
            .fetch_all(&place.pool),
        )
        .await
    }

    /// Record the leases and answer the workers.
    async fn deliver(self: Arc<Self>, deliveries: Vec<Delivery>) {
        let started = Instant::now();
        let (workers, jobs): (Vec<_>, Vec<_>) =
            deliveries.into_iter().map(|Delivery { waiting, jobs }| (waiting, jobs)).unzip();
        let mut ready = Vec::new();
        let mut given_back = Vec::new();
        let prompts = self.open(&jobs).await;
        let of_workers = jobs.into_iter().enumerate();
        let all = of_workers.flat_map(|(worker, jobs)| jobs.into_iter().map(move |job| (worker, job)));
        for ((worker, job), prompt) in all.zip(prompts) {
            // A lease that nobody hears of would hold the job up until it is over.
            if workers.get(worker).is_none_or(|waiting| waiting.answer.is_closed()) {
                counter!(LEASES, "outcome" => "gone").increment(1);
                given_back.push(job);
                continue;
            }
            match prompt {
                Ok(prompt) => ready.push((worker, job, prompt)),
                // Nobody can know any more what it is to be of.
                Err(VaultError::Erased) => self.cancel(&job).await,
                Err(error) => {
                    tracing::error!(job = %job.job, %error, "the prompt of a video job cannot be read for now");
                    // Its claim runs out by itself, so that it is not tried again at once.
                }
            }
        }
        self.give_back(std::mem::take(&mut given_back)).await;
        let asked = |worker: usize| workers.get(worker).map(|waiting: &Waiting| &waiting.ask);
        let submissions = ready.iter().filter_map(|(worker, job, _)| lease(asked(*worker)?, job).ok()).collect();
        let receipts = self.commands.execute_each(submissions).await;
        let lease_until = Utc::now() + self.limits.lease;
        let mut answers: Vec<Vec<LeasedJob>> = workers.iter().map(|_| Vec::new()).collect();
        for ((worker, job, prompt), receipt) in ready.into_iter().zip(receipts) {
            let outcome = match receipt {
                Ok(receipt) => {
                    let leased = leased_job(&job, prompt, &receipt, lease_until);
                    if let (Some(leased), Some(answer)) = (leased, answers.get_mut(worker)) {
                        answer.push(leased);
                    }
                    "leased"
                }
                // The queue was behind the log: it will learn what the job is.
                Err(Failure::Refused(_) | Failure::RefusedBefore(_)) => "refused",
                Err(failure) => {
                    tracing::warn!(job = %job.job, %failure, "a video job could not be leased");
                    given_back.push(job);
                    "failed"
                }
            };
            counter!(LEASES, "outcome" => outcome).increment(1);
        }
        for (waiting, answer) in workers.into_iter().zip(answers) {
            // Whoever has gone meanwhile loses its lease when that is over.
            waiting.answer.send(answer).ok();
        }
        histogram!(DELIVERY_SECONDS).record(started.elapsed());
        self.give_back(given_back).await;
    }

    async fn open(&self, jobs: &[Vec<Claimed>]) -> Vec<Result<String, VaultError>> {
        let sealed: Vec<_> = jobs.iter().flatten().map(|job| Sealed::try_from(job.prompt.clone())).collect();
        let both = || jobs.iter().flatten().zip(&sealed);
        let asked: Vec<_> = both()
            .filter_map(|(job, sealed)| Some((UserId(job.user_id), JobId(job.job), sealed.as_ref().ok()?)))
            .collect();
        let mut opened = self.vault.open_prompts(&asked).await.into_iter();
        let next = |sealed: &Result<Sealed, _>| match sealed {
            Ok(_) => opened.next().unwrap_or(Err(VaultError::NoKey)),
            Err(_) => Err(VaultError::Damaged),
        };
        sealed.iter().map(next).collect()
    }

    async fn cancel(&self, job: &Claimed) {
        let step = Step { job: JobId(job.job), what: video_job::steps::What::Cancel };
        let failure = match by_us(UserId(job.user_id), step, &format!("{} {} forgotten", job.user_id, job.job)) {
            Ok(submission) => self.commands.execute(submission).await.err().map(|failure| failure.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(failure) = failure {
            tracing::warn!(job = %job.job, failure, "a video job of a forgotten person could not be cancelled");
        }
    }

    /// Claims that came to nothing; without this they would run out by themselves.
    async fn give_back(&self, jobs: Vec<Claimed>) {
        let mut by_place = HashMap::<usize, Vec<Uuid>>::new();
        for job in jobs {
            by_place.entry(job.place).or_default().push(job.job);
        }
        for (place, jobs) in by_place {
            let Some(place) = self.places.get(place) else { continue };
            let give_back = sqlx::query(
                "UPDATE video_queue SET claimed_until = NULL, provider = NULL WHERE job = ANY ($1) AND status = 'queued'",
            );
            if let Err(error) = within(give_back.bind(jobs).execute(&place.pool)).await {
                tracing::debug!(%error, "claims run out by themselves");
            }
        }
    }
}

/// A database's part of a cap: together they are the cap, unless it is smaller than their number, since each has at least
/// one of a cap that is not zero.
fn part(cap: u32, databases: usize, index: usize) -> u32 {
    let (databases, index) =
        (u32::try_from(databases).unwrap_or(u32::MAX).max(1), u32::try_from(index).unwrap_or(u32::MAX));
    let part = cap / databases + u32::from(index < cap % databases);
    part.max(cap.min(1))
}

fn lease(ask: &Ask, job: &Claimed) -> Result<Submission, Failure> {
    let fault = |error: String| Failure::Fault(error.into());
    let provider = Label::try_from(job.provider.clone()).map_err(|error| fault(error.to_string()))?;
    let what = video_job::steps::What::Lease { worker: ask.worker.clone(), provider };
    let (user, step) = (UserId(job.user_id), Step { job: JobId(job.job), what });
    // Each claim asks anew: what an earlier one was refused says nothing about this one.
    let id = CommandId(Uuid::now_v7());
    submission(id, ask.actor.clone(), ask.request_id.clone(), user, step)
}

/// A command of the queue's own, the same however often it is sent.
pub(super) fn by_us(user: UserId, step: Step, name: &str) -> Result<Submission, Failure> {
    const ACTOR: &str = "process:video_queue";
    let id = CommandId::derive(ACTOR, name);
    submission(id, ACTOR.to_owned(), format!("video_queue-{}", Uuid::now_v7()), user, step)
}

fn submission(
    id: CommandId,
    actor: String,
    request_id: String,
    user: UserId,
    step: Step,
) -> Result<Submission, Failure> {
    let intent = Intent::VideoJob(step);
    let fingerprint = Fingerprint::of(user, None, &intent).map_err(|error| Failure::Fault(error.to_string().into()))?;
    let metadata = Metadata { command_id: id, actor, request_id, causation: None, traceparent: None, address: None };
    Ok(Submission { id, fingerprint, command: Command { user, at: Utc::now().trunc_subsecs(6), intent }, metadata })
}

fn leased_job(job: &Claimed, prompt: String, receipt: &Receipt, lease_until: DateTime<Utc>) -> Option<LeasedJob> {
    let recorded = receipt.recorded.first()?;
    let event = Event::decode(&recorded.stream, "leased", video_job::Event::VERSION, &recorded.payload).ok()?;
    let Event::VideoJob(video_job::Event::Leased { attempt, provider, worker: _ }) = event else { return None };
    Some(LeasedJob {
        job: JobId(job.job),
        user: UserId(job.user_id),
        attempt,
        kind: Kind::ALL.into_iter().find(|kind| kind.as_str() == job.kind)?,
        seconds: u32::try_from(job.seconds).ok()?,
        resolution: job
            .resolution
            .as_ref()
            .and_then(|name| Resolution::ALL.into_iter().find(|resolution| resolution.as_str() == name)),
        voice: job.voice.clone().and_then(|voice| voice.try_into().ok()),
        provider,
        prompt,
        lease_until,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_cap_are_the_cap_and_at_least_one_each() {
        for (cap, databases, expected) in [
            (5, 1, vec![5]),
            (8, 4, vec![2, 2, 2, 2]),
            (6, 4, vec![2, 2, 1, 1]),
            (4, 4, vec![1, 1, 1, 1]),
            (2, 4, vec![1, 1, 1, 1]),
            (0, 2, vec![0, 0]),
            (u32::MAX, 2, vec![2_147_483_648, 2_147_483_647]),
        ] {
            let parts: Vec<_> = (0..databases).map(|index| part(cap, databases, index)).collect();
            assert_eq!(parts, expected, "{cap} over {databases}");
        }
    }
}
