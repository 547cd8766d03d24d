//! A stream of events to one client: read in pages, merged, and sent no faster than the client takes it.
//!
//! A task reads and writes into a channel that holds one piece, and the connection takes from it. While the client does
//! not read, the channel is full, the task waits, no database connection is held, and memory does not grow: at most the
//! rows of two pages, and two pieces.

use std::{
    collections::BTreeMap,
    future::ready,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::metrics::{counter, gauge};
use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use skyriff_domain::{Position, ShardId};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep},
};

use super::{
    cursor::{self, Positions},
    exported::{ExportError, Exported, Masks},
    filter::Filter,
    log::{EventLogs, ReadError},
    rows::{ByShard, Row, Rows},
};
use crate::replicas::AtLeast;

/// Streams that are open.
const STREAMS: &str = "skyriff_event_streams";
/// Events that were sent.
const SENT: &str = "skyriff_events_sent_total";
/// Positions that are read at once, of all shards together.
const PAGE: i64 = 8_192;
/// A piece is sent when it is this large, in bytes, even when more events are at hand.
const PIECE_BYTES: usize = 512 * 1_024;
/// How often a stream that follows looks for new events. Replicas cannot notify.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A client that takes nothing for so long is cut off; it may go on from its last cursor.
const STALL_MAX: Duration = Duration::from_secs(300);
/// What was known to be there does not show up on any replica for so long.
const BEHIND_MAX: Duration = Duration::from_secs(10);
/// When the process stops, how long a client may take to read what it was sent.
const LAST_WORD_MAX: Duration = Duration::from_secs(5);

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON object a line; cursors are lines of their own.
    Ndjson,
    /// Server-sent events; each has a cursor as its id.
    Sse,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) filter: Filter,
    pub(super) after: Positions,
    /// Read where the log has come at least so far.
    pub(super) at_least: AtLeast,
    pub(super) format: Format,
    pub(super) follow: bool,
    /// No more than so many events.
    pub(super) limit: Option<u64>,
    pub(super) heartbeat: Duration,
}

/// Why a stream ends well.
#[derive(Clone, Copy, Debug)]
enum End {
    /// All that was there when it began was sent.
    Complete,
    /// As many events as were asked for.
    Limit,
    /// This process stops.
    Stopping,
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("the replicas have been behind for too long")]
    Behind,
}

/// The client is gone, or as good as.
struct Gone;

/// How a stream was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// With its last line, which says why it ends.
    Ended,
    /// Before.
    CutOff,
}

/// Start a stream. The first page is read before, so that a log that cannot be read is a problem and not a short
/// stream.
pub(super) async fn start(logs: EventLogs, wanted: Wanted, permit: OwnedSemaphorePermit) -> Result<Body, ReadError> {
    let mut merge = Merge::new(logs.clone(), wanted);
    merge.read_first().await?;
    let (pieces, mut received) = mpsc::channel(1);
    let has_ended = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&has_ended);
    tokio::spawn(async move {
        gauge!(STREAMS).increment(1);
        match run(&mut merge, &logs, &pieces).await {
            Ok(left) => ended.store(left == Left::Ended, Ordering::Release),
            Err(error) => tracing::error!(error = format!("{:#}", Chain(&error)), "a stream of events ends early"),
        }
        gauge!(STREAMS).decrement(1);
        drop((pieces, permit));
    });
    // An error cuts the connection, so that nobody takes for whole what is not.
    let cut =
        stream::once(async move { (!has_ended.load(Ordering::Acquire)).then(|| Err(io::Error::other("cut off"))) });
    let pieces = stream::poll_fn(move |context| received.poll_recv(context)).map(Ok);
    Ok(Body::from_stream(pieces.chain(cut.filter_map(ready))))
}

struct Chain<'e>(&'e dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |error| error.source()).try_for_each(|error| write!(f, ": {error}"))
    }
}

type Pieces = mpsc::Sender<Bytes>;

