//! Workers and the queue: leases, fencing, whose turn it is, caps, pauses, and several nodes at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::join_all;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use skyriff_domain::video_job::{Status, VideoPolicy, WorkerFault};
use skyriff_edge::Role;
use skyriff_postgres::databases::{COMMAND, PROCESS};
use skyriff_write_side::video_queue::{Breaker, Limits};
use sqlx::{Executor, postgres::PgConnectOptions};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{
    store::{Store, user_of_shard},
    studio::{
        Leased, Studio, anything, becomes, caught_up, completion, eventually, halves, job, keeper, keeper_over, points,
        policy, short, speech,
    },
};

fn long() -> Limits {
    Limits { lease: Duration::from_secs(60), ..Limits::default() }
}

fn ask(providers: &[&str], max: u32, wait_s: u32) -> Value {
    let kinds = ["text_to_video", "text_to_speech"];
    json!({"worker": "w-1", "kinds": kinds, "providers": providers, "max": max, "wait_s": wait_s})
}

async fn order_of(studio: &Studio, provider: &str) -> String {
    let user = studio.someone_with(100).await;
    let mut body = speech(1);
    body["provider"] = json!(provider);
    studio.ordered(user, body).await
}

#[tokio::test]
async fn the_worker_routes_are_for_workers_and_take_what_they_should() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &long(), policy());
    let _keeper = keeper(&store, &long(), policy());
    let (user, _) = studio.some_order().await;
    let leased = studio.next().await;
    let bodies = [
        ("/v1/worker/leases".to_owned(), anything()),
        (leased.path("heartbeat"), json!({"progress": 1})),
        (leased.path("complete"), completion(1)),
        (leased.path("fail"), json!({"reason": "no", "retryable": false})),
    ];
    for (path, body) in &bodies {
        for role in Role::ALL.into_iter().filter(|role| *role != Role::Worker) {
            for id in [user.0, Uuid::new_v4()] {
                let refused = studio.post(role, id, path, "key", body).await;
                assert_eq!(refused.kind(), (403, "forbidden"), "{role:?} {path}");
            }
        }
    }
    for (change, expected) in [
        (json!({"max": 0}), 422),
        (json!({"max": 65}), 422),
        (json!({"kinds": []}), 422),
        (json!({"providers": []}), 422),
        (json!({"providers": vec!["p"; 17]}), 422),
        (json!({"kinds": ["poem"]}), 400),
        (json!({"worker": "NOT A LABEL"}), 400),
        (json!({"else": 1}), 400),
    ] {
        let mut body = anything();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_eq!(studio.work("/v1/worker/leases", body).await.status, expected, "{change}");
    }
    assert_eq!(studio.beat(&leased, 101).await.kind(), (422, "out-of-range"));
    // What it says it has made is looked for.
    for (name, value) in [("object", json!("gone")), ("bytes", json!(99)), ("sha256", json!("abc"))] {
        let mut body = completion(1);
        body["output"][name] = value;
        assert_eq!(studio.work(&leased.path("complete"), body).await.kind(), (422, "out-of-range"), "{name}");
    }
    assert_eq!(job(&store, &leased.job).await.status(), Some(Status::Leased));
    let done = studio.complete(&leased, 1).await;
    assert_eq!(done.status, 200, "{}", done.body);
    let again = studio.complete(&leased, 1).await;
    assert_eq!((again.status.as_u16(), &again.body["replayed"]), (200, &json!(true)));
    assert_eq!(points(&store, user).await, (99, 0));
    studio.stop().await;
}

#[tokio::test]
async fn whoever_does_not_wait_gets_what_there_is() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &long(), policy());
    let _keeper = keeper(&store, &long(), policy());
    let (_, name) = studio.some_order().await;
    caught_up(&store).await;
    // No wait is also what it is when nothing is said of it.
    let said = studio.lease(ask(&["local"], 1, 0)).await;
    assert_eq!(said.iter().map(|leased| &leased.job).collect::<Vec<_>>(), [&name]);
    let (_, name) = studio.some_order().await;
    caught_up(&store).await;
    let mut body = ask(&["local"], 1, 0);
    body.as_object_mut().unwrap().remove("wait_s");
    let unsaid = studio.lease(body).await;
    assert_eq!(unsaid.iter().map(|leased| &leased.job).collect::<Vec<_>>(), [&name]);
    // And none, at once, when there is none.
    assert_eq!(studio.lease(ask(&["local"], 1, 0)).await, []);
    studio.stop().await;
}

