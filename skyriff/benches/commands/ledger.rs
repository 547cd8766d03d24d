//! Does it matter to the books' answers how many entries there are? The same questions on books that hold more and more.
//!
//! The entries are rows of the projection's tables, written by SQL, and the sums are made of them by their definition: so the
//! tables are what the projection makes of as many events, without ten million commands. Half of the entries are on one
//! shard, and one account has a third of all; one user has one in twenty. They happened over three years, one in ten was
//! recorded in an import on one day, the others when they happened.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skyriff_postgres::{Server, databases};
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::{
    report::{Figure, Report, percentiles},
    servers::{Served, Target},
    store,
};

const EVENTS: &str = "bench_ledger_events";
const READS: &str = "bench_ledger_reads";
/// Entries in the books, unless BENCH_LEDGER says otherwise.
const SIZES: [i64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];
/// Each question is asked so often, about another moment each time.
const ASKED: u32 = 40;
/// Entries that one statement writes at once.
const PIECE: i64 = 500_000;
/// The user who does one thing in twenty; it lives in shard 9.
const BUSY: &str = "959de6e1-d9ef-5a29-a884-f19f971b9c27";

/// What is asked, where AT and KNOWN stand for times.
const QUESTIONS: [(&str, &str); 9] = [
    ("platform account, now", "balance?account=platform:issuance:check_in"),
    ("platform account, as of a business time", "balance?account=platform:issuance:check_in&at=AT"),
    ("platform account, as of a recorded time", "balance?account=platform:issuance:check_in&known_at=AT"),
    ("platform account, as of both", "balance?account=platform:issuance:check_in&at=AT&known_at=KNOWN"),
    ("platform account, in the middle of the import", "balance?account=platform:issuance:check_in&known_at=IMPORT"),
    ("busy user, as of both", "balance?account=user:available:promo&user=BUSY&at=AT&known_at=KNOWN"),
    ("trial balance, now", "trial-balance"),
    ("trial balance, as of both", "trial-balance?at=AT&known_at=KNOWN"),
    ("a page of entries before a time", "entries?account=platform:issuance:check_in&to=AT"),
];

/// How the titles of its figures begin.
pub const TITLE: &str = "ledger: ";

fn title(question: &str) -> String {
    format!("{TITLE}{question}")
}

pub async fn run(server: &Server, report: &mut Report) -> Result<()> {
    store::fresh(server, EVENTS).await?;
    let mut postgres = server.superuser("postgres").await?;
    postgres.execute(format!("DROP DATABASE IF EXISTS {READS} WITH (FORCE)").as_str()).await?;
    postgres.close().await?;
    databases::create(server, &[READS]).await?;
    databases::migrate_read_models(&server.options(databases::OWNER, READS)).await?;
    let mut reads = server.superuser(READS).await?;
    let mut filled = 0;
    for size in sizes()? {
        let started = Instant::now();
        fill(&mut reads, filled, size).await?;
        filled = size;
        eprintln!("· {size} entries, {:.0?}", started.elapsed());
        let place = format!("0-15={}", server.url(READS));
        let served =
            Served::start(Target::Skyriff, server, EVENTS, &["--read-models", &place, "--roles", "query"]).await?;
        for (question, path) in QUESTIONS {
            report.add(ask(&served, question, path, size).await?);
        }
        served.stop().await?;
    }
    Ok(reads.close().await?)
}

