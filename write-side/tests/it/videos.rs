//! Video jobs over HTTP: ordered, followed, taken back; who may, what is refused, and where the points go.

use axum::body::to_bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use skyriff_domain::video_job::{Status, VideoPolicy};
use skyriff_edge::Role;
use skyriff_write_side::video_queue::Limits;
use tower::ServiceExt;
use uuid::Uuid;

use crate::{
    store::{LONG, Store, some_user},
    studio::{Studio, becomes, caught_up, eventually, job, keeper, points, policy, short, speech},
};

fn video(seconds: u32) -> Value {
    json!({"kind": "text_to_video", "prompt": "A cat on the moon", "seconds": seconds, "resolution": "720p"})
}

#[tokio::test]
async fn an_order_holds_the_points_and_a_retry_is_answered_the_same() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &Limits::default(), VideoPolicy::default());
    let user = studio.someone_with(100).await;
    let first = studio.post(Role::User, user.0, "/v1/video-jobs", "key", &video(8)).await;
    assert_eq!(first.status, 202, "{}", first.body);
    let name = first.body["job"].as_str().unwrap().to_owned();
    assert_eq!(first.header("location").unwrap(), format!("/v1/users/{user}/video-jobs/{name}"));
    assert_eq!((&first.body["held"], &first.body["place"]), (&json!(40), &json!(1)));
    assert_eq!(first.body.get("estimate_s"), None, "nothing has been measured yet");
    assert_eq!(points(&store, user).await, (60, 40));
    assert_eq!(job(&store, &name).await.status(), Some(Status::Queued));

    let again = studio.post(Role::User, user.0, "/v1/video-jobs", "key", &video(8)).await;
    assert_eq!((again.status.as_u16(), again.header("idempotent-replayed")), (202, Some("true")));
    assert_eq!(again.body["job"], first.body["job"]);
    let other = studio.post(Role::User, user.0, "/v1/video-jobs", "key", &video(9)).await;
    assert_eq!(other.kind(), (422, "idempotency-key-reused"));
    assert_eq!(points(&store, user).await, (60, 40));

    // The prompt is nowhere in the clear.
    let log = store.log().await;
    assert!(log.iter().all(|logged| !logged.payload.contains("moon")), "the prompt is sealed");
    studio.stop().await;
}

#[tokio::test]
async fn what_cannot_be_ordered_is_refused_and_says_why() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &Limits::default(), VideoPolicy::default());
    let user = studio.someone_with(1_000).await;
    let long = "x".repeat(1_001);
    let longest = "ü".repeat(1_000);
    let table = [
        (json!({"kind": "text_to_speech", "prompt": "", "seconds": 1}), (422, "out-of-range")),
        (json!({"kind": "text_to_speech", "prompt": " \n", "seconds": 1}), (422, "out-of-range")),
        (json!({"kind": "text_to_speech", "prompt": "a\u{0}", "seconds": 1}), (422, "out-of-range")),
        (json!({"kind": "text_to_speech", "prompt": long, "seconds": 1}), (422, "out-of-range")),
        (json!({"kind": "text_to_speech", "prompt": "a", "seconds": 0}), (422, "out-of-range")),
        (json!({"kind": "text_to_speech", "prompt": "a", "seconds": 61}), (422, "out-of-range")),
        (json!({"kind": "text_to_speech", "prompt": "a", "seconds": 1, "resolution": "720p"}), (422, "out-of-range")),
        (json!({"kind": "text_to_video", "prompt": "a", "seconds": 1}), (422, "out-of-range")),
        (json!({"kind": "text_to_video", "prompt": "a", "seconds": 1, "resolution": "8k"}), (400, "malformed-request")),
        (
            json!({"kind": "text_to_video", "prompt": "a", "seconds": 1, "resolution": "720p", "voice": "en"}),
            (422, "out-of-range"),
        ),
        (json!({"kind": "poem", "prompt": "a", "seconds": 1}), (400, "malformed-request")),
        (json!({"kind": "text_to_speech", "prompt": "a", "seconds": 1, "job": Uuid::new_v4()}), (403, "forbidden")),
        (json!({"kind": "text_to_speech", "prompt": "a", "seconds": 1, "priority": 1}), (403, "forbidden")),
        (
            json!({"kind": "text_to_speech", "prompt": "a", "seconds": 1, "occurred_at": "2026-01-01T00:00:00Z"}),
            (403, "forbidden"),
        ),
        (json!({"kind": "text_to_speech", "prompt": "a", "seconds": 1, "user": some_user()}), (403, "forbidden")),
        (json!({"kind": "text_to_speech", "prompt": longest, "seconds": 1}), (202, "")),
    ];
    for (body, expected) in table {
        let answer = studio.order(user, body.clone()).await;
        assert_eq!(answer.kind(), expected, "{body} {}", answer.body);
    }
    let poor = studio.someone_with(39).await;
    assert_eq!(studio.order(poor, video(8)).await.kind(), (409, "insufficient-points"));
    assert_eq!(points(&store, poor).await, (39, 0));
    for _ in 0..2 {
        assert_eq!(studio.order(user, video(1)).await.status, 202);
    }
    assert_eq!(studio.order(user, video(1)).await.kind(), (409, "too-many-in-flight"));

    for role in Role::ALL.into_iter().filter(|role| !matches!(role, Role::User | Role::Service)) {
        let mut body = video(1);
        body["user"] = json!(user);
        let refused = studio.post(role, user.0, "/v1/video-jobs", "key", &body).await;
        assert_eq!(refused.kind(), (403, "forbidden"), "{role:?}");
        let refused = studio.post(role, user.0, "/v1/video-jobs", "key", &video(1)).await;
        assert_eq!(refused.kind(), (403, "forbidden"), "{role:?}");
    }
    studio.stop().await;
}