#[tokio::test]
async fn a_worker_that_dies_is_noticed_and_what_it_makes_later_is_refused() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &short(), policy());
    let _keeper = keeper(&store, &short(), policy());
    // A second sweeper does the same, which does no harm.
    let _another = keeper(&store, &short(), policy());
    let (user, name) = studio.some_order().await;
    let mut attempts = Vec::new();
    for attempt in 1..=3 {
        // It takes the job and is not heard of again.
        let leased = studio.next().await;
        assert_eq!((leased.job.as_str(), leased.attempt), (name.as_str(), attempt));
        attempts.push(leased);
    }
    becomes(&store, &name, Status::Failed).await;
    assert_eq!(points(&store, user).await, (100, 0));
    for leased in &attempts {
        assert_eq!(studio.complete(leased, 1).await.kind(), (409, "stale-attempt"));
        assert_eq!(studio.beat(leased, 1).await.kind(), (409, "stale-attempt"));
    }
    let log = store.log().await;
    let ended = |event: &str| log.iter().filter(|logged| logged.event_type == event).count();
    assert_eq!((ended("leased"), ended("attempt_failed"), ended("failed")), (3, 2, 1), "each attempt ends once");
    studio.stop().await;
}

/// While the queue was away nobody could be heard of: whoever is alive says so within a lease.
#[tokio::test]
async fn after_an_outage_leases_are_lost_only_when_workers_could_be_heard_of_for_a_while() {
    let store = Store::create().await;
    let limits = Limits { lease: Duration::from_secs(3), ..Limits::default() };
    let studio = Studio::new(&store, &limits, policy());
    let _keeper = keeper(&store, &limits, policy());
    studio.some_order().await;
    let leased = studio.next().await;
    caught_up(&store).await;
    let mut process = store.connect(PROCESS).await;
    // The sweeper's connection, once it has looked at everything with it.
    let sweeper = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
                   AND application_name = 'skyriff video sweeper' AND query LIKE '%10000%' AND pid <> $1";
    let first: i32 = eventually("a look of the sweeper", async || {
        sqlx::query_scalar(sweeper).bind(0).fetch_optional(&mut process).await.unwrap()
    })
    .await;
    // An outage that is longer than the lease.
    process.execute("BEGIN; UPDATE video_queue SET lease_until = now() - interval '1 minute'").await.unwrap();
    sqlx::query("SELECT pg_terminate_backend($1, 5000)").bind(first).execute(&mut process).await.unwrap();
    process.execute("COMMIT").await.unwrap();
    let _second: i32 = eventually("another look of the sweeper", async || {
        sqlx::query_scalar(sweeper).bind(first).fetch_optional(&mut process).await.unwrap()
    })
    .await;
    assert_eq!(studio.beat(&leased, 10).await.status, 200);
    // And who is not heard of even then is lost.
    becomes(&store, &leased.job, Status::Queued).await;
    studio.stop().await;
}

