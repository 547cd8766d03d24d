//! What each event does to the rows.

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use skyriff_domain::{
    Bucket, HoldId, Intent, OrderId, SpendId,
    points_account::{Action, Direction},
};
use uuid::Uuid;

use crate::{
    books::{assert_equal_to_the_fold, balance, caught_up, connect, lots, projector},
    log::{Log, earn, noon, points, some_user},
};

/// Account, amount, reference; in the order of the lines.
type Lines = Vec<(&'static str, i64, Option<String>)>;

/// A command and when it comes, the balance after it, and the events it records with their lines.
type Step = (TimeDelta, Intent, [i64; 6], Vec<(&'static str, Lines)>);

/// Position, line, user, account, amount, event type, reference, business time.
type Entry = (i64, i16, Option<Uuid>, String, i64, String, Option<String>, DateTime<Utc>);

#[tokio::test]
async fn every_event_moves_its_points_in_balances_lots_and_the_ledger() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    let user = some_user();
    let (order, spend, hold, late) =
        (OrderId(Uuid::new_v4()), SpendId(Uuid::new_v4()), HoldId(Uuid::new_v4()), HoldId(Uuid::new_v4()));
    let set_aside = |hold, amount| {
        Intent::Points(Action::Hold {
            hold,
            points: points(amount),
            lifetime_s: Some(60),
            reason: "video".parse().unwrap(),
        })
    };
    let adjust = |direction, amount| {
        let reason = "goodwill".to_owned().try_into().unwrap();
        Intent::Points(Action::Adjust { bucket: Bucket::Promo, direction, points: points(amount), reason })
    };
    let product = "video".parse().unwrap();
    let (spend_name, hold_name, late_name) = (Some(spend.to_string()), Some(hold.to_string()), Some(late.to_string()));
    let task = || Some("task".to_owned());
    let note = || Some("goodwill".to_owned());
    let over = TimeDelta::days(400);
    let table: Vec<Step> = vec![
        (
            TimeDelta::zero(),
            Intent::Points(Action::CheckIn),
            [10, 0, 0, 0, 0, 0],
            vec![(
                "checked_in",
                vec![
                    ("platform:issuance:check_in", -10, Some("2026-01-15".to_owned())),
                    ("user:available:promo", 10, Some("2026-01-15".to_owned())),
                ],
            )],
        ),
        (
            TimeDelta::zero(),
            Intent::Points(earn(Bucket::Income, 20)),
            [10, 0, 20, 0, 0, 0],
            vec![("earned", vec![("platform:issuance:earning", -20, task()), ("user:available:income", 20, task())])],
        ),
        (
            TimeDelta::zero(),
            Intent::Recharge { order, points: points(30) },
            [10, 30, 20, 0, 0, 0],
            vec![(
                "recharged",
                vec![
                    ("platform:issuance:recharge", -30, Some(order.to_string())),
                    ("user:available:paid", 30, Some(order.to_string())),
                ],
            )],
        ),
        (
            TimeDelta::zero(),
            Intent::Points(Action::Spend { spend, points: points(12), product }),
            [0, 28, 20, 0, 0, 0],
            vec![(
                "spent",
                vec![
                    ("user:available:promo", -10, spend_name.clone()),
                    ("user:available:paid", -2, spend_name.clone()),
                    ("platform:revenue:video", 12, spend_name.clone()),
                ],
            )],
        ),
        (
            TimeDelta::zero(),
            Intent::Points(Action::Refund { spend, points: Some(points(5)) }),
            [3, 30, 20, 0, 0, 0],
            vec![(
                "refunded",
                vec![
                    ("platform:revenue:video", -5, spend_name.clone()),
                    ("user:available:promo", 3, spend_name.clone()),
                    ("user:available:paid", 2, spend_name),
                ],
            )],
        ),
        (
            TimeDelta::zero(),
            set_aside(hold, 40),
            [0, 0, 13, 3, 30, 7],
            vec![(
                "held",
                vec![
                    ("user:available:promo", -3, hold_name.clone()),
                    ("user:available:paid", -30, hold_name.clone()),
                    ("user:available:income", -7, hold_name.clone()),
                    ("user:held:promo", 3, hold_name.clone()),
                    ("user:held:paid", 30, hold_name.clone()),
                    ("user:held:income", 7, hold_name.clone()),
                ],
            )],
        ),
        (
            TimeDelta::zero(),
            Intent::Points(Action::Capture { hold, points: Some(points(2)) }),
            [0, 0, 13, 1, 30, 7],
            vec![(
                "captured",
                vec![("user:held:promo", -2, hold_name.clone()), ("platform:revenue:video", 2, hold_name.clone())],
            )],
        ),
        (
            TimeDelta::zero(),
            Intent::Points(Action::Release { hold }),
            [1, 30, 20, 0, 0, 0],
            vec![(
                "released",
                vec![
                    ("user:held:promo", -1, hold_name.clone()),
                    ("user:held:paid", -30, hold_name.clone()),
                    ("user:held:income", -7, hold_name.clone()),
                    ("user:available:promo", 1, hold_name.clone()),
                    ("user:available:paid", 30, hold_name.clone()),
                    ("user:available:income", 7, hold_name),
                ],
            )],
        ),
        (
            TimeDelta::zero(),
            adjust(Direction::Credit, 6),
            [7, 30, 20, 0, 0, 0],
            vec![("adjusted", vec![("platform:issuance:adjustment", -6, note()), ("user:available:promo", 6, note())])],
        ),
        (
            TimeDelta::zero(),
            adjust(Direction::Debit, 2),
            [5, 30, 20, 0, 0, 0],
            vec![("adjusted", vec![("user:available:promo", -2, note()), ("platform:issuance:adjustment", 2, note())])],
        ),
        (
            TimeDelta::zero(),
            set_aside(late, 4),
            [1, 30, 20, 4, 0, 0],
            vec![(
                "held",
                vec![("user:available:promo", -4, late_name.clone()), ("user:held:promo", 4, late_name.clone())],
            )],
        ),
        (
            over,
            Intent::Points(Action::Expire),
            [0, 30, 20, 0, 0, 0],
            vec![
                ("released", vec![("user:held:promo", -4, late_name.clone()), ("user:available:promo", 4, late_name)]),
                ("expired", vec![("user:available:promo", -5, None), ("platform:expiry", 5, None)]),
            ],
        ),
    ];
    let mut expected = Vec::new();
    for (number, (later, intent, columns, entries)) in table.into_iter().enumerate() {
        let at = noon() + later;
        let end = log.append(user, at, intent).await;
        caught_up(&log, &mut reads).await;
        assert_eq!(balance(&mut reads, user).await, Some(columns.into()), "{number}");
        let midnight = Utc.with_ymd_and_hms(2027, 1, 16, 0, 0, 0).unwrap();
        let lot: Vec<_> = (columns[0] > 0).then_some((midnight, columns[0])).into_iter().collect();
        assert_eq!(lots(&mut reads, user).await, lot, "{number}");
        assert_equal_to_the_fold(&log, &mut reads).await;
        let first = end.position.0 + 1 - i64::try_from(entries.len()).unwrap();
        for (position, (event_type, lines)) in (first..).zip(entries) {
            for (line, (account, amount, reference)) in (1_i16..).zip(lines) {
                let whose = account.starts_with("user:").then_some(user.0);
                let event_type = event_type.to_owned();
                expected.push((position, line, whose, account.to_owned(), amount, event_type, reference, at));
            }
        }
    }
    let booked: Vec<Entry> = sqlx::query_as(
        "SELECT position, line, user_id, account, amount, event_type, reference, occurred_at
         FROM ledger_entries ORDER BY position, line",
    )
    .fetch_all(&mut reads)
    .await
    .unwrap();
    assert_eq!(booked, expected);
    projector.stop().await;
}

#[tokio::test]
async fn a_batch_that_goes_up_and_down_is_one_sum() {
    let mut log = Log::create().await;
    let user = some_user();
    // In one batch, since the projector starts only afterwards: lots that come and go, and a balance that ends at zero.
    for round in 0..50 {
        let at = noon() + TimeDelta::days(round);
        log.on_account(user, at, earn(Bucket::Promo, 7)).await;
        let spend = SpendId(Uuid::new_v4());
        log.on_account(user, at, Action::Spend { spend, points: points(7), product: "video".parse().unwrap() }).await;
    }
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    caught_up(&log, &mut reads).await;
    assert_eq!(balance(&mut reads, user).await, Some([0; 6].into()));
    assert_equal_to_the_fold(&log, &mut reads).await;
    projector.stop().await;
}
