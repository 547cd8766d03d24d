//! What users show, and the list of the newest.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use skyriff_domain::{
    Intent, UserId, WorkId,
    work::{Command, Visibility},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    books::{caught_up, connect, projector},
    log::{Log, noon, some_user},
};

/// What must be in the tables, kept by hand.
#[derive(Default)]
struct Works(BTreeMap<Uuid, Row>);

#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
struct Row {
    work_id: Uuid,
    creator: Uuid,
    title: String,
    visibility: String,
    shown: bool,
    published_at: DateTime<Utc>,
}

impl Works {
    async fn publish(&mut self, log: &mut Log, creator: UserId, work: u128, title: &str, public: bool, hours: i64) {
        let (at, work_id) = (noon() + TimeDelta::hours(hours), Uuid::from_u128(work));
        let visibility = if public { Visibility::Public } else { Visibility::Unlisted };
        let command = Command::Publish { creator, job: None, title: title.to_owned().try_into().unwrap(), visibility };
        log.append(creator, at, Intent::Work { work: WorkId(work_id), command }).await;
        let first = self.0.get(&work_id).map_or(at, |row| row.published_at);
        let visibility = if public { "public" } else { "unlisted" };
        let (title, visibility) = (title.to_owned(), visibility.to_owned());
        let row = Row { work_id, creator: creator.0, title, visibility, shown: true, published_at: first };
        self.0.insert(work_id, row);
    }

    async fn unpublish(&mut self, log: &mut Log, creator: UserId, work: u128) {
        let work = Uuid::from_u128(work);
        let command = Command::Unpublish { creator };
        log.append(creator, noon(), Intent::Work { work: WorkId(work), command }).await;
        self.0.get_mut(&work).unwrap().shown = false;
    }

    async fn are_in(&self, reads: &mut PgConnection) {
        let works: Vec<Row> =
            sqlx::query_as("SELECT * FROM works ORDER BY work_id").fetch_all(&mut *reads).await.unwrap();
        assert_eq!(works, self.0.values().cloned().collect::<Vec<_>>());
        let newest: Vec<(DateTime<Utc>, Uuid)> =
            sqlx::query_as("SELECT published_at, work_id FROM newest_works").fetch_all(reads).await.unwrap();
        let public = self.0.values().filter(|row| row.shown && row.visibility == "public");
        let public: BTreeMap<_, _> = public.map(|row| (row.work_id, row.published_at)).collect();
        assert_eq!(newest.iter().map(|(at, work)| (*work, *at)).collect::<BTreeMap<_, _>>(), public);
        assert_eq!(newest.len(), public.len());
    }
}

#[tokio::test]
async fn a_work_is_listed_while_it_is_public_and_shown_where_it_was_first_shown() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let (one, other) = (some_user(), some_user());
    let mut works = Works::default();
    let first = projector(&log);
    for step in 0..7 {
        match step {
            0 => works.publish(&mut log, one, 1, "dawn", true, 0).await,
            1 => works.publish(&mut log, other, 2, "dusk", false, 1).await,
            // Months later: it stays in the month in which it was first shown.
            2 => works.publish(&mut log, one, 1, "dawn, retitled", true, 24 * 90).await,
            3 => works.unpublish(&mut log, one, 1).await,
            4 => works.publish(&mut log, other, 2, "dusk", true, 2).await,
            5 => works.publish(&mut log, one, 1, "dawn, again", true, 3).await,
            _ => works.publish(&mut log, one, 1, "dawn, again", false, 4).await,
        }
        caught_up(&log, &mut reads).await;
        works.are_in(&mut reads).await;
    }
    first.stop().await;

    // In one batch, since nobody projects meanwhile.
    works.publish(&mut log, one, 3, "a", true, 5).await;
    works.unpublish(&mut log, one, 3).await;
    works.publish(&mut log, one, 3, "b", true, 24 * 40).await;
    works.publish(&mut log, one, 4, "c", true, 6).await;
    works.unpublish(&mut log, one, 4).await;
    works.unpublish(&mut log, other, 2).await;
    let second = projector(&log);
    caught_up(&log, &mut reads).await;
    works.are_in(&mut reads).await;
    second.stop().await;
}