#[tokio::test]
async fn heartbeats_do_not_keep_a_lease_for_ever() {
    let store = Store::create().await;
    let limits = Limits { attempt_max: Duration::from_millis(500), ..long() };
    let studio = Studio::new(&store, &limits, policy());
    let _keeper = keeper(&store, &limits, policy());
    studio.some_order().await;
    let leased = studio.next().await;
    let stale = eventually("the end of a lease", async || {
        let answer = studio.beat(&leased, 10).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(stale.kind(), (409, "stale-attempt"));
    let log = store.log().await;
    let failed = log.iter().find(|logged| logged.event_type == "attempt_failed").unwrap();
    assert!(failed.payload.contains(WorkerFault::Endless.as_str()), "{}", failed.payload);
    studio.stop().await;
}

#[tokio::test]
async fn heartbeats_keep_a_lease_and_late_work_of_an_old_attempt_is_refused() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &short(), policy());
    let _keeper = keeper(&store, &short(), policy());
    let (user, _) = studio.some_order().await;
    let first = studio.next().await;
    // Kept alive for more than three leases.
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(studio.beat(&first, 10).await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Then it hangs, and somebody else gets it.
    let second = studio.next().await;
    assert_eq!((&second.job, second.attempt), (&first.job, 2));
    assert_eq!(studio.complete(&first, 9).await.kind(), (409, "stale-attempt"));
    let not_yet = Leased { attempt: 3, ..second.clone() };
    assert_eq!(studio.complete(&not_yet, 9).await.kind(), (409, "stale-attempt"));
    assert_eq!(studio.beat(&not_yet, 9).await.kind(), (409, "stale-attempt"));
    assert_eq!(studio.complete(&second, 4).await.status, 200);
    assert_eq!(points(&store, user).await, (96, 0));
    studio.stop().await;
}

#[tokio::test]
async fn jobs_that_wait_for_too_long_expire_and_the_points_come_back() {
    let store = Store::create().await;
    let limits = Limits { waiting_max: Duration::from_millis(300), ..long() };
    let studio = Studio::new(&store, &limits, policy());
    let (user, name) = studio.some_order().await;
    assert_eq!(points(&store, user).await, (90, 10));
    let _keeper = keeper(&store, &limits, policy());
    becomes(&store, &name, Status::Expired).await;
    assert_eq!(points(&store, user).await, (100, 0));
    studio.stop().await;
}

/// The turn is when it was submitted minus the aging for each step of priority.
#[tokio::test]
async fn a_higher_priority_comes_first_and_everybody_s_turn_comes() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &long(), policy());
    let user = studio.someone_with(100).await;
    let mut names = BTreeMap::new();
    for (name, priority) in [("old", 0), ("later", 0), ("high", 2), ("higher", 5), ("last", 0)] {
        let body = json!({"kind": "text_to_speech", "prompt": "x", "seconds": 1, "user": user, "priority": priority});
        let answer = studio.api.service("/v1/video-jobs", body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        names.insert(answer.body["job"].as_str().unwrap().to_owned(), name);
    }
    let _keeper = keeper(&store, &long(), policy());
    caught_up(&store).await;
    // The first has waited for three minutes, which is more than two steps of priority are worth, and less than five.
    let old = names.iter().find(|(_, name)| **name == "old").unwrap().0;
    let age = "UPDATE video_queue SET turn_at = turn_at - interval '3 minutes' WHERE job = $1";
    sqlx::query(age).bind(old.parse::<Uuid>().unwrap()).execute(&mut store.owner().await).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..5 {
        order.push(names[&studio.next().await.job]);
    }
    assert_eq!(order, ["higher", "old", "high", "later", "last"]);
    studio.stop().await;
}

#[tokio::test]
async fn a_provider_has_no_more_in_flight_than_its_cap_and_others_go_on() {
    let store = Store::create().await;
    let caps = BTreeMap::from([("dear".parse().unwrap(), 2)]);
    let limits = Limits { provider_caps: caps, ..long() };
    let studio = Studio::new(&store, &limits, policy());
    let other = Studio::new(&store, &limits, policy());
    let _keeper = keeper(&store, &limits, policy());
    for _ in 0..5 {
        order_of(&studio, "dear").await;
    }
    let free = {
        let user = studio.someone_with(100).await;
        studio.ordered(user, speech(1)).await
    };
    caught_up(&store).await;
    // Through two nodes at once.
    let asks = (0..8).map(|number| if number % 2 == 0 { &studio } else { &other });
    let leased = join_all(asks.map(|studio| studio.lease(ask(&["dear"], 4, 1)))).await.concat();
    assert_eq!(leased.len(), 2, "{leased:?}");
    // The one that may be made with anything is not held up by the ones before it.
    let elsewhere = studio.lease(ask(&["dear", "local"], 8, 1)).await;
    assert_eq!(
        elsewhere.iter().map(|job| (job.job.as_str(), job.provider.as_str())).collect::<Vec<_>>(),
        [(free.as_str(), "local")]
    );
    assert_eq!(studio.complete(&leased[0], 1).await.status, 200);
    let next =
        eventually("room", async || Some(studio.lease(ask(&["dear"], 8, 1)).await).filter(|jobs| !jobs.is_empty()))
            .await;
    assert_eq!(next.len(), 1);
    studio.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn noop_makes_only_what_was_ordered_of_it() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &long(), policy());
    let _keeper = keeper(&store, &long(), policy());
    let (_, any) = studio.some_order().await;
    let named = order_of(&studio, "noop").await;
    let (_, another) = studio.some_order().await;
    caught_up(&store).await;
    let taken = async |providers: &[&str]| {
        let leased = studio.lease(ask(providers, 8, 0)).await;
        leased.into_iter().map(|leased| (leased.job, leased.provider)).collect::<Vec<_>>()
    };
    assert_eq!(taken(&["noop"]).await, [(named, "noop".to_owned())]);
    assert_eq!(taken(&["noop"]).await, []);
    // Also of a worker that has both, and prefers it.
    let (local, named) = ("local".to_owned(), order_of(&studio, "noop").await);
    caught_up(&store).await;
    let expected = [(any, local.clone()), (another, local), (named, "noop".to_owned())];
    assert_eq!(taken(&["noop", "local"]).await, expected);
    studio.stop().await;
}

