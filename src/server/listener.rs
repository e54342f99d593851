//! Accepting connections, at most `max_connections` at a time. Each connection runs in its own
//! task, so that no client delays others.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};

use super::{
    Deadlines,
    connection::{self, ConnectionContext, Peer, Transport},
    drain::DrainSignal,
    http2,
    idle_connections::{IdleConnections, Limits},
    options::{ServerTls, Settings},
    service::Service,
    socket::Accept,
    write_timeout::WriteTimeout,
};
use crate::metrics::InFlight;

/// Pause after a failed accept, such as for lack of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Time for evicted connections to close before further ones are evicted.
const EVICTION_INTERVAL: Duration = Duration::from_millis(20);
/// How often idle connections are closed while more are open than a lower limit allows. Those that
/// were asked to close before are closed by then.
const SHRINK_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that are evicted at a time.
const MAX_EVICTION_BATCH: u32 = 64;
/// Time for unsent responses after the drain.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Connections that wait to be accepted. The system reduces it to `net.core.somaxconn`.
const BACKLOG: u32 = 1 << 16;
/// Below this limit a fleet that connects at once is delayed: a client whose SYN is dropped retries
/// after 1, 3, 7 … s.
const RECOMMENDED_BACKLOG: usize = 4096;
const SOMAXCONN_PATH: &str = "/proc/sys/net/core/somaxconn";

/// Binds an address, and logs the one that the system assigned.
pub(super) fn bind(address: SocketAddr, listener: &'static str) -> io::Result<TcpListener> {
    let bound = match listen(address) {
        // `[::]` on a machine without IPv6.
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    };
    let bound = bound
        .map_err(|error| io::Error::new(error.kind(), bind_error(&error, address, listener)))?;
    tracing::info!(listener, address = %bound.local_addr()?, "listening");
    Ok(bound)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    // A restart must not wait for connections of the last process in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Warns if the listen backlog of the system is smaller than the number of clients that may
/// connect at once.
pub(super) fn warn_if_backlog_is_small(max_connections: usize) {
    let limit = fs::read_to_string(SOMAXCONN_PATH)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    if let Some(limit) = limit.filter(|limit| is_backlog_small(*limit, max_connections)) {
        tracing::warn!(
            limit,
            "net.core.somaxconn limits the listen backlog; raise it to {RECOMMENDED_BACKLOG} or more (sysctl), \
             or connections are delayed by seconds when a fleet connects at once"
        );
    }
}

fn is_backlog_small(limit: usize, max_connections: usize) -> bool {
    limit < max_connections.min(RECOMMENDED_BACKLOG)
}

/// Why an address can't be bound, and the configuration key to change.
fn bind_error(error: &io::Error, address: SocketAddr, listener: &str) -> String {
    let key = if listener == "admin" {
        "server.admin"
    } else {
        "server.listen"
    };
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop the process that listens there, or configure another address"
        }
        io::ErrorKind::AddrNotAvailable => "; configure an address of this machine",
        io::ErrorKind::PermissionDenied => {
            "; configure a port of 1024 or above, or grant the process CAP_NET_BIND_SERVICE"
        }
        _ => "",
    };
    format!("{key} {address}: {error}{hint}")
}

/// The open connections of a listener.
pub(super) struct Connections {
    permits: Arc<Semaphore>,
    /// The number of permits at the start.
    max_connections: usize,
    /// The metric of open connections; `None` for the admin API, which it does not count.
    gauge: Option<IntGauge>,
    open: watch::Sender<usize>,
    idle: IdleConnections,
    drain: DrainSignal,
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.idle.abort_all();
    }
}

