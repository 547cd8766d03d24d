//! `skyriff replay`: exports that go on, agree with each other, and open in DuckDB.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::{
    play::PLAY_MAX,
    support::{Folder, Process, TRACE, eventually, skyriff},
};

/// An engine that shares no code with ours, pinned.
const DUCKDB: &str = "duckdb==1.4.1";

/// Where DuckDB is; fetched when a test first needs it.
fn duckdb() -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(DUCKDB);
    if !place.exists() {
        let half_made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
        let installed = pip.arg(half_made.path()).arg(DUCKDB).output().unwrap();
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        // Another test may have been faster.
        fs::rename(half_made.keep(), &place).ok();
    }
    place
}

/// What a query of DuckDB gives, as text.
fn ask(query: &str) -> Vec<Vec<String>> {
    const PROGRAM: &str = "import duckdb, json, sys; \
        print(json.dumps([[str(v) for v in row] for row in duckdb.sql(sys.argv[1]).fetchall()]))";
    let answer = Command::new("python3").env("PYTHONPATH", duckdb()).args(["-c", PROGRAM, query]).output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    serde_json::from_slice(&answer.stdout).unwrap()
}

fn manifest(out: &Path) -> Value {
    let text = fs::read(format!("{}.manifest.json", out.display())).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Every file below, by its name from there.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store with the trace.
async fn played() -> (Folder, crate::support::Dev) {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let play = skyriff(&["play", TRACE, "--bulk", "--url", &dev.api.url, "--folder", &folder.as_str()]);
    Process::spawn(play).end_within(PLAY_MAX).await.well();
    (folder, dev)
}

/// The same from the log itself.
async fn rows(folder: &Folder, query: &'static str) -> Vec<Vec<String>> {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("skyriff_query");
    let mut log = PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap();
    sqlx::query_scalar(query).fetch_all(&mut log).await.unwrap()
}

#[tokio::test]
async fn exports_up_to_the_same_positions_are_the_same_and_open_in_duckdb() {
    let (folder, dev) = played().await;
    let outs = tempfile::tempdir().unwrap();
    let out = |name: &str| outs.path().join(name);
    let replay = async |name: &str, more: &[&str]| {
        let name = out(name);
        folder.run(&[&["replay", "--out", text(&name)], more].concat()).await
    };

    replay("first.ndjson", &[]).await.well();
    let first = manifest(&out("first.ndjson"));
    // What is recorded later belongs to a later export only.
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    for user in 1..=20 {
        service.earn(Uuid::from_u128(user), &format!("later {user}"), 1).await.unwrap().with(StatusCode::CREATED);
    }
    let upto = format!("{}.manifest.json", text(&out("first.ndjson")));
    let told = replay("second.ndjson", &["--upto", &upto]).await.well();
    assert!(told.stdout.contains("the same events as then"), "{}", told.stdout);
    assert_eq!(fs::read(out("first.ndjson")).unwrap(), fs::read(out("second.ndjson")).unwrap());
    assert_eq!(first, manifest(&out("second.ndjson")));
    let later = replay("later.ndjson", &[]).await.well();
    assert!(!later.stdout.contains("the same"));
    let counts = |manifest: &Value| -> u64 {
        manifest["shards"].as_object().unwrap().values().map(|shard| shard["events"].as_u64().unwrap()).sum()
    };
    assert_eq!(counts(&manifest(&out("later.ndjson"))), counts(&first) + 20);
    // An export that is complete is not begun again, and one of something else is not gone on with.
    replay("first.ndjson", &[]).await.refused(&["complete", "delete it"]);
    replay("first.txt", &[]).await.refused(&[".ndjson, .csv and .parquet"]);
    replay("x.ndjson", &["--type", "points_account.Spent"]).await.refused(&["Spent"]);
    replay("x.ndjson", &["--only-shards", "16"]).await.refused(&["no shard 16"]);
    let backwards = ["--from", "2026-02-01T00:00:00Z", "--to", "2026-01-01T00:00:00Z"];
    replay("x.ndjson", &backwards).await.refused(&["from must be before to"]);
    // Nor is a manifest that says nothing of what is asked for compared with, or a folder with other files in it written to.
    replay("one.ndjson", &["--only-shards", "3"]).await.well();
    let of_one = format!("{}.manifest.json", text(&out("one.ndjson")));
    replay("x.ndjson", &["--only-shards", "5", "--upto", &of_one]).await.refused(&["shard 5", "not in the manifest"]);
    fs::create_dir(out("other.parquet")).unwrap();
    fs::write(out("other.parquet/part-1.parquet"), "somebody's").unwrap();
    replay("other.parquet", &[]).await.refused(&["other.parquet", "not empty"]);

    // Somebody changed what was there: it is found, and where.
    let mut tampered = first.clone();
    tampered["shards"]["3"]["sha256"] = Value::from("0".repeat(64));
    fs::write(out("tampered.json"), tampered.to_string()).unwrap();
    let told = replay("third.ndjson", &["--upto", text(&out("tampered.json"))]).await;
    told.refused(&["not the same events", "shards 3"]);

    // Another format has the same events, as the hashes say.
    let some = ["--from", "2026-06-01T00:00:00Z", "--type", "points_account.checked_in,points_account.recharged"];
    replay("some.csv", &some).await.well();
    let csv = format!("{}.manifest.json", text(&out("some.csv")));
    let told = replay("some.parquet", &[&some[..], &["--upto", &csv]].concat()).await.well();
    assert!(told.stdout.contains("the same events as then"), "{}", told.stdout);

    // Each day and type, from an engine of its own and from the log.
    let path = out("some.parquet");
    let glob = format!("read_parquet('{}/**/*.parquet', hive_partitioning = true)", text(&path));
    let found = ask(&format!(
        "SELECT day, type, count(*), sum(CAST(data ->> 'points' AS bigint)), max(sequence), min(epoch_us(occurred_at)),
                count(DISTINCT command_id), count(DISTINCT stream), sum(position), max(actor), count(causation)
         FROM {glob} GROUP BY day, type ORDER BY day, type"
    ));
    let expected = rows(
        &folder,
        "SELECT ARRAY[
             min((occurred_at AT TIME ZONE 'UTC')::date)::text, min(aggregate_type || '.' || event_type), count(*)::text,
             sum((payload -> event_type ->> 'points')::bigint)::text, max(sequence)::text,
             min((extract(epoch FROM occurred_at) * 1000000)::bigint)::text,
             count(DISTINCT metadata ->> 'command_id')::text, count(DISTINCT aggregate_id)::text, sum(position)::text,
             max(split_part(metadata ->> 'actor', ':', 1)), count(metadata ->> 'causation')::text]
         FROM events
         WHERE occurred_at >= '2026-06-01T00:00:00Z' AND aggregate_type = 'points_account'
           AND event_type IN ('checked_in', 'recharged')
         GROUP BY (occurred_at AT TIME ZONE 'UTC')::date, event_type
         ORDER BY (occurred_at AT TIME ZONE 'UTC')::date, event_type",
    )
    .await;
    assert!(expected.len() > 50, "{expected:?}");
    assert_eq!(found, expected);
    let columns = ask(&format!("SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {glob})"));
    let typed = |name: &str| columns.iter().find(|column| column[0] == name).map(|column| column[1].as_str());
    assert_eq!((typed("day"), typed("occurred_at")), (Some("DATE"), Some("TIMESTAMP WITH TIME ZONE")));
    // And the other formats are read as well.
    let total: u64 = expected.iter().map(|row| row[2].parse::<u64>().unwrap()).sum();
    for reader in ["read_csv", "read_json"] {
        let (name, expected) = match reader {
            "read_csv" => ("some.csv", total),
            _ => ("first.ndjson", counts(&first)),
        };
        let found = ask(&format!(
            "SELECT count(*), count(DISTINCT shard || ':' || position) FROM {reader}('{}')",
            text(&out(name))
        ));
        assert_eq!(found, [[expected.to_string(), expected.to_string()]], "{name}");
    }
    dev.interrupt().await.well();
}

