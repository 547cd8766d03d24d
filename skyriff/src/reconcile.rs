//! `skyriff reconcile`: a provider's file beside the ledger.
//!
//! The file is looked at as a whole first; then its lines are compared, page by page, and what does not agree is recorded as
//! exceptions. Every step records nothing when it has been done, so an interrupted run is finished by the same command.

mod books;
mod compare;
mod file;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use chrono::{NaiveDate, SubsecRound, Utc};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use skyriff_domain::{
    Command as Asked, CommandId, Event, ExceptionId, Intent, Label, Metadata, Policy, ReconciliationId, StreamId,
    UserId,
    reconciliation::{
        Kind, Step,
        exception::{self, Agreement, Difference, Found},
        run::{self, Counts, File, Reconciliation},
    },
};
use skyriff_follow::log;
use skyriff_postgres::databases::QUERY;
use skyriff_write_side::{CommandSide, Commands, Fingerprint, Submission, commands};
use sqlx::ConnectOptions;
use uuid::Uuid;

use self::{
    books::{Books, OpenException},
    compare::{Days, Ours, compare, is_of_before},
    file::{Checked, Line},
};
use crate::config::{DatabaseArguments, Databases};

/// Payments that are compared at once.
const PAGE: usize = 1_000;
/// What something does not agree is told by this exit code.
const DIFFERS: u8 = 2;

#[derive(Subcommand)]
pub enum Command {
    /// What a payout provider has paid, with the withdrawals that it was asked to pay.
    Payouts(Arguments),
    /// What the payment provider was paid, with the recharges of those days.
    Recharges(Arguments),
}

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
    /// The provider's file: CSV, as `skyriff/src/reconcile/file.rs` and the README describe it.
    file: PathBuf,
    /// Whose file it is; of payouts, as in the events that start them.
    #[arg(long)]
    provider: Label,
    /// The first UTC day that the file covers.
    #[arg(long)]
    from: NaiveDate,
    /// The day after the last.
    #[arg(long)]
    to: NaiveDate,
    /// Which operator brings it; stands in the events.
    #[arg(long)]
    operator: Uuid,
    /// How long the read models may take to catch up with the log, in seconds.
    #[arg(long, default_value_t = 60)]
    wait_s: u32,
    /// Record only where a commit means that a synchronous standby has it too.
    #[arg(long, env = "SKYRIFF_REQUIRE_STANDBY")]
    require_standby: bool,
}

pub async fn run(command: Command) -> Result<ExitCode> {
    let (kind, arguments) = match command {
        Command::Payouts(arguments) => (Kind::Payouts, arguments),
        Command::Recharges(arguments) => (Kind::Recharges, arguments),
    };
    ensure!(arguments.from < arguments.to, "--to is the day after the last day, so it is later than --from");
    let checked = file::check(kind, &arguments.file)?;
    if let Some((first, last)) = checked.days {
        let is_of_them = first < arguments.to && last >= arguments.from;
        ensure!(is_of_them, "the lines are of {first} to {last}, and none of them of the days from --from to --to");
    }
    let Arguments { databases, provider, from, to, operator, wait_s, require_standby, file: _ } = arguments;
    let databases = databases.databases()?;
    let file = File { kind, provider, from, to, sha256: checked.sha256.clone(), lines: checked.lines };
    let run = ReconciliationId::of(&file);
    if let Some(counts) = finished(&databases, run).await? {
        println!("this file was reconciled before, as {run}");
        return Ok(told(&counts));
    }
    let mut books = Books::connect(&databases).await?;
    books.catch_up(&databases, Duration::from_secs(u64::from(wait_s))).await?;
    if kind == Kind::Payouts {
        let known = books.payout_providers().await?;
        let is_known = known.is_empty() || known.contains(file.provider.as_str());
        let all = || known.iter().cloned().collect::<Vec<_>>().join(", ");
        ensure!(
            is_known,
            "no payout was ever started with {:?}; --provider is one of {}",
            file.provider.as_str(),
            all()
        );
    }
    let limits = commands::Limits { executors_per_database: 1, require_standby, ..commands::Limits::default() };
    let side = CommandSide::start(&databases.to_append(), databases.shard_count, &Policy::default(), &limits);
    let mut reconciling = Reconciling {
        commands: side.commands.clone(),
        books,
        operator,
        file,
        run,
        counts: Counts::default(),
        told: HashSet::new(),
        before: Vec::new(),
    };
    let done = reconciling.run(&checked).await;
    let counts = reconciling.counts;
    drop(reconciling);
    side.stop().await;
    done.context("not finished; the same command goes on")?;
    println!("{run}: {} lines", checked.lines);
    Ok(told(&counts))
}

