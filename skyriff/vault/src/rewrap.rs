//! The master key is changed: persons' keys are opened with the old one and wrapped by the new one. The keys themselves
//! stay, so whatever is sealed opens as before, while everything goes on.
//!
//! Afterwards the old master key can be destroyed, and with it goes what old versions of rows, write-ahead logs and
//! backups have of keys that were destroyed. Only when no key is wrapped by it any more: whoever's key is loses all that
//! is sealed. So the keys are counted at the end, whoever has made some meanwhile.

use skyriff_domain::UserId;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use crate::{Error, MasterKeys, master_keys::MasterKey, person_key::PersonKey};

/// Keys of persons that are read at once.
const PAGE: i64 = 1_000;
/// How often all keys are gone through, when others were made by an old master key meanwhile.
const PASSES_MAX: u32 = 5;

/// What became of the keys in a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// Wrapped by the current master key now.
    pub rewrapped: u64,
    /// They were before.
    pub current: u64,
    /// There is a tombstone in their place.
    pub destroyed: u64,
    /// Wrapped by another master key all the same: some process goes on wrapping by it.
    pub left: u64,
}

#[derive(FromRow)]
struct Row {
    user_id: Uuid,
    master_key_id: String,
    wrapped_key: Vec<u8>,
}

/// Wrap every key in a database by the first of these master keys, as the owner of the table. Interrupted, it goes on where
/// it was; keys that are made or destroyed meanwhile are not in its way. [`Rewrapped::left`] has to be zero before any of
/// the other master keys may go.
///
/// # Errors
/// [`Error`]: when a key is wrapped by a master key that is not among these, or has been changed. What was wrapped anew
/// until then stays so.
pub async fn rewrap(owner: &mut PgConnection, keys: &MasterKeys) -> Result<Rewrapped, Error> {
    let current = keys.current().ok_or(Error::NoKey)?;
    let mut rewrapped = 0;
    for _ in 0..PASSES_MAX {
        rewrapped += pass(owner, keys, current).await?;
        let done = count(owner, current, rewrapped).await?;
        if done.left == 0 {
            return Ok(done);
        }
    }
    count(owner, current, rewrapped).await
}

/// Go through all keys once; how many were wrapped anew.
async fn pass(owner: &mut PgConnection, keys: &MasterKeys, current: &MasterKey) -> Result<u64, Error> {
    let mut rewrapped = 0;
    let mut after = None::<Uuid>;
    loop {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT user_id, master_key_id, wrapped_key FROM person_keys
             WHERE ($1::uuid IS NULL OR user_id > $1) AND wrapped_key IS NOT NULL AND master_key_id <> $2 ORDER BY user_id LIMIT $3",
        )
        .bind(after)
        .bind(&current.id)
        .bind(PAGE)
        .fetch_all(&mut *owner)
        .await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.user_id);
        let (mut persons, mut old, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for Row { user_id, master_key_id, wrapped_key } in rows {
            let master = keys.get(&master_key_id).ok_or(Error::UnknownMasterKey(master_key_id))?;
            new.push(PersonKey::unwrap(UserId(user_id), &wrapped_key, master)?.wrap(current)?);
            persons.push(user_id);
            old.push(wrapped_key);
        }
        // One that was destroyed since it was read is another row by now.
        let done = sqlx::query(
            "UPDATE person_keys k SET master_key_id = $1, wrapped_key = n.new
             FROM unnest($2::uuid[], $3::bytea[], $4::bytea[]) AS n (user_id, old, new)
             WHERE k.user_id = n.user_id AND k.wrapped_key = n.old",
        )
        .bind(&current.id)
        .bind(persons)
        .bind(old)
        .bind(new)
        .execute(&mut *owner)
        .await?;
        rewrapped += done.rows_affected();
    }
    Ok(rewrapped)
}

/// What there is now.
async fn count(owner: &mut PgConnection, current: &MasterKey, rewrapped: u64) -> Result<Rewrapped, Error> {
    let (all, destroyed, left): (i64, i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE master_key_id = $1), count(*) FILTER (WHERE wrapped_key IS NULL),
                count(*) FILTER (WHERE master_key_id <> $1) FROM person_keys",
    )
    .bind(&current.id)
    .fetch_one(owner)
    .await?;
    let number = |count: i64| u64::try_from(count).unwrap_or_default();
    let current = number(all).saturating_sub(rewrapped);
    Ok(Rewrapped { rewrapped, current, destroyed: number(destroyed), left: number(left) })
}
