//! The proof that what was sealed still is, and that everything after it was added.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use skyriff_domain::ShardId;
use skyriff_edge::{Caller, Kind, Problem, Query, Right};
use skyriff_seal::Seal;
use utoipa::{IntoParams, ToSchema};

use super::{Proofs, Refusals, Time, of_ledger};

/// Since when, and up to which checkpoint.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// The sizes in the checkpoint that was kept, in the order of its shards, with commas between them; or one size, with
    /// `shard`.
    #[param(example = "1042,0,17", max_length = 21504)]
    sizes: String,
    /// The shard whose own checkpoint was kept.
    #[param(minimum = 0, maximum = 1023)]
    #[serde(default)]
    shard: Option<u16>,
    /// Up to the checkpoint that was the newest at this time, as in `/v1/ledger/checkpoint`; up to the newest, unless given.
    #[param(minimum = 0)]
    #[serde(default)]
    sealed: Option<i64>,
}

/// The answer, as `skyriff_proof::answer::Consistency` has it.
#[derive(Serialize, ToSchema)]
#[schema(as = ConsistencyProof)]
pub(super) struct ConsistencyBody {
    /// The later top checkpoint: a signed note.
    checkpoint: String,
    /// For each shard of the one that was kept, hashes in standard base64.
    proofs: BTreeMap<String, Vec<String>>,
}

/// The proof that a checkpoint continues an earlier one, of which only the sizes are asked for.
///
/// Whoever kept the earlier one checks the proof with it. So it makes no difference whether that one is still kept here.
#[utoipa::path(get, path = "/v1/ledger/proofs/consistency", tag = "proofs", params(Asked),
    responses((status = 200, body = ConsistencyBody), Refusals))]
pub(super) async fn consistency(
    State(proofs): State<Proofs>,
    caller: Caller,
    Query(asked): Query<Asked>,
) -> Result<Json<ConsistencyBody>, Problem> {
    caller.may_everywhere(Right::ReadProofs)?;
    let old = sizes(&proofs, &asked)?;
    let mut seal = proofs.seal(&Time { sealed: asked.sealed }).await?;
    if asked.sealed.is_none() && beyond(&seal, &old).is_some() {
        seal = proofs.newest_now().await?;
    }
    if let Some(shard) = beyond(&seal, &old) {
        let detail = format!("the checkpoint seals less of shard {shard} than what was kept");
        return Err(Problem::new(&Kind::OUT_OF_RANGE).detail(detail));
    }
    let mut answer = ConsistencyBody { checkpoint: seal.note().to_string(), proofs: BTreeMap::new() };
    let all = async {
        for (shard, size) in old {
            let hashes = proofs.ledger().consistency(&seal, shard, size).await?;
            answer.proofs.insert(shard.to_string(), hashes.iter().map(ToString::to_string).collect());
        }
        Ok(())
    };
    of_ledger(all).await?;
    Ok(Json(answer))
}

fn sizes(proofs: &Proofs, asked: &Asked) -> Result<Vec<(ShardId, u64)>, Problem> {
    let malformed = |detail: String| Problem::new(&Kind::MALFORMED).detail(detail);
    let sizes = asked.sizes.split(',').map(|size| size.trim().parse::<u64>());
    let sizes = sizes.collect::<Result<Vec<_>, _>>();
    let sizes = sizes.map_err(|_| malformed("sizes are whole numbers with commas between them".to_owned()))?;
    let shards: Vec<_> = match asked.shard {
        Some(shard) => vec![proofs.shard(shard)?],
        None => proofs.0.shard_count.shards().collect(),
    };
    if sizes.len() == shards.len() {
        Ok(shards.into_iter().zip(sizes).collect())
    } else {
        Err(malformed(format!("sizes has {} sizes, and there are {} shards", sizes.len(), shards.len())))
    }
}

/// A shard of which this seals less than that.
fn beyond(seal: &Arc<Seal>, old: &[(ShardId, u64)]) -> Option<ShardId> {
    let (shard, _) = old.iter().find(|(shard, size)| seal.head(*shard).is_none_or(|head| head.size < *size))?;
    Some(*shard)
}