fn told(counts: &Counts) -> ExitCode {
    let Counts { matched, missing_in_ledger, missing_in_file, different, repeated, explained } = *counts;
    println!("  {matched:>9}  agree");
    println!("  {missing_in_ledger:>9}  are missing in the ledger");
    println!("  {missing_in_file:>9}  are missing in the file");
    println!("  {different:>9}  differ");
    println!("  {repeated:>9}  are there more than once, or in a file of other days too");
    println!("  {explained:>9}  exceptions of before are explained");
    match missing_in_ledger + missing_in_file + different + repeated {
        0 => ExitCode::SUCCESS,
        _ => {
            println!("GET /v1/ledger/reconciliations/exceptions?state=open has what is to be looked into");
            ExitCode::from(DIFFERS)
        }
    }
}

/// What came of the same file before, if it was finished.
async fn finished(databases: &Databases, run: ReconciliationId) -> Result<Option<Counts>> {
    let shard = skyriff_domain::shard_of(UserId(run.0), databases.shard_count);
    let place = databases.event_store.iter().find(|place| place.shards.contains(&shard));
    let place = place.with_context(|| format!("shard {shard} has no place"))?;
    let mut connection = place.primary.as_role(QUERY).connect().await.context("cannot reach the event store")?;
    let mut state = Reconciliation::default();
    for recorded in log::read_stream(&mut connection, shard, &StreamId::Reconciliation(run)).await? {
        if let Event::Reconciliation(event) = recorded.event {
            state.apply(&event);
        }
    }
    Ok(state.finished())
}

/// A file on its way.
struct Reconciling {
    commands: Commands,
    books: Books,
    operator: Uuid,
    file: File,
    run: ReconciliationId,
    counts: Counts,
    /// What stands in the file more than once, and was told.
    told: HashSet<Uuid>,
    /// The days of other files, of recharges.
    before: Vec<Days>,
}

impl Reconciling {
    async fn run(&mut self, checked: &Checked) -> Result<()> {
        self.of_run(run::Command::Start(self.file.clone())).await?;
        self.counts.explained = self.books.explained_by(self.run.0).await?;
        // A payout that was paid twice has two names. An order has none: it may stand in the files of two months.
        if self.file.kind == Kind::Recharges {
            self.before = self.books.compared(self.file.kind, &self.file.provider, self.run.0).await?;
        }
        let bar = ProgressBar::new(checked.lines).with_style(ProgressStyle::with_template(
            "comparing {bar:40} {human_pos}/{human_len} lines, {per_sec}, {eta} left",
        )?);
        let mut page = Vec::with_capacity(PAGE);
        for line in checked.lines()? {
            page.push(line?);
            if page.len() == PAGE {
                self.lines(&page, checked).await?;
                bar.inc(u64::try_from(page.len())?);
                page.clear();
            }
        }
        self.lines(&page, checked).await?;
        bar.finish_and_clear();
        self.missing_in_file(checked).await?;
        self.of_run(run::Command::Finish(self.counts)).await
    }

    /// Compare lines, record what does not agree, and explain what agrees by now.
    async fn lines(&mut self, lines: &[Line], checked: &Checked) -> Result<()> {
        let mut subjects: Vec<_> = lines.iter().map(|line| line.subject).collect();
        let ours = self.books.find(self.file.kind, &subjects).await?;
        let of_before = self.of_before(&ours).await?;
        let (mut found, mut told_before, mut agreed) = (Vec::new(), HashSet::new(), HashMap::new());
        for line in lines {
            let ours = ours.get(&line.subject);
            let difference = match compare(&self.file.provider, line, ours) {
                _ if checked.repeated.contains(&line.subject) => Some(Difference::Repeated),
                None if line.is_paid() && of_before.contains(&line.subject) => Some(Difference::Repeated),
                compared => compared,
            };
            // Also when it is not as it should be: then what was found while nobody knew whose it is, is found again, as theirs.
            if line.is_paid() && ours.is_some() && difference != Some(Difference::Repeated) {
                let reference = line.figures.reference.clone();
                agreed.insert(line.subject, Agreement { at: line.at, reference });
            }
            match difference {
                None => self.counts.matched += 1,
                Some(Difference::Repeated) => self.counts.repeated += 1,
                Some(Difference::MissingInLedger) => self.counts.missing_in_ledger += 1,
                Some(
                    Difference::MissingInFile
                    | Difference::Currency
                    | Difference::Amount
                    | Difference::Status
                    | Difference::Reference,
                ) => self.counts.different += 1,
            }
            // Of what stands in the file more than once the first line is told, and the others only counted.
            if difference == Some(Difference::Repeated) && !self.told.insert(line.subject) {
                told_before.insert(line.subject);
            } else if let Some(difference) = difference {
                found.push(self.found(line.subject, difference, ours, Some(line)));
            }
        }
        let told_now: HashSet<_> = found.iter().map(|found| found.subject).collect();
        subjects.retain(|subject| !told_before.contains(subject) || told_now.contains(subject));
        self.record(&subjects, found, &agreed).await
    }

