//! Video jobs through the binary: ordered, made and read; and kill -9 of the server between any two steps of the people
//! and the workers, after which every job has ended once and the books are right.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::support::{Answer, Api, Folder, LIMIT, Process, eventually, skyriff};

/// Only the workers here have it.
const PROVIDER: &str = "test";

/// What a worker makes in an attempt, put where outputs are kept.
fn put_output(objects: &Path, leased: &Value) -> String {
    let job = leased["job"].as_str().unwrap();
    let object = format!("{job}.{}.m4a", leased["attempt"]);
    let file = objects.join(&job[job.len() - 2..]).join(&object);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, [0; 100]).unwrap();
    object
}

fn order(seconds: u32) -> Value {
    json!({"kind": "text_to_speech", "prompt": "A secret of mine", "seconds": seconds, "provider": PROVIDER})
}

fn completion(objects: &Path, leased: &Value) -> Value {
    let output = json!({"object": put_output(objects, leased), "seconds": leased["seconds"], "bytes": 100, "sha256": "a".repeat(64),
                        "content_type": "audio/mp4"});
    json!({ "output": output, "cost": {"micros": 1_000, "currency": "usd"} })
}

fn attempt(leased: &Value, what: &str) -> String {
    let text = |name: &str| leased[name].as_str().unwrap().to_owned();
    format!("/v1/worker/jobs/{}/{}/attempts/{}/{what}", text("user"), text("job"), leased["attempt"])
}

fn ask() -> Value {
    json!({"worker": "w-1", "kinds": ["text_to_speech"], "providers": [PROVIDER], "max": 2, "wait_s": 1})
}

