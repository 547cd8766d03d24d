//! `skyriff audit`: a log that nobody has edited passes, on primaries, on replicas, as an export, and while it grows; and
//! whatever a superuser changes behind the application's back is found and named.

mod seal;

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use self::seal::{Sealed, Sealer};
use crate::support::{Api, Folder, Process, TRACE, eventually, skyriff};

const USERS: u128 = 60;

/// As the superuser, with no trigger in the way.
async fn superuser(folder: &Folder, database: &str) -> PgConnection {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("postgres");
    let mut connection = PgConnection::connect_with(&options.database(database)).await.unwrap();
    connection.execute("SET session_replication_role = replica").await.unwrap();
    connection
}

/// Some of everything that moves points, in every shard; `round` makes the keys others.
async fn act(service: &Api, round: u32) {
    for user in 1..=USERS {
        let (key, user) = (format!("{round} {user}"), Uuid::from_u128(user));
        service.earn(user, &key, 10).await.unwrap().with(StatusCode::CREATED);
        if round == 0 {
            service.check_in(user, &format!("check in {key}")).await.with(StatusCode::CREATED);
        }
        let work = Uuid::from_u128(1_000);
        let like = json!({ "user": user });
        service.send(Method::PUT, &format!("/v1/works/{work}/like"), &[], Some(like)).await.unwrap();
    }
}

/// What the audit says with these arguments, right or wrong.
async fn audit(folder: &Folder, arguments: &[&str]) -> Value {
    let ended = folder.run(&[&["audit", "verify", "--json"], arguments].concat()).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!(ended.code == Some(0), report["problems_total"] == 0, "{ended:?}");
    report
}

#[track_caller]
fn passes(report: &Value) {
    assert_eq!(report["problems_total"], 0, "{report:#}");
}

/// Exactly this shard, and this position where one is given, with these words in one problem.
#[track_caller]
fn finds(report: &Value, shard: i16, position: Option<i64>, words: &str) {
    let is_it = |problem: &&Value| {
        problem["shard"] == shard
            && position.is_none_or(|position| problem["position"] == position)
            && problem["what"].as_str().is_some_and(|what| what.contains(words))
    };
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.iter().any(|problem| is_it(&problem)), "no {shard}:{position:?} {words:?} in {problems:#?}");
    assert!(problems.iter().all(|problem| problem["shard"] == shard), "{problems:#?}");
}

/// The largest shard, and a position in its middle that only a like has: what is changed there is in no balance.
async fn a_like(log: &mut PgConnection) -> (i16, i64) {
    let query = "SELECT shard, position FROM events WHERE aggregate_type = 'like' AND position > 3
                 ORDER BY count(*) OVER (PARTITION BY shard) DESC, shard, position LIMIT 1";
    sqlx::query_as(query).fetch_one(log).await.unwrap()
}

/// A store with two rounds of events, each sealed and the second exported.
struct Kept {
    folder: Folder,
    dev: crate::support::Dev,
    log: PgConnection,
    outs: tempfile::TempDir,
    sealer: Sealer,
    first: Sealed,
    second: Sealed,
    export: String,
}

impl Kept {
    async fn new() -> Self {
        let folder = Folder::new();
        let dev = folder.dev().await;
        let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
        let mut log = superuser(&folder, "skyriff_events").await;
        let outs = tempfile::tempdir().unwrap();
        let sealer = Sealer::new(outs.path(), 7);
        act(&service, 0).await;
        let first = sealer.seal(&mut log, "first").await;
        act(&service, 1).await;
        let second = sealer.seal(&mut log, "second").await;
        let export = outs.path().join("export").to_str().unwrap().to_owned();
        folder.run(&["audit", "export", "--out", &export]).await.well();
        Self { folder, dev, log, outs, sealer, first, second, export }
    }

    /// With one checkpoint.
    async fn with(&self, sealed: &Sealed, more: &[&str]) -> Value {
        let keys = self.sealer.keys(7);
        audit(&self.folder, &[&["--checkpoint", &sealed.checkpoint, "--keys", &keys], more].concat()).await
    }