    /// What was credited on days that belong to another file, which had it.
    async fn of_before(&mut self, ours: &BTreeMap<Uuid, Ours>) -> Result<HashSet<Uuid>> {
        let this = (self.file.from, self.file.to);
        let of_before = ours.iter().filter(|(_, ours)| is_of_before(ours.at, this, &self.before));
        let of_before: Vec<_> = of_before.map(|(subject, _)| *subject).collect();
        if of_before.is_empty() {
            return Ok(HashSet::new());
        }
        let awaited = self.books.awaited(&self.file.provider, &of_before, self.run.0).await?;
        Ok(of_before.into_iter().filter(|subject| !awaited.contains(subject)).collect())
    }

    /// What the ledger has of these days and the file has not.
    async fn missing_in_file(&mut self, checked: &Checked) -> Result<()> {
        let (kind, provider, days) = (self.file.kind, self.file.provider.clone(), (self.file.from, self.file.to));
        let limit = i64::try_from(PAGE)?;
        for database in 0.. {
            let mut after = None;
            loop {
                let page = self.books.paid(database, (kind, &provider), days, after, limit).await?;
                let Some(paid) = page else { return Ok(()) };
                let Some((.., last)) = paid.last() else { break };
                after = Some(*last);
                let missing: Vec<_> = paid.into_iter().filter(|(id, ..)| !checked.subjects.contains(id)).collect();
                self.counts.missing_in_file += u64::try_from(missing.len())?;
                let subjects: Vec<_> = missing.iter().map(|(id, ..)| *id).collect();
                let found =
                    missing.iter().map(|(id, ours, _)| self.found(*id, Difference::MissingInFile, Some(ours), None));
                let found = found.collect();
                self.record(&subjects, found, &HashMap::new()).await?;
            }
        }
        Ok(())
    }

    fn found(&self, subject: Uuid, difference: Difference, ours: Option<&Ours>, line: Option<&Line>) -> Found {
        Found {
            kind: self.file.kind,
            provider: self.file.provider.clone(),
            run: self.run,
            subject,
            user: ours.map(|ours| ours.user),
            difference,
            ours: ours.map(|ours| ours.figures.clone()),
            theirs: line.map(|line| line.figures.clone()),
            line: line.map(|line| line.number),
            at: line.map(|line| line.at),
        }
    }

    /// The exceptions of some payments: what is found, and then what a line by which both sides have paid explains.
    async fn record(&mut self, subjects: &[Uuid], found: Vec<Found>, agreed: &HashMap<Uuid, Agreement>) -> Result<()> {
        let id = |found: &Found| ExceptionId::of(found.kind, &found.provider, found.subject, found.user);
        let open = self.books.open(self.file.kind, &self.file.provider, subjects).await?;
        let still: HashSet<_> = found.iter().map(id).collect();
        let find = found.into_iter().map(|found| {
            let exception = id(&found);
            (found.home(exception), Step::Exception { exception, command: exception::Command::Find(found) })
        });
        self.send(find.collect()).await?;
        let over = open.into_iter().filter(|open| !still.contains(&open.exception));
        let explain = over.filter_map(|OpenException { exception, home, subject }| {
            let command = exception::Command::Explain { run: self.run, by: agreed.get(&subject)?.clone() };
            Some((home, Step::Exception { exception, command }))
        });
        let recorded = self.send(explain.collect()).await?;
        self.counts.explained += u64::try_from(recorded.iter().filter(|recorded| **recorded).count())?;
        Ok(())
    }

    async fn of_run(&self, command: run::Command) -> Result<()> {
        let run = self.run;
        self.send(vec![(UserId(run.0), Step::Run { run, command })]).await.map(drop)
    }

    /// Hand steps in; of each, whether it recorded anything.
    async fn send(&self, steps: Vec<(UserId, Step)>) -> Result<Vec<bool>> {
        let submissions = steps.into_iter().map(|(user, step)| {
            let intent = Intent::Reconcile(step);
            // Each is a command of its own: the streams know what has been done, for ever.
            let id = CommandId(Uuid::now_v7());
            let fingerprint = Fingerprint::of(user, None, &intent)?;
            let metadata = Metadata {
                command_id: id,
                actor: format!("operator:{}", self.operator),
                request_id: format!("reconcile-{}", self.run),
                causation: None,
                traceparent: None,
                address: None,
            };
            let command = Asked { user, at: Utc::now().trunc_subsecs(6), intent };
            Ok(Submission { id, fingerprint, command, metadata })
        });
        let submissions = submissions.collect::<Result<Vec<_>, serde_json::Error>>()?;
        let results = self.commands.execute_each(submissions).await.into_iter();
        let recorded = results.map(|result| result.map(|receipt| !receipt.recorded.is_empty()));
        recorded.map(|recorded| recorded.map_err(|failure| anyhow!(failure))).collect()
    }
}