#[tokio::test]
async fn a_provider_that_keeps_failing_is_paused_and_tried_again_with_a_single_job() {
    let store = Store::create().await;
    let breaker = Breaker { failures_min: 3, pause: Duration::from_millis(700), ..Limits::default().breaker };
    let limits = Limits { breaker, ..long() };
    let policy = VideoPolicy { attempts_max: 100, ..policy() };
    let studio = Studio::new(&store, &limits, policy.clone());
    let _keeper = keeper(&store, &limits, policy);
    for _ in 0..4 {
        order_of(&studio, "flaky").await;
    }
    caught_up(&store).await;
    // What can never be made is not the provider's fault.
    let doomed = order_of(&studio, "flaky").await;
    caught_up(&store).await;
    let jobs =
        eventually("all five", async || Some(studio.lease(ask(&["flaky"], 8, 1)).await).filter(|jobs| jobs.len() == 5))
            .await;
    let (hopeless, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|leased| leased.job == doomed);
    assert_eq!(studio.fail(&hopeless[0], false).await.status, 200);
    for leased in &jobs[..3] {
        assert_eq!(studio.fail(leased, true).await.status, 200);
    }
    caught_up(&store).await;
    let state = async || -> Option<(bool, i32)> {
        sqlx::query_as("SELECT paused_until > now(), pauses FROM video_providers WHERE provider = 'flaky'")
            .fetch_optional(&mut store.owner().await)
            .await
            .unwrap()
    };
    assert_eq!(state().await.map(|(_, pauses)| pauses), Some(1));
    // While it is paused, a job that may be made with anything goes elsewhere.
    let user = studio.someone_with(100).await;
    let free = studio.ordered(user, speech(1)).await;
    let elsewhere = eventually("the free one", async || studio.lease(ask(&["flaky", "local"], 1, 1)).await.pop()).await;
    if elsewhere.job == free {
        assert_eq!(elsewhere.provider, "local");
    }
    // After the pause one job tries, in flight beside nobody: the fourth of before is over by then.
    assert_eq!(studio.complete(&jobs[3], 1).await.status, 200);
    caught_up(&store).await;
    let trial = eventually("a trial", async || {
        let jobs = studio.lease(ask(&["flaky"], 8, 1)).await;
        assert!(jobs.len() <= 1, "{jobs:?}");
        jobs.into_iter().next()
    })
    .await;
    assert_eq!(studio.fail(&trial, true).await.status, 200);
    caught_up(&store).await;
    assert_eq!(state().await.map(|(_, pauses)| pauses), Some(2), "it failed again: a longer pause");
    let trial = eventually("another trial", async || studio.lease(ask(&["flaky"], 8, 1)).await.pop()).await;
    assert_eq!(studio.complete(&trial, 1).await.status, 200);
    caught_up(&store).await;
    assert_eq!(state().await, None, "it works again");
    let rest = eventually("the rest", async || {
        Some(studio.lease(ask(&["flaky"], 8, 1)).await).filter(|jobs| !jobs.is_empty())
    })
    .await;
    assert_eq!(rest.len(), 2);
    studio.stop().await;
}

