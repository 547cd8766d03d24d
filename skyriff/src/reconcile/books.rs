//! What the ledger has of payments, as the read models say, page by page.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map::Entry},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use skyriff_domain::{
    ExceptionId, Label, Reference, UserId,
    reconciliation::{Kind, exception::Figures},
};
use skyriff_postgres::databases::QUERY;
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres, Transaction};
use tokio::time::Instant;
use uuid::Uuid;

use super::compare::{Days, Ours};
use crate::config::{Databases, Place};

/// What is compared has to be in these.
const PROJECTIONS: [&str; 2] = ["reconciliations", "withdrawals"];
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The read models of every database, asked on the primaries: a replica may be behind.
pub struct Books {
    places: Vec<(Vec<i16>, PgConnection)>,
}

/// An exception that waits for somebody.
#[derive(Clone, Copy, Debug)]
pub struct OpenException {
    pub exception: ExceptionId,
    pub home: UserId,
    /// The withdrawal or the order.
    pub subject: Uuid,
}

/// As the tables have a payment.
type PaymentRow = (Uuid, Uuid, i64, Option<String>, String, Option<String>, Option<String>, DateTime<Utc>);

/// The last payment of a page: when it was paid, and which it is.
pub type LastPaid = (DateTime<Utc>, Uuid);

impl Books {
    pub async fn connect(databases: &Databases) -> Result<Self> {
        let mut places = Vec::new();
        for place in &databases.read_models {
            let options = place.primary.as_role(QUERY).application_name("skyriff reconcile");
            let connection = options.connect().await.context("cannot reach the read models")?;
            places.push((numbers(place)?, connection));
        }
        Ok(Self { places })
    }

