//! What is put is there, whole, or not at all.

use std::{fs, os::unix::fs::PermissionsExt};

use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use skyriff_storage::{ObjectName, ObjectStorage, StorageError};

use crate::{Folder, bytes, name, s3_server::S3Server};

/// More than two parts, the last one not full.
const LARGE: usize = 20 * 1_024 * 1_024 + 17;

async fn read(storage: &ObjectStorage, name: &ObjectName, range: std::ops::Range<u64>) -> Vec<u8> {
    let parts: Vec<_> = storage.read(name, range).await.unwrap().try_collect().await.unwrap();
    parts.concat()
}

async fn keeps_what_is_put(storage: &ObjectStorage, folder: &Folder) {
    for (attempt, count) in [(1, 0), (2, 5), (3, 8 * 1_024 * 1_024), (4, LARGE)] {
        let (bytes, name) = (bytes(count), name(attempt));
        assert_eq!(storage.head(&name).await.unwrap(), None);
        let length = u64::try_from(count).unwrap();
        let stored = storage.put(&name, &folder.file(&bytes), length).await.unwrap();
        assert_eq!((stored.bytes, stored.sha256), (length, format!("{:x}", Sha256::digest(&bytes))));
        let head = storage.head(&name).await.unwrap().unwrap();
        assert_eq!(head.bytes, length);
        // What we serve ourselves has one; this bucket's server tells it only with the contents.
        assert_eq!(head.etag.is_some_and(|etag| etag.starts_with('"') && etag.ends_with('"')), storage.is_folder());
        assert!(read(storage, &name, 0..length).await == bytes, "{count}");
        if count > 10 {
            assert_eq!(read(storage, &name, 5..10).await, bytes[5..10]);
        }
        storage.delete(&name).await.unwrap();
        // S3 says that it has deleted what was not there; this bucket's server says nothing, which is not understood.
        if storage.is_folder() {
            storage.delete(&name).await.unwrap();
        }
        assert_eq!(storage.head(&name).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_folder_keeps_what_is_put_and_nobody_else_may_look() {
    let folder = Folder::new();
    keeps_what_is_put(&folder.storage, &folder).await;
    let mode = fs::metadata(folder.root.path().join("objects")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn a_bucket_keeps_what_is_put_and_only_for_whoever_has_the_key() {
    let (server, folder) = (S3Server::start().await, Folder::new());
    keeps_what_is_put(&server.storage("the-secret"), &folder).await;
    assert_eq!(*server.content_types.lock().unwrap(), ["video/mp4"; 4]);
    let stranger = server.storage("another-secret");
    let refused = stranger.put(&name(1), &folder.file(b"x"), 10).await;
    assert!(matches!(refused, Err(StorageError::Store(_))), "{refused:?}");
    assert!(stranger.head(&name(1)).await.is_err());
    assert!(!format!("{stranger:?}").contains("secret"));
}

#[tokio::test]
async fn what_is_too_large_is_not_there_at_all() {
    let (server, folder) = (S3Server::start().await, Folder::new());
    for storage in [folder.storage.clone(), server.storage("the-secret")] {
        for (count, bytes_max) in [(6, 5), (LARGE, 9 * 1_024 * 1_024)] {
            let refused = storage.put(&name(1), &folder.file(&bytes(count)), bytes_max).await;
            assert!(matches!(refused, Err(StorageError::TooLarge { .. })), "{refused:?}");
            assert_eq!(storage.head(&name(1)).await.unwrap(), None);
        }
    }
    assert_eq!(folder.files(), Vec::<std::path::PathBuf>::new());
    // Nor are parts of it left in the bucket.
    let left = walk(&server.bucket());
    assert!(left.is_empty(), "{left:?}");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn other_addresses_are_refused_in_words() {
    for address in ["", "objects", "/objects", "http://example.org/x", "s3://", "file://host/x"] {
        let error = ObjectStorage::open(address, []).unwrap_err();
        assert!(matches!(error, StorageError::Address(_)), "{address}: {error:?}");
    }
}
