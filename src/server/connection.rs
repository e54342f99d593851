//! One connection: TLS, protocol detection, and how it is closed.

use std::{
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, DATE, HeaderValue},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Deadlines, date, drain::DrainSignal, http1, http2, idle_connections::Slot,
    prefixed_stream::PrefixedStream, response_body::ResponseBody, service::Service,
    write_timeout::WriteTimeout,
};

/// A byte stream, with TLS or without.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Transport for S {}

/// The client of a request, and its connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    pub(super) slot: Arc<Slot>,
    /// The request exceeds the limit of concurrent requests and is refused.
    pub(super) is_over_limit: bool,
}

/// Everything that decides when a connection is closed.
#[derive(Debug)]
pub(super) struct ConnectionContext {
    pub(super) peer: Peer,
    pub(super) deadlines: Deadlines,
    pub(super) drain: DrainSignal,
    /// True once all connections have to close.
    pub(super) closing: watch::Receiver<bool>,
    /// Notified when a response asks for the connection to be closed.
    pub(super) close_requested: Arc<Notify>,
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloseReason {
    /// The client exceeded a deadline; the connection is closed without a grace period.
    Overdue,
    /// Another connection needs its slot.
    Evicted,
    /// The server is shutting down, or a response asked for it.
    Shutdown,
}

/// Serves a connection until the client closes it, a deadline passes, it is evicted, a response
/// asks for it to be closed, or the server shuts down.
pub(super) async fn serve_connection<V: Service>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    service: Arc<V>,
    mut context: ConnectionContext,
) {
    let stream = WriteTimeout::new(
        stream,
        context.deadlines.progress,
        Arc::clone(&context.peer.slot),
    );
    let handshake = context.deadlines.handshake;
    let negotiated = tokio::select! {
        negotiated = negotiate(stream, tls, handshake) => negotiated,
        // No request has been sent, so none is cut off.
        _ = context.close_reason() => None,
    };
    match negotiated {
        Some((true, stream)) => http2::serve(stream, service, context).await,
        Some((false, stream)) => http1::serve(stream, service, context).await,
        None => {}
    }
}

/// Completes the TLS handshake and detects the protocol: whether it is HTTP/2, and the stream.
async fn negotiate(
    stream: WriteTimeout<TcpStream>,
    tls: Option<TlsAcceptor>,
    handshake: Duration,
) -> Option<(bool, PrefixedStream<Box<dyn Transport>>)> {
    let stream: Box<dyn Transport> = match tls {
        None => Box::new(stream),
        Some(tls) => match timeout(handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake");
                return None;
            }
            Err(_) => return None,
        },
    };
    PrefixedStream::detect(stream).await.ok()
}

impl ConnectionContext {
    /// Runs a connection and closes it: gracefully by `shut_down`, which lets requests in progress
    /// finish, and by force if it does not close within its grace period.
    pub(super) async fn run_until_closed<C: Future>(
        mut self,
        mut connection: Pin<&mut C>,
        shut_down: impl Fn(Pin<&mut C>),
    ) {
        let reason = tokio::select! {
            _ = connection.as_mut() => return,
            reason = self.close_reason() => reason,
        };
        if reason == CloseReason::Overdue {
            return;
        }
        let grace = match reason {
            CloseReason::Evicted => self.peer.slot.close_grace(),
            CloseReason::Overdue | CloseReason::Shutdown => self.deadlines.close_grace,
        };
        shut_down(connection.as_mut());
        let forced_close = pin!(self.force_close(reason, grace));
        tokio::select! {
            biased;
            _ = connection => {}
            () = forced_close => {}
        }
    }

    async fn close_reason(&mut self) -> CloseReason {
        tokio::select! {
            () = self.peer.slot.overdue() => CloseReason::Overdue,
            () = self.peer.slot.evicted() => CloseReason::Evicted,
            () = self.close_requested.notified() => CloseReason::Shutdown,
            _ = self.closing.wait_for(|closing| *closing) => CloseReason::Shutdown,
        }
    }

    /// Completes when a connection that was shut down has to be closed by force. It does not cut
    /// off requests that are being answered or held, nor responses that are being sent.
    async fn force_close(&self, reason: CloseReason, grace: Duration) {
        let slot = &self.peer.slot;
        let finished = async {
            let mut pause = grace;
            loop {
                sleep(pause).await;
                pause = self.deadlines.close_grace;
                let may_close = if reason == CloseReason::Evicted {
                    slot.is_evictable()
                } else {
                    slot.is_idle()
                };
                if may_close {
                    return;
                }
            }
        };
        tokio::select! {
            () = slot.overdue() => {}
            () = finished => {}
        }
    }
}

/// Completes the headers of a response, and drops the body where none may be sent: a response to
/// HEAD has the headers of the one to GET (RFC 9110 §9.3.2).
pub(super) fn complete_headers(method: &Method, response: &mut Response<ResponseBody>) {
    if response.status() == StatusCode::NOT_MODIFIED {
        *response.body_mut() = ResponseBody::empty();
    } else {
        let size = response.body().size();
        response.headers_mut().insert(CONTENT_LENGTH, size.into());
    }
    if method == Method::HEAD {
        *response.body_mut() = ResponseBody::empty();
    }
    response.headers_mut().insert(DATE, date::now());
}

/// The `Connection` header of the last response on a connection.
pub(super) const CONNECTION_CLOSE: HeaderValue = HeaderValue::from_static("close");
