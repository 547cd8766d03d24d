//! Stands between a node and Postgres, counts the messages between its executor and the server in both directions, and
//! ends it all after a chosen one.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
    task::{AbortHandle, JoinSet},
};

use crate::proxy::{SSL_REQUEST, read_message, socket};

/// What ends a connection of the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The connection is cut: the next message is lost, and everything after it.
    Cut,
    /// The server process is ended, and says so if it can. What it has answered by then gets through.
    BackendEnded,
    /// Nothing gets through any more on any connection, nobody is told, until this proxy is dropped: for a node that is
    /// about to be killed.
    NodeGone,
}

/// What an executor calls itself to the server; what a node does beside its commands (housekeeping, snapshots) is not
/// counted.
pub(crate) const EXECUTORS: &[&str] = &["skyriff command"];
/// Processes too.
pub(crate) const EXECUTORS_AND_PROCESSES: &[&str] = &["skyriff command", "skyriff process"];

pub(crate) struct Steps {
    folder: TempDir,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    server: PgConnectOptions,
    programs: &'static [&'static str],
    armed: Mutex<Option<Armed>>,
    silent: AtomicBool,
    backend: AtomicI32,
    /// The role of that connection, which is the one that may end it.
    role: Mutex<String>,
}

struct Armed {
    left: usize,
    end: End,
    reached: oneshot::Sender<()>,
}

impl Steps {
    pub(crate) async fn start(server: &PgConnectOptions) -> Self {
        Self::of(EXECUTORS, server).await
    }

    /// That count the messages of these programs.
    pub(crate) async fn of(programs: &'static [&'static str], server: &PgConnectOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket(server);
        let listener = UnixListener::bind(folder.path().join(socket.file_name().unwrap())).unwrap();
        let shared = Shared {
            server: server.clone(),
            programs,
            armed: Mutex::default(),
            silent: AtomicBool::new(false),
            backend: AtomicI32::new(0),
            role: Mutex::default(),
        };
        let shared = Arc::new(shared);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self { folder, shared, accepting }
    }

    /// How to connect through it.
    pub(crate) fn options(&self) -> PgConnectOptions {
        self.options_of(&self.shared.server)
    }

    /// The same, in another role.
    pub(crate) fn options_of(&self, server: &PgConnectOptions) -> PgConnectOptions {
        server.clone().socket(self.folder.path())
    }

    /// After this many messages from now the executor's connection ends; the receiver learns of it.
    pub(crate) fn end_after(&self, messages: usize, end: End) -> oneshot::Receiver<()> {
        let (reached, when_reached) = oneshot::channel();
        *self.shared.armed.lock().unwrap() = Some(Armed { left: messages, end, reached });
        when_reached
    }

    /// The server process of the executor's last connection, 0 before it has told.
    pub(crate) fn backend(&self) -> i32 {
        self.shared.backend.load(Ordering::SeqCst)
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(serve(client, Arc::clone(&shared)));
    }
}

async fn serve(mut client: UnixStream, shared: Arc<Shared>) -> io::Result<()> {
    let startup = loop {
        let startup = read_message(&mut client, false).await?;
        if startup[4..] != SSL_REQUEST {
            break startup;
        }
        client.write_all(b"N").await?;
    };
    let is = |program: &&str| startup.windows(program.len()).any(|text| text == program.as_bytes());
    let counted = shared.programs.iter().any(is);
    if counted {
        shared.step().await?;
    }
    let (from_server, mut to_server) = UnixStream::connect(socket(&shared.server)).await?.into_split();
    to_server.write_all(&startup).await?;
    let (from_client, to_client) = client.into_split();
    tokio::select! {
        result = there(from_client, to_server, &shared, counted) => result,
        result = back(from_server, to_client, &shared, counted.then(|| role(&startup))) => result,
    }
}

async fn there(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, counted: bool) -> io::Result<()> {
    loop {
        let message = read_message(&mut from, true).await?;
        if counted {
            shared.step().await?;
        }
        shared.unless_silent().await;
        if to.write_all(&message).await.is_err() {
            // The server has gone; its last words are still to be delivered.
            std::future::pending::<()>().await;
        }
    }
}

/// As whom a connection is asked for: pairs of names and values, each ended by a zero, after length and version.
fn role(startup: &[u8]) -> String {
    let mut texts = startup[8..].split(|byte| *byte == 0);
    texts.find(|text| *text == b"user");
    String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned()
}

/// With the role of a connection that is counted.
async fn back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    role: Option<String>,
) -> io::Result<()> {
    let counted = role.is_some();
    loop {
        let message = read_message(&mut from, true).await?;
        match message[0] {
            b'K' if counted => {
                let pid = i32::from_be_bytes(message[5..9].try_into().unwrap());
                shared.role.lock().unwrap().clone_from(role.as_ref().expect("it is counted"));
                shared.backend.store(pid, Ordering::SeqCst);
                shared.step().await?;
            }
            // The server's settings, a dozen at every start, are no steps of their own.
            b'S' => {}
            _ if counted => shared.step().await?,
            _ => {}
        }
        shared.unless_silent().await;
        to.write_all(&message).await?;
    }
}

impl Shared {
    /// An error ends the connection.
    async fn step(&self) -> io::Result<()> {
        let armed = {
            let mut armed = self.armed.lock().unwrap();
            match armed.as_mut() {
                Some(Armed { left: 0, .. }) => armed.take(),
                Some(Armed { left, .. }) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        let Some(Armed { end, reached, .. }) = armed else { return Ok(()) };
        let backend = self.backend.load(Ordering::SeqCst);
        if end == End::NodeGone {
            self.silent.store(true, Ordering::SeqCst);
        } else if end == End::BackendEnded && backend != 0 {
            let role = self.role.lock().unwrap().clone();
            let mut killer = self.server.clone().username(&role).connect().await.unwrap();
            sqlx::query("SELECT pg_terminate_backend($1, 5000)").bind(backend).execute(&mut killer).await.unwrap();
        }
        reached.send(()).ok();
        match end {
            End::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
            End::BackendEnded if backend == 0 => Err(io::ErrorKind::ConnectionAborted.into()),
            End::BackendEnded | End::NodeGone => Ok(()),
        }
    }

    async fn unless_silent(&self) {
        if self.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}
