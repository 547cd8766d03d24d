//! `skyriff audit verify`: the live store, its replicas, or an export.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use futures::{StreamExt, stream};
use indicatif::ProgressBar;
use skyriff_domain::{Position, ShardCount, ShardId};
use skyriff_proof::copy::Columns;
use sqlx::PgConnection;
use tokio::sync::mpsc;

use super::{
    export,
    fold::Shard,
    kept,
    kept::AllKept,
    models,
    report::{self, Report},
    rows,
    rows::{Of, PAGES},
    tiles::Leaves,
    tips,
    tree::Tree,
};
use crate::config::{Databases, OptionalDatabaseArguments, Place};

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What a report says that had none; without it, one in JSON would look as if the log was compared with what was sealed.
const NO_CHECKPOINT: &str = "no checkpoint was given: the tree was compared with nothing";
/// Shards that are read side by side, on whatever machine.
const AT_ONCE_MAX: usize = 64;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: OptionalDatabaseArguments,
    /// Read from replicas only, of the event store and of the read models. They are waited for until they have what the
    /// primary has now.
    #[arg(long, conflicts_with = "export")]
    replica: bool,
    /// Check what `skyriff audit export` has written, and ask no database.
    #[arg(long, value_name = "FOLDER")]
    export: Option<PathBuf>,
    #[command(flatten)]
    kept: kept::KeptArguments,
    /// The tiles of the trees, to say which rows are not those that were sealed: a folder with a folder for each shard.
    #[arg(long, value_name = "FOLDER")]
    tiles: Option<PathBuf>,
    /// An earlier export, to say which columns differ.
    #[arg(long, value_name = "FOLDER")]
    earlier: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// How long replicas and read models may take to catch up with the log, in seconds.
    #[arg(long, default_value_t = 60)]
    wait_s: u32,
    /// Shards that are read side by side; as many as there are processors, unless given. With all of them each page of the log
    /// is read about once, which is faster where the log is larger than the database's memory, and takes memory for all streams.
    #[arg(long)]
    at_once: Option<usize>,
}

/// What all shards are held against.
struct Audit {
    count: ShardCount,
    kept: AllKept,
    tiles: Option<PathBuf>,
    earlier: Option<PathBuf>,
    patience: Duration,
    source: Source,
    bar: ProgressBar,
}

/// Where the rows come from.
enum Source {
    Store { databases: Databases, of: Of },
    Export { folder: PathBuf, manifest: export::Manifest },
}

