//! What has become of each video job, for its owner's list; and what making them cost and brought in.
//!
//! Table `video_jobs`: a row a job, folded from its events. Table `video_costs`: sums by day, provider, kind and currency.
//! Both in one projection, since an attempt's end says neither its provider nor its kind: the job's row does.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use skyriff_domain::{
    Event, JobId, Points, RecordedEvent, StreamId,
    video_job::{self, Cost, Order, Status},
    words,
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::{FromRow, PgConnection, types::Json};
use uuid::Uuid;

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let changed: Vec<_> = batch
        .iter()
        .filter_map(|recorded| match (&recorded.stream, &recorded.event) {
            (StreamId::VideoJob(job), Event::VideoJob(event)) => Some((*job, recorded, event)),
            _ => None,
        })
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let jobs: Vec<_> = changed.iter().map(|(job, ..)| job.0).collect();
    let rows: Vec<Row> =
        sqlx::query_as("SELECT * FROM video_jobs WHERE job = ANY ($1)").bind(jobs).fetch_all(&mut *transaction).await?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.job, row)).collect();
    let mut costs = BTreeMap::<CostKey, CostRow>::new();
    for (job, recorded, event) in changed {
        fold(&mut rows, &mut costs, job, recorded, event)?;
    }
    store(&rows.into_values().collect::<Vec<_>>(), transaction).await?;
    add(&costs.into_values().collect::<Vec<_>>(), transaction).await
}

/// As the table has it, column by column.
#[derive(Clone, FromRow, Serialize)]
struct Row {
    job: Uuid,
    user_id: Uuid,
    shard: i16,
    status: String,
    kind: String,
    seconds: i64,
    resolution: Option<String>,
    voice: Option<String>,
    wanted: Option<String>,
    provider: Option<String>,
    prompt: String,
    priority: i16,
    attempt: i64,
    held: i64,
    used: Option<i64>,
    reason: Option<String>,
    retry_at: Option<DateTime<Utc>>,
    object: Option<String>,
    output_seconds: Option<i64>,
    bytes: Option<i64>,
    sha256: Option<String>,
    content_type: Option<String>,
    submitted_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    submitted_position: i64,
    position: i64,
}

/// Day, provider, kind, currency, shard.
type CostKey = (NaiveDate, String, String, String, i16);

/// What a batch adds, as the table has it.
#[derive(Serialize)]
struct CostRow {
    day: NaiveDate,
    provider: String,
    kind: String,
    currency: String,
    shard: i16,
    succeeded: i64,
    failed_attempts: i64,
    points: i64,
    cost_micros: i64,
}

fn fold(
    rows: &mut HashMap<Uuid, Row>,
    costs: &mut BTreeMap<CostKey, CostRow>,
    job: JobId,
    recorded: &RecordedEvent,
    event: &video_job::Event,
) -> Result<(), ApplyError> {
    use video_job::Event as E;
    if let E::Submitted(order) = event {
        rows.insert(job.0, row(job, recorded, order)?);
        return Ok(());
    }
    let row = rows.get_mut(&job.0).ok_or_else(|| ApplyError::Misfit(format!("job {job} was never submitted")))?;
    row.updated_at = recorded.occurred_at;
    row.position = recorded.at.position.0;
    row.retry_at = None;
    let (status, ended) = match event {
        E::Submitted(_) => return Ok(()),
        E::Leased { attempt, worker: _, provider } => {
            row.attempt = i64::from(*attempt);
            row.provider = Some(provider.to_string());
            row.reason = None;
            (Status::Leased, None)
        }
        E::Succeeded { attempt: _, output, used, cost } => {
            row.used = Some(used.get());
            row.object = Some(output.object.as_str().to_owned());
            row.output_seconds = Some(i64::from(output.seconds));
            row.bytes = Some(i64::try_from(output.bytes).unwrap_or(i64::MAX));
            row.sha256 = Some(output.sha256.as_str().to_owned());
            row.content_type = Some(output.content_type.as_str().to_owned());
            (Status::Succeeded, Some((cost, Some(*used))))
        }
        E::AttemptFailed { attempt: _, reason, words, retry_at, cost } => {
            row.reason = Some(words::to_column(reason, words.as_ref()));
            row.retry_at = Some(*retry_at);
            (Status::Queued, Some((cost, None)))
        }
        E::Failed { attempt: _, reason, words, retryable: _, cost } => {
            row.reason = Some(words::to_column(reason, words.as_ref()));
            (Status::Failed, Some((cost, None)))
        }
        E::Cancelled {} => (Status::Cancelled, None),
        E::Expired {} => (Status::Expired, None),
    };
    status.as_str().clone_into(&mut row.status);
    if let Some((cost, used)) = ended {
        count(costs, row, recorded, cost, used);
    }
    Ok(())
}

