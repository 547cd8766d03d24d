//! Stands between a node and Postgres, and lets the connection fail at a chosen statement.
//!
//! It reads the frontend's side of the protocol (Postgres documentation, "Message Formats") just far enough to know
//! which statement is being executed.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::BoxFuture;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{AbortHandle, JoinSet},
};

pub(crate) const APPEND: &str = "FROM append(";
pub(crate) const LOAD: &str = "WITH wanted";
pub(crate) const COMMIT: &str = "COMMIT";

/// What happens to the execution of a statement.
pub(crate) enum Fate {
    /// The connection is cut before the server learns of it.
    CutBefore,
    /// The connection is cut as soon as the server has it, which goes on with it.
    CutUnderway,
    /// The connection is cut when the server has done it, before the answer gets through.
    CutAfter,
    /// Neither it nor anything after it on this connection gets through, and nobody is told.
    Silence,
    /// Something else happens first.
    First(BoxFuture<'static, ()>),
}

pub(crate) struct Proxy {
    folder: TempDir,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    server: PathBuf,
    script: Mutex<VecDeque<(&'static str, Fate)>>,
    down: AtomicBool,
}

impl Proxy {
    pub(crate) async fn start(options: &PgConnectOptions) -> Self {
        let server = socket(options);
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(server.file_name().unwrap())).unwrap();
        let shared = Arc::new(Shared { server, script: Mutex::default(), down: AtomicBool::new(false) });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self { folder, shared, accepting }
    }

    /// How to connect through it.
    pub(crate) fn options(&self, options: PgConnectOptions) -> PgConnectOptions {
        options.socket(self.folder.path())
    }

    /// The next executions of statements that contain a text meet their fates, in order.
    pub(crate) fn next(&self, text: &'static str, fate: Fate) {
        self.shared.script.lock().unwrap().push_back((text, fate));
    }

    pub(crate) fn script_is_done(&self) -> bool {
        self.shared.script.lock().unwrap().is_empty()
    }

    pub(crate) fn forget_script(&self) {
        self.shared.script.lock().unwrap().clear();
    }

    /// From now on: new connections are refused, and with every fate that cuts one, nothing is left.
    pub(crate) fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        if !shared.down.load(Ordering::SeqCst) {
            connections.spawn(serve(client, Arc::clone(&shared)));
        }
    }
}

/// Until either side hangs up, or a fate does.
async fn serve(client: UnixStream, shared: Arc<Shared>) -> io::Result<()> {
    let (from_server, to_server) = UnixStream::connect(&shared.server).await?.into_split();
    let (from_client, to_client) = client.into_split();
    let swallow = Arc::new(AtomicBool::new(false));
    let mut client = Frontend { from_client, to_server, shared, swallow: Arc::clone(&swallow) };
    tokio::select! {
        result = client.run() => result,
        result = back(from_server, to_client, &swallow) => result,
    }
}

/// The answers, until one is swallowed: that is when the connection ends.
async fn back(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, swallow: &AtomicBool) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = server.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        if !swallow.load(Ordering::SeqCst) {
            client.write_all(&bytes[..read]).await?;
        } else if bytes[..read].ends_with(b"Z\0\0\0\x05I") || bytes[..read].ends_with(b"Z\0\0\0\x05T") {
            return Ok(());
        }
    }
}

struct Frontend {
    from_client: OwnedReadHalf,
    to_server: OwnedWriteHalf,
    shared: Arc<Shared>,
    swallow: Arc<AtomicBool>,
}

/// `Int32(80877103)`: whether the server speaks TLS.
pub(crate) const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();

impl Frontend {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            let startup = read_message(&mut self.from_client, false).await?;
            self.to_server.write_all(&startup).await?;
            if startup[4..] != SSL_REQUEST {
                break;
            }
        }
        let mut statements: HashMap<Vec<u8>, String> = HashMap::new();
        loop {
            let message = read_message(&mut self.from_client, true).await?;
            let texts: Vec<_> = message[5..].split(|byte| *byte == 0).collect();
            let executed = match message[0] {
                b'P' => {
                    statements.insert(texts[0].to_vec(), String::from_utf8_lossy(texts[1]).into_owned());
                    None
                }
                b'B' => statements.get(texts[1]).cloned(),
                b'Q' => Some(String::from_utf8_lossy(texts[0]).into_owned()),
                _ => None,
            };
            let fate = executed.and_then(|statement| self.shared.fate_of(&statement));
            let ends_here = message[0] == b'Q';
            match fate {
                None => self.to_server.write_all(&message).await?,
                Some(Fate::First(first)) => {
                    first.await;
                    self.to_server.write_all(&message).await?;
                }
                Some(Fate::CutBefore) => return Ok(()),
                Some(Fate::Silence) => loop {
                    read_message(&mut self.from_client, true).await?;
                },
                Some(Fate::CutUnderway) => {
                    self.to_server.write_all(&message).await?;
                    self.forward_rest(ends_here).await?;
                    return Ok(());
                }
                Some(Fate::CutAfter) => {
                    self.swallow.store(true, Ordering::SeqCst);
                    self.to_server.write_all(&message).await?;
                    self.forward_rest(ends_here).await?;
                    // The other direction ends the connection.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Up to the `Sync` that makes the server answer and commit.
    async fn forward_rest(&mut self, done: bool) -> io::Result<()> {
        let mut done = done;
        while !done {
            let message = read_message(&mut self.from_client, true).await?;
            self.to_server.write_all(&message).await?;
            done = message[0] == b'S';
        }
        Ok(())
    }
}

/// The next whole message.
pub(crate) async fn read_message(from: &mut (impl AsyncRead + Unpin), typed: bool) -> io::Result<Vec<u8>> {
    let mut message = vec![0; if typed { 5 } else { 4 }];
    from.read_exact(&mut message).await?;
    let length = message.last_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length));
    let start = message.len();
    message.resize(start + usize::try_from(length).unwrap().saturating_sub(4), 0);
    from.read_exact(&mut message[start..]).await?;
    Ok(message)
}

/// Where the server listens.
pub(crate) fn socket(server: &PgConnectOptions) -> PathBuf {
    let folder = server.get_socket().expect("the test servers listen on unix sockets");
    folder.join(format!(".s.PGSQL.{}", server.get_port()))
}

impl Shared {
    fn fate_of(&self, statement: &str) -> Option<Fate> {
        let mut script = self.script.lock().unwrap();
        let next = script.front().is_some_and(|(text, _)| statement.contains(text));
        next.then(|| script.pop_front()).flatten().map(|(_, fate)| fate)
    }
}
