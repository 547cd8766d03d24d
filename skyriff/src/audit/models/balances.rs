//! What users have.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use chrono::{DateTime, Utc};
use skyriff_domain::{Bucket, Purse, State, StreamId, UserId, points_account::PointsAccount};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{super::fold::Shard, number};

#[derive(sqlx::FromRow)]
struct Row {
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

pub(super) async fn compare(connection: &mut PgConnection, shard: &mut Shard) -> Result<()> {
    let stored: Vec<Row> = sqlx::query_as(
        "SELECT b.user_id, available_promo, available_paid, available_income, held_promo, held_paid, held_income,
                ARRAY(SELECT expires_at FROM promo_lots l WHERE l.user_id = b.user_id ORDER BY 1) AS lots_expire_at,
                ARRAY(SELECT points FROM promo_lots l WHERE l.user_id = b.user_id ORDER BY expires_at) AS lots_points
         FROM balances b WHERE b.shard = $1",
    )
    .bind(number(shard.id)?)
    .fetch_all(connection)
    .await?;
    let mut stored: HashMap<_, _> = stored.into_iter().map(|row| (UserId(row.user_id), row)).collect();
    for (stream, folded) in &shard.streams {
        let (StreamId::PointsAccount(user), State::PointsAccount(account)) = (stream, &folded.state) else { continue };
        let Some(row) = stored.remove(user) else {
            shard.findings.of(shard.id, format!("user {user} has events and no balance"));
            continue;
        };
        let differ = differ(&row, account);
        if !differ.is_empty() {
            let what = format!("the balance of user {user} is not the fold of its events: {}", differ.join(", "));
            shard.findings.of(shard.id, what);
        }
    }
    for user in stored.keys() {
        shard.findings.of(shard.id, format!("user {user} has a balance and no events"));
    }
    Ok(())
}

/// Each column that differs, with what it should be.
fn differ(row: &Row, account: &PointsAccount) -> Vec<String> {
    let buckets = |purse: &Purse| Bucket::ALL.map(|bucket| purse.of(bucket).get());
    let stored = [
        ("available", [row.available_promo, row.available_paid, row.available_income], buckets(account.available())),
        ("held", [row.held_promo, row.held_paid, row.held_income], buckets(&account.held())),
    ];
    let mut differ = Vec::new();
    for (standing, stored, folded) in stored {
        for ((bucket, stored), folded) in Bucket::ALL.iter().zip(stored).zip(folded) {
            if stored != folded {
                differ.push(format!("{standing}_{} is {stored} instead of {folded}", bucket.as_str()));
            }
        }
    }
    let lots: BTreeMap<_, _> = row.lots_expire_at.iter().copied().zip(row.lots_points.iter().copied()).collect();
    let folded: BTreeMap<_, _> = account.available().promo.iter().map(|(at, lot)| (*at, lot.get())).collect();
    if lots != folded {
        differ.push("its promo_lots are others".to_owned());
    }
    differ
}