#[tokio::test]
async fn a_service_imports_orders_under_their_own_ids() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &Limits::default(), VideoPolicy::default());
    let user = studio.someone_with(100).await;
    let name = Uuid::new_v4();
    let mut body = video(2);
    body["user"] = json!(user);
    body["job"] = json!(name);
    body["priority"] = json!(3);
    body["occurred_at"] = json!("2026-01-02T03:04:05Z");
    let service = |key: &'static str, body: Value| {
        let studio = &studio;
        async move { studio.post(Role::Service, Uuid::nil(), "/v1/video-jobs", key, &body).await }
    };
    assert_eq!(service("none", video(1)).await.kind(), (400, "malformed-request"));
    let first = service("a", body.clone()).await;
    assert_eq!(first.status, 202, "{}", first.body);
    assert_eq!((&first.body["job"], &first.body["priority"]), (&json!(name), &json!(3)));
    assert_eq!(first.body["submitted_at"], "2026-01-02T03:04:05Z");
    let again = service("b", body.clone()).await;
    assert_eq!(again.status, 202, "the same order under another key records nothing: {}", again.body);
    assert_eq!(points(&store, user).await, (90, 10));
    body["seconds"] = json!(3);
    assert_eq!(service("c", body.clone()).await.kind(), (409, "refused"));
    body["seconds"] = json!(2);
    body["user"] = json!(studio.someone_with(100).await);
    assert_eq!(service("d", body.clone()).await.kind(), (409, "refused"), "a job is one user's");
    body["priority"] = json!(10);
    assert_eq!(service("e", body).await.kind(), (422, "out-of-range"));
    studio.stop().await;
}

