//! One connection: TLS, protocol detection, and how it is closed.

use std::{future::poll_fn, io, net::IpAddr, pin::Pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use hyper::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, DATE, HeaderValue},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    close_signal::CloseReason, date, drain::DrainSignal, fast_path, http1, http2,
    idle_connections::Slot, options::ServerTls, prefixed_stream::PrefixedStream,
    refusal::RefusalLog, response_body::ResponseBody, service::Service,
    write_timeout::WriteTimeout,
};
use crate::access::CertificateIdentity;

/// A byte stream, with TLS or without.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket, if the bytes are sent as they are.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Transport for Box<WriteTimeout<TcpStream>> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref())
    }
}

impl Transport for Box<WriteTimeout<UnixStream>> {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Transport for Box<TlsStream<WriteTimeout<S>>> {}
#[cfg(any(test, fuzzing))]
impl Transport for WriteTimeout<tokio::io::DuplexStream> {}
impl<S: Transport> Transport for PrefixedStream<S> {}

/// The client of a request, and its connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// The identity in the client's certificate, if it has sent one. It was issued by an authority
    /// of `server.tls.client_ca`, and may have expired since.
    pub(super) certificate: Option<Arc<CertificateIdentity>>,
    pub(super) slot: Arc<Slot>,
    /// The request exceeds the limit of concurrent requests and is refused.
    pub(super) is_over_limit: bool,
}

/// The client of a connection, and what decides when the connection is closed. It is boxed while the
/// connection is on the fast path: the futures that hand it on would each keep a copy.
#[derive(Debug)]
pub(super) struct ConnectionContext {
    pub(super) peer: Peer,
    pub(super) drain: DrainSignal,
}

/// Serves a connection until the client closes it, a deadline passes, it is evicted, a response
/// asks for it to be closed, or the server shuts down.
pub(super) async fn serve_connection<S, V: Service>(
    stream: S,
    tls: Option<ServerTls>,
    service: Arc<V>,
    mut context: Box<ConnectionContext>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    Box<WriteTimeout<S>>: Transport,
{
    let slot = Arc::clone(&context.peer.slot);
    let stream = WriteTimeout::new(stream, slot.deadlines().progress, slot);
    match tls {
        // Boxed, because the futures that hand it on would each keep a copy.
        None => serve_stream(Box::new(stream), service, context).await,
        Some(tls) => {
            let stream = {
                let refusals = service.bundle_api().map(|api| &api.refusals);
                // The handshake needs more memory than the connection afterwards.
                let acceptor = TlsAcceptor::from(tls.config);
                Box::pin(tls_handshake(stream, acceptor, &context, refusals)).await
            };
            if let Some(stream) = stream {
                let chain = stream.get_ref().1.peer_certificates();
                let identity = chain.zip(tls.authorities).and_then(|(chain, authorities)| {
                    CertificateIdentity::of_chain(chain, authorities)
                });
                context.peer.certificate = identity.map(Arc::new);
                serve_stream(stream, service, context).await;
            }
        }
    }
}

async fn tls_handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: WriteTimeout<S>,
    tls: TlsAcceptor,
    context: &ConnectionContext,
    refusals: Option<&RefusalLog>,
) -> Option<Box<TlsStream<WriteTimeout<S>>>> {
    let handshake = timeout(context.peer.slot.deadlines().handshake, tls.accept(stream));
    match context.until_close(Box::pin(handshake)).await? {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake");
            if let (Some(refusals), Some(reason)) = (refusals, certificate_error(&error)) {
                refusals.certificate(reason, context.peer.address);
            }
            None
        }
        Err(_) => None,
    }
}

/// Why the certificate of the client was refused, if that is why the handshake failed.
fn certificate_error(error: &io::Error) -> Option<&rustls::Error> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    matches!(error, rustls::Error::InvalidCertificate(_)).then_some(error)
}

/// Serves the plain requests of OPA on the fast path, and from the first other request on
/// everything with hyper or h2.
pub(super) async fn serve_stream<S: Transport, V: Service>(
    mut stream: S,
    service: Arc<V>,
    context: Box<ConnectionContext>,
) {
    let read = match service.bundle_api() {
        Some(api) => fast_path::serve(&mut stream, api, &context).await,
        None => Some(Bytes::new()),
    };
    if let Some(read) = read {
        // Boxed, because it needs more memory than the fast path.
        Box::pin(serve_any_request(stream, read, service, *context)).await;
    }
}

/// Serves a connection of which `read` has been read.
async fn serve_any_request<S: Transport, V: Service>(
    stream: S,
    read: Bytes,
    service: Arc<V>,
    context: ConnectionContext,
) {
    let mut stream = PrefixedStream::new(read, stream);
    // The preface of HTTP/2 is valid at the start of a connection only.
    let is_http2 = !context.peer.slot.had_request() && {
        let detecting = Box::pin(stream.detect_http2());
        // No request has been sent, so none is cut off.
        match context.until_close(detecting).await {
            Some(Ok(is_http2)) => is_http2,
            Some(Err(_)) | None => return,
        }
    };
    if is_http2 {
        http2::serve(stream, service, context).await;
    } else {
        http1::serve(stream, service, context).await;
    }
}

impl ConnectionContext {
    /// The result of `future`; `None` if the connection has to close before.
    async fn until_close<F: Future + Unpin>(&self, mut future: F) -> Option<F::Output> {
        poll_fn(|context| {
            if let Poll::Ready(output) = Pin::new(&mut future).poll(context) {
                return Poll::Ready(Some(output));
            }
            self.peer.slot.poll_close(context).map(|_| None)
        })
        .await
    }

    /// Runs a connection and closes it: gracefully by `shut_down`, which lets requests in progress
    /// finish, and by force if it does not close within its grace period.
    pub(super) async fn run_until_closed<C: Future>(
        self,
        mut connection: Pin<&mut C>,
        shut_down: impl Fn(Pin<&mut C>),
    ) {
        let closed = poll_fn(|context| {
            // First, so that a request that has arrived is answered before the connection closes.
            if connection.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            self.peer.slot.poll_close(context).map(Some)
        });
        let grace = match closed.await {
            None | Some(CloseReason::Overdue) => return,
            Some(CloseReason::Evicted) => self.peer.slot.close_grace(),
            Some(CloseReason::Shutdown) => self.peer.slot.deadlines().close_grace,
        };
        shut_down(connection.as_mut());
        let mut forced_close = Box::pin(self.force_close(grace));
        poll_fn(|context| {
            let is_closed = connection.as_mut().poll(context).is_ready()
                || self.peer.slot.poll_overdue(context).is_ready()
                || forced_close.as_mut().poll(context).is_ready();
            if is_closed {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Completes when a connection that was shut down has to be closed by force. It does not cut
    /// off requests that are being answered or held, nor responses that are being sent.
    async fn force_close(&self, grace: Duration) {
        let slot = &self.peer.slot;
        let mut pause = grace;
        loop {
            sleep(pause).await;
            pause = slot.deadlines().close_grace;
            let may_close = if slot.is_evicted() {
                slot.is_evictable()
            } else {
                slot.is_idle()
            };
            if may_close {
                return;
            }
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
