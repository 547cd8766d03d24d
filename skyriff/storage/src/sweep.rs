//! Objects that nobody will ever ask for: of attempts that did not come to their end.
//!
//! An attempt puts its output and then says so; one that dies in between leaves an object that no job names. It is
//! deleted once it is older than an attempt can be. Parts of files that were never finished go as well where we hold
//! them; in a bucket that is for a lifecycle rule of its own (`AbortIncompleteMultipartUpload`).

use std::{collections::HashSet, path::Path, time::Duration};

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use tokio::fs;

use crate::{ObjectName, ObjectStorage, StorageError};

/// How a sweep goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Younger objects may still be named by a job that is about to succeed.
    pub age_min: Duration,
    /// How many names are asked about at once.
    pub batch: usize,
    /// How many objects one sweep deletes at most; the next one goes on.
    pub deletions_max: usize,
    /// Delete also when no job names most of them. That is how it looks from another system's log, or an empty one.
    pub even_most: bool,
}

/// Fewer than so many are never most of them.
const MOST_MIN: usize = 20;

impl Default for Limits {
    fn default() -> Self {
        Self { age_min: Duration::from_secs(24 * 3_600), batch: 500, deletions_max: 100_000, even_most: false }
    }
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that were looked at.
    pub seen: u64,
    /// Objects that were deleted.
    pub deleted: usize,
    /// Objects whose names are not ours, which were left alone.
    pub foreign: u64,
    /// Unfinished files that were deleted.
    pub unfinished: u64,
}

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum SweepError<E> {
    /// The storage failed.
    #[error("the sweep cannot use the object storage")]
    Storage(#[from] StorageError),
    /// Rather the wrong log than so many orphans; nothing was deleted.
    #[error("no job names {orphans} of {old} old objects: is this the log that they belong to?")]
    Most {
        /// What no job names.
        orphans: usize,
        /// How many are old enough.
        old: usize,
    },
    /// Nobody could say which objects are named; none of them was deleted.
    #[error("cannot find out which objects jobs name")]
    Named(#[source] E),
}

/// Delete what is old enough and not among what `named` gives back of the names it is given.
///
/// # Errors
/// [`SweepError`]. What was deleted before is deleted; nothing was that is named.
pub async fn sweep<E, F: Future<Output = Result<HashSet<ObjectName>, E>>>(
    storage: &ObjectStorage,
    limits: Limits,
    now: DateTime<Utc>,
    mut named: impl FnMut(Vec<ObjectName>) -> F,
) -> Result<Swept, SweepError<E>> {
    let mut swept = Swept::default();
    let old = |put_at: DateTime<Utc>| (now - put_at).to_std().is_ok_and(|age| age >= limits.age_min);
    let mut objects = storage.list();
    let mut batch = Vec::with_capacity(limits.batch.max(1));
    let (mut orphans, mut seen_old) = (Vec::new(), 0);
    loop {
        let next = objects.try_next().await?;
        let is_last = next.is_none();
        if let Some(object) = next {
            swept.seen += 1;
            match object.name {
                Some(name) if old(object.put_at) => {
                    batch.push(name);
                    seen_old += 1;
                }
                Some(_) => {}
                None => swept.foreign += 1,
            }
        }
        if batch.len() >= limits.batch.max(1) || (is_last && !batch.is_empty()) {
            let keep = named(batch.clone()).await.map_err(SweepError::Named)?;
            orphans.extend(batch.drain(..).filter(|name| !keep.contains(name)));
        }
        if is_last || orphans.len() >= limits.deletions_max {
            break;
        }
    }
    if orphans.len() >= MOST_MIN && orphans.len() * 2 > seen_old && !limits.even_most {
        return Err(SweepError::Most { orphans: orphans.len(), old: seen_old });
    }
    for orphan in orphans.into_iter().take(limits.deletions_max) {
        storage.delete(&orphan).await?;
        swept.deleted += 1;
    }
    if let Some(folder) = storage.as_folder() {
        swept.unfinished = sweep_unfinished(folder, old).await?;
    }
    Ok(swept)
}

/// The store writes `NAME#NUMBER` and renames it to `NAME` when it is whole.
async fn sweep_unfinished(folder: &Path, old: impl Fn(DateTime<Utc>) -> bool) -> Result<u64, StorageError> {
    let mut deleted = 0;
    let swept = async {
        let mut folders = fs::read_dir(folder).await?;
        while let Some(folder) = folders.next_entry().await? {
            if !folder.file_type().await?.is_dir() {
                continue;
            }
            let mut files = fs::read_dir(folder.path()).await?;
            while let Some(file) = files.next_entry().await? {
                let is_ours = file.file_name().to_str().is_some_and(|name| {
                    name.split_once('#').is_some_and(|(name, number)| {
                        name.parse::<ObjectName>().is_ok() && number.bytes().all(|byte| byte.is_ascii_digit())
                    })
                });
                if is_ours && old(file.metadata().await?.modified()?.into()) {
                    fs::remove_file(file.path()).await?;
                    deleted += 1;
                }
            }
        }
        Ok(deleted)
    };
    swept.await.map_err(|source| StorageError::File { file: folder.to_owned(), source })
}
