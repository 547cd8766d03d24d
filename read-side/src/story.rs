//! The full story of one entry of the books, for auditors: the event as it is stored, what it posted, who asked, what caused it,
//! what it caused, and who approved.
//!
//! ```text
//! position ─▶ the row ─▶ what it is about (a tip, a withdrawal, a job …) ─▶ the streams of that, in whatever shard
//!                                                                              └─▶ what the same commands recorded beside
//! ```
//!
//! Nothing is indexed for it: every step of something that takes several steps is recorded on a stream that is named after it,
//! and a command's events lie side by side. An index over causes would cost each append for what is asked now and then.
//!
//! Free words are masked and sealed texts are shown as sealed, whether or not the person's key is still there: see
//! [`skyriff_domain::personal`]. The row itself, for who may see all of it, is what an inclusion proof comes with.

mod about;
mod course;
mod shown;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Json, extract::State, response::IntoResponse};
use serde::Serialize;
use skyriff_domain::{LogPosition, Position, ShardId, UserId, ledger::postings};
use skyriff_edge::{Caller, Kind, Path, Problem, Right, problem::ProblemBody};
use sqlx::PgPool;
use tokio::time::timeout;
use utoipa::ToSchema;

use self::{
    course::{Course, Row, Step},
    shown::{Asker, StoredEvent},
};
use crate::{
    ledger,
    replicas::{AtLeast, ReadDatabase},
};

/// A database that does not answer within this time is passed over.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Where stories are read: the event store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stories(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    databases: Vec<ReadDatabase>,
    next: AtomicUsize,
}

/// A question to one database of the event store.
pub(crate) trait Question: Sync {
    /// What it answers.
    type Answer: Send;

    /// Nothing when it does not have it.
    fn run(&self, pool: &PgPool) -> impl Future<Output = sqlx::Result<Option<Self::Answer>>> + Send;
}

/// One line of the entry.
#[derive(Serialize, ToSchema)]
struct Posted {
    /// As in the chart of accounts.
    #[schema(example = "user:available:income")]
    account: String,
    /// Whose, unless it is the platform's.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    /// By how many points it changed.
    amount: i64,
}

/// Who agreed to something, or did not, or said by hand what came of it.
#[derive(Serialize, ToSchema)]
struct Approval {
    /// Where it is recorded.
    #[schema(example = "3:1042")]
    position: String,
    /// What was decided.
    #[schema(example = "withdrawal.approved")]
    decision: String,
    /// By whom.
    #[schema(example = "reviewer:00000000-0000-0000-0000-000000000002")]
    by: String,
    occurred_at: chrono::DateTime<chrono::Utc>,
}

/// The story of one event.
#[derive(Serialize, ToSchema)]
pub(crate) struct Story {
    event: StoredEvent,
    /// What it means in the books: sums to zero. Empty for events that move no points.
    postings: Vec<Posted>,
    asked_by: Asker,
    /// Who approved, in the order in which they did; not who made it.
    approvals: Vec<Approval>,
    /// Everything that is known to belong to it, this event included, as it was recorded.
    course: Vec<Step>,
    /// False when there may be steps that were not found: the answer includes the log up to `position`, and no steps after that;
    /// what an erasure or a reconciliation has led to is not looked for.
    course_is_whole: bool,
    /// The answer includes the log up to here.
    #[schema(example = "3:1042,4:17")]
    position: String,
}

impl Stories {
    /// Read from these databases of the event store.
    pub fn new(databases: Vec<ReadDatabase>) -> Self {
        Self(Arc::new(Inner { databases, next: AtomicUsize::new(0) }))
    }

