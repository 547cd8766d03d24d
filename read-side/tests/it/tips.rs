//! What became of tips: one, and pages of them.

use chrono::{TimeDelta, TimeZone, Utc};
use serde_json::json;
use skyriff_domain::UserId;
use skyriff_edge::Role;
use skyriff_postgres::testing::TestDatabases;
use uuid::Uuid;

use crate::{
    api::Api,
    rows::{connect, place, some_user, tip, write},
};

#[tokio::test]
async fn a_tip_is_shown_to_its_two_users_each_from_their_own_side() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let api = Api::on_primary(&databases);
    let user = some_user();
    write(&mut rows, user, 5, 0).await;
    let at = Utc.with_ymd_and_hms(2026, 1, 15, 0, 0, 0).unwrap();
    let other = UserId(Uuid::from_u128(1));
    for (direction, state) in [
        ("sent", "offered"),
        ("sent", "delivered"),
        ("sent", "returned"),
        ("received", "delivered"),
        ("received", "returned"),
    ] {
        let tip = tip(&mut rows, user, direction, state, 5, at).await;
        let answer = api.own(user, &format!("tips/{tip}")).await;
        assert_eq!(answer.kind(), (200, ""), "{}", answer.body);
        let (from, to) = if direction == "sent" { (user, other) } else { (other, user) };
        let mut expected = json!({
            "tip": tip, "direction": direction, "from": from, "to": to, "points": 10, "share": 3, "state": state,
            "occurred_at": "2026-01-15T00:00:00Z", "position": place(user, 5).to_string(),
        });
        if state == "returned" {
            expected["reason"] = "full".into();
        }
        assert_eq!(answer.body, expected);
        assert_eq!(answer.header("skyriff-position"), Some(place(user, 5).to_string().as_str()));
        // Somebody else's tip is as one that there is not.
        let stranger = api.own(some_user(), &format!("tips/{tip}")).await;
        assert_eq!(stranger.kind(), (404, "not-found"));
    }
    assert_eq!(api.own(user, &format!("tips/{}", Uuid::new_v4())).await.kind(), (404, "not-found"));
    assert_eq!(api.own(user, "tips/x").await.kind(), (400, "malformed-request"));
}

#[tokio::test]
async fn only_its_users_and_those_who_may_read_accounts_see_a_tip() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let api = Api::on_primary(&databases);
    let user = some_user();
    write(&mut rows, user, 5, 0).await;
    let tip = tip(&mut rows, user, "sent", "offered", 5, Utc::now()).await;
    for path in [format!("/v1/users/{user}/tips/{tip}"), format!("/v1/users/{user}/tips?direction=sent")] {
        for role in Role::ALL {
            let answer = api.send(api.request(role, Uuid::new_v4(), &path)).await;
            let may = matches!(role, Role::Service | Role::Operator | Role::Reviewer | Role::Auditor);
            assert_eq!(answer.kind(), if may { (200, "") } else { (403, "forbidden") }, "{role:?} {path}");
        }
    }
}

#[tokio::test]
async fn an_answer_is_as_fresh_as_asked_for() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let api = Api::new(crate::api::primary(&databases), Vec::new(), std::time::Duration::from_millis(20));
    let user = some_user();
    write(&mut rows, user, 5, 0).await;
    let tip = tip(&mut rows, user, "sent", "offered", 5, Utc::now()).await;
    for path in [format!("/v1/users/{user}/tips/{tip}"), format!("/v1/users/{user}/tips?direction=sent")] {
        for (position, then) in [(5, (200, "")), (6, (503, "not-that-fresh-yet"))] {
            let request = api.request(Role::User, user.0, &path);
            let answer = api.send(request.header("skyriff-at-least", place(user, position).to_string())).await;
            assert_eq!(answer.kind(), then, "{path} at least {position}");
        }
    }
}

#[tokio::test]
async fn pages_show_every_tip_of_a_direction_once_newest_first() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let api = Api::on_primary(&databases);
    let user = some_user();
    write(&mut rows, user, 100, 0).await;
    let start = Utc.with_ymd_and_hms(2026, 1, 15, 0, 0, 0).unwrap();
    let mut sent = Vec::new();
    for position in 1..=30_i64 {
        // Several at one time, and not in the order of the log.
        let at = start + TimeDelta::hours(position * 7 % 5);
        sent.push((at, position, tip(&mut rows, user, "sent", "delivered", position, at).await));
        tip(&mut rows, user, "received", "delivered", 100 + position, at).await;
        tip(&mut rows, some_user(), "sent", "delivered", position, at).await;
    }
    sent.sort_unstable();
    sent.reverse();
    let sent: Vec<_> = sent.into_iter().map(|(.., tip)| json!(tip)).collect();
    for limit in [1, 7, 29, 30, 31] {
        let (mut seen, mut pages, mut cursor) = (Vec::new(), 0, String::new());
        loop {
            let page = api.own(user, &format!("tips?direction=sent&limit={limit}{cursor}")).await;
            assert_eq!(page.kind(), (200, ""));
            let tips = page.body["tips"].as_array().unwrap();
            assert!(tips.iter().all(|tip| tip["direction"] == "sent"));
            seen.extend(tips.iter().map(|tip| tip["tip"].clone()));
            pages += 1;
            match page.body["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
            assert_eq!(tips.len(), limit);
        }
        assert_eq!((seen, pages), (sent.clone(), 30_usize.div_ceil(limit)), "limit {limit}");
    }
    let received = api.own(user, "tips?direction=received").await;
    assert_eq!(received.body["tips"].as_array().unwrap().len(), 30);
    let nobody = api.own(some_user(), "tips?direction=received").await;
    assert_eq!((nobody.kind(), &nobody.body["tips"]), ((200, ""), &json!([])));
    for query in ["", "direction=both", "direction=sent&limit=0", "direction=sent&limit=201", "direction=sent&cursor=x"]
    {
        assert_eq!(api.own(user, &format!("tips?{query}")).await.kind(), (400, "malformed-request"), "{query}");
    }
}
