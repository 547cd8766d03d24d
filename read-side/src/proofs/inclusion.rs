//! An event, every column of its row, and the proof that it is sealed.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use skyriff_domain::LogPosition;
use skyriff_edge::{Caller, Kind, Problem, Query, Right};
use skyriff_proof::{EventRow, answer::Inclusion};
use utoipa::{IntoParams, ToSchema};

use super::{Proofs, Refusals, Time, not_sealed, of_ledger};

/// Which event, and by which checkpoint.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Where it is: `shard:position`, as `Skyriff-Position` says it.
    #[param(example = "3:42")]
    event: String,
    /// By the checkpoint that was the newest at this time, as in `/v1/ledger/checkpoint`; by the newest, unless given.
    #[param(minimum = 0)]
    #[serde(default)]
    sealed: Option<i64>,
}

/// The answer, as `skyriff_proof::answer::Inclusion` has it.
#[derive(Serialize, ToSchema)]
#[schema(as = InclusionProof)]
pub(super) struct InclusionBody {
    /// The top checkpoint: a signed note.
    checkpoint: String,
    /// The row.
    event: RowBody,
    /// Standard base64, from the leaf's sibling up to a child of the root.
    hashes: Vec<String>,
}

/// A row of the log as it is stored; what is hashed is the text of payload and metadata.
#[derive(Serialize, ToSchema)]
#[schema(as = SealedEvent)]
struct RowBody {
    shard: u16,
    position: i64,
    #[schema(example = "points_account")]
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    #[schema(example = "checked_in")]
    event_type: String,
    event_version: String,
    /// JSON, as text.
    payload: String,
    /// JSON, as text.
    metadata: String,
    /// Microseconds since 1970-01-01T00:00:00Z.
    occurred_at_us: i64,
    /// Microseconds since 1970-01-01T00:00:00Z.
    recorded_at_us: i64,
}

impl From<EventRow<'static>> for RowBody {
    fn from(row: EventRow<'static>) -> Self {
        Self {
            shard: row.shard.0,
            position: row.position.0,
            aggregate_type: row.aggregate_type.into_owned(),
            aggregate_id: row.aggregate_id.into_owned(),
            sequence: row.sequence,
            event_type: row.event_type.into_owned(),
            event_version: row.event_version.into_owned(),
            payload: row.payload.into_owned(),
            metadata: row.metadata.into_owned(),
            occurred_at_us: row.occurred_at_us,
            recorded_at_us: row.recorded_at_us,
        }
    }
}

/// An event as it is stored, and the proof that the checkpoint seals it.
///
/// An event that is not sealed yet is refused with 503: about a second later it is.
#[utoipa::path(get, path = "/v1/ledger/proofs/inclusion", tag = "proofs", params(Asked),
    responses((status = 200, body = InclusionBody), Refusals))]
pub(super) async fn inclusion(
    State(proofs): State<Proofs>,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Json<InclusionBody>, Problem> {
    caller.may_everywhere(Right::ReadProofs)?;
    let malformed = || Problem::new(&Kind::MALFORMED).detail("event is shard:position, as in 3:1042");
    let at: LogPosition = asked.event.parse().map_err(|_| malformed())?;
    proofs.shard(at.shard.0)?;
    let index = u64::try_from(at.position.0).ok().and_then(|position| position.checked_sub(1)).ok_or_else(malformed)?;
    let reaches = |seal: &skyriff_seal::Seal| seal.head(at.shard).is_some_and(|head| index < head.size);
    let mut seal = proofs.seal(&Time { sealed: asked.sealed }).await?;
    if asked.sealed.is_none() && !reaches(&seal) {
        seal = proofs.newest_now().await?;
    }
    let row = proofs.row(at).await?;
    if !reaches(&seal) {
        return Err(match (row, asked.sealed) {
            (None, _) => Problem::new(&Kind::NOT_FOUND).detail("there is no such event"),
            (Some(_), None) => not_sealed(),
            (Some(_), Some(_)) => Problem::new(&Kind::OUT_OF_RANGE).detail("that checkpoint does not reach the event"),
        });
    }
    let Some(event) = row else {
        // It cannot be answered, and whoever asks must not take it for an event that never was.
        tracing::error!(%at, "an event that is sealed is gone from the log");
        return Err(Problem::new(&Kind::FAULT).detail("this event is sealed, and the log does not have it any more"));
    };
    let hashes = of_ledger(proofs.ledger().inclusion(&seal, at.shard, index)).await?;
    let answer = Inclusion { checkpoint: seal.note().clone(), event, hashes };
    // It is answered all the same: that it does not hold is what the auditor has to see.
    if let Err(error) = answer.check(proofs.ledger().keys().known()) {
        tracing::error!(%at, %error, "an event is not what was sealed at its place");
    }
    Ok(Json(InclusionBody {
        checkpoint: answer.checkpoint.to_string(),
        event: answer.event.into(),
        hashes: answer.hashes.iter().map(ToString::to_string).collect(),
    }))
}
