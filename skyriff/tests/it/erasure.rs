//! A person is forgotten: what they and others said in words is nowhere in the clear, before and after; afterwards nothing
//! opens any more, nothing new is kept, and the books, the read models and every rebuild are as they were.

use std::{fs, path::Path, process::Command};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::{
    support::{Answer, Api, Dev, Folder, eventually},
    withdrawals::files_with,
};

const ACCOUNT: &str = "mei.lin.of.hangzhou@example.com";
const NAME: &str = "Mei Lin of Hangzhou";
const PROMPT: &str = "My grandmother in the garden of her house in Wulin";
const TITLE: &str = "Grandmother Chen at ninety";
const CORRECTED: &str = "she called us about her divorce";
const REJECTED: &str = "the passport of Chen does not fit";
const FAILED: &str = "no such face as grandmother Chen";
/// Only the workers here have it.
const PROVIDER: &str = "test";

/// Everything that was said in words.
const SAID: [&str; 7] = [ACCOUNT, NAME, PROMPT, TITLE, CORRECTED, REJECTED, FAILED];

struct Story {
    folder: Folder,
    dev: Dev,
    user: Uuid,
    own: Api,
    service: Api,
    operator: Api,
    reviewer: Api,
    worker: Api,
}

impl Story {
    async fn start() -> Self {
        let folder = Folder::new();
        let dev = folder.dev_with_variables("127.0.0.1:0", &[("SKYRIFF_PAYOUT_PROVIDER", "none")]).await;
        let user = Uuid::new_v4();
        let as_role = async |role: &str, id: Uuid| dev.api.as_caller(&folder.token(role, id).await);
        let own = as_role("user", user).await;
        let service = as_role("service", Uuid::from_u128(1)).await;
        let operator = as_role("operator", Uuid::from_u128(2)).await;
        let reviewer = as_role("reviewer", Uuid::from_u128(3)).await;
        let worker = as_role("worker", Uuid::from_u128(4)).await;
        Self { own, service, operator, reviewer, worker, folder, dev, user }
    }

