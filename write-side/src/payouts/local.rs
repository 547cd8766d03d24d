//! Pays by writing a payment file that finance works through: needs no account anywhere.
//!
//! One file for each UTC day, `payouts-2026-11-21.csv` (RFC 4180, UTF-8), one line for each payout, a header first:
//!
//! | column | what it holds |
//! |---|---|
//! | `withdrawal` | the withdrawal's id; stands once in all files together |
//! | `user` | whose |
//! | `amount_minor` | how much, in the currency's smallest unit |
//! | `currency` | ISO 4217, in small letters |
//! | `written_at` | when the line was written, UTC |
//! | `kind` | what the account is an account of: `alipay`, `bank_account`, `paypal` |
//! | `account` | where to, in clear; after `'` when it begins as a formula would, which no spreadsheet must run |
//! | `name` | who it belongs to; likewise |
//!
//! A line is on disk before the payout counts as paid. Files are only ever appended to, under a lock that all processes
//! of the folder share, after a look at what others have written; a line that a crash cut short was never answered, and
//! is cut off. So a withdrawal has one line whatever happens. The folder and its files can be read by their owner only.
//! A file may be moved away when every withdrawal in it is recorded as paid. The folder has an id of its own (in the file
//! `lock`), which is part of the provider's name: so a process that has another folder never takes it for this one.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use chrono::{SecondsFormat, Utc};
use futures::future::BoxFuture;
use metrics::counter;
use skyriff_domain::{Label, Reference, WithdrawalId, withdrawal::Money};
use skyriff_vault::{Destination, destination::Kind};
use tokio::{sync::Semaphore, time::timeout};
use uuid::Uuid;

use super::{Doubt, Payout, PayoutProvider, REQUESTS, Said};

/// In metrics, and the beginning of what it is called in events.
pub const NAME: &str = "local";
/// How long the files of a folder may be locked by others, or take to be read and written, before a payout is left for
/// later. What comes too late writes nothing.
const WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

const HEADER: &str = "withdrawal,user,amount_minor,currency,written_at,kind,account,name\n";
const LOCK: &str = "lock";

/// Writes payment files into one folder.
#[derive(Clone, Debug)]
pub struct LocalProvider {
    name: Label,
    book: Arc<Mutex<Book>>,
    /// One at a time: whoever hangs on a disk that does not answer lets the others go on without it.
    turn: Arc<Semaphore>,
}

/// What has been written, by this process and others.
#[derive(Debug)]
struct Book {
    folder: PathBuf,
    /// Locked while files are read or written.
    lock: File,
    /// All of it, for as long as the files are there: some 100 bytes a payout.
    written: HashMap<WithdrawalId, Line>,
    /// How far each file was read, and which file it was: another one may come under a name whose file was moved away.
    read: BTreeMap<PathBuf, (u64, u64)>,
}

/// What a line says, but for where to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    user: String,
    money: Money,
}

impl LocalProvider {
    /// With the files in this folder, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be used, or a file in it is not ours.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(folder.join(LOCK))?;
        let mut book = Book { folder: folder.to_owned(), lock, written: HashMap::new(), read: BTreeMap::new() };
        let id = book.locked(Instant::now() + WAIT_MAX, |book| {
            book.read()?;
            book.id()
        })?;
        let name = format!("{NAME}-{id}").parse().map_err(|_| io::Error::other("the folder's id is no label"))?;
        Ok(Self { name, book: Arc::new(Mutex::new(book)), turn: Arc::new(Semaphore::new(1)) })
    }

    async fn with_book<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Book) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Doubt> {
        let end = Instant::now() + WAIT_MAX;
        let late = || Doubt::unknown("the payment files take too long");
        let turn = timeout(WAIT_MAX, Arc::clone(&self.turn).acquire_owned()).await.map_err(|_| late())?;
        let turn = turn.map_err(Doubt::unknown)?;
        let book = Arc::clone(&self.book);
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            // What is known of the files only ever grows, so whoever panicked left nothing half done.
            book.lock().unwrap_or_else(PoisonError::into_inner).locked(end, work)
        });
        let done = timeout(2 * WAIT_MAX, done).await.map_err(|_| late())?.map_err(Doubt::unknown)?;
        done.map_err(|error| Doubt::unknown(format!("the payment file: {error}")))
    }
}