    /// The first answer of a database's replicas, each in turn, or else of its primary. Nothing is an answer of the primary
    /// only: a replica may not have it yet.
    ///
    /// # Errors
    /// [`Kind::READS_UNAVAILABLE`] when none answers.
    pub(crate) async fn ask<Q: Question>(
        &self,
        database: &ReadDatabase,
        question: &Q,
    ) -> Result<Option<Q::Answer>, Problem> {
        let first = self.0.next.fetch_add(1, Ordering::Relaxed);
        let count = database.replicas.len();
        let turns = (0..count).filter_map(|turn| database.replicas.get((first + turn) % count));
        let mut answered = false;
        for pool in turns.chain([&database.primary]) {
            match timeout(ANSWER_MAX, question.run(pool)).await {
                Ok(Ok(Some(answer))) => return Ok(Some(answer)),
                Ok(Ok(None)) => answered = true,
                Ok(Err(error)) => tracing::warn!(%error, "an event store's database does not answer; trying the next"),
                Err(_) => tracing::warn!("an event store's database takes too long; trying the next"),
            }
        }
        if answered { Ok(None) } else { Err(Problem::new(&Kind::READS_UNAVAILABLE).retry_after_s(2)) }
    }

    /// All of them.
    pub(crate) fn databases(&self) -> &[ReadDatabase] {
        &self.0.databases
    }

    fn of_shard(&self, shard: ShardId) -> Option<&ReadDatabase> {
        self.0.databases.iter().find(|database| database.shards.contains(&shard))
    }

    async fn row(&self, at: LogPosition) -> Result<Option<Row>, Problem> {
        match self.of_shard(at.shard) {
            Some(database) => self.ask(database, &course::RowAt(at)).await,
            None => Ok(None),
        }
    }
}

/// The full story of one event: as it is stored, its postings, who asked, what caused it, what it caused, who approved.
///
/// Free words are left out and sealed texts shown as sealed. Ask with the shard and position of a ledger entry.
#[utoipa::path(get, path = "/v1/ledger/events/{position}/story", tag = "ledger",
    params(("position" = String, Path, pattern = "^[0-9]{1,4}:[0-9]{1,18}$", example = "3:1042", description = "shard and position of the event"),
           ("Skyriff-At-Least" = Option<String>, Header, pattern = "^[0-9]{1,4}:[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}){0,63}$", description = "answer no older than these positions")),
    responses((status = 200, body = Story, headers(("Skyriff-Position" = String))),
              (status = 400, body = ProblemBody, content_type = "application/problem+json"),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json"),
              (status = 404, description = "No such event", body = ProblemBody, content_type = "application/problem+json"),
              (status = 503, body = ProblemBody, content_type = "application/problem+json", headers(("Retry-After" = u32)))))]
pub(crate) async fn story(
    State(stories): State<Stories>,
    Path(position): Path<String>,
    caller: Caller,
    at_least: AtLeast,
) -> Result<impl IntoResponse, Problem> {
    caller.may_everywhere(Right::ReadLedger)?;
    let malformed = || Problem::new(&Kind::MALFORMED).detail("a position is shard:position, as in 3:1042");
    let at = place(&position).ok_or_else(malformed)?;
    let row = stories.row(at).await?.ok_or(Problem::new(&Kind::NOT_FOUND))?;
    let (stream, event) = row.decode().map_err(|error| Problem::fault(&error))?;
    let Course { steps, is_whole, heads } = course::of(&stories, &row, &stream, &event, &at_least).await?;
    let approvals = steps.iter().filter(|step| step.is_approval()).map(|step| Approval {
        position: step.position.clone(),
        decision: step.r#type.clone(),
        by: step.actor.clone(),
        occurred_at: step.occurred_at,
    });
    let posted = postings(&stream, &event).into_iter().map(|posting| Posted {
        account: posting.account.to_string(),
        user: posting.account.user(),
        amount: posting.amount,
    });
    let story = Story {
        event: StoredEvent::of(&row, &event).map_err(|error| Problem::fault(&error))?,
        postings: posted.collect(),
        asked_by: Asker::of(&row).map_err(|error| Problem::fault(&error))?,
        approvals: approvals.collect(),
        course: steps,
        course_is_whole: is_whole,
        position: ledger::told(&heads).join(","),
    };
    Ok((ledger::header(&heads), Json(story)))
}

/// Of a shard that may not be there: what is formed like a position and is none is not found.
fn place(text: &str) -> Option<LogPosition> {
    let (shard, position) = text.split_once(':')?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = is_number(shard) && is_number(position);
    numbers.then_some(LogPosition { shard: ShardId(shard.parse().ok()?), position: Position(position.parse().ok()?) })
}
