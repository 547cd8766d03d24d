//! `skyriff replay`: events into files, for analysts.
//!
//! An export reads each shard up to a position that is fixed when it begins, so what is recorded meanwhile is not part of
//! it, and another export up to the same positions has the same bytes. The positions are in the manifest beside the
//! output, with counts and hashes.
//!
//! ```text
//! round    the next segment of every shard; at its end the output is flushed and the manifest says how far it is, so
//!          whatever ends an export, the same command goes on from there
//! window   a part of a round that is held in memory: the next positions of every shard, then shard by shard; while one
//!          comes in, the database already looks for the next
//! ```
//!
//! All shards advance together because their events lie between each other on disk: shard after shard, every page of the
//! table would be read again for each of them.

mod manifest;
mod output;
mod parquet;

use std::{
    collections::BTreeMap,
    iter,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use clap::Args;
use futures::{StreamExt, future::try_join_all, stream};
use indicatif::{ProgressBar, ProgressStyle};
use skyriff_domain::{Position, ShardId, UserId};
use skyriff_postgres::databases::{self, QUERY};
use skyriff_read_side::events::{
    ByShard, Exported, Filter, Masks, Rows,
    cursor::Positions,
    filter::{AggregateType, EventType, Range},
    log::{BY_RANGE, Order, heads, read_ranges},
};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use self::{
    manifest::{Manifest, Place},
    output::{Format, Output},
};
use crate::{
    config::{self, DatabaseArguments, Databases},
    serve,
};

/// Positions of all shards together that are read at once.
const WINDOW: i64 = 65_536;
/// Windows that are read side by side, by connections of their own: while one is sent, Postgres looks for the next.
const READERS: usize = 2;
/// Windows in memory: what is read, and one that is written, going back and forth.
const WINDOWS: usize = READERS + 1;
/// Positions of all shards together in a round, unless `--segment` says otherwise.
const ROUND: i64 = 2_000_000;
/// A database gets so long to answer, and a replica to come as far as the export goes.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
    /// After so many positions of each shard an interrupted export can go on; after two million in all, unless given.
    #[arg(long, value_parser = clap::value_parser!(i64).range(100..=10_000_000))]
    segment: Option<i64>,
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
    let (pieces, received) = mpsc::channel(WINDOWS);
    let (written, spare) = mpsc::channel(WINDOWS);
    for _ in 0..WINDOWS {
        written.try_send(ByShard::new())?;
    }
    let mut writer = Writer { output, manifest: manifest.clone(), place: place.clone(), bar: bar.clone() };
    let writing = tokio::task::spawn_blocking(move || writer.write(received, &written).map(|()| writer.manifest));
    let read = read(&databases, &manifest, &pieces, spare, &stop).await;
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
    filter.check().map_err(anyhow::Error::msg)?;
    let asked = match &arguments.only_shards {
        Some(text) => config::shards(text)?,
        None => databases.shard_count.shards().collect(),
    };
    if let Some(unknown) = asked.iter().find(|shard| shard.0 >= databases.shard_count.get()) {
        bail!("there is no shard {unknown}; there are {}", databases.shard_count.get());
    }
    let of_user = filter.user.map(|user| skyriff_domain::shard_of(user, databases.shard_count));
    let asked: Vec<_> = asked.into_iter().filter(|shard| of_user.is_none_or(|of_user| of_user == *shard)).collect();
    ensure!(!asked.is_empty(), "the user's events are on a shard that --only-shards leaves out");
    let upto = match earlier {
        Some(earlier) => {
            ensure!(
                earlier.complete,
                "the manifest is of an export that was not finished: there is nothing to compare with"
            );
            earlier.upto()
        }
        None => newest(databases).await?,
    };
    if let Some(missing) = asked.iter().find(|shard| !upto.contains_key(shard)) {
        bail!("nothing says up to where to read shard {missing}: it is not in the manifest, or in no database");
    }
    let upto: Positions = upto.into_iter().filter(|(shard, _)| asked.contains(shard)).collect();
    let of_each = || arguments.segment.unwrap_or(ROUND / i64::try_from(asked.len()).unwrap_or(ROUND).max(1));
    let segment = earlier.map_or_else(of_each, |earlier| earlier.segment);
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
        let mut connection = match connect_to(&place.primary).await {
            Ok(connection) => connection,
            Err(error) => {
                eprintln!(
                    "the primary cannot be asked how far the log is ({error:#}); a replica is, and may be behind"
                );
                connect(place, &Positions::new()).await?
            }
        };
        databases::check_shard_count(&mut connection, databases.shard_count).await?;
        let of_place = heads(&mut connection).await?;
        newest.extend(of_place.into_iter().filter(|(shard, _)| place.shards.contains(shard)));
        connection.close().await?;
    }
    Ok(newest)
}

