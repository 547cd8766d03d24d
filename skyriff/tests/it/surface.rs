//! What every process answers besides commands and queries: its description, health, metrics, and problems.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Folder;

/// The routes of a description that has everything it points at.
pub fn described(description: &Value) -> BTreeSet<String> {
    let text = description.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(description.pointer(reference).is_some(), "{reference} is not described");
    }
    let paths = description["paths"].as_object().unwrap();
    let methods =
        paths.iter().flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| (method, path)));
    methods.map(|(method, path)| format!("{method} {path}")).collect()
}

/// Every name that a type of the sources has in descriptions.
fn names_of_types() -> Vec<String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let crates = ["domain", "read-side", "write-side", "skyriff"].map(|name| workspace.join(name));
    let files = crates.iter().flat_map(|folder| sources(folder));
    files.flat_map(|file| described_types(&fs::read_to_string(file).unwrap())).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let within = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    entries.flat_map(within).filter(|path| path.extension().is_some_and(|is| is == "rs")).collect()
}

fn described_types(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut attributes, mut is_id) = (String::new(), false);
    for line in source.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        let words: Vec<_> = line.split(|char: char| !char.is_alphanumeric()).collect();
        let name = words.iter().position(|word| ["struct", "enum"].contains(word)).and_then(|at| words.get(at + 1));
        if let Some(name) = name {
            let derived = attributes.rsplit_once("#[derive(").is_some_and(|(_, rest)| rest.contains("ToSchema"));
            let other_name = attributes.rsplit_once("(as = ").and_then(|(_, rest)| rest.split([',', ')']).next());
            names.extend(derived.then(|| other_name.unwrap_or(name).to_owned()));
            attributes.clear();
        } else if is_id {
            // As the macro makes it.
            names.push(line.to_owned());
        }
        is_id = line == "id!(";
        match line.ends_with([';', '{', '}']) {
            true => attributes.clear(),
            false => attributes.push_str(line),
        }
    }
    names
}

