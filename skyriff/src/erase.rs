//! `skyriff erase`: forget a person.
//!
//! The event is the erasure: the database destroys the key in the transaction that records it. What is done afterwards is
//! done by every process of the role `process` too, from the log; here it is done at once, and whoever waits for it is told.
//! Interrupted anywhere, the same command goes on.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::{SubsecRound, Utc};
use clap::Args;
use skyriff_domain::{
    Command, CommandId, Intent, Label, LogPosition, Metadata, Policy, RecordedEvent, StreamId, UserId,
    erasure::{self, AskedBy},
    shard_of,
};
use skyriff_follow::log;
use skyriff_postgres::databases::{OWNER, PROCESS, check_shard_count};
use skyriff_storage::ObjectStorage;
use skyriff_write_side::{
    CommandSide, Failure, Fingerprint, Submission, commands,
    processes::{Reaction, Services, erasures, erasures::Erasures},
};
use sqlx::{ConnectOptions, Executor, PgConnection};
use uuid::Uuid;

use crate::{
    config::{DatabaseArguments, Databases, Place},
    keys,
    outputs::{StorageArguments, Stored},
    token,
};

/// Between two attempts at what is outside of the log.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// So often, and then it is left to the processes.
const ATTEMPTS_MAX: u32 = 5;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
    #[command(flatten)]
    storage: StorageArguments,
    /// The folder of `skyriff dev`, whose storage is used when none is given.
    #[arg(long, default_value = token::FOLDER)]
    folder: PathBuf,
    /// Who is forgotten.
    user: Uuid,
    /// Who wants it: person, authority, platform.
    #[arg(long, value_parser = asked_by)]
    asked_by: AskedBy,
    /// Where that is on file, such as a ticket's number; kept for ever, in the clear. Nothing that says who it is about.
    #[arg(long)]
    reference: Label,
    /// Which operator does it; stands in the event.
    #[arg(long)]
    operator: Uuid,
    /// Do not ask again. An id that the log knows nothing of is refused then: it is more likely a mistake than a person.
    #[arg(long)]
    yes: bool,
    /// Erase an id that the log knows nothing of all the same: whatever comes under it later is not kept either.
    #[arg(long)]
    unknown: bool,
    /// Record it only where a commit means that a synchronous standby has it too.
    #[arg(long, env = "SKYRIFF_REQUIRE_STANDBY")]
    require_standby: bool,
}

fn asked_by(text: &str) -> Result<AskedBy, String> {
    match text {
        "person" => Ok(AskedBy::Person),
        "authority" => Ok(AskedBy::Authority),
        "platform" => Ok(AskedBy::Platform),
        _ => Err("who wants it is one of person, authority, platform".to_owned()),
    }
}

/// What taking down takes, as the role of processes.
pub fn erasures(databases: &Databases, storage: &ObjectStorage) -> Erasures {
    let of = |place: &Place| (place.primary.as_role(PROCESS), place.shards.clone());
    Erasures::new(Arc::new(Stored(storage.clone())), databases.event_store.iter().map(of))
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let databases = arguments.databases.clone().databases()?;
    let storage = arguments.storage.open(&arguments.folder)?;
    let user = UserId(arguments.user);
    let shard = shard_of(user, databases.shard_count);
    let place = databases.event_store.iter().find(|place| place.shards.contains(&shard));
    let place = place.with_context(|| format!("shard {shard} has no place"))?;
    let mut owner = place.primary.as_role(OWNER).application_name("skyriff erase").connect().await;
    let owner = owner.as_mut().map_err(|error| anyhow!("cannot reach the event store: {error}"))?;
    check_shard_count(owner, databases.shard_count).await?;
    let is_known = is_known(owner, user).await?;
    if !is_known {
        println!("the log has nothing of {user}, and there is no key of theirs: is it the right id?");
        ensure!(
            !arguments.yes || arguments.unknown,
            "nothing was done; --unknown erases an id that nothing is known of"
        );
    }
    if !arguments.yes && !confirmed(user)? {
        println!("nothing was done");
        return Ok(ExitCode::FAILURE);
    }
    let limits = commands::Limits {
        executors_per_database: 1,
        require_standby: arguments.require_standby,
        ..commands::Limits::default()
    };
    let side = CommandSide::start(&databases.to_append(), databases.shard_count, &Policy::default(), &limits);
    let services =
        Services::new(side.commands.clone(), databases.shard_count).with_erasures(Some(erasures(&databases, &storage)));
    let done = erase(&arguments, user, &services, owner).await;
    // Without this the executors would wait for more.
    drop(services);
    side.stop().await;
    done
}

/// Whoever is asked types the id again.
fn confirmed(user: UserId) -> Result<bool> {
    print!("This forgets {user} for ever: nothing brings back what is sealed. Type the user's id again to go on: ");
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == user.to_string())
}

