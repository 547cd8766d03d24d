//! A broker for tests: a real process with files of its own, started, stopped and started again by the test.
//!
//! It is noida-db, a small program that speaks Kafka's protocol. What it is good for, as seen from librdkafka: topics,
//! idempotent producers, consumer groups and their rebalancing, commits, headers, and keeping everything over a SIGTERM.
//! What it is not: Apache Kafka. It does not notice a group member that was killed with -9, a SIGKILL of its own may lose
//! what it has just acknowledged, and it replicates nothing. `KAFKA_BROKERS=host:port` has the tests use a real cluster
//! instead, but for those that stop the broker.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use uuid::Uuid;

use crate::Settings;

/// A cluster to use instead.
pub const BROKERS: &str = "KAFKA_BROKERS";
/// Where the broker's program is.
pub const PROGRAM: &str = "SKYRIFF_TEST_BROKER";
/// Where `make setup` puts it.
const DEFAULT_PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.skyriff/broker/noida-db");

/// How long it may take to start and to stop.
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A cluster for a test.
#[derive(Debug)]
pub enum Cluster {
    /// Our own.
    Own(Broker),
    /// Somebody's.
    Named(String),
}

impl Cluster {
    /// The one that `KAFKA_BROKERS` names, or else a broker of the test's own.
    ///
    /// # Panics
    /// When there is none to start.
    pub fn for_test() -> Self {
        match env::var(BROKERS) {
            Ok(brokers) if !brokers.is_empty() => Self::Named(brokers),
            _ => Self::Own(Broker::start()),
        }
    }

    /// How to reach it, with a topic that nobody else uses.
    pub fn settings(&self) -> Settings {
        let brokers = match self {
            Self::Own(broker) => broker.address(),
            Self::Named(brokers) => brokers.clone(),
        };
        Settings { topic: unique_topic(), ..Settings::new(&brokers) }
    }
}

/// A name that nobody else uses.
pub fn unique_topic() -> String {
    format!("skyriff.events.test.{}", Uuid::new_v4().simple())
}

/// A broker of a test's own. Dropped, it is killed, and its files go.
#[derive(Debug)]
pub struct Broker {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Broker {
    /// Start one.
    ///
    /// # Panics
    /// When it does not start.
    #[expect(clippy::panic, reason = "only tests call it, and want to stop right here")]
    pub fn start() -> Self {
        match Self::try_start() {
            Ok(broker) => broker,
            Err(error) => panic!("no broker to test with: {error:#}"),
        }
    }

    fn try_start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("skyriff-broker-").tempdir()?;
        let mut broker = Self { folder, port: free_port()?, process: None };
        broker.up()?;
        Ok(broker)
    }

    /// Where it listens, also while it is down.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Start it again, on the files that it has.
    ///
    /// # Errors
    /// When it does not start.
    pub fn up(&mut self) -> Result<()> {
        let program = program()?;
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let process = Command::new(&program)
            .args(["start", "--only", "kafka", "--host", "127.0.0.1", "--kafka-port", &self.port.to_string()])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let process = self.process.insert(process);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let end = Instant::now() + START_MAX;
        while TcpStream::connect_timeout(&address, LOOK_AGAIN).is_err() {
            if let Some(exit) = process.try_wait()? {
                bail!("it ended ({exit}): {}", fs::read_to_string(self.folder.path().join("log"))?);
            }
            ensure!(Instant::now() < end, "it does not listen within {START_MAX:?}");
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Stop it as an operator does, and wait until it is gone. It keeps everything.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn down(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_raw(i32::try_from(process.id())?).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let end = Instant::now() + STOP_MAX;
        while process.try_wait()?.is_none() {
            if Instant::now() >= end {
                process.kill()?;
                process.wait()?;
                bail!("it does not stop within {STOP_MAX:?}");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Start it again with nothing: as when its disk was lost.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub fn lose_everything(&mut self) -> Result<()> {
        self.down()?;
        fs::remove_dir_all(self.folder.path().join("data"))?;
        self.up()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

fn program() -> Result<PathBuf> {
    let named = env::var_os(PROGRAM).map(PathBuf::from);
    let program = named.unwrap_or_else(|| Path::new(DEFAULT_PROGRAM).to_owned());
    ensure!(program.exists(), "there is no {}; `make setup` puts it there", program.display());
    Ok(program)
}

/// Below the ports that outgoing connections take, so that nobody takes it while the broker is down.
fn free_port() -> Result<u16> {
    let first = u16::try_from(std::process::id() % 8_000)? + 22_000;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    // Tests of one process start brokers at the same time; the counter keeps their searches apart.
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let mut ports =
        std::iter::repeat_with(|| first + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)).take(2_000);
    ports.find(free).context("no free port")
}
