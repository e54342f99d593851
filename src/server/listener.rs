//! Accepting connections: bounded in number, every step with a deadline, and no client in
//! the way of another.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{
    Request, Response, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use prometheus::IntGauge;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    drain::Leaving,
    idle::{Idle, Seat},
    patient::Patient,
    respond::Body,
};
use crate::metrics::InFlight;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the first request. Later ones may be long in coming.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// hyper counts the idle time between two requests in; OPA polls every two minutes at most
/// by default.
const HEADERS: Duration = Duration::from_secs(180);
/// After an accept failed, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take nothing of its answer.
const STUCK: Duration = Duration::from_secs(60);
/// How often an idle connection is closed while all places are taken.
const DISMISSAL: Duration = Duration::from_millis(100);
/// Request lines and headers together.
const HEADER_BYTES: usize = 64 << 10;
/// A balancer sends many long polls over one connection.
const STREAMS: u32 = 4096;
/// For what is still being sent when everybody should be gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Takes an address, and logs the real one.
pub(super) async fn bind(address: SocketAddr, listener: &'static str) -> io::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        // All addresses, on a machine without IPv6.
        Err(error)
            if address.is_ipv6() && address.ip().is_unspecified() && error.kind() != io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let bound = bound.map_err(|error| io::Error::new(error.kind(), refused(&error, address, listener)))?;
    tracing::info!(listener, address = %bound.local_addr()?, "listening");
    Ok(bound)
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
    /// Whether they are to end now.
    closing: watch::Sender<bool>,
    leaving: Leaving,
    /// Those that still run end with this.
    tasks: Mutex<JoinSet<()>>,
}

impl Connections {
    pub(super) fn new(most: usize, gauge: Option<IntGauge>, leaving: Leaving) -> Self {
        let slots = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let (open, closing) = (watch::channel(0).0, watch::channel(false).0);
        Self { slots, gauge, open, idle: Idle::default(), closing, leaving, tasks: Mutex::default() }
    }

    /// Accepts for ever.
    pub(super) async fn accept<H, F>(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, handle: H)
    where
        H: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut failures = 0_u32;
        loop {
            let slot = self.slot().await;
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
            let counted = (slot, self.gauge.as_ref().map(InFlight::enter), Open::enter(&self.open));
            let (tls, handle) = (tls.clone(), handle.clone());
            let handle = move |request| handle(request, peer.ip());
            let (leaving, closing) = (self.leaving.clone(), self.closing.subscribe());
            let seat = self.idle.seat();
            self.own(async move {
                let _counted = counted;
                let _ = stream.set_nodelay(true);
                if let Some(stream) = secured(stream, tls).await {
                    talk(stream, handle, seat, leaving, closing).await;
                }
            });
        }
    }

    fn own(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended need no owner any more.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(connection);
    }

    /// A place for one more connection. While there is none, those who want nothing make room.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let acquire = Arc::clone(&self.slots).acquire_owned();
        tokio::pin!(acquire);
        loop {
            match timeout(DISMISSAL, acquire.as_mut()).await {
                Ok(slot) => return slot.ok(),
                Err(_) => self.idle.dismiss_one(),
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

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn secured(stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>) -> Option<Box<dyn Stream>> {
    let stream = Patient::new(stream, STUCK);
    let Some(tls) = tls else { return Some(Box::new(stream)) };
    match timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake");
            None
        }
        Err(_) => None,
    }
}

/// Serves one connection until its client leaves or asks nothing, until its place is needed,
/// until an answer given during the drain has said goodbye, or until all are to end.
async fn talk<H, F>(
    stream: Box<dyn Stream>,
    handle: H,
    seat: Arc<Seat>,
    leaving: Leaving,
    mut closing: watch::Receiver<bool>,
) where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30));
    let goodbye = Arc::new(Notify::new());
    let (said, asking) = (Arc::clone(&goodbye), Arc::clone(&seat));
    let service = service_fn(move |request| {
        let (version, leaving, goodbye) = (request.version(), leaving.clone(), Arc::clone(&goodbye));
        let busy = asking.busy();
        let answer = handle(request);
        async move {
            let _busy = busy;
            let mut response = answer.await;
            if leaving.has_begun() {
                say_goodbye(version, &mut response, &goodbye);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    tokio::pin!(connection);
    let silence = sleep(FIRST_REQUEST);
    tokio::pin!(silence);
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = silence.as_mut(), if !silence.is_elapsed() => {
                if !seat.has_asked() {
                    return;
                }
            }
            () = any_of(said.notified(), seat.dismissed(), closing.wait_for(|closing| *closing)) => {
                // What is being answered, or waits, is not cut off by this.
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// HTTP/1 says it in the answer; HTTP/2 in a frame for the whole connection (GOAWAY).
fn say_goodbye(version: Version, response: &mut Response<Body>, goodbye: &Notify) {
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    } else {
        goodbye.notify_one();
    }
}

async fn any_of<A, B, C>(one: impl Future<Output = A>, two: impl Future<Output = B>, three: impl Future<Output = C>) {
    tokio::select! { _ = one => {}, _ = two => {}, _ = three => {} }
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