/// A replica that comes as far as these positions, or else the primary.
async fn connect(place: &config::Place, upto: &Positions) -> Result<PgConnection> {
    let mut failed = None;
    for address in place.replicas.iter().chain([&place.primary]) {
        let connected = async {
            let mut connection = connect_to(address).await?;
            let end = Instant::now() + ANSWER_MAX;
            while let Some((shard, head)) = behind(&mut connection, place, upto).await? {
                ensure!(Instant::now() < end, "the log of shard {shard} ends at {head}");
                tokio::time::sleep(LOOK_AGAIN).await;
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

async fn connect_to(address: &config::Address) -> Result<PgConnection> {
    let options = address.as_role(QUERY).application_name("skyriff replay").options(BY_RANGE);
    Ok(tokio::time::timeout(ANSWER_MAX, options.connect()).await.context("it takes too long")??)
}

/// A shard of which this database does not have all that is to be read, and where its log ends.
async fn behind(
    connection: &mut PgConnection,
    place: &config::Place,
    upto: &Positions,
) -> Result<Option<(ShardId, Position)>> {
    let heads = heads(connection).await?;
    let head = |shard: &ShardId| heads.get(shard).copied().unwrap_or_default();
    let mut of_place = upto.iter().filter(|(shard, _)| place.shards.contains(shard));
    Ok(of_place.find(|(shard, upto)| head(shard) < **upto).map(|(shard, _)| (*shard, head(shard))))
}

/// What the reader hands to the writer: what passed the filter in a window, and up to where each shard was read if it was
/// the last of its round.
struct Piece {
    rows: ByShard,
    round: Option<Positions>,
}

/// Read window after window. Whether it came to the end.
async fn read(
    databases: &Databases,
    manifest: &Manifest,
    pieces: &mpsc::Sender<Piece>,
    spare: mpsc::Receiver<ByShard>,
    stop: &CancellationToken,
) -> Result<bool> {
    let readers = (0..READERS).map(|_| Reader::connect(databases, manifest));
    let readers: Vec<_> = try_join_all(readers).await?.into_iter().map(Mutex::new).collect();
    let spare = Mutex::new(spare);
    let read = async |(number, window): (usize, Window)| {
        let mut reader = readers.get(number % READERS).context("no such reader")?.lock().await;
        // The writer has failed, and says why.
        let Some(memory) = spare.lock().await.recv().await else { return Ok(None) };
        let rows = reader.read(&manifest.filter, &window, memory).await?;
        anyhow::Ok(Some(Piece { rows, round: window.is_last.then_some(window.upto) }))
    };
    let mut reading = Box::pin(stream::iter(windows(manifest).enumerate()).map(read).buffered(READERS));
    loop {
        let next = tokio::select! {
            next = reading.next() => next,
            () = stop.cancelled() => return Ok(false),
        };
        let Some(piece) = next.transpose()? else { break };
        // The writer has failed, and says why.
        let Some(piece) = piece else { return Ok(false) };
        if pieces.send(piece).await.is_err() {
            return Ok(false);
        }
    }
    drop(reading);
    for reader in readers {
        reader.into_inner().close().await;
    }
    Ok(true)
}

/// What is read at once: the next positions of every shard, and whether a round ends with them.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    after: Positions,
    upto: Positions,
    is_last: bool,
}

/// From where the export is to its end.
fn windows(manifest: &Manifest) -> impl Iterator<Item = Window> {
    let (upto, segment) = (manifest.upto(), manifest.segment);
    let begin: Positions = manifest.shards.iter().map(|(shard, place)| (*shard, place.read)).collect();
    let end_of = move |begin: &Positions| (*begin != upto).then(|| advanced(begin, segment, &upto));
    let first = end_of(&begin).map(|end| (begin, end));
    let rounds = iter::successors(first, move |(_, begin)| Some((begin.clone(), end_of(begin)?)));
    rounds.flat_map(|(begin, end)| {
        let count = windows_of(&begin, &end);
        (1..=count).map(move |number| Window {
            after: part(&begin, &end, number - 1, count),
            upto: part(&begin, &end, number, count),
            is_last: number == count,
        })
    })
}

/// So many positions on, and no further than the end.
fn advanced(from: &Positions, by: i64, end: &Positions) -> Positions {
    let on = |(shard, from): (&ShardId, &Position)| {
        let end = end.get(shard).copied().unwrap_or(*from);
        (*shard, Position(from.0.saturating_add(by)).min(end))
    };
    from.iter().map(on).collect()
}

/// How many windows a round has.
fn windows_of(begin: &Positions, end: &Positions) -> i64 {
    let positions: i64 = end.iter().map(|(shard, end)| end.0 - begin.get(shard).copied().unwrap_or_default().0).sum();
    (positions / WINDOW).max(0) + 1
}

/// Up to where the n-th of so many windows goes: of each shard as large a part of its round. Shards have been written side
/// by side, some faster than others, so that what lies together on disk is read together.
fn part(begin: &Positions, end: &Positions, window: i64, windows: i64) -> Positions {
    let upto = |(shard, end): (&ShardId, &Position)| {
        let begin = begin.get(shard).copied().unwrap_or(*end).0;
        let part = i128::from(end.0 - begin) * i128::from(window) / i128::from(windows);
        (*shard, Position(begin.saturating_add(i64::try_from(part).unwrap_or_default())))
    };
    end.iter().map(upto).collect()
}

/// A connection to each database that has shards of the export.
struct Reader {
    databases: Vec<(Vec<ShardId>, PgConnection)>,
}

impl Reader {
    async fn connect(databases: &Databases, manifest: &Manifest) -> Result<Self> {
        let upto = manifest.upto();
        let mut connections = Vec::new();
        for place in &databases.event_store {
            let shards: Vec<_> = upto.keys().copied().filter(|shard| place.shards.contains(shard)).collect();
            if !shards.is_empty() {
                connections.push((shards, connect(place, &upto).await?));
            }
        }
        let found = connections.iter().flat_map(|(shards, _)| shards).collect::<Vec<_>>();
        if let Some(missing) = upto.keys().find(|shard| !found.contains(shard)) {
            bail!("shard {missing} has no database");
        }
        Ok(Self { databases: connections })
    }

    /// What lies in the window and passes, of all databases side by side. `memory` is used again, but for that of shards
    /// that are at their end: others may need more now.
    async fn read(&mut self, filter: &Filter, window: &Window, mut memory: ByShard) -> Result<ByShard> {
        memory.values_mut().for_each(Rows::clear);
        let mut reads = Vec::new();
        for (shards, connection) in &mut self.databases {
            let (mut ranges, mut rows) = (Vec::new(), ByShard::new());
            for shard in &*shards {
                let (Some(after), Some(upto)) = (window.after.get(shard), window.upto.get(shard)) else { continue };
                if after < upto {
                    ranges.push(Range { shard: i16::try_from(shard.0)?, after: after.0, upto: upto.0 });
                    rows.extend(memory.remove_entry(shard));
                }
            }
            reads.push(async move {
                if !ranges.is_empty() {
                    read_ranges(connection, filter, &ranges, &mut rows).await?;
                }
                Ok::<_, anyhow::Error>(rows)
            });
        }
        let rows = try_join_all(reads).await.context("the event log cannot be read")?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// All was read: how the connections end changes nothing.
    async fn close(self) {
        for (_, connection) in self.databases {
            connection.close().await.ok();
        }
    }
}

/// Writes events, and after each round how far they are written.
struct Writer {
    output: Output,
    manifest: Manifest,
    place: PathBuf,
    bar: ProgressBar,
}

impl Writer {
    /// Until there are no more pieces; the memory of each goes back to the reader.
    fn write(&mut self, mut pieces: mpsc::Receiver<Piece>, spare: &mpsc::Sender<ByShard>) -> Result<()> {
        let mut masks = Masks::default();
        let mut line = Vec::new();
        let mut segments = self.segments()?;
        while let Some(Piece { rows, round }) = pieces.blocking_recv() {
            for (shard, rows) in rows.iter().filter(|(_, rows)| !rows.is_empty()) {
                let segment = segments.get_mut(shard).context("a shard that nobody asked for")?;
                for row in rows.iter() {
                    segment.order.check(row.at)?;
                    let event = Exported::of(row, &mut masks)?;
                    line.clear();
                    event.write_json_line(&mut line);
                    segment.hash.add(&line);
                    self.output.write(&event, &line)?;
                }
                self.bar.inc(u64::try_from(rows.len())?);
            }
            // A reader that has ended needs none.
            spare.try_send(rows).ok();
            if let Some(upto) = round {
                self.end_round(segments, &upto)?;
                segments = self.segments()?;
            }
        }
        Ok(())
    }

    /// Up to here each shard was read; what was written of it is on disk, and the manifest says so.
    fn end_round(&mut self, segments: BTreeMap<ShardId, Segment>, upto: &Positions) -> Result<()> {
        for (shard, segment) in &segments {
            segment.order.end(upto.get(shard).copied().unwrap_or_default())?;
        }
        self.manifest.bytes = self.output.checkpoint()?;
        for (shard, Segment { order: _, hash }) in segments {
            self.manifest.advance(shard, upto.get(&shard).copied().unwrap_or_default(), hash)?;
        }
        self.manifest.write(&self.place)?;
        self.bar.set_position(self.manifest.positions_read());
        Ok(())
    }

    /// What the next round has of the shards that are not at their end.
    fn segments(&self) -> Result<BTreeMap<ShardId, Segment>> {
        let unread = self.manifest.shards.iter().filter(|(_, place)| place.read < place.upto);
        let begin = |(shard, place): (&ShardId, &Place)| {
            let order = Order::new(&self.manifest.filter, *shard, place.read);
            Ok((*shard, Segment { order, hash: self.manifest.hash(*shard)? }))
        };
        unread.map(begin).collect()
    }
}

/// A shard's part of a round, as it is written.
struct Segment {
    order: Order,
    hash: manifest::Hash,
}

#[cfg(test)]
mod tests {
    use skyriff_domain::ShardCount;

    use super::*;

    fn positions(of: &[i64]) -> Positions {
        (0..).map(ShardId).zip(of.iter().copied().map(Position)).collect()
    }

    /// The windows of an export of so many events of each shard, that has come to `read`.
    fn planned(upto: &[i64], read: &[i64], segment: i64) -> Vec<Window> {
        let shards = ShardCount::new(16).unwrap();
        let mut manifest = Manifest::new(Format::Ndjson, Filter::default(), shards, segment, &positions(upto));
        for (place, read) in manifest.shards.values_mut().zip(read) {
            place.read = Position(*read);
        }
        windows(&manifest).collect()
    }

    #[test]
    fn windows_follow_each_other_from_where_the_export_is_to_its_end() {
        for (upto, read, segment, rounds) in [
            (vec![200_000, 70_000, 3, 0], vec![0, 0, 0, 0], 90_000, 3),
            (vec![200_000, 70_000, 3, 0], vec![90_000, 70_000, 3, 0], 90_000, 2),
            (vec![250, 90], vec![0, 0], 100, 3),
            (vec![5_000_000], vec![0], 5_000_000, 1),
        ] {
            let windows = planned(&upto, &read, segment);
            let mut at = positions(&read);
            for window in &windows {
                assert_eq!(window.after, at);
                let many: i64 = window.upto.iter().map(|(shard, upto)| upto.0 - at[shard].0).sum();
                assert!((1..=WINDOW + i64::try_from(upto.len()).unwrap()).contains(&many), "{many} in {window:?}");
                at.clone_from(&window.upto);
            }
            assert_eq!(at, positions(&upto));
            assert_eq!(windows.iter().filter(|window| window.is_last).count(), rounds);
            assert!(windows.last().is_some_and(|window| window.is_last));
        }
        assert_eq!(planned(&[7, 7], &[7, 7], 100), []);
        assert_eq!(planned(&[0, 0], &[0, 0], 100), []);
    }
}
