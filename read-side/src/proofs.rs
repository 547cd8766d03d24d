//! That nobody edits the log: what is sealed of it, and proofs, for auditors.
//!
//! ```text
//! /v1/ledger/checkpoint                       of all shards            ┐ the newest, or that of a time
//! /v1/ledger/shards/{shard}/checkpoint        of one                   ┘
//! /v1/ledger/proofs/inclusion?event=3:42      an event is sealed       ┐ by whichever checkpoint
//! /v1/ledger/proofs/consistency?sizes=…       what was sealed still is ┘
//! /v1/ledger/keys                             who signs
//! /v1/ledger/tlog/{shard}/…                   the same as files, for tools that speak tlog-tiles (`tiles`)
//! ```
//!
//! Answers are those of `skyriff_proof::answer`; `verify.py`, beside that crate's sources, checks them. They are made of what
//! the sealer keeps in the object storage, and of rows as the event store has them: nothing here is trusted by whoever checks.

mod consistency;
mod inclusion;
mod tiles;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use skyriff_domain::{LogPosition, ShardCount, ShardId};
use skyriff_edge::{Caller, Kind, Path, Problem, Query, Right, problem::ProblemBody};
use skyriff_proof::{EventRow, answer::Sealed};
use skyriff_seal::{Ledger, LedgerError, LogPlace, Seal, StoreError, rows};
use tokio::time::timeout;
use utoipa::{IntoParams, IntoResponses, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// A database or the storage that does not answer within this time is passed over, or not waited for.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A storage that does not answer; the longest request takes a little more.
const STORAGE_MAX: Duration = Duration::from_secs(12);
/// When to ask again for what is not sealed yet, in seconds.
const SEALED_IN_S: u32 = 1;

/// What proofs are made of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Proofs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ledger: Ledger,
    shard_count: ShardCount,
    places: HashMap<ShardId, Arc<LogPlace>>,
}

impl Proofs {
    /// From what is sealed, and rows of these databases.
    pub fn new(ledger: Ledger, shard_count: ShardCount, databases: Vec<LogPlace>) -> Self {
        let mut places = HashMap::new();
        for database in databases.into_iter().map(Arc::new) {
            places.extend(database.shards.iter().map(|shard| (*shard, Arc::clone(&database))));
        }
        Self(Arc::new(Inner { ledger, shard_count, places }))
    }

    fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn shard(&self, number: u16) -> Result<ShardId, Problem> {
        let is_one = number < self.0.shard_count.get();
        is_one.then_some(ShardId(number)).ok_or_else(|| Problem::new(&Kind::NOT_FOUND).detail("there is no such shard"))
    }

    /// The seal of a time, or else the newest.
    async fn seal(&self, asked: &Time) -> Result<Arc<Seal>, Problem> {
        match asked.sealed {
            None => of_store(self.ledger().newest()).await?.ok_or_else(not_sealed),
            Some(time) => of_store(self.ledger().at(time)).await?.ok_or_else(|| {
                Problem::new(&Kind::NOT_FOUND).detail("nothing was sealed at that time, as far as checkpoints are kept")
            }),
        }
    }

    /// The newest seal that there is at this moment.
    async fn newest_now(&self) -> Result<Arc<Seal>, Problem> {
        of_store(self.ledger().newest_now()).await?.ok_or_else(not_sealed)
    }

    /// The row of an event, from a replica, or else from the primary, which knows whether there is one.
    async fn row(&self, at: LogPosition) -> Result<Option<EventRow<'static>>, Problem> {
        let unavailable = || Problem::new(&Kind::READS_UNAVAILABLE).retry_after_s(2);
        let place = self.0.places.get(&at.shard).ok_or_else(unavailable)?;
        for (pool, from) in place.replicas.iter().map(|pool| (pool, "replica")).chain([(&place.primary, "primary")]) {
            match timeout(ANSWER_MAX, rows::read_at(pool, at)).await {
                Ok(Ok(Some(row))) => return Ok(Some(row)),
                Ok(Ok(None)) if from == "primary" => return Ok(None),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(from, %error, "an event store's database does not answer; trying the next")
                }
                Err(_) => tracing::warn!(from, "an event store's database takes too long; trying the next"),
            }
        }
        Err(unavailable())
    }
}

/// The routes of proofs.
pub(crate) fn routes(proofs: Proofs) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(checkpoint))
        .routes(routes!(of_shard))
        .routes(routes!(keys))
        .routes(routes!(inclusion::inclusion))
        .routes(routes!(consistency::consistency))
        .routes(routes!(tiles::checkpoint))
        // A description has no word for a path of any length, so this one is not in it.
        .route("/v1/ledger/tlog/{shard}/tile/{*tile}", axum::routing::get(tiles::tile))
        .with_state(proofs)
}

/// Which checkpoint.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Time {
    /// The checkpoint that was the newest at this time, in microseconds since 1970-01-01T00:00:00Z, as `sealed` is in it; of
    /// times more than a day ago, the last one of an hour. The newest, unless given.
    #[param(minimum = 0, example = 1_763_754_000_000_000_i64)]
    #[serde(default)]
    sealed: Option<i64>,
}

