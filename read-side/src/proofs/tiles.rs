//! The tree of a shard as files, as C2SP tlog-tiles lays them out: for other people's tools. A ledger that is named
//! `HOST/v1/ledger/tlog` has each shard's files at the address that its checkpoints begin with.

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use skyriff_edge::{Caller, Kind, Path, Problem, Right};
use skyriff_proof::{Tile, tile};

use super::{Proofs, Refusals, Time, of_store};

/// The newest checkpoint of a shard as a file: the signed note itself.
///
/// Beside it are the tiles, at `tile/LEVEL/INDEX` and `tile/LEVEL/INDEX.p/WIDTH` (C2SP tlog-tiles). There are no entry
/// bundles: the events are `/v1/ledger/proofs/inclusion`'s.
#[utoipa::path(get, path = "/v1/ledger/tlog/{shard}/checkpoint", tag = "proofs",
    params(("shard" = u16, Path, maximum = 1023)),
    responses((status = 200, body = String, content_type = "text/plain"), Refusals))]
pub(super) async fn checkpoint(
    State(proofs): State<Proofs>,
    caller: Caller,
    Path(shard): Path<u16>,
) -> Result<Response, Problem> {
    caller.may_everywhere(Right::ReadProofs)?;
    let shard = proofs.shard(shard)?;
    let seal = proofs.seal(&Time { sealed: None }).await?;
    let note = seal.of_shard(shard).ok_or(Problem::new(&Kind::NOT_FOUND))?.to_string();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], note)
        .into_response())
}

/// A tile: hashes of 32 bytes, one after the other. One that is full never changes.
pub(super) async fn tile(
    State(proofs): State<Proofs>,
    caller: Caller,
    Path((shard, path)): Path<(u16, String)>,
) -> Result<Response, Problem> {
    caller.may_everywhere(Right::ReadProofs)?;
    let shard = proofs.shard(shard)?;
    let not_found = || Problem::new(&Kind::NOT_FOUND).detail("there is no such tile");
    let tile: Tile = format!("tile/{path}").parse().map_err(|_| not_found())?;
    // What no seal reaches was not promised to anybody.
    let size = proofs.seal(&Time { sealed: None }).await?.head(shard).map_or(0, |head| head.size);
    let is_sealed =
        Tile::of_tree(tile.level(), tile.index(), size).is_some_and(|sealed| tile.width() <= sealed.width());
    let hashes = if is_sealed { of_store(proofs.ledger().tile(shard, tile)).await? } else { None };
    let mut answer = tile::bytes(&hashes.ok_or_else(not_found)?).into_response();
    let mut set = |name, value| answer.headers_mut().insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, "application/octet-stream");
    set(header::CACHE_CONTROL, "private, max-age=31536000, immutable");
    Ok(answer)
}
