//! What the read models and the replica say, against the log.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, ensure};
use skyriff_domain::{LogPosition, Position, ShardId};
use skyriff_postgres::Server;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    EVENTS, READS,
    accounts::Account,
    history::{Entry, Outcome},
};

const CATCH_UP_MAX: Duration = Duration::from_secs(60);

type Row = (Uuid, i64, i64, i64, i64, i64, i64);

/// What is available and what is held, by bucket, is what the log comes to. The read models have caught up by now.
pub async fn check_balances(server: &Server, accounts: &HashMap<Uuid, Account>) -> Result<()> {
    let mut connection = server.superuser(READS).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT user_id, available_promo, available_paid, available_income, held_promo, held_paid, held_income
         FROM balances",
    )
    .fetch_all(&mut connection)
    .await?;
    ensure!(rows.len() == accounts.len(), "{} balances of {} accounts", rows.len(), accounts.len());
    for (user, a, b, c, d, e, f) in rows {
        let expected = accounts.get(&user).map(|account| (account.available, account.held));
        ensure!(
            expected == Some(([a, b, c], [d, e, f])),
            "{user}: available {:?}, held {:?}, and the log comes to {expected:?}",
            [a, b, c],
            [d, e, f]
        );
    }
    Ok(())
}

/// Wait until the standby has replayed all that the primary has written.
pub async fn wait_for_standby(primary: &Server, standby: &Server) -> Result<()> {
    let mut connection = primary.superuser("postgres").await?;
    let written: String = sqlx::query_scalar("SELECT pg_current_wal_lsn()::text").fetch_one(&mut connection).await?;
    let end = Instant::now() + CATCH_UP_MAX;
    loop {
        let replayed = async {
            let mut connection = standby.superuser("postgres").await?;
            sqlx::query_scalar::<_, bool>("SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn")
                .bind(&written)
                .fetch_one(&mut connection)
                .await
        };
        let replayed = replayed.await;
        if matches!(replayed, Ok(true)) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the standby is not where the primary is after {CATCH_UP_MAX:?}: {replayed:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Every acknowledged position is on the standby, as the event of the command that was told so.
pub async fn check_standby(standby: &Server, history: &[Entry]) -> Result<()> {
    let mut connection = standby.superuser(EVENTS).await?;
    let rows: Vec<(i16, i64, Uuid)> =
        sqlx::query_as("SELECT shard, position, (metadata ->> 'command_id')::uuid FROM events")
            .fetch_all(&mut connection)
            .await?;
    let mut commands = HashMap::new();
    for (shard, position, command) in rows {
        commands.insert(LogPosition { shard: ShardId(u16::try_from(shard)?), position: Position(position) }, command);
    }
    for entry in history {
        let Outcome::Ok(positions) = &entry.outcome else { continue };
        for at in positions {
            let there = commands.get(at);
            ensure!(there == Some(&entry.command_id.0), "{at} on the standby is of {there:?} and not of {entry:?}");
        }
    }
    Ok(())
}
