//! The steps of what an event is about, from every shard that has some, and how each is related to the event.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;
use skyriff_domain::{Event, LogPosition, Metadata, Position, ShardId, StreamId, stream::DecodeError};
use skyriff_edge::{Kind, Problem};
use skyriff_proof::EventRow;
use sqlx::{FromRow, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Question, Stories,
    about::About,
    shown::{is_decision, is_outcome},
};
use crate::replicas::{AtLeast, ReadDatabase};

/// Events of one stream that are looked for: more than anything takes that has a course.
const STREAM_MAX: i64 = 100;
/// Events of an account, on either side of the one that is asked for, among which those of the same hold or spend are.
const ACCOUNT_MAX: i64 = 1_000;
/// Positions on either side of an event among which what its command recorded lies. A command records less.
const BESIDE_MAX: i64 = 16;
/// Causes of causes that are looked for.
const CAUSES_MAX: usize = 10;

/// A row of the log.
#[derive(Clone, Debug, FromRow)]
pub(super) struct Row {
    shard: i16,
    position: i64,
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) sequence: i64,
    pub(super) event_type: String,
    pub(super) event_version: String,
    pub(super) payload: String,
    pub(super) metadata: String,
    pub(super) occurred_at: DateTime<Utc>,
    pub(super) recorded_at: DateTime<Utc>,
}

const COLUMNS: &str =
    "e.shard, e.position, e.aggregate_type, e.aggregate_id, e.sequence, e.event_type, e.event_version,
                       e.payload::text AS payload, e.metadata::text AS metadata, e.occurred_at, e.recorded_at";

impl Row {
    pub(super) fn at(&self) -> LogPosition {
        LogPosition { shard: ShardId(u16::try_from(self.shard).unwrap_or_default()), position: Position(self.position) }
    }

    pub(super) fn decode(&self) -> Result<(StreamId, Event), DecodeError> {
        let stream = StreamId::decode(&self.aggregate_type, &self.aggregate_id)?;
        let event = Event::decode(&stream, &self.event_type, &self.event_version, &self.payload)?;
        Ok((stream, event))
    }

    /// With its aggregate, as everywhere outside.
    pub(super) fn r#type(&self) -> String {
        format!("{}.{}", self.aggregate_type, self.event_type)
    }

    pub(super) fn as_stored(&self) -> EventRow<'_> {
        let LogPosition { shard, position } = self.at();
        EventRow {
            shard,
            position,
            aggregate_type: (&self.aggregate_type).into(),
            aggregate_id: (&self.aggregate_id).into(),
            sequence: self.sequence,
            event_type: (&self.event_type).into(),
            event_version: (&self.event_version).into(),
            payload: (&self.payload).into(),
            metadata: (&self.metadata).into(),
            occurred_at_us: self.occurred_at.timestamp_micros(),
            recorded_at_us: self.recorded_at.timestamp_micros(),
        }
    }
}

/// How a step is related to the event that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Relation {
    /// It is that event.
    This,
    /// The same command recorded it.
    SameCommand,
    /// It made a process send the command, or made one send what led there.
    Cause,
    /// A process sent its command because of the event, or of what came of that.
    Effect,
    /// It belongs to the same tip, withdrawal, job, order, hold or spend.
    SameCourse,
}

/// One step.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Step {
    #[schema(example = "3:1042")]
    pub(super) position: String,
    relation: Relation,
    stream: String,
    sequence: i64,
    #[schema(example = "withdrawal.approved")]
    pub(super) r#type: String,
    pub(super) occurred_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
    /// Who asked for it.
    pub(super) actor: String,
    command: String,
    request: String,
    /// The event that made a process ask for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    caused_by: Option<String>,
    #[serde(skip)]
    is_approval: bool,
}

impl Step {
    pub(super) fn is_approval(&self) -> bool {
        self.is_approval
    }
}

/// All steps, in the order in which they were recorded.
pub(super) struct Course {
    pub(super) steps: Vec<Step>,
    pub(super) is_whole: bool,
    /// How far each shard was looked through.
    pub(super) heads: BTreeMap<ShardId, Position>,
}

