//! Shards that move to another read database, and what keeps their rows from being lost on the way.

use reqwest::StatusCode;
use rustix::process::Signal;
use uuid::Uuid;

use super::{Load, MODELS, OF_POINTS, READS, two_more_tries, user_of_shard};
use crate::{
    nodes::node_with,
    support::{Dev, Ended, Folder, Process, skyriff},
};

/// Where shards live, as configured: before and after 3 and 5 have moved from the first database to the second.
struct Places {
    old: String,
    new: String,
    out_of: String,
    into: String,
}

impl Places {
    fn of(folder: &Folder) -> Self {
        let configured = folder.with_databases(skyriff(&[]));
        let (_, old) = configured.as_std().get_envs().find(|(name, _)| *name == "SKYRIFF_READ_MODELS").unwrap();
        let old = old.unwrap().to_str().unwrap().to_owned();
        let (first, second) = old.split_once(';').unwrap();
        let new = format!("{};{}", first.replacen("0-7=", "0-2,4,6-7=", 1), second.replacen("8-15=", "3,5,8-15=", 1));
        let primary = |place: &str| place.split_once('=').unwrap().1.split('|').next().unwrap().to_owned();
        let (out_of, into) = (primary(first), primary(second));
        Self { old, new, out_of, into }
    }

    fn move_them<'a>(&'a self, name: &'a str) -> [&'a str; 6] {
        ["rebuild", name, "--move", "3,5", "--from", &self.out_of]
    }

    fn forget_them<'a>(&'a self, name: &'a str) -> [&'a str; 6] {
        ["rebuild", name, "--forget", "3,5", "--from", &self.out_of]
    }
}

/// A system whose queries and projectors are processes of their own.
async fn dev(folder: &Folder) -> (Dev, Places) {
    let dev = folder.dev_with(&["--roles", "command,process"]).await;
    (dev, Places::of(folder))
}

fn spawn_with(folder: &Folder, places: &str, arguments: &[&str]) -> Process {
    let mut command = folder.with_databases(skyriff(arguments));
    command.env("SKYRIFF_READ_MODELS", places);
    Process::spawn(command)
}

async fn run_with(folder: &Folder, places: &str, arguments: &[&str]) -> Ended {
    spawn_with(folder, places, arguments).end().await
}

async fn node(folder: &Folder, roles: &str, places: &str) -> (Process, String) {
    node_with(folder, roles, &[("SKYRIFF_READ_MODELS", places), ("SKYRIFF_FRESHNESS_WAIT_MS", "10000")]).await
}

async fn stop(process: Process) {
    process.signal(Signal::TERM);
    process.end().await.well();
}