    async fn sql(&mut self, statement: &str) {
        let done = self.log.execute(statement).await.unwrap();
        assert!(done.rows_affected() > 0, "nothing done: {statement}");
    }
}

#[tokio::test]
async fn every_tampering_with_the_log_is_found_and_named() {
    let mut kept = Kept::new().await;
    let (second, first) = (kept.second.checkpoint.clone(), kept.first.checkpoint.clone());
    let keys = kept.sealer.keys(7);
    let both = ["--checkpoint", &second, "--checkpoint", &first, "--keys", &keys];
    let (tiles, export) = (kept.second.tiles.clone(), kept.export.clone());
    let all = [&both[..], &["--tiles", &tiles, "--earlier", &export]].concat();
    passes(&audit(&kept.folder, &all).await);
    passes(&audit(&kept.folder, &[&all[..], &["--replica"]].concat()).await);
    passes(&audit(&kept.folder, &[&both[..], &["--export", &export, "--tiles", &tiles]].concat()).await);

    let (shard, at) = a_like(&mut kept.log).await;
    let here = format!("shard = {shard} AND position = {at}");
    let row = format!("events WHERE {here}");

    // One byte of an old payload: a space, which means nothing to anybody who reads the event.
    kept.sql(&format!("CREATE TEMP TABLE old AS SELECT * FROM {row}")).await;
    kept.sql(&format!("UPDATE events SET payload = (payload::text || ' ')::json WHERE {here}")).await;
    passes(&audit(&kept.folder, &[]).await);
    let size = kept.second.sizes[&shard.unsigned_abs()];
    finds(&kept.with(&kept.second, &[]).await, shard, None, &format!("the positions 1 to {size}: which one"));
    let found = audit(&kept.folder, &all).await;
    finds(&found, shard, Some(at), "not as in the earlier export: payload");
    finds(&found, shard, Some(at), "not the one whose hash is in the tiles");
    finds(&found, shard, None, &format!("the tiles that lead to it say where: position {at}"));
    assert_eq!(found["problems_total"], 4, "{found:#}");
    // What replicates is found there as well.
    finds(&kept.with(&kept.second, &["--replica"]).await, shard, None, "are not those that");

    // With the right key, tree and tiles of the new past: only who has kept a checkpoint knows.
    let anew = kept.sealer.seal(&mut kept.log, "anew").await;
    passes(&kept.with(&anew, &["--tiles", &anew.tiles]).await);
    finds(&kept.with(&kept.first, &["--tiles", &anew.tiles]).await, shard, None, "they were written anew as well");
    let mixed = ["--checkpoint", &anew.checkpoint, "--checkpoint", &first, "--keys", &keys];
    finds(&audit(&kept.folder, &mixed).await, shard, None, "first.checkpoint has sealed");
    kept.sql(&format!("UPDATE events e SET payload = old.payload FROM old WHERE e.{}", here.replace("AND ", "AND e.")))
        .await;
    passes(&audit(&kept.folder, &all).await);

    // What only the metadata knows.
    kept.sql(&format!(
        "UPDATE events SET metadata = replace(metadata::text, 'service:', 'service;')::json WHERE {here}"
    ))
    .await;
    passes(&audit(&kept.folder, &[]).await);
    finds(&audit(&kept.folder, &all).await, shard, Some(at), "not as in the earlier export: metadata");
    kept.sql(&format!(
        "UPDATE events e SET metadata = old.metadata FROM old WHERE e.{}",
        here.replace("AND ", "AND e.")
    ))
    .await;

    // When it was recorded, by a microsecond.
    kept.sql(&format!("UPDATE events SET recorded_at = recorded_at + interval '1 microsecond' WHERE {here}")).await;
    finds(&audit(&kept.folder, &all).await, shard, Some(at), "not as in the earlier export: recorded_at");
    kept.sql(&format!("UPDATE events SET recorded_at = recorded_at - interval '1 microsecond' WHERE {here}")).await;

    // Two events in each other's place. Of different streams, so all sequences are right.
    let swap = format!(
        "UPDATE events SET position = -1 - position WHERE shard = {shard} AND position IN ({at}, {at} - 1);
         UPDATE events SET position = CASE position WHEN -1 - {at} THEN {at} - 1 ELSE {at} END WHERE shard = {shard} AND position < 0"
    );
    kept.sql("ALTER TABLE events DROP CONSTRAINT events_position_check; SELECT 1").await;
    kept.log.execute(swap.as_str()).await.unwrap();
    let found = audit(&kept.folder, &all).await;
    finds(&found, shard, Some(at), "not the one whose hash is in the tiles");
    finds(&found, shard, Some(at - 1), "not the one whose hash is in the tiles");
    finds(&found, shard, Some(at), "aggregate_type");
    kept.log.execute(swap.as_str()).await.unwrap();
    passes(&audit(&kept.folder, &all).await);

    // One from the middle.
    kept.sql(&format!("DELETE FROM {row}")).await;
    finds(&audit(&kept.folder, &[]).await, shard, Some(at), "it is not there");
    finds(&kept.with(&kept.first, &[]).await, shard, None, "cannot be compared");
    kept.sql("INSERT INTO events SELECT * FROM old").await;

    // The number of one in its stream.
    kept.sql(&format!("UPDATE events SET sequence = 77 WHERE {here}")).await;
    finds(&audit(&kept.folder, &[]).await, shard, Some(at), "has sequence 77 here, not 1");
    kept.sql(&format!("UPDATE events SET sequence = 1 WHERE {here}")).await;

    // The last one: checkpoints know, and so do the read models.
    let last = format!("shard = {shard} AND position = {size}");
    kept.sql(&format!("CREATE TEMP TABLE last AS SELECT * FROM events WHERE {last}")).await;
    kept.sql(&format!("DELETE FROM events WHERE {last}")).await;
    let later = format!("the log ends at {}: later", size - 1);
    finds(&kept.with(&kept.second, &[]).await, shard, None, &format!("has sealed {size} events, and {later}"));
    finds(&audit(&kept.folder, &[]).await, shard, None, &format!("has read up to {size}, and {later}"));
    finds(&audit(&kept.folder, &["--earlier", &export]).await, shard, None, "the earlier export has events after");
    kept.sql("INSERT INTO events SELECT * FROM last").await;

    // An event that was never recorded, at the end: the read models take it up, and it is in no checkpoint, as any later one.
    passes(&audit(&kept.folder, &all).await);
    kept.dev.interrupt().await.well();
}