impl Connections {
    pub(super) fn new(
        max_connections: usize,
        deadlines: Deadlines,
        gauge: Option<IntGauge>,
        drain: DrainSignal,
    ) -> Self {
        let max_connections = max_connections.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(max_connections));
        let open = watch::channel(0).0;
        let idle = IdleConnections::new(Limits::new(
            max_connections,
            http2::MAX_CONCURRENT_STREAMS as usize,
            deadlines,
        ));
        Self {
            permits,
            max_connections,
            gauge,
            open,
            idle,
            drain,
        }
    }

    /// Accepts connections and enforces their deadlines, until the future is dropped. `tls` is asked
    /// at each connection.
    pub(super) async fn accept<L: Accept, V: Service>(
        &self,
        listener: L,
        tls: impl Fn() -> Option<ServerTls>,
        service: Arc<V>,
    ) where
        Box<WriteTimeout<L::Stream>>: Transport,
    {
        tokio::join!(
            self.accept_connections(listener, tls, service),
            self.idle.enforce_deadlines()
        );
    }

    async fn accept_connections<L: Accept, V: Service>(
        &self,
        listener: L,
        tls: impl Fn() -> Option<ServerTls>,
        service: Arc<V>,
    ) where
        Box<WriteTimeout<L::Stream>>: Transport,
    {
        let mut failures = 0_u32;
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "accepting a connection failed");
                    }
                    sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            failures = 0;
            // Other connections are evicted only when one waits to be served.
            let permit = self.permit().await;
            let counted = (
                self.gauge.as_ref().map(InFlight::enter),
                OpenConnection::enter(&self.open),
                // Released last, so that the gauge never exceeds `max_connections`.
                permit,
            );
            let (tls, service) = (tls(), Arc::clone(&service));
            let context = self.context(address);
            let slot = Arc::clone(&context.peer.slot);
            let task = tokio::spawn(async move {
                let _counted = counted;
                connection::serve_connection(stream, tls, service, context).await;
            });
            slot.set_task(task.abort_handle());
        }
    }

    fn context(&self, address: IpAddr) -> Box<ConnectionContext> {
        let peer = Peer {
            address,
            certificate: None,
            slot: self.idle.register(),
            is_over_limit: false,
        };
        Box::new(ConnectionContext {
            peer,
            drain: self.drain.clone(),
        })
    }

    /// Waits for a permit for one more connection. Meanwhile it evicts idle connections: one at
    /// first, and more if that is slow to close.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        let acquire = Arc::clone(&self.permits).acquire_owned();
        tokio::pin!(acquire);
        let mut batch = 1;
        loop {
            let evicted = (0..batch).take_while(|_| self.idle.evict_oldest()).count();
            match timeout(EVICTION_INTERVAL, acquire.as_mut()).await {
                Ok(permit) => return permit.ok(),
                Err(_) if evicted > 0 => batch = MAX_EVICTION_BATCH.min(batch * 2),
                Err(_) => {}
            }
        }
    }

    /// Follows changes of `server.max_connections` until the future is dropped.
    pub(super) async fn follow_limit(&self, mut settings: watch::Receiver<Arc<Settings>>) {
        let mut permits = self.max_connections;
        loop {
            let wanted = settings.borrow_and_update().max_connections;
            let wanted = wanted.min(Semaphore::MAX_PERMITS);
            self.idle.set_max_connections(wanted);
            self.permits.add_permits(wanted.saturating_sub(permits));
            permits = permits.max(wanted);
            tokio::select! {
                () = self.remove_permits(permits - wanted, wanted), if permits > wanted => {
                    permits = wanted;
                }
                changed = settings.changed() => if changed.is_err() {
                    // The owner of the settings is gone, so nothing can change.
                    return std::future::pending().await;
                },
            }
        }
    }

    /// Removes permits as they become free: while more than `wanted` connections are open, idle ones
    /// are closed, and no other one is accepted. Cancel-safe: then none is removed.
    async fn remove_permits(&self, count: usize, wanted: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let acquire = Arc::clone(&self.permits).acquire_many_owned(count);
        tokio::pin!(acquire);
        loop {
            let above = self.open.borrow().saturating_sub(wanted);
            let _ = (0..above).take_while(|_| self.idle.evict_oldest()).count();
            if let Ok(permits) = timeout(SHRINK_INTERVAL, acquire.as_mut()).await {
                // The semaphore is never closed.
                if let Ok(permits) = permits {
                    permits.forget();
                }
                return;
            }
        }
    }

    /// Completes when no connection is open.
    pub(super) async fn wait_until_empty(&self) {
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Closes every connection after its current response, or after [`CLOSE_GRACE`].
    pub(super) async fn close(self) {
        self.idle.close_all();
        let _ = timeout(CLOSE_GRACE, self.wait_until_empty()).await;
    }
}

/// Counts an open connection until it is dropped.
struct OpenConnection(watch::Sender<usize>);

impl OpenConnection {
    fn enter(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener without an explicit backlog lets 128 connections wait.
    #[tokio::test]
    async fn the_listen_backlog_is_the_systems_limit() {
        let allowed: usize = fs::read_to_string(SOMAXCONN_PATH)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap(), "data").unwrap();
        let mut waiting = Vec::new();
        for number in 0..allowed.min(300) {
            let connecting = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
            let connected = timeout(Duration::from_secs(60), connecting).await;
            waiting.push(
                connected
                    .unwrap_or_else(|_| panic!("the backlog is full at {number} connections"))
                    .unwrap(),
            );
        }
    }

    #[test]
    fn a_backlog_below_max_connections_is_small() {
        assert!(is_backlog_small(128, 20_000) && is_backlog_small(128, 200));
        assert!(!is_backlog_small(4096, 20_000) && !is_backlog_small(128, 100));
    }
}
