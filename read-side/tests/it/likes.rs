//! Who likes what, and how often a work is liked.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use serde_json::{Value, json};
use skyriff_domain::{ShardCount, UserId};
use skyriff_edge::Role;
use skyriff_postgres::testing::TestDatabases;
use skyriff_read_side::ReadDatabase;
use uuid::Uuid;

use crate::{
    api::{Answer, Api, Dead, LONG, primary, replica},
    rows::{connect, like, place, some_user, write},
};

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 15, 12, 0, 0).unwrap()
}

fn user_of(high: bool) -> UserId {
    std::iter::repeat_with(some_user).find(|user| (place(*user, 0).shard.0 >= 8) == high).unwrap()
}

/// Shards 0 to 7 in the first, 8 to 15 in the second.
async fn two() -> (TestDatabases, TestDatabases) {
    (TestDatabases::create().await, TestDatabases::create().await)
}

fn over_two(low: &TestDatabases, high: &TestDatabases, patience: Duration) -> Api {
    let (low_shards, high_shards) = ShardCount::default().shards().partition(|shard| shard.0 < 8);
    let of = |databases, shards| ReadDatabase { shards, primary: primary(databases), replicas: Vec::new() };
    Api::over(vec![of(low, low_shards), of(high, high_shards)], patience)
}

async fn count(api: &Api, work: Uuid, at_least: Option<String>) -> Answer {
    let mut request = api.request(Role::User, Uuid::nil(), &format!("/v1/works/{work}/likes"));
    if let Some(at_least) = at_least {
        request = request.header("skyriff-at-least", at_least);
    }
    api.send(request).await
}

#[tokio::test]
async fn a_count_is_the_sum_over_the_read_databases() {
    let (low, high) = two().await;
    let api = over_two(&low, &high, LONG);
    let (one, other, work) = (user_of(false), user_of(true), Uuid::new_v4());
    let nothing = count(&api, work, None).await;
    assert_eq!((nothing.kind(), &nothing.body["likes"]), ((200, ""), &json!(0)));
    let (mut low_rows, mut high_rows) = (connect(&low).await, connect(&high).await);
    like(&mut low_rows, one, work, 7, noon()).await;
    like(&mut low_rows, user_of(false), work, 8, noon()).await;
    // On its way to another database, or left behind there: not counted here.
    like(&mut low_rows, user_of(true), work, 9, noon()).await;
    like(&mut high_rows, other, work, 5, noon()).await;
    like(&mut high_rows, other, Uuid::new_v4(), 6, noon()).await;
    write(&mut low_rows, one, 8, 0).await;
    write(&mut high_rows, other, 6, 0).await;
    let answer = count(&api, work, Some(format!("{},{}", place(one, 8), place(other, 6)))).await;
    assert_eq!((answer.kind(), &answer.body["likes"]), ((200, ""), &json!(3)));
    // In the order of the shards.
    let positions = format!("{},{}", place(one, 8), place(other, 6));
    assert_eq!((answer.header("skyriff-position"), &answer.body["position"]), (Some(&*positions), &json!(positions)));
    assert_eq!(answer.body["work"], json!(work));
}

#[tokio::test]
async fn a_count_waits_for_every_shard_that_is_named_wherever_it_is() {
    let (low, high) = two().await;
    let api = over_two(&low, &high, LONG);
    let (one, other, work) = (user_of(false), user_of(true), Uuid::new_v4());
    for position in 1..10 {
        let wanted = format!("{},{}", place(one, position), place(other, position));
        let writing = async {
            // One after the other, the last in the other database.
            for (databases, user) in [(&low, one), (&high, other)] {
                let mut rows = connect(databases).await;
                like(&mut rows, user, work, position, noon()).await;
                sqlx::query("DELETE FROM likes").execute(&mut rows).await.unwrap();
                write(&mut rows, user, position, 0).await;
            }
        };
        let (answer, ()) = tokio::join!(count(&api, work, Some(wanted)), writing);
        assert_eq!((answer.kind(), &answer.body["likes"]), ((200, ""), &json!(2 * position)));
    }
    let impatient = over_two(&low, &high, Duration::from_millis(60));
    for (user, newest) in [(one, place(one, 9)), (other, place(other, 9))] {
        let late = count(&impatient, work, Some(place(user, 10).to_string())).await;
        assert_eq!((late.kind(), &late.body["newest"]), ((503, "not-that-fresh-yet"), &json!(newest.to_string())));
    }
}

#[tokio::test]
async fn a_part_of_a_sum_is_no_answer() {
    let low = TestDatabases::create().await;
    let dead = Dead::new();
    let (low_shards, high_shards) = ShardCount::default().shards().partition(|shard| shard.0 < 8);
    let alive = ReadDatabase { shards: low_shards, primary: primary(&low), replicas: vec![replica(&low).await] };
    let gone = ReadDatabase { shards: high_shards, primary: dead.pool(), replicas: Vec::new() };
    let api = Api::over(vec![alive, gone], LONG);
    assert_eq!(count(&api, Uuid::new_v4(), None).await.kind(), (503, "reads-unavailable"));
    let hot = api.send(api.request(Role::User, Uuid::nil(), "/v1/works/hot")).await;
    assert_eq!((hot.kind(), hot.header("retry-after")), ((503, "reads-unavailable"), Some("2")));
}

