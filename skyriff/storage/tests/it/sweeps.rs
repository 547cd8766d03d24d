//! What nobody will ask for goes, and nothing else.

use std::{collections::HashSet, convert::Infallible, fs, future::ready, time::Duration};

use chrono::{TimeDelta, Utc};
use skyriff_storage::{
    ObjectStorage,
    sweep::{Limits, SweepError, Swept, sweep},
};

use crate::{Folder, name, s3_server::S3Server};

const DAY: Limits = Limits { age_min: Duration::from_secs(24 * 3_600), batch: 2, deletions_max: 100, even_most: false };

async fn with_five(storage: &ObjectStorage, folder: &Folder) {
    with(5, storage, folder).await;
}

async fn with(count: u32, storage: &ObjectStorage, folder: &Folder) {
    for attempt in 1..=count {
        storage.put(&name(attempt), &folder.file(b"x"), 10).await.unwrap();
    }
}

async fn left(storage: &ObjectStorage) -> Vec<u32> {
    let mut left = Vec::new();
    for attempt in 1..=30 {
        if storage.head(&name(attempt)).await.unwrap().is_some() {
            left.push(attempt);
        }
    }
    left
}

#[tokio::test]
async fn old_objects_that_no_job_names_are_deleted() {
    let (server, folder) = (S3Server::start().await, Folder::new());
    for storage in [folder.storage.clone(), server.storage("the-secret")] {
        with_five(&storage, &folder).await;
        let named = HashSet::from([name(2), name(5)]);
        let mut asked = Vec::new();
        let mut ask = |names: Vec<_>| {
            assert!(names.len() <= DAY.batch);
            asked.extend(names);
            ready(Ok::<_, Infallible>(named.clone()))
        };
        // Too young, all of them: nobody is even asked.
        let swept = sweep(&storage, DAY, Utc::now(), &mut ask).await.unwrap();
        assert_eq!(swept, Swept { seen: 5, ..Swept::default() });
        let tomorrow = Utc::now() + TimeDelta::hours(25);
        let few = Limits { deletions_max: 1, ..DAY };
        assert_eq!(sweep(&storage, few, tomorrow, &mut ask).await.unwrap().deleted, 1);
        assert_eq!(left(&storage).await.len(), 4);
        assert_eq!(sweep(&storage, DAY, tomorrow, &mut ask).await.unwrap().deleted, 2);
        assert_eq!(left(&storage).await, [2, 5]);
        assert!(!asked.is_empty());
    }
}

#[tokio::test]
async fn nothing_is_deleted_when_nobody_can_say_what_is_named() {
    let folder = Folder::new();
    with_five(&folder.storage, &folder).await;
    let tomorrow = Utc::now() + TimeDelta::hours(25);
    let swept = sweep(&folder.storage, DAY, tomorrow, |_| ready(Err("the database is away"))).await;
    assert!(matches!(swept, Err(SweepError::Named(_))), "{swept:?}");
    assert_eq!(left(&folder.storage).await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn most_of_them_are_not_deleted_unless_that_is_asked_for() {
    let folder = Folder::new();
    with(30, &folder.storage, &folder).await;
    let tomorrow = Utc::now() + TimeDelta::hours(25);
    let named = HashSet::from_iter((1..=10).map(name));
    let mut ask = |_: Vec<_>| ready(Ok::<_, Infallible>(named.clone()));
    let swept = sweep(&folder.storage, DAY, tomorrow, &mut ask).await;
    assert!(matches!(swept, Err(SweepError::Most { orphans: 20, old: 30 })), "{swept:?}");
    assert_eq!(left(&folder.storage).await.len(), 30);
    let all = Limits { even_most: true, ..DAY };
    assert_eq!(sweep(&folder.storage, all, tomorrow, &mut ask).await.unwrap().deleted, 20);
    assert_eq!(left(&folder.storage).await, (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn unfinished_files_go_and_strangers_stay() {
    let folder = Folder::new();
    with_five(&folder.storage, &folder).await;
    let place = folder.files()[0].parent().unwrap().to_owned();
    // As a put that was killed leaves it.
    let unfinished = place.join(format!("{}#1", name(9)));
    let stranger = place.join("notes.txt");
    fs::write(&unfinished, "half").unwrap();
    fs::write(&stranger, "mine").unwrap();
    let everything = HashSet::from_iter((1..=5).map(name));
    let mut ask = |_: Vec<_>| ready(Ok::<_, Infallible>(everything.clone()));
    let now = sweep(&folder.storage, DAY, Utc::now(), &mut ask).await.unwrap();
    assert_eq!((now.unfinished, unfinished.exists()), (0, true));
    let tomorrow = sweep(&folder.storage, DAY, Utc::now() + TimeDelta::hours(25), &mut ask).await.unwrap();
    assert_eq!(tomorrow, Swept { seen: 6, foreign: 1, unfinished: 1, deleted: 0 });
    assert!(!unfinished.exists() && stranger.exists());
}