#[tokio::test]
async fn seals_from_before_a_shard_had_any_event_hold_and_what_no_seal_reaches_is_named() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let mut log = superuser(&folder, "skyriff_events").await;
    let outs = tempfile::tempdir().unwrap();
    let sealer = Sealer::new(outs.path(), 7);
    // The first seal of a store has no event of any shard, the next one of a single shard.
    let nothing = sealer.seal(&mut log, "nothing").await;
    let earned = service.earn(Uuid::from_u128(1), "first", 10).await.unwrap().with(StatusCode::CREATED).position();
    let one = sealer.seal(&mut log, "one").await;
    act(&service, 0).await;
    let keys = sealer.keys(7);
    let both = ["--checkpoint", &nothing.checkpoint, "--checkpoint", &one.checkpoint, "--keys", &keys];
    let report = audit(&folder, &both).await;
    passes(&report);
    let (shard, position) = earned.split_once(':').unwrap();
    assert_eq!((&report["sealed"], position), (&json!({ shard: 1 }), "1"));
    let mut heads: BTreeMap<String, u64> = serde_json::from_value(report["heads"].clone()).unwrap();
    heads.retain(|_, events| *events > 0);
    let mut beyond = heads.clone();
    *beyond.get_mut(shard).unwrap() -= 1;
    beyond.retain(|_, events| *events > 0);
    assert_eq!(report["not_sealed"], json!(beyond));
    let said = folder.run(&[&["audit", "verify"], &both[..]].concat()).await.well().stdout;
    assert!(said.contains(&format!("SHARD:HOW MANY: {shard}:1\n")), "{said}");
    let (_, later) = said.split_once("not edited: ").unwrap();
    assert_eq!(later.trim().split(' ').count(), beyond.len(), "{said}");
    // And of what is sealed whole nothing is left.
    let all = sealer.seal(&mut log, "all").await;
    let report = audit(&folder, &["--checkpoint", &all.checkpoint, "--keys", &keys]).await;
    assert_eq!((&report["sealed"], &report["not_sealed"]), (&json!(heads), &json!({})));
    dev.interrupt().await.well();
}