/// What is sealed.
#[derive(Serialize, ToSchema)]
#[schema(as = Checkpoint)]
struct CheckpointBody {
    /// A signed note (C2SP signed-note): what is signed, an empty line, and a line for each signature.
    #[schema(
        example = "example.org/ledger\nshards 1\nsealed 1763754000000000\n0 0 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— example.org/ledger wYbi…\n"
    )]
    checkpoint: String,
}

impl From<Sealed> for CheckpointBody {
    fn from(Sealed { checkpoint }: Sealed) -> Self {
        Self { checkpoint: checkpoint.to_string() }
    }
}

/// What is sealed of all shards: the top checkpoint.
///
/// Keep it: with it nobody can edit what it seals without being found out, whoever has the keys.
#[utoipa::path(get, path = "/v1/ledger/checkpoint", tag = "proofs", params(Time),
    responses((status = 200, body = CheckpointBody), Refusals))]
async fn checkpoint(
    State(proofs): State<Proofs>,
    caller: Caller,
    Query(time): Query<Time>,
) -> Result<Json<CheckpointBody>, Problem> {
    caller.may_everywhere(Right::ReadProofs)?;
    let seal = proofs.seal(&time).await?;
    Ok(Json(Sealed { checkpoint: seal.note().clone() }.into()))
}

/// What is sealed of one shard (C2SP tlog-checkpoint).
#[utoipa::path(get, path = "/v1/ledger/shards/{shard}/checkpoint", tag = "proofs",
    params(("shard" = u16, Path, maximum = 1023), Time),
    responses((status = 200, body = CheckpointBody), Refusals))]
async fn of_shard(
    State(proofs): State<Proofs>,
    caller: Caller,
    Path(shard): Path<u16>,
    Query(time): Query<Time>,
) -> Result<Json<CheckpointBody>, Problem> {
    caller.may_everywhere(Right::ReadProofs)?;
    let shard = proofs.shard(shard)?;
    let seal = proofs.seal(&time).await?;
    let checkpoint = seal.of_shard(shard).ok_or(Problem::new(&Kind::NOT_FOUND))?.clone();
    Ok(Json(Sealed { checkpoint }.into()))
}

/// Who signs.
#[derive(Serialize, ToSchema)]
#[schema(as = LedgerKeys)]
struct KeysBody {
    /// Public keys, those of before among them: `NAME+ID+BASE64`, as C2SP signed-note has them.
    #[schema(example = json!(["example.org/ledger+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"]))]
    keys: Vec<String>,
}

/// The public keys of the ledger, those of before among them.
///
/// Take them from here once, and from somebody whom you trust at least once: who serves the proofs could serve other keys.
#[utoipa::path(get, path = "/v1/ledger/keys", tag = "proofs",
    responses((status = 200, body = KeysBody),
              (status = 401, body = ProblemBody, content_type = "application/problem+json"),
              (status = 403, body = ProblemBody, content_type = "application/problem+json")))]
async fn keys(State(proofs): State<Proofs>, caller: Caller) -> Result<Json<KeysBody>, Problem> {
    caller.may_everywhere(Right::ReadProofs)?;
    Ok(Json(KeysBody { keys: proofs.ledger().keys().lines() }))
}

/// What every route here may answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only the description of the API is made of it")]
enum Refusals {
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(#[to_schema] ProblemBody<'static>),
    #[response(status = 401, content_type = "application/problem+json")]
    NotLoggedIn(#[to_schema] ProblemBody<'static>),
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] ProblemBody<'static>),
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(#[to_schema] ProblemBody<'static>),
    #[response(status = 422, content_type = "application/problem+json")]
    OutOfRange(#[to_schema] ProblemBody<'static>),
    /// Not sealed yet, or nobody who could answer can be reached.
    #[response(status = 503, content_type = "application/problem+json", headers(("Retry-After" = u32)))]
    Unavailable(#[to_schema] ProblemBody<'static>),
}

fn not_sealed() -> Problem {
    Problem::new(&Kind::NOT_SEALED).retry_after_s(SEALED_IN_S)
}

/// What the storage has, if it answers in time.
async fn of_store<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, Problem> {
    match timeout(STORAGE_MAX, asked).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(of_store_error(&error)),
        Err(_) => Err(storage_is_away("it takes too long")),
    }
}

/// A proof, if the storage answers in time.
async fn of_ledger<T>(asked: impl Future<Output = Result<T, LedgerError>>) -> Result<T, Problem> {
    match timeout(STORAGE_MAX, asked).await {
        Ok(Ok(proof)) => Ok(proof),
        Ok(Err(LedgerError::Store(error))) => Err(of_store_error(&error)),
        Ok(Err(error @ LedgerError::OutOfTree(_))) => Err(Problem::new(&Kind::OUT_OF_RANGE).detail(error.to_string())),
        Ok(Err(error @ LedgerError::Missing { .. })) => Err(Problem::fault(&error)),
        Err(_) => Err(storage_is_away("it takes too long")),
    }
}

fn of_store_error(error: &StoreError) -> Problem {
    match error {
        StoreError::Storage(error) => storage_is_away(&error.to_string()),
        StoreError::Seal(_) | StoreError::Tile { .. } | StoreError::Overwrites => Problem::fault(error),
    }
}

fn storage_is_away(error: &str) -> Problem {
    tracing::warn!(error, "what is sealed cannot be read");
    Problem::new(&Kind::READS_UNAVAILABLE).retry_after_s(2)
}