#[tokio::test]
async fn shards_move_to_another_database_under_load_and_nobody_notices() {
    let folder = Folder::new();
    let (dev, places) = dev(&folder).await;
    let (project_old, _) = node(&folder, "project", &places.old).await;
    let (query_old, url) = node(&folder, "query", &places.old).await;
    let load = Load::start_at(&folder, &dev, &url).await;
    load.more(200).await;

    let move_them = places.move_them("all");
    let stays = run_with(&folder, &places.old, &move_them).await;
    stays.refused(&["the configuration has shard 3, 5", "where the shards are to live"]);
    let moved = run_with(&folder, &places.new, &move_them).await.well();
    assert_eq!(moved.stdout.matches("ready where it is to be").count(), MODELS.len(), "{}", moved.stdout);
    load.more(50).await;
    // Again, for what came meanwhile; then both kinds of processes side by side, and the old ones end.
    run_with(&folder, &places.new, &move_them).await.well();
    let (project_new, _) = node(&folder, "project", &places.new).await;
    let (query_new, url) = node(&folder, "query", &places.new).await;
    load.more(50).await;
    load.read_at(&url);
    load.more(50).await;
    stop(query_old).await;
    stop(project_old).await;
    load.more(50).await;

    let lives_there = ["rebuild", "all", "--forget", "3,5", "--from", &places.into];
    run_with(&folder, &places.new, &lives_there).await.refused(&["the configuration has shard 3, 5"]);
    run_with(&folder, &places.new, &places.forget_them("all")).await.well();
    let mut owner = folder.connect("skyriff_owner", READS[0]).await;
    for table in ["balances", "ledger_entries", "likes", "work_likes", "checkpoints"] {
        let left = format!("SELECT count(*) FROM {table} WHERE shard IN (3, 5)");
        assert_eq!(sqlx::query_scalar::<_, i64>(&left).fetch_one(&mut owner).await.unwrap(), 0, "{table}");
    }
    load.more(50).await;
    load.stop().await;
    run_with(&folder, &places.new, &["audit", "verify"]).await.well();
    stop(query_new).await;
    stop(project_new).await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn nothing_is_forgotten_that_is_not_where_it_is_to_live() {
    let folder = Folder::new();
    let (dev, places) = dev(&folder).await;
    let (project_old, _) = node(&folder, "project", &places.old).await;
    let (query_old, url) = node(&folder, "query", &places.old).await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let user = user_of_shard(|shard| shard == OF_POINTS);
    let earn = async |number: i32| {
        service.earn(user, &format!("earn {number}"), 1).await.unwrap().with(StatusCode::CREATED).position()
    };
    let balance = async |url: &str, at: &str| service.at(url).balance(user, at).await["available"]["income"].clone();
    let at = earn(1).await;
    assert_eq!(balance(&url, &at).await, 1);
    let mut there = folder.connect("skyriff_owner", READS[0]).await;
    let mut rows = async |table: &str| -> i64 {
        let rows = format!("SELECT count(*) FROM {table} WHERE shard = 3");
        sqlx::query_scalar(&rows).fetch_one(&mut there).await.unwrap()
    };

    let forget = async |name: &str| run_with(&folder, &places.new, &places.forget_them(name)).await;
    forget("all").await.refused(&["nothing is deleted: balances has read shard 3 up to 1 in", "up to 0 where"]);
    assert_eq!((rows("balances").await, rows("ledger_entries").await), (1, 2));
    // One of them is there, and the others are not: processes that have the old places still read all of them here.
    run_with(&folder, &places.new, &places.move_them("balances")).await.well();
    forget("all").await.refused(&["nothing is deleted: ledger_entries has read shard 3 up to 1 in", "--move fills it"]);
    assert_eq!((rows("balances").await, rows("ledger_entries").await), (1, 2));
    run_with(&folder, &places.new, &places.move_them("all")).await.well();
    // And what came since is not.
    let at = earn(2).await;
    assert_eq!(balance(&url, &at).await, 2);
    forget("all").await.refused(&["up to 2 in", "up to 1 where", "a projector that is started with these places"]);
    assert_eq!(balance(&url, &at).await, 2);

    let (project_new, _) = node(&folder, "project", &places.new).await;
    let (query_new, url) = node(&folder, "query", &places.new).await;
    stop(query_old).await;
    stop(project_old).await;
    forget("all").await.well();
    assert_eq!((rows("balances").await, rows("ledger_entries").await, rows("checkpoints").await), (0, 0, 0));
    assert_eq!(balance(&url, &at).await, 2);
    // Again there is nothing to do.
    forget("all").await.well();
    stop(query_new).await;
    stop(project_new).await;
    dev.interrupt().await.well();
}

#[tokio::test]
async fn what_arrives_is_compared_with_what_is_there_however_far_that_has_come() {
    let folder = Folder::new();
    let (dev, places) = dev(&folder).await;
    let (project_old, _) = node(&folder, "project", &places.old).await;
    let (query_old, url) = node(&folder, "query", &places.old).await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let user = user_of_shard(|shard| shard == OF_POINTS);
    let earn = async |number: i32| {
        service.earn(user, &format!("earn {number}"), 1).await.unwrap().with(StatusCode::CREATED).position()
    };
    let at = earn(1).await;
    let balance = service.at(&url).balance(user, &at).await;
    assert_eq!(balance["available"]["income"], 1);
    stop(query_old).await;
    stop(project_old).await;
    // Where the shards are, nobody feeds them any more.
    earn(2).await;
    let move_them = ["rebuild", "balances", "--move", "3,5", "--from", &places.out_of, "--wait-s", "20"];
    let moved = run_with(&folder, &places.new, &move_them).await.well();
    assert!(moved.stdout.contains("balances in skyriff_reads_1 is the same: 1 rows"), "{}", moved.stdout);

    // Somebody holds up what is to be held up, for longer than is waited at once.
    let mut owner = folder.connect("skyriff_owner", READS[0]).await;
    let mut in_the_way = folder.connect("skyriff_owner", READS[0]).await;
    let begin = "BEGIN; LOCK TABLE checkpoints IN ROW EXCLUSIVE MODE";
    sqlx::raw_sql(begin).execute(&mut in_the_way).await.unwrap();
    let moving = spawn_with(&folder, &places.new, &move_them);
    two_more_tries(&mut owner).await;
    sqlx::raw_sql("COMMIT").execute(&mut in_the_way).await.unwrap();
    moving.end().await.well();

    let wrong = "UPDATE balances SET available_income = available_income + 1000 WHERE user_id = $1";
    sqlx::query(wrong).bind(user).execute(&mut owner).await.unwrap();
    let told = run_with(&folder, &places.new, &move_them).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    for told_of in ["balances in skyriff_reads_1 DIFFERS: 1 rows where it was, 1 here", &user.to_string(), "1001"] {
        assert!(told.stdout.contains(told_of), "{told_of} is not in {}", told.stdout);
    }
    assert!(!told.stdout.contains("ready where it is to be"), "{}", told.stdout);
    sqlx::query("DELETE FROM balances WHERE user_id = $1").bind(user).execute(&mut owner).await.unwrap();
    let told = run_with(&folder, &places.new, &move_them).await;
    assert!(told.stdout.contains("DIFFERS: 0 rows where it was, 1 here\n  was  null\n  here {"), "{}", told.stdout);
    let of_another = ["rebuild", "balances", "--move", "3", "--from", &places.into];
    run_with(&folder, &places.new, &of_another).await.refused(&["the configuration has shard 3"]);
    dev.interrupt().await.well();
}