/// An attempt has ended, and was paid for if it has worked.
fn count(
    costs: &mut BTreeMap<CostKey, CostRow>,
    row: &Row,
    recorded: &RecordedEvent,
    cost: &Cost,
    used: Option<Points>,
) {
    let day = recorded.occurred_at.date_naive();
    let (provider, kind) = (row.provider.clone().unwrap_or_default(), row.kind.clone());
    let (currency, shard) = (cost.currency.to_string(), row.shard);
    let key = (day, provider.clone(), kind.clone(), currency.clone(), shard);
    let (succeeded, failed_attempts, points, cost_micros) = (0, 0, 0, 0);
    let sums = costs.entry(key).or_insert_with(|| CostRow {
        day,
        provider,
        kind,
        currency,
        shard,
        succeeded,
        failed_attempts,
        points,
        cost_micros,
    });
    sums.succeeded += i64::from(used.is_some());
    sums.failed_attempts += i64::from(used.is_none());
    sums.points += used.unwrap_or_default().get();
    sums.cost_micros = sums.cost_micros.saturating_add(i64::try_from(cost.micros).unwrap_or(i64::MAX));
}

fn row(job: JobId, recorded: &RecordedEvent, order: &Order) -> Result<Row, ApplyError> {
    let label = |label: &Option<skyriff_domain::Label>| label.as_ref().map(ToString::to_string);
    Ok(Row {
        job: job.0,
        user_id: order.user.0,
        shard: i16::try_from(recorded.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))?,
        status: Status::Queued.as_str().to_owned(),
        kind: order.kind.as_str().to_owned(),
        seconds: i64::from(order.seconds),
        resolution: order.resolution.map(|resolution| resolution.as_str().to_owned()),
        voice: label(&order.voice),
        wanted: label(&order.provider),
        provider: None,
        prompt: order.prompt.as_str().to_owned(),
        priority: i16::from(order.priority),
        attempt: 0,
        held: order.price().get(),
        used: None,
        reason: None,
        retry_at: None,
        object: None,
        output_seconds: None,
        bytes: None,
        sha256: None,
        content_type: None,
        submitted_at: recorded.occurred_at,
        updated_at: recorded.occurred_at,
        submitted_position: recorded.at.position.0,
        position: recorded.at.position.0,
    })
}

async fn store(rows: &[Row], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    sqlx::query(
        "INSERT INTO video_jobs SELECT * FROM jsonb_populate_recordset(NULL::video_jobs, $1)
         ON CONFLICT (job) DO UPDATE
         SET status = excluded.status, provider = excluded.provider, attempt = excluded.attempt, used = excluded.used,
             reason = excluded.reason, retry_at = excluded.retry_at, object = excluded.object,
             output_seconds = excluded.output_seconds, bytes = excluded.bytes, sha256 = excluded.sha256,
             content_type = excluded.content_type, updated_at = excluded.updated_at, position = excluded.position",
    )
    .bind(Json(rows))
    .execute(transaction)
    .await?;
    Ok(())
}

async fn add(costs: &[CostRow], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    if costs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO video_costs AS c SELECT * FROM jsonb_populate_recordset(NULL::video_costs, $1)
         ON CONFLICT (day, provider, kind, currency, shard) DO UPDATE
         SET succeeded = c.succeeded + excluded.succeeded, failed_attempts = c.failed_attempts + excluded.failed_attempts,
             points = c.points + excluded.points, cost_micros = c.cost_micros + excluded.cost_micros",
    )
    .bind(Json(costs))
    .execute(transaction)
    .await?;
    Ok(())
}