#[tokio::test]
async fn rows_of_read_models_that_were_changed_are_found_and_named() {
    let kept = Kept::new().await;
    let mut reads = superuser(&kept.folder, "skyriff_reads_0").await;
    let (user, shard): (Uuid, i16) =
        sqlx::query_as("SELECT user_id, shard FROM balances ORDER BY 1 LIMIT 1").fetch_one(&mut reads).await.unwrap();
    let at: i64 = sqlx::query_scalar(
        "SELECT position FROM ledger_entries WHERE user_id = $1 AND account = 'user:available:promo'",
    )
    .bind(user)
    .fetch_one(&mut reads)
    .await
    .unwrap();
    let of_user = format!("WHERE user_id = '{user}'");
    let table = [
        (
            format!("UPDATE balances SET available_income = available_income + 1 {of_user}"),
            format!("UPDATE balances SET available_income = available_income - 1 {of_user}"),
            format!("the balance of user {user} is not the fold of its events: available_income is 21 instead of 20"),
        ),
        (
            format!("UPDATE promo_lots SET points = points + 1 {of_user}"),
            format!("UPDATE promo_lots SET points = points - 1 {of_user}"),
            "its promo_lots are others".to_owned(),
        ),
        (
            format!("UPDATE ledger_entries SET amount = amount + 1 {of_user} AND account = 'user:available:promo'"),
            format!("UPDATE ledger_entries SET amount = amount - 1 {of_user} AND account = 'user:available:promo'"),
            format!("the ledger entries of user {user} on user:available:promo sum to 11 instead of 10"),
        ),
        (
            format!(
                "UPDATE ledger_entries SET user_id = '{}' {of_user} AND account = 'user:available:promo'",
                Uuid::nil()
            ),
            format!("UPDATE ledger_entries SET user_id = '{user}' WHERE user_id = '{}'", Uuid::nil()),
            format!("there are no ledger entries of user {user} on user:available:promo, which sum to 10"),
        ),
        (
            format!("UPDATE likes SET liked_at = liked_at + interval '1 second' {of_user}"),
            format!("UPDATE likes SET liked_at = liked_at - interval '1 second' {of_user}"),
            format!("user {user} likes work"),
        ),
        (
            format!("UPDATE work_likes SET likes = likes + 1 WHERE shard = {shard}"),
            format!("UPDATE work_likes SET likes = likes - 1 WHERE shard = {shard}"),
            "likes from the users of the shard, and not".to_owned(),
        ),
    ];
    for (tamper, undo, words) in table {
        assert!(reads.execute(tamper.as_str()).await.unwrap().rows_affected() > 0, "{tamper}");
        let found = audit(&kept.folder, &[]).await;
        finds(&found, shard, None, &words);
        if tamper.contains("ledger_entries") {
            finds(&found, shard, Some(at), &format!("its ledger entries of user {user} are"));
        }
        reads.execute(undo.as_str()).await.unwrap();
    }
    passes(&audit(&kept.folder, &[]).await);
    kept.dev.interrupt().await.well();
}

/// The lines of a shard in an export, changed.
fn rewrite(export: &Path, shard: i16, change: impl Fn(&str) -> String) -> Vec<u8> {
    let place = export.join(format!("shard-{shard:04}.ndjson.gz"));
    let before = fs::read(&place).unwrap();
    let text = std::io::read_to_string(GzDecoder::new(&before[..])).unwrap();
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(change(&text).as_bytes()).unwrap();
    fs::write(&place, out.finish().unwrap()).unwrap();
    before
}

