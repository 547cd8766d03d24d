//! `skyriff replay`: events into files, for analysts.
//!
//! An export reads each shard up to a position that is fixed when it begins, so what is recorded meanwhile is not part of
//! it, and another export up to the same positions has the same bytes. The positions are in the manifest beside the
//! output, with counts and hashes. Every segment of a shard is a checkpoint: whatever ends an export, the same command
//! goes on from there.

mod manifest;
mod output;
mod parquet;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use clap::Args;
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use skyriff_domain::{Position, ShardId, UserId};
use skyriff_postgres::databases::{self, QUERY};
use skyriff_read_side::events::{
    Exported, Filter, Masks,
    cursor::Positions,
    exported,
    filter::{AggregateType, EventType, Range},
    log::{IN_ORDER, Order, heads},
};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgRow};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    manifest::{Manifest, Place},
    output::{Format, Output},
};
use crate::{
    config::{self, DatabaseArguments, Databases},
    serve,
};

/// Rows that are handed over at once, and how many such pieces may wait to be written.
const PIECE_ROWS: usize = 1_024;
const PIECES: usize = 8;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
    /// Where to: events.ndjson, events.csv, or events.parquet, which is a folder with a folder for each day and type. What
    /// was exported is described in a manifest beside it. Run the same command again to go on after an interruption.
    #[arg(long)]
    out: PathBuf,
    /// Only what happened at this time or later, as in 2026-01-31T00:00:00Z.
    #[arg(long)]
    from: Option<DateTime<Utc>>,
    /// Only what happened before this time.
    #[arg(long)]
    to: Option<DateTime<Utc>>,
    /// Only these types, as in points_account.checked_in.
    #[arg(long = "type", value_delimiter = ',')]
    types: Vec<EventType>,
    /// Only events of these kinds of aggregate, as in points_account.
    #[arg(long = "aggregate", value_delimiter = ',')]
    aggregates: Vec<AggregateType>,
    /// Only events of this user's streams.
    #[arg(long)]
    user: Option<uuid::Uuid>,
    /// Only these shards, as in 0-3,7.
    #[arg(long)]
    only_shards: Option<String>,
    /// Up to the positions of this manifest, to be compared with that export; from the first event to now, unless given.
    #[arg(long)]
    upto: Option<PathBuf>,
    /// After so many positions of a shard an interrupted export can go on.
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(i64).range(100..=10_000_000))]
    segment: i64,
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let stop = serve::on_signal()?;
    let format = Format::of(&arguments.out)?;
    let earlier = arguments.upto.as_deref().map(Manifest::read).transpose()?;
    let (out, databases) = (arguments.out.clone(), arguments.databases.clone().databases()?);
    let place = Manifest::beside(&out);
    let fresh = plan(&arguments, format, &databases, earlier.as_ref()).await?;
    let manifest = if place.exists() { go_on(&place, fresh, earlier.is_some())? } else { fresh };
    let output = Output::open(&out, format, manifest.bytes)?;
    manifest.write(&place)?;

    let bar = ProgressBar::new(manifest.positions())
        .with_style(ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} positions, {per_sec}, {eta} left")?);
    bar.set_position(manifest.positions_read());
    let (pieces, received) = mpsc::channel(PIECES);
    let mut writer = Writer { output, manifest: manifest.clone(), place: place.clone(), bar: bar.clone() };
    let writing = tokio::task::spawn_blocking(move || writer.write(received).map(|()| writer.manifest));
    let read = read(&databases, &manifest, &pieces, &stop).await;
    drop(pieces);
    // A writer that fails stops the reader, so its reason is the one to tell.
    let mut manifest = writing.await??;
    let complete = read?;
    bar.finish_and_clear();
    if !complete {
        eprintln!("interrupted; run the same command to go on");
        return Ok(ExitCode::from(130));
    }
    manifest.complete = true;
    manifest.write(&place)?;
    println!("{} events in {}; positions, counts and hashes in {}", manifest.events(), out.display(), place.display());
    if let Some(earlier) = earlier {
        let differ = manifest.differ(&earlier)?;
        ensure!(differ.is_empty(), "not the same events as then, in shards {}", differ.join(", "));
        println!("the same events as then, in every shard");
    }
    Ok(ExitCode::SUCCESS)
}

/// The manifest of an export that has not begun.
async fn plan(
    arguments: &Arguments,
    format: Format,
    databases: &Databases,
    earlier: Option<&Manifest>,
) -> Result<Manifest> {
    let filter = Filter {
        types: arguments.types.iter().cloned().collect(),
        aggregates: arguments.aggregates.iter().cloned().collect(),
        user: arguments.user.map(UserId),
        from: arguments.from,
        to: arguments.to,
    };
    let asked = match &arguments.only_shards {
        Some(text) => config::shards(text)?,
        None => databases.shard_count.shards().collect(),
    };
    let of_user = filter.user.map(|user| skyriff_domain::shard_of(user, databases.shard_count));
    let asked: Vec<_> = asked.into_iter().filter(|shard| of_user.is_none_or(|of_user| of_user == *shard)).collect();
    if let Some(unknown) = asked.iter().find(|shard| shard.0 >= databases.shard_count.get()) {
        bail!("there is no shard {unknown}; there are {}", databases.shard_count.get());
    }
    ensure!(!asked.is_empty(), "no shard is left to read");
    let upto = match earlier {
        Some(earlier) => earlier.upto(),
        None => newest(databases).await?,
    };
    let upto: Positions = upto.into_iter().filter(|(shard, _)| asked.contains(shard)).collect();
    let segment = earlier.map_or(arguments.segment, |earlier| earlier.segment);
    Ok(Manifest::new(format, filter, databases.shard_count, segment, &upto))
}

