//! The log as it is in the tables: whole, in order, and folded.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde_json::Value;
use skyriff_domain::{CommandId, LogPosition, Position, ShardId};
use skyriff_postgres::Server;
use uuid::Uuid;

use crate::{
    EVENTS,
    accounts::{Account, is_due},
};

type Row = (i16, i64, String, String, i64, String, String, DateTime<Utc>);

#[derive(Default)]
pub struct Log {
    pub events: usize,
    pub accounts: HashMap<Uuid, Account>,
    /// What happened to each tip, in order.
    pub tips: HashMap<Uuid, Vec<String>>,
    /// Points that have left one account for another and not arrived, or the other way round.
    pub transit: i64,
    /// Where the events of each command of a client are.
    pub by_command: HashMap<CommandId, Recorded>,
}

#[derive(Debug, Default)]
pub struct Recorded {
    pub positions: Vec<LogPosition>,
    /// How many of them are the command's own, and not holds that were over.
    pub own: usize,
}

impl Log {
    pub async fn read(server: &Server) -> Result<Self> {
        let mut connection = server.superuser(EVENTS).await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT shard, position, aggregate_type, aggregate_id, sequence, payload::text, metadata::text,
                    recorded_at
             FROM events ORDER BY shard, position",
        )
        .fetch_all(&mut connection)
        .await?;
        let heads: Vec<(i16, i64)> =
            sqlx::query_as("SELECT shard, position FROM heads").fetch_all(&mut connection).await?;

        let mut positions: BTreeMap<i16, i64> = BTreeMap::new();
        let mut sequences: HashMap<(String, String), i64> = HashMap::new();
        let mut log = Self { events: rows.len(), ..Self::default() };
        for (shard, position, aggregate_type, aggregate_id, sequence, payload, metadata, recorded_at) in rows {
            let last = positions.entry(shard).or_default();
            ensure!(position == *last + 1, "shard {shard}: {position} comes after {last}");
            *last = position;
            let last = sequences.entry((aggregate_type.clone(), aggregate_id.clone())).or_default();
            ensure!(sequence == *last + 1, "{aggregate_type} {aggregate_id}: {sequence} comes after {last}");
            *last = sequence;

            let (payload, metadata): (Value, Value) =
                (serde_json::from_str(&payload)?, serde_json::from_str(&metadata)?);
            let command: Uuid = serde_json::from_value(metadata["command_id"].clone())?;
            let at = LogPosition { shard: ShardId(u16::try_from(shard)?), position: Position(position) };
            let by_process = metadata["actor"].as_str().is_some_and(|actor| actor.starts_with("process:"));
            if !by_process {
                let recorded = log.by_command.entry(CommandId(command)).or_default();
                recorded.positions.push(at);
                recorded.own += usize::from(!is_due(&payload));
            }
            log.transit += to_transit(&payload);
            if aggregate_type == "tip" {
                let name = payload.as_object().and_then(|event| event.keys().next()).context("no event")?;
                log.tips.entry(aggregate_id.parse()?).or_default().push(name.clone());
            }
            if aggregate_type == "points_account" {
                let account = log.accounts.entry(aggregate_id.parse()?).or_default();
                account
                    .apply(&payload, at, recorded_at)
                    .with_context(|| format!("{at}, account {aggregate_id}: {payload}"))?;
            }
        }
        for (shard, head) in heads {
            let last = positions.get(&shard).copied().unwrap_or_default();
            ensure!(head == last, "shard {shard}: the head is {head}, the last event {last}");
        }
        Ok(log)
    }
}

/// What an event puts on the transit account, or takes from it.
fn to_transit(payload: &Value) -> i64 {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let (paid, received) = (&payload["tip_paid"]["taken"], &payload["tip_received"]);
    number(&paid["paid"]) + number(&paid["income"]) - number(&received["income"]) - number(&received["share"])
}