#[tokio::test]
async fn an_export_is_checked_without_any_database() {
    let mut kept = Kept::new().await;
    let (shard, at) = a_like(&mut kept.log).await;
    let Kept { folder, dev, outs, sealer, first, second, export, .. } = kept;
    dev.interrupt().await.well();
    let keys = sealer.keys(7);
    let offline = async |more: &[&str]| {
        let arguments =
            ["audit", "verify", "--json", "--export", &export, "--checkpoint", &second.checkpoint, "--keys", &keys];
        let ended = Process::spawn(skyriff(&[&arguments[..], more].concat())).end().await;
        serde_json::from_str::<Value>(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"))
    };
    let found = offline(&["--checkpoint", &first.checkpoint]).await;
    passes(&found);
    let sizes: u64 = second.sizes.values().sum();
    assert_eq!((&found["events"], &found["ledger_sums"]["points"]), (&json!(sizes), &json!(0)));

    let place = Path::new(&export).join(format!("shard-{shard:04}.ndjson.gz"));
    // A byte of a row.
    let line = |text: &str| text.lines().nth(usize::try_from(at - 1).unwrap()).unwrap().to_owned();
    let before = rewrite(Path::new(&export), shard, |text| {
        text.replace(&line(text), &line(text).replace("\"liked\\", "\"liked \\"))
    });
    finds(&offline(&["--tiles", &second.tiles]).await, shard, Some(at), "not the one whose hash is in the tiles");
    fs::write(&place, &before).unwrap();
    let before = rewrite(Path::new(&export), shard, |text| {
        text.replace(&line(text), &line(text).replace("service:", "service;"))
    });
    finds(&offline(&["--tiles", &second.tiles]).await, shard, Some(at), "not the one whose hash is in the tiles");
    finds(&offline(&[]).await, shard, None, "which one, the tiles would tell");
    fs::write(&place, &before).unwrap();
    // A line, one at the end, and half of one.
    rewrite(Path::new(&export), shard, |text| text.replace(&format!("{}\n", line(text)), ""));
    finds(&offline(&[]).await, shard, Some(at), "it is not there");
    fs::write(&place, &before).unwrap();
    rewrite(Path::new(&export), shard, |text| text[..text.trim_end().rfind('\n').unwrap() + 1].to_owned());
    finds(&offline(&[]).await, shard, None, "the export ends at");
    finds(&offline(&[]).await, shard, None, "later ones are gone");
    fs::write(&place, &before).unwrap();
    rewrite(Path::new(&export), shard, |text| text[..text.len() - 9].to_owned());
    finds(&offline(&[]).await, shard, None, "cannot be read from here on");
    // A bit of the file itself.
    let mut flipped = before.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&place, &flipped).unwrap();
    assert_ne!(offline(&[]).await["problems_total"], 0);
    fs::write(&place, &before).unwrap();
    passes(&offline(&["--tiles", &second.tiles]).await);

    // Nobody else may sign, and nobody else may read.
    let other = Sealer::new(outs.path(), 8);
    let arguments =
        ["audit", "verify", "--export", &export, "--checkpoint", &second.checkpoint, "--keys", &other.keys(8)];
    Process::spawn(skyriff(&arguments)).end().await.refused(&["is not to be believed", "no known key"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&place).unwrap().permissions());
    assert_eq!(mode & 0o077, 0);
    drop(folder);
}