async fn run(merge: &mut Merge, logs: &EventLogs, pieces: &Pieces) -> Result<Left, StreamError> {
    let mut quiet_since = Instant::now();
    let mut behind_since = None;
    loop {
        let mut piece = Vec::new();
        let end = merge.write(&mut piece)?;
        let end = end.or_else(|| logs.stop().is_cancelled().then_some(End::Stopping));
        if let Some(end) = end {
            merge.write_end(end, &mut piece);
            return Ok(send(piece, pieces, logs).await.map_or_else(|Gone| Left::CutOff, |()| Left::Ended));
        }
        if !piece.is_empty() || quiet_since.elapsed() >= merge.wanted.heartbeat {
            merge.write_cursor(&mut piece);
            if send(piece, pieces, logs).await.is_err() {
                return Ok(Left::CutOff);
            }
            quiet_since = Instant::now();
        }
        let waits = merge.waits();
        if merge.read().await? {
            behind_since = None;
        } else if waits || merge.has_nothing() {
            // Another replica was further; this one has to come as far.
            if waits && behind_since.get_or_insert_with(Instant::now).elapsed() > BEHIND_MAX {
                return Err(StreamError::Behind);
            }
            tokio::select! {
                () = sleep(LOOK_AGAIN) => {}
                () = logs.stop().cancelled() => {}
                () = pieces.closed() => return Ok(Left::CutOff),
            }
        }
    }
}

async fn send(piece: Vec<u8>, pieces: &Pieces, logs: &EventLogs) -> Result<(), Gone> {
    let stopped = async {
        logs.stop().cancelled().await;
        sleep(LAST_WORD_MAX).await;
    };
    tokio::select! {
        biased;
        sent = pieces.send(piece.into()) => sent.map_err(|_| Gone),
        () = sleep(STALL_MAX) => {
            tracing::warn!("a stream of events is cut off: its client took nothing for {STALL_MAX:?}");
            Err(Gone)
        }
        () = stopped => Err(Gone),
    }
}

/// The shards of a stream, merged by when their events were recorded.
struct Merge {
    logs: EventLogs,
    wanted: Wanted,
    shards: BTreeMap<ShardId, ShardLog>,
    /// Memory to read into.
    memory: ByShard,
    masks: Masks,
    sent: u64,
}

/// One shard of a stream.
#[derive(Default)]
struct ShardLog {
    /// Up to here everything was sent.
    sent: Position,
    /// Up to here everything was read.
    read: Position,
    /// The last position that is known to be there; the end, unless the stream follows.
    head: Position,
    rows: Rows,
}

impl ShardLog {
    /// Nothing is at hand, and more is known to be there.
    fn waits(&self) -> bool {
        self.rows.is_empty() && self.read < self.head
    }
}

impl Merge {
    fn new(logs: EventLogs, wanted: Wanted) -> Self {
        let of = |after: Position| ShardLog { sent: after, read: after, ..ShardLog::default() };
        let shards = wanted.after.iter().map(|(shard, after)| (*shard, of(*after))).collect();
        Self { logs, wanted, shards, memory: ByShard::default(), masks: Masks::default(), sent: 0 }
    }

    /// Positions of each shard in a page.
    fn each(&self) -> i64 {
        (PAGE / i64::try_from(self.shards.len()).unwrap_or(PAGE).max(1)).max(16)
    }

    /// Where everything ends that is there now.
    async fn read_first(&mut self) -> Result<(), ReadError> {
        let after: Positions = self.shards.iter().map(|(shard, log)| (*shard, log.read)).collect();
        self.read_after(&after, true).await?;
        Ok(())
    }

    /// Read on where little is at hand. Whether anything was read.
    async fn read(&mut self) -> Result<bool, ReadError> {
        let follow = self.wanted.follow;
        let enough = usize::try_from(self.each() / 2).unwrap_or(usize::MAX);
        if !(self.waits() || follow && self.has_nothing()) {
            return Ok(false);
        }
        let hungry = self.shards.iter().filter(|(_, log)| log.rows.len() < enough && (follow || log.read < log.head));
        let after: Positions = hungry.map(|(shard, log)| (*shard, log.read)).collect();
        self.read_after(&after, follow).await
    }