    /// Read until it is as fresh as this answer.
    async fn fresh(&self, api: &Api, path: &str, position: &str) -> Answer {
        eventually("a fresh answer", async || {
            let answer = api.send(Method::GET, path, &[("Skyriff-At-Least", position)], None).await.unwrap();
            (answer.status != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
        })
        .await
    }

    async fn adjust(&self, key: &str) -> Answer {
        let body = json!({"bucket": "paid", "direction": "credit", "points": 1, "reason": CORRECTED});
        self.operator.post(&format!("/v1/users/{}/adjustments", self.user), key, Some(body)).await.unwrap()
    }

    async fn withdraw(&self, key: &str) -> Answer {
        let destination = json!({"kind": "alipay", "account": ACCOUNT, "name": NAME});
        self.own.post("/v1/withdrawals", key, Some(json!({"points": 2_000, "destination": destination}))).await.unwrap()
    }

    async fn order(&self, key: &str) -> Answer {
        let body = json!({"kind": "text_to_speech", "prompt": PROMPT, "seconds": 5, "provider": PROVIDER});
        self.own.post("/v1/video-jobs", key, Some(body)).await.unwrap()
    }

    async fn lease(&self) -> Value {
        let ask = json!({"worker": "w-1", "kinds": ["text_to_speech"], "providers": [PROVIDER], "wait_s": 1});
        eventually("a job", async || {
            let answer = self.worker.post("/v1/worker/leases", "-", Some(ask.clone())).await.unwrap();
            answer.with(StatusCode::OK).json["jobs"].as_array().unwrap().first().cloned()
        })
        .await
    }

    async fn say(&self, leased: &Value, what: &str, body: Value) -> Answer {
        let job = leased["job"].as_str().unwrap();
        let path = format!("/v1/worker/jobs/{}/{job}/attempts/{}/{what}", self.user, leased["attempt"]);
        self.worker.post(&path, "-", Some(body)).await.unwrap().with(StatusCode::OK)
    }

    async fn erase(&self, key: &str) -> Answer {
        let body = json!({"asked_by": "person", "reference": "ticket-4711"});
        self.operator.post(&format!("/v1/users/{}/erasure", self.user), key, Some(body)).await.unwrap()
    }

    /// What all files of an export have, unpacked where they are packed as a whole. Parquet is packed in pages, and what it has
    /// in the clear is in its dictionaries and statistics.
    async fn exported(&self, command: &[&str], kind: &str) -> String {
        let out = self.folder.join(&format!("{}.{kind}", Uuid::new_v4()));
        self.folder.run(&[command, &["--out", out.to_str().unwrap()]].concat()).await.well();
        let (mut folders, mut told) = (vec![out.clone()], String::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "gz") {
                    let unpacked = Command::new("gzip").args(["-dc", path.to_str().unwrap()]).output().unwrap();
                    assert!(unpacked.status.success(), "{}", path.display());
                    told.push_str(&String::from_utf8_lossy(&unpacked.stdout));
                } else {
                    told.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap()));
                }
            }
        }
        fs::remove_dir_all(out).unwrap();
        told
    }

    async fn log(&self) -> PgConnection {
        let socket = self.folder.join("run/primary");
        let options = PgConnectOptions::new_without_pgpass().socket(socket).username("skyriff_query");
        PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap()
    }

    /// Whatever can be read about the person, over HTTP and out of the databases.
    async fn all_that_is_told(&self, work: Uuid, withdrawal: &str, position: &str) -> Vec<String> {
        let user = self.user;
        let auditor = self.dev.api.as_caller(&self.folder.token("auditor", Uuid::from_u128(5)).await);
        let analyst = self.dev.api.as_caller(&self.folder.token("analyst", Uuid::from_u128(6)).await);
        let mut told = Vec::new();
        for api in [&self.own, &self.service, &self.operator, &self.reviewer, &auditor] {
            for path in [
                format!("/v1/users/{user}/ledger-entries"),
                format!("/v1/users/{user}/withdrawals"),
                withdrawal.to_owned(),
                "/v1/withdrawals".to_owned(),
                format!("/v1/users/{user}/video-jobs"),
                format!("/v1/users/{user}/works"),
                format!("/v1/works/{work}"),
                "/v1/works".to_owned(),
            ] {
                told.push(String::from_utf8(self.fresh(api, &path, position).await.bytes).unwrap());
            }
        }
        for path in [
            format!("/v1/ledger/entries?user={user}"),
            format!("/v1/ledger/statement?user={user}&format=json"),
            format!("/v1/ledger/statement?user={user}&format=csv"),
            format!("/v1/ledger/statement?user={user}&format=html"),
            "/v1/ledger/reconciliations/exceptions".to_owned(),
        ] {
            let answer = self.fresh(&auditor, &path, position).await.with(StatusCode::OK);
            told.push(String::from_utf8(answer.bytes).unwrap());
        }
        let of_the_person: Vec<(i16, i64)> = sqlx::query_as(
            "SELECT shard, position FROM events WHERE shard = (SELECT shard FROM person_keys WHERE user_id = $1)",
        )
        .bind(user)
        .fetch_all(&mut self.log().await)
        .await
        .unwrap();
        for (shard, position) in of_the_person {
            let event = format!("{shard}:{position}");
            for path in
                [format!("/v1/ledger/events/{event}/story"), format!("/v1/ledger/proofs/inclusion?event={event}")]
            {
                // Not sealed yet is 503.
                let answer = self.fresh(&auditor, &path, &event).await.with(StatusCode::OK);
                told.push(String::from_utf8(answer.bytes).unwrap());
            }
        }
        for path in [format!("/v1/events?user={user}"), "/v1/events".to_owned()] {
            told.push(String::from_utf8(analyst.get(&path).await.with(StatusCode::OK).bytes).unwrap());
        }
        for kind in ["ndjson", "csv"] {
            let out = self.folder.join(&format!("{}.{kind}", Uuid::new_v4()));
            self.folder.run(&["replay", "--out", out.to_str().unwrap()]).await.well();
            told.push(fs::read_to_string(&out).unwrap());
            fs::remove_file(out).unwrap();
        }
        told.push(self.exported(&["replay"], "parquet").await);
        told.push(self.exported(&["audit", "export"], "audited").await);
        for server in ["primary", "replica"] {
            for database in ["skyriff_events", "skyriff_reads_0", "skyriff_reads_1"] {
                told.push(dump(&self.folder, server, database));
            }
        }
        told
    }
}

