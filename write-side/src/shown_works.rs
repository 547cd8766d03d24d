//! Whether a work that somebody likes is still shown.
//!
//! A like is decided in the shard of whoever likes; the work's own stream is in its maker's, which may be in another
//! database. So this is looked up before the decision, and is a little old when it decides: a like may still count for
//! [`KEPT`] after the work was taken back. A work that no database knows may be liked: it was made elsewhere, or its maker's
//! database does not answer now, and a like is not worth waiting for it.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use lru::LruCache;
use skyriff_domain::{Intent, WorkId, like};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::time::Instant;
use uuid::Uuid;

use crate::commands::{EventDatabase, Submission};

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(2);
/// How many answers are kept, in about a megabyte.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// How long a database may take to answer, waiting for a connection included.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// A database that has failed is not asked for so long.
const ABSENT: Duration = Duration::from_secs(5);
/// Connections to each database.
const CONNECTIONS_MAX: u32 = 2;

/// What is known of works, of every database.
#[derive(Debug)]
pub(crate) struct ShownWorks {
    databases: Vec<Database>,
    /// Whether a work was taken back, and when that was looked up.
    known: Mutex<LruCache<WorkId, (bool, Instant)>>,
}

#[derive(Debug)]
struct Database {
    pool: PgPool,
    /// When it is asked again.
    absent_until: Mutex<Option<Instant>>,
}

impl ShownWorks {
    /// Connects when it is asked.
    pub(crate) fn new(databases: &[EventDatabase]) -> Self {
        let database = |database: &EventDatabase| Database {
            pool: PgPoolOptions::new()
                .max_connections(CONNECTIONS_MAX)
                .acquire_timeout(LOOK_MAX)
                .idle_timeout(Duration::from_secs(60))
                .connect_lazy_with(database.options.clone()),
            absent_until: Mutex::default(),
        };
        Self { databases: databases.iter().map(database).collect(), known: Mutex::new(LruCache::new(KEPT_MAX)) }
    }

    /// Say of every like among them whether its work was taken back.
    pub(crate) async fn mark(&self, submissions: &mut [Submission]) {
        let liked = |submission: &Submission| {
            if let Intent::Like { work, command: like::Command::Like, .. } = submission.command.intent {
                Some(work)
            } else {
                None
            }
        };
        let asked: HashSet<_> = submissions.iter().filter_map(liked).collect();
        if asked.is_empty() {
            return;
        }
        let taken_back = self.taken_back(asked).await;
        for submission in submissions {
            if let Intent::Like { work, taken_back: of_it, .. } = &mut submission.command.intent {
                *of_it = taken_back.contains(work);
            }
        }
    }

    /// Those of the works that were shown once and no longer are.
    async fn taken_back(&self, asked: HashSet<WorkId>) -> HashSet<WorkId> {
        let now = Instant::now();
        let (mut taken_back, mut unknown) = (HashSet::new(), Vec::new());
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            for work in asked {
                match known.get(&work) {
                    Some((is, at)) if now.duration_since(*at) < KEPT => {
                        taken_back.extend(is.then_some(work));
                    }
                    Some(_) | None => unknown.push(work.0),
                }
            }
        }
        if unknown.is_empty() {
            return taken_back;
        }
        let answers = join_all(self.databases.iter().map(|database| database.last_events(&unknown, now))).await;
        let found: HashMap<_, _> = answers.into_iter().flatten().collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for work in unknown {
            let is = found.get(&work).is_some_and(|last| last == "unpublished");
            known.put(WorkId(work), (is, now));
            taken_back.extend(is.then_some(WorkId(work)));
        }
        taken_back
    }
}

impl Database {
    /// The type of each work's last event here.
    async fn last_events(&self, works: &[Uuid], now: Instant) -> Vec<(Uuid, String)> {
        if self.absent_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until) {
            return Vec::new();
        }
        let ask = sqlx::query_as(
            "SELECT w.id, last.event_type FROM unnest($1::uuid[]) AS w (id)
             CROSS JOIN LATERAL (
                 SELECT event_type FROM events
                 WHERE aggregate_type = 'work' AND aggregate_id = w.id::text ORDER BY sequence DESC LIMIT 1
             ) last",
        );
        let answer = tokio::time::timeout(LOOK_MAX, ask.bind(works).fetch_all(&self.pool)).await;
        let absent_until = match &answer {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a database is not asked about works for now; works there may be liked");
                Some(now + ABSENT)
            }
            Err(_) => {
                tracing::warn!("a database does not answer about works; works there may be liked for now");
                Some(now + ABSENT)
            }
        };
        *self.absent_until.lock().unwrap_or_else(PoisonError::into_inner) = absent_until;
        answer.ok().and_then(Result::ok).unwrap_or_default()
    }
}