/// What is there of an earlier run of the same command.
fn go_on(place: &Path, asked: Manifest, fixed: bool) -> Result<Manifest> {
    let found = Manifest::read(place)?;
    let name = place.display();
    ensure!(!found.complete, "{name} says that this export is complete; delete it and the output to export anew");
    ensure!(found.asks_the_same(&asked, fixed), "{name} is of an export with other options; delete it, or use them");
    eprintln!("going on with an interrupted export, after {} positions", found.positions_read());
    Ok(found)
}

async fn newest(databases: &Databases) -> Result<Positions> {
    let mut newest = Positions::new();
    for place in &databases.event_store {
        let mut connection = connect(place, &Positions::new()).await?;
        databases::check_shard_count(&mut connection, databases.shard_count).await?;
        let of_place = heads(&mut connection).await?;
        newest.extend(of_place.into_iter().filter(|(shard, _)| place.shards.contains(shard)));
        connection.close().await?;
    }
    Ok(newest)
}

/// A replica that has come as far as these positions, or else the primary.
async fn connect(place: &config::Place, upto: &Positions) -> Result<PgConnection> {
    let mut failed = None;
    for address in place.replicas.iter().chain([&place.primary]) {
        let options = address.as_role(QUERY).application_name("skyriff replay").options(IN_ORDER);
        let connected = async {
            let mut connection = tokio::time::timeout(Duration::from_secs(10), options.connect())
                .await
                .context("it takes too long")??;
            let heads = heads(&mut connection).await?;
            let of_place = upto.iter().filter(|(shard, _)| place.shards.contains(shard));
            for (shard, upto) in of_place {
                let head = heads.get(shard).copied().unwrap_or_default();
                ensure!(head >= *upto, "the log of shard {shard} ends at {head}, before {upto}");
            }
            Ok(connection)
        };
        match connected.await {
            Ok(connection) => return Ok(connection),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("no address"))).context("cannot read the event store")
}

/// What the reader hands to the writer.
enum Piece {
    Rows(Vec<PgRow>),
    /// The shard was read up to here.
    Segment(ShardId, Position),
}

/// Read shard after shard, segment after segment. Whether it came to the end.
async fn read(
    databases: &Databases,
    manifest: &Manifest,
    pieces: &mpsc::Sender<Piece>,
    stop: &CancellationToken,
) -> Result<bool> {
    let upto = manifest.upto();
    for (shard, Place { read, upto: end, .. }) in &manifest.shards {
        let place = databases.event_store.iter().find(|place| place.shards.contains(shard));
        let place = place.with_context(|| format!("shard {shard} has no database"))?;
        if read >= end {
            continue;
        }
        let mut connection = connect(place, &upto).await?;
        let mut after = *read;
        while after < *end {
            let to = Position(after.0.saturating_add(manifest.segment)).min(*end);
            let range = Range { shard: i16::try_from(shard.0)?, after: after.0, upto: to.0 };
            let sent = tokio::select! {
                sent = read_segment(&mut connection, &manifest.filter, range, pieces) => sent?,
                () = stop.cancelled() => return Ok(false),
            };
            // The writer has failed, and says why.
            if !sent || pieces.send(Piece::Segment(*shard, to)).await.is_err() {
                return Ok(false);
            }
            after = to;
        }
        connection.close().await?;
    }
    Ok(true)
}

/// Whether the writer still takes it.
async fn read_segment(
    connection: &mut PgConnection,
    filter: &Filter,
    range: Range,
    pieces: &mpsc::Sender<Piece>,
) -> Result<bool> {
    let mut query = filter.select(&[range]);
    let query = query.build();
    let mut rows = query.fetch(connection);
    let mut piece = Vec::with_capacity(PIECE_ROWS);
    while let Some(row) = rows.try_next().await.context("the event log cannot be read")? {
        piece.push(row);
        if piece.len() == PIECE_ROWS {
            let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE_ROWS));
            if pieces.send(Piece::Rows(full)).await.is_err() {
                return Ok(false);
            }
        }
    }
    Ok(pieces.send(Piece::Rows(piece)).await.is_ok())
}

/// Writes events, and after each segment how far they are written.
struct Writer {
    output: Output,
    manifest: Manifest,
    place: PathBuf,
    bar: ProgressBar,
}

impl Writer {
    fn write(&mut self, mut pieces: mpsc::Receiver<Piece>) -> Result<()> {
        let mut masks = Masks::default();
        let mut segment = None;
        let mut line = Vec::new();
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Rows(rows) => {
                    let Some(first) = rows.first() else { continue };
                    let shard = exported::at(first)?.shard;
                    let (order, hash) = match &mut segment {
                        Some(segment) => segment,
                        None => segment.insert((self.order(shard)?, self.manifest.hash(shard)?)),
                    };
                    for row in &rows {
                        let event = Exported::of(row, &mut masks)?;
                        order.check(event.at)?;
                        line.clear();
                        event.write_json_line(&mut line);
                        hash.add(&line);
                        self.output.write(&event, &line)?;
                    }
                    self.bar.inc(u64::try_from(rows.len())?);
                }
                Piece::Segment(shard, upto) => {
                    let (order, hash) = match segment.take() {
                        Some(segment) => segment,
                        None => (self.order(shard)?, self.manifest.hash(shard)?),
                    };
                    order.end(upto)?;
                    self.manifest.bytes = self.output.checkpoint(shard)?;
                    self.manifest.advance(shard, upto, hash)?;
                    self.manifest.write(&self.place)?;
                    self.bar.set_position(self.manifest.positions_read());
                }
            }
        }
        Ok(())
    }

    fn order(&self, shard: ShardId) -> Result<Order> {
        Ok(Order::new(&self.manifest.filter, shard, self.manifest.place(shard)?.read))
    }
}