/// Such as a graceful stop: it says nothing about the provider.
#[tokio::test]
async fn a_worker_s_own_fault_pauses_no_provider() {
    let store = Store::create().await;
    let breaker = Breaker { failures_min: 1, ..Limits::default().breaker };
    let limits = Limits { breaker, ..long() };
    let policy = VideoPolicy { attempts_max: 100, ..policy() };
    let studio = Studio::new(&store, &limits, policy.clone());
    let _keeper = keeper(&store, &limits, policy);
    order_of(&studio, "fine").await;
    let pauses = async || -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM video_providers");
        count.fetch_one(&mut store.owner().await).await.unwrap()
    };
    let fail = async |reason: &str| {
        let leased = eventually("the job", async || studio.lease(ask(&["fine"], 1, 1)).await.pop()).await;
        let body = json!({"reason": reason, "retryable": true});
        assert_eq!(studio.work(&leased.path("fail"), body).await.status, 200, "{reason}");
        caught_up(&store).await;
    };
    for fault in WorkerFault::ALL {
        fail(fault.as_str()).await;
        assert_eq!(pauses().await, 0, "{fault:?}");
    }
    fail("it broke").await;
    assert_eq!(pauses().await, 1);
    studio.stop().await;
}

#[tokio::test]
async fn two_nodes_never_give_one_attempt_to_two_workers() {
    const JOBS: usize = 60;
    const WORKERS: usize = 24;
    let store = Store::create().await;
    let nodes = [Studio::new(&store, &long(), policy()), Studio::new(&store, &long(), policy())];
    let _keeper = keeper(&store, &long(), policy());
    for _ in 0..JOBS {
        nodes[0].some_order().await;
    }
    let leased = join_all((0..WORKERS).map(async |worker| {
        let mut mine = Vec::new();
        loop {
            let jobs = nodes[worker % 2].lease(ask(&["local"], 3, 1)).await;
            if jobs.is_empty() {
                return mine;
            }
            for leased in jobs {
                assert_eq!(nodes[(worker + 1) % 2].complete(&leased, 1).await.status, 200);
                mine.push((leased.job, leased.attempt));
            }
        }
    }))
    .await
    .concat();
    let distinct: BTreeSet<_> = leased.iter().collect();
    assert_eq!((leased.len(), distinct.len()), (JOBS, JOBS), "each job was given out once");
    assert!(leased.iter().all(|(_, attempt)| *attempt == 1));
    let log = store.log().await;
    assert_eq!(log.iter().filter(|logged| logged.event_type == "leased").count(), JOBS);
    for studio in nodes {
        studio.stop().await;
    }
}

/// Even if the queue offers one job to two nodes, its stream gives it to one.
#[tokio::test]
async fn the_log_decides_when_the_queue_is_wrong() {
    let store = Store::create().await;
    let nodes = [Studio::new(&store, &long(), policy()), Studio::new(&store, &long(), policy())];
    let keeper_side = keeper(&store, &long(), policy());
    let (_, name) = nodes[0].some_order().await;
    caught_up(&store).await;
    keeper_side.0.stop().await;
    let first = nodes[0].next().await;
    assert_eq!(first.job, name);
    // Nobody has told the queue; its claim is forgotten, and it offers the job again.
    store.owner().await.execute("UPDATE video_queue SET claimed_until = NULL").await.unwrap();
    assert_eq!(nodes[1].lease(ask(&["local"], 8, 1)).await, []);
    let log = store.log().await;
    assert_eq!(log.iter().filter(|logged| logged.event_type == "leased").count(), 1);

    // It can be emptied and built again from the log, with the same outcome.
    let mut owner = store.owner().await;
    owner.execute("DELETE FROM video_queue").await.unwrap();
    owner.execute("UPDATE checkpoints SET position = 0 WHERE projection = 'video_queue'").await.unwrap();
    let _keeper = keeper(&store, &long(), policy());
    caught_up(&store).await;
    let row: (Uuid, String, i32, Option<String>) =
        sqlx::query_as("SELECT job, status, attempt, provider FROM video_queue").fetch_one(&mut owner).await.unwrap();
    assert_eq!(row, (name.parse().unwrap(), "leased".to_owned(), 1, Some("local".to_owned())));
    assert_eq!(nodes[1].beat(&first, 5).await.status, 200);
    assert_eq!(nodes[1].complete(&first, 1).await.status, 200);
    for studio in nodes {
        studio.stop().await;
    }
}