impl Book {
    fn locked<T>(&mut self, end: Instant, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        loop {
            match self.lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOOK_AGAIN),
                Err(error) => return Err(error.into()),
            }
        }
        // Nobody waits for it any more, and a person may have decided meanwhile.
        let done = if Instant::now() < end { work(self) } else { Err(io::ErrorKind::TimedOut.into()) };
        self.lock.unlock()?;
        done
    }

    /// What the folder is called, for ever; chosen by whoever is there first.
    fn id(&mut self) -> io::Result<String> {
        let mut id = String::new();
        self.lock.seek(SeekFrom::Start(0))?;
        self.lock.read_to_string(&mut id)?;
        if id.is_empty() {
            id = Uuid::new_v4().simple().to_string();
            self.lock.write_all(id.as_bytes())?;
            self.lock.sync_all()?;
            File::open(&self.folder)?.sync_all()?;
        }
        Ok(id)
    }

    /// Take in what was written since.
    fn read(&mut self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("payouts-") && name.ends_with(".csv") {
                files.push(path);
            }
        }
        for path in files {
            self.read_file(&path)?;
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let (length, inode) = (file.metadata()?.len(), file.metadata()?.ino());
        let known = self.read.get(path).filter(|(of, _)| *of == inode);
        let from = known.map_or(0, |(_, read)| *read);
        let strange = |what: &str| Err(io::Error::other(format!("{} {what}", path.display())));
        if length < from {
            return strange("has become shorter; nothing is paid until somebody has looked and started anew");
        }
        file.seek(SeekFrom::Start(from))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let end = from + u64::try_from(whole).map_err(io::Error::other)?;
        if whole < new.len() {
            // Under the lock nobody is writing: whoever began this line is gone, and never answered.
            file.set_len(end)?;
            file.sync_all()?;
        }
        if whole > 0 {
            // Whoever wrote it may have died before it was on disk.
            file.sync_all()?;
        }
        new.truncate(whole);
        let Ok(text) = String::from_utf8(new) else { return strange("is not UTF-8") };
        for (number, line) in text.lines().enumerate() {
            if from == 0 && number == 0 {
                if format!("{line}\n") != HEADER {
                    return strange("has another header");
                }
                continue;
            }
            match parse(line) {
                Some((withdrawal, line)) => self.written.insert(withdrawal, line),
                None => return strange("has a line that is not ours; nothing is paid until somebody has looked"),
            };
        }
        self.read.insert(path.to_owned(), (inode, end));
        Ok(())
    }

    fn pay(&mut self, payout: &Payout, to: &Destination) -> io::Result<Result<Said, Doubt>> {
        if let Some(known) = self.known(payout)? {
            return Ok(known);
        }
        let now = Utc::now();
        let path = self.folder.join(format!("payouts-{}.csv", now.format("%Y-%m-%d")));
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        let is_new = file.metadata()?.len() == 0;
        let mut text = if is_new { HEADER.to_owned() } else { String::new() };
        let Payout { withdrawal, user, money: Money { minor, currency } } = payout;
        let at = now.to_rfc3339_opts(SecondsFormat::Secs, true);
        let (kind, account, name) = (kind(to.kind()), cell(to.account()), cell(to.name()));
        text.push_str(&format!("{withdrawal},{user},{minor},{currency},{at},{kind},{account},{name}\n"));
        let before = file.metadata()?.len();
        let folder = &self.folder;
        let mut write = || {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            if is_new { File::open(folder)?.sync_all() } else { Ok(()) }
        };
        if let Err(error) = write() {
            // What may not be on disk must not be found later and count as paid.
            file.set_len(before)?;
            return Err(error);
        }
        self.read.insert(path, (file.metadata()?.ino(), file.metadata()?.len()));
        self.written.insert(*withdrawal, Line { user: user.to_string(), money: payout.money.clone() });
        Ok(paid(*withdrawal))
    }

    /// What is known of a payout, now.
    fn known(&mut self, payout: &Payout) -> io::Result<Option<Result<Said, Doubt>>> {
        self.read()?;
        let ours = Line { user: payout.user.to_string(), money: payout.money.clone() };
        Ok(self.written.get(&payout.withdrawal).map(|line| {
            if *line == ours {
                paid(payout.withdrawal)
            } else {
                Err(Doubt::Mismatch { reason: "the payment file has another user or amount".to_owned() })
            }
        }))
    }
}

fn paid(withdrawal: WithdrawalId) -> Result<Said, Doubt> {
    let reference = Reference::try_from(format!("local-{withdrawal}")).map_err(Doubt::unknown)?;
    Ok(Said::Paid { reference })
}

fn parse(line: &str) -> Option<(WithdrawalId, Line)> {
    let mut cells = line.splitn(5, ',');
    let withdrawal = cells.next()?.parse().ok()?;
    let user = cells.next()?.to_owned();
    let minor = cells.next()?.parse().ok()?;
    let currency = cells.next()?.parse().ok()?;
    cells.next()?;
    Some((withdrawal, Line { user, money: Money { minor, currency } }))
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Alipay => "alipay",
        Kind::BankAccount => "bank_account",
        Kind::Paypal => "paypal",
    }
}

/// A text as one quoted cell on one line.
fn cell(text: &str) -> String {
    let shield = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    let text: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    format!("\"{shield}{}\"", text.replace('"', "\"\""))
}

impl PayoutProvider for LocalProvider {
    fn name(&self) -> &Label {
        &self.name
    }

    fn pay<'a>(&'a self, payout: &'a Payout, to: &'a Destination) -> BoxFuture<'a, Result<Said, Doubt>> {
        let (owned, to) = (payout.clone(), to.clone());
        Box::pin(async move {
            let said = self.with_book(move |book| book.pay(&owned, &to)).await.and_then(|said| said);
            let outcome = said.as_ref().map_or_else(Doubt::name, Said::name);
            counter!(REQUESTS, "provider" => NAME, "request" => "pay", "outcome" => outcome).increment(1);
            said
        })
    }

    fn look_up<'a>(&'a self, payout: &'a Payout) -> BoxFuture<'a, Result<Option<Said>, Doubt>> {
        let owned = payout.clone();
        Box::pin(async move {
            let known = self.with_book(move |book| book.known(&owned)).await?;
            known.transpose()
        })
    }
}
