//! Compares the log with what the clients were told. Reads the tables itself and folds with a few lines of its own, so
//! that an error of the code under test is not repeated here.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, bail, ensure};
use chrono::{DateTime, Utc};
use serde_json::Value;
use skyriff_domain::{CommandId, LogPosition, Position, ShardId};
use skyriff_postgres::Server;
use uuid::Uuid;

use crate::{
    EVENTS,
    client::{Entry, Outcome},
};

type Row = (i16, i64, String, String, i64, String, String, DateTime<Utc>);

/// An account after one of its events.
struct Step {
    at: LogPosition,
    recorded_at: DateTime<Utc>,
    balance: i64,
}

pub async fn check(server: &Server, history: &[Entry]) -> Result<String> {
    let mut connection = server.superuser(EVENTS).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT shard, position, aggregate_type, aggregate_id, sequence, payload::text, metadata::text,
                recorded_at
         FROM events ORDER BY shard, position",
    )
    .fetch_all(&mut connection)
    .await?;
    let heads: Vec<(i16, i64)> = sqlx::query_as("SELECT shard, position FROM heads").fetch_all(&mut connection).await?;

    let mut positions: BTreeMap<i16, i64> = BTreeMap::new();
    let mut sequences: HashMap<(String, String), i64> = HashMap::new();
    let mut accounts: HashMap<Uuid, Vec<Step>> = HashMap::new();
    let mut by_command: HashMap<CommandId, Vec<LogPosition>> = HashMap::new();
    for (shard, position, aggregate_type, aggregate_id, sequence, payload, metadata, recorded_at) in &rows {
        let last = positions.entry(*shard).or_default();
        ensure!(*position == *last + 1, "shard {shard}: {position} comes after {last}");
        *last = *position;
        let last = sequences.entry((aggregate_type.clone(), aggregate_id.clone())).or_default();
        ensure!(*sequence == *last + 1, "{aggregate_type} {aggregate_id}: {sequence} comes after {last}");
        *last = *sequence;

        let metadata: Value = serde_json::from_str(metadata)?;
        let command: Uuid = serde_json::from_value(metadata["command_id"].clone())?;
        let at = LogPosition { shard: ShardId(u16::try_from(*shard)?), position: Position(*position) };
        by_command.entry(CommandId(command)).or_default().push(at);

        if aggregate_type == "points_account" {
            let steps = accounts.entry(aggregate_id.parse()?).or_default();
            let before = steps.last().map_or(0, |step| step.balance);
            let balance = before + change(&serde_json::from_str(payload)?)?;
            steps.push(Step { at, recorded_at: *recorded_at, balance });
            ensure!(balance >= 0, "{at}: the balance of {aggregate_id} falls to {balance}: decided on stale state");
        }
    }
    for (shard, head) in heads {
        let last = positions.get(&shard).copied().unwrap_or_default();
        ensure!(head == last, "shard {shard}: the head is {head}, the last event {last}");
    }

    let told = history.iter().filter_map(|entry| match &entry.outcome {
        Outcome::Ok(positions) => Some(positions.iter().map(|at| (*at, entry.answered_at))),
        Outcome::Refused | Outcome::Fault | Outcome::Unknown => None,
    });
    let acknowledged_at: HashMap<_, _> = told.flatten().collect();
    let (mut ok, mut refused, mut unknown, mut unknown_recorded) = (0, 0, 0, 0);
    for entry in history {
        let recorded = by_command.remove(&entry.command_id).unwrap_or_default();
        match &entry.outcome {
            Outcome::Ok(told) => {
                ok += 1;
                ensure!(*told == recorded, "{:?} was told {told:?}, and the log has {recorded:?}", entry.command_id);
            }
            Outcome::Refused => {
                refused += 1;
                ensure!(recorded.is_empty(), "{:?} was refused, and the log has {recorded:?}", entry.command_id);
                let steps = accounts.get(&entry.user).map(Vec::as_slice).unwrap_or_default();
                ensure!(
                    could_be_refused(entry, steps, &acknowledged_at),
                    "{:?} was refused, and at no moment while it was asked were there fewer than {} points",
                    entry.command_id,
                    entry.spends
                );
            }
            Outcome::Fault => bail!("{:?} was answered with a fault", entry.command_id),
            Outcome::Unknown => {
                unknown += 1;
                unknown_recorded += i32::from(!recorded.is_empty());
                let whole = recorded.is_empty() || recorded.len() == entry.events;
                ensure!(
                    whole,
                    "{:?}, unknown, records {} events and the log has {recorded:?}",
                    entry.command_id,
                    entry.events
                );
            }
        }
    }
    ensure!(by_command.is_empty(), "the log has commands that nobody sent: {by_command:?}");
    ensure!(ok > 0 && refused > 0, "nothing was tried: {ok} acknowledged, {refused} refused");
    Ok(format!(
        "checked: {} events, {ok} commands acknowledged and there exactly once, {refused} refused, rightly, and not there, \
         {unknown} unknown of which {unknown_recorded} are there once",
        rows.len()
    ))
}

/// Whether there was a moment between question and answer at which the account did not have the points: after at least
/// what had been acknowledged before the question, and at most what was recorded before the answer.
fn could_be_refused(entry: &Entry, steps: &[Step], acknowledged_at: &HashMap<LogPosition, DateTime<Utc>>) -> bool {
    let known = |step: &Step| acknowledged_at.get(&step.at).is_some_and(|at| *at < entry.sent_at);
    let first = steps.iter().rposition(known).map_or(0, |last| last + 1);
    let last = steps.iter().rposition(|step| step.recorded_at <= entry.answered_at).map_or(0, |last| last + 1);
    (first..=last.max(first)).any(|count| {
        let balance = count.checked_sub(1).and_then(|last| steps.get(last)).map_or(0, |step| step.balance);
        balance < entry.spends
    })
}

/// By how many points an event of an account changes what is available.
fn change(payload: &Value) -> Result<i64> {
    let income_and_paid = |purse: &Value| purse["income"].as_i64().unwrap_or(0) + purse["paid"].as_i64().unwrap_or(0);
    let Some((name, event)) = payload.as_object().and_then(|object| object.iter().next()) else { bail!("{payload}") };
    Ok(match name.as_str() {
        "earned" => income_and_paid(&event["credited"]),
        "recharged" => event["points"].as_i64().unwrap_or(0),
        "spent" => -income_and_paid(&event["taken"]),
        other => bail!("nobody asked for {other}"),
    })
}