/// Whether there is anything of them: an account, a withdrawal, a job, a like, something that they showed, or a key.
async fn is_known(connection: &mut PgConnection, user: UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM person_keys WHERE user_id = $2)
             OR EXISTS (SELECT FROM events WHERE aggregate_id = $1 AND aggregate_type = ANY (
                            '{points_account,withdrawal_allowance,video_slots,erasure,reconciliation_exception}'))
             OR EXISTS (SELECT FROM events WHERE aggregate_type = 'work' AND event_type = 'published'
                            AND payload #>> '{published,creator}' = $1)
             OR EXISTS (SELECT FROM events WHERE aggregate_type = 'like'
                            AND aggregate_id > $1 || '/' AND aggregate_id < $1 || '0')",
    )
    .bind(user.to_string())
    .bind(user.0)
    .fetch_one(connection)
    .await
}

async fn erase(arguments: &Arguments, user: UserId, services: &Services, owner: &mut PgConnection) -> Result<ExitCode> {
    let recorded = record(arguments, user, services).await?;
    let event = erased(owner, user, services).await?.context("the erasure cannot be found in the log")?;
    match recorded {
        Some(at) => println!("{user} is erased: event {at}, and the key is destroyed"),
        None => println!("{user} was erased before, by event {}", event.at),
    }
    let destroyed: Option<bool> = sqlx::query_scalar("SELECT wrapped_key IS NULL FROM person_keys WHERE user_id = $1")
        .bind(user.0)
        .fetch_optional(&mut *owner)
        .await?;
    ensure!(destroyed == Some(true), "the key of {user} is still there: this database was not migrated");
    // Takes versions of the row from before off their pages, here and on replicas, but for those that an old snapshot or a slot
    // may still need: these go with a later one. `POST …/erasure` leaves all of them to autovacuum.
    owner.execute("VACUUM person_keys").await.context("the old version of the key's row may still be on its page")?;
    take_down(&event, services).await?;
    println!(
        "what {user} showed is taken down, what was made of their prompts is deleted, and what was said of their payments \
         before anybody knew whose they were does not open any more"
    );
    let paid = paid_withdrawals(owner, user).await?;
    if !paid.is_empty() {
        println!(
            "whoever paid these withdrawals still knows where to, payment files too; ask them to delete what they may:"
        );
        paid.iter().for_each(|withdrawal| println!("  {withdrawal}"));
    }
    println!(
        "backups, archived write-ahead logs and old versions of the row have the key until they are gone, or until the \
         master key is changed:"
    );
    println!("  give every process the new master key before the old one, as new,old");
    println!("  skyriff keys rewrap, and {}", keys::THE_OLD_ONE);
    Ok(ExitCode::SUCCESS)
}

/// Where it was recorded; nothing when it had been before.
async fn record(arguments: &Arguments, user: UserId, services: &Services) -> Result<Option<LogPosition>> {
    let reference = arguments.reference.clone();
    let intent = Intent::Erase(erasure::Command { asked_by: arguments.asked_by, reference });
    // An id of its own each time: a refusal of before is not to stand in for what is so now, and the stream knows what
    // has been done.
    let id = CommandId(Uuid::now_v7());
    let fingerprint = Fingerprint::of(user, None, &intent)?;
    let metadata = Metadata {
        command_id: id,
        actor: format!("operator:{}", arguments.operator),
        request_id: format!("erase-{}", id.0),
        causation: None,
        traceparent: None,
        address: None,
    };
    let command = Command { user, at: Utc::now().trunc_subsecs(6), intent };
    match services.commands.execute(Submission { id, fingerprint, command, metadata }).await {
        Ok(receipt) => Ok((!receipt.recorded.is_empty()).then_some(receipt.position)),
        Err(Failure::Refused(refusal)) => bail!("{user} cannot be erased now: {refusal}"),
        Err(failure) => Err(anyhow!("{failure}; run the same command again")),
    }
}

async fn erased(connection: &mut PgConnection, user: UserId, services: &Services) -> Result<Option<RecordedEvent>> {
    let shard = services.commands.shard_of(user);
    Ok(log::read_stream(connection, shard, &StreamId::Erasure(user)).await?.into_iter().next())
}

async fn take_down(event: &RecordedEvent, services: &Services) -> Result<()> {
    for attempt in 1..=ATTEMPTS_MAX {
        match erasures::react(event, services).await {
            Reaction::Done => return Ok(()),
            Reaction::Later { reason, .. } | Reaction::NeedsAttention { reason, .. } if attempt == ATTEMPTS_MAX => {
                bail!(
                    "the key is destroyed, and not all that was shown or made is gone: {reason}; run the same command again"
                );
            }
            Reaction::Later { reason, .. } | Reaction::NeedsAttention { reason, .. } => {
                tracing::warn!(reason, "not all is taken down; trying again");
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
    Ok(())
}

async fn paid_withdrawals(connection: &mut PgConnection, user: UserId) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "SELECT payload #>> '{closed,withdrawal}' FROM events
         WHERE aggregate_type = 'withdrawal_allowance' AND aggregate_id = $1 AND event_type = 'closed' ORDER BY sequence",
    )
    .bind(user.to_string())
    .fetch_all(connection)
    .await
}