/// A keeper may be behind for long, and the queue may be built again while attempts run.
#[tokio::test]
async fn whoever_has_the_attempt_in_the_log_keeps_it_whatever_the_queue_has() {
    let store = Store::create().await;
    let studio = Studio::new(&store, &long(), policy());
    let keeper_side = keeper(&store, &long(), policy());
    let (user, _) = studio.some_order().await;
    caught_up(&store).await;
    keeper_side.0.stop().await;
    let leased = studio.next().await;
    let another = Leased { user: Uuid::new_v4().to_string(), ..leased.clone() };
    let next = Leased { attempt: 2, ..leased.clone() };
    let mut owner = store.owner().await;
    for behind in ["UPDATE video_queue SET claimed_until = now() - interval '1 minute'", "DELETE FROM video_queue"] {
        owner.execute(behind).await.unwrap();
        assert_eq!(studio.beat(&leased, 5).await.status, 200, "{behind}");
        for stale in [&next, &another] {
            assert_eq!(studio.beat(stale, 5).await.kind(), (409, "stale-attempt"), "{behind}: {stale:?}");
        }
    }
    assert_eq!(studio.complete(&leased, 1).await.status, 200);
    assert_eq!(studio.beat(&leased, 5).await.kind(), (409, "stale-attempt"));
    assert_eq!(points(&store, user).await, (99, 0));
    studio.stop().await;
}

#[tokio::test]
async fn a_cap_is_divided_among_the_databases() {
    let (even, odd) = (Store::create().await, Store::create().await);
    let homes = halves(even.options(COMMAND), odd.options(COMMAND));
    let caps = BTreeMap::from([("dear".parse().unwrap(), 3)]);
    let limits = Limits { provider_caps: caps, ..long() };
    let studio = Studio::over(&homes, &even, &limits, policy());
    let _keeper = keeper_over(&homes, &limits, policy());
    for shard in [0, 1, 2, 3, 4, 5] {
        let user = studio.give(user_of_shard(shard), 100).await;
        let mut body = speech(1);
        body["provider"] = json!("dear");
        studio.ordered(user, body).await;
    }
    for store in [&even, &odd] {
        caught_up(store).await;
    }
    // Whichever is looked at first.
    let leased = [studio.lease(ask(&["dear"], 8, 0)).await, studio.lease(ask(&["dear"], 8, 0)).await].concat();
    assert_eq!(leased.len(), 3, "{leased:?}");
    studio.stop().await;
}

#[tokio::test]
async fn a_database_that_is_away_holds_up_one_claim() {
    let store = Store::create().await;
    // Takes connections, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(silent.local_addr().unwrap().port());
    let homes = halves(store.options(COMMAND), away);
    let studio = Studio::over(&homes, &store, &long(), policy());
    let _keeper = keeper_over(&homes[..1], &long(), policy());
    let start = tokio::time::Instant::now();
    for _ in 0..6 {
        let user = studio.give(user_of_shard(2), 100).await;
        let job = studio.ordered(user, speech(1)).await;
        // More than there are, so that every database is asked.
        let next = async || studio.lease(ask(&["local"], 8, 1)).await.pop();
        assert_eq!(eventually("the job", next).await.job, job);
    }
    // A claim in the silent one takes five seconds.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    drop(studio);
}

#[tokio::test]
async fn nothing_is_leased_to_a_worker_that_has_hung_up() {
    let store = Store::create().await;
    // Where something is counted, claims wait for each other.
    let limits = Limits { provider_caps: BTreeMap::from([("local".parse().unwrap(), 5)]), ..long() };
    let studio = Studio::new(&store, &limits, policy());
    let _keeper = keeper(&store, &limits, policy());
    studio.some_order().await;
    caught_up(&store).await;
    let mut owner = store.owner().await;
    owner.execute("BEGIN; SELECT pg_advisory_xact_lock(x'536b7956'::integer, 0)").await.unwrap();
    let mut looker = store.owner().await;
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    let claim = eventually("a claim that waits", async || {
        let is_waiting: bool = sqlx::query_scalar(waits).fetch_one(&mut looker).await.unwrap();
        is_waiting.then_some(())
    });
    tokio::select! {
        jobs = studio.lease(ask(&["local"], 1, 10)) => panic!("{jobs:?}"),
        () = claim => {}
    }
    // Its worker is gone, and now the claim goes through.
    owner.execute("COMMIT").await.unwrap();
    let leased = studio.next().await;
    assert_eq!(leased.attempt, 1);
    let log = store.log().await;
    assert_eq!(log.iter().filter(|logged| logged.event_type == "leased").count(), 1);
    studio.stop().await;
}

