//! Video jobs: what the read model says of each, and that points are held, and slots taken, for those that are open and
//! for no others.

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use skyriff_domain::{
    HoldId, JobId, Points, ShardCount, State, StreamId, UserId, shard_of,
    video_job::{Order, Status, VideoJob},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Fold, Report};
use crate::config::Place;

/// A job as the log has it.
struct Job<'a> {
    id: JobId,
    order: &'a Order,
    status: Status,
    job: &'a VideoJob,
}

fn jobs(fold: &Fold) -> impl Iterator<Item = Job<'_>> {
    fold.streams.iter().filter_map(|(stream, folded)| match (stream, &folded.state) {
        (StreamId::VideoJob(id), State::VideoJob(job)) => {
            Some(Job { id: *id, order: job.order()?, status: job.status()?, job })
        }
        _ => None,
    })
}

/// That each open job has its hold and its slot, and no other job has.
pub(super) fn check_holds(fold: &Fold, report: &mut Report) {
    let mut open = HashMap::<UserId, BTreeSet<JobId>>::new();
    for Job { id, order, status, .. } in jobs(fold) {
        if !status.is_over() {
            open.entry(order.user).or_default().insert(id);
        }
        let held = match fold.streams.get(&StreamId::PointsAccount(order.user)).map(|folded| &folded.state) {
            Some(State::PointsAccount(account)) => account.holds().get(&HoldId(id.0)).map(|hold| hold.left.total()),
            _ => None,
        };
        let expected = (!status.is_over()).then(|| order.price());
        if held != expected {
            let points = |points: Option<Points>| points.map_or("nothing".to_owned(), |points| points.to_string());
            let (held, expected) = (points(held), points(expected));
            report.wrong(format!("video job {id} is {status}, and {held} is held for it instead of {expected}"));
        }
    }
    for (stream, folded) in &fold.streams {
        let (StreamId::VideoSlots(user), State::VideoSlots(slots)) = (stream, &folded.state) else { continue };
        if *slots.taken() != open.remove(user).unwrap_or_default() {
            report.wrong(format!("the slots of user {user} are not those of the open video jobs"));
        }
    }
    for user in open.keys() {
        report.wrong(format!("user {user} has open video jobs and no slots"));
    }
}

/// That the read model says of each job what its events do.
pub(super) async fn compare(
    connection: &mut PgConnection,
    place: &Place,
    fold: &Fold,
    shards: ShardCount,
    report: &mut Report,
) -> Result<()> {
    let stored: Vec<(Uuid, Uuid, String, i64, Option<String>)> =
        sqlx::query_as("SELECT job, user_id, status, held, object FROM video_jobs").fetch_all(connection).await?;
    let mut stored: HashMap<_, _> =
        stored.into_iter().map(|(job, user, status, held, object)| (job, (user, status, held, object))).collect();
    for Job { id, order, status, job } in jobs(fold) {
        if !place.shards.contains(&shard_of(order.user, shards)) {
            continue;
        }
        let object = job.output().map(|output| output.object.as_str().to_owned());
        let expected = (order.user.0, status.as_str().to_owned(), order.price().get(), object);
        match stored.remove(&id.0) {
            None => report.wrong(format!("video job {id} has events and no row")),
            Some(row) if row != expected => {
                report.wrong(format!("the row of video job {id} is not the fold of its events"))
            }
            Some(_) => {}
        }
    }
    for job in stored.keys() {
        report.wrong(format!("video job {job} has a row and no events"));
    }
    Ok(())
}
