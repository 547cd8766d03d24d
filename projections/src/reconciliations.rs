//! Files of providers that were compared with the ledger, what does not agree, and the recharges that they are compared with.
//!
//! Tables `reconciliation_runs`, `reconciliation_exceptions`: a row each, folded from its events. Table `recharges`: a row a
//! payment that was credited, and to whom: two databases of the event store may have credited one to two. (Withdrawals have a read model of their own.)

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use skyriff_domain::{
    Event, ExceptionId, ReconciliationId, RecordedEvent, StreamId, recharge_order,
    reconciliation::{
        exception::{self, Figures, Found, State},
        run,
    },
    words,
};
use skyriff_follow::{ApplyError, Batch};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

/// See the module.
pub(crate) async fn apply(batch: &Batch, transaction: &mut PgConnection) -> Result<(), ApplyError> {
    let (mut credited, mut of_runs, mut of_exceptions) = (Vec::new(), Vec::new(), Vec::new());
    for recorded in batch {
        match (&recorded.stream, &recorded.event) {
            (
                StreamId::RechargeOrder(order),
                Event::RechargeOrder(recharge_order::Event::Credited { user, points }),
            ) => credited.push(Recharge {
                order_id: order.0,
                user_id: user.0,
                shard: shard(recorded)?,
                points: points.get(),
                credited_at: recorded.occurred_at,
                position: recorded.at.position.0,
            }),
            (StreamId::Reconciliation(run), Event::Reconciliation(event)) => of_runs.push((*run, recorded, event)),
            (StreamId::ReconciliationException(exception), Event::ReconciliationException(event)) => {
                of_exceptions.push((*exception, recorded, event));
            }
            _ => {}
        }
    }
    insert_recharges(&credited, transaction).await?;
    apply_runs(&of_runs, transaction).await?;
    apply_exceptions(&of_exceptions, transaction).await
}

fn shard(recorded: &RecordedEvent) -> Result<i16, ApplyError> {
    i16::try_from(recorded.at.shard.0).map_err(|error| ApplyError::Misfit(error.to_string()))
}

/// As the table has it.
#[derive(Serialize)]
struct Recharge {
    order_id: Uuid,
    user_id: Uuid,
    shard: i16,
    points: i64,
    credited_at: chrono::DateTime<chrono::Utc>,
    position: i64,
}

async fn insert_recharges(rows: &[Recharge], transaction: &mut PgConnection) -> Result<(), ApplyError> {
    if !rows.is_empty() {
        sqlx::query("INSERT INTO recharges SELECT * FROM jsonb_populate_recordset(NULL::recharges, $1)")
            .bind(Json(rows))
            .execute(transaction)
            .await?;
    }
    Ok(())
}

/// As the table has it.
#[derive(Clone, Deserialize, Serialize)]
struct RunRow {
    run_id: Uuid,
    shard: i16,
    kind: String,
    provider: String,
    from_day: chrono::NaiveDate,
    to_day: chrono::NaiveDate,
    sha256: String,
    lines: u64,
    started_at: chrono::DateTime<chrono::Utc>,
    finished_at: Option<chrono::DateTime<chrono::Utc>>,
    matched: Option<u64>,
    missing_in_ledger: Option<u64>,
    missing_in_file: Option<u64>,
    different: Option<u64>,
    repeated: Option<u64>,
    explained: Option<u64>,
    position: i64,
}

async fn apply_runs(
    changed: &[(ReconciliationId, &RecordedEvent, &run::Event)],
    transaction: &mut PgConnection,
) -> Result<(), ApplyError> {
    if changed.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = changed.iter().map(|(run, ..)| run.0).collect();
    let rows: Vec<Json<RunRow>> =
        sqlx::query_scalar("SELECT to_jsonb(r) FROM reconciliation_runs r WHERE run_id = ANY ($1)")
            .bind(ids)
            .fetch_all(&mut *transaction)
            .await?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|Json(row)| (row.run_id, row)).collect();
    for (run, recorded, event) in changed {
        match event {
            run::Event::Started(run::File { kind, provider, from, to, sha256, lines }) => {
                let row = RunRow {
                    run_id: run.0,
                    shard: shard(recorded)?,
                    kind: kind.as_str().to_owned(),
                    provider: provider.to_string(),
                    from_day: *from,
                    to_day: *to,
                    sha256: sha256.to_string(),
                    lines: *lines,
                    started_at: recorded.occurred_at,
                    finished_at: None,
                    matched: None,
                    missing_in_ledger: None,
                    missing_in_file: None,
                    different: None,
                    repeated: None,
                    explained: None,
                    position: recorded.at.position.0,
                };
                rows.insert(run.0, row);
            }
            run::Event::Finished(run::Counts {
                matched,
                missing_in_ledger,
                missing_in_file,
                different,
                repeated,
                explained,
            }) => {
                let never = || ApplyError::Misfit(format!("reconciliation {run} was never started"));
                let row = rows.get_mut(&run.0).ok_or_else(never)?;
                row.finished_at = Some(recorded.occurred_at);
                row.matched = Some(*matched);
                row.missing_in_ledger = Some(*missing_in_ledger);
                row.missing_in_file = Some(*missing_in_file);
                row.different = Some(*different);
                row.repeated = Some(*repeated);
                row.explained = Some(*explained);
                row.position = recorded.at.position.0;
            }
        }
    }
    sqlx::query(
        "INSERT INTO reconciliation_runs SELECT * FROM jsonb_populate_recordset(NULL::reconciliation_runs, $1)
         ON CONFLICT (run_id) DO UPDATE
         SET finished_at = excluded.finished_at, matched = excluded.matched, missing_in_ledger = excluded.missing_in_ledger,
             missing_in_file = excluded.missing_in_file, different = excluded.different, repeated = excluded.repeated,
             explained = excluded.explained, position = excluded.position",
    )
    .bind(Json(rows.into_values().collect::<Vec<_>>()))
    .execute(transaction)
    .await?;
    Ok(())
}

