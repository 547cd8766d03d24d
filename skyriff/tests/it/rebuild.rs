//! Read models built anew, switched to, gone back from and dropped, while everybody goes on.

mod interrupted;
mod moving;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use skyriff_domain::{ShardCount, UserId, shard_of};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::{Api, Dev, Folder, Process, eventually, skyriff};

/// A shard in which points are given one by one and nothing else happens, and one in which only likes are given. Both
/// live in the first read database.
const OF_POINTS: u16 = 3;
const OF_LIKES: u16 = 5;
const READS: [&str; 2] = ["skyriff_reads_0", "skyriff_reads_1"];
/// What `rebuild all` builds.
const MODELS: [&str; 8] =
    ["balances", "ledger_entries", "likes", "reconciliations", "tips", "video_jobs", "withdrawals", "works"];

fn user_of_shard(of: impl Fn(u16) -> bool) -> Uuid {
    std::iter::repeat_with(Uuid::new_v4).find(|user| of(shard_of(UserId(*user), ShardCount::default()).0)).unwrap()
}

/// Whether to go on, and how often something was done.
#[derive(Clone, Default)]
struct Going {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

/// Where queries go at the moment, as a load balancer would have it.
#[derive(Clone)]
struct Reads(Arc<Mutex<Api>>);

impl Reads {
    fn now(&self) -> Api {
        self.0.lock().unwrap().clone()
    }
}

/// Tasks that write and read until they are stopped. They panic on the first answer that is not as it must be.
struct Load {
    going: Going,
    reads: Reads,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// With readers in the database as well, which see whether what belongs together is torn apart.
    async fn start(folder: &Folder, dev: &Dev) -> Self {
        let mut load = Self::start_at(folder, dev, &dev.api.url).await;
        for server in ["primary", "replica"] {
            let connection = connect_to(folder, server, "skyriff_query", READS[0]).await;
            load.go(looks_for_torn_rows(connection));
        }
        load
    }

    /// With queries going to another node than commands.
    async fn start_at(folder: &Folder, dev: &Dev, queries: &str) -> Self {
        let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
        let reads = Reads(Arc::new(Mutex::new(service.at(queries))));
        let mut load = Self { going: Going::default(), reads: reads.clone(), tasks: Vec::new() };
        for number in 0..8 {
            let shard_of_points = number % 2 == 0;
            let user = user_of_shard(|shard| (shard == OF_POINTS) == shard_of_points && shard != OF_LIKES);
            load.go(gives_and_reads(service.clone(), reads.clone(), user));
        }
        for _ in 0..3 {
            load.go(likes_and_reads(service.clone(), reads.clone()));
        }
        load
    }

    /// From now on queries go there.
    fn read_at(&self, url: &str) {
        let mut reads = self.reads.0.lock().unwrap();
        *reads = reads.at(url);
    }

    fn go<T: Future<Output = ()> + Send + 'static>(&mut self, step: impl FnOnce(Going) -> T) {
        self.tasks.push(tokio::spawn(step(self.going.clone())));
    }

