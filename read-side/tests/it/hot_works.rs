//! What is liked most these days.

use chrono::{TimeDelta, Utc};
use futures::future::join_all;
use serde_json::{Value, json};
use skyriff_domain::ShardCount;
use skyriff_edge::Role;
use skyriff_postgres::testing::TestDatabases;
use skyriff_read_side::ReadDatabase;
use sqlx::Executor;
use uuid::Uuid;

use crate::{
    api::{Answer, Api, LONG, primary},
    rows::{connect, liked_in},
};

async fn hot(api: &Api) -> Answer {
    let answer = api.send(api.request(Role::User, Uuid::nil(), "/v1/works/hot")).await;
    assert_eq!(answer.kind(), (200, ""));
    answer
}

fn works(answer: &Answer) -> Vec<(String, i64, f64)> {
    let read = |work: &Value| {
        let id = work["work"].as_str().unwrap().to_owned();
        (id, work["likes"].as_i64().unwrap(), work["score"].as_f64().unwrap())
    };
    answer.body["works"].as_array().unwrap().iter().map(read).collect()
}

#[tokio::test]
async fn a_like_weighs_half_as_much_with_every_day_in_all_databases_together() {
    let (low, high) = (TestDatabases::create().await, TestDatabases::create().await);
    let (mut low_rows, mut high_rows) = (connect(&low).await, connect(&high).await);
    let id = |number: u128| Uuid::from_u128(number);
    let ago = |hours| Utc::now() - TimeDelta::hours(hours);
    // 8 of a day ago weigh 4; 1 + 2 of now weigh 3; 64 of five days ago weigh 2; a clock that is ahead counts as now;
    // what is older than two weeks is not there.
    liked_in(&mut low_rows, 0, id(1), ago(24), 8).await;
    liked_in(&mut low_rows, 0, id(2), ago(0), 1).await;
    liked_in(&mut high_rows, 8, id(2), ago(0), 2).await;
    liked_in(&mut low_rows, 0, id(2), ago(24 * 20), 100).await;
    liked_in(&mut high_rows, 8, id(3), ago(120), 64).await;
    liked_in(&mut low_rows, 0, id(4), ago(-1), 1).await;
    liked_in(&mut low_rows, 0, id(5), ago(24 * 14), 1_000_000).await;
    // Likes of before count in `likes`, also in a database that has none of these days.
    liked_in(&mut low_rows, 0, id(3), ago(24 * 30), 6).await;
    // What is there of a shard that is read elsewhere does not count here.
    liked_in(&mut low_rows, 8, id(1), ago(0), 1_000).await;
    liked_in(&mut high_rows, 0, id(6), ago(0), 1_000).await;
    let (low_shards, high_shards) = ShardCount::default().shards().partition(|shard| shard.0 < 8);
    let of = |databases, shards| ReadDatabase { shards, primary: primary(databases), replicas: Vec::new() };
    let api = Api::over(vec![of(&low, low_shards), of(&high, high_shards)], LONG);
    let answer = hot(&api).await;
    // The clock may have gone on to the next hour before the list was made.
    let list = works(&answer);
    let later = if list[0].2 < 4.0 { 0.5_f64.powf(1.0 / 24.0) } else { 1.0 };
    let expected = [(1, 8, 4.0 * later), (2, 103, 3.0 * later), (3, 70, 2.0 * later), (4, 1, 1.0)];
    assert_eq!(list.len(), expected.len(), "{list:?}");
    for ((work, likes, score), (number, all, weighs)) in list.iter().zip(expected) {
        assert_eq!((work, likes), (&id(number).to_string(), &all), "{list:?}");
        assert!((score - weighs).abs() < 1e-9, "{list:?}");
    }
    assert_eq!((&answer.body["stale"], &answer.body["age_s"]), (&json!(false), &json!(0)));
}

#[tokio::test]
async fn the_list_is_made_once_for_all_who_ask() {
    let databases = TestDatabases::create().await;
    let mut rows = connect(&databases).await;
    for number in 0..150_u32 {
        liked_in(&mut rows, 0, Uuid::from_u128(number.into()), Utc::now(), i64::from(number) + 1).await;
    }
    let api = Api::on_primary(&databases);
    let answers = join_all((0..40).map(|_| hot(&api))).await;
    let list = works(&answers[0]);
    assert_eq!((list.len(), list[0].1, list[99].1), (100, 150, 51));
    assert!(answers.iter().all(|answer| answer.body["as_of"] == answers[0].body["as_of"]));
    // It is kept, whatever happens meanwhile.
    rows.execute("TRUNCATE work_likes, work_likes_by_hour").await.unwrap();
    assert_eq!(works(&hot(&api).await), list);
    assert_eq!(works(&hot(&Api::on_primary(&databases)).await), []);
}