/// As the table has it.
#[derive(Clone, Deserialize, Serialize)]
struct ExceptionRow {
    exception_id: Uuid,
    user_id: Option<Uuid>,
    shard: i16,
    kind: String,
    provider: String,
    subject: Uuid,
    run_id: Uuid,
    difference: String,
    ours: Option<Figures>,
    theirs: Option<Figures>,
    line: Option<u64>,
    state: String,
    explained_by: Option<Uuid>,
    resolved_by: Option<Uuid>,
    outcome: Option<String>,
    reason: Option<String>,
    found_at: chrono::DateTime<chrono::Utc>,
    changed_at: chrono::DateTime<chrono::Utc>,
    position: i64,
}

async fn apply_exceptions(
    changed: &[(ExceptionId, &RecordedEvent, &exception::Event)],
    transaction: &mut PgConnection,
) -> Result<(), ApplyError> {
    if changed.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = changed.iter().map(|(exception, ..)| exception.0).collect();
    let rows: Vec<Json<ExceptionRow>> =
        sqlx::query_scalar("SELECT to_jsonb(e) FROM reconciliation_exceptions e WHERE exception_id = ANY ($1)")
            .bind(ids)
            .fetch_all(&mut *transaction)
            .await?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|Json(row)| (row.exception_id, row)).collect();
    for (exception, recorded, event) in changed {
        if let exception::Event::Found(found) = event {
            rows.insert(exception.0, found_row(*exception, recorded, found)?);
            continue;
        }
        let never = || ApplyError::Misfit(format!("exception {exception} was never found"));
        let row = rows.get_mut(&exception.0).ok_or_else(never)?;
        row.position = recorded.at.position.0;
        row.changed_at = recorded.occurred_at;
        match event {
            exception::Event::Found(_) => {}
            exception::Event::Explained { run } => {
                row.state = State::Explained.as_str().to_owned();
                row.explained_by = Some(run.0);
            }
            exception::Event::Resolved { operator, outcome, reason, words } => {
                row.state = State::Resolved.as_str().to_owned();
                row.resolved_by = Some(operator.0);
                row.outcome = Some(outcome.as_str().to_owned());
                row.reason = Some(words::to_column(reason, words.as_ref()));
            }
        }
    }
    sqlx::query(
        "INSERT INTO reconciliation_exceptions
         SELECT * FROM jsonb_populate_recordset(NULL::reconciliation_exceptions, $1)
         ON CONFLICT (exception_id) DO UPDATE
         SET run_id = excluded.run_id, difference = excluded.difference, ours = excluded.ours, theirs = excluded.theirs,
             line = excluded.line, state = excluded.state, explained_by = excluded.explained_by,
             resolved_by = excluded.resolved_by, outcome = excluded.outcome, reason = excluded.reason,
             found_at = excluded.found_at, changed_at = excluded.changed_at, position = excluded.position",
    )
    .bind(Json(rows.into_values().collect::<Vec<_>>()))
    .execute(transaction)
    .await?;
    Ok(())
}

fn found_row(id: ExceptionId, recorded: &RecordedEvent, found: &Found) -> Result<ExceptionRow, ApplyError> {
    Ok(ExceptionRow {
        exception_id: id.0,
        user_id: found.user.map(|user| user.0),
        shard: shard(recorded)?,
        kind: found.kind.as_str().to_owned(),
        provider: found.provider.to_string(),
        subject: found.subject,
        run_id: found.run.0,
        difference: found.difference.as_str().to_owned(),
        ours: found.ours.clone(),
        theirs: found.theirs.clone(),
        line: found.line,
        state: State::Open.as_str().to_owned(),
        explained_by: None,
        resolved_by: None,
        outcome: None,
        reason: None,
        found_at: recorded.occurred_at,
        changed_at: recorded.occurred_at,
        position: recorded.at.position.0,
    })
}
