//! Several processes on the same databases.

use std::{collections::BTreeSet, fs};

use futures::future::join_all;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::{
    support::{Api, Folder, Process, eventually, skyriff},
    surface::described,
};

/// `skyriff serve` on the folder's databases.
fn spawn_node(folder: &Folder, roles: &str, variables: &[(&str, &str)]) -> Process {
    let mut command = folder.with_databases(skyriff(&["serve", "--listen", "127.0.0.1:0", "--roles", roles]));
    command.env("SKYRIFF_TOKEN_SECRET", fs::read_to_string(folder.join("token-secret")).unwrap());
    command.envs(variables.iter().copied());
    Process::spawn(command)
}

pub async fn node(folder: &Folder, roles: &str) -> (Process, String) {
    node_with(folder, roles, &[]).await
}

/// The same, with these variables.
pub async fn node_with(folder: &Folder, roles: &str, variables: &[(&str, &str)]) -> (Process, String) {
    let mut process = spawn_node(folder, roles, variables);
    let url = process.says("its address", |said| {
        said.lines().find_map(|line| line.strip_prefix("SkyRiff listens on ").map(str::to_owned))
    });
    let url = url.await;
    (process, url)
}

/// The events of a user's account in the log, by position and sequence.
async fn recorded(folder: &Folder, user: Uuid) -> Vec<(String, i64)> {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("skyriff_query");
    let mut connection = PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap();
    sqlx::query_as(
        "SELECT shard || ':' || position, sequence FROM events
         WHERE aggregate_type = 'points_account' AND aggregate_id = $1 ORDER BY sequence",
    )
    .bind(user.to_string())
    .fetch_all(&mut connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn minted_tokens_let_each_role_do_its_work_and_no_more() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let user = Uuid::from_u128(7);
    let other = Uuid::from_u128(8);
    let mut callers = Vec::new();
    for role in ["user", "service", "operator", "reviewer", "auditor", "analyst", "worker"] {
        callers.push((role, dev.api.as_caller(&folder.token(role, user).await)));
    }
    let adjust = json!({ "bucket": "income", "direction": "credit", "points": 1, "reason": "test" });
    for (role, api) in &callers {
        let earned = api.earn(other, &format!("earn {role}"), 5).await.unwrap();
        assert_eq!(earned.status == StatusCode::CREATED, *role == "service", "{role}");
        let path = format!("/v1/users/{other}/adjustments");
        let adjusted = api.post(&path, &format!("adjust {role}"), Some(adjust.clone())).await.unwrap();
        assert_eq!(adjusted.status == StatusCode::CREATED, *role == "operator", "{role}");
        let own = api.check_in(user, &format!("check in {role}")).await;
        let expected = match *role {
            "user" => StatusCode::CREATED,
            // A day has one check-in, whoever asks.
            "service" => StatusCode::CONFLICT,
            _ => StatusCode::FORBIDDEN,
        };
        assert_eq!(own.status, expected, "{role}");
        let read = api.get(&format!("/v1/users/{other}/balance")).await;
        let may_read = ["service", "operator", "reviewer", "auditor"].contains(role);
        assert_eq!(read.status, if may_read { StatusCode::OK } else { StatusCode::FORBIDDEN }, "{role}");
    }
    let folder_path = folder.as_str();
    let unknown = ["token", "--user", &user.to_string(), "--role", "king", "--folder", &folder_path];
    folder.run(&unknown).await.refused(&["king", "user, service, operator"]);
    let nowhere = ["token", "--user", &user.to_string(), "--folder", "/nowhere"];
    folder.run(&nowhere).await.refused(&["/nowhere", "SKYRIFF_TOKEN_SECRET", "skyriff dev"]);
    dev.interrupt().await.well();
}

#[tokio::test]
async fn two_nodes_append_to_one_account_without_losing_anything() {
    const ALTERNATING: usize = 60;
    const AT_ONCE: usize = 200;
    let folder = Folder::new();
    let dev = folder.dev().await;
    let (commands, commands_url) = node(&folder, "command").await;
    let (queries, queries_url) = node(&folder, "query").await;
    let first = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let second = first.at(&commands_url);
    let nodes = [&first, &second];
    let user = Uuid::from_u128(9);

    for turn in 0..ALTERNATING {
        let key = format!("alternating {turn}");
        let answer = nodes[turn % 2].earn(user, &key, 1).await.unwrap().with(StatusCode::CREATED);
        assert_eq!(answer.json["recorded"][0]["sequence"], turn + 1);
        // The other node finds what this one did.
        let other = nodes[(turn + 1) % 2].earn(user, &key, 1).await.unwrap().with(StatusCode::CREATED);
        assert_eq!((other.header("idempotent-replayed"), other.position()), ("true", answer.position()));
    }
    let at_once = join_all((0..AT_ONCE).map(async |turn| {
        let answer = nodes[turn % 2].earn(user, &format!("at once {turn}"), 1).await.unwrap();
        answer.with(StatusCode::CREATED).position()
    }))
    .await;
    let events = recorded(&folder, user).await;
    let sequences: Vec<_> = events.iter().map(|(_, sequence)| *sequence).collect();
    let all = i64::try_from(ALTERNATING + AT_ONCE).unwrap();
    assert_eq!(sequences, (1..=all).collect::<Vec<_>>());
    let places: BTreeSet<_> = events.iter().map(|(place, _)| place).collect();
    assert!(at_once.iter().all(|place| places.contains(place)));

    // Each role answers its own routes only; the query node sees what the command nodes wrote.
    let at_least = events.last().unwrap().0.clone();
    let reader = first.at(&queries_url);
    assert_eq!(reader.balance(user, &at_least).await["available"]["income"], all);
    reader.earn(user, "elsewhere", 1).await.unwrap().is_problem(StatusCode::NOT_FOUND, "not-found");
    second.get(&format!("/v1/users/{user}/balance")).await.is_problem(StatusCode::NOT_FOUND, "not-found");
    let (changes, reads) = (["post ", "put ", "delete "].as_slice(), ["get "].as_slice());
    for (url, methods) in [(&commands_url, changes), (&queries_url, reads)] {
        let mut routes = described(&first.at(url).get("/v1/openapi.json").await.json);
        // Following a job and fetching what it made are part of ordering it, and read the log itself.
        for route in [
            "/v1/users/{user}/video-jobs/{job}/events",
            "/v1/video-jobs/{job}/events",
            "/v1/users/{user}/video-jobs/{job}/output",
            "/v1/works/{work}/output",
            "/v1/objects/{object}",
        ] {
            routes.remove(&format!("get {route}"));
        }
        let own = |route: &String| methods.iter().any(|method| route.starts_with(method));
        assert!(!routes.is_empty() && routes.iter().all(own), "{routes:?}");
        assert_eq!(first.at(url).get("/health/ready").await.with(StatusCode::OK).json, "ready");
    }
    assert!(second.metric("skyriff_executor_caught_up_events_total", "").await > 0.0);

    for process in [commands, queries] {
        process.signal(Signal::TERM);
        process.end().await.well();
    }
    assert_eq!(folder.audit().await["events"], all);
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_store_of_another_shape_is_refused() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let variables = folder.with_databases(skyriff(&[]));
    let variable = |name: &str| {
        let (_, value) = variables.as_std().get_envs().find(|(key, _)| *key == name).unwrap();
        value.unwrap().to_str().unwrap().to_owned()
    };
    // The count alone contradicts the places; with places to match it contradicts the store.
    let inconsistent = spawn_node(&folder, "command", &[("SKYRIFF_SHARDS", "8")]).end().await;
    inconsistent.refused(&["place for shard 8", "there are 8 shards"]);
    let events = variable("SKYRIFF_EVENT_STORE").replace("0-15=", "0-7=");
    let reads = variable("SKYRIFF_READ_MODELS").split(';').next().unwrap().to_owned();
    let consistent = [("SKYRIFF_SHARDS", "8"), ("SKYRIFF_EVENT_STORE", &events), ("SKYRIFF_READ_MODELS", &reads)];
    let other_store = spawn_node(&folder, "command", &consistent).end().await;
    other_store.refused(&["created with 16 shards", "configuration says 8"]);
    dev.interrupt().await.well();
}

#[tokio::test]
async fn a_node_told_to_stop_answers_what_it_has_in_hand_and_loses_nothing() {
    const CLIENTS: usize = 32;
    let folder = Folder::new();
    let dev = folder.dev().await;
    let (node, url) = node(&folder, "command").await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let user = Uuid::from_u128(10);

    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(send_until_refused(service.at(&url), user, client))).collect();
    eventually("commands to interrupt", async || (recorded(&folder, user).await.len() > 300).then_some(())).await;
    node.signal(Signal::TERM);
    let ended = node.end().await.well();
    assert!(ended.stderr.contains("stopping"), "{}", ended.stderr);

    let mut acknowledged = BTreeSet::new();
    let mut turned_away = Vec::new();
    for client in clients {
        let (answered, last) = client.await.unwrap();
        acknowledged.extend(answered);
        turned_away.push(last);
    }
    let events: BTreeSet<_> = recorded(&folder, user).await.into_iter().map(|(place, _)| place).collect();
    assert!(acknowledged.len() > 300, "{}", acknowledged.len());
    // Neither was anything answered that is not there, nor anything done that was not answered.
    let astray: Vec<_> = acknowledged.symmetric_difference(&events).collect();
    assert!(astray.is_empty(), "{astray:?}");

    // What was turned away is done by another node: in the end each is there once.
    for key in turned_away {
        acknowledged.insert(service.earn(user, &key, 1).await.unwrap().with(StatusCode::CREATED).position());
    }
    let events: BTreeSet<_> = recorded(&folder, user).await.into_iter().map(|(place, _)| place).collect();
    assert_eq!(acknowledged, events);
    dev.interrupt().await.well();
}

/// The positions of what was answered, and the key of the command that was not.
async fn send_until_refused(api: Api, user: Uuid, client: usize) -> (Vec<String>, String) {
    let mut answered = Vec::new();
    loop {
        let key = format!("{client} {}", answered.len());
        match api.earn(user, &key, 1).await {
            Ok(answer) if answer.status == StatusCode::CREATED => answered.push(answer.position()),
            Ok(answer) if answer.status != StatusCode::SERVICE_UNAVAILABLE => panic!("{answer:?}"),
            Ok(_) | Err(_) => return (answered, key),
        }
    }
}
