//! Video jobs: what the read model says of each, and that points are held, and slots taken, for those that are open and
//! for no others.

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use skyriff_domain::{
    HoldId, JobId, Points, State, StreamId, UserId,
    video_job::{Order, Status, VideoJob},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    super::{findings::Findings, fold::Shard},
    number,
};

/// A job as the log has it.
struct Job<'a> {
    id: JobId,
    order: &'a Order,
    status: Status,
    job: &'a VideoJob,
}

fn jobs(shard: &Shard) -> impl Iterator<Item = Job<'_>> {
    shard.streams.iter().filter_map(|(stream, folded)| match (stream, &folded.state) {
        (StreamId::VideoJob(id), State::VideoJob(job)) => {
            Some(Job { id: *id, order: job.order()?, status: job.status()?, job })
        }
        _ => None,
    })
}

/// That each open job has its hold and its slot, and no other job has.
pub fn check_holds(shard: &Shard, findings: &mut Findings) {
    let mut open = HashMap::<UserId, BTreeSet<JobId>>::new();
    for Job { id, order, status, .. } in jobs(shard) {
        if !status.is_over() {
            open.entry(order.user).or_default().insert(id);
        }
        let held = match shard.state(&StreamId::PointsAccount(order.user)) {
            Some(State::PointsAccount(account)) => account.holds().get(&HoldId(id.0)).map(|hold| hold.left.total()),
            _ => None,
        };
        let expected = (!status.is_over()).then(|| order.price());
        if held != expected {
            let points = |points: Option<Points>| points.map_or("nothing".to_owned(), |points| points.to_string());
            let (held, expected) = (points(held), points(expected));
            findings
                .of(shard.id, format!("video job {id} is {status}, and {held} is held for it instead of {expected}"));
        }
    }
    for (stream, folded) in &shard.streams {
        let (StreamId::VideoSlots(user), State::VideoSlots(slots)) = (stream, &folded.state) else { continue };
        if *slots.taken() != open.remove(user).unwrap_or_default() {
            findings.of(shard.id, format!("the slots of user {user} are not those of the open video jobs"));
        }
    }
    for user in open.keys() {
        findings.of(shard.id, format!("user {user} has open video jobs and no slots"));
    }
}

/// That the read model says of each job what its events do.
pub(super) async fn compare(connection: &mut PgConnection, shard: &mut Shard) -> Result<()> {
    let mut findings = Findings::default();
    let stored: Vec<(Uuid, Uuid, String, i64, Option<String>)> =
        sqlx::query_as("SELECT job, user_id, status, held, object FROM video_jobs WHERE shard = $1")
            .bind(number(shard.id)?)
            .fetch_all(connection)
            .await?;
    let mut stored: HashMap<_, _> =
        stored.into_iter().map(|(job, user, status, held, object)| (job, (user, status, held, object))).collect();
    for Job { id, order, status, job } in jobs(shard) {
        let object = job.output().map(|output| output.object.as_str().to_owned());
        let expected = (order.user.0, status.as_str().to_owned(), order.price().get(), object);
        match stored.remove(&id.0) {
            None => findings.of(shard.id, format!("video job {id} has events and no row")),
            Some(row) if row != expected => {
                findings.of(shard.id, format!("the row of video job {id} is not the fold of its events"))
            }
            Some(_) => {}
        }
    }
    for job in stored.keys() {
        findings.of(shard.id, format!("video job {job} has a row and no events"));
    }
    shard.findings.absorb(findings);
    Ok(())
}