    /// Wait until they have everything that the log has now.
    pub async fn catch_up(&mut self, databases: &Databases, patience: Duration) -> Result<()> {
        let mut heads = BTreeMap::new();
        for place in &databases.event_store {
            let mut log = place.primary.as_role(QUERY).connect().await.context("cannot reach the event store")?;
            let shards = numbers(place)?;
            let rows: Vec<(i16, i64)> = sqlx::query_as("SELECT shard, position FROM heads WHERE shard = ANY ($1)")
                .bind(&shards)
                .fetch_all(&mut log)
                .await?;
            heads.extend(rows);
            log.close().await?;
        }
        let end = Instant::now() + patience;
        for (shards, connection) in &mut self.places {
            let wanted = heads.iter().filter(|(shard, head)| shards.contains(shard) && **head > 0);
            let (shards, heads): (Vec<i16>, Vec<i64>) = wanted.unzip();
            loop {
                let behind: Option<i16> = sqlx::query_scalar(
                    "SELECT h.shard FROM unnest($1::smallint[], $2::bigint[]) AS h (shard, head)
                     CROSS JOIN unnest($3::text[]) AS p (projection)
                     LEFT JOIN checkpoints c USING (shard, projection)
                     GROUP BY h.shard, h.head, p.projection HAVING coalesce(max(c.position), 0) < h.head LIMIT 1",
                )
                .bind(&shards)
                .bind(&heads)
                .bind(PROJECTIONS)
                .fetch_optional(&mut *connection)
                .await?;
                let Some(shard) = behind else { break };
                if Instant::now() > end {
                    bail!(
                        "the read models of shard {shard} are behind the log after {patience:?}; is a projector running?"
                    );
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// What there is of these payments.
    pub async fn find(&mut self, kind: Kind, subjects: &[Uuid]) -> Result<BTreeMap<Uuid, Ours>> {
        let select = match kind {
            Kind::Payouts => {
                "SELECT withdrawal_id, user_id, minor, currency, status, provider, reference, updated_at
                 FROM withdrawals WHERE withdrawal_id = ANY ($1) AND shard = ANY ($2)"
            }
            Kind::Recharges => {
                "SELECT order_id, user_id, points, NULL, 'paid', NULL, NULL, credited_at
                 FROM recharges WHERE order_id = ANY ($1) AND shard = ANY ($2)"
            }
        };
        let mut found = BTreeMap::new();
        for (shards, connection) in &mut self.places {
            let mut moment = moment(connection).await?;
            let rows: Vec<PaymentRow> =
                sqlx::query_as(select).bind(subjects).bind(&*shards).fetch_all(&mut *moment).await?;
            moment.commit().await?;
            for row in rows {
                let (subject, ours, _) = ours(row)?;
                match found.entry(subject) {
                    Entry::Vacant(none) => drop(none.insert(ours)),
                    Entry::Occupied(mut other) => add(other.get_mut(), ours),
                }
            }
        }
        Ok(found)
    }

    /// The providers with which payouts were ever started, as the events name them.
    pub async fn payout_providers(&mut self) -> Result<BTreeSet<String>> {
        let mut known = BTreeSet::new();
        for (shards, connection) in &mut self.places {
            let mut moment = moment(connection).await?;
            let of_place: Vec<String> = sqlx::query_scalar(
                "SELECT DISTINCT provider FROM withdrawals WHERE provider IS NOT NULL AND shard = ANY ($1)",
            )
            .bind(&*shards)
            .fetch_all(&mut *moment)
            .await?;
            moment.commit().await?;
            known.extend(of_place);
        }
        Ok(known)
    }

    /// What was paid on these days, in pages of each database; `None` when that is all.
    pub async fn paid(
        &mut self,
        database: usize,
        which: (Kind, &Label),
        days: (NaiveDate, NaiveDate),
        after: Option<LastPaid>,
        limit: i64,
    ) -> Result<Option<Vec<(Uuid, Ours, LastPaid)>>> {
        let Some((shards, connection)) = self.places.get_mut(database) else { return Ok(None) };
        let (kind, provider) = which;
        let select = match kind {
            Kind::Payouts => {
                "SELECT withdrawal_id, user_id, minor, currency, status, provider, reference, updated_at
                 FROM withdrawals
                 WHERE status = 'paid' AND updated_at >= $1 AND updated_at < $2 AND (updated_at, withdrawal_id) > ($3, $4)
                   AND shard = ANY ($5) AND provider = $7 ORDER BY updated_at, withdrawal_id LIMIT $6"
            }
            Kind::Recharges => {
                "SELECT order_id, user_id, points, NULL, 'paid', NULL, NULL, credited_at FROM recharges
                 WHERE credited_at >= $1 AND credited_at < $2 AND (credited_at, order_id) > ($3, $4)
                   AND shard = ANY ($5) AND $7::text IS NOT NULL ORDER BY credited_at, order_id LIMIT $6"
            }
        };
        let midnight = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
        let (after_at, after_id) = after.unwrap_or((midnight(days.0), Uuid::nil()));
        let mut moment = moment(connection).await?;
        let rows: Vec<PaymentRow> = sqlx::query_as(select)
            .bind(midnight(days.0))
            .bind(midnight(days.1))
            .bind(after_at)
            .bind(after_id)
            .bind(&*shards)
            .bind(limit)
            .bind(provider.as_str())
            .fetch_all(&mut *moment)
            .await?;
        moment.commit().await?;
        let of = |row| {
            let (subject, ours, at) = ours(row)?;
            Ok((subject, ours, (at, subject)))
        };
        rows.into_iter().map(of).collect::<Result<_>>().map(Some)
    }

    /// The exceptions about these payments that are open.
    pub async fn open(&mut self, kind: Kind, provider: &Label, subjects: &[Uuid]) -> Result<Vec<OpenException>> {
        let mut open = Vec::new();
        for (shards, connection) in &mut self.places {
            let mut moment = moment(connection).await?;
            let rows: Vec<(Uuid, Option<Uuid>, Uuid)> = sqlx::query_as(
                "SELECT exception_id, user_id, subject FROM reconciliation_exceptions
                 WHERE subject = ANY ($1) AND kind = $2 AND provider = $3 AND state = 'open' AND shard = ANY ($4)",
            )
            .bind(subjects)
            .bind(kind.as_str())
            .bind(provider.as_str())
            .bind(&*shards)
            .fetch_all(&mut *moment)
            .await?;
            moment.commit().await?;
            open.extend(rows.into_iter().map(|(exception, user, subject)| OpenException {
                exception: ExceptionId(exception),
                home: UserId(user.unwrap_or(exception)),
                subject,
            }));
        }
        Ok(open)
    }

    /// The days of the files of this provider that were compared, but for one run's.
    pub async fn compared(&mut self, kind: Kind, provider: &Label, but: Uuid) -> Result<Vec<Days>> {
        let mut days = Vec::new();
        for (shards, connection) in &mut self.places {
            let mut moment = moment(connection).await?;
            let of_place: Vec<Days> = sqlx::query_as(
                "SELECT DISTINCT from_day, to_day FROM reconciliation_runs
                 WHERE kind = $1 AND provider = $2 AND run_id <> $3 AND finished_at IS NOT NULL AND shard = ANY ($4)",
            )
            .bind(kind.as_str())
            .bind(provider.as_str())
            .bind(but)
            .bind(&*shards)
            .fetch_all(&mut *moment)
            .await?;
            moment.commit().await?;
            days.extend(of_place);
        }
        Ok(days)
    }

    /// Which of these a file did not have that should have: what comes later is their first line. Of those that a run has
    /// explained, only this one's.
    pub async fn awaited(&mut self, provider: &Label, subjects: &[Uuid], run: Uuid) -> Result<HashSet<Uuid>> {
        let mut awaited = HashSet::new();
        for (shards, connection) in &mut self.places {
            let mut moment = moment(connection).await?;
            let of_place: Vec<Uuid> = sqlx::query_scalar(
                "SELECT subject FROM reconciliation_exceptions
                 WHERE subject = ANY ($1) AND kind = 'recharges' AND provider = $2 AND difference = 'missing_in_file'
                   AND coalesce(explained_by, $3) = $3 AND shard = ANY ($4)",
            )
            .bind(subjects)
            .bind(provider.as_str())
            .bind(run)
            .bind(&*shards)
            .fetch_all(&mut *moment)
            .await?;
            moment.commit().await?;
            awaited.extend(of_place);
        }
        Ok(awaited)
    }

    /// How many exceptions a run has explained before it was interrupted.
    pub async fn explained_by(&mut self, run: Uuid) -> Result<u64> {
        let mut all = 0;
        for (shards, connection) in &mut self.places {
            let mut moment = moment(connection).await?;
            let count: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM reconciliation_exceptions WHERE explained_by = $1 AND shard = ANY ($2)",
            )
            .bind(run)
            .bind(&*shards)
            .fetch_one(&mut *moment)
            .await?;
            moment.commit().await?;
            all += u64::try_from(count)?;
        }
        Ok(all)
    }
}

fn numbers(place: &Place) -> Result<Vec<i16>> {
    place.shards.iter().map(|shard| Ok(i16::try_from(shard.0)?)).collect()
}

/// The table that says how fresh things are comes first: it is the door that a switch of versions closes.
async fn moment(connection: &mut PgConnection) -> sqlx::Result<Transaction<'_, Postgres>> {
    connection.begin_with("BEGIN READ ONLY; LOCK TABLE checkpoints IN ACCESS SHARE MODE").await
}

/// One order that was credited to two users, in two databases: all of it is what was credited, of whoever comes first.
fn add(to: &mut Ours, other: Ours) {
    let amount = to.figures.amount.saturating_add(other.figures.amount);
    if other.user.0 < to.user.0 {
        *to = other;
    }
    to.figures.amount = amount;
}

fn ours(row: PaymentRow) -> Result<(Uuid, Ours, DateTime<Utc>)> {
    let (subject, user, amount, currency, status, provider, reference, at) = row;
    let label = |text: Option<String>| text.map(|text| text.parse::<Label>()).transpose();
    let is_paid = status == "paid";
    let reference = reference.map(Reference::try_from).transpose()?;
    let figures = Figures { amount, currency: label(currency)?, status: status.parse()?, reference };
    Ok((subject, Ours { user: UserId(user), provider: label(provider)?, is_paid, at, figures }, at))
}
