//! Rules as tables: what was, when and what is asked, what is recorded. What always holds over the streams of several
//! users, as properties of whole commands.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use cqrs_es::test::TestFramework;
use proptest::{collection::vec, prelude::*, sample::select};
use uuid::Uuid;

use super::{receipt::TipReceipt, *};
use crate::{
    Bucket, HoldId, Intent, Policy, State, StreamId, Streams, TipId,
    ledger::{Account, Standing, postings},
    points::POINTS_MAX,
    points_account::{self, Action, Direction, Source},
};

fn user(number: u128) -> UserId {
    UserId(Uuid::from_u128(number))
}

fn tip(number: u128) -> TipId {
    TipId(Uuid::from_u128(number))
}

fn points(points: i64) -> Points {
    points.try_into().unwrap()
}

fn note(text: &str) -> Note {
    Note::try_from(text.to_owned()).unwrap()
}

/// From user 1 to user 2, of which the platform keeps 30 %.
fn terms(amount: i64) -> Terms {
    Terms { from: user(1), to: user(2), points: points(amount), share: points(amount * 3 / 10), work: None }
}

fn full() -> Note {
    note("full")
}

// One stream at a time.

#[test]
fn a_tip_is_offered_and_then_settled_or_returned_once() {
    let offer = || Command::Offer(terms(10));
    let give_back = || Command::Return { reason: full() };
    let offered = || Event::Offered(terms(10));
    let delivered = || Event::Delivered {};
    let returned = || Event::Returned { reason: full() };
    let table = [
        (vec![], offer(), Ok(vec![offered()])),
        (vec![], Command::Settle, Err(Refusal::NotOffered)),
        (vec![], give_back(), Err(Refusal::NotOffered)),
        (vec![offered()], offer(), Ok(vec![])),
        (vec![offered()], Command::Settle, Ok(vec![delivered()])),
        (vec![offered()], give_back(), Ok(vec![returned()])),
        (vec![offered(), delivered()], offer(), Ok(vec![])),
        (vec![offered(), delivered()], Command::Settle, Ok(vec![])),
        (vec![offered(), delivered()], give_back(), Err(Refusal::Ended)),
        (vec![offered(), returned()], offer(), Ok(vec![])),
        (vec![offered(), returned()], Command::Settle, Err(Refusal::Ended)),
        (vec![offered(), returned()], give_back(), Ok(vec![])),
        // For whatever reason it was returned.
        (vec![offered(), returned()], Command::Return { reason: note("other") }, Ok(vec![])),
    ];
    for (given, when, then) in table {
        let context = format!("{given:?} {when:?}");
        let result = TestFramework::<Tip>::with(TipPolicy::default()).given(given).when(when).inspect_result();
        assert_eq!(result, then, "{context}");
    }
}

#[test]
fn an_offer_is_to_somebody_else_within_limits_and_one_for_each_id() {
    let max = TipPolicy::default().points_max;
    let with = |change: fn(&mut Terms)| {
        let mut terms = terms(10);
        change(&mut terms);
        terms
    };
    let out_of_range = Err(Refusal::AmountOutOfRange { max });
    let new = [
        (with(|terms| terms.to = terms.from), Err(Refusal::ToOneself)),
        (with(|terms| terms.points = Points::ZERO), out_of_range.clone()),
        (with(|terms| terms.points = points(100_001)), out_of_range),
        (with(|terms| terms.points = points(1)), Ok(1)),
        (with(|terms| terms.points = points(100_000)), Ok(1)),
        (with(|terms| terms.work = Some(WorkId(Uuid::from_u128(9)))), Ok(1)),
    ];
    let policy = TipPolicy::default();
    for (terms, then) in new {
        let result = Tip::default().decide(&Command::Offer(terms.clone()), &policy).map(|events| events.len());
        assert_eq!(result, then, "{terms:?}");
    }
    let again = [
        (with(|terms| terms.from = user(3)), Err(Refusal::Mismatch)),
        (with(|terms| terms.to = user(3)), Err(Refusal::Mismatch)),
        (with(|terms| terms.points = points(11)), Err(Refusal::Mismatch)),
        (with(|terms| terms.work = Some(WorkId(Uuid::from_u128(9)))), Err(Refusal::Mismatch)),
        // What the platform keeps is as it was then, whatever the policy says by now.
        (with(|terms| terms.share = points(9)), Ok(0)),
    ];
    for (terms_again, then) in again {
        for tip in [Tip::Offered(terms(10)), Tip::Delivered(terms(10)), Tip::Returned(terms(10))] {
            let result = tip.decide(&Command::Offer(terms_again.clone()), &policy).map(|events| events.len());
            assert_eq!(result, then, "{tip:?} {terms_again:?}");
        }
    }
}