/// Every table, as text.
fn dump(folder: &Folder, server: &str, database: &str) -> String {
    let bin = Command::new("pg_config").arg("--bindir").output().ok().filter(|found| found.status.success());
    let bin = bin.map(|found| String::from_utf8(found.stdout).unwrap().trim().to_owned());
    let program = bin.map_or_else(|| "pg_dump".into(), |bin| Path::new(&bin).join("pg_dump"));
    let Ok(dumped) = Command::new(program)
        .args(["--host", folder.join(&format!("run/{server}")).to_str().unwrap(), "--username", "skyriff_owner"])
        .args(["--data-only", "--dbname", database])
        .output()
    else {
        return String::new();
    };
    String::from_utf8_lossy(&dumped.stdout).into_owned()
}

#[tokio::test]
async fn a_person_is_forgotten_everywhere_and_the_books_stay() {
    let story = Story::start().await;
    let (user, folder) = (story.user, &story.folder);
    story.service.earn(user, "income", 5_000).await.unwrap().with(StatusCode::CREATED);
    story.adjust("why").await.with(StatusCode::CREATED);
    let bulk = json!({"commands": [{"do": "adjust", "user": user, "idempotency_key": "in bulk", "bucket": "paid",
                                    "direction": "debit", "points": 1, "reason": CORRECTED}]});
    let answer = story.operator.post("/v1/commands:batch", "-", Some(bulk)).await.unwrap().with(StatusCode::OK);
    assert_eq!(answer.json["results"][0]["status"], 201, "{}", answer.json);

    // A video that was made and is shown, and one that could not be made.
    let job: Uuid = story.order("made").await.with(StatusCode::ACCEPTED).json["job"].as_str().unwrap().parse().unwrap();
    let leased = story.lease().await;
    let object = format!("{job}.1.m4a");
    let name = job.to_string();
    let file = folder.join("objects").join(&name[name.len() - 2..]).join(&object);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, [0; 100]).unwrap();
    let output =
        json!({"object": object, "seconds": 5, "bytes": 100, "sha256": "a".repeat(64), "content_type": "audio/mp4"});
    story.say(&leased, "complete", json!({ "output": output })).await;
    let body = json!({"title": TITLE, "visibility": "public"});
    let show =
        async || story.own.send(Method::PUT, &format!("/v1/works/{job}"), &[], Some(body.clone())).await.unwrap();
    show().await.with(StatusCode::CREATED);
    assert_eq!(show().await.status, StatusCode::OK, "the same title is the same when it is sealed");
    // Also one that was made elsewhere.
    let (elsewhere, imported) =
        (Uuid::new_v4(), json!({"title": TITLE, "visibility": "public", "user": user, "imported": true}));
    let import = story.service.send(Method::PUT, &format!("/v1/works/{elsewhere}"), &[], Some(imported)).await.unwrap();
    import.with(StatusCode::CREATED);
    story.order("not made").await.with(StatusCode::ACCEPTED);
    let leased = story.lease().await;
    story.erase("too early for the job").await.is_problem(StatusCode::CONFLICT, "jobs-in-flight");
    story.say(&leased, "fail", json!({"reason": FAILED, "retryable": false})).await;
    let failed = format!("/v1/users/{user}/video-jobs/{}", leased["job"].as_str().unwrap());

    let requested = story.withdraw("money").await.with(StatusCode::CREATED);
    let withdrawal = requested.header("location").to_owned();
    story.erase("too early for the money").await.is_problem(StatusCode::CONFLICT, "withdrawal-open");
    let reject = story.reviewer.post(&format!("{withdrawal}/reject"), "no", Some(json!({ "reason": REJECTED }))).await;
    let position = reject.unwrap().with(StatusCode::CREATED).position();

    // Whoever may, reads all of it.
    let read = async |path: &str| story.fresh(&story.own, path, &position).await.with(StatusCode::OK).json;
    let entries = read(&format!("/v1/users/{user}/ledger-entries")).await;
    let references = entries["entries"].as_array().unwrap().iter().map(|entry| &entry["reference"]);
    assert_eq!(references.filter(|reference| **reference == CORRECTED).count(), 2, "{entries}");
    assert_eq!(read(&withdrawal).await["reason"], REJECTED);
    assert_eq!(read(&failed).await["reason"], FAILED);
    assert_eq!(read(&failed).await["prompt"], PROMPT);
    for path in ["/v1/works".to_owned(), format!("/v1/users/{user}/works")] {
        let works = read(&path).await;
        let titles: Vec<_> = works["works"].as_array().unwrap().iter().map(|work| work["title"].clone()).collect();
        assert_eq!(titles, [TITLE; 2], "{works}");
    }
    assert_eq!(read(&format!("/v1/works/{job}")).await["title"], TITLE);
    let told = String::from_utf8(story.own.get(&format!("{failed}/events")).await.bytes).unwrap();
    assert!(told.contains(FAILED), "{told}");
    assert!(story.own.get(&format!("/v1/works/{job}/output")).await.status.is_success());
    // And nobody finds it in a file: not in the logs, nor in read models, snapshots, write-ahead logs.
    for text in SAID {
        assert_eq!(files_with(folder, text), [""; 0], "{text}");
    }
    let before = folder.audit().await;

    let ask = |id: &Uuid| {
        let (user, folder) = (id.to_string(), folder.as_str());
        [
            "erase",
            "USER",
            "--asked-by",
            "person",
            "--reference",
            "ticket-4711",
            "--operator",
            "OPERATOR",
            "--folder",
            "FOLDER",
        ]
        .map(|word| match word {
            "USER" => user.clone(),
            "OPERATOR" => Uuid::from_u128(2).to_string(),
            "FOLDER" => folder.clone(),
            word => word.to_owned(),
        })
    };
    let asked = ask(&user);
    let asked: Vec<_> = asked.iter().map(String::as_str).collect();
    // Nobody is there to type the id again.
    folder.run(&asked).await.refused(&[]);
    let erased = folder.run(&[asked.as_slice(), &["--yes"]].concat()).await.well();
    assert!(erased.stdout.contains("is erased: event"), "{}", erased.stdout);
    // An id of which nothing is known is more likely a mistake.
    let (nobody, unknown) = (Uuid::new_v4(), "the log has nothing of");
    let of_nobody = ask(&nobody);
    let of_nobody: Vec<_> = of_nobody.iter().map(String::as_str).collect();
    for more in [&[][..], &["--yes"]] {
        let refused = folder.run(&[of_nobody.as_slice(), more].concat()).await;
        assert!(refused.code == Some(1) && refused.stdout.contains(unknown), "{refused:?}");
    }
    let again = folder.run(&[asked.as_slice(), &["--yes"]].concat()).await.well();
    assert!(!erased.stdout.contains(unknown) && !again.stdout.contains(unknown), "{again:?}");
    assert!(again.stdout.contains("was erased before, by event"), "{}", again.stdout);
    let position = story.erase("by HTTP too").await.with(StatusCode::OK).position();

    // The event says who, why and when, and there is one.
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT payload::text, metadata ->> 'actor' FROM events WHERE aggregate_type = 'erasure' AND aggregate_id = $1",
    )
    .bind(user.to_string())
    .fetch_all(&mut story.log().await)
    .await
    .unwrap();
    let said = r#"{"erased":{"asked_by":"person","reference":"ticket-4711"}}"#;
    assert_eq!(rows, [(said.to_owned(), format!("operator:{}", Uuid::from_u128(2)))]);

    // Nothing is shown, nothing opens, and what was made of the prompt is gone.
    assert!(!file.exists(), "{}", file.display());
    for work in [job, elsewhere] {
        let path = format!("/v1/works/{work}");
        let gone = async || story.fresh(&story.dev.api, &path, &position).await.status == StatusCode::NOT_FOUND;
        eventually("the work to be gone", async || gone().await.then_some(())).await;
        assert_eq!(story.dev.api.get(&format!("{path}/output")).await.status, StatusCode::NOT_FOUND);
    }
    let output = story.own.get(&format!("/v1/users/{user}/video-jobs/{job}/output")).await;
    output.is_problem(StatusCode::GONE, "erased");
    let own = story.fresh(&story.own, &withdrawal, &position).await.with(StatusCode::OK).json;
    assert_eq!((&own["destination"], own.get("reason")), (&json!({"state": "erased"}), None), "{own}");
    let told = story.all_that_is_told(job, &withdrawal, &position).await;
    assert!(told.iter().any(|text| text.contains("COPY public.events")), "tables were read");
    assert!(told.iter().filter(|text| text.contains(&user.to_string())).count() > 5);
    for text in SAID {
        let found: Vec<_> = told.iter().filter(|told| told.contains(text)).collect();
        assert!(found.is_empty(), "{text} is in {found:#?}");
        assert_eq!(files_with(folder, text), [""; 0], "{text}");
    }

    // No new key is made, and nothing is kept that would need one.
    story.withdraw("again").await.is_problem(StatusCode::GONE, "erased");
    story.order("again").await.is_problem(StatusCode::GONE, "erased");
    show().await.is_problem(StatusCode::GONE, "erased");
    // But points are corrected, singly and in bulk, and the words are not kept.
    story.adjust("again").await.with(StatusCode::CREATED);
    let bulk = json!({"commands": [{"do": "adjust", "user": user, "idempotency_key": "in bulk again", "bucket": "paid",
                                    "direction": "debit", "points": 1, "reason": CORRECTED}]});
    let answer = story.operator.post("/v1/commands:batch", "-", Some(bulk)).await.unwrap().with(StatusCode::OK);
    assert_eq!(answer.json["results"][0]["status"], 201, "{}", answer.json);
    let position = answer.json["results"][0]["position"].as_str().unwrap().to_owned();
    let entries = story.fresh(&story.own, &format!("/v1/users/{user}/ledger-entries"), &position).await.json;
    let references = entries["entries"].as_array().unwrap().iter().map(|entry| &entry["reference"]);
    assert_eq!(references.filter(|shown| **shown == "not kept: the person was erased").count(), 2, "{entries}");
    let (keys, tombstones): (i64, i64) =
        sqlx::query_as("SELECT count(wrapped_key), count(destroyed_at) FROM person_keys WHERE user_id = $1")
            .bind(user)
            .fetch_one(&mut story.log().await)
            .await
            .unwrap();
    assert_eq!((keys, tombstones), (0, 1));

    // The books are as they were, and read models built anew are the same and tell no more.
    let after = folder.audit().await;
    assert_eq!((&after["ledger"], &after["problems_total"]), (&before["ledger"], &json!(0)));
    assert_eq!(after["by_type"]["erasure.erased"], 1);
    // That it is none is for whoever asks to say.
    let erased = folder.run(&[of_nobody.as_slice(), &["--yes", "--unknown"]].concat()).await.well();
    assert!(erased.stdout.contains(unknown) && erased.stdout.contains("is erased: event"), "{erased:?}");
    folder.run(&["rebuild", "all"]).await.well();
    folder.run(&["rebuild", "all", "--drop"]).await.well();
    let told = story.all_that_is_told(job, &withdrawal, &position).await;
    for text in SAID {
        assert!(!told.iter().any(|told| told.contains(text)), "{text}");
    }
    folder.audit().await;
    let ended = story.dev.interrupt().await.well();
    for text in SAID {
        assert!(!ended.stderr.contains(text) && !ended.stdout.contains(text), "{text} was logged");
    }
}

