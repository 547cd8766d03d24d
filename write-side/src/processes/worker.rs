//! Does the tasks of one process in one database, several at once.
//!
//! A task is claimed by moving the moment at which it is due: whoever dies with it leaves it to others after that. Two
//! that work on one task do no harm, since reactions are safe to repeat.

use std::{collections::HashMap, time::Duration};

use metrics::{counter, gauge};
use rand::Rng;
use skyriff_domain::{LogPosition, Position, RecordedEvent, ShardId};
use skyriff_follow::{LogError, log};
use sqlx::{
    ConnectOptions, PgConnection,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Limits, Process, Reaction, Services, follow::CHANNEL};

/// A notification may be lost with its connection; after this time the tasks are looked at anyway.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// A statement that takes longer is given up, with its connection.
const STATEMENT_MAX: Duration = Duration::from_secs(10);
/// How long a task is claimed for, in times of what a reaction may take.
const LEASE: f64 = 4.0 / 3.0;
/// The wait before a task is tried again, which doubles with each attempt.
const BACK_OFF: Duration = Duration::from_millis(100);
/// From so many attempts on a task counts as stuck: a person should look at its row.
const STUCK_FROM: i32 = 10;
/// The longest reason that is kept, in characters.
const REASON_MAX: usize = 500;
/// How the reason of a task begins that waits for a person.
const NEEDS_ATTENTION: &str = "needs attention: ";

/// Tasks that are not done, by `process` and `database`; so are the others that say how many, or how long.
const TASKS: &str = "skyriff_process_tasks";
/// Tasks among them that have been tried [`STUCK_FROM`] times or more: the alarm.
const STUCK: &str = "skyriff_process_stuck_tasks";
/// Tasks among them that wait for a person: the alarm. Of payouts, the withdrawals that need attention.
const ATTENTION: &str = "skyriff_process_needing_attention_tasks";
/// Seconds since the oldest task that is not done was added; 0 when there is none. Of payouts, the oldest that is not over.
const LAG_SECONDS: &str = "skyriff_process_lag_seconds";
/// Reactions, by `process` and `outcome`: done, later.
const REACTIONS: &str = "skyriff_process_reactions_total";

/// See the module.
pub(super) struct Worker {
    pub(super) process: Process,
    pub(super) options: PgConnectOptions,
    pub(super) services: Services,
    pub(super) limits: Limits,
}

/// A task in hand.
#[derive(Clone, Copy, Debug)]
struct Claimed {
    at: LogPosition,
    attempts: i32,
}

/// What became of it.
struct Finished {
    task: Claimed,
    reaction: Reaction,
}

