//! What the ledger keeps is written once, whole, and nobody else touches it.

use std::{collections::HashSet, convert::Infallible, fs, future::ready};

use axum::body::Bytes;
use chrono::{TimeDelta, Utc};
use futures::future::join_all;
use skyriff_domain::ShardId;
use skyriff_storage::{
    LedgerFolder, LedgerName, ObjectStorage, StorageError,
    keep::Kept,
    sweep::{Limits, sweep},
};

use crate::{Folder, name, s3_server::S3Server};

const SEAL: LedgerName = LedgerName::Seal(1_234);

fn tile(path: &str) -> LedgerName {
    LedgerName::Tile(ShardId(3), path.parse().unwrap())
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn keeps_what_was_first(storage: &ObjectStorage) {
    assert_eq!(storage.kept(&SEAL, 100).await.unwrap(), None);
    assert_eq!(storage.entries(&LedgerFolder::Seals).await.unwrap(), Vec::<String>::new());
    for (text, kept) in [("one", Kept::Same), ("one", Kept::Same), ("other", Kept::Other), ("onf", Kept::Other)] {
        assert_eq!(storage.keep(&SEAL, bytes(text)).await.unwrap(), kept, "{text}");
        assert_eq!(storage.kept(&SEAL, 100).await.unwrap(), Some(bytes("one")));
    }
    assert!(matches!(storage.kept(&SEAL, 2).await, Err(StorageError::TooLarge { bytes_max: 2 })));
    // Of many at once one is first, and all say which.
    let racers = (0..20).map(|racer| storage.keep(&LedgerName::Seal(2_000), bytes(&racer.to_string()).clone()));
    let won = join_all(racers).await.into_iter().filter(|kept| *kept.as_ref().unwrap() == Kept::Same).count();
    assert_eq!(won, 1);

    for path in ["tile/0/x001/234.p/5", "tile/0/x001/234.p/17", "tile/0/x001/234"] {
        assert_eq!(storage.keep(&tile(path), bytes(path)).await.unwrap(), Kept::Same);
    }
    let partials = LedgerFolder::Partials(ShardId(3), "tile/0/x001/234".parse().unwrap());
    assert_eq!(storage.entries(&partials).await.unwrap(), ["17", "5"]);
    assert_eq!(storage.entries(&LedgerFolder::Seals).await.unwrap(), ["000000"]);
    assert_eq!(storage.entries(&LedgerFolder::Millions(0)).await.unwrap(), ["001", "002"]);
    assert_eq!(storage.entries(&LedgerFolder::Thousands(1)).await.unwrap(), ["234"]);
    storage.forget(&tile("tile/0/x001/234.p/5")).await.unwrap();
    storage.forget(&tile("tile/0/x001/234.p/17")).await.unwrap();
    assert_eq!(storage.entries(&partials).await.unwrap(), Vec::<String>::new());
    assert!(storage.kept(&tile("tile/0/x001/234"), 100).await.unwrap().is_some());
}

#[tokio::test]
async fn a_folder_keeps_what_was_first() {
    let folder = Folder::new();
    keeps_what_was_first(&folder.storage).await;
    let root = folder.root.path().join("objects/ledger");
    assert_eq!(fs::read_dir(root.join("unfinished")).unwrap().count(), 0);
    assert!(!root.join("3/tile/0/x001/234.p").exists(), "an empty folder is left over");
    folder.storage.forget(&SEAL).await.unwrap();
    folder.storage.forget(&SEAL).await.unwrap();
}

#[tokio::test]
async fn a_bucket_keeps_what_was_first() {
    keeps_what_was_first(&S3Server::start_that_keeps().await.storage("the-secret")).await;
}

/// A server that takes no notice of the condition is found out by trying.
#[tokio::test]
async fn a_bucket_that_overwrites_is_noticed() {
    let server = S3Server::start().await;
    let storage = server.storage("the-secret");
    assert_eq!(storage.keep(&SEAL, bytes("one")).await.unwrap(), Kept::Same);
    assert_eq!(storage.keep(&SEAL, bytes("two")).await.unwrap(), Kept::Same);
}

#[tokio::test]
async fn a_sweep_of_outputs_does_not_see_what_is_kept() {
    let (server, folder) = (S3Server::start_that_keeps().await, Folder::new());
    for storage in [folder.storage.clone(), server.storage("the-secret")] {
        storage.keep(&SEAL, bytes("sealed")).await.unwrap();
        storage.keep(&tile("tile/0/000"), bytes("tile")).await.unwrap();
        storage.put(&name(1), &folder.file(b"x"), 10).await.unwrap();
        let tomorrow = Utc::now() + TimeDelta::hours(48);
        let nobody = |_: Vec<_>| ready(Ok::<_, Infallible>(HashSet::new()));
        let limits = Limits { even_most: true, ..Limits::default() };
        let swept = sweep(&storage, limits, tomorrow, nobody).await.unwrap();
        assert_eq!((swept.seen, swept.deleted, swept.foreign, swept.unfinished), (1, 1, 0, 0));
        assert_eq!(storage.kept(&SEAL, 100).await.unwrap(), Some(bytes("sealed")));
        assert_eq!(storage.kept(&tile("tile/0/000"), 100).await.unwrap(), Some(bytes("tile")));
    }
}
