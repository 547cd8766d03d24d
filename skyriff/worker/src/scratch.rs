//! Where attempts are made: folders that go when the attempt ends, and when the worker was killed, with the next worker.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// A worker holds its folder by a lock on this file, which ends with its process.
const LOCK: &str = "lock";

/// A worker's own folder. Dropped, it goes.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    /// Held until the end.
    _lock: File,
}

impl Scratch {
    /// A folder of its own in `root`, after the folders of workers that are gone were deleted.
    ///
    /// # Errors
    /// As the file system's.
    pub fn new(root: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        // One at a time, so that nobody takes a folder for left behind that is just being made.
        let guard = File::create(root.join(LOCK))?;
        guard.lock()?;
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            if path.is_dir() && is_left_behind(&path) {
                tracing::info!(folder = %path.display(), "deleting what a worker left behind");
                fs::remove_dir_all(&path)?;
            }
        }
        let folder = tempfile::Builder::new().prefix("worker-").tempdir_in(root)?;
        let lock = File::create(folder.path().join(LOCK))?;
        lock.lock()?;
        Ok(Self { folder, _lock: lock })
    }

    /// A folder for one attempt.
    ///
    /// # Errors
    /// As the file system's.
    pub fn attempt(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("attempt-").tempdir_in(self.folder.path())
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

fn is_left_behind(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_workers_that_are_gone_are_deleted_and_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let living = Scratch::new(root.path()).unwrap();
        let attempt = living.attempt().unwrap();
        fs::write(attempt.path().join("output.mp4"), "half").unwrap();
        let dead = root.path().join("worker-dead");
        fs::create_dir_all(dead.join("attempt-1")).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let second = Scratch::new(root.path()).unwrap();
        assert!(!dead.exists() && attempt.path().exists() && second.path() != living.path());
        let path = living.path();
        drop((attempt, living));
        assert!(!path.exists());
    }
}
