//! Which database answers, and how fresh the answer is.

use std::time::Duration;

use skyriff_postgres::testing::TestDatabases;
use tokio::time::Instant;

use crate::{
    api::{Api, Dead, LONG, primary, replica},
    rows::{connect, place, some_user, write},
};

/// Short, for what will not come.
const SOON: Duration = Duration::from_millis(60);

#[tokio::test]
async fn a_replica_answers_as_soon_as_it_has_what_was_asked_for() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let dead = Dead::new();
    // Whatever is answered here is the replica's.
    let api = Api::new(dead.pool(), vec![replica(&databases).await], LONG);
    let user = some_user();
    for position in 1..20 {
        let at = place(user, position).to_string();
        // Asked for first, written then.
        let (answer, ()) =
            tokio::join!(api.balance_at_least(user, &at), write(&mut rows, user, position, position * 10));
        assert_eq!((answer.kind(), answer.header("skyriff-position")), ((200, ""), Some(at.as_str())));
        assert_eq!(
            (&answer.body["available"]["income"], &answer.body["position"]),
            (&(position * 10).into(), &at.into())
        );
    }
    let path = format!("/v1/users/{user}/ledger-entries");
    let request = api.request(skyriff_edge::Role::Auditor, uuid::Uuid::nil(), &path);
    let answer = api.send(request.header("skyriff-at-least", place(user, 19).to_string())).await;
    assert_eq!((answer.kind(), &answer.body["position"]), ((200, ""), &place(user, 19).to_string().into()));
}

#[tokio::test]
async fn the_primary_answers_when_no_replica_is_that_fresh() {
    let (databases, behind) = (TestDatabases::create().await, TestDatabases::create().await);
    let user = some_user();
    write(&mut connect(&databases).await, user, 7, 70).await;
    write(&mut connect(&behind).await, user, 6, 60).await;
    let api = Api::new(primary(&databases), vec![primary(&behind)], SOON);
    let read = async |at_least: String| {
        let answer = api.balance_at_least(user, &at_least).await;
        (answer.kind().0, answer.body["available"]["income"].as_i64())
    };
    assert_eq!(read(place(user, 7).to_string()).await, (200, Some(70)));
    // Nobody wants the primary when a replica will do.
    assert_eq!(read(place(user, 6).to_string()).await, (200, Some(60)));
    assert_eq!(read(place(user, 0).to_string()).await, (200, Some(60)));
    let answer = api.own(user, "balance").await;
    assert_eq!(answer.header("skyriff-position"), Some(place(user, 6).to_string().as_str()));
    // Of several places only the highest of the user's own shard counts.
    let elsewhere = (place(user, 0).shard.0 + 1) % 16;
    assert_eq!(read(format!("{elsewhere}:999,{}", place(user, 6))).await, (200, Some(60)));
    assert_eq!(read(format!("{}, {elsewhere}:999, {}", place(user, 7), place(user, 2))).await, (200, Some(70)));
}

#[tokio::test]
async fn nobody_that_fresh_is_said_in_time_and_with_what_there_is() {
    let (databases, behind) = (TestDatabases::create().await, TestDatabases::create().await);
    let user = some_user();
    write(&mut connect(&databases).await, user, 7, 70).await;
    write(&mut connect(&behind).await, user, 6, 60).await;
    let api = Api::new(primary(&databases), vec![primary(&behind)], SOON);
    let started = Instant::now();
    for rest in ["balance", "ledger-entries"] {
        let request = api.request(skyriff_edge::Role::User, user.0, &format!("/v1/users/{user}/{rest}"));
        let answer = api.send(request.header("skyriff-at-least", place(user, 8).to_string())).await;
        assert_eq!(answer.kind(), (503, "not-that-fresh-yet"));
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.body["newest"], place(user, 7).to_string());
    }
    assert!(started.elapsed() < LONG);
}

#[tokio::test]
async fn a_dead_replica_is_passed_over() {
    let databases = TestDatabases::create().await;
    let user = some_user();
    write(&mut connect(&databases).await, user, 7, 70).await;
    let dead = Dead::new();
    let among_others = Api::new(dead.pool(), vec![dead.pool(), replica(&databases).await, dead.pool()], LONG);
    let alone = Api::new(primary(&databases), vec![dead.pool(), dead.pool()], LONG);
    for _ in 0..4 {
        for api in [&among_others, &alone] {
            let answer = api.balance_at_least(user, &place(user, 7).to_string()).await;
            assert_eq!((answer.kind(), &answer.body["available"]["income"]), ((200, ""), &70.into()));
        }
    }
    let nothing_left = Api::new(dead.pool(), vec![dead.pool()], LONG);
    let answer = nothing_left.own(user, "balance").await;
    assert_eq!((answer.kind(), answer.header("retry-after")), ((503, "reads-unavailable"), Some("2")));
}

#[tokio::test]
async fn a_place_that_is_none_is_refused() {
    let databases = TestDatabases::create().await;
    let api = Api::on_primary(&databases);
    let many = vec!["1:1"; 65].join(",");
    for malformed in ["", "3", "3:", ":3", "a:b", "3:-1", "-3:1", "1024:1", "3:1,", "3:1;4:1", &many] {
        let answer = api.balance_at_least(some_user(), malformed).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{malformed:?}");
    }
}
