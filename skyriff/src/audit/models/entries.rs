//! The stored ledger entries, summed for each account: those of a user are what the user has. Only where they are not, entries
//! are held against events one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Result;
use futures::TryStreamExt;
use skyriff_domain::{
    Bucket, Event, LogPosition, Position, State, StreamId, UserId,
    ledger::{Account, Standing, postings},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{super::fold::Shard, number};

/// Users whose entries are looked through one by one, of each shard.
const LOOKED_THROUGH_MAX: usize = 10;

pub(super) async fn compare(connection: &mut PgConnection, log: &mut PgConnection, shard: &mut Shard) -> Result<()> {
    let differing = compare_sums(&mut *connection, shard).await?;
    for user in differing.into_iter().take(LOOKED_THROUGH_MAX) {
        compare_each(connection, log, user, shard).await?;
    }
    Ok(())
}

/// The users whose sums are others.
async fn compare_sums(connection: &mut PgConnection, shard: &mut Shard) -> Result<BTreeSet<UserId>> {
    let mut differing = BTreeSet::new();
    // What the fold has and no sum has shown yet.
    let mut users: HashMap<(UserId, String), i64> = HashMap::new();
    for (stream, folded) in &shard.streams {
        let (StreamId::PointsAccount(user), State::PointsAccount(state)) = (stream, &folded.state) else { continue };
        for (standing, purse) in [(Standing::Available, state.available()), (Standing::Held, &state.held())] {
            for bucket in Bucket::ALL {
                let points = purse.of(bucket).get();
                if points != 0 {
                    users.insert((*user, Account::User { user: *user, standing, bucket }.to_string()), points);
                }
            }
        }
    }
    let of_platform = shard.ledger.iter().filter(|(account, points)| account.user().is_none() && **points != 0);
    let mut platform: BTreeMap<String, i64> =
        of_platform.map(|(account, points)| (account.to_string(), *points)).collect();
    let mut sums = sqlx::query_as::<_, (Option<Uuid>, String, i64)>(
        "SELECT user_id, account, sum(amount)::bigint FROM ledger_entries WHERE shard = $1 GROUP BY user_id, account",
    )
    .bind(number(shard.id)?)
    .fetch(connection);
    while let Some((user, account, stored)) = sums.try_next().await? {
        let (whose, folded) = match user {
            Some(user) => (format!("of user {user} "), users.remove(&(UserId(user), account.clone()))),
            None => (String::new(), platform.remove(&account)),
        };
        let folded = folded.unwrap_or_default();
        if stored != folded {
            differing.extend(user.map(UserId));
            let what = format!("the ledger entries {whose}on {account} sum to {stored} instead of {folded}");
            shard.findings.of(shard.id, what);
        }
    }
    drop(sums);
    differing.extend(users.keys().map(|(user, _)| *user));
    let users = users.into_iter().map(|((user, account), points)| (format!("of user {user} on {account}"), points));
    for (account, points) in
        users.chain(platform.into_iter().map(|(account, points)| (format!("on {account}"), points)))
    {
        shard.findings.of(shard.id, format!("there are no ledger entries {account}, which sum to {points}"));
    }
    Ok(differing)
}

/// A user's entries beside the postings of the user's events, to say where they differ.
async fn compare_each(
    connection: &mut PgConnection,
    log: &mut PgConnection,
    user: UserId,
    shard: &mut Shard,
) -> Result<()> {
    let stored: Vec<(i64, String, i64)> = sqlx::query_as(
        "SELECT position, account, amount FROM ledger_entries WHERE shard = $1 AND user_id = $2 ORDER BY position, line",
    )
    .bind(number(shard.id)?)
    .bind(user.0)
    .fetch_all(connection)
    .await?;
    let mut stored_at: BTreeMap<Position, Vec<(String, i64)>> = BTreeMap::new();
    for (position, account, amount) in stored {
        stored_at.entry(Position(position)).or_default().push((account, amount));
    }
    let stream = StreamId::PointsAccount(user);
    let events: Vec<(i64, String, String, String)> = sqlx::query_as(
        "SELECT position, event_type, event_version, payload::text FROM events
         WHERE aggregate_type = $1 AND aggregate_id = $2 AND position <= $3 ORDER BY sequence",
    )
    .bind(stream.aggregate_type())
    .bind(stream.aggregate_id())
    .bind(shard.last.0)
    .fetch_all(log)
    .await?;
    for (position, event_type, version, payload) in events {
        let position = Position(position);
        // What cannot be read was told when it was read.
        let Ok(event) = Event::decode(&stream, &event_type, &version, &payload) else { continue };
        let of_user = postings(&stream, &event).into_iter().filter(|posting| posting.account.user() == Some(user));
        let expected: Vec<_> = of_user.map(|posting| (posting.account.to_string(), posting.amount)).collect();
        let found = stored_at.remove(&position).unwrap_or_default();
        if found != expected {
            let what = format!("its ledger entries of user {user} are {found:?} instead of {expected:?}");
            shard.findings.at(LogPosition { shard: shard.id, position }, what);
        }
    }
    for (position, found) in stored_at {
        let what = format!("there are ledger entries {found:?} of user {user} here, and no event says so");
        shard.findings.at(LogPosition { shard: shard.id, position }, what);
    }
    Ok(())
}