#[test]
fn a_receipt_says_yes_or_no_once_and_for_ever() {
    let receive = |amount, declined: Option<Note>| receipt::Command::Receive { terms: terms(amount), declined };
    let credited = || receipt::Event::Credited(terms(10));
    let declined = || receipt::Event::Declined { terms: terms(10), reason: full() };
    let table = [
        (vec![], receive(10, None), Ok(vec![credited()])),
        (vec![], receive(10, Some(full())), Ok(vec![declined()])),
        (vec![credited()], receive(10, None), Ok(vec![])),
        (vec![credited()], receive(10, Some(full())), Ok(vec![])),
        (vec![declined()], receive(10, None), Ok(vec![])),
        (vec![declined()], receive(10, Some(note("other"))), Ok(vec![])),
        (vec![credited()], receive(11, None), Err(receipt::Refusal::Mismatch)),
        (vec![declined()], receive(11, Some(full())), Err(receipt::Refusal::Mismatch)),
    ];
    for (given, when, then) in table {
        let context = format!("{given:?} {when:?}");
        let result = TestFramework::<TipReceipt>::with(()).given(given).when(when).inspect_result();
        assert_eq!(result, then, "{context}");
    }
    assert!(!TipReceipt::default().is_given());
    for (event, answer) in [(credited(), receipt::Answer::Credited), (declined(), receipt::Answer::Declined)] {
        let mut receipt = TipReceipt::default();
        receipt.apply(&event);
        assert!(receipt.is_given());
        assert_eq!(receipt.answer(), Some((&terms(10), answer)));
    }
}

#[test]
fn the_share_is_rounded_down() {
    let share =
        |permille, amount| TipPolicy { share_permille: permille, ..TipPolicy::default() }.share_of(points(amount));
    let table = [
        (300, 1, 0),
        (300, 3, 0),
        (300, 4, 1),
        (300, 10, 3),
        (300, 999, 299),
        (300, 1_001, 300),
        (0, 100_000, 0),
        (1, 999, 0),
        (1, 1_000, 1),
        (1_000, 7, 7),
        (999, 1, 0),
        // More than all of it is all of it.
        (u16::MAX, 7, 7),
        (1_000, POINTS_MAX, POINTS_MAX),
    ];
    for (permille, amount, kept) in table {
        assert_eq!(share(permille, amount), points(kept), "{permille} ‰ of {amount}");
    }
}

#[test]
fn stored_events_keep_their_shape() {
    let with_work = Terms { work: Some(WorkId(Uuid::from_u128(9))), ..terms(10) };
    let events = [
        crate::Event::Tip(Event::Offered(terms(10))),
        crate::Event::Tip(Event::Offered(with_work.clone())),
        crate::Event::Tip(Event::Delivered {}),
        crate::Event::Tip(Event::Returned { reason: full() }),
        crate::Event::TipReceipt(receipt::Event::Credited(terms(10))),
        crate::Event::TipReceipt(receipt::Event::Declined { terms: with_work, reason: full() }),
    ];
    let stored = r#"
{"offered":{"from":"00000000-0000-0000-0000-000000000001","to":"00000000-0000-0000-0000-000000000002","points":10,"share":3}}
{"offered":{"from":"00000000-0000-0000-0000-000000000001","to":"00000000-0000-0000-0000-000000000002","points":10,"share":3,"work":"00000000-0000-0000-0000-000000000009"}}
{"delivered":{}}
{"returned":{"reason":"full"}}
{"credited":{"from":"00000000-0000-0000-0000-000000000001","to":"00000000-0000-0000-0000-000000000002","points":10,"share":3}}
{"declined":{"terms":{"from":"00000000-0000-0000-0000-000000000001","to":"00000000-0000-0000-0000-000000000002","points":10,"share":3,"work":"00000000-0000-0000-0000-000000000009"},"reason":"full"}}
"#;
    let written = events.each_ref().map(|event| event.payload().unwrap());
    assert_eq!(written.join("\n"), stored.trim());
    for (event, line) in events.iter().zip(stored.trim().lines()) {
        let is_tip = matches!(event, crate::Event::Tip(_));
        let stream = if is_tip { StreamId::Tip(tip(1)) } else { StreamId::TipReceipt(tip(1)) };
        let read = crate::Event::decode(&stream, event.event_type(), event.event_version(), line);
        assert_eq!(&read.unwrap(), event);
    }
}