#[tokio::test]
async fn a_replica_that_has_not_heard_of_an_erasure_opens_nothing() {
    let story = Story::start().await;
    let adjusted = story.adjust("why").await.with(StatusCode::CREATED).position();
    let path = format!("/v1/users/{}/ledger-entries", story.user);
    let shown = story.fresh(&story.own, &path, &adjusted).await.with(StatusCode::OK).json;
    assert_eq!(shown["entries"][0]["reference"], CORRECTED, "{shown}");
    let options = PgConnectOptions::new_without_pgpass().socket(story.folder.join("run/replica")).username("postgres");
    let mut replica = PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap();
    // The key has come.
    eventually("the key on the replica", async || {
        let keys = sqlx::query_scalar::<_, i64>("SELECT count(wrapped_key) FROM person_keys WHERE user_id = $1");
        (keys.bind(story.user).fetch_one(&mut replica).await.unwrap() == 1).then_some(())
    })
    .await;
    story.folder.pause_replica().await;
    story.erase("while it stands still").await.with(StatusCode::CREATED);
    let shown = story.own.get(&path).await.with(StatusCode::OK).json;
    assert_eq!(
        (shown["entries"].as_array().unwrap().len(), shown["entries"][0].get("reference")),
        (1, None),
        "{shown}"
    );
    let keys = sqlx::query_scalar::<_, i64>("SELECT count(wrapped_key) FROM person_keys WHERE user_id = $1");
    assert_eq!(keys.bind(story.user).fetch_one(&mut replica).await.unwrap(), 1, "the replica still has the key");
    replica.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    story.dev.interrupt().await.well();
}

