//! What a balance says, and to whom.

use chrono::{DurationRound, TimeDelta, Utc};
use serde_json::json;
use skyriff_edge::Role;
use skyriff_postgres::testing::TestDatabases;
use uuid::Uuid;

use crate::{
    api::Api,
    rows::{connect, place, some_user, write},
};

#[tokio::test]
async fn a_balance_is_by_bucket_with_what_expires_soon_and_without_what_has_lapsed() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let user = some_user();
    write(&mut rows, user, 3, 0).await;
    let now = Utc::now().duration_round(TimeDelta::seconds(1)).unwrap();
    let soon = now + TimeDelta::days(3);
    for (expires_at, points) in [(now - TimeDelta::days(1), 1), (soon, 2), (now + TimeDelta::days(60), 4)] {
        sqlx::query("INSERT INTO promo_lots VALUES ($1, $2, $3)")
            .bind(user.0)
            .bind(expires_at)
            .bind(points)
            .execute(&mut rows)
            .await
            .unwrap();
    }
    sqlx::query(
        "UPDATE balances SET available_promo = 7, available_paid = 10, available_income = 20,
                             held_promo = 100, held_paid = 200, held_income = 400 WHERE user_id = $1",
    )
    .bind(user.0)
    .execute(&mut rows)
    .await
    .unwrap();
    let answer = Api::on_primary(&databases).own(user, "balance").await;
    let expected = json!({
        "user": user,
        "available": {"promo": 6, "paid": 10, "income": 20, "total": 36},
        "held": {"promo": 100, "paid": 200, "income": 400, "total": 700},
        "expiring_soon": {
            "within_days": 30,
            "points": 2,
            "lots": [{"expires_at": soon.to_rfc3339_opts(chrono::SecondsFormat::Secs, true), "points": 2}],
        },
        "lapsed": 1,
        "position": place(user, 3).to_string(),
    });
    assert_eq!((answer.kind(), &answer.body), ((200, ""), &expected));
}

#[tokio::test]
async fn a_user_that_nothing_is_known_of_has_nothing() {
    let databases = TestDatabases::create().await;
    let api = Api::on_primary(&databases);
    let zeros = json!({"promo": 0, "paid": 0, "income": 0, "total": 0});
    let (stranger, neighbour) = (some_user(), some_user());
    for position in [0, 5] {
        // At first not even the shard is known.
        if position > 0 {
            write(&mut connect(&databases).await, neighbour, position, 9).await;
            write(&mut connect(&databases).await, stranger, position, 0).await;
            let forget = sqlx::query("DELETE FROM balances WHERE user_id = $1").bind(stranger.0);
            forget.execute(&mut connect(&databases).await).await.unwrap();
        }
        let balance = api.own(stranger, "balance").await;
        assert_eq!(
            (balance.kind(), balance.header("skyriff-position")),
            ((200, ""), Some(&*place(stranger, position).to_string()))
        );
        assert_eq!((&balance.body["available"], &balance.body["held"]), (&zeros, &zeros));
        let entries = api.own(stranger, "ledger-entries").await;
        let none = json!({"entries": [], "position": place(stranger, position).to_string()});
        assert_eq!((entries.kind(), &entries.body), ((200, ""), &none));
    }
}

#[tokio::test]
async fn accounts_are_read_by_their_owners_and_by_those_whose_work_it_is() {
    let databases = TestDatabases::create().await;
    let api = Api::on_primary(&databases);
    let user = some_user();
    for rest in ["balance", "ledger-entries"] {
        let path = format!("/v1/users/{user}/{rest}");
        for role in Role::ALL {
            let may = matches!(role, Role::Service | Role::Operator | Role::Reviewer | Role::Auditor);
            let of_another = api.send(api.request(role, Uuid::new_v4(), &path)).await;
            assert_eq!(of_another.kind().0, if may { 200 } else { 403 }, "{role:?} {rest}");
            let own = api.send(api.request(role, user.0, &path)).await;
            assert_eq!(own.kind().0, if may || role == Role::User { 200 } else { 403 }, "{role:?} {rest}");
        }
        let nobody = api.send(axum::http::Request::get(&path)).await;
        assert_eq!((nobody.kind(), nobody.header("www-authenticate")), ((401, "unauthenticated"), Some("Bearer")));
    }
    assert_eq!(
        api.send(api.request(Role::Auditor, user.0, "/v1/users/7/balance")).await.kind(),
        (400, "malformed-request")
    );
}
