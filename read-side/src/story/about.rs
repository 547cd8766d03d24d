//! What an event is about, and so where the other steps of it are recorded.

use skyriff_domain::{
    Event, HoldId, JobId, SpendId, StreamId, TipId, WithdrawalId, WorkId, points_account, reconciliation::exception,
    video_job, withdrawal,
};
use uuid::Uuid;

/// Where to look for what belongs to an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    /// Streams that are named after the thing, in whatever shard; some of them have no event.
    pub(super) streams: Vec<StreamId>,
    /// An id by which events of the same account name it: of a hold or a spend.
    pub(super) on_account: Option<Uuid>,
    /// Whether it leads to events that are recorded on streams of other things, which no index finds.
    pub(super) has_effects: bool,
}

impl About {
    pub(super) fn of(stream: &StreamId, event: &Event) -> Self {
        let streams = match event {
            Event::PointsAccount(event) => return of_account(event),
            Event::Tip(_) | Event::TipReceipt(_) | Event::Withdrawal(_) | Event::VideoJob(_) | Event::Work(_) => {
                of_stream(stream)
            }
            Event::WithdrawalAllowance(event) => match event {
                withdrawal::allowance::Event::Used { withdrawal, .. }
                | withdrawal::allowance::Event::GivenBack { withdrawal }
                | withdrawal::allowance::Event::Closed { withdrawal } => vec![StreamId::Withdrawal(*withdrawal)],
            },
            Event::VideoSlots(video_job::slots::Event::Taken { job } | video_job::slots::Event::Freed { job }) => {
                of_job(*job)
            }
            Event::ReconciliationException(event) => match event {
                exception::Event::Found(exception::Found { run, .. }) | exception::Event::Explained { run } => {
                    vec![*stream, StreamId::Reconciliation(*run)]
                }
                exception::Event::Resolved { .. } => vec![*stream],
            },
            // Works that are taken down, and exceptions that are found.
            Event::Erasure(_) | Event::Reconciliation(_) => {
                return Self { streams: vec![*stream], on_account: None, has_effects: true };
            }
            Event::RechargeOrder(_) | Event::Like(_) => vec![*stream],
        };
        Self { streams, on_account: None, has_effects: false }
    }
}

fn of_stream(stream: &StreamId) -> Vec<StreamId> {
    match stream {
        StreamId::Tip(tip) | StreamId::TipReceipt(tip) => of_tip(*tip),
        StreamId::VideoJob(job) => of_job(*job),
        StreamId::Work(work) => of_job(JobId(work.0)),
        StreamId::Withdrawal(_)
        | StreamId::PointsAccount(_)
        | StreamId::RechargeOrder(_)
        | StreamId::Like(_)
        | StreamId::WithdrawalAllowance(_)
        | StreamId::VideoSlots(_)
        | StreamId::Erasure(_)
        | StreamId::Reconciliation(_)
        | StreamId::ReconciliationException(_) => vec![*stream],
    }
}

fn of_tip(tip: TipId) -> Vec<StreamId> {
    vec![StreamId::Tip(tip), StreamId::TipReceipt(tip)]
}

/// What a job has made is shown under its own id.
fn of_job(job: JobId) -> Vec<StreamId> {
    vec![StreamId::VideoJob(job), StreamId::Work(WorkId(job.0))]
}

/// What takes points for longer than a moment holds them under its own id, so a hold may be a tip's, a withdrawal's or a
/// job's; or a service's, which no stream knows.
fn of_hold(HoldId(id): HoldId) -> About {
    let mut streams = of_tip(TipId(id));
    streams.push(StreamId::Withdrawal(WithdrawalId(id)));
    streams.extend(of_job(JobId(id)));
    About { streams, on_account: Some(id), has_effects: false }
}

fn of_account(event: &points_account::Event) -> About {
    use points_account::Event as E;
    let streams = |streams| About { streams, ..About::default() };
    match event {
        E::Held { hold, .. } | E::Captured { hold, .. } | E::Released { hold, .. } => of_hold(*hold),
        E::Spent { spend: SpendId(id), .. } | E::Refunded { spend: SpendId(id), .. } => {
            About { on_account: Some(*id), ..About::default() }
        }
        E::Recharged { order, .. } => streams(vec![StreamId::RechargeOrder(*order)]),
        E::TipPaid { tip, .. } | E::TipReceived { tip, .. } => streams(of_tip(*tip)),
        E::PayoutStarted { withdrawal, .. } | E::PaidOut { withdrawal, .. } | E::PayoutReturned { withdrawal, .. } => {
            streams(vec![StreamId::Withdrawal(*withdrawal)])
        }
        E::CheckedIn { .. } | E::Earned { .. } | E::Expired { .. } | E::Adjusted { .. } => About::default(),
    }
}
