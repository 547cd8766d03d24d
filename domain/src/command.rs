//! What one request may change at once: streams of one shard, decided together and appended together.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    Event, LikeId, OrderId, Points, Policy, State, StreamId, Streams, UserId, WorkId, erasure, like, points_account,
    points_account::Action, recharge_order, reconciliation, tip, video_job, withdrawal, work,
};

/// One thing asked for one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Whose shard decides.
    pub user: UserId,
    /// The business time, fixed when the command arrived: deciding it again gives the same.
    pub at: DateTime<Utc>,
    /// What is asked.
    pub intent: Intent,
}

/// What can be asked. Its serialized form tells whether a retry asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Intent {
    /// Anything that concerns the account alone.
    Points(Action),
    /// A payment arrived: the order is marked as credited, and the account gets the points, or neither.
    Recharge {
        /// The payment.
        order: OrderId,
        /// How many points were bought.
        points: Points,
    },
    /// A like, or that it is taken back.
    Like {
        /// Of which work.
        work: WorkId,
        /// Which.
        command: like::Command,
        /// Whether the work was shown once and no longer is, as far as is known when the command arrives. Nothing that
        /// the client says.
        #[serde(skip)]
        taken_back: bool,
    },
    /// A step of a tip.
    Tip(tip::Step),
    /// A step of a withdrawal.
    Withdrawal(withdrawal::Step),
    /// A step of a video job.
    VideoJob(video_job::Step),
    /// A work is shown, or no longer.
    Work {
        /// Which.
        work: WorkId,
        /// What is asked.
        command: work::Command,
    },
    /// The user is forgotten.
    Erase(erasure::Command),
    /// A step of a reconciliation.
    Reconcile(reconciliation::Step),
}