impl Worker {
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut back_off = BACK_OFF;
        // Reactions go on while the connection that their tasks came over is lost.
        let mut running = JoinSet::new();
        while !stop.is_cancelled() {
            let started = Instant::now();
            if let Err(error) = self.work(&mut running, &stop).await {
                let reason = chain(&error);
                tracing::warn!(process = self.process.name(), error = reason, "a process waits for its database");
                if started.elapsed() > LOOK_AT_LEAST_EVERY {
                    back_off = BACK_OFF;
                }
                back_off = (back_off * 2).min(self.limits.back_off_max);
                tokio::select! { () = tokio::time::sleep(back_off) => {} () = stop.cancelled() => {} }
            }
        }
    }

    /// Work until told to stop, or until the database is lost. What was to be noted then is done again when its lease is
    /// over.
    async fn work(&self, running: &mut JoinSet<Finished>, stop: &CancellationToken) -> Result<(), LogError> {
        let mut connection = self.options.connect().await?;
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(self.options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        let mut reported = None::<Instant>;
        let mut again_at = Instant::now() + LOOK_AT_LEAST_EVERY;
        loop {
            let room = self.limits.reactions_max.saturating_sub(running.len());
            let claimed = if room > 0 { self.claim(&mut connection, room).await? } else { Vec::new() };
            for (task, event) in claimed {
                let (process, services, limit) = (self.process, self.services.clone(), self.limits.reaction_timeout);
                running.spawn(async move {
                    let reaction = timeout(limit, process.react(&event, &services)).await;
                    Finished { task, reaction: reaction.unwrap_or_else(|_| Reaction::later("it took too long")) }
                });
            }
            if reported.is_none_or(|at| at.elapsed() >= LOOK_AT_LEAST_EVERY) {
                reported = Some(Instant::now());
                self.report(&mut connection).await?;
            }
            let room = running.len() < self.limits.reactions_max;
            tokio::select! {
                Some(first) = running.join_next() => {
                    let mut finished = vec![first];
                    while let Some(next) = running.try_join_next() {
                        finished.push(next);
                    }
                    if let Some(wait) = self.note(&mut connection, finished).await? {
                        again_at = again_at.min(Instant::now() + wait);
                    }
                }
                () = stop.cancelled() => break,
                notified = listener.recv(), if room => {
                    notified?;
                    // One look is enough for all that have come meanwhile.
                    while listener.next_buffered().is_some() {}
                }
                () = tokio::time::sleep_until(again_at), if room => again_at = Instant::now() + LOOK_AT_LEAST_EVERY,
            }
        }
        while let Some(finished) = running.join_next().await {
            self.note(&mut connection, vec![finished]).await?;
        }
        Ok(())
    }

    /// Tasks that are due and that nobody works on, with their events.
    async fn claim(
        &self,
        connection: &mut PgConnection,
        room: usize,
    ) -> Result<Vec<(Claimed, RecordedEvent)>, LogError> {
        // Longer than a reaction may take, so that mostly the tasks of the dead are claimed again.
        let lease = self.limits.reaction_timeout.mul_f64(LEASE);
        let claim = sqlx::query_as(
            "UPDATE tasks t SET due_at = now() + make_interval(secs => $3), attempts = attempts + 1
             FROM (SELECT process, shard, position FROM tasks WHERE process = $1 AND due_at <= now()
                   ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED) d
             WHERE (t.process, t.shard, t.position) = (d.process, d.shard, d.position)
             RETURNING t.shard, t.position, t.attempts",
        )
        .bind(self.process.name())
        .bind(i64::try_from(room).unwrap_or(i64::MAX))
        .bind(lease.as_secs_f64())
        .fetch_all(&mut *connection);
        let rows: Vec<(i16, i64, i32)> = within(claim).await?;
        let claimed = |(shard, position, attempts): (i16, i64, i32)| {
            let shard = ShardId(u16::try_from(shard).unwrap_or_default());
            Claimed { at: LogPosition { shard, position: Position(position) }, attempts }
        };
        let tasks: HashMap<_, _> = rows.into_iter().map(claimed).map(|task| (task.at, task)).collect();
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let at: Vec<_> = tasks.keys().copied().collect();
        let events =
            timeout(STATEMENT_MAX, log::read_at(connection, &at)).await.unwrap_or_else(|_| Err(late().into()))?;
        Ok(events.into_iter().filter_map(|event| Some((*tasks.get(&event.at)?, event))).collect())
    }

    /// Keep what became of tasks; the shortest wait until one of them is due again, if one is.
    async fn note(
        &self,
        connection: &mut PgConnection,
        finished: Vec<Result<Finished, tokio::task::JoinError>>,
    ) -> Result<Option<Duration>, LogError> {
        let mut shortest = None::<Duration>;
        let mut done = (Vec::new(), Vec::new());
        let mut later = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for finished in finished {
            // One that panicked is claimed again when its lease is over.
            let Finished { task, reaction } = match finished {
                Ok(finished) => finished,
                Err(error) => {
                    tracing::error!(process = self.process.name(), %error, "a reaction ended badly");
                    continue;
                }
            };
            let shard = i16::try_from(task.at.shard.0).unwrap_or(i16::MAX);
            let (planned, reason) = match reaction {
                Reaction::Done => {
                    done.0.push(shard);
                    done.1.push(task.at.position.0);
                    continue;
                }
                Reaction::Later { after, reason } => (after, reason),
                Reaction::NeedsAttention { look_again, reason } => {
                    (Some(look_again), format!("{NEEDS_ATTENTION}{reason}"))
                }
            };
            if planned.is_none() && task.attempts == STUCK_FROM {
                tracing::error!(process = self.process.name(), event = %task.at, reason, "a task is stuck");
            }
            let wait = planned.unwrap_or_else(|| self.back_off(task.attempts));
            shortest = Some(shortest.map_or(wait, |shortest| shortest.min(wait)));
            later.0.push(shard);
            later.1.push(task.at.position.0);
            later.2.push(wait.as_secs_f64());
            later.3.push(reason.chars().take(REASON_MAX).collect::<String>());
            // A wait that was planned is no failed attempt: nothing is stuck, and back-off begins anew.
            later.4.push(if planned.is_some() { 0 } else { task.attempts });
        }
        let count = |done: &Vec<i16>| u64::try_from(done.len()).unwrap_or(u64::MAX);
        counter!(REACTIONS, "process" => self.process.name(), "outcome" => "done").increment(count(&done.0));
        counter!(REACTIONS, "process" => self.process.name(), "outcome" => "later").increment(count(&later.0));
        if !done.0.is_empty() {
            let delete = sqlx::query(
                "DELETE FROM tasks t USING unnest($2::smallint[], $3::bigint[]) AS d (shard, position)
                 WHERE t.process = $1 AND (t.shard, t.position) = (d.shard, d.position)",
            );
            let delete = delete.bind(self.process.name()).bind(done.0).bind(done.1);
            within(delete.execute(&mut *connection)).await?;
        }
        if !later.0.is_empty() {
            let update = sqlx::query(
                "UPDATE tasks t
                 SET due_at = now() + make_interval(secs => l.after), error = l.reason, attempts = l.attempts
                 FROM unnest($2::smallint[], $3::bigint[], $4::float8[], $5::text[], $6::integer[])
                   AS l (shard, position, after, reason, attempts)
                 WHERE t.process = $1 AND (t.shard, t.position) = (l.shard, l.position)",
            );
            let update =
                update.bind(self.process.name()).bind(later.0).bind(later.1).bind(later.2).bind(later.3).bind(later.4);
            within(update.execute(connection)).await?;
        }
        Ok(shortest)
    }

    /// Doubles with each attempt; up to a half less, so that what failed together does not come again together.
    fn back_off(&self, attempts: i32) -> Duration {
        let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(20);
        let wait = BACK_OFF.saturating_mul(2_u32.saturating_pow(doublings)).min(self.limits.back_off_max);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    async fn report(&self, connection: &mut PgConnection) -> Result<(), LogError> {
        let ask = sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE attempts >= $2), count(*) FILTER (WHERE starts_with(error, $3)),
                    coalesce(extract(epoch FROM now() - min(added_at)), 0)::float8
             FROM tasks WHERE process = $1",
        );
        let ask = ask.bind(self.process.name()).bind(STUCK_FROM).bind(NEEDS_ATTENTION).fetch_one(connection);
        let (tasks, stuck, attention, oldest_s): (i64, i64, i64, f64) = within(ask).await?;
        let number = |count: i64| i32::try_from(count).map_or(f64::from(i32::MAX), f64::from);
        // There is a worker for each database; one name for all would show whichever looked last.
        let database = self.options.get_database().unwrap_or("events").to_owned();
        for (name, value) in
            [(TASKS, number(tasks)), (STUCK, number(stuck)), (ATTENTION, number(attention)), (LAG_SECONDS, oldest_s)]
        {
            gauge!(name, "process" => self.process.name(), "database" => database.clone()).set(value);
        }
        Ok(())
    }
}

async fn within<T>(statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(STATEMENT_MAX, statement).await.unwrap_or_else(|_| Err(late()))
}

fn late() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