    async fn read_after(&mut self, after: &Positions, moves_on: bool) -> Result<bool, ReadError> {
        let (wanted, each) = (&self.wanted, self.each());
        let page = self.logs.read(&wanted.filter, after, &wanted.at_least, each, &mut self.memory).await?;
        let anything = !page.read.is_empty();
        for (shard, head) in page.heads {
            let Some(log) = self.shards.get_mut(&shard) else { continue };
            // Another replica may be less far.
            if moves_on {
                log.head = log.head.max(head);
            }
            if let Some(upto) = page.read.get(&shard) {
                log.read = *upto;
                if let Some(rows) = self.memory.get_mut(&shard) {
                    log.rows.append(rows);
                }
            }
        }
        Ok(anything)
    }

    fn waits(&self) -> bool {
        self.shards.values().any(ShardLog::waits)
    }

    fn has_nothing(&self) -> bool {
        self.shards.values().all(|log| log.rows.is_empty())
    }

    /// Write what is at hand, the earliest first, until a shard has to be read on.
    fn write(&mut self, piece: &mut Vec<u8>) -> Result<Option<End>, StreamError> {
        let before = self.sent;
        while piece.len() < PIECE_BYTES && !self.waits() {
            if self.wanted.limit.is_some_and(|limit| self.sent >= limit) {
                break;
            }
            let Some(shard) = self.earliest()? else { break };
            self.write_next(shard, piece)?;
            self.sent += 1;
        }
        counter!(SENT).increment(self.sent - before);
        for log in self.shards.values_mut().filter(|log| log.rows.is_empty()) {
            log.sent = log.read;
        }
        if self.wanted.limit.is_some_and(|limit| self.sent >= limit) {
            return Ok(Some(End::Limit));
        }
        // A stream that begins beyond the end has nothing to wait for.
        let complete = self.shards.values().all(|log| log.rows.is_empty() && log.read >= log.head);
        Ok((complete && !self.wanted.follow).then_some(End::Complete))
    }

    /// The shard whose next event was recorded first; of several, the first.
    fn earliest(&self) -> Result<Option<ShardId>, ExportError> {
        let mut earliest = None;
        for (shard, log) in &self.shards {
            let Some(row) = log.rows.first() else { continue };
            let recorded = row.recorded_at_us()?;
            if earliest.is_none_or(|(_, first)| recorded < first) {
                earliest = Some((*shard, recorded));
            }
        }
        Ok(earliest.map(|(shard, _)| shard))
    }

    fn write_next(&mut self, shard: ShardId, piece: &mut Vec<u8>) -> Result<(), ExportError> {
        let Some(log) = self.shards.get_mut(&shard) else { return Ok(()) };
        let Some(Row { at, .. }) = log.rows.first() else { return Ok(()) };
        log.sent = at.position;
        if self.wanted.format == Format::Sse {
            piece.extend_from_slice(format!("id: {}\ndata: ", self.cursor()).as_bytes());
        }
        let Some(row) = self.shards.get_mut(&shard).and_then(|log| log.rows.pop_first()) else { return Ok(()) };
        Exported::of(row, &mut self.masks)?.write_json_line(piece);
        if self.wanted.format == Format::Sse {
            piece.push(b'\n');
        }
        Ok(())
    }

    fn cursor(&self) -> String {
        cursor::encode(&self.shards.iter().map(|(shard, log)| (*shard, log.sent)).collect())
    }

    /// How far the stream is: after each piece, and now and then when there is nothing to send.
    fn write_cursor(&self, piece: &mut Vec<u8>) {
        let cursor = self.cursor();
        match self.wanted.format {
            Format::Ndjson => piece.extend_from_slice(format!("{{\"cursor\":\"{cursor}\"}}\n").as_bytes()),
            // Without data it is no event to the client, but it goes on from there when it connects again.
            Format::Sse => piece.extend_from_slice(format!(": \nid: {cursor}\n\n").as_bytes()),
        }
    }

    fn write_end(&self, end: End, piece: &mut Vec<u8>) {
        let cursor = self.cursor();
        let end = match end {
            End::Complete => "complete",
            End::Limit => "limit",
            End::Stopping => "stopping",
        };
        let line = format!("{{\"cursor\":\"{cursor}\",\"end\":\"{end}\"}}\n");
        match self.wanted.format {
            Format::Ndjson => piece.extend_from_slice(line.as_bytes()),
            Format::Sse => piece.extend_from_slice(format!("id: {cursor}\nevent: end\ndata: {line}\n").as_bytes()),
        }
    }
}