#[tokio::test]
async fn an_export_that_was_killed_goes_on_and_comes_out_the_same() {
    let (folder, dev) = played().await;
    let outs = tempfile::tempdir().unwrap();
    for (format, only) in [("ndjson", "0-15"), ("csv", "0-15"), ("parquet", "0-2")] {
        let (whole, cut) = (outs.path().join(format!("whole.{format}")), outs.path().join(format!("cut.{format}")));
        let options = ["--segment", "100", "--only-shards", only, "--out"];
        folder.run(&[&["replay"], &options[..], &[text(&whole)]].concat()).await.well();

        let arguments = [&["replay"], &options[..], &[text(&cut)]].concat();
        let mut killed = Process::spawn(folder.with_databases(skyriff(&arguments)));
        let place = PathBuf::from(format!("{}.manifest.json", text(&cut)));
        eventually("an export on its way", async || {
            assert!(killed.is_running() || place.exists());
            let read: Value = serde_json::from_slice(&fs::read(&place).ok()?).unwrap();
            read["shards"].as_object()?.values().any(|shard| shard["read"].as_i64() > Some(0)).then_some(())
        })
        .await;
        killed.signal(Signal::KILL);
        killed.end().await;
        let left = manifest(&cut);
        assert_eq!(left["complete"], false, "{format} was over before it was killed");

        let other = [&["replay", "--type", "points_account.spent"], &options[..], &[text(&cut)]].concat();
        folder.run(&other).await.refused(&["other options"]);
        let went_on = folder.run(&arguments).await.well();
        assert!(went_on.stderr.contains("going on"), "{}", went_on.stderr);
        assert_eq!(manifest(&cut), manifest(&whole), "{format}");
        if format == "parquet" {
            let all = files(&whole);
            assert!(all.len() > 100 && all.keys().all(|name| name.extension().is_some_and(|end| end == "parquet")));
            assert!(files(&cut) == all, "other files");
        } else {
            assert!(fs::read(&cut).unwrap() == fs::read(&whole).unwrap(), "another file");
        }
    }
    dev.interrupt().await.well();
}