#[tokio::test]
async fn an_erasure_by_http_is_finished_by_a_process_and_only_an_operator_may_ask() {
    let story = Story::start().await;
    let body = json!({"asked_by": "authority", "reference": "court-17"});
    let path = format!("/v1/users/{}/erasure", story.user);
    for api in [&story.own, &story.service, &story.reviewer, &story.worker] {
        api.post(&path, "mine", Some(body.clone())).await.unwrap().is_problem(StatusCode::FORBIDDEN, "forbidden");
    }
    let odd = json!({"asked_by": "person", "reference": "mei@example.com"});
    story
        .operator
        .post(&path, "odd", Some(odd))
        .await
        .unwrap()
        .is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    let work = Uuid::new_v4();
    let imported = json!({"title": TITLE, "visibility": "unlisted", "user": story.user, "imported": true});
    let shown = story.service.send(Method::PUT, &format!("/v1/works/{work}"), &[], Some(imported)).await.unwrap();
    shown.with(StatusCode::CREATED);
    let erased = story.operator.post(&path, "erase", Some(body.clone())).await.unwrap().with(StatusCode::CREATED);
    let again = story.operator.post(&path, "erase", Some(body)).await.unwrap().with(StatusCode::CREATED);
    assert_eq!((again.header("idempotent-replayed"), again.position()), ("true", erased.position()));
    // Its story does not tell what comes of it, and says so.
    let auditor = story.dev.api.as_caller(&story.folder.token("auditor", Uuid::from_u128(5)).await);
    let told = auditor.get(&format!("/v1/ledger/events/{}/story", erased.position())).await.with(StatusCode::OK).json;
    assert_eq!(told["course_is_whole"], false, "{told:#}");
    let path = format!("/v1/works/{work}");
    eventually("the work to be gone", async || {
        let answer = story.fresh(&story.dev.api, &path, &erased.position()).await;
        // What is not taken down yet has no title either.
        assert!(!String::from_utf8(answer.bytes).unwrap().contains(TITLE));
        (answer.status == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    story.folder.audit().await;
    story.dev.interrupt().await.well();
}
