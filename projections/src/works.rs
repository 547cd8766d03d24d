//! What users show.
//!
//! Table `works`: every work that was ever shown, beside its maker. Table `newest_works`, partitioned by month: the
//! public ones that are shown now, in the order in which they were first shown.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use skyriff_domain::{Event, RecordedEvent, StreamId, WorkId, words, work, work::Visibility};
use skyriff_follow::{ApplyError, Batch};
use sqlx::PgConnection;

/// What a batch says about one work.
struct Change<'a> {
    /// The first and the last of its events that show it.
    shown: Option<(&'a RecordedEvent, &'a RecordedEvent)>,
    /// Whether it is shown after the last event.
    stands: bool,
    last: &'a RecordedEvent,
}

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let mut changes: BTreeMap<WorkId, Change<'_>> = BTreeMap::new();
    for event in batch {
        let (StreamId::Work(work), Event::Work(said)) = (event.stream, &event.event) else { continue };
        let change = changes.entry(work).or_insert(Change { shown: None, stands: false, last: event });
        change.last = event;
        match said {
            work::Event::Published { .. } => {
                change.shown = Some((change.shown.map_or(event, |(first, _)| first), event));
                change.stands = true;
            }
            work::Event::Unpublished {} => change.stands = false,
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    upsert(&changes, transaction).await?;
    hide(&changes, transaction).await?;
    list(&changes, transaction).await
}

async fn upsert(changes: &BTreeMap<WorkId, Change<'_>>, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let mut rows = Rows::default();
    for (work, change) in changes {
        let Some((first, last)) = change.shown else { continue };
        let Event::Work(work::Event::Published { creator, job, title, words, visibility }) = &last.event else {
            continue;
        };
        rows.works.push(work.0);
        rows.creators.push(creator.0);
        rows.shards.push(i16::try_from(last.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))?);
        rows.jobs.push(job.map(|job| job.0));
        rows.titles.push(words::to_column(title, words.as_ref()));
        rows.visibilities.push(name_of(*visibility));
        rows.stand.push(change.stands);
        rows.first_shown_at.push(first.occurred_at);
        rows.positions.push(change.last.at.position.0);
    }
    sqlx::query(
        "INSERT INTO works (work_id, creator, shard, job, title, visibility, shown, published_at, position)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::uuid[], $5::text[], $6::text[], $7::bool[],
                              $8::timestamptz[], $9::bigint[])
         ON CONFLICT (work_id) DO UPDATE
         SET title = excluded.title, visibility = excluded.visibility, shown = excluded.shown, position = excluded.position",
    )
    .bind(rows.works)
    .bind(rows.creators)
    .bind(rows.shards)
    .bind(rows.jobs)
    .bind(rows.titles)
    .bind(rows.visibilities)
    .bind(rows.stand)
    .bind(rows.first_shown_at)
    .bind(rows.positions)
    .execute(transaction)
    .await?;
    Ok(())
}

/// By column.
#[derive(Default)]
struct Rows {
    works: Vec<uuid::Uuid>,
    creators: Vec<uuid::Uuid>,
    shards: Vec<i16>,
    jobs: Vec<Option<uuid::Uuid>>,
    titles: Vec<String>,
    visibilities: Vec<&'static str>,
    stand: Vec<bool>,
    first_shown_at: Vec<DateTime<Utc>>,
    positions: Vec<i64>,
}

/// The ones of which the batch only says that they are no longer shown.
async fn hide(changes: &BTreeMap<WorkId, Change<'_>>, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let hidden = || changes.iter().filter(|(_, change)| change.shown.is_none());
    let (works, positions): (Vec<_>, Vec<_>) =
        hidden().map(|(work, change)| (work.0, change.last.at.position.0)).unzip();
    let count = works.len();
    let updated = sqlx::query(
        "UPDATE works w SET shown = false, position = h.position
         FROM unnest($1::uuid[], $2::bigint[]) AS h (work_id, position) WHERE w.work_id = h.work_id",
    )
    .bind(works)
    .bind(positions)
    .execute(transaction)
    .await?;
    if updated.rows_affected() != u64::try_from(count).unwrap_or(u64::MAX) {
        return Err(ApplyError::Misfit("a work is no longer shown that never was".to_owned()));
    }
    Ok(())
}

/// Bring the list of the newest in line with the works.
async fn list(changes: &BTreeMap<WorkId, Change<'_>>, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let works: Vec<_> = changes.keys().map(|work| work.0).collect();
    sqlx::query(
        "SELECT ensure_month(current_schema(), 'newest_works', month)
         FROM (SELECT DISTINCT date_trunc('month', published_at AT TIME ZONE 'UTC')::date AS month
               FROM works WHERE work_id = ANY ($1)) m",
    )
    .bind(&works)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "DELETE FROM newest_works n USING works w
         WHERE w.work_id = ANY ($1) AND n.published_at = w.published_at AND n.work_id = w.work_id
           AND NOT (w.shown AND w.visibility = 'public')",
    )
    .bind(&works)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "INSERT INTO newest_works (published_at, work_id)
         SELECT published_at, work_id FROM works WHERE work_id = ANY ($1) AND shown AND visibility = 'public'
         ON CONFLICT DO NOTHING",
    )
    .bind(&works)
    .execute(transaction)
    .await?;
    Ok(())
}

const fn name_of(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Public => "public",
        Visibility::Unlisted => "unlisted",
    }
}
