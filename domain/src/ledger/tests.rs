use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::{JobId, OrderId, recharge_order};

const USER: UserId = UserId(Uuid::from_u128(7));

#[test]
fn every_event_moves_points_between_two_sides_of_the_books() {
    let id = Uuid::nil();
    let later = "2026-02-01T00:00:00Z";
    let mixed = json!({ "promo": { "2026-01-02T00:00:00Z": 4, "2026-01-03T00:00:00Z": 1 }, "income": 2 });
    let lots = json!({ "promo": { "2026-01-02T00:00:00Z": 4, "2026-01-03T00:00:00Z": 1 } });
    let (income, paid) = (json!({ "income": 2 }), json!({ "paid": 3 }));

    let table: Vec<(Value, &[(&str, i64)])> = vec![
        (
            json!({ "checked_in": { "day": "2026-01-01", "days_in_a_row": 1, "points": 10, "expires_at": later } }),
            &[("platform:issuance:check_in", -10), ("user:available:promo", 10)],
        ),
        (
            json!({ "earned": { "credited": lots, "reason": "task" } }),
            &[("platform:issuance:earning", -5), ("user:available:promo", 5)],
        ),
        (
            json!({ "earned": { "credited": income, "reason": "task" } }),
            &[("platform:issuance:earning", -2), ("user:available:income", 2)],
        ),
        (
            json!({ "recharged": { "order": id, "points": 50 } }),
            &[("platform:issuance:recharge", -50), ("user:available:paid", 50)],
        ),
        (
            json!({ "spent": { "spend": id, "taken": mixed, "product": "video", "refundable_until": later, "revenue": "video" } }),
            &[("user:available:promo", -5), ("user:available:income", -2), ("platform:revenue:video", 7)],
        ),
        // From before revenue was kept by product.
        (
            json!({ "spent": { "spend": id, "taken": mixed, "product": "video", "refundable_until": later } }),
            &[("user:available:promo", -5), ("user:available:income", -2), ("platform:revenue", 7)],
        ),
        (
            json!({ "held": { "hold": id, "taken": mixed, "reason": "render", "expires_at": later } }),
            &[
                ("user:available:promo", -5),
                ("user:available:income", -2),
                ("user:held:promo", 5),
                ("user:held:income", 2),
            ],
        ),
        (
            json!({ "captured": { "hold": id, "taken": mixed, "revenue": "text_to_video" } }),
            &[("user:held:promo", -5), ("user:held:income", -2), ("platform:revenue:text_to_video", 7)],
        ),
        (
            json!({ "captured": { "hold": id, "taken": mixed } }),
            &[("user:held:promo", -5), ("user:held:income", -2), ("platform:revenue", 7)],
        ),
        (
            json!({ "released": { "hold": id, "returned": paid, "cause": "requested" } }),
            &[("user:held:paid", -3), ("user:available:paid", 3)],
        ),
        (
            json!({ "released": { "hold": id, "returned": lots, "cause": "expired" } }),
            &[("user:held:promo", -5), ("user:available:promo", 5)],
        ),
        (
            json!({ "refunded": { "spend": id, "returned": mixed, "revenue": "video" } }),
            &[("platform:revenue:video", -7), ("user:available:promo", 5), ("user:available:income", 2)],
        ),
        (
            json!({ "refunded": { "spend": id, "returned": mixed } }),
            &[("platform:revenue", -7), ("user:available:promo", 5), ("user:available:income", 2)],
        ),
        (
            json!({ "payout_started": { "withdrawal": id, "taken": income } }),
            &[("user:held:income", -2), ("platform:payouts:pending", 2)],
        ),
        (
            json!({ "paid_out": { "withdrawal": id, "points": 9, "fee": 1 } }),
            &[("platform:payouts:pending", -10), ("platform:payouts:paid", 9), ("platform:withdrawal_fee", 1)],
        ),
        (
            json!({ "payout_returned": { "withdrawal": id, "returned": income } }),
            &[("platform:payouts:pending", -2), ("user:available:income", 2)],
        ),
        (json!({ "expired": { "lots": lots } }), &[("user:available:promo", -5), ("platform:expiry", 5)]),
        (
            json!({ "adjusted": { "direction": "credit", "moved": paid, "reason": "goodwill" } }),
            &[("platform:issuance:adjustment", -3), ("user:available:paid", 3)],
        ),
        (
            json!({ "adjusted": { "direction": "debit", "moved": income, "reason": "mistake" } }),
            &[("user:available:income", -2), ("platform:issuance:adjustment", 2)],
        ),
    ];
    for (stored, then) in table {
        let event = Event::PointsAccount(serde_json::from_value(stored).unwrap());
        let entry = postings(&StreamId::PointsAccount(USER), &event);
        let posted: Vec<_> = entry.iter().map(|posting| (posting.account.to_string(), posting.amount)).collect();
        let then: Vec<_> = then.iter().map(|(account, amount)| ((*account).to_owned(), *amount)).collect();
        assert_eq!(posted, then, "{event:?}");
        assert_eq!(entry.iter().map(|posting| posting.amount).sum::<i64>(), 0, "{event:?}");
        for Posting { account, .. } in entry {
            assert_eq!(account.user(), account.to_string().starts_with("user:").then_some(USER));
        }
    }
}

#[test]
fn what_providers_want_is_owed_to_them_and_is_no_points() {
    let cost = |micros: u64| json!({ "micros": micros, "currency": "usd" });
    let failed =
        |micros| json!({ "failed": { "attempt": 1, "reason": "broken", "retryable": false, "cost": cost(micros) } });
    let posted = |stored: Value| {
        let event = Event::VideoJob(serde_json::from_value(stored).unwrap());
        postings(&StreamId::VideoJob(JobId(Uuid::nil())), &event)
    };
    let entry = posted(failed(250_000));
    let told: Vec<_> = entry.iter().map(|posting| (posting.account.to_string(), posting.amount)).collect();
    let expected = [("platform:provider_payable:usd", -250_000), ("platform:provider_cost:usd", 250_000)];
    assert_eq!(told, expected.map(|(account, amount)| (account.to_owned(), amount)));
    assert!(entry.iter().all(|posting| posting.account.unit().to_string() == "millionths of usd"));
    assert_eq!(posted(failed(0)), []);
    assert_eq!(posted(json!({ "cancelled": {} })), []);
    // More than an account can hold is still the same on both sides.
    assert_eq!(posted(failed(u64::MAX)).iter().map(|posting| i128::from(posting.amount)).sum::<i128>(), 0);
}

#[test]
fn an_order_moves_nothing_and_nor_does_an_event_of_another_stream() {
    let points = Points::try_from(50).unwrap();
    let order = StreamId::RechargeOrder(OrderId(Uuid::nil()));
    let credited = Event::RechargeOrder(recharge_order::Event::Credited { user: USER, points });
    let recharged = Event::PointsAccount(points_account::Event::Recharged { order: OrderId(Uuid::nil()), points });
    for (stream, event) in [(order, &credited), (order, &recharged), (StreamId::PointsAccount(USER), &credited)] {
        assert_eq!(postings(&stream, event), []);
    }
}