#[tokio::test]
async fn each_database_has_gauges_of_its_own() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    // Of this test's thread, on which all of it runs.
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    let (even, odd) = (Store::create().await, Store::create().await);
    let homes = halves(even.options(COMMAND), odd.options(COMMAND));
    let studio = Studio::over(&homes, &even, &long(), policy());
    let _keeper = keeper_over(&homes, &long(), policy());
    for (shard, count) in [(2, 1), (3, 2)] {
        for _ in 0..count {
            let user = studio.give(user_of_shard(shard), 100).await;
            studio.ordered(user, speech(1)).await;
        }
    }
    for (store, count) in [(&even, 1), (&odd, 2)] {
        let name = store.options(COMMAND).get_database().unwrap().to_owned();
        eventually("its gauge", async || {
            let rendered = metrics.render();
            let mut lines = rendered.lines().filter(|line| line.starts_with("skyriff_video_jobs{"));
            let is_it = |line: &str| line.contains(r#"state="queued""#) && line.contains(&format!("\"{name}\""));
            lines.any(|line| is_it(line) && line.ends_with(&format!(" {count}"))).then_some(())
        })
        .await;
    }
    studio.stop().await;
}

#[tokio::test]
async fn a_thousand_workers_that_wait_cost_a_few_statements_and_get_what_comes() {
    const WORKERS: usize = 1_000;
    let store = Store::create().await;
    let studio = Studio::new(&store, &long(), policy());
    let _keeper = keeper(&store, &long(), policy());
    let transactions = async || -> i64 {
        sqlx::query_scalar("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(&mut store.owner().await)
            .await
            .unwrap()
    };
    // With nothing to do, a thousand that wait for three seconds are a few looks at the queue. The rest is the keeper,
    // which looks at the log once a second, and the sweeper.
    caught_up(&store).await;
    let before = transactions().await;
    let none = join_all((0..WORKERS).map(|_| studio.lease(ask(&["local"], 1, 3)))).await;
    assert!(none.iter().all(Vec::is_empty));
    let cost = transactions().await - before;
    assert!(cost < 300, "{cost} transactions");

    let work = async {
        // Orders that arrive while all of them wait.
        let mut names = BTreeSet::new();
        for _ in 0..20 {
            names.insert(studio.some_order().await.1);
        }
        names
    };
    let workers = join_all((0..WORKERS).map(|_| studio.lease(ask(&["local"], 1, 3))));
    let (names, leased) = tokio::join!(work, workers);
    let leased: Vec<_> = leased.concat();
    let distinct: BTreeSet<_> = leased.iter().map(|leased| leased.job.clone()).collect();
    assert_eq!((leased.len(), distinct), (20, names));
    studio.stop().await;
}

#[tokio::test]
async fn more_workers_than_a_node_takes_are_turned_away() {
    let store = Store::create().await;
    let limits = Limits { asks_max: 2, ..long() };
    let studio = Studio::new(&store, &limits, policy());
    let answers = join_all((0..5).map(|_| studio.work("/v1/worker/leases", ask(&["local"], 1, 1)))).await;
    let turned_away = answers.iter().filter(|answer| answer.kind() == (503, "overloaded")).count();
    assert_eq!(turned_away, 3);
    studio.stop().await;
}

/// Those who serve cannot change what the log says in the queue, and those who keep it cannot lease.
#[tokio::test]
async fn each_role_has_the_rights_of_its_work() {
    let store = Store::create().await;
    let denied = async |role: &str, statement: &str| {
        let error = store.connect(role).await.execute(statement).await.unwrap_err();
        assert!(error.to_string().contains("permission denied"), "{role}: {statement}: {error}");
    };
    let command = skyriff_postgres::databases::COMMAND;
    denied(command, "UPDATE video_queue SET status = 'queued'").await;
    denied(command, "UPDATE video_queue SET attempt = 0").await;
    denied(command, "DELETE FROM video_queue").await;
    denied(command, "SELECT note_video_outcomes('p', 1, 1, 1, 1, 1, 1)").await;
    denied(PROCESS, "SELECT claim_video_jobs('{}', '{}', '{}', 1, 1, 1)").await;
    denied("skyriff_query", "UPDATE video_queue SET progress = 1").await;
}
