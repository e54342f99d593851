//! The network between the gateway and a registry, which can hold its breath and spoil what
//! passes.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinSet,
};

/// Passes bytes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// As references name it.
    pub(crate) host: String,
    spoil: Arc<Spoil>,
    open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

/// Which answers get one wrong bit.
#[derive(Debug)]
struct Spoil {
    part: String,
    left: AtomicUsize,
}

impl Proxy {
    /// In front of `host`. The first `times` answers to requests whose path contains `part`
    /// arrive with a flipped bit in their body.
    pub(crate) async fn spoiling(host: &str, part: &str, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let spoil = Arc::new(Spoil { part: part.to_owned(), left: AtomicUsize::new(times) });
        let (open, opened) = watch::channel(true);
        let mut tasks = JoinSet::new();
        let (upstream, shared) = (host.to_owned(), Arc::clone(&spoil));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (upstream, shared, mut opened) = (upstream.clone(), Arc::clone(&shared), opened.clone());
                connections.spawn(async move {
                    opened.wait_for(|open| *open).await.unwrap();
                    let Ok(server) = TcpStream::connect(upstream).await else { return };
                    pass(client, server, &shared).await;
                });
            }
        });
        Self { host: address, spoil, open, _tasks: tasks }
    }

    /// In front of `host`, changing nothing.
    pub(crate) async fn before(host: &str) -> Self {
        Self::spoiling(host, "", 0).await
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
        self.spoil.left.load(Ordering::SeqCst)
    }
}

async fn pass(client: TcpStream, server: TcpStream, spoil: &Spoil) {
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let armed = AtomicBool::new(false);
    let requests = copy(from_client, to_server, |bytes| {
        if String::from_utf8_lossy(bytes).contains(&spoil.part) {
            let taken = spoil.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            armed.store(taken.is_ok(), Ordering::SeqCst);
        }
    });
    let answers = copy(from_server, to_client, |bytes| {
        let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |end| end + 4);
        // Where the head comes alone, the body comes next.
        if let Some(first) = bytes.get_mut(head).filter(|_| armed.load(Ordering::SeqCst)) {
            *first ^= 1;
            armed.store(false, Ordering::SeqCst);
        }
    });
    tokio::join!(requests, answers);
}

async fn copy(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mut change: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 {
            break;
        }
        change(&mut buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
}