#[test]
fn stored_refusals_keep_their_shape() {
    let max = points(7);
    let table = [
        (Refusal::ToOneself, r#""to_oneself""#),
        (Refusal::AmountOutOfRange { max }, r#"{"amount_out_of_range":{"max":7}}"#),
        (
            Refusal::InsufficientPoints { asked: points(9), available: points(7) },
            r#"{"insufficient_points":{"asked":9,"available":7}}"#,
        ),
        (Refusal::Declined { reason: full() }, r#"{"declined":{"reason":"full"}}"#),
        (Refusal::Mismatch, r#""mismatch""#),
        (Refusal::NotOffered, r#""not_offered""#),
        (Refusal::Ended, r#""ended""#),
    ];
    for (refusal, stored) in table {
        let refusal = crate::Refusal::Tip(refusal);
        let stored = format!(r#"{{"tip":{stored}}}"#);
        assert_eq!(serde_json::to_string(&refusal).unwrap(), stored);
        assert_eq!(serde_json::from_str::<crate::Refusal>(&stored).unwrap(), refusal);
    }
    let refusal = crate::Refusal::TipReceipt(receipt::Refusal::Mismatch);
    assert_eq!(serde_json::to_string(&refusal).unwrap(), r#"{"tip_receipt":"mismatch"}"#);
}

// Whole commands, over all their streams.

type Recorded = Vec<(StreamId, crate::Event)>;

/// Every stream that anything was recorded on.
#[derive(Clone, Default)]
struct World(HashMap<StreamId, State>);

/// Panics on a stream that the command did not name: so every decision here also proves its `streams()`.
struct Named(HashMap<StreamId, State>);

impl Streams for Named {
    fn state(&self, stream: &StreamId) -> &State {
        &self.0[stream]
    }
}

fn start() -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

impl World {
    fn state(&self, stream: StreamId) -> State {
        self.0.get(&stream).cloned().unwrap_or_else(|| stream.empty())
    }

    fn act(
        &mut self,
        at: DateTime<Utc>,
        user: UserId,
        intent: Intent,
        policy: &Policy,
    ) -> Result<Recorded, crate::Refusal> {
        let command = crate::Command { user, at, intent };
        let streams = command.streams();
        let distinct: BTreeSet<_> = streams.iter().collect();
        assert_eq!(distinct.len(), streams.len(), "a stream is named once: {streams:?}");
        let named = Named(streams.into_iter().map(|stream| (stream, self.state(stream))).collect());
        let recorded = command.decide(&named, policy)?;
        for (stream, event) in &recorded {
            self.0.entry(*stream).or_insert_with(|| stream.empty()).apply(event);
        }
        Ok(recorded)
    }

    /// At the start, under the usual policy.
    fn step(&mut self, user: UserId, step: Step) -> Result<Recorded, crate::Refusal> {
        self.act(start(), user, Intent::Tip(step), &Policy::default())
    }

    fn give(&mut self, user: UserId, bucket: Bucket, amount: i64) {
        let action =
            Action::Adjust { bucket, direction: Direction::Credit, points: points(amount), reason: note("x").into() };
        let policy = Policy {
            points: crate::PointsPolicy { amount_max: points(POINTS_MAX), ..Default::default() },
            ..Default::default()
        };
        self.act(start(), user, Intent::Points(action), &policy).unwrap();
    }

    fn account(&self, user: UserId) -> points_account::PointsAccount {
        let State::PointsAccount(account) = self.state(StreamId::PointsAccount(user)) else { panic!("{user}") };
        account
    }

    /// Available promo, paid, income; held in all.
    fn has(&self, user: UserId) -> ([i64; 3], i64) {
        let account = self.account(user);
        (Bucket::ALL.map(|bucket| account.available().of(bucket).get()), account.held().total().get())
    }
}

fn offer(number: u128, to: u128, amount: i64, beside: bool) -> Step {
    Step::Offer { tip: tip(number), to: user(to), points: points(amount), work: None, beside }
}

fn receive(number: u128, amount: i64) -> Step {
    Step::Receive { tip: tip(number), terms: terms(amount) }
}

fn names(recorded: &Recorded) -> Vec<(&'static str, &'static str)> {
    recorded.iter().map(|(stream, event)| (stream.aggregate_type(), event.event_type())).collect()
}

#[test]
fn a_tip_beside_is_one_decision_on_all_four_streams_or_on_none() {
    let mut world = World::default();
    world.give(user(1), Bucket::Promo, 50);
    world.give(user(1), Bucket::Paid, 6);
    world.give(user(1), Bucket::Income, 5);
    let too_few = crate::Refusal::Tip(Refusal::InsufficientPoints { asked: points(12), available: points(11) });
    assert_eq!(world.step(user(1), offer(1, 2, 12, true)), Err(too_few.clone()));
    assert_eq!(too_few.to_string(), "12 points asked for, 11 can be given: promo points cannot");
    let recorded = world.step(user(1), offer(1, 2, 10, true)).unwrap();
    assert_eq!(
        names(&recorded),
        [
            ("tip", "offered"),
            ("points_account", "held"),
            ("points_account", "tip_received"),
            ("tip_receipt", "credited"),
            ("tip", "delivered"),
            ("points_account", "tip_paid"),
        ]
    );
    assert_eq!((world.has(user(1)), world.has(user(2))), (([50, 0, 1], 0), ([0, 0, 7], 0)), "paid first, then income");
    for beside in [true, false] {
        assert_eq!(world.step(user(1), offer(1, 2, 10, beside)), Ok(vec![]), "the same again records nothing");
        let mismatch = Err(crate::Refusal::Tip(Refusal::Mismatch));
        assert_eq!(world.step(user(1), offer(1, 2, 9, beside)), mismatch);
    }

    let before = world.clone();
    world.give(user(3), Bucket::Paid, POINTS_MAX);
    let Err(crate::Refusal::Tip(Refusal::Declined { reason })) = world.step(user(1), offer(2, 3, 1, true)) else {
        panic!("a full account takes no tip")
    };
    assert!(reason.as_str().contains("at most"), "{reason:?}");
    assert_eq!(world.has(user(1)), before.has(user(1)), "nothing is held for it");
    assert_eq!(world.step(user(1), offer(3, 1, 1, true)), Err(crate::Refusal::Tip(Refusal::ToOneself)));
    assert_eq!(world.step(user(1), offer(3, 1, 1, false)), Err(crate::Refusal::Tip(Refusal::ToOneself)));
}

#[test]
fn a_tip_in_steps_is_held_then_credited_then_paid_each_once() {
    let mut world = World::default();
    world.give(user(1), Bucket::Paid, 10);
    let step = |world: &mut World, who: u128, step: Step| names(&world.step(user(who), step).unwrap());
    assert_eq!(step(&mut world, 1, offer(1, 2, 10, false)), [("tip", "offered"), ("points_account", "held")]);
    assert_eq!((world.has(user(1)), world.has(user(2))), (([0; 3], 10), ([0; 3], 0)));
    // Nothing but the tip itself ends what is held for it.
    let hold = HoldId(tip(1).0);
    for action in [Action::Release { hold }, Action::Capture { hold, points: None }] {
        let ended = world.act(start(), user(1), Intent::Points(action), &Policy::default());
        assert_eq!(ended, Err(crate::Refusal::Points(points_account::Refusal::HoldNotFound(hold))));
    }
    let received = [("points_account", "tip_received"), ("tip_receipt", "credited")];
    assert_eq!(step(&mut world, 2, receive(1, 10)), received);
    assert_eq!(step(&mut world, 2, receive(1, 10)), []);
    assert_eq!((world.has(user(1)), world.has(user(2))), (([0; 3], 10), ([0, 0, 7], 0)));
    assert_eq!(
        step(&mut world, 1, Step::Settle { tip: tip(1) }),
        [("tip", "delivered"), ("points_account", "tip_paid")]
    );
    for _ in 0..2 {
        assert_eq!(step(&mut world, 1, Step::Settle { tip: tip(1) }), []);
        assert_eq!(step(&mut world, 2, receive(1, 10)), []);
        assert_eq!(step(&mut world, 1, offer(1, 2, 10, false)), []);
    }
    assert_eq!((world.has(user(1)), world.has(user(2))), (([0; 3], 0), ([0, 0, 7], 0)));
    let other = world.step(user(2), receive(1, 9));
    assert_eq!(other, Err(crate::Refusal::TipReceipt(receipt::Refusal::Mismatch)));
    let late = world.step(user(1), Step::Return { tip: tip(1), reason: full() });
    assert_eq!(late, Err(crate::Refusal::Tip(Refusal::Ended)));
}

#[test]
fn a_tip_that_the_receiver_cannot_have_is_declined_for_ever_and_returned() {
    let mut world = World::default();
    world.give(user(1), Bucket::Paid, 10);
    world.give(user(2), Bucket::Income, POINTS_MAX);
    world.step(user(1), offer(1, 2, 10, false)).unwrap();
    let declined = world.step(user(2), receive(1, 10)).unwrap();
    let [(_, crate::Event::TipReceipt(receipt::Event::Declined { terms: about, reason }))] = declined.as_slice() else {
        panic!("{declined:?}")
    };
    assert_eq!(about, &terms(10));
    // There is room by now; what was said stays said, since the sender's points may have gone back on it.
    let spend =
        Action::Spend { spend: crate::SpendId(Uuid::from_u128(1)), points: points(50), product: crate::Label::of("x") };
    world.act(start(), user(2), Intent::Points(spend), &Policy::default()).unwrap();
    assert_eq!(world.step(user(2), receive(1, 10)), Ok(vec![]));
    let back = Step::Return { tip: tip(1), reason: reason.clone() };
    let returned = world.step(user(1), back.clone()).unwrap();
    assert_eq!(names(&returned), [("tip", "returned"), ("points_account", "released")]);
    assert_eq!(world.step(user(1), back), Ok(vec![]));
    assert_eq!((world.has(user(1)), world.has(user(2))), (([0, 10, 0], 0), ([0, 0, POINTS_MAX - 50], 0)));
    assert_eq!(world.step(user(1), Step::Settle { tip: tip(1) }), Err(crate::Refusal::Tip(Refusal::Ended)));
}

#[test]
fn a_step_of_a_tip_that_was_never_offered_is_refused() {
    let mut world = World::default();
    for step in [Step::Settle { tip: tip(1) }, Step::Return { tip: tip(1), reason: full() }] {
        assert_eq!(world.step(user(1), step), Err(crate::Refusal::Tip(Refusal::NotOffered)));
    }
}

#[test]
fn an_id_that_is_held_for_something_else_is_refused() {
    let mut world = World::default();
    world.give(user(1), Bucket::Paid, 10);
    let hold = HoldId(tip(1).0);
    let reserve = Action::Reserve { hold, points: points(1), from: Source::Any, purpose: crate::Label::of("x") };
    world.act(start(), user(1), Intent::Points(reserve), &Policy::default()).unwrap();
    let refused = Err(crate::Refusal::Points(points_account::Refusal::HoldExists(hold)));
    assert_eq!(world.step(user(1), offer(1, 2, 1, false)), refused);
    assert_eq!(world.step(user(1), offer(1, 2, 1, true)), refused);
}

/// What happens in a world of three users, of whom the first two share a shard.
#[derive(Clone, Debug)]
enum Deed {
    Give(u128, Bucket, i64),
    Spend(u128, i64),
    Offer {
        number: u128,
        from: u128,
        to: u128,
        amount: i64,
    },
    /// What the process does about one of the events so far: any of them, however often.
    React(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    let user = || 1..=3_u128;
    // Mostly small, and now and then as much as fills an account.
    let amount = || prop_oneof![30 => 0..40_i64, 1 => POINTS_MAX - 60..=POINTS_MAX];
    prop_oneof![
        3 => (user(), select(Bucket::ALL.to_vec()), amount()).prop_map(|(user, bucket, amount)| Deed::Give(user, bucket, amount)),
        2 => (user(), amount()).prop_map(|(user, amount)| Deed::Spend(user, amount)),
        4 => (0..6_u128, user(), user(), amount())
            .prop_map(|(number, from, to, amount)| Deed::Offer { number, from, to, amount }),
        6 => any::<usize>().prop_map(Deed::React),
    ]
}

fn is_beside(one: UserId, other: UserId) -> bool {
    (one == user(3)) == (other == user(3))
}

/// The step that an event asks for, as the process has it: only across shards.
fn caused(stream: &StreamId, event: &crate::Event) -> Option<(UserId, Step)> {
    let (StreamId::Tip(tip) | StreamId::TipReceipt(tip)) = *stream else { return None };
    let (terms, step) = if let crate::Event::Tip(Event::Offered(terms)) = event {
        (terms, (terms.to, Step::Receive { tip, terms: terms.clone() }))
    } else if let crate::Event::TipReceipt(receipt::Event::Credited(terms)) = event {
        (terms, (terms.from, Step::Settle { tip }))
    } else if let crate::Event::TipReceipt(receipt::Event::Declined { terms, reason }) = event {
        (terms, (terms.from, Step::Return { tip, reason: reason.clone() }))
    } else {
        return None;
    };
    (!is_beside(terms.from, terms.to)).then_some(step)
}

#[derive(Default)]
struct Books {
    world: World,
    balances: BTreeMap<Account, i64>,
    log: Recorded,
    policy: Policy,
}

impl Books {
    fn act(&mut self, at: DateTime<Utc>, user: UserId, intent: Intent) -> Result<Recorded, crate::Refusal> {
        let recorded = self.world.act(at, user, intent, &self.policy)?;
        for (stream, event) in &recorded {
            let entry = postings(stream, event);
            assert_eq!(entry.iter().map(|posting| posting.amount).sum::<i64>(), 0, "{event:?}");
            for posting in entry {
                *self.balances.entry(posting.account).or_default() += posting.amount;
            }
        }
        self.log.extend(recorded.iter().cloned());
        Ok(recorded)
    }

    fn on(&self, account: &Account) -> i64 {
        self.balances.get(account).copied().unwrap_or_default()
    }

    /// Every tip that was offered, and whether its receiver has been credited.
    fn tips(&self) -> Vec<(TipId, Tip, bool)> {
        let credited: BTreeSet<_> = self
            .log
            .iter()
            .filter(|(_, event)| matches!(event, crate::Event::TipReceipt(receipt::Event::Credited(_))))
            .map(|(stream, _)| stream.aggregate_id())
            .collect();
        let tips = self.world.0.iter().filter_map(|(stream, state)| match (stream, state) {
            (StreamId::Tip(id), State::Tip(tip)) => Some((*id, tip.clone(), credited.contains(&id.to_string()))),
            _ => None,
        });
        tips.collect()
    }

    /// What must hold after every command.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut in_flight = 0;
        let mut shares = 0;
        for (id, tip, credited) in self.tips() {
            let terms = tip.terms().unwrap();
            let held = self.world.account(terms.from).holds().get(&HoldId(id.0)).map(|hold| hold.left.total());
            prop_assert_eq!(held, matches!(tip, Tip::Offered(_)).then_some(terms.points));
            prop_assert_eq!(terms.share, self.policy.tips.share_of(terms.points));
            match tip {
                Tip::Nothing => prop_assert!(false, "an empty stream is no stream"),
                Tip::Offered(_) if credited => in_flight += terms.points.get(),
                Tip::Offered(_) => {}
                Tip::Delivered(_) => prop_assert!(credited),
                Tip::Returned(_) => prop_assert!(!credited),
            }
            if credited {
                shares += terms.share.get();
            }
        }
        prop_assert_eq!(self.on(&Account::Transit), -in_flight);
        prop_assert_eq!(self.on(&Account::TipShare), shares);
        prop_assert_eq!(self.balances.values().sum::<i64>(), 0);
        for number in 1..=3 {
            let (user, account) = (user(number), self.world.account(user(number)));
            for (standing, purse) in [(Standing::Available, account.available()), (Standing::Held, &account.held())] {
                for bucket in Bucket::ALL {
                    let booked = self.on(&Account::User { user, standing, bucket });
                    prop_assert_eq!(booked, purse.of(bucket).get());
                }
            }
            prop_assert!(account.available().total().get() + account.held().total().get() <= POINTS_MAX);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever is asked in whatever order, however often: nothing is made, lost or paid twice, and when all that was
    /// asked of the process is done, nothing is on its way.
    #[test]
    fn tips_move_points_and_make_none(deeds in vec((0..30_i64, deed()), 1..80), share_permille in 0..=1_000_u16) {
        let mut books = Books::default();
        books.policy.points.amount_max = points(POINTS_MAX);
        books.policy.tips = TipPolicy { share_permille, points_max: points(POINTS_MAX) };
        let mut at = start();
        for (days, deed) in deeds {
            at += TimeDelta::days(days);
            let (who, intent) = match deed {
                Deed::Give(who, bucket, amount) => (user(who), Intent::Points(Action::Adjust {
                    bucket, direction: Direction::Credit, points: points(amount), reason: note("x").into(),
                })),
                Deed::Spend(who, amount) => (user(who), Intent::Points(Action::Spend {
                    spend: crate::SpendId(Uuid::from_u128(u128::try_from(books.log.len()).unwrap())),
                    points: points(amount), product: crate::Label::of("x"),
                })),
                Deed::Offer { number, from, to, amount } => {
                    let (from, to) = (user(from), user(to));
                    let beside = is_beside(from, to);
                    let step = Step::Offer { tip: tip(number), to, points: points(amount), work: None, beside };
                    (from, Intent::Tip(step))
                }
                Deed::React(which) => {
                    let steps: Vec<_> = books.log.iter().filter_map(|(stream, event)| caused(stream, event)).collect();
                    let Some((who, step)) = steps.get(which % steps.len().max(1)).cloned() else { continue };
                    let before = books.world.has(who);
                    let recorded = books.act(at, who, Intent::Tip(step.clone()));
                    prop_assert!(recorded.is_ok(), "the process is never refused: {step:?} {recorded:?}");
                    if recorded.unwrap().is_empty() {
                        prop_assert_eq!(books.world.has(who), before);
                    }
                    books.check()?;
                    continue;
                }
            };
            if books.act(at, who, intent.clone()).is_ok() && let Intent::Tip(_) = &intent {
                prop_assert_eq!(books.act(at, who, intent), Ok(vec![]), "the same again records nothing");
            }
            books.check()?;
        }
        // The process goes on until nothing is left to do.
        let mut done = 0;
        while done < books.log.len() {
            let (stream, event) = books.log[done].clone();
            if let Some((who, step)) = caused(&stream, &event) {
                prop_assert!(books.act(at, who, Intent::Tip(step)).is_ok());
            }
            done += 1;
        }
        books.check()?;
        prop_assert_eq!(books.on(&Account::Transit), 0);
        for (id, tip, _) in books.tips() {
            prop_assert!(!matches!(tip, Tip::Offered(_)), "{id} is still on its way");
        }
    }
}