#[tokio::test]
async fn an_order_can_be_taken_back_until_it_is_made() {
    let store = Store::create().await;
    let limits = Limits { lease: std::time::Duration::from_secs(60), ..short() };
    let studio = Studio::new(&store, &limits, policy());
    let _keeper = keeper(&store, &limits, policy());

    // While it waits.
    let (user, name) = studio.some_order().await;
    assert_eq!(points(&store, user).await, (90, 10));
    for role in Role::ALL {
        let path = format!("/v1/users/{user}/video-jobs/{name}/cancel");
        if role != Role::Service {
            let refused = studio.post(role, Uuid::new_v4(), &path, "not theirs", &Value::Null).await;
            assert_eq!(refused.kind(), (403, "forbidden"), "{role:?}");
        }
    }
    assert_eq!(studio.cancel(user, &name).await.status, 201);
    assert_eq!(points(&store, user).await, (100, 0));
    let again = studio.cancel(user, &name).await;
    assert_eq!((again.status.as_u16(), &again.body["recorded"]), (200, &json!([])));
    caught_up(&store).await;

    // While it is made: the worker is told, and what it makes is refused.
    let (user, name) = studio.some_order().await;
    let leased = studio.next().await;
    assert_eq!((leased.job.as_str(), leased.prompt.as_str()), (name.as_str(), "Hello"));
    assert_eq!(studio.beat(&leased, 10).await.status, 200);
    assert_eq!(studio.cancel(user, &name).await.status, 201);
    assert_eq!(points(&store, user).await, (100, 0));
    eventually("news for the worker", async || {
        (studio.beat(&leased, 20).await.kind() == (409, "stale-attempt")).then_some(())
    })
    .await;
    assert_eq!(studio.complete(&leased, 10).await.kind(), (409, "stale-attempt"));
    assert_eq!(studio.fail(&leased, true).await.kind(), (409, "stale-attempt"));
    assert_eq!(points(&store, user).await, (100, 0));

    // Between two attempts.
    let (user, name) = studio.some_order().await;
    let leased = studio.next().await;
    assert_eq!(studio.fail(&leased, true).await.status, 200);
    assert_eq!(studio.cancel(user, &name).await.status, 201);
    assert_eq!(points(&store, user).await, (100, 0));
    caught_up(&store).await;
    assert_eq!(studio.lease(json!({"worker": "w", "kinds": ["text_to_speech"], "providers": ["local"]})).await, []);

    // When it is made, it is paid for.
    let (user, name) = studio.some_order().await;
    let leased = studio.next().await;
    assert_eq!(studio.complete(&leased, 4).await.status, 200);
    assert_eq!(studio.cancel(user, &name).await.kind(), (409, "refused"));
    assert_eq!(points(&store, user).await, (96, 0), "four seconds were made, and the rest came back");

    // When it has failed, the points are back already.
    let (user, name) = studio.some_order().await;
    let leased = studio.next().await;
    assert_eq!(studio.fail(&leased, false).await.status, 200);
    assert_eq!(studio.cancel(user, &name).await.kind(), (409, "refused"));
    assert_eq!(points(&store, user).await, (100, 0));
    assert_eq!(studio.cancel(user, &Uuid::new_v4().to_string()).await.kind(), (404, "not-found"));
    studio.stop().await;
}