/// A shard that was read, the ends of its tips, and what was not looked at.
struct Read {
    shard: Shard,
    tips: Vec<(skyriff_domain::TipId, tips::End)>,
    notes: Vec<String>,
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let (json, at_once) = (arguments.json, arguments.at_once);
    let audit = Arc::new(Audit::of(arguments).await?);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let report = audit.verify(at_once.unwrap_or(processors).clamp(1, AT_ONCE_MAX)).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print(started.elapsed());
    }
    Ok(if report.findings.total() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Audit {
    async fn of(arguments: Arguments) -> Result<Self> {
        // Checkpoints before heads: what they have sealed must be there by now.
        let kept = arguments.kept.read().await?;
        let (count, total, source) = match arguments.export {
            Some(folder) => {
                let manifest = export::Manifest::of_whole(&folder)?;
                let count = ShardCount::new(manifest.shard_count).context("an export of no store of ours")?;
                let total = manifest.heads.values().map(|head| head.0).sum();
                (count, total, Source::Export { folder, manifest })
            }
            None => {
                let databases = arguments.databases.databases()?;
                let of = if arguments.replica { Of::Replica } else { Of::Primary };
                let total = export::heads(&databases, of).await?.values().map(|head| head.0).sum();
                (databases.shard_count, total, Source::Store { databases, of })
            }
        };
        kept.check(count)?;
        if let Some(earlier) = &arguments.earlier {
            let earlier_count = export::Manifest::of_whole(earlier)?.shard_count;
            ensure!(earlier_count == count.get(), "the earlier export is of another store");
        }
        if let Some(folder) = &arguments.tiles {
            ensure!(Leaves::are_in(folder, count), "{} has no folder SHARD/tile of any shard", folder.display());
        }
        Ok(Self {
            count,
            kept,
            tiles: arguments.tiles,
            earlier: arguments.earlier,
            patience: Duration::from_secs(u64::from(arguments.wait_s)),
            source,
            bar: report::bar("checking", total)?,
        })
    }

    async fn verify(self: &Arc<Self>, at_once: usize) -> Result<Report> {
        let mut report = Report {
            checkpoints: self.kept.names().map(str::to_owned).collect(),
            compared: matches!(self.source, Source::Store { .. }),
            ..Report::default()
        };
        if report.checkpoints.is_empty() {
            report.notes.push(NO_CHECKPOINT.to_owned());
        }
        let mut tips = tips::Ends::default();
        let shards = stream::iter(self.count.shards()).map(|shard| tokio::spawn(Arc::clone(self).read(shard)));
        let mut shards = shards.buffer_unordered(at_once);
        while let Some(read) = shards.next().await {
            let Read { shard, tips: of_shard, notes } = read??;
            tips.add(of_shard, &mut report.findings);
            report.notes.extend(notes);
            report.add(shard);
        }
        self.bar.finish_and_clear();
        report.tips_under_way = tips.under_way();
        report.end();
        Ok(report)
    }

    async fn read(self: Arc<Self>, id: ShardId) -> Result<Read> {
        let tiles = self.tiles.as_deref().map(|folder| Leaves::of(folder, id));
        let earlier = self.earlier.as_deref().map(|folder| export::Rows::open(folder, id)).transpose()?;
        let shard = Shard::new(id, self.count, Tree::new(self.kept.of(id), tiles, earlier));
        let mut notes = Vec::new();
        let read = match &self.source {
            Source::Export { folder, manifest } => self.read_export(shard, folder.clone(), manifest).await,
            Source::Store { databases, of } => self.read_store(shard, databases, *of, &mut notes).await,
        };
        let mut shard = read.with_context(|| format!("shard {id}"))?;
        shard.end();
        let (tips, mut findings) = (tips::ends(&shard), std::mem::take(&mut shard.findings));
        tips::check_transit(&shard, &tips, &mut findings);
        models::check_holds(&shard, &mut findings);
        shard.findings = findings;
        Ok(Read { shard, tips, notes })
    }

    async fn read_export(&self, mut shard: Shard, folder: PathBuf, manifest: &export::Manifest) -> Result<Shard> {
        let head = manifest.heads.get(&shard.id).copied().context("the export does not have it")?;
        let mut rows = export::Rows::open(&folder, shard.id)?;
        let bar = self.bar.clone();
        let read = tokio::task::spawn_blocking(move || {
            loop {
                match rows.next() {
                    Ok(Some(row)) => shard.row(&row),
                    Ok(None) => return shard,
                    Err(error) => {
                        shard.unreadable(format!("the export cannot be read from here on: {error:#}"));
                        return shard;
                    }
                }
                bar.inc(1);
            }
        });
        let mut shard = read.await?;
        if shard.last < head {
            let what = format!("the export ends at {}, and says that it has {head} events", shard.last);
            shard.findings.of(shard.id, what);
        }
        Ok(shard)
    }

    async fn read_store(&self, shard: Shard, databases: &Databases, of: Of, notes: &mut Vec<String>) -> Result<Shard> {
        let id = shard.id;
        let log = place_of(&databases.event_store, id)?;
        let mut connection = rows::connect(log, of).await.context("the event store")?;
        let head = match of {
            Of::Primary => rows::head(&mut connection, id).await?,
            Of::Replica => self.replicated(&mut connection, log, id, notes).await?,
        };
        let shard = self.fold(&mut connection, shard, head).await?;
        let reads = place_of(&databases.read_models, id)?;
        let mut reads = rows::connect(reads, of).await.context("the read models")?;
        self.compare(&mut connection, &mut reads, shard, of).await
    }

    /// Where a replica's log ends, when it has what the primary has now.
    async fn replicated(
        &self,
        replica: &mut PgConnection,
        place: &Place,
        shard: ShardId,
        notes: &mut Vec<String>,
    ) -> Result<Position> {
        let wanted = async {
            let mut primary = rows::connect(place, Of::Primary).await?;
            rows::head(&mut primary, shard).await
        };
        match wanted.await {
            Ok(wanted) => {
                let head = self.head(replica, shard, wanted).await?;
                if head < wanted {
                    notes.push(format!("the replica of shard {shard} ends at {head}, and the primary at {wanted}"));
                }
                Ok(head)
            }
            Err(error) => {
                let head = rows::head(replica, shard).await?;
                notes.push(format!(
                    "the replica of shard {shard} ends at {head}; of the primary nothing is known: {error:#}"
                ));
                Ok(head)
            }
        }
    }

    /// Where the log ends, when it has come as far or will not in time.
    async fn head(&self, connection: &mut PgConnection, shard: ShardId, at_least: Position) -> Result<Position> {
        let end = Instant::now() + self.patience;
        loop {
            let head = rows::head(connection, shard).await?;
            if head >= at_least || Instant::now() > end {
                return Ok(head);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Read on up to a position that the log has.
    async fn fold(&self, connection: &mut PgConnection, shard: Shard, upto: Position) -> Result<Shard> {
        let (id, after) = (shard.id, shard.last);
        let (pages, received) = mpsc::channel(PAGES);
        let bar = self.bar.clone();
        let folding = tokio::task::spawn_blocking(move || fold(shard, received, &bar));
        let read = rows::read(connection, id, after, upto, &pages).await;
        drop(pages);
        let shard = folding.await?;
        read?;
        ensure!(shard.last >= upto, "the log ended at {} while it was read", shard.last);
        Ok(shard)
    }

    /// The read models beside the fold, each where it is.
    async fn compare(
        &self,
        connection: &mut PgConnection,
        reads: &mut PgConnection,
        mut shard: Shard,
        of: Of,
    ) -> Result<Shard> {
        let mut moment = match models::moment(reads, shard.id, shard.last, self.patience).await {
            Ok(moment) => moment,
            Err(error) => {
                shard.findings.of(shard.id, format!("{error:#}"));
                return Ok(shard);
            }
        };
        for (position, projections) in std::mem::take(&mut moment.positions) {
            if position > shard.last {
                // A read model's replica may be further than the log's; its primary never is.
                let head = match of {
                    Of::Primary => rows::head(connection, shard.id).await?,
                    Of::Replica => self.head(connection, shard.id, position).await?,
                };
                shard = self.fold(connection, shard, position.min(head)).await?;
            }
            for projection in projections {
                if position > shard.last {
                    let what = format!(
                        "the read model {projection} has read up to {position}, and the log ends at {}: later events are gone",
                        shard.last
                    );
                    shard.findings.of(shard.id, what);
                }
                moment.compare(projection, connection, &mut shard).await?;
            }
        }
        Ok(shard)
    }
}

fn fold(mut shard: Shard, mut pages: mpsc::Receiver<Vec<Bytes>>, bar: &ProgressBar) -> Shard {
    while let Some(page) = pages.blocking_recv() {
        for row in &page {
            match Columns::parse(row) {
                Some(row) => shard.row(&row.into()),
                None => shard.unreadable("the row has other columns than ours, or a time that is none".to_owned()),
            }
        }
        bar.inc(u64::try_from(page.len()).unwrap_or_default());
    }
    shard
}

fn place_of(places: &[Place], shard: ShardId) -> Result<&Place> {
    match places.iter().find(|place| place.shards.contains(&shard)) {
        Some(place) => Ok(place),
        None => bail!("it has no database"),
    }
}
