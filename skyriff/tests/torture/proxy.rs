//! Between a node and the store: passes bytes on, until told to swallow the store's answers or to cut.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use skyriff_postgres::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
};

use crate::EVENTS;

pub struct Proxy {
    server: Server,
    swallow: Arc<AtomicBool>,
    cut: watch::Sender<u64>,
}

impl Proxy {
    pub fn start(folder: &Path, number: usize, behind: &Server) -> Result<Self> {
        let server = Server { socket_folder: folder.join(format!("proxy-{number}")) };
        fs::create_dir_all(&server.socket_folder)?;
        let name = ".s.PGSQL.5432";
        let listener = UnixListener::bind(server.socket_folder.join(name))?;
        let (target, swallow) = (behind.socket_folder.join(name), Arc::new(AtomicBool::new(false)));
        let (cut, cuts) = watch::channel(0);
        let swallowing = Arc::clone(&swallow);
        tokio::spawn(async move {
            while let Ok((node, _)) = listener.accept().await {
                let (target, swallow, mut cuts) = (target.clone(), Arc::clone(&swallowing), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(store) = UnixStream::connect(target).await else { return };
                    tokio::select! {
                        _ = pass(node, store, &swallow) => {}
                        Ok(()) = cuts.changed() => {}
                    }
                });
            }
        });
        Ok(Self { server, swallow, cut })
    }

    pub fn url(&self) -> String {
        self.server.url(EVENTS)
    }

    /// From now on the store hears the node, and the node does not hear the store.
    pub fn swallow(&self, swallow: bool) {
        self.swallow.store(swallow, Ordering::SeqCst);
    }

    /// Cut every connection that there is now.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

async fn pass(node: UnixStream, store: UnixStream, swallow: &AtomicBool) -> std::io::Result<()> {
    let (mut from_node, mut to_node) = node.into_split();
    let (mut from_store, mut to_store) = store.into_split();
    let up = async { tokio::io::copy(&mut from_node, &mut to_store).await.map(|_| ()) };
    let down = async {
        let mut buffer = vec![0; 64 * 1_024];
        loop {
            let count = from_store.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            if !swallow.load(Ordering::SeqCst) {
                to_node.write_all(&buffer[..count]).await?;
            }
        }
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}
