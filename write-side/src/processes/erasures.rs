//! Takes down what belonged to a person who is forgotten and does not open with the key.
//!
//! | event | what is done |
//! |---|---|
//! | a person was erased | what they showed is shown no longer; what was made of their prompts is deleted; what was said of their payments before anybody knew whose they were is forgotten |
//!
//! An exception of a reconciliation that is about a payment of nobody has a key of its own, and its words may well be about
//! the person whose the payment turns out to be. It is erased as a person is, by an event of its own.
//!
//! The key is gone with the event (the database destroys it in the same transaction), so what is sealed needs nothing
//! here. All of it is safe to repeat: what is not shown is not taken down again, what is deleted is deleted.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use skyriff_domain::{Event, Intent, RecordedEvent, ShardId, StreamId, UserId, WorkId, erasure, work::Command};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use super::{Process, Reaction, Services};
use crate::outputs::Outputs;

/// Connections that one process opens to one database of the event store for this.
const CONNECTIONS_MAX: u32 = 2;
/// A look that takes longer is given up.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Works that are taken down, and objects that are deleted, at once.
const AT_ONCE: usize = 16;

/// What forgetting takes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Erasures {
    /// Where outputs are kept.
    pub outputs: Arc<dyn Outputs>,
    places: Arc<[(Vec<ShardId>, PgPool)]>,
}

/// What belongs to a person beside what is sealed.
#[derive(Debug, Default)]
struct Belongings {
    /// What they show now.
    shown: Vec<WorkId>,
    /// What was made of their prompts.
    objects: Vec<String>,
    /// What they were paid, and what they paid for.
    payments: Vec<String>,
}

impl Erasures {
    /// Where outputs are kept, and the databases of the event store, each with its shards, as a role that may read events.
    pub fn new(
        outputs: Arc<dyn Outputs>,
        databases: impl IntoIterator<Item = (PgConnectOptions, Vec<ShardId>)>,
    ) -> Self {
        let pool = |options: PgConnectOptions| {
            PgPoolOptions::new()
                .max_connections(CONNECTIONS_MAX)
                .acquire_timeout(LOOK_MAX)
                .connect_lazy_with(options.application_name("skyriff erasures"))
        };
        Self { outputs, places: databases.into_iter().map(|(options, shards)| (shards, pool(options))).collect() }
    }