/// Why a command was refused. Kept as JSON for as long as the command's key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// By the account.
    #[error(transparent)]
    Points(#[from] points_account::Refusal),
    /// By the order.
    #[error(transparent)]
    RechargeOrder(#[from] recharge_order::Refusal),
    /// By the tip.
    #[error(transparent)]
    Tip(#[from] tip::Refusal),
    /// By what the receiver's shard has said to the tip.
    #[error(transparent)]
    TipReceipt(#[from] tip::receipt::Refusal),
    /// By the withdrawal.
    #[error(transparent)]
    Withdrawal(#[from] withdrawal::Refusal),
    /// By what the user may still withdraw.
    #[error(transparent)]
    WithdrawalAllowance(#[from] withdrawal::allowance::Refusal),
    /// By the job.
    #[error(transparent)]
    VideoJob(#[from] video_job::Refusal),
    /// By how many jobs are in flight.
    #[error(transparent)]
    VideoSlots(#[from] video_job::slots::Refusal),
    /// By the work.
    #[error(transparent)]
    Work(#[from] work::Refusal),
    /// Since the user is forgotten, or cannot be now.
    #[error(transparent)]
    Erasure(#[from] erasure::Refusal),
    /// By the reconciliation.
    #[error(transparent)]
    Reconciliation(#[from] reconciliation::run::Refusal),
    /// By the exception.
    #[error(transparent)]
    ReconciliationException(#[from] reconciliation::exception::Refusal),
}

impl Command {
    /// The streams that the decision reads, and of which it may record events.
    pub fn streams(&self) -> Vec<StreamId> {
        match &self.intent {
            Intent::Points(_) => vec![StreamId::PointsAccount(self.user)],
            Intent::Recharge { order, .. } => {
                vec![StreamId::RechargeOrder(*order), StreamId::PointsAccount(self.user)]
            }
            Intent::Like { work, .. } => vec![StreamId::Like(LikeId { user: self.user, work: *work })],
            Intent::Tip(step) => step.streams(self.user),
            Intent::Withdrawal(step) => step.streams(self.user),
            Intent::VideoJob(step) => step.streams(self.user),
            Intent::Work { work, command } => {
                let read = match command {
                    work::Command::Publish { job, .. } => {
                        [Some(StreamId::Erasure(self.user)), job.map(StreamId::VideoJob)]
                    }
                    work::Command::Unpublish { .. } => [None, None],
                };
                [StreamId::Work(*work)].into_iter().chain(read.into_iter().flatten()).collect()
            }
            Intent::Reconcile(step) => step.streams(),
            Intent::Erase(_) => vec![
                StreamId::Erasure(self.user),
                StreamId::WithdrawalAllowance(self.user),
                StreamId::VideoSlots(self.user),
            ],
        }
    }

    /// What the command records, stream by stream. All of it is appended together, or none.
    ///
    /// # Errors
    /// [`Refusal`], and then nothing is recorded on any stream.
    pub fn decide(&self, streams: &impl Streams, policy: &Policy) -> Result<Vec<(StreamId, Event)>, Refusal> {
        let mut decision = Decision { at: self.at, streams, policy, changed: BTreeMap::new(), recorded: Vec::new() };
        match &self.intent {
            // The one that comes most often, and on one stream only: it needs no copy of the account.
            Intent::Points(action) => {
                let command = points_account::Command { at: self.at, action: action.clone() };
                let events = streams.points_account(self.user).decide(&command, &policy.points)?;
                let stream = StreamId::PointsAccount(self.user);
                return Ok(events.into_iter().map(|event| (stream, Event::PointsAccount(event))).collect());
            }
            Intent::Recharge { order, points } => {
                let credit = recharge_order::Command::Credit { user: self.user, points: *points };
                let credited = streams.recharge_order(*order).decide(&credit)?;
                if !credited.is_empty() {
                    decision.record(StreamId::RechargeOrder(*order), credited.into_iter().map(Event::RechargeOrder));
                    decision.on_account(self.user, Action::Recharge { order: *order, points: *points })?;
                }
            }
            Intent::Like { work, command, taken_back } => {
                let like = LikeId { user: self.user, work: *work };
                let events = streams.like(like).decide(*command);
                if *command == like::Command::Like && *taken_back && !events.is_empty() {
                    return Err(work::Refusal::NotPublished.into());
                }
                return Ok(events.into_iter().map(|event| (StreamId::Like(like), Event::Like(event))).collect());
            }
            Intent::Tip(step) => step.decide(self.user, &mut decision, policy)?,
            Intent::Withdrawal(step) => step.decide(self.user, &mut decision, policy)?,
            Intent::VideoJob(step) => step.decide(self.user, &mut decision, policy)?,
            Intent::Work { work, command } => {
                if let work::Command::Publish { job, .. } = command {
                    streams.erasure(self.user).allows_more()?;
                    // What is shown must have been made, by whoever shows it.
                    let made_by = |job| {
                        let job = streams.video_job(job);
                        job.order().filter(|_| job.output().is_some()).map(|order| order.user)
                    };
                    if job.is_some_and(|job| made_by(job) != Some(self.user)) {
                        return Err(work::Refusal::NothingMade.into());
                    }
                }
                let events = streams.work(*work).decide(command)?;
                decision.record(StreamId::Work(*work), events.into_iter().map(Event::Work));
            }
            Intent::Reconcile(step) => step.decide(self.user, &mut decision)?,
            Intent::Erase(command) => {
                let (allowance, slots) = (streams.withdrawal_allowance(self.user), streams.video_slots(self.user));
                let events = streams.erasure(self.user).decide(command, allowance, slots)?;
                decision.record(StreamId::Erasure(self.user), events.into_iter().map(Event::Erasure));
            }
        }
        Ok(decision.recorded)
    }
}

/// A decision over several streams in the making: the streams as they will be, and what is recorded so far.
pub(crate) struct Decision<'a, S> {
    at: DateTime<Utc>,
    streams: &'a S,
    policy: &'a Policy,
    changed: BTreeMap<StreamId, State>,
    recorded: Vec<(StreamId, Event)>,
}

impl<S: Streams> Streams for Decision<'_, S> {
    fn state(&self, stream: &StreamId) -> &State {
        self.changed.get(stream).unwrap_or_else(|| self.streams.state(stream))
    }
}

impl<S: Streams> Decision<'_, S> {
    /// The business time.
    pub(crate) const fn at(&self) -> DateTime<Utc> {
        self.at
    }

    /// Events of one stream, which what is decided next sees.
    pub(crate) fn record(&mut self, stream: StreamId, events: impl Iterator<Item = Event>) {
        for event in events {
            let state = self.changed.entry(stream).or_insert_with(|| self.streams.state(&stream).clone());
            state.apply(&event);
            self.recorded.push((stream, event));
        }
    }

    /// What a user's account makes of it.
    ///
    /// # Errors
    /// The account's refusal, and then nothing of it is recorded.
    pub(crate) fn on_account(&mut self, user: UserId, action: Action) -> Result<(), Refusal> {
        let command = points_account::Command { at: self.at, action };
        let events = self.points_account(user).decide(&command, &self.policy.points)?;
        self.record(StreamId::PointsAccount(user), events.into_iter().map(Event::PointsAccount));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use uuid::Uuid;

    use super::*;
    use crate::PointsPolicy;

    /// Panics on a stream that the command did not name: so every decision here also proves its `streams()`.
    struct Named(HashMap<StreamId, State>);

    impl Streams for Named {
        fn state(&self, stream: &StreamId) -> &State {
            &self.0[stream]
        }
    }

    fn decide(command: &Command, given: &[(StreamId, Event)]) -> Result<Vec<(StreamId, Event)>, Refusal> {
        let mut streams: HashMap<_, _> = command.streams().into_iter().map(|id| (id, id.empty())).collect();
        for (id, event) in given {
            streams.entry(*id).and_modify(|state| state.apply(event));
        }
        command.decide(&Named(streams), &Policy::default())
    }

    #[test]
    fn a_recharge_is_on_the_order_and_on_the_account_or_on_neither() {
        let (user, order) = (UserId(Uuid::from_u128(1)), OrderId(Uuid::from_u128(2)));
        let recharge = |points: i64| Command {
            user,
            at: DateTime::UNIX_EPOCH,
            intent: Intent::Recharge { order, points: points.try_into().unwrap() },
        };
        let first = decide(&recharge(50), &[]).unwrap();
        let names: Vec<_> = first.iter().map(|(id, event)| (id.aggregate_type(), event.event_type())).collect();
        assert_eq!(names, [("recharge_order", "credited"), ("points_account", "recharged")]);

        assert_eq!(decide(&recharge(50), &first), Ok(vec![]), "the same order again records nothing");
        assert_eq!(decide(&recharge(51), &first), Err(Refusal::RechargeOrder(recharge_order::Refusal::OrderMismatch)));
        let too_much =
            Err(Refusal::Points(points_account::Refusal::AmountOutOfRange { max: PointsPolicy::default().amount_max }));
        assert_eq!(decide(&recharge(2_000_000_000), &[]), too_much, "the account's refusal leaves the order alone");
    }

    #[test]
    fn nothing_that_would_be_sealed_is_kept_for_a_person_who_is_forgotten() {
        use crate::{JobId, Sealed, WithdrawalId};
        let user = UserId(Uuid::from_u128(1));
        let (id, sealed) = (Uuid::from_u128(2), || Sealed::try_from("AQ".to_owned()).unwrap());
        let ask = |intent| Command { user, at: "2026-01-10T12:00:00Z".parse().unwrap(), intent };
        let erase = |reference: &str| {
            let reference = reference.parse().unwrap();
            ask(Intent::Erase(erasure::Command { asked_by: erasure::AskedBy::Person, reference }))
        };
        let income: Points = 5_000.try_into().unwrap();
        let earn = ask(Intent::Points(Action::Earn {
            bucket: crate::Bucket::Income,
            points: income,
            reason: "task".parse().unwrap(),
        }));
        let mut given = decide(&earn, &[]).unwrap();
        let request = withdrawal::steps::What::Request { points: 500.try_into().unwrap(), destination: sealed() };
        let request = ask(Intent::Withdrawal(withdrawal::Step { withdrawal: WithdrawalId(id), what: request }));
        let submit = ask(Intent::VideoJob(video_job::Step {
            job: JobId(id),
            what: video_job::steps::What::Submit {
                kind: video_job::Kind::TextToVideo,
                seconds: 1,
                resolution: Some(video_job::Resolution::P480),
                voice: None,
                provider: None,
                prompt: sealed(),
                priority: 0,
            },
        }));
        let publish = ask(Intent::Work {
            work: WorkId(id),
            command: work::Command::Publish {
                creator: user,
                job: None,
                title: crate::Words::sealed(sealed()),
                visibility: work::Visibility::Public,
            },
        });
        let needing_the_key = [request, submit, publish];
        for command in &needing_the_key {
            let recorded = decide(command, &given).unwrap();
            let in_the_way = decide(&erase("t-1"), &recorded);
            assert_eq!(
                in_the_way.is_ok(),
                matches!(command.intent, Intent::Work { .. }),
                "{command:?}: {in_the_way:?}"
            );
            // The same asked again, by a retry whose key is forgotten, is what it was.
            let before: Vec<_> = given.iter().chain(&recorded).cloned().collect();
            let erased = decide(&erase("t-1"), &[]).unwrap();
            let all: Vec<_> = before.iter().chain(&erased).cloned().collect();
            let again = decide(command, &all);
            assert_eq!(again.is_ok(), !matches!(command.intent, Intent::Work { .. }), "{command:?}: {again:?}");
        }
        given.extend(decide(&erase("t-1"), &given).unwrap());
        assert_eq!(decide(&erase("t-2"), &given), Ok(vec![]), "a repeated erasure records nothing");
        for command in &needing_the_key {
            assert_eq!(decide(command, &given), Err(Refusal::Erasure(erasure::Refusal::Erased)), "{command:?}");
        }
        // What moves points and says nothing goes on.
        assert!(decide(&earn, &given).is_ok());
    }

    /// Refusals are kept beside their keys, so a node must read what another version has written.
    #[test]
    fn refusals_keep_their_json() {
        let insufficient = points_account::Refusal::InsufficientPoints {
            asked: 50.try_into().unwrap(),
            available: 7.try_into().unwrap(),
        };
        let refusals = [
            (insufficient.into(), r#"{"points":{"insufficient_points":{"asked":50,"available":7}}}"#),
            (points_account::Refusal::AccountFull.into(), r#"{"points":"account_full"}"#),
            (recharge_order::Refusal::OrderMismatch.into(), r#"{"recharge_order":"order_mismatch"}"#),
            (erasure::Refusal::Erased.into(), r#"{"erasure":"erased"}"#),
            (erasure::Refusal::JobsInFlight { jobs: 2 }.into(), r#"{"erasure":{"jobs_in_flight":{"jobs":2}}}"#),
        ];
        for (refusal, json) in refusals {
            let refusal: Refusal = refusal;
            assert_eq!(serde_json::to_string(&refusal).unwrap(), json);
            assert_eq!(serde_json::from_str::<Refusal>(json).unwrap(), refusal);
        }
    }
}
