//! `skyriff audit verify`: read the whole log, fold it, and compare it with everything that claims to come from it.

mod likes;
mod tips;
mod videos;

use std::{
    collections::{BTreeMap, HashMap},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use skyriff_domain::{
    Bucket, Position, Purse, RecordedEvent, ShardId, State, StreamId, UserId, ledger::postings,
    points_account::PointsAccount,
};
use skyriff_follow::{Follower, log};
use skyriff_postgres::databases::QUERY;
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::{DatabaseArguments, Databases, Place};

/// Events of one shard that are read at once.
const PAGE: i64 = 5_000;

#[derive(Subcommand)]
pub enum Command {
    /// Check that the log is whole, that the ledger sums to zero, and that the read models say what the log says.
    Verify(Verify),
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    databases: DatabaseArguments,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// How long the read models may take to catch up with the log, in seconds.
    #[arg(long, default_value_t = 60)]
    wait_s: u32,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    events: u64,
    /// By `aggregate.event`.
    by_type: BTreeMap<String, u64>,
    streams: usize,
    /// The last position of each shard.
    heads: BTreeMap<u16, i64>,
    /// Points on each account of the books, all users together.
    ledger: BTreeMap<String, i64>,
    ledger_sum: i64,
    /// Tips that are credited and not settled yet, or offered and not answered yet.
    tips_under_way: u64,
    /// What is wrong: the first [`PROBLEMS_MAX`], in words.
    problems: Vec<String>,
    problems_total: u64,
}

/// More are counted but not told.
const PROBLEMS_MAX: usize = 50;

pub async fn run(command: Command) -> Result<ExitCode> {
    let Command::Verify(arguments) = command;
    let databases = arguments.databases.databases()?;
    let report = verify(&databases, Duration::from_secs(u64::from(arguments.wait_s))).await?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.problems_total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) {
    println!("{} events of {} streams in {} shards", report.events, report.streams, report.heads.len());
    for (name, count) in &report.by_type {
        println!("  {count:>12}  {name}");
    }
    println!("the books");
    for (account, points) in &report.ledger {
        println!("  {points:>12}  {account}");
    }
    println!("  {:>12}  sum", report.ledger_sum);
    if report.tips_under_way > 0 {
        println!("{} tips are under way, which is what stands on platform:transit", report.tips_under_way);
    }
    for problem in &report.problems {
        println!("WRONG: {problem}");
    }
    match report.problems_total {
        0 => println!(
            "everything agrees: positions, sequences, the ledger's zero, and every balance, tip, like and video job with its events"
        ),
        more => println!("{more} problems"),
    }
}

impl Report {
    fn wrong(&mut self, problem: String) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

/// A stream, folded; its last sequence, and when that event happened.
struct Folded {
    sequence: i64,
    state: State,
    last_at: DateTime<Utc>,
}

#[derive(Default)]
struct Fold {
    streams: HashMap<StreamId, Folded>,
    ledger: BTreeMap<String, i64>,
}

async fn verify(databases: &Databases, patience: Duration) -> Result<Report> {
    let mut report = Report::default();
    let mut fold = Fold::default();
    for place in &databases.event_store {
        let mut connection = connect(place).await.context("cannot reach the event store")?;
        read_log(&mut connection, &place.shards, &mut fold, &mut report).await?;
    }
    report.streams = fold.streams.len();
    videos::check_holds(&fold, &mut report);
    report.ledger_sum = fold.ledger.values().sum();
    if report.ledger_sum != 0 {
        report.wrong(format!("the ledger sums to {} instead of zero", report.ledger_sum));
    }
    tips::check_transit(&fold, &mut report);
    let mut stored_ledger = BTreeMap::new();
    for place in &databases.read_models {
        let mut connection = connect(place).await.context("cannot reach the read models")?;
        wait_for_read_models(&mut connection, place, &report.heads, patience).await?;
        compare_balances(&mut connection, place, &fold, databases, &mut report).await?;
        tips::compare(&mut connection, place, &fold.streams, databases.shard_count, &mut report).await?;
        likes::compare(&mut connection, place, &fold.streams, databases.shard_count, &mut report).await?;
        videos::compare(&mut connection, place, &fold, databases.shard_count, &mut report).await?;
        for (account, amount) in stored_entries(&mut connection).await? {
            *stored_ledger.entry(account).or_default() += amount;
        }
    }
    // Accounts whose entries cancel out have no balance in the fold's eyes either.
    if stored_ledger != fold.ledger {
        report.wrong(format!("the stored ledger entries sum to {stored_ledger:?}, the events to {:?}", fold.ledger));
    }
    report.ledger = fold.ledger;
    Ok(report)
}

async fn connect(place: &Place) -> sqlx::Result<PgConnection> {
    place.primary.as_role(QUERY).application_name("skyriff audit").connect().await
}

async fn read_log(
    connection: &mut PgConnection,
    shards: &[ShardId],
    fold: &mut Fold,
    report: &mut Report,
) -> Result<()> {
    let heads: Vec<(i16, i64)> =
        sqlx::query_as("SELECT shard, position FROM heads").fetch_all(&mut *connection).await?;
    let heads: BTreeMap<_, _> = heads
        .into_iter()
        .filter_map(|(shard, head)| Some((ShardId(u16::try_from(shard).ok()?), Position(head))))
        .filter(|(shard, _)| shards.contains(shard))
        .collect();
    let total = heads.values().map(|head| u64::try_from(head.0).unwrap_or(0)).sum();
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(
        "reading the log {bar:40} {human_pos}/{human_len} events, {per_sec}, {eta} left",
    )?);
    for (shard, head) in heads {
        report.heads.insert(shard.0, head.0);
        let mut after = Position::START;
        // What is appended while we read is not part of this audit.
        while after < head {
            let limit = PAGE.min(head.0 - after.0);
            let mut read = log::read_after(connection, &BTreeMap::from([(shard, after)]), limit).await?;
            let page = read.remove(&shard).unwrap_or_default();
            for event in &page.events {
                fold_in(event, fold, report)?;
            }
            bar.inc(u64::try_from(page.events.len())?);
            if let Some(error) = page.stopped_by {
                report.wrong(format!("shard {shard}: {:#}", anyhow::Error::from(error)));
                break;
            }
            match page.events.last() {
                Some(last) => after = last.at.position,
                None => {
                    report.wrong(format!("shard {shard} ends at {after}, and its head is {head}"));
                    break;
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn fold_in(event: &RecordedEvent, fold: &mut Fold, report: &mut Report) -> Result<()> {
    report.events += 1;
    let name = format!("{}.{}", event.stream.aggregate_type(), event.event.event_type());
    *report.by_type.entry(name).or_default() += 1;

    let new = || Folded { sequence: 0, state: event.stream.empty(), last_at: event.occurred_at };
    let Folded { sequence, state, last_at } = fold.streams.entry(event.stream).or_insert_with(new);
    *last_at = event.occurred_at;
    *sequence += 1;
    if event.sequence != *sequence {
        report.wrong(format!("{}: {:?} has sequence {}, not {sequence}", event.at, event.stream, event.sequence));
        *sequence = event.sequence;
    }
    state.apply(&event.event);

    let mut sum = 0_i64;
    for posting in postings(&event.stream, &event.event) {
        sum = sum.checked_add(posting.amount).context("the postings of one event overflow")?;
        let account = fold.ledger.entry(posting.account.to_string()).or_default();
        *account = account.checked_add(posting.amount).context("an account of the books overflows")?;
    }
    if sum != 0 {
        report.wrong(format!("{}: the postings sum to {sum}", event.at));
    }
    Ok(())
}

/// Wait until every projection has read at least as far as this audit has.
async fn wait_for_read_models(
    connection: &mut PgConnection,
    place: &Place,
    heads: &BTreeMap<u16, i64>,
    patience: Duration,
) -> Result<()> {
    let end = Instant::now() + patience;
    let (shards, positions): (Vec<i16>, Vec<i64>) = heads
        .iter()
        .filter(|(shard, head)| place.shards.contains(&ShardId(**shard)) && **head > 0)
        .filter_map(|(shard, head)| Some((i16::try_from(*shard).ok()?, *head)))
        .unzip();
    loop {
        // A projection that has never run has no checkpoint, and is behind as well.
        let behind: Vec<(i16, Option<String>)> = sqlx::query_as(
            "SELECT h.shard, max(c.stopped) FROM unnest($1::smallint[], $2::bigint[]) AS h (shard, head)
             CROSS JOIN unnest($3::text[], $4::integer[]) AS p (projection, version)
             LEFT JOIN checkpoints c USING (shard, projection, version)
             GROUP BY h.shard, h.head HAVING min(coalesce(c.position, 0)) < h.head",
        )
        .bind(&shards)
        .bind(&positions)
        .bind(Projection::ALL.map(Projection::name))
        .bind(Projection::ALL.map(Projection::version))
        .fetch_all(&mut *connection)
        .await?;
        let Some((shard, stopped)) = behind.first() else { return Ok(()) };
        if Instant::now() > end {
            let why = stopped.as_deref().unwrap_or("no projector seems to be running");
            bail!("the read models of shard {shard} are behind the log after {patience:?}: {why}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[derive(sqlx::FromRow)]
struct StoredBalance {
    user_id: Uuid,
    available_promo: i64,
    available_paid: i64,
    available_income: i64,
    held_promo: i64,
    held_paid: i64,
    held_income: i64,
    lots_expire_at: Vec<DateTime<Utc>>,
    lots_points: Vec<i64>,
}

async fn compare_balances(
    connection: &mut PgConnection,
    place: &Place,
    fold: &Fold,
    databases: &Databases,
    report: &mut Report,
) -> Result<()> {
    let stored: Vec<StoredBalance> = sqlx::query_as(
        "SELECT b.user_id, available_promo, available_paid, available_income, held_promo, held_paid, held_income,
                ARRAY(SELECT expires_at FROM promo_lots l WHERE l.user_id = b.user_id ORDER BY 1) AS lots_expire_at,
                ARRAY(SELECT points FROM promo_lots l WHERE l.user_id = b.user_id ORDER BY expires_at) AS lots_points
         FROM balances b",
    )
    .fetch_all(connection)
    .await?;
    let mut stored: HashMap<_, _> = stored.into_iter().map(|row| (UserId(row.user_id), row)).collect();
    for (stream, folded) in &fold.streams {
        let (StreamId::PointsAccount(user), State::PointsAccount(account)) = (stream, &folded.state) else { continue };
        if !place.shards.contains(&skyriff_domain::shard_of(*user, databases.shard_count)) {
            continue;
        }
        match stored.remove(user) {
            None => report.wrong(format!("user {user} has events and no balance")),
            Some(row) if !agrees(&row, account) => {
                report.wrong(format!("the balance of user {user} is not the fold of its events"));
            }
            Some(_) => {}
        }
    }
    for user in stored.keys() {
        report.wrong(format!("user {user} has a balance and no events"));
    }
    Ok(())
}

fn agrees(row: &StoredBalance, account: &PointsAccount) -> bool {
    let buckets = |purse: &Purse| Bucket::ALL.map(|bucket| purse.of(bucket).get());
    let lots: BTreeMap<_, _> = row.lots_expire_at.iter().copied().zip(row.lots_points.iter().copied()).collect();
    let folded: BTreeMap<_, _> = account.available().promo.iter().map(|(at, lot)| (*at, lot.get())).collect();
    buckets(account.available()) == [row.available_promo, row.available_paid, row.available_income]
        && buckets(&account.held()) == [row.held_promo, row.held_paid, row.held_income]
        && lots == folded
}

async fn stored_entries(connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    Ok(sqlx::query_as("SELECT account, sum(amount)::bigint FROM ledger_entries GROUP BY account")
        .fetch_all(connection)
        .await?)
}
