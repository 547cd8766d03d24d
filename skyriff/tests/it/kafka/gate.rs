//! A way to a broker that can be closed, for those who go through it and for nobody else.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Larger than any answer of a broker here.
const FRAME_MAX: usize = 64 * 1_024 * 1_024;

/// Listens, and passes everything on to a broker on this machine. Dropped, it is closed for good.
pub(super) struct Gate {
    address: String,
    open: Arc<watch::Sender<bool>>,
    listening: JoinHandle<()>,
}

impl Gate {
    /// Open, before the broker at `127.0.0.1:PORT`.
    pub(super) async fn before(broker: &str) -> Self {
        let broker_port: u16 = broker.rsplit_once(':').unwrap().1.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(watch::Sender::new(true));
        let is_open = open.subscribe();
        let listening = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // Let in and hung up on: as much as nobody there.
                if *is_open.borrow() {
                    tokio::spawn(pass(client, broker_port, port, is_open.clone()));
                }
            }
        });
        Self { address: format!("127.0.0.1:{port}"), open, listening }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    /// Cut everybody off.
    pub(super) fn close(&self) {
        self.open.send_replace(false);
    }

    pub(super) fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.listening.abort();
        self.close();
    }
}

async fn pass(client: TcpStream, broker_port: u16, port: u16, mut is_open: watch::Receiver<bool>) {
    let Ok(broker) = TcpStream::connect(("127.0.0.1", broker_port)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    tokio::select! {
        () = there(from_client, to_broker) => {}
        () = back(from_broker, to_client, broker_port, port) => {}
        _ = is_open.wait_for(|open| !open) => {}
    }
}

async fn there(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    tokio::io::copy(&mut from, &mut to).await.ok();
}

/// Answer by answer: wherever one says that the broker is at its port, it says that it is at ours. Otherwise clients would
/// pass us by as soon as they had asked who is there.
async fn back(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, broker_port: u16, port: u16) {
    let at = |port: u16| [b"127.0.0.1".as_slice(), &u32::from(port).to_be_bytes()].concat();
    let (broker, ours) = (at(broker_port), at(port));
    while let Ok(length) = from.read_u32().await {
        let mut frame = vec![0; usize::try_from(length).unwrap().min(FRAME_MAX)];
        if from.read_exact(&mut frame).await.is_err() {
            return;
        }
        let mut start = 0;
        while let Some(found) = frame[start..].windows(broker.len()).position(|bytes| bytes == broker) {
            start += found;
            frame[start..start + ours.len()].copy_from_slice(&ours);
        }
        let passed = async {
            to.write_u32(length).await?;
            to.write_all(&frame).await
        };
        if passed.await.is_err() {
            return;
        }
    }
}