#[tokio::test]
async fn the_surface_is_described_measured_and_says_what_is_wrong() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let (api, user) = (&dev.api, dev.user);

    let description = api.get("/v1/openapi.json").await.with(StatusCode::OK);
    assert!(description.json["openapi"].as_str().unwrap().starts_with("3.1"), "{}", description.json["openapi"]);
    let described = described(&description.json);
    for route in [
        "post /v1/users/{user}/check-ins",
        "post /v1/users/{user}/earnings",
        "post /v1/users/{user}/recharges",
        "post /v1/users/{user}/spends",
        "post /v1/users/{user}/spends/{spend}/refund",
        "post /v1/users/{user}/holds",
        "post /v1/users/{user}/holds/{hold}/capture",
        "post /v1/users/{user}/holds/{hold}/release",
        "post /v1/users/{user}/expirations",
        "post /v1/users/{user}/adjustments",
        "get /v1/users/{user}/balance",
        "post /v1/tips",
        "get /v1/users/{user}/tips",
        "get /v1/users/{user}/tips/{tip}",
        "get /v1/users/{user}/ledger-entries",
        "put /v1/works/{work}/like",
        "delete /v1/works/{work}/like",
        "get /v1/works/{work}/likes",
        "get /v1/works/hot",
        "get /v1/users/{user}/likes",
        "get /v1/users/{user}/liked-works",
        "post /v1/withdrawals",
        "get /v1/withdrawals",
        "get /v1/users/{user}/withdrawals",
        "get /v1/users/{user}/withdrawals/{withdrawal}",
        "post /v1/users/{user}/withdrawals/{withdrawal}/cancel",
        "post /v1/users/{user}/withdrawals/{withdrawal}/approve",
        "post /v1/users/{user}/withdrawals/{withdrawal}/reject",
        "post /v1/users/{user}/withdrawals/{withdrawal}/resolve",
        "get /v1/events",
        "get /v1/ledger/accounts",
        "get /v1/ledger/balance",
        "get /v1/ledger/entries",
        "get /v1/ledger/holds",
        "get /v1/ledger/statement",
        "get /v1/ledger/trial-balance",
    ] {
        assert!(described.contains(route), "{route} is not in {described:?}");
    }
    // The description would show all types of a name as one of them.
    let types = names_of_types();
    for name in description.json["components"]["schemas"].as_object().unwrap().keys() {
        let of_it = types.iter().filter(|is| *is == name).count();
        assert_eq!(of_it, 1, "so many types are called {name} in descriptions");
    }
    let page = api.get("/v1/docs/").await.with(StatusCode::OK);
    assert!(page.header("content-type").starts_with("text/html"));

    for (path, says) in [("/health/live", "alive"), ("/health/ready", "ready")] {
        assert_eq!(api.get(path).await.with(StatusCode::OK).json, says);
    }

    let packed = api.send(Method::GET, "/v1/openapi.json", &[("Accept-Encoding", "gzip")], None).await.unwrap();
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.bytes.len() < description.bytes.len() / 2);
    let mut unpacked = Vec::new();
    GzDecoder::new(&packed.bytes[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, description.bytes);
    assert!(!description.headers.contains_key("content-encoding"));

    api.get("/v1/nothing").await.is_problem(StatusCode::NOT_FOUND, "not-found");
    let wrong_method = api.send(Method::DELETE, &format!("/v1/users/{user}/balance"), &[], None).await.unwrap();
    wrong_method.is_problem(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed");
    assert!(wrong_method.header("allow").contains("GET"));
    let check_ins = format!("/v1/users/{user}/check-ins");
    let no_key = api.send(Method::POST, &check_ins, &[], None).await.unwrap();
    no_key.is_problem(StatusCode::BAD_REQUEST, "idempotency-key-missing");
    let nobody = api.as_caller("nonsense").get(&format!("/v1/users/{user}/balance")).await;
    nobody.is_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    let somebody_else = api.check_in(Uuid::from_u128(1), "a").await;
    somebody_else.is_problem(StatusCode::FORBIDDEN, "forbidden");
    let not_a_body = api.post(&check_ins, "b", Some(json!({ "when": "now" }))).await.unwrap();
    not_a_body.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    let named = api.send(Method::GET, "/v1/nothing", &[("X-Request-Id", "mine-1")], None).await.unwrap();
    assert_eq!(named.json["request_id"], "mine-1");
    // A problem's type is the address of a page that explains it.
    let page = api.get(named.json["type"].as_str().unwrap()).await.with(StatusCode::OK);
    assert!(page.header("content-type").starts_with("text/html"));

    let accepted = api.check_in(user, "c").await.with(StatusCode::CREATED);
    api.balance(user, &accepted.position()).await;
    let metrics = String::from_utf8(api.get("/metrics").await.with(StatusCode::OK).bytes).unwrap();
    for metric in [
        "skyriff_commands_total{outcome=\"accepted\"} 1",
        "skyriff_executor_append_seconds_bucket{executor=\"skyriff_events-0\"",
        "skyriff_executor_batch_commands_count{executor=\"skyriff_events-1\"",
        "skyriff_executor_queue_depth{",
        "skyriff_executor_queue_limit{executor=\"skyriff_events-0\"} 4096",
        "skyriff_follower_lag_events{follower=\"balances\",shard=\"15\"} ",
        "skyriff_follower_lag_seconds{follower=\"ledger_entries\",shard=\"0\"} ",
        "skyriff_ledger_wrong{shard=\"0\"} 0",
        "skyriff_ledger_looked_at_seconds{shard=\"0\"} 1",
        "skyriff_queries_total{from=\"replica\"} ",
    ] {
        assert!(metrics.contains(metric), "{metric} is not in\n{metrics}");
    }
    dev.interrupt().await.well();
}