#[tokio::test]
async fn a_user_s_likes_are_told_in_the_order_that_is_asked_for() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let api = Api::on_primary(&databases);
    let user = some_user();
    let works: Vec<_> = (0..100).map(|_| Uuid::new_v4()).collect();
    for (position, work) in (1..).zip(works.iter().step_by(3)) {
        like(&mut rows, user, *work, position, noon()).await;
    }
    like(&mut rows, some_user(), works[1], 1, noon()).await;
    write(&mut rows, user, 34, 0).await;
    let asked = works.iter().map(Uuid::to_string).collect::<Vec<_>>().join(",");
    let answer = api.own(user, &format!("likes?works={asked}")).await;
    assert_eq!((answer.kind(), answer.header("skyriff-position")), ((200, ""), Some(&*place(user, 34).to_string())));
    let expected = works.iter().enumerate().map(|(number, work)| match number % 3 {
        0 => json!({"work": work, "liked": true, "liked_at": "2026-01-15T12:00:00Z"}),
        _ => json!({"work": work, "liked": false}),
    });
    assert_eq!(answer.body["likes"], Value::from(expected.collect::<Vec<_>>()));
    let twice = api.own(user, &format!("likes?works={0},{0}", works[0])).await;
    assert_eq!(twice.body["likes"].as_array().unwrap().len(), 2);
    let too_many = format!("likes?works={asked},{}", Uuid::new_v4());
    for bad in ["likes", "likes?works=", "likes?works=7", "likes?works=,", "likes?work=7", &too_many] {
        assert_eq!(api.own(user, bad).await.kind(), (400, "malformed-request"), "{bad}");
    }
}

#[tokio::test]
async fn pages_show_every_liked_work_once_newest_first_also_at_equal_times() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    let (user, mut expected) = (some_user(), Vec::new());
    write(&mut rows, user, 40, 0).await;
    for position in 1..=40_i64 {
        let (work, at) = (Uuid::new_v4(), noon() + TimeDelta::hours(position * 7 % 11));
        like(&mut rows, user, work, position, at).await;
        like(&mut rows, some_user(), work, position, at).await;
        expected.push((at, position, work));
    }
    expected.sort_unstable();
    let expected: Vec<_> = expected.into_iter().rev().map(|(_, _, work)| work.to_string()).collect();
    let api = Api::on_primary(&databases);
    for limit in [1, 7, 39, 40, 41, 200] {
        let (mut seen, mut pages, mut cursor) = (Vec::new(), 0, String::new());
        loop {
            let page = api.own(user, &format!("liked-works?limit={limit}{cursor}")).await;
            assert_eq!((page.kind(), &page.body["position"]), ((200, ""), &json!(place(user, 40).to_string())));
            let works = page.body["works"].as_array().unwrap();
            seen.extend(works.iter().map(|liked| liked["work"].as_str().unwrap().to_owned()));
            pages += 1;
            let Some(next) = page.body["next"].as_str() else { break };
            assert_eq!(works.len(), limit);
            cursor = format!("&cursor={next}");
        }
        assert_eq!((seen, pages), (expected.clone(), 40_usize.div_ceil(limit)), "limit {limit}");
    }
    assert_eq!(api.own(some_user(), "liked-works").await.body["works"], json!([]));
    for query in
        ["limit=0", "limit=201", "limit=x", "cursor=x", "cursor=", "page=2", "cursor=OTk5OTk5OTk5OTk5OTk5OTk5LjE"]
    {
        let answer = api.own(user, &format!("liked-works?{query}")).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{query}");
    }
}

#[tokio::test]
async fn likes_are_shown_to_those_who_may_see_them() {
    let databases = TestDatabases::create().await;
    let api = Api::on_primary(&databases);
    let (user, work) = (some_user(), Uuid::new_v4());
    let of_user = [format!("/v1/users/{user}/likes?works={work}"), format!("/v1/users/{user}/liked-works")];
    let of_work = [format!("/v1/works/{work}/likes"), "/v1/works/hot".to_owned()];
    for role in Role::ALL {
        for (own, id) in [(true, user.0), (false, Uuid::new_v4())] {
            let of_user_may = match role {
                Role::User => own,
                Role::Service | Role::Operator | Role::Reviewer | Role::Auditor => true,
                Role::Analyst | Role::Worker => false,
            };
            let may = of_user.iter().map(|path| (path, of_user_may));
            for (path, may) in may.chain(of_work.iter().map(|path| (path, role != Role::Worker))) {
                let answer = api.send(api.request(role, id, path)).await;
                let expected = if may { (200, "") } else { (403, "forbidden") };
                assert_eq!(answer.kind(), expected, "{role:?} {path}, own: {own}");
            }
        }
    }
    for path in of_user.iter().chain(&of_work) {
        let mut nobody = api.request(Role::User, user.0, path);
        nobody.headers_mut().unwrap().remove("authorization");
        assert_eq!(api.send(nobody).await.kind(), (401, "unauthenticated"), "{path}");
    }
    let absurd = api.send(api.request(Role::User, user.0, "/v1/works/7/likes")).await;
    assert_eq!(absurd.kind(), (400, "malformed-request"));
}
