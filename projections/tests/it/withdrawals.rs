//! Withdrawals as rows, and what is known of whoever asks for them.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use skyriff_domain::{
    Bucket, Intent, UserId, WithdrawalId,
    points_account::{Action, Direction},
    withdrawal::{Outcome, Step, What},
};
use skyriff_follow::Follower;
use skyriff_projections::Projection;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    books::{LONG, caught_up, connect, projector},
    log::{Log, earn, noon, points, some_user},
};

const REVIEWER: UserId = UserId(Uuid::from_u128(1));
const OTHER: UserId = UserId(Uuid::from_u128(2));

fn request(amount: i64) -> What {
    What::Request { points: points(amount), destination: "c2VhbGVk".to_owned().try_into().unwrap() }
}
fn approve(reviewer: UserId) -> What {
    What::Approve { reviewer }
}
fn reject() -> What {
    What::Reject { reviewer: REVIEWER, reason: "odd".to_owned().try_into().unwrap() }
}
fn start() -> What {
    What::StartPayout { provider: "local".parse().unwrap() }
}
fn settle() -> What {
    What::Settle { reference: "po_1".to_owned().try_into().unwrap() }
}
fn fail() -> What {
    What::Fail { reason: "closed".to_owned().try_into().unwrap() }
}
fn need_attention() -> What {
    What::NeedAttention { reason: "lost".to_owned().try_into().unwrap() }
}
fn resolve() -> What {
    What::Resolve { operator: OTHER, outcome: Outcome::Paid { reference: "po_2".to_owned().try_into().unwrap() } }
}

/// The steps of one withdrawal, one a minute.
async fn steps(log: &mut Log, user: UserId, at: DateTime<Utc>, steps: Vec<What>) -> WithdrawalId {
    let withdrawal = WithdrawalId(Uuid::new_v4());
    for (minute, what) in (0..).zip(steps) {
        log.append(user, at + TimeDelta::minutes(minute), Intent::Withdrawal(Step { withdrawal, what })).await;
    }
    withdrawal
}

async fn row(reads: &mut PgConnection, withdrawal: WithdrawalId) -> Value {
    let sql = "SELECT to_jsonb(w) - '{withdrawal_id,user_id,shard,requested_position,position}'::text[]
               FROM withdrawals w WHERE withdrawal_id = $1";
    sqlx::query_scalar(sql).bind(withdrawal.0).fetch_one(reads).await.unwrap()
}

async fn facts(reads: &mut PgConnection, user: UserId) -> Value {
    let sql = "SELECT jsonb_strip_nulls(to_jsonb(r)) - '{user_id,shard}'::text[] FROM risk_facts r WHERE user_id = $1";
    sqlx::query_scalar(sql).bind(user.0).fetch_one(reads).await.unwrap()
}

#[tokio::test]
async fn a_row_says_what_has_become_of_each_withdrawal() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    // What is asked, what the row says beside what every row says, and how many minutes after the request it last changed.
    let table: Vec<(Vec<What>, Value, i64)> = vec![
        (
            vec![request(999)],
            json!({"status": "approved", "points": 999, "fee": 9, "minor": 990, "reviews_needed": 0}),
            0,
        ),
        (vec![request(1_000)], json!({"status": "under_review"}), 0),
        (vec![request(1_000), approve(OTHER)], json!({"status": "approved", "approved_by": [OTHER]}), 1),
        (
            vec![request(20_000), approve(OTHER)],
            json!({"status": "under_review", "points": 20_000, "fee": 200, "minor": 19_800, "reviews_needed": 2,
                   "approved_by": [OTHER]}),
            1,
        ),
        (
            vec![request(20_000), approve(OTHER), approve(REVIEWER)],
            json!({"status": "approved", "points": 20_000, "fee": 200, "minor": 19_800, "reviews_needed": 2,
                   "approved_by": [OTHER, REVIEWER]}),
            2,
        ),
        (vec![request(1_000), reject()], json!({"status": "rejected", "rejected_by": REVIEWER, "reason": "odd"}), 1),
        (vec![request(1_000), What::Cancel, What::Cancel], json!({"status": "cancelled"}), 1),
        (
            vec![request(1_000), approve(OTHER), start()],
            json!({"status": "paying", "approved_by": [OTHER], "provider": "local"}),
            2,
        ),
        (
            vec![request(1_000), approve(OTHER), start(), settle()],
            json!({"status": "paid", "approved_by": [OTHER], "provider": "local", "reference": "po_1"}),
            3,
        ),
        (
            vec![request(1_000), approve(OTHER), start(), fail()],
            json!({"status": "failed", "approved_by": [OTHER], "provider": "local", "reason": "closed"}),
            3,
        ),
        (
            vec![request(1_000), approve(OTHER), start(), need_attention()],
            json!({"status": "needs_attention", "approved_by": [OTHER], "provider": "local", "reason": "lost"}),
            3,
        ),
        (
            vec![request(1_000), approve(OTHER), start(), need_attention(), resolve()],
            json!({"status": "paid", "approved_by": [OTHER], "provider": "local", "reference": "po_2"}),
            4,
        ),
    ];
    let mut expected = Vec::new();
    for (what, differs, minutes) in table {
        let user = some_user();
        log.earn(user, 20_000).await;
        let withdrawal = steps(&mut log, user, noon(), what).await;
        let mut row = json!({
            "points": 1_000, "fee": 10, "minor": 990, "currency": "cny", "destination": "c2VhbGVk",
            "reviews_needed": 1, "approved_by": [], "rejected_by": null, "reason": null, "provider": null,
            "reference": null, "requested_at": noon(), "updated_at": noon() + TimeDelta::minutes(minutes),
        });
        row.as_object_mut().unwrap().extend(differs.as_object().unwrap().clone());
        expected.push((withdrawal, row));
    }
    caught_up(&log, &mut reads).await;
    for (withdrawal, expected) in expected {
        let mut found = row(&mut reads, withdrawal).await;
        for time in ["requested_at", "updated_at"] {
            let text = found[time].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
            found[time] = json!(text);
        }
        assert_eq!(found, expected);
    }
    projector.stop().await;
}

