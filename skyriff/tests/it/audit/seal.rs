//! A sealer for tests. Leaves are made by Postgres itself, from the description of their bytes, so that they agree with the
//! binary's only when both are right.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use skyriff_domain::ShardId;
use skyriff_proof::{Frontier, Hash, SignedNote, SignerKey, TopCheckpoint, tile};
use sqlx::PgConnection;

const LEAVES: &str = "
    SELECT shard, sha256(
        '\\x0001'::bytea
        || int4send(2) || int2send(shard) || int4send(8) || int8send(position)
        || int4send(octet_length(aggregate_type)) || convert_to(aggregate_type, 'UTF8')
        || int4send(octet_length(aggregate_id)) || convert_to(aggregate_id, 'UTF8')
        || int4send(8) || int8send(sequence)
        || int4send(octet_length(event_type)) || convert_to(event_type, 'UTF8')
        || int4send(octet_length(event_version)) || convert_to(event_version, 'UTF8')
        || int4send(octet_length(payload::text)) || convert_to(payload::text, 'UTF8')
        || int4send(octet_length(metadata::text)) || convert_to(metadata::text, 'UTF8')
        || int4send(8) || int8send((extract(epoch FROM occurred_at) * 1000000)::bigint)
        || int4send(8) || int8send((extract(epoch FROM recorded_at) * 1000000)::bigint))
    FROM events ORDER BY shard, position";

/// Signs under one name, with one key.
pub struct Sealer {
    key: SignerKey,
    folder: PathBuf,
}

/// What was sealed: the file with the checkpoint, and the folder with the tiles.
pub struct Sealed {
    pub checkpoint: String,
    pub tiles: String,
    pub sizes: BTreeMap<u16, u64>,
}

impl Sealer {
    /// That writes into a folder, its public key first.
    pub fn new(folder: &Path, seed: u8) -> Self {
        let key = SignerKey::from_seed("example.org/ledger".parse().unwrap(), &[seed; 32]).unwrap();
        fs::write(folder.join(format!("keys-{seed}")), format!("# ours\n{}\n", key.verifier())).unwrap();
        Self { key, folder: folder.to_owned() }
    }

    pub fn keys(&self, seed: u8) -> String {
        self.folder.join(format!("keys-{seed}")).to_str().unwrap().to_owned()
    }

    /// Everything that the log has by now.
    pub async fn seal(&self, log: &mut PgConnection, name: &str) -> Sealed {
        let leaves: Vec<(i16, Vec<u8>)> = sqlx::query_as(LEAVES).fetch_all(log).await.unwrap();
        let mut trees: BTreeMap<u16, (Frontier, Vec<_>)> = (0..16).map(|shard| (shard, Default::default())).collect();
        for (shard, leaf) in leaves {
            let (tree, tiles) = trees.get_mut(&u16::try_from(shard).unwrap()).unwrap();
            tiles.extend(tree.append(Hash(leaf.try_into().unwrap())));
        }
        let heads = trees.values().map(|(tree, _)| tree.head()).collect();
        let top = TopCheckpoint::new(self.key.verifier().name().clone(), 0, heads).unwrap();
        let note = SignedNote::sign(top.to_string(), &[&self.key]).unwrap();
        let (checkpoint, folder) = (self.folder.join(format!("{name}.checkpoint")), self.folder.join(name));
        fs::write(&checkpoint, note.to_string()).unwrap();
        for (shard, (tree, full)) in &trees {
            let partial = tree.partial_tiles().map(|(tile, hashes)| (tile, hashes.to_vec()));
            for (tile, hashes) in full.iter().cloned().chain(partial) {
                let place = folder.join(ShardId(*shard).to_string()).join(tile.to_string());
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                fs::write(place, tile::bytes(&hashes)).unwrap();
            }
        }
        Sealed {
            checkpoint: checkpoint.to_str().unwrap().to_owned(),
            tiles: folder.to_str().unwrap().to_owned(),
            sizes: trees.iter().map(|(shard, (tree, _))| (*shard, tree.size())).collect(),
        }
    }
}