/// Up to so many entries, two of each event.
async fn fill(reads: &mut PgConnection, from: i64, to: i64) -> Result<()> {
    reads
        .execute(
            "SELECT ensure_ledger_month(month::date)
             FROM generate_series('2023-01-01'::timestamp, '2026-12-01', '1 month') AS month",
        )
        .await?;
    for first in (from / 2..to / 2).step_by(usize::try_from(PIECE)?) {
        sqlx::query(
            "INSERT INTO ledger_entries
             SELECT shard, n, line, CASE WHEN line = 2 THEN who END,
                    CASE WHEN line = 2 THEN 'user:available:promo'
                         WHEN n % 3 < 2 THEN 'platform:issuance:check_in' ELSE 'platform:issuance:earning' END,
                    CASE WHEN line = 2 THEN 10 ELSE -10 END, 'checked_in', '2026-01-01', at,
                    CASE WHEN n % 10 = 0 THEN '2025-12-10T08:00:00Z'::timestamptz + (n % 28800) * interval '1 second' ELSE at END
             FROM (
                 SELECT n, CASE WHEN n % 2 = 0 THEN 9 ELSE (n / 2) % 16 END::smallint AS shard,
                        CASE WHEN n % 20 = 0 THEN $3::uuid ELSE gen_random_uuid() END AS who,
                        '2023-01-01T00:00:00Z'::timestamptz + (n * 7919 % 94608000) * interval '1 second' AS at
                 FROM generate_series($1::bigint, $2::bigint - 1) AS n
             ) events CROSS JOIN (VALUES (1::smallint), (2::smallint)) AS lines (line)",
        )
        .bind(first)
        .bind((first + PIECE).min(to / 2))
        .bind(BUSY.parse::<Uuid>()?)
        .execute(&mut *reads)
        .await
        .context("the entries cannot be written")?;
    }
    reads.execute("TRUNCATE ledger_sums, ledger_user_sums; DELETE FROM checkpoints").await?;
    for (grain, occurred, recorded) in
        [("mm", "month", "month"), ("md", "month", "day"), ("dm", "day", "month"), ("dd", "day", "day")]
    {
        let sums = format!(
            "INSERT INTO ledger_sums
             SELECT account, shard, '{grain}', date_trunc('{occurred}', occurred_at AT TIME ZONE 'UTC')::date,
                    date_trunc('{recorded}', recorded_at AT TIME ZONE 'UTC')::date, sum(amount), count(*)
             FROM ledger_entries GROUP BY 1, 2, 4, 5"
        );
        reads.execute(sums.as_str()).await?;
    }
    for statement in [
        "INSERT INTO ledger_user_sums
         SELECT user_id, account, date_trunc('month', occurred_at AT TIME ZONE 'UTC')::date,
                date_trunc('month', recorded_at AT TIME ZONE 'UTC')::date, shard, sum(amount), count(*)
         FROM ledger_entries WHERE user_id IS NOT NULL GROUP BY 1, 2, 3, 4, 5",
        "INSERT INTO checkpoints (projection, version, shard, position)
         SELECT 'ledger_entries', 2, shard, 1 FROM generate_series(0, 15) AS shard",
        "VACUUM (ANALYZE)",
        "CHECKPOINT",
    ] {
        reads.execute(statement).await?;
    }
    Ok(())
}

/// The same question about moments all over the three years.
async fn ask(served: &Served, question: &str, path: &str, size: i64) -> Result<Figure> {
    let client = reqwest::Client::new();
    let mut took = Vec::new();
    for turn in 0..=ASKED {
        let day = |offset: u32| {
            format!("202{}-{:02}-{:02}T{:02}:30:00Z", 3 + (turn + offset) % 3, 1 + turn % 12, 1 + turn % 28, turn % 24)
        };
        let path = path
            .replace("IMPORT", &format!("2025-12-10T{:02}:{:02}:00Z", 8 + turn % 8, turn % 60))
            .replace("BUSY", BUSY)
            .replace("AT", &day(0))
            .replace("KNOWN", &day(1));
        let asked = Instant::now();
        let answer = client.get(format!("{}/v1/ledger/{path}", served.url)).bearer_auth(&served.auditor).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status}: {text}");
        // The first one opens connections.
        if turn > 0 {
            took.push(asked.elapsed());
        }
    }
    let all = took.iter().sum::<Duration>();
    let (p50, p99) = percentiles(took);
    let per_second = f64::from(ASKED) / all.as_secs_f64();
    Ok(Figure { title: title(question), events: Some(size), connections: 1, per_second, p50, p99, ..Figure::default() })
}

fn sizes() -> Result<Vec<i64>> {
    let Ok(text) = std::env::var("BENCH_LEDGER") else {
        return Ok(SIZES.to_vec());
    };
    let size = |size: &str| size.trim().parse().with_context(|| format!("BENCH_LEDGER: {size:?} is not a number"));
    text.split(',').map(size).collect()
}