/// The API's answer with the newest checkpoint, to auditors only.
async fn checkpoint_api(checkpoint: &str) -> String {
    let answer = json!({ "checkpoint": fs::read_to_string(checkpoint).unwrap() });
    let get = axum::routing::get(async move |headers: axum::http::HeaderMap| {
        match headers.get("authorization").and_then(|value| value.to_str().ok()) {
            Some("Bearer an auditor's") => Ok(axum::Json(answer)),
            _ => Err(axum::http::StatusCode::UNAUTHORIZED),
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = axum::Router::new().route("/v1/ledger/checkpoint", get);
    tokio::spawn(axum::serve(listener, routes).into_future());
    url
}

#[tokio::test]
async fn the_newest_checkpoint_is_asked_for_and_a_replica_that_is_behind_is_checked_as_far_as_it_is() {
    let mut kept = Kept::new().await;
    let keys = kept.sealer.keys(7);
    let url = checkpoint_api(&kept.second.checkpoint).await;
    let newest = ["--url", &url, "--keys", &keys, "--token"];
    let report = audit(&kept.folder, &[&newest[..], &["an auditor's"]].concat()).await;
    passes(&report);
    assert_eq!(report["checkpoints"], json!(["the newest checkpoint"]));
    let (shard, at) = a_like(&mut kept.log).await;
    // And the system's own sealer, once it has sealed the event that will be changed.
    let token = kept.folder.token("auditor", Uuid::from_u128(3)).await;
    let (own_keys, tiles) = (kept.folder.join("seal-keys.pub"), kept.folder.join("objects/ledger"));
    let (own_keys, tiles) = (own_keys.to_str().unwrap(), tiles.to_str().unwrap());
    let own_url = kept.dev.api.url.clone();
    let own = ["--url", &own_url, "--keys", own_keys, "--token", &token, "--tiles", tiles];
    let auditor = kept.dev.api.as_caller(&token);
    eventually("a seal of everything", async || {
        let sealed = auditor.get("/v1/ledger/checkpoint").await.json["checkpoint"].as_str()?.to_owned();
        kept.second.sizes.iter().all(|(shard, size)| sealed.contains(&format!("\n{shard} {size} "))).then_some(())
    })
    .await;
    passes(&audit(&kept.folder, &own).await);
    let tamper =
        format!("UPDATE events SET payload = (payload::text || ' ')::json WHERE shard = {shard} AND position = {at}");
    kept.sql(&tamper).await;
    let report = audit(&kept.folder, &[&newest[..], &["an auditor's"]].concat()).await;
    finds(&report, shard, None, "not those that the newest checkpoint has sealed");
    finds(&audit(&kept.folder, &own).await, shard, Some(at), "not the one whose hash is in the tiles");
    let refused = kept.folder.run(&[&["audit", "verify"], &newest[..], &["nobody's"]].concat()).await;
    refused.refused(&["there is no newest checkpoint to be had", "401"]);

    // A replica that stands still.
    passes(&audit(&kept.folder, &["--replica"]).await);
    let before = audit(&kept.folder, &[]).await["events"].clone();
    let mut replica = kept.folder.pause_replica().await;
    let service = kept.dev.api.as_caller(&kept.folder.token("service", Uuid::from_u128(1)).await);
    let user = Uuid::from_u128(1);
    let earned = service.earn(user, "one more", 10).await.unwrap().with(StatusCode::CREATED).position();
    let report = audit(&kept.folder, &["--replica", "--wait-s", "1"]).await;
    passes(&report);
    assert_eq!(report["events"], before);
    let (shard, position) = earned.split_once(':').unwrap();
    let note = format!(
        "the replica of shard {shard} ends at {}, and the primary at {position}",
        position.parse::<i64>().unwrap() - 1
    );
    let no_checkpoint = "no checkpoint was given: the tree was compared with nothing";
    assert_eq!(report["notes"], json!([no_checkpoint, note]));
    replica.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    let report = audit(&kept.folder, &["--replica"]).await;
    passes(&report);
    assert_eq!(
        (&report["notes"], report["events"].as_u64()),
        (&json!([no_checkpoint]), before.as_u64().map(|events| events + 1))
    );
    kept.dev.interrupt().await.well();
}

/// Read models and log move on while they are compared, and what is compared is of one moment.
#[tokio::test]
async fn a_store_that_is_in_use_passes_whenever_it_is_asked() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let play = skyriff(&["play", TRACE, "--bulk", "--url", &dev.api.url, "--folder", &folder.as_str()]);
    let playing = Process::spawn(play);
    let mut seen = Vec::new();
    eventually("four audits, each of a larger log than the one before", async || {
        let replica: &[&str] = if seen.len() % 2 == 1 { &["--replica"] } else { &[] };
        let report = audit(&folder, replica).await;
        passes(&report);
        let events = report["events"].as_u64().unwrap();
        if seen.last().is_none_or(|last| *last < events) {
            seen.push(events);
        }
        (seen.len() == 5).then_some(())
    })
    .await;
    drop(playing);
    passes(&audit(&folder, &[]).await);
    dev.interrupt().await.well();
}
