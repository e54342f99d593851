//! Accepting connections: bounded in number, every step with a deadline, and no client in
//! the way of another.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{Request, Response};
use prometheus::IntGauge;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Deadlines,
    connection::{self, Caller, Context},
    drain::Leaving,
    http2,
    idle_connections::{Idle, Limits},
    response_body::Content,
};
use crate::metrics::InFlight;

/// After an accept failed, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that was dismissed has before more are, while all places are taken.
const DISMISSAL: Duration = Duration::from_millis(20);
/// So many at a time at most.
const DISMISSALS: u32 = 64;
/// For what is still being sent when everybody should be gone.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Connections that wait to be accepted; the system takes it for its own limit, where that is
/// less.
const BACKLOG: u32 = 1 << 16;
/// Where the system's limit is less than this, a fleet that connects at once is kept waiting:
/// whoever finds no room tries again after 1, 3, 7 … s.
const BACKLOG_WANTED: usize = 4096;
const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";

/// Takes an address, and logs the real one.
pub(super) fn bind(address: SocketAddr, listener: &'static str) -> io::Result<TcpListener> {
    let bound = match listen(address) {
        // All addresses, on a machine without IPv6.
        Err(error)
            if address.is_ipv6() && address.ip().is_unspecified() && error.kind() != io::ErrorKind::AddrInUse =>
        {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    };
    let bound = bound.map_err(|error| io::Error::new(error.kind(), refused(&error, address, listener)))?;
    tracing::info!(listener, address = %bound.local_addr()?, "listening");
    Ok(bound)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    // A restart must not wait for the connections of the last run to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Tells when the system lets fewer connections wait to be accepted than may come at once.
pub(super) fn tell_of_a_small_backlog(max_connections: usize) {
    let limit = fs::read_to_string(SOMAXCONN).ok().and_then(|text| text.trim().parse().ok());
    if let Some(limit) = limit.filter(|limit| is_small(*limit, max_connections)) {
        tracing::warn!(
            limit,
            "net.core.somaxconn lets so few clients wait to be accepted; raise it to {BACKLOG_WANTED} \
             or more (sysctl), or a fleet that connects at once is kept waiting for seconds"
        );
    }
}

fn is_small(limit: usize, max_connections: usize) -> bool {
    limit < max_connections.min(BACKLOG_WANTED)
}

/// Why an address can't be taken, with the key to change.
fn refused(error: &io::Error, address: SocketAddr, listener: &str) -> String {
    let key = if listener == "admin" { "server.admin" } else { "server.listen" };
    let way_out = match error.kind() {
        io::ErrorKind::AddrInUse => "; stop what listens there, or write another address",
        io::ErrorKind::AddrNotAvailable => "; write an address that this machine has",
        io::ErrorKind::PermissionDenied => "; write a port from 1024 up, or give the process the right to take it",
        _ => "",
    };
    format!("{key} {address}: {error}{way_out}")
}

/// The open connections of a listener.
pub(super) struct Connections {
    slots: Arc<Semaphore>,
    /// Operators are not counted among the clients.
    gauge: Option<IntGauge>,
    open: watch::Sender<usize>,
    idle: Idle,
    deadlines: Deadlines,
    /// Whether they are to end now.
    closing: watch::Sender<bool>,
    leaving: Leaving,
    /// Those that still run end with this.
    tasks: Mutex<JoinSet<()>>,
}

impl Connections {
    pub(super) fn new(most: usize, deadlines: Deadlines, gauge: Option<IntGauge>, leaving: Leaving) -> Self {
        let slots = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let (open, closing) = (watch::channel(0).0, watch::channel(false).0);
        let idle = Idle::new(Limits::new(most, http2::STREAMS as usize, deadlines));
        Self { slots, gauge, open, idle, deadlines, closing, leaving, tasks: Mutex::default() }
    }

    /// Accepts for ever.
    pub(super) async fn accept<H, F>(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, handle: H)
    where
        H: Fn(Request<()>, Caller) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Content>> + Send + 'static,
    {
        let tls = tls.map(TlsAcceptor::from);
        let mut failures = 0_u32;
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "a connection can't be accepted");
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            failures = 0;
            // Only now that somebody wants it.
            let slot = self.slot().await;
            let counted = (slot, self.gauge.as_ref().map(InFlight::enter), Open::enter(&self.open));
            let (tls, handle, context) = (tls.clone(), handle.clone(), self.context(peer.ip()));
            self.own(async move {
                let _counted = counted;
                let _ = stream.set_nodelay(true);
                connection::run(stream, tls, handle, context).await;
            });
        }
    }

    fn context(&self, address: IpAddr) -> Context {
        // An IPv4 client of a socket that listens on both.
        let caller = Caller { address: address.to_canonical(), seat: self.idle.seat(), is_too_many: false };
        Context {
            caller,
            deadlines: self.deadlines,
            leaving: self.leaving.clone(),
            closing: self.closing.subscribe(),
            last_response: Arc::new(Notify::new()),
        }
    }

    fn own(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended need no owner any more.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(connection);
    }

    /// A place for one more connection. While there is none, those who get nothing done make
    /// room: one, and more of them if the first ones take their time to end.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Some(slot);
        }
        let acquire = Arc::clone(&self.slots).acquire_owned();
        tokio::pin!(acquire);
        let mut batch = 1;
        loop {
            let dismissed = (0..batch).take_while(|_| self.idle.dismiss_one()).count();
            match timeout(DISMISSAL, acquire.as_mut()).await {
                Ok(slot) => return slot.ok(),
                Err(_) if dismissed > 0 => batch = DISMISSALS.min(batch * 2),
                Err(_) => {}
            }
        }
    }

    /// Until nobody is connected.
    pub(super) async fn none_left(&self) {
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Ends every connection after the answer that it is sending, or after a moment.
    pub(super) async fn close(self) {
        self.closing.send_replace(true);
        let _ = timeout(LAST_WORDS, self.none_left()).await;
    }
}

/// Counts for as long as it lives.
struct Open(watch::Sender<usize>);

impl Open {
    fn enter(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tokio's own listener lets 128 wait.
    #[tokio::test]
    async fn as_many_as_the_system_allows_wait_to_be_accepted() {
        let allowed: usize = fs::read_to_string(SOMAXCONN).unwrap().trim().parse().unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap(), "data").unwrap();
        let mut waiting = Vec::new();
        for number in 0..allowed.min(300) {
            let connecting = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
            let connected = timeout(Duration::from_secs(60), connecting).await;
            waiting.push(connected.unwrap_or_else(|_| panic!("{number} wait already")).unwrap());
        }
    }

    #[test]
    fn the_backlog_is_small_where_the_system_allows_less_than_may_come() {
        assert!(is_small(128, 20_000) && is_small(128, 200));
        assert!(!is_small(4096, 20_000) && !is_small(128, 100));
    }
}