    /// Wait until so much more was written and read, by tasks that are all well.
    async fn more(&self, times: u64) {
        let enough = self.going.done.load(Ordering::Relaxed) + times;
        eventually("more is written and read", async || {
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "a reader saw what it must not");
            (self.going.done.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }

    async fn stop(self) {
        self.going.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

async fn connect_to(folder: &Folder, server: &str, role: &str, database: &str) -> PgConnection {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run").join(server)).username(role);
    PgConnection::connect_with(&options.database(database)).await.unwrap()
}

/// One point at a time, each read back at once: never an error, never less, and without asking for freshness never less
/// than was read before.
fn gives_and_reads(
    service: Api,
    reads: Reads,
    user: Uuid,
) -> impl FnOnce(Going) -> futures::future::BoxFuture<'static, ()> {
    move |going| {
        Box::pin(async move {
            let (balance, entries) =
                (format!("/v1/users/{user}/balance"), format!("/v1/users/{user}/ledger-entries?limit=1"));
            let (mut seen, mut seen_at) = (0, String::new());
            for number in 1_i64.. {
                if going.stop.load(Ordering::Relaxed) {
                    return;
                }
                let at = service
                    .earn(user, &format!("{user} {number}"), 1)
                    .await
                    .unwrap()
                    .with(StatusCode::CREATED)
                    .position();
                let reads = reads.now();
                let read = get(&reads, &balance, Some(&at)).await;
                assert_eq!(read["available"]["income"], number, "{read}");
                let read = get(&reads, &entries, Some(&at)).await;
                assert_eq!(read["entries"][0]["position"], at, "{read}");
                let read = get(&reads, &balance, None).await["available"]["income"].as_i64().unwrap();
                // Another node may read another copy: whoever minds says At-Least, as above.
                assert!(read >= seen || reads.url != seen_at, "{read} after {seen}");
                (seen, seen_at) = (read, reads.url);
                going.done.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}

/// A work that is liked by one after the other.
fn likes_and_reads(service: Api, reads: Reads) -> impl FnOnce(Going) -> futures::future::BoxFuture<'static, ()> {
    move |going| {
        Box::pin(async move {
            let work = Uuid::new_v4();
            for number in 1_i64.. {
                if going.stop.load(Ordering::Relaxed) {
                    return;
                }
                let user = user_of_shard(|shard| if number % 2 == 0 { shard == OF_LIKES } else { shard > 7 });
                let body = serde_json::json!({ "user": user });
                let like = service.send(Method::PUT, &format!("/v1/works/{work}/like"), &[], Some(body)).await.unwrap();
                let at = like.with(StatusCode::CREATED).position();
                let reads = reads.now();
                let read = get(&reads, &format!("/v1/works/{work}/likes"), Some(&at)).await;
                // The one before may be in the other database, and on its way to the copy that is read.
                assert!(
                    read["likes"].as_i64().is_some_and(|likes| (number - 1..=number).contains(&likes)),
                    "{read}, {number}"
                );
                let read = get(&reads, &format!("/v1/users/{user}/liked-works"), Some(&at)).await;
                assert_eq!(read["works"][0]["work"], work.to_string());
                going.done.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}

/// Statements that name a checkpoint and tables, always the same ones on one connection: what they see belongs together.
fn looks_for_torn_rows(mut reads: PgConnection) -> impl FnOnce(Going) -> futures::future::BoxFuture<'static, ()> {
    move |going| {
        Box::pin(async move {
            // Each event gives one point, with two entries; each like is one row and one more of a work.
            let statements = [
                "SELECT c.position, coalesce(sum(b.available_income), 0)::bigint FROM checkpoints c
                 LEFT JOIN balances b ON b.shard = c.shard WHERE c.projection = 'balances' AND c.shard = 3 GROUP BY 1",
                "SELECT c.position, count(e.line) / 2 FROM checkpoints c LEFT JOIN ledger_entries e ON e.shard = c.shard
                 WHERE c.projection = 'ledger_entries' AND c.shard = 3 GROUP BY 1",
                "SELECT c.position, (SELECT count(*) FROM likes WHERE shard = 5) FROM checkpoints c
                 WHERE c.projection = 'likes' AND c.shard = 5",
                "SELECT coalesce((SELECT sum(likes)::bigint FROM work_likes), 0), (SELECT count(*) FROM likes)
                 FROM checkpoints WHERE projection = 'likes' AND shard = 5",
            ];
            while !going.stop.load(Ordering::Relaxed) {
                for statement in statements {
                    let (one, other): (i64, i64) = sqlx::query_as(statement).fetch_one(&mut reads).await.unwrap();
                    assert_eq!(one, other, "{statement}");
                }
            }
        })
    }
}

async fn get(api: &Api, path: &str, at_least: Option<&str>) -> Value {
    let headers: Vec<_> = at_least.map(|at| ("Skyriff-At-Least", at)).into_iter().collect();
    api.send(Method::GET, path, &headers, None).await.unwrap().with(StatusCode::OK).json
}

/// Every read waits long enough for a projector on a busy machine, so that an error is one.
async fn patient_dev(folder: &Folder) -> Dev {
    folder.dev_with_variables("127.0.0.1:0", &[("SKYRIFF_FRESHNESS_WAIT_MS", "10000")]).await
}

async fn schemas(folder: &Folder) -> Vec<String> {
    let mut all = Vec::new();
    for database in READS {
        let mut reads = folder.connect("skyriff_query", database).await;
        let of_it: Vec<String> = sqlx::query_scalar(
            "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '_(next|old|leaving)$' ORDER BY 1",
        )
        .fetch_all(&mut reads)
        .await
        .unwrap();
        all.extend(of_it);
    }
    all
}

fn spawn(folder: &Folder, arguments: &[&str]) -> Process {
    Process::spawn(folder.with_databases(skyriff(arguments)))
}

/// When a transaction of `skyriff rebuild` began that waits for a lock in this database, with a statement that has this in
/// it; the next one that begins after that time.
async fn waits(owner: &mut PgConnection, statement: &str, after: &str) -> String {
    let waits = "SELECT xact_start::text FROM pg_stat_activity
                 WHERE application_name = 'skyriff rebuild' AND datname = current_database() AND wait_event_type = 'Lock'
                   AND query ~ $1 AND xact_start > $2::timestamptz";
    eventually("skyriff rebuild waits", async || {
        sqlx::query_scalar(waits).bind(statement).bind(after).fetch_optional(&mut *owner).await.unwrap()
    })
    .await
}

/// Two tries from now on to hold projectors up, by a rebuild that somebody is in the way of.
async fn two_more_tries(owner: &mut PgConnection) {
    let mut after: String = sqlx::query_scalar("SELECT clock_timestamp()::text").fetch_one(&mut *owner).await.unwrap();
    for _ in 0..2 {
        after = waits(owner, "LOCK TABLE checkpoints IN EXCLUSIVE", &after).await;
    }
}

#[tokio::test]
async fn everything_is_built_anew_and_switched_to_under_load_and_nobody_notices() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    let load = Load::start(&folder, &dev).await;
    load.more(200).await;
    for round in 0..2 {
        let rebuilt = folder.run(&["rebuild", "all", "--batch", "100"]).await.well();
        for model in MODELS {
            for database in READS {
                assert!(rebuilt.stdout.contains(&format!("{model}: switched in {database}")), "{}", rebuilt.stdout);
            }
        }
        assert!(!rebuilt.stdout.contains("DIFFERS"), "{}", rebuilt.stdout);
        load.more(100).await;
        // What is kept is in the way of the next one.
        folder.run(&["rebuild", "tips"]).await.refused(&["still keeps the version before in tips_old", "--drop"]);
        assert_eq!(schemas(&folder).await.len(), MODELS.len() * READS.len());
        if round == 0 {
            folder.run(&["rebuild", "all", "--back"]).await.well();
            load.more(100).await;
        }
        folder.run(&["rebuild", "all", "--drop"]).await.well();
        assert_eq!(schemas(&folder).await, [""; 0]);
        load.more(100).await;
    }
    load.stop().await;
    folder.audit().await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn differences_are_told_and_only_switched_to_on_request_and_there_is_a_way_back() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let user = user_of_shard(|shard| shard == OF_POINTS);
    let earn = async |number: i64| {
        let answer = service.earn(user, &format!("earn {number}"), 1).await.unwrap();
        answer.with(StatusCode::CREATED).position()
    };
    let income = async |at: &str| {
        dev.api.as_caller(&folder.token("service", user).await).balance(user, at).await["available"]["income"]
            .as_i64()
            .unwrap()
    };
    let mut at = String::new();
    for number in 1..=10 {
        at = earn(number).await;
    }
    assert_eq!(income(&at).await, 10);
    // As a projection with an error would have left it.
    let mut owner = folder.connect("skyriff_owner", READS[0]).await;
    let wrong = "UPDATE balances SET available_income = available_income + 1000 WHERE user_id = $1";
    sqlx::query(wrong).bind(user).execute(&mut owner).await.unwrap();

    let told = folder.run(&["rebuild", "balances"]).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    for told_of in ["balances in skyriff_reads_0 DIFFERS in 1 rows", &user.to_string(), "--accept-differences"] {
        assert!(told.stdout.contains(told_of), "{told_of} is not in {}", told.stdout);
    }
    at = earn(11).await;
    assert_eq!(income(&at).await, 1_011, "nothing is switched");
    folder.run(&["rebuild", "balances", "--accept-differences"]).await.well();
    assert_eq!(income(&at).await, 11);
    at = earn(12).await;
    folder.run(&["rebuild", "balances", "--back"]).await.well();
    assert_eq!(income(&at).await, 1_012, "what is gone back to was caught up");
    at = earn(13).await;
    folder
        .run(&["rebuild", "balances", "--back"])
        .await
        .refused(&["no version of balances is kept that was live before"]);
    let forth = folder.run(&["rebuild", "balances"]).await;
    assert_eq!(forth.code, Some(2), "{forth:?}");
    assert!(forth.stdout.contains("goes on with balances_next in skyriff_reads_0"), "{}", forth.stdout);
    folder.run(&["rebuild", "balances", "--accept-differences"]).await.well();
    assert_eq!(income(&at).await, 13);
    folder.run(&["rebuild", "balances", "--drop"]).await.well();
    folder.run(&["rebuild", "balances", "--back"]).await.refused(&["no version of balances is kept", "no way back"]);
    folder.run(&["rebuild", "payouts"]).await.refused(&["there is no read model", "balances, ledger_entries"]);
    at = earn(14).await;
    assert_eq!(income(&at).await, 14);
    folder.audit().await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn whoever_reads_at_one_moment_is_waited_for_and_sees_what_belongs_together() {
    let folder = Folder::new();
    let dev = patient_dev(&folder).await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let user = user_of_shard(|shard| shard == OF_POINTS);
    let at = service.earn(user, "earn", 7).await.unwrap().with(StatusCode::CREATED).position();
    assert_eq!(service.balance(user, &at).await["available"]["income"], 7);
    let points = "SELECT sum(available_income)::bigint FROM balances WHERE user_id = $1";
    let mut readers = Vec::new();
    for server in ["primary", "replica"] {
        let mut reads = connect_to(&folder, server, "skyriff_query", READS[0]).await;
        // As queries that take several statements begin; and from here on nothing that is built is there for them.
        let begin =
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE checkpoints IN ACCESS SHARE MODE; SELECT 1";
        sqlx::raw_sql(begin).execute(&mut reads).await.unwrap();
        readers.push(reads);
    }
    let mut rebuild = spawn(&folder, &["rebuild", "balances"]);
    let mut owner = folder.connect("skyriff_owner", READS[0]).await;
    waits(&mut owner, "switch_version", "-infinity").await;
    assert!(rebuild.is_running(), "nobody was waited for: {}", rebuild.stdout());
    for mut reads in readers {
        let read: Option<i64> = sqlx::query_scalar(points).bind(user).fetch_one(&mut reads).await.unwrap();
        assert_eq!(read, Some(7));
        sqlx::raw_sql("COMMIT").execute(&mut reads).await.unwrap();
        // Done on the primary, and then to be done on the replica, where the other reader is still inside.
        eventually("the rebuild ends", async || (!rebuild.is_running()).then_some(())).await;
    }
    rebuild.end().await.well();
    assert_eq!(service.balance(user, &at).await["available"]["income"], 7);
    dev.interrupt().await.well();
}