/// The row at a position.
pub(super) struct RowAt(pub(super) LogPosition);

impl Question for RowAt {
    type Answer = Row;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Option<Row>> {
        // From our own code, but for what is bound.
        sqlx::query_as(&format!("SELECT {COLUMNS} FROM events e WHERE shard = $1 AND position = $2"))
            .bind(i16::try_from(self.0.shard.0).unwrap_or(i16::MAX))
            .bind(self.0.position.0)
            .fetch_optional(pool)
            .await
    }
}

/// What one database has of it.
struct Part {
    rows: Vec<Row>,
    is_whole: bool,
    heads: BTreeMap<ShardId, Position>,
}

/// Find the steps of what an event is about.
pub(super) async fn of(
    stories: &Stories,
    row: &Row,
    stream: &StreamId,
    event: &Event,
    at_least: &AtLeast,
) -> Result<Course, Problem> {
    let about = About::of(stream, event);
    let (mut rows, mut is_whole, mut heads) = (BTreeMap::new(), !about.has_effects, BTreeMap::new());
    rows.insert(row.at(), row.clone());
    for database in &stories.0.databases {
        let is_home = database.shards.contains(&row.at().shard);
        // Elsewhere there is only what has a stream of its own.
        if !is_home && about.streams.is_empty() {
            continue;
        }
        let asked = Asked { about: &about, row: is_home.then_some(row), database, at_least };
        let part = stories.ask(database, &asked).await?;
        let part = part.ok_or(Problem::new(&Kind::NOT_YET).retry_after_s(1))?;
        is_whole &= part.is_whole;
        heads.extend(part.heads);
        rows.extend(part.rows.into_iter().map(|row| (row.at(), row)));
    }
    add_causes(stories, row, &mut rows).await?;
    // What has led here from a shard is there; where that one was looked through less far, more may be.
    is_whole &=
        rows.values().filter_map(cause_of).all(|at| heads.get(&at.shard).is_none_or(|head| *head >= at.position));
    Ok(Course { steps: related(row.at(), rows), is_whole, heads })
}

struct Asked<'a> {
    about: &'a About,
    /// The event itself, where it lives.
    row: Option<&'a Row>,
    database: &'a ReadDatabase,
    at_least: &'a AtLeast,
}

impl Asked<'_> {
    /// Whether a database that has come so far has the event, and whatever else the client knows of.
    fn is_fresh(&self, heads: &BTreeMap<ShardId, Position>) -> bool {
        let event = self.row.map(Row::at);
        self.database.shards.iter().all(|shard| {
            let of_event = event.filter(|at| at.shard == *shard).map(|at| at.position);
            heads.get(shard).copied().unwrap_or_default() >= self.at_least.of(*shard).max(of_event.unwrap_or_default())
        })
    }
}

impl Question for Asked<'_> {
    type Answer = Part;

    async fn run(&self, pool: &PgPool) -> sqlx::Result<Option<Part>> {
        // On one connection, and before the rows: the database has come at least this far.
        let mut connection = pool.acquire().await?;
        let heads: Vec<(i16, i64)> =
            sqlx::query_as("SELECT shard, position FROM heads").fetch_all(&mut *connection).await?;
        let heads =
            heads.into_iter().filter_map(|(shard, head)| Some((ShardId(u16::try_from(shard).ok()?), Position(head))));
        let heads = heads.filter(|(shard, _)| self.database.shards.contains(shard)).collect();
        if !self.is_fresh(&heads) {
            return Ok(None);
        }
        let mut rows: Vec<Row> = sqlx::query_as(&format!(
            "SELECT {COLUMNS} FROM unnest($1::text[], $2::text[]) AS s (type, id)
             CROSS JOIN LATERAL (
                 SELECT * FROM events e WHERE e.aggregate_type = s.type AND e.aggregate_id = s.id
                 ORDER BY e.sequence LIMIT $3
             ) e"
        ))
        .bind(self.about.streams.iter().map(StreamId::aggregate_type).collect::<Vec<_>>())
        .bind(self.about.streams.iter().map(StreamId::aggregate_id).collect::<Vec<_>>())
        .bind(STREAM_MAX)
        .fetch_all(&mut *connection)
        .await?;
        let mut is_whole = rows.iter().all(|row| row.sequence < STREAM_MAX);
        if let Some(row) = self.row {
            if let Some(id) = self.about.on_account {
                let account = on_account(&mut connection, row, id).await?;
                let count = i64::try_from(account.len()).unwrap_or(i64::MAX);
                is_whole &=
                    count < STREAM_MAX && (is_opened_and_ended(&account) || sees_all(&mut connection, row).await?);
                rows.extend(account);
            }
            rows.push(row.clone());
        }
        let beside = beside(&mut connection, &rows).await?;
        rows.extend(beside);
        Ok(Some(Part { rows, is_whole, heads }))
    }
}