#[tokio::test]
async fn facts_add_up_where_income_came_from_and_how_withdrawals_ended() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let projector = projector(&log);
    let user = some_user();
    let adjust = |direction, amount| {
        let reason = "goodwill".to_owned().try_into().unwrap();
        Action::Adjust { bucket: Bucket::Income, direction, points: points(amount), reason }
    };
    let day = TimeDelta::days(1);
    log.on_account(user, noon(), Action::CheckIn).await;
    caught_up(&log, &mut reads).await;
    let nothing = json!({
        "first_seen_at": noon(), "earned_points": 0, "tips_points": 0, "adjusted_points": 0, "paid_count": 0, "paid_points": 0,
        "failed_count": 0, "failed_points": 0, "rejected_count": 0, "rejected_points": 0, "cancelled_count": 0,
        "cancelled_points": 0,
    });
    let with_time = |mut facts: Value| {
        facts["first_seen_at"] = json!(facts["first_seen_at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap());
        facts
    };
    assert_eq!(with_time(facts(&mut reads, user).await), nothing);

    // What a service says happened earlier makes the account older; what is given, bought or comes back is no new income.
    log.on_account(user, noon() - day, earn(Bucket::Income, 9_000)).await;
    log.on_account(user, noon(), earn(Bucket::Promo, 50)).await;
    log.on_account(user, noon(), adjust(Direction::Credit, 300)).await;
    log.on_account(user, noon(), adjust(Direction::Debit, 500)).await;
    let tip = skyriff_domain::TipId(Uuid::new_v4());
    let received = Action::ReceiveTip { tip, from: some_user(), income: points(70), share: points(30) };
    log.on_account(user, noon(), received).await;
    let ends = [
        vec![request(1_000), What::Cancel],
        vec![request(1_100), reject()],
        vec![request(1_200), reject()],
        vec![request(1_300), approve(OTHER), start(), fail()],
        vec![request(1_400), approve(OTHER), start(), settle()],
        vec![request(1_500), approve(OTHER), start(), need_attention(), resolve()],
        vec![request(100)],
    ];
    for end in ends {
        steps(&mut log, user, noon(), end).await;
    }
    caught_up(&log, &mut reads).await;
    let expected = json!({
        "first_seen_at": noon() - day, "earned_points": 9_000, "tips_points": 70, "adjusted_points": -200,
        "paid_count": 2, "paid_points": 2_900, "failed_count": 1, "failed_points": 1_300, "rejected_count": 2,
        "rejected_points": 2_300, "cancelled_count": 1, "cancelled_points": 1_000,
    });
    assert_eq!(with_time(facts(&mut reads, user).await), expected);
    projector.stop().await;
}

async fn everything(reads: &mut PgConnection) -> (i64, Value, Value) {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM withdrawals), (SELECT json_agg(w ORDER BY withdrawal_id) FROM withdrawals w),
                (SELECT json_agg(r ORDER BY user_id) FROM risk_facts r)",
    )
    .fetch_one(reads)
    .await
    .unwrap()
}

#[tokio::test]
async fn several_projectors_count_once_and_a_rebuild_gives_the_same() {
    let mut log = Log::create().await;
    let mut reads = connect(&log.databases).await;
    let users: Vec<_> = (0..12).map(|_| some_user()).collect();
    let ends = [
        vec![request(1_000), What::Cancel],
        vec![request(1_100), reject()],
        vec![request(1_300), approve(OTHER), start(), fail()],
        vec![request(1_400), approve(OTHER), start(), settle()],
    ];
    let projectors: Vec<_> = (0..3).map(|_| projector(&log)).collect();
    for round in 0..8 {
        for (number, user) in users.iter().enumerate() {
            log.earn(*user, 2_000).await;
            steps(
                &mut log,
                *user,
                noon() + TimeDelta::days(round),
                ends[(number + usize::try_from(round).unwrap()) % 4].clone(),
            )
            .await;
        }
    }
    caught_up(&log, &mut reads).await;
    for projector in projectors {
        tokio::time::timeout(LONG, projector.stop()).await.unwrap();
    }
    let live = everything(&mut reads).await;
    assert_eq!(live.0, 96);
    // Each user had each end twice.
    for user in &users {
        let facts = facts(&mut reads, *user).await;
        let counts =
            ["paid_count", "failed_count", "rejected_count", "cancelled_count", "earned_points", "paid_points"];
        assert_eq!(counts.map(|count| facts[count].as_i64().unwrap()), [2, 2, 2, 2, 16_000, 2_800]);
    }

    for statement in ["TRUNCATE withdrawals, risk_facts", "DELETE FROM checkpoints WHERE projection = 'withdrawals'"] {
        sqlx::query(statement).execute(&mut reads).await.unwrap();
    }
    let again = projector(&log);
    caught_up(&log, &mut reads).await;
    assert_eq!(everything(&mut reads).await, live);
    again.stop().await;

    // A batch may end anywhere, also between the events of one append.
    sqlx::query("TRUNCATE withdrawals, risk_facts").execute(&mut reads).await.unwrap();
    for event in log.events().await {
        Projection::Withdrawals.apply(&[event], &mut reads).await.unwrap();
    }
    assert_eq!(everything(&mut reads).await, live);
}
