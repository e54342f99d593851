//! The network between the gateway and a registry, which can be slow, hold its breath, and
//! spoil what passes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// Passes bytes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// The host as references name it.
    pub(crate) host: String,
    network: Arc<Network>,
    open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

/// The effect on answers.
#[derive(Debug, Default)]
struct Network {
    /// Before every 64 KiB.
    pause: Duration,
    /// Requests whose path contains `part` are answered with a flipped bit …
    part: String,
    /// … as often as this.
    left: AtomicUsize,
}

impl Proxy {
    async fn over(host: &str, network: Network) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let network = Arc::new(network);
        let (open, opened) = watch::channel(true);
        let mut tasks = JoinSet::new();
        let (upstream, shared) = (host.to_owned(), Arc::clone(&network));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (upstream, shared, mut opened) =
                    (upstream.clone(), Arc::clone(&shared), opened.clone());
                connections.spawn(async move {
                    opened.wait_for(|open| *open).await.unwrap();
                    let Ok(server) = TcpStream::connect(upstream).await else {
                        return;
                    };
                    pass(client, server, &shared).await;
                });
            }
        });
        Self {
            host: address,
            network,
            open,
            _tasks: tasks,
        }
    }

    /// In front of `host`. The first `times` answers to requests whose path contains `part`
    /// arrive with a flipped bit in their body.
    pub(crate) async fn spoiling(host: &str, part: &str, times: usize) -> Self {
        Self::over(
            host,
            Network {
                part: part.to_owned(),
                left: times.into(),
                ..Network::default()
            },
        )
        .await
    }

    /// In front of `host`, with a pause before every 64 KiB of answers.
    pub(crate) async fn slow(host: &str, pause: Duration) -> Self {
        Self::over(
            host,
            Network {
                pause,
                ..Network::default()
            },
        )
        .await
    }

    /// In front of `host`, changing nothing.
    pub(crate) async fn before(host: &str) -> Self {
        Self::over(host, Network::default()).await
    }

    /// New connections get no further until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn release(&self) {
        self.open.send_replace(true);
    }

    /// How many answers are still to be spoilt.
    pub(crate) fn left(&self) -> usize {
        self.network.left.load(Ordering::SeqCst)
    }
}

async fn pass(client: TcpStream, server: TcpStream, network: &Network) {
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let armed = AtomicBool::new(false);
    let requests = copy(from_client, to_server, Duration::ZERO, |bytes| {
        if String::from_utf8_lossy(bytes).contains(&network.part) {
            let taken = network
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            armed.store(taken.is_ok(), Ordering::SeqCst);
        }
    });
    let answers = copy(from_server, to_client, network.pause, |bytes| {
        let head = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .map_or(0, |end| end + 4);
        // Where the head comes alone, the body comes next.
        if let Some(first) = bytes.get_mut(head).filter(|_| armed.load(Ordering::SeqCst)) {
            *first ^= 1;
            armed.store(false, Ordering::SeqCst);
        }
    });
    tokio::join!(requests, answers);
}

async fn copy(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    pause: Duration,
    mut change: impl FnMut(&mut [u8]),
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 {
            break;
        }
        change(&mut buffer[..length]);
        if !pause.is_zero() {
            sleep(pause).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
}
