//! Works, from their makers to whoever looks for them.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Api, Folder, eventually};

/// Sent as a service that imports; where it landed.
async fn import(service: &Api, creator: Uuid, work: Uuid, title: &str, visibility: &str, at: &str) -> String {
    let body =
        json!({ "title": title, "visibility": visibility, "user": creator, "imported": true, "occurred_at": at });
    let answer = service.send(Method::PUT, &format!("/v1/works/{work}"), &[], Some(body)).await.unwrap();
    answer.with(StatusCode::CREATED).position()
}

async fn get(api: &Api, path: &str, at_least: &str) -> Value {
    let answer = api.send(Method::GET, path, &[("Skyriff-At-Least", at_least)], None).await.unwrap();
    answer.with(StatusCode::OK).json
}

fn titles(page: &Value) -> Vec<&str> {
    page["works"].as_array().unwrap().iter().map(|work| work["title"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn works_are_found_by_id_by_maker_and_newest_first_while_they_are_shown() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    // Makers in both read databases, whichever these are: a page is merged from all.
    let makers: Vec<_> = (0..6).map(|_| Uuid::new_v4()).collect();
    let mut positions = Vec::new();
    for (number, maker) in makers.iter().enumerate() {
        let at = format!("2026-0{}-15T12:00:00Z", number + 1);
        positions.push(import(&service, *maker, Uuid::new_v4(), &format!("t{number}"), "public", &at).await);
    }
    let hidden = Uuid::new_v4();
    positions.push(import(&service, makers[0], hidden, "hidden", "unlisted", "2026-02-01T00:00:00Z").await);
    let all = positions.join(",");

    let page = get(&dev.api, "/v1/works?limit=4", &all).await;
    assert_eq!(titles(&page), ["t5", "t4", "t3", "t2"]);
    let next = page["next"].as_str().unwrap();
    let page = get(&dev.api, &format!("/v1/works?limit=4&cursor={next}"), &all).await;
    assert_eq!((titles(&page), &page["next"]), (vec!["t1", "t0"], &Value::Null));

    // Unlisted: found by its id and by its maker, and listed for nobody else.
    let own = dev.api.as_caller(&folder.token("user", makers[0]).await);
    let of_maker = format!("/v1/users/{}/works", makers[0]);
    assert_eq!(titles(&get(&own, &of_maker, &all).await), ["hidden", "t0"]);
    assert_eq!(titles(&get(&dev.api, &of_maker, &all).await), ["t0"]);
    let found = get(&dev.api, &format!("/v1/works/{hidden}"), &all).await;
    assert_eq!((&found["title"], &found["likes"], &found["creator"]), (&json!("hidden"), &json!(0), &json!(makers[0])));

    let like = dev.api.send(Method::PUT, &format!("/v1/works/{hidden}/like"), &[], None).await.unwrap();
    let liked = like.with(StatusCode::CREATED).position();
    assert_eq!(get(&dev.api, &format!("/v1/works/{hidden}"), &liked).await["likes"], 1);

    let path = format!("/v1/works/{hidden}");
    let gone = own.send(Method::DELETE, &path, &[], None).await.unwrap().with(StatusCode::CREATED).position();
    own.send(Method::DELETE, &path, &[], None).await.unwrap().with(StatusCode::OK);
    let missing = dev.api.send(Method::GET, &path, &[("Skyriff-At-Least", &gone)], None).await.unwrap();
    missing.is_problem(StatusCode::NOT_FOUND, "not-found");
    dev.interrupt().await.well();
}

#[tokio::test]
async fn nobody_shows_what_they_have_not_made() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let operator = dev.api.as_caller(&folder.token("operator", Uuid::from_u128(2)).await);
    let (maker, work) = (Uuid::new_v4(), Uuid::new_v4());
    import(&service, maker, work, "mine", "public", "2026-01-01T00:00:00Z").await;
    let path = format!("/v1/works/{work}");
    let body = json!({ "title": "theirs", "visibility": "public" });
    let with = |name: &str, value: Value| {
        let mut body = body.clone();
        body[name] = value;
        Some(body)
    };
    let put = async |api: &Api, body| api.send(Method::PUT, &path, &[], body).await.unwrap();
    // There is no such job, so nothing was made.
    put(&dev.api, Some(body.clone())).await.is_problem(StatusCode::CONFLICT, "refused");
    put(&dev.api, with("imported", json!(true))).await.is_problem(StatusCode::FORBIDDEN, "forbidden");
    put(&dev.api, with("user", json!(maker))).await.is_problem(StatusCode::FORBIDDEN, "forbidden");
    put(&operator, with("user", json!(maker))).await.is_problem(StatusCode::FORBIDDEN, "forbidden");
    put(&service, Some(body.clone())).await.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    put(&dev.api, with("more", json!(1))).await.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    put(&dev.api, with("title", json!(""))).await.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    let delete = dev.api.send(Method::DELETE, &path, &[], None).await.unwrap();
    delete.is_problem(StatusCode::NOT_FOUND, "not-found");
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_work_that_was_taken_back_cannot_be_liked_until_it_is_shown_again() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let maker = Uuid::new_v4();
    let own = dev.api.as_caller(&folder.token("user", maker).await);
    let (liked, other, unheard_of) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let like_of = |work: Uuid| format!("/v1/works/{work}/like");
    let keyed = [("Idempotency-Key", "the first like")];
    for work in [liked, other] {
        import(&service, maker, work, "mine", "public", "2026-01-01T00:00:00Z").await;
    }
    let first = async || dev.api.send(Method::PUT, &like_of(liked), &keyed, None).await.unwrap();
    first().await.with(StatusCode::CREATED);
    for work in [liked, other] {
        own.send(Method::DELETE, &format!("/v1/works/{work}"), &[], None).await.unwrap().with(StatusCode::CREATED);
    }

    // Nobody has asked about this one yet, so nothing is remembered of it.
    let like = async |work| dev.api.send(Method::PUT, &like_of(work), &[], None).await.unwrap();
    like(other).await.is_problem(StatusCode::NOT_FOUND, "not-found");
    let bulk = json!({"commands": [{"do": "like", "user": dev.user, "idempotency_key": "bulk", "work": other},
                                   {"do": "like", "user": dev.user, "idempotency_key": "unheard of", "work": unheard_of}]});
    let answer = dev.api.post("/v1/commands:batch", "-", Some(bulk)).await.unwrap().with(StatusCode::OK);
    let of = |number: usize| answer.json["results"][number]["status"].as_u64();
    assert_eq!((of(0), of(1)), (Some(404), Some(201)), "{}", answer.json);
    // What was remembered of the other is forgotten soon.
    let anybody = async || {
        let body = json!({ "user": Uuid::new_v4() });
        service.send(Method::PUT, &like_of(liked), &[], Some(body)).await.unwrap()
    };
    let refused = eventually("a refusal", async || Some(anybody().await).filter(|a| a.status != 201)).await;
    refused.is_problem(StatusCode::NOT_FOUND, "not-found");
    // Whoever likes it already does so still, and can take that back.
    assert_eq!(first().await.with(StatusCode::CREATED).json["replayed"], true);
    like(liked).await.with(StatusCode::OK);
    dev.api.send(Method::DELETE, &like_of(liked), &[], None).await.unwrap().with(StatusCode::CREATED);

    import(&service, maker, other, "mine", "public", "2026-01-01T00:00:00Z").await;
    eventually("a like", async || Some(like(other).await).filter(|answer| answer.status == 201)).await;
    folder.audit().await;
    dev.interrupt().await.well();
}