#[tokio::test]
async fn a_job_is_ordered_made_and_read_and_its_cost_is_told_to_those_who_may() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let (api, user) = (&dev.api, dev.user);
    let service = api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let worker = api.as_caller(&folder.token("worker", Uuid::from_u128(2)).await);
    service.earn(user, "points", 100).await.unwrap().with(StatusCode::CREATED);
    let ordered = api.post("/v1/video-jobs", "one", Some(order(10))).await.unwrap().with(StatusCode::ACCEPTED);
    let place = ordered.header("location").to_owned();
    let job = |answer: &Value| answer["state"].as_str().unwrap_or_default().to_owned();
    let fresh = async |path: &str, position: &str| {
        eventually("a fresh answer", async || {
            let headers = [("Skyriff-At-Least", position)];
            let answer = api.send(reqwest::Method::GET, path, &headers, None).await.unwrap();
            (answer.status != StatusCode::SERVICE_UNAVAILABLE).then(|| answer.with(StatusCode::OK).json)
        })
        .await
    };
    let seen = fresh(&place, &ordered.position()).await;
    assert_eq!(
        (job(&seen).as_str(), &seen["held"], &seen["prompt"]),
        ("queued", &json!(10), &json!("A secret of mine"))
    );
    let as_service = service.get(&place).await.with(StatusCode::OK).json;
    assert_eq!(as_service.get("prompt"), None, "a prompt is its owner's");

    let leased = eventually("the job", async || {
        let answer = worker.post("/v1/worker/leases", "-", Some(ask())).await.unwrap().with(StatusCode::OK);
        answer.json["jobs"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&leased["prompt"], &leased["lease_s"]), (&json!("A secret of mine"), &json!(15.0)));
    // Only with what this attempt has made.
    let objects = folder.join("objects");
    let mut other = leased.clone();
    other["attempt"] = json!(2);
    let mut of_other = completion(&objects, &leased);
    of_other["output"]["object"] = json!(put_output(&objects, &other));
    let mut of_other_type = completion(&objects, &leased);
    of_other_type["output"]["content_type"] = json!("video/mp4");
    let mut nothing = completion(&objects, &leased);
    nothing["output"]["seconds"] = json!(0);
    for wrong in [of_other, of_other_type, nothing] {
        let answer = worker.post(&attempt(&leased, "complete"), "-", Some(wrong)).await.unwrap();
        answer.with(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let done = worker.post(&attempt(&leased, "complete"), "-", Some(completion(&objects, &leased))).await.unwrap();
    let position = done.with(StatusCode::OK).position();
    let seen = fresh(&place, &position).await;
    assert_eq!((job(&seen).as_str(), &seen["used"], &seen["output"]["bytes"]), ("succeeded", &json!(10), &json!(100)));
    // Whoever ordered it follows it also without saying who that is.
    let own = format!("/v1/video-jobs/{}/events", leased["job"].as_str().unwrap());
    let told = api.get(&own).await.with(StatusCode::OK).bytes;
    assert!(!told.is_empty() && told == api.get(&format!("{place}/events")).await.with(StatusCode::OK).bytes);
    let stranger = api.as_caller(&folder.token("user", Uuid::new_v4()).await);
    stranger.get(&own).await.is_problem(StatusCode::NOT_FOUND, "not-found");
    for _ in 0..2 {
        api.post("/v1/video-jobs", &Uuid::new_v4().to_string(), Some(order(1)))
            .await
            .unwrap()
            .with(StatusCode::ACCEPTED);
    }
    let last = api.post("/v1/video-jobs", "last", Some(order(1))).await.unwrap().with(StatusCode::ACCEPTED).position();
    let list = format!("/v1/users/{user}/video-jobs");
    let queued = fresh(&format!("{list}?state=queued&limit=2"), &last).await;
    assert_eq!(queued["jobs"].as_array().unwrap().len(), 2);
    let next = queued["next"].as_str().unwrap();
    let rest = fresh(&format!("{list}?state=queued&limit=2&cursor={next}"), &last).await;
    assert_eq!((rest["jobs"].as_array().unwrap().len(), rest.get("next")), (1, None));
    assert_eq!(fresh(&list, &last).await["jobs"].as_array().unwrap().len(), 4);
    for wrong in ["limit=0", "limit=101", "cursor=x", "state=made"] {
        api.get(&format!("{list}?{wrong}")).await.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    }
    api.get(&format!("{list}/{}", Uuid::new_v4())).await.is_problem(StatusCode::NOT_FOUND, "not-found");

    for role in ["user", "service", "operator", "reviewer", "auditor", "analyst", "worker"] {
        let caller = api.as_caller(&folder.token(role, Uuid::from_u128(3)).await);
        let may = ["operator", "analyst"].contains(&role);
        let costs = caller.get("/v1/video-costs").await;
        assert_eq!(costs.status, if may { StatusCode::OK } else { StatusCode::FORBIDDEN }, "{role}");
        if may {
            let cost = &costs.json["costs"][0];
            let told = ["points", "cost_micros", "margin_micros"].map(|name| cost[name].as_i64().unwrap());
            assert_eq!(told, [10, 1_000, 99_000], "{cost}");
        }
        let others = caller.get(&place).await.status;
        let may = ["service", "operator", "reviewer", "auditor"].contains(&role);
        assert_eq!(others, if may { StatusCode::OK } else { StatusCode::FORBIDDEN }, "{role}");
    }
    let described = crate::surface::described(&api.get("/v1/openapi.json").await.json);
    for route in [
        "post /v1/video-jobs",
        "get /v1/users/{user}/video-jobs",
        "get /v1/users/{user}/video-jobs/{job}",
        "get /v1/users/{user}/video-jobs/{job}/events",
        "get /v1/video-jobs/{job}/events",
        "post /v1/users/{user}/video-jobs/{job}/cancel",
        "post /v1/worker/leases",
        "post /v1/worker/jobs/{user}/{job}/attempts/{attempt}/heartbeat",
        "post /v1/worker/jobs/{user}/{job}/attempts/{attempt}/complete",
        "post /v1/worker/jobs/{user}/{job}/attempts/{attempt}/fail",
        "get /v1/video-costs",
    ] {
        assert!(described.contains(route), "{route} is not in {described:?}");
    }
    assert_eq!(folder.audit().await["by_type"]["video_job.succeeded"], 1);
    dev.interrupt().await.well();
}

fn free_port() -> u16 {
    let first = u16::try_from(std::process::id() % 10_000).unwrap() + 21_000;
    (first..first + 1_000).find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).unwrap()
}

/// Send it under its key until it is answered for good.
async fn answer(api: &Api, path: &str, key: &str, body: Option<Value>) -> Answer {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Ok(answer) = api.post(path, key, body.clone()).await
            && ![StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT].contains(&answer.status)
        {
            return answer;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("no answer to {key} within {LIMIT:?}")
}

/// Orders, one after the other; some are taken back.
async fn orders(api: Api, user: Uuid, count: usize, answered: Arc<AtomicUsize>) -> Vec<String> {
    let mut jobs = Vec::new();
    for number in 0..count {
        let ordered = answer(&api, "/v1/video-jobs", &format!("order {number}"), Some(order(2))).await;
        let job = ordered.with(StatusCode::ACCEPTED).json["job"].as_str().unwrap().to_owned();
        answered.fetch_add(1, Ordering::SeqCst);
        if number % 7 == 3 {
            let path = format!("/v1/users/{user}/video-jobs/{job}/cancel");
            let cancelled = answer(&api, &path, &format!("cancel {number}"), None).await.status;
            assert!([StatusCode::CREATED, StatusCode::CONFLICT].contains(&cancelled), "{cancelled}");
        }
        jobs.push(job);
    }
    jobs
}

/// A worker that does nothing, in every way: it makes jobs, fails them, or goes away with them.
async fn works(api: Api, objects: PathBuf, over: Arc<AtomicBool>) {
    let mut turn = 0_u32;
    while !over.load(Ordering::SeqCst) {
        let Ok(answer) = api.post("/v1/worker/leases", "-", Some(ask())).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        for leased in answer.json["jobs"].as_array().cloned().unwrap_or_default() {
            turn += 1;
            api.post(&attempt(&leased, "heartbeat"), "-", Some(json!({"progress": 50}))).await.ok();
            let (what, body) = match turn % 5 {
                0 => continue,
                1 => ("fail", json!({"reason": "broke", "retryable": true})),
                _ => ("complete", completion(&objects, &leased)),
            };
            // Said until it is heard, unless the attempt is over by then.
            for _ in 0..100 {
                match api.post(&attempt(&leased, what), "-", Some(body.clone())).await {
                    Ok(answer) if [StatusCode::OK, StatusCode::CONFLICT].contains(&answer.status) => break,
                    Ok(_) | Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        }
    }
}

#[tokio::test]
async fn a_server_killed_between_any_two_steps_ends_every_job_once() {
    const ORDERS: usize = 60;
    let folder = Folder::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let start = async || {
        let mut command = skyriff(&["dev", "--folder", &folder.as_str(), "--listen", &listen]);
        command.envs([
            ("SKYRIFF_VIDEO_LEASE_S", "1"),
            ("SKYRIFF_VIDEO_BACK_OFF_S", "0"),
            ("SKYRIFF_VIDEO_IN_FLIGHT_MAX", "100"),
            ("SKYRIFF_VIDEO_ATTEMPTS_MAX", "4"),
        ]);
        let mut process = Process::spawn(command);
        process.says("its welcome", |said| said.contains("/ledger-entries").then_some(())).await;
        process
    };
    let mut process = start().await;
    let url = format!("http://{listen}");
    let user = Uuid::from_u128(77);
    let service = Api::new(&url, &folder.token("service", Uuid::from_u128(1)).await);
    service.earn(user, "points", 1_000).await.unwrap().with(StatusCode::CREATED);
    let api = Api::new(&url, &folder.token("user", user).await);
    let (answered, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let ordering = tokio::spawn(orders(api.clone(), user, ORDERS, Arc::clone(&answered)));
    let mut workers = Vec::new();
    for number in 10..13 {
        let token = folder.token("worker", Uuid::from_u128(number)).await;
        workers.push(tokio::spawn(works(Api::new(&url, &token), folder.join("objects"), Arc::clone(&over))));
    }
    for kill in 1..=4 {
        let enough = kill * ORDERS / 6;
        eventually("orders before a crash", async || (answered.load(Ordering::SeqCst) >= enough).then_some(())).await;
        process.signal(rustix::process::Signal::KILL);
        process.end().await;
        process = start().await;
    }
    let jobs = ordering.await.unwrap();
    assert_eq!(jobs.iter().collect::<BTreeSet<_>>().len(), ORDERS, "a retry is the same job");
    let path = format!("/v1/users/{user}/video-jobs?limit=100");
    let all = eventually("an end of every job", async || {
        let answer = api.send(reqwest::Method::GET, &path, &[], None).await.ok()?;
        let all = answer.json["jobs"].as_array()?.clone();
        let is_open = |job: &Value| ["queued", "leased"].contains(&job["state"].as_str().unwrap());
        (all.len() == ORDERS && !all.iter().any(is_open)).then_some(all)
    })
    .await;
    over.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    let succeeded = all.iter().filter(|job| job["state"] == "succeeded").count();
    assert!(succeeded > ORDERS / 2, "{succeeded}");

    // The audit compares holds, slots, rows and the ledger's zero; nothing is held, and what was paid is what was made.
    let report = folder.audit().await;
    assert_eq!(report["by_type"]["video_job.succeeded"], succeeded);
    assert_eq!(report["by_type"]["video_job.submitted"], ORDERS);
    assert_eq!(report["ledger"]["user:held:income"].as_i64().unwrap_or(0), 0);
    assert_eq!(report["ledger"]["platform:revenue:text_to_speech"], 2 * succeeded);
    process.signal(rustix::process::Signal::INT);
    process.end().await.well();
}
