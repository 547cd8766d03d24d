//! What is held, now and then.

use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use super::books::{Books, connect, noon, text};

#[tokio::test]
async fn holds_are_told_by_age_as_of_now_and_as_of_then() {
    let books = Books::of(10).await;
    let mut rows = connect(&books.databases[0]).await;
    let at = |hours: i64| noon() + TimeDelta::hours(hours);
    // Shard, position, points, remaining, opened, recorded, what went (business time, recorded time, points), closed.
    let table = [
        (0_i16, 1_i64, 9_i64, 9_i64, 0, 0, vec![], None),
        (0, 2, 8, 3, 1, 5, vec![(3, 6, 5)], None),
        // Gone since: all of it at 10, which was recorded at 20.
        (2, 3, 7, 0, 2, 2, vec![(4, 4, 3), (10, 20, 4)], Some((10, 20))),
        (2, 4, 6, 6, 2 * 24, 2 * 24, vec![], None),
    ];
    for (shard, position, points, remaining, opened, recorded, changes, closed) in table {
        let changes: Vec<_> =
            changes.into_iter().map(|(when, recorded, part)| json!([at(when), at(recorded), part])).collect();
        sqlx::query(
            "INSERT INTO ledger_holds VALUES ($1, $2, $3, $4, 'video_job', $5, $6, NULL, $7, $8, $9, $10, $11)",
        )
        .bind(shard)
        .bind(position)
        .bind(books.users[0].0)
        .bind(Uuid::new_v4())
        .bind(points)
        .bind(remaining)
        .bind(at(opened))
        .bind(at(recorded))
        .bind(json!(changes))
        .bind(closed.map(|(closed, _)| at(closed)))
        .bind(closed.map(|(_, recorded)| at(recorded)))
        .execute(&mut rows)
        .await
        .unwrap();
    }
    let held = async |times: String| {
        let found = books.found(&format!("holds?{times}")).await;
        let holds = found["holds"].as_array().unwrap().iter();
        let told = holds.map(|hold| (hold["event"].as_str().unwrap().to_owned(), hold["remaining"].as_i64().unwrap()));
        let told = told.collect::<Vec<_>>();
        let counted: i64 = found["ages"].as_array().unwrap().iter().map(|age| age["points"].as_i64().unwrap()).sum();
        assert_eq!(counted, told.iter().map(|(_, remaining)| remaining).sum::<i64>());
        (told, found)
    };
    let name = |of: &[(&str, i64)]| of.iter().map(|(event, left)| ((*event).to_owned(), *left)).collect::<Vec<_>>();
    let before = chrono::Utc::now();
    let (now, found) = held(String::new()).await;
    let as_of: chrono::DateTime<chrono::Utc> = serde_json::from_value(found["ages_as_of"].clone()).unwrap();
    assert!((before..=chrono::Utc::now()).contains(&as_of), "{as_of}");
    assert_eq!(now, name(&[("0:1", 9), ("0:2", 3), ("2:4", 6)]));
    let then = |at: String| format!("&at={at}");
    assert_eq!(held(then(text(at(2)))).await.0, name(&[("0:1", 9), ("0:2", 8), ("2:3", 7)]));
    assert_eq!(held(then(text(at(5)))).await.0, name(&[("0:1", 9), ("0:2", 3), ("2:3", 4)]));
    assert_eq!(held(then(text(at(10)))).await.0, name(&[("0:1", 9), ("0:2", 3)]));
    // At 11 nobody had said yet that the third was gone, and the second was known of.
    let known = format!("&at={}&known_at={}", text(at(11)), text(at(19)));
    assert_eq!(held(known).await.0, name(&[("0:1", 9), ("0:2", 3), ("2:3", 4)]));
    // As known at some time, they are as old as they were then.
    let (told, found) = held(format!("&known_at={}", text(at(4)))).await;
    assert_eq!(told, name(&[("0:1", 9), ("2:3", 4)]));
    assert_eq!((&found["ages_as_of"], &found["holds"][0]["age_s"]), (&json!(at(4)), &json!(4 * 3_600)));
    assert_eq!(found["ages"][1], json!({"at_least_s": 3_600, "holds": 2, "points": 13}));
    let (_, found) = held(format!("&known_at={}&at={}", text(at(4)), text(at(2)))).await;
    assert_eq!(found["ages_as_of"], json!(at(2)));
    let (_, found) = held(then(text(at(2 * 24)))).await;
    let ages: Vec<_> = found["ages"].as_array().unwrap().iter().map(|age| age["holds"].as_i64().unwrap()).collect();
    assert_eq!(ages, [1, 0, 2, 0, 0]);
    assert_eq!(found["holds"][0]["age_s"], 2 * 86_400);
    let first = books.found("holds?limit=2").await;
    let rest = books.found(&format!("holds?limit=2&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!((rest["holds"].as_array().unwrap().len(), rest["holds"][0]["event"].as_str()), (1, Some("2:4")));
    assert_eq!(rest.get("next"), None);
}