/// Events of the same account that name the same hold or spend, not far from this one.
async fn on_account(connection: &mut sqlx::PgConnection, row: &Row, id: Uuid) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as(&format!(
        "SELECT {COLUMNS} FROM events e
         WHERE e.aggregate_type = $1 AND e.aggregate_id = $2 AND e.sequence BETWEEN $3 AND $4
           AND strpos(e.payload::text, $5) > 0 ORDER BY e.sequence LIMIT $6"
    ))
    .bind(&row.aggregate_type)
    .bind(&row.aggregate_id)
    .bind(row.sequence.saturating_sub(ACCOUNT_MAX))
    .bind(row.sequence.saturating_add(ACCOUNT_MAX))
    .bind(format!("\"{id}\""))
    .bind(STREAM_MAX)
    .fetch_all(connection)
    .await
}

/// Whether the hold's first event and its last are among these; a spend, and a hold that was captured, has no last one.
fn is_opened_and_ended(rows: &[Row]) -> bool {
    use skyriff_domain::points_account::Event as E;
    let (mut is_opened, mut is_ended) = (false, false);
    for row in rows {
        if let Ok((_, Event::PointsAccount(event))) = row.decode() {
            is_opened |= matches!(event, E::Held { .. });
            is_ended |=
                matches!(event, E::Released { .. } | E::TipPaid { .. } | E::PaidOut { .. } | E::PayoutReturned { .. });
        }
    }
    is_opened && is_ended
}

/// Whether all events of the account are among those that [`on_account`] looks at.
async fn sees_all(connection: &mut sqlx::PgConnection, row: &Row) -> sqlx::Result<bool> {
    let last: Option<i64> =
        sqlx::query_scalar("SELECT max(sequence) FROM events WHERE aggregate_type = $1 AND aggregate_id = $2")
            .bind(&row.aggregate_type)
            .bind(&row.aggregate_id)
            .fetch_one(connection)
            .await?;
    Ok(row.sequence <= ACCOUNT_MAX + 1 && last.is_some_and(|last| last - row.sequence <= ACCOUNT_MAX))
}

/// What the same commands recorded, on other streams of the shard: right before or after.
async fn beside(connection: &mut sqlx::PgConnection, rows: &[Row]) -> sqlx::Result<Vec<Row>> {
    let commands: Vec<_> = rows.iter().map(|row| command_of(row).unwrap_or_default()).collect();
    sqlx::query_as(&format!(
        "SELECT DISTINCT ON (e.shard, e.position) {COLUMNS}
         FROM unnest($1::smallint[], $2::bigint[], $3::text[]) AS r (shard, position, command)
         JOIN events e ON e.shard = r.shard AND e.position BETWEEN r.position - $4 AND r.position + $4
                      AND e.metadata->>'command_id' = r.command
         ORDER BY e.shard, e.position"
    ))
    .bind(rows.iter().map(|row| row.shard).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.position).collect::<Vec<_>>())
    .bind(commands)
    .bind(BESIDE_MAX)
    .fetch_all(connection)
    .await
}

fn metadata(row: &Row) -> Option<Metadata> {
    serde_json::from_str(&row.metadata).ok()
}

fn command_of(row: &Row) -> Option<String> {
    metadata(row).map(|metadata| metadata.command_id.to_string())
}

fn cause_of(row: &Row) -> Option<LogPosition> {
    metadata(row)?.causation?.parse().ok()
}

