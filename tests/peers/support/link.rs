//! The network between a gateway and the engine, which can be cut and slowed.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Passes bytes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    /// The port that leads to the server.
    pub(crate) port: u16,
    network: watch::Sender<Network>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Network {
    is_cut: bool,
    /// In each direction.
    delay: Duration,
}

impl Link {
    /// A path to a server on loopback.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let network = watch::Sender::new(Network::default());
        let (mut tasks, shared) = (JoinSet::new(), network.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let network = shared.subscribe();
                connections.spawn(pass(client, port, network));
            }
        });
        Self {
            port: own,
            network,
            _tasks: tasks,
        }
    }

    /// Closes all connections, and new ones at once, until [`Self::restore`].
    pub(crate) fn cut(&self) {
        self.network.send_modify(|network| network.is_cut = true);
    }

    pub(crate) fn restore(&self) {
        self.network.send_modify(|network| network.is_cut = false);
    }

    /// Delays everything by this time, in each direction.
    pub(crate) fn slow(&self, delay: Duration) {
        self.network.send_modify(|network| network.delay = delay);
    }
}

async fn pass(client: TcpStream, port: u16, mut network: watch::Receiver<Network>) {
    if network.borrow().is_cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let (requests, answers) = (network.clone(), network.clone());
    tokio::select! {
        () = copy(from_client, to_server, requests) => {}
        () = copy(from_server, to_client, answers) => {}
        _ = network.wait_for(|network| network.is_cut) => {}
    }
}

/// Each piece takes the delay of the moment in which it arrives, and later pieces do not wait for earlier ones to
/// take theirs.
async fn copy(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    network: watch::Receiver<Network>,
) {
    let (sender, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let read = async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let arrival = Instant::now() + network.borrow().delay;
            let bytes = buffer[..length].to_vec();
            if sender.send((arrival, bytes)).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((arrival, bytes)) = on_the_way.recv().await {
            sleep_until(arrival).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(read, write);
}
