//! The names of consumer groups: one for each read model, version, database and list of shards.
//!
//! A group gives each partition to one of its members, whether that one wants it or not. So all members have to want the
//! same: while a shard moves, processes with the old places and with the new ones each follow all of theirs, and two
//! databases with the same shards are both fed. Two names for one database (an address and a host name) are two groups,
//! which waste each other's time and nothing else, because a checkpoint moves only from where it was read.

use sha2::{Digest, Sha256};
use skyriff_follow::TableDatabase;

/// Bytes of the hash in a name: enough that no two places of one installation meet.
const HASH_BYTES: usize = 6;

/// The group that feeds a version of a read model in a database.
pub fn name(prefix: &str, model: &str, version: i32, tables: &TableDatabase) -> String {
    format!("{prefix}.{model}.v{version}.{}", place(tables))
}

/// Which database it is and which of its shards, whoever connects to it and in whichever order the shards are named.
fn place(tables: &TableDatabase) -> String {
    let options = &tables.options;
    let host = options.get_socket().map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
    let mut shards: Vec<_> = tables.shards.iter().map(|shard| shard.0).collect();
    shards.sort_unstable();
    shards.dedup();
    let mut hash = Sha256::new();
    // Neither has a zero byte in it, so no two places are the same text.
    hash.update(format!("{host}\0{}\0{}\0{shards:?}", options.get_port(), options.get_database().unwrap_or_default()));
    hash.finalize().iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use skyriff_domain::ShardId;

    use super::*;

    fn tables(url: &str, shards: &[u16]) -> TableDatabase {
        TableDatabase { options: url.parse().unwrap(), shards: shards.iter().copied().map(ShardId).collect() }
    }

    #[test]
    fn a_group_is_of_one_model_version_database_and_list_of_shards() {
        let name_of =
            |model, version, url, shards: &[u16]| name("skyriff.project", model, version, &tables(url, shards));
        let one = name_of("balances", 1, "postgres://db/reads", &[0, 1, 2, 3]);
        // For ever: a new name is a group that starts from the checkpoints, beside the one of before.
        assert_eq!(one, "skyriff.project.balances.v1.3fb98a816ff3");
        for (why, same) in [
            ("whoever connects", name_of("balances", 1, "postgres://somebody:secret@db/reads", &[0, 1, 2, 3])),
            ("the port that is meant anyway", name_of("balances", 1, "postgres://db:5432/reads", &[0, 1, 2, 3])),
            ("in whichever order", name_of("balances", 1, "postgres://db/reads", &[3, 1, 0, 2])),
        ] {
            assert_eq!(one, same, "{why}");
        }
        for (why, other) in [
            ("another model", name_of("likes", 1, "postgres://db/reads", &[0, 1, 2, 3])),
            ("another version", name_of("balances", 2, "postgres://db/reads", &[0, 1, 2, 3])),
            ("another host", name_of("balances", 1, "postgres://other/reads", &[0, 1, 2, 3])),
            ("another port", name_of("balances", 1, "postgres://db:5433/reads", &[0, 1, 2, 3])),
            ("another database", name_of("balances", 1, "postgres://db/others", &[0, 1, 2, 3])),
            ("a shard has moved away", name_of("balances", 1, "postgres://db/reads", &[0, 1, 2])),
            ("other shards", name_of("balances", 1, "postgres://db/reads", &[0, 12, 3])),
        ] {
            assert_ne!(one, other, "{why}");
        }
    }

    #[test]
    fn a_socket_is_told_from_another() {
        let on = |folder: &str| tables("postgres://db/reads", &[0]).options.socket(folder);
        let place_on = |folder| place(&TableDatabase { options: on(folder), shards: vec![ShardId(0)] });
        assert_ne!(place_on("/run/one"), place_on("/run/other"));
    }
}