    async fn belongings(&self, shard: ShardId, user: UserId) -> sqlx::Result<Belongings> {
        let Some((_, pool)) = self.places.iter().find(|(shards, _)| shards.contains(&shard)) else {
            return Err(sqlx::Error::Configuration(format!("shard {shard} has no place").into()));
        };
        let look = async {
            let shown: Vec<String> = sqlx::query_scalar(
                "SELECT w.aggregate_id FROM (
                     SELECT DISTINCT aggregate_id FROM events
                     WHERE aggregate_type = 'work' AND event_type = 'published' AND payload #>> '{published,creator}' = $1
                 ) w
                 CROSS JOIN LATERAL (
                     SELECT event_type FROM events e
                     WHERE e.aggregate_type = 'work' AND e.aggregate_id = w.aggregate_id ORDER BY sequence DESC LIMIT 1
                 ) last
                 WHERE last.event_type = 'published' ORDER BY 1",
            )
            .bind(user.to_string())
            .fetch_all(pool)
            .await?;
            // Every job takes a slot of its owner's.
            let objects: Vec<Option<String>> = sqlx::query_scalar(
                "SELECT made.payload #>> '{succeeded,output,object}' FROM events slot JOIN events made
                   ON made.aggregate_type = 'video_job' AND made.aggregate_id = slot.payload #>> '{taken,job}'
                 WHERE slot.aggregate_type = 'video_slots' AND slot.aggregate_id = $1 AND slot.event_type = 'taken'
                   AND made.event_type = 'succeeded' ORDER BY 1",
            )
            .bind(user.to_string())
            .fetch_all(pool)
            .await?;
            let payments = sqlx::query_scalar(
                "SELECT payload #>> '{used,withdrawal}' FROM events
                 WHERE aggregate_type = 'withdrawal_allowance' AND aggregate_id = $1 AND event_type = 'used'
                 UNION
                 SELECT payload #>> '{recharged,order}' FROM events
                 WHERE aggregate_type = 'points_account' AND aggregate_id = $1 AND event_type = 'recharged'",
            )
            .bind(user.to_string())
            .fetch_all(pool)
            .await?;
            let shown = shown.iter().filter_map(|work| work.parse().ok()).collect();
            Ok(Belongings { shown, objects: objects.into_iter().flatten().collect(), payments })
        };
        timeout(LOOK_MAX, look).await.unwrap_or_else(|_| Err(late()))
    }

    /// The exceptions about these payments that were found while nobody knew whose they are. They live by their own ids, in
    /// whatever shard.
    async fn of_nobody(&self, payments: &[String]) -> sqlx::Result<Vec<UserId>> {
        let mut found = Vec::new();
        for (_, pool) in self.places.iter().filter(|_| !payments.is_empty()) {
            let look = sqlx::query_scalar(
                "SELECT DISTINCT aggregate_id FROM events
                 WHERE aggregate_type = 'reconciliation_exception' AND event_type = 'found'
                   AND payload #>> '{found,user}' IS NULL AND payload #>> '{found,subject}' = ANY ($1)",
            );
            let look = look.bind(payments).fetch_all(pool);
            let of_place: Vec<String> = timeout(LOOK_MAX, look).await.unwrap_or_else(|_| Err(late()))?;
            found.extend(of_place.iter().filter_map(|exception| exception.parse().ok()).map(UserId));
        }
        Ok(found)
    }
}

fn late() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the log does not answer"))
}

pub(super) const fn concerns(event: &RecordedEvent) -> bool {
    matches!(event.event, Event::Erasure(erasure::Event::Erased { .. }))
}

/// What is to be done once a person is erased; done, it does nothing.
pub async fn react(event: &RecordedEvent, with: &Services) -> Reaction {
    let (StreamId::Erasure(user), true) = (event.stream, concerns(event)) else { return Reaction::Done };
    let Some(erasures) = &with.erasures else { return Reaction::later("this node has no object storage") };
    match take_down(event, user, with, erasures).await {
        Ok(()) => Reaction::Done,
        Err(reason) => Reaction::Later { after: None, reason },
    }
}

async fn take_down(event: &RecordedEvent, user: UserId, with: &Services, erasures: &Erasures) -> Result<(), String> {
    let found = erasures.belongings(event.at.shard, user).await.map_err(|error| error.to_string())?;
    let Belongings { shown, objects, payments } = found;
    let of_nobody = erasures.of_nobody(&payments).await.map_err(|error| error.to_string())?;
    let forget = |exception: UserId| async move {
        let Event::Erasure(erasure::Event::Erased { asked_by, reference }) = &event.event else { return Ok(()) };
        let intent = Intent::Erase(erasure::Command { asked_by: *asked_by, reference: reference.clone() });
        let forgotten =
            with.command_now(Process::Erasures, event, &format!("forget {exception}"), exception, intent).await;
        forgotten.map(drop).map_err(|failure| failure.to_string())
    };
    stream::iter(of_nobody).map(forget).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let hide = |work: WorkId| async move {
        let intent = Intent::Work { work, command: Command::Unpublish { creator: user } };
        // When it happens is now: a work may have been shown, by its own time, after the erasure's.
        let hidden = with.command_now(Process::Erasures, event, &format!("hide {work}"), user, intent).await;
        hidden.map(drop).map_err(|failure| failure.to_string())
    };
    stream::iter(shown).map(hide).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let delete = |object: String| async move {
        erasures.outputs.delete(&object).await.map_err(|error| format!("{object}: {error}"))
    };
    stream::iter(objects).map(delete).buffer_unordered(AT_ONCE).try_collect::<()>().await
}
