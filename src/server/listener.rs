//! Accepting connections: bounded in number, every step with a deadline, and no client in
//! the way of another.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
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
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{drain::Leaving, respond::Body};
use crate::metrics::InFlight;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// hyper counts the idle time between two requests in; OPA polls every two minutes at most
/// by default.
const HEADERS: Duration = Duration::from_secs(180);
/// After an accept failed, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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
    let bound = bound.map_err(|error| io::Error::new(error.kind(), format!("server.{listener} {address}: {error}")))?;
    tracing::info!(listener, address = %bound.local_addr()?, "listening");
    Ok(bound)
}

/// The open connections of a listener.
pub(super) struct Connections {
    slots: Arc<Semaphore>,
    /// Operators are not counted among the clients.
    gauge: Option<IntGauge>,
    open: watch::Sender<usize>,
    /// Whether they are to end now.
    closing: watch::Sender<bool>,
    leaving: Leaving,
}

impl Connections {
    pub(super) fn new(most: usize, gauge: Option<IntGauge>, leaving: Leaving) -> Self {
        let slots = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self { slots, gauge, open: watch::channel(0).0, closing: watch::channel(false).0, leaving }
    }

    /// Accepts for ever.
    pub(super) async fn accept<H, F>(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, handle: H)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let counted = (slot, self.gauge.as_ref().map(InFlight::enter), Open::enter(&self.open));
            let (tls, handle) = (tls.clone(), handle.clone());
            let (leaving, closing) = (self.leaving.clone(), self.closing.subscribe());
            tokio::spawn(async move {
                let _counted = counted;
                let _ = stream.set_nodelay(true);
                if let Some(stream) = secured(stream, tls).await {
                    talk(stream, handle, leaving, closing).await;
                }
            });
        }
    }

    /// Until nobody is connected.
    pub(super) async fn none_left(&self) {
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Ends every connection after the answer that it is sending.
    pub(super) async fn close(self) {
        self.closing.send_replace(true);
        let _ = timeout(LAST_WORDS, self.none_left()).await;
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn secured(stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>) -> Option<Box<dyn Stream>> {
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

/// Serves one connection until its client leaves, until an answer given during the drain
/// has said goodbye, or until all connections are to end.
async fn talk<H, F>(stream: Box<dyn Stream>, handle: H, leaving: Leaving, mut closing: watch::Receiver<bool>)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30));
    let goodbye = Arc::new(Notify::new());
    let said = Arc::clone(&goodbye);
    let service = service_fn(move |request| {
        let (version, leaving, goodbye) = (request.version(), leaving.clone(), Arc::clone(&goodbye));
        let answer = handle(request);
        async move {
            let mut response = answer.await;
            if leaving.has_begun() {
                say_goodbye(version, &mut response, &goodbye);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = either(said.notified(), closing.wait_for(|closing| *closing)) => {
            // What is being answered, or waits, is not cut off by this.
            connection.as_mut().graceful_shutdown();
            connection.await
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

async fn either<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) {
    tokio::select! { _ = one => {}, _ = other => {} }
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
