//! A thousand commands at once: over HTTP as JSON and as NDJSON, the same bodies to a server that only reads them, and
//! without HTTP. Each has a new store: what an append costs grows with the store, once its indexes are larger than the
//! buffers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{SubsecRound, Utc};
use skyriff_domain::{Bucket, Command, CommandId, Intent, Metadata, Policy, ShardCount, points_account::Action};
use skyriff_postgres::{Server, databases};
use skyriff_write_side::{
    CommandSide, Commands, Fingerprint, Submission,
    commands::{EventDatabase, Limits},
};
use uuid::Uuid;

use crate::{
    ACCOUNTS, append,
    report::{Figure, Report, percentiles},
    servers::{Served, Target},
    store,
    wrk::{self, Accounts, BULK, Body, Load},
};

const OVER_HTTP: &str = "bench_bulk";
const IN_PROCESS: &str = "bench_bulk_in_process";
const LIMITS: &str = "bench_bulk_limits";
/// Connections, or tasks: each has a thousand commands under way.
const SENDERS: [u32; 2] = [4, 8];

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    for target in [Target::Skyriff, Target::Constant] {
        for (body, format) in [(Body::BulkJson, "JSON"), (Body::BulkNdjson, "NDJSON")] {
            let title = match target {
                Target::Constant => format!("bulk {format}, a constant answer"),
                Target::Skyriff | Target::Stock => format!("bulk {format}"),
            };
            for connections in SENDERS {
                eprintln!("· {title}: {connections} connections");
                store::fresh(server, OVER_HTTP).await?;
                let served = Served::start(target, server, OVER_HTTP, &[]).await?;
                let load = Load { body, ..Load::one(&served, connections, Accounts::RANDOM) };
                wrk::run(&load, each / 2).await?;
                let before = store::events(server, OVER_HTTP).await?;
                let seen = wrk::run(&load, each).await?;
                let recorded = u64::try_from(store::events(server, OVER_HTTP).await? - before)?;
                // The answer to the whole says 200 whatever became of the commands in it.
                ensure!(
                    target == Target::Constant || recorded >= seen.answered,
                    "{recorded} commands were recorded and {} answered",
                    seen.answered
                );
                report.add(Figure::of(&title, ACCOUNTS, connections, &seen));
                served.stop().await?;
            }
        }
    }
    for tasks in SENDERS {
        eprintln!("· bulk without HTTP: {tasks} tasks");
        store::fresh(server, IN_PROCESS).await?;
        report.add(in_process(server, tasks, each).await?);
    }
    for batch in [128, 512] {
        eprintln!("· bulk's limit, the append function alone: 2 × {batch}");
        store::fresh(server, LIMITS).await?;
        report.add(append::run(server, LIMITS, "bulk's limit, append", 2, batch, each).await?);
    }
    Ok(())
}

/// The executors in this process, with what the HTTP handler does to make a submission, and without HTTP and JSON.
async fn in_process(server: &Server, tasks: u32, time: Duration) -> Result<Figure> {
    let database = EventDatabase { options: server.options(databases::COMMAND, IN_PROCESS), shards: store::shards() };
    let side = CommandSide::start(&[database], ShardCount::default(), &Policy::default(), &Limits::default());
    chunks(&side.commands, tasks, time / 2).await?;
    let started = Instant::now();
    let took = chunks(&side.commands, tasks, time).await?;
    let seconds = started.elapsed().as_secs_f64();
    side.stop().await;
    let commands = u32::try_from(took.len())? * BULK;
    let (p50, p99) = percentiles(took);
    Ok(Figure {
        title: "bulk without HTTP".to_owned(),
        accounts: ACCOUNTS,
        connections: tasks,
        per_second: f64::from(commands) / seconds,
        p50,
        p99,
        ..Figure::default()
    })
}

/// How long each chunk took.
async fn chunks(commands: &Commands, tasks: u32, time: Duration) -> Result<Vec<Duration>> {
    let end = Instant::now() + time;
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let commands = commands.clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                while Instant::now() < end {
                    let started = Instant::now();
                    let submissions = (0..BULK).map(|_| submission()).collect::<Result<_>>()?;
                    for result in commands.execute_each(submissions).await {
                        result?;
                    }
                    took.push(started.elapsed());
                }
                anyhow::Ok(took)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in running {
        all.extend(task.await??);
    }
    Ok(all)
}

fn submission() -> Result<Submission> {
    let user = store::account(rand::random_range(1..=u64::from(ACCOUNTS)))?;
    let actor = format!("service:{}", Uuid::nil());
    let id = CommandId::derive(&actor, &Uuid::new_v4().to_string());
    let points = 1.try_into().ok().context("one point is in range")?;
    let intent = Intent::Points(Action::Earn { bucket: Bucket::Income, points, reason: "bench".parse()? });
    let fingerprint = Fingerprint::of(user, None, &intent)?;
    let command = Command { user, at: Utc::now().trunc_subsecs(6), intent };
    let request_id = Uuid::now_v7().to_string();
    let metadata = Metadata { command_id: id, actor, request_id, causation: None, traceparent: None, address: None };
    Ok(Submission { id, fingerprint, command, metadata })
}