/// Causes that are of another course, one after the other.
async fn add_causes(stories: &Stories, row: &Row, rows: &mut BTreeMap<LogPosition, Row>) -> Result<(), Problem> {
    let mut next = cause_of(row);
    for _ in 0..CAUSES_MAX {
        let Some(at) = next else { break };
        let found = match rows.get(&at) {
            Some(cause) => Some(cause.clone()),
            None => stories.row(at).await?,
        };
        // One that is not there is named by the step that it has caused.
        let Some(cause) = found else { break };
        next = cause_of(&cause);
        rows.insert(at, cause);
    }
    Ok(())
}

/// Each with its relation to the event at `this`.
fn related(this: LogPosition, rows: BTreeMap<LogPosition, Row>) -> Vec<Step> {
    let command = rows.get(&this).and_then(command_of);
    let beside: BTreeSet<_> = rows.iter().filter(|(_, row)| command_of(row) == command).map(|(at, _)| *at).collect();
    let causes = causes(&rows, &beside);
    let effects = effects(&rows, &beside);
    let mut steps: Vec<_> = rows.into_values().collect();
    steps.sort_by_key(|row| (row.recorded_at, row.at()));
    let step = |row: Row| {
        let at = row.at();
        let relation = match () {
            () if at == this => Relation::This,
            () if beside.contains(&at) => Relation::SameCommand,
            () if causes.contains(&at) => Relation::Cause,
            () if effects.contains(&at) => Relation::Effect,
            () => Relation::SameCourse,
        };
        let metadata = metadata(&row);
        let actor = metadata.as_ref().map(|metadata| metadata.actor.clone()).unwrap_or_default();
        let event = row.decode().ok().map(|(_, event)| event);
        let by_hand = actor.starts_with("operator:");
        let is_approval = event.is_some_and(|event| is_decision(&event) || (is_outcome(&event) && by_hand));
        Step {
            position: at.to_string(),
            relation,
            stream: format!("{}/{}", row.aggregate_type, row.aggregate_id),
            sequence: row.sequence,
            r#type: row.r#type(),
            occurred_at: row.occurred_at,
            recorded_at: row.recorded_at,
            actor,
            command: metadata.as_ref().map(|metadata| metadata.command_id.to_string()).unwrap_or_default(),
            request: metadata.as_ref().map(|metadata| metadata.request_id.clone()).unwrap_or_default(),
            caused_by: metadata.and_then(|metadata| metadata.causation),
            is_approval,
        }
    };
    steps.into_iter().map(step).collect()
}

fn causes(rows: &BTreeMap<LogPosition, Row>, beside: &BTreeSet<LogPosition>) -> BTreeSet<LogPosition> {
    let mut found = BTreeSet::new();
    let mut next: Vec<_> = beside.iter().filter_map(|at| cause_of(rows.get(at)?)).collect();
    while let Some(at) = next.pop() {
        if found.insert(at) {
            next.extend(rows.get(&at).and_then(cause_of));
        }
    }
    found
}

fn effects(rows: &BTreeMap<LogPosition, Row>, beside: &BTreeSet<LogPosition>) -> BTreeSet<LogPosition> {
    let mut of: BTreeMap<LogPosition, Vec<LogPosition>> = BTreeMap::new();
    let mut with: BTreeMap<String, Vec<LogPosition>> = BTreeMap::new();
    for (at, row) in rows {
        if let Some(cause) = cause_of(row) {
            of.entry(cause).or_default().push(*at);
        }
        with.entry(command_of(row).unwrap_or_default()).or_default().push(*at);
    }
    let mut found = BTreeSet::new();
    let mut next: Vec<_> = beside.iter().copied().collect();
    while let Some(at) = next.pop() {
        for effect in of.get(&at).into_iter().flatten() {
            // With whatever was recorded by the same command, which may be a cause in turn.
            let command = rows.get(effect).and_then(command_of).unwrap_or_default();
            let all = with.get(&command).into_iter().flatten().copied();
            next.extend(all.filter(|effect| found.insert(*effect)));
        }
    }
    found
}
