//! Keeping small objects for ever: each is written once, whole and to stay, and whoever comes second sees what is there.
//!
//! A bucket is asked to make an object only where there is none (`If-None-Match: *`). A file is written beside its place,
//! synced, and linked into it, which fails where there is one. Either way, of two who write the same name one has written it.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use axum::body::Bytes;
use object_store::{GetOptions, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path as Key};
use uuid::Uuid;

use crate::{LedgerFolder, LedgerName, ObjectStorage, StorageError, ledger::ROOT, store::Place};

/// Files that are being written are here, in the same file system.
const UNFINISHED: &str = "unfinished";
/// Nobody writes a small file for so long: who was at it is gone.
const UNFINISHED_MAX: Duration = Duration::from_secs(3_600);

/// What came of keeping something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is there, from now on or as it was before: the very same bytes.
    Same,
    /// Something else was there, and still is.
    Other,
}

impl ObjectStorage {
    /// Keep bytes under a name, unless something is there already. When this returns, it is there to stay.
    ///
    /// # Errors
    /// [`StorageError`]; then it may be there or not.
    pub async fn keep(&self, name: &LedgerName, bytes: Bytes) -> Result<Kept, StorageError> {
        let is_new = match &self.place {
            Place::Folder(folder) => {
                let (folder, file, bytes) = (folder.join(ROOT), self.file(folder, name), bytes.clone());
                let failed = |source| StorageError::File { file: file.clone(), source };
                let path = file.clone();
                let made = tokio::task::spawn_blocking(move || make(&folder, &path, &bytes)).await;
                made.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?
            }
            Place::Bucket { .. } => {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match self.store.put_opts(&self.ledger_key(name), PutPayload::from(bytes.clone()), options).await {
                    Ok(_) => true,
                    // Also when an attempt of ours went through whose answer was lost.
                    Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => false,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        if is_new {
            return Ok(Kept::Same);
        }
        let bytes_max = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match self.kept(name, bytes_max).await {
            Ok(there) if there.as_ref() == Some(&bytes) => Ok(Kept::Same),
            Ok(_) | Err(StorageError::TooLarge { .. }) => Ok(Kept::Other),
            Err(error) => Err(error),
        }
    }

    /// What is kept under a name; nothing when nothing is.
    ///
    /// # Errors
    /// [`StorageError`], also when it has more than `bytes_max` bytes.
    pub async fn kept(&self, name: &LedgerName, bytes_max: u64) -> Result<Option<Bytes>, StorageError> {
        let found = match self.store.get_opts(&self.ledger_key(name), GetOptions::default()).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if found.meta.size > bytes_max {
            return Err(StorageError::TooLarge { bytes_max });
        }
        Ok(Some(found.bytes().await?))
    }

    /// Keep something no longer; in a folder, neither an empty folder around it.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn forget(&self, name: &LedgerName) -> Result<(), StorageError> {
        match self.store.delete(&self.ledger_key(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if let Place::Folder(folder) = &self.place
            && let Some(parent) = self.file(folder, name).parent()
        {
            // Not while something is in it.
            tokio::fs::remove_dir(parent).await.ok();
        }
        Ok(())
    }

    /// What is directly in a folder, ascending: the last parts of names and of folders.
    ///
    /// # Errors
    /// [`StorageError::Store`].
    pub async fn entries(&self, folder: &LedgerFolder) -> Result<Vec<String>, StorageError> {
        let key = self.below_root(&folder.to_string());
        let listed = self.store.list_with_delimiter(Some(&key)).await?;
        let places = listed.objects.iter().map(|object| &object.location).chain(&listed.common_prefixes);
        // A server that knows no folders lists all that is below.
        let first = |place: &Key| place.prefix_match(&key)?.next().map(|part| part.as_ref().to_owned());
        let names: BTreeSet<_> = places.filter_map(first).collect();
        Ok(names.into_iter().collect())
    }

    /// Delete files that somebody was writing when it ended; in a bucket there are none.
    ///
    /// # Errors
    /// [`StorageError::File`].
    pub async fn clear_unfinished(&self) -> Result<(), StorageError> {
        let Place::Folder(folder) = &self.place else { return Ok(()) };
        let unfinished = folder.join(ROOT).join(UNFINISHED);
        let failed = |source| StorageError::File { file: unfinished.clone(), source };
        let place = unfinished.clone();
        let cleared = tokio::task::spawn_blocking(move || clear(&place)).await;
        cleared.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
    }

    fn ledger_key(&self, name: &LedgerName) -> Key {
        self.below_root(&name.to_string())
    }

    /// Our own names have nothing that would have to be escaped.
    fn below_root(&self, path: &str) -> Key {
        path.split('/').fold(self.prefix().join(ROOT), |key, part| key.join(part))
    }

    fn file(&self, folder: &Path, name: &LedgerName) -> PathBuf {
        folder.join(ROOT).join(name.to_string())
    }
}

/// Whether the file was made; it was not when there is one.
fn make(root: &Path, file: &Path, bytes: &[u8]) -> io::Result<bool> {
    let Some(parent) = file.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let new_folder = |folder: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let unfinished = root.join(UNFINISHED);
    new_folder(&unfinished)?;
    let was_there = parent.ancestors().find(|folder| folder.exists()).map(Path::to_owned);
    new_folder(parent)?;
    let new = unfinished.join(Uuid::new_v4().to_string());
    let written = || {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        match fs::hard_link(&new, file) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    };
    let is_new = written();
    fs::remove_file(&new).ok();
    // The folders that have a new entry, up to the first that was there before.
    for folder in parent.ancestors() {
        fs::File::open(folder)?.sync_all()?;
        if Some(folder) == was_there.as_deref() {
            break;
        }
    }
    is_new
}

fn clear(unfinished: &Path) -> io::Result<()> {
    let files = match fs::read_dir(unfinished) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for file in files {
        let file = file?;
        let age = SystemTime::now().duration_since(file.metadata()?.modified()?);
        if age.is_ok_and(|age| age > UNFINISHED_MAX) {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}
