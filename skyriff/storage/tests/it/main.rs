//! The storage through its front door: a folder, and a real S3 server; links as a client follows them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![expect(unreachable_pub, reason = "a binary exports nothing")]

mod keeps;
mod links;
mod puts;
mod s3_server;
mod sweeps;

use std::{fs, path::PathBuf};

use skyriff_domain::JobId;
use skyriff_storage::{Format, ObjectName, ObjectStorage};
use tempfile::TempDir;
use uuid::Uuid;

/// A storage in a folder of its own.
struct Folder {
    root: TempDir,
    storage: ObjectStorage,
}

impl Folder {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let address = format!("file://{}", root.path().join("objects").display());
        Self { storage: ObjectStorage::open(&address, []).unwrap(), root }
    }

    /// A file with these bytes.
    fn file(&self, bytes: &[u8]) -> PathBuf {
        let file = self.root.path().join("file");
        fs::write(&file, bytes).unwrap();
        file
    }

    /// Every file that is in the storage.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.root.path().join("objects"))
            .unwrap()
            .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        files
    }
}

fn name(attempt: u32) -> ObjectName {
    ObjectName { job: JobId(Uuid::from_u128(7)), attempt, format: Format::Mp4 }
}

/// Bytes that differ everywhere.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}
