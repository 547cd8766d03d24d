//! A statement on its way: pages of entries, written no faster than they are taken. At most two pages are in memory.

use std::{collections::BTreeMap, io, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use skyriff_edge::Problem;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use super::{Format, Statement, csv, html, json};
use crate::{
    ledger::{
        Scope,
        balance::Of,
        entries::{Axis, BookEntry, Listing, Order, merge},
    },
    replicas::{AtLeast, Replicas},
};

/// Entries that are read at once.
const PAGE: i64 = 1_000;
/// A client that takes nothing for so long is cut off.
const STALL_MAX: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error("a page cannot be read: {0}")]
    Read(Problem),
    #[error(
        "the entries come to {found:?} and the closing balances are {closing:?}: the ledger's read model is damaged"
    )]
    Unbalanced { found: BTreeMap<String, i64>, closing: BTreeMap<String, i64> },
    #[error("the client is gone, or takes nothing")]
    Gone,
}

/// Write it, on a task of its own.
pub(super) fn start(
    replicas: Replicas,
    scope: Scope,
    of: Of,
    statement: Statement,
    format: Format,
    place: OwnedSemaphorePermit,
) -> Body {
    let (pieces, mut received) = mpsc::channel(1);
    tokio::spawn(async move {
        match write(&replicas, scope, of, &statement, format, &pieces).await {
            Ok(()) => {}
            Err(BrokenOff::Gone) => tracing::debug!("a statement was not taken to its end"),
            Err(error) => {
                tracing::error!(%error, "a statement breaks off");
                // An error cuts the connection.
                pieces.send(Err(io::Error::other("the statement breaks off"))).await.ok();
            }
        }
        drop(place);
    });
    Body::from_stream(futures::stream::poll_fn(move |context| received.poll_recv(context)))
}

async fn write(
    replicas: &Replicas,
    scope: Scope,
    of: Of,
    statement: &Statement,
    format: Format,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), BrokenOff> {
    let send = async |text: String| {
        let sent = timeout(STALL_MAX, pieces.send(Ok(Bytes::from(text)))).await;
        sent.map_err(|_| BrokenOff::Gone)?.map_err(|_| BrokenOff::Gone)
    };
    let mut text = match format {
        Format::Json => json::head(statement),
        Format::Csv => csv::head(statement),
        Format::Html => html::head(statement),
    };
    let mut balances = statement.opening.clone();
    let at_least = AtLeast::these(&statement.positions);
    let mut listing = Listing {
        of,
        axis: Axis::Occurred,
        order: Order::Oldest,
        from: statement.from,
        to: statement.to,
        after: None,
        known_at: statement.known_at,
        upto: Some(statement.positions.clone()),
        limit: PAGE,
    };
    let mut first = true;
    loop {
        let (_, parts) = scope.read(replicas, &at_least, &listing).await.map_err(BrokenOff::Read)?;
        let mut rows = merge(parts, Axis::Occurred, Order::Oldest);
        rows.truncate(usize::try_from(PAGE).unwrap_or(usize::MAX));
        let Some(last) = rows.last() else { break };
        listing.after = Some(last.place(Axis::Occurred));
        for row in rows {
            let entry = BookEntry::from(row);
            let balance = balances.entry(entry.account.clone()).or_default();
            *balance += entry.amount;
            match format {
                Format::Json => json::entry(&mut text, &entry, *balance, first),
                Format::Csv => csv::entry(&mut text, &entry, *balance),
                Format::Html => html::entry(&mut text, &entry, *balance),
            }
            first = false;
        }
        send(std::mem::take(&mut text)).await?;
    }
    if balances != statement.closing {
        return Err(BrokenOff::Unbalanced { found: balances, closing: statement.closing.clone() });
    }
    match format {
        Format::Json => json::tail(&mut text, statement),
        Format::Csv => csv::tail(&mut text, statement),
        Format::Html => html::tail(&mut text, statement),
    }
    send(text).await
}