/// What a stream says until it ends: id, name, data.
async fn told(
    studio: &Studio,
    user: skyriff_domain::UserId,
    name: &str,
    last: Option<&str>,
) -> Vec<(String, String, Value)> {
    let response = studio.api.router.clone().oneshot(studio.follow(user, name, last)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let blocks = text.split("\n\n").filter_map(|block| {
        let data = serde_json::from_str(&field(block, "data:")?).unwrap();
        Some((field(block, "id:")?, field(block, "event:")?, data))
    });
    blocks.collect()
}

/// Follow until it says this.
async fn hears(studio: &Studio, user: skyriff_domain::UserId, name: &str, what: &str) {
    let response = studio.api.router.clone().oneshot(studio.follow(user, name, None)).await.unwrap();
    let mut said = response.into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains(what) {
        let more = tokio::time::timeout(LONG, said.next()).await.unwrap_or_else(|_| panic!("only {text}"));
        text.push_str(std::str::from_utf8(&more.unwrap().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_at_any_node_and_from_where_one_was() {
    let store = Store::create().await;
    let limits = Limits { lease: std::time::Duration::from_secs(60), ..short() };
    let (studio, other) = (Studio::new(&store, &limits, policy()), Studio::new(&store, &limits, policy()));
    let _keeper = keeper(&store, &limits, policy());
    let (user, name) = studio.some_order().await;

    let work = async {
        let first = studio.next().await;
        assert_eq!(studio.beat(&first, 30).await.status, 200);
        assert_eq!(studio.fail(&first, true).await.status, 200);
        let second = studio.next().await;
        assert_eq!(second.attempt, 2);
        caught_up(&store).await;
        assert_eq!(studio.beat(&second, 50).await.status, 200);
        hears(&studio, user, &name, "id: 4.50").await;
        assert_eq!(studio.complete(&second, 10).await.status, 200);
    };
    let ((), all) = tokio::join!(work, told(&other, user, &name, None));
    let states: Vec<_> = all.iter().filter(|(_, kind, _)| kind == "state").collect();
    let names: Vec<_> = states.iter().map(|(id, _, data)| (id.as_str(), data["state"].as_str().unwrap())).collect();
    assert_eq!(names, [("1", "queued"), ("2", "leased"), ("3", "queued"), ("4", "leased"), ("5", "succeeded")]);
    assert_eq!(states[4].2["used"], 10);
    let progress: Vec<_> = all.iter().filter(|(_, kind, _)| kind == "progress").collect();
    assert!(progress.iter().all(|(id, _, data)| id == "4.50" && data["progress"] == 50 || id == "2.30"), "{all:?}");
    assert!(!format!("{all:?}").contains("Hello"), "a prompt is nobody's news");

    let rest = told(&studio, user, &name, Some("3")).await;
    assert_eq!(rest.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>(), ["4", "5"]);
    let rest = told(&studio, user, &name, Some("4.50")).await;
    assert_eq!(rest.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>(), ["5"]);
    let over = studio.api.send(studio.follow(user, &name, Some("5"))).await;
    assert_eq!(over.status, 204, "there is nothing more to tell");

    let nobody = studio.api.send(studio.follow(user, &Uuid::new_v4().to_string(), None)).await;
    assert_eq!(nobody.kind(), (404, "not-found"));
    let of_another = studio.api.send(studio.follow(some_user(), &name, None)).await;
    assert_eq!(of_another.kind(), (404, "not-found"));
    assert_eq!(studio.api.send(studio.follow(user, &name, Some("x"))).await.kind(), (400, "malformed-request"));
    studio.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn streams_are_bounded_and_end_when_the_node_does() {
    let store = Store::create().await;
    let limits = Limits { watchers_max: 1, ..short() };
    let studio = Studio::new(&store, &limits, policy());
    let (user, name) = studio.some_order().await;
    let open = studio.api.router.clone().oneshot(studio.follow(user, &name, None)).await.unwrap();
    assert_eq!(open.status(), 200);
    assert_eq!(studio.api.send(studio.follow(user, &name, None)).await.kind(), (503, "overloaded"));
    studio.close.cancel();
    let text = to_bytes(open.into_body(), usize::MAX).await.unwrap();
    assert!(String::from_utf8_lossy(&text).contains("queued"));
    // A worker that waits is answered as well.
    assert_eq!(
        studio.lease(json!({"worker": "w", "kinds": ["text_to_video"], "providers": ["local"], "wait_s": 10})).await,
        []
    );
    studio.stop().await;
}

#[tokio::test]
async fn nobody_takes_the_room_of_all_who_watch() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &short(), policy());
    let (user, name) = studio.some_order().await;
    let open =
        async |user, name: &str| studio.api.router.clone().oneshot(studio.follow(user, name, None)).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(open(user, &name).await);
    }
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(open(user, &name).await.status(), 503);
    let (other, of_other) = studio.some_order().await;
    assert_eq!(open(other, &of_other).await.status(), 200);
    // One that is closed makes room, as soon as that is noticed.
    drop(streams.pop());
    eventually("room", async || (open(user, &name).await.status() == 200).then_some(())).await;
    studio.stop().await;
}

#[tokio::test]
async fn the_outlook_counts_those_before_and_is_made_of_what_was_measured() {
    let store = Store::create().await;
    let limits = short();
    let studio = Studio::new(&store, &limits, policy());
    let _keeper = keeper(&store, &limits, policy());
    let (_, name) = studio.some_order().await;
    let leased = studio.next().await;
    assert_eq!(studio.complete(&leased, 1).await.status, 200);
    becomes(&store, &name, Status::Succeeded).await;
    let user = studio.someone_with(100).await;
    for place in 1..=3 {
        caught_up(&store).await;
        let answer = studio.order(user, speech(1)).await;
        assert_eq!(answer.body["place"], place, "{}", answer.body);
        assert!(answer.body["estimate_s"].as_u64().unwrap() >= 1, "{}", answer.body);
    }
    studio.stop().await;
}
