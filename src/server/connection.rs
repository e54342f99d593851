//! One connection: what it speaks, and how it ends.

use std::{
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
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
    Deadlines, date, drain::Leaving, http1, http2, idle_connections::Seat, prefixed_stream::Prefixed,
    response_body::Content, write_timeout::Patient,
};

/// A transport, with TLS or without.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Transport for S {}

/// Who asks, and over which connection.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) address: IpAddr,
    pub(super) seat: Arc<Seat>,
    /// There are so many requests already that this one can only be turned away.
    pub(super) is_too_many: bool,
}

/// What decides how long a connection lives.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) caller: Caller,
    pub(super) deadlines: Deadlines,
    pub(super) leaving: Leaving,
    /// Whether all connections are to end now.
    pub(super) closing: watch::Receiver<bool>,
    /// A response was given that is the last one of this connection.
    pub(super) last_response: Arc<Notify>,
}

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its client takes too long; there is nothing to wait for.
    Overdue,
    /// Another one needs its place.
    Dismissed,
    /// The server is going away, or has sent its last response.
    Leaving,
}

/// Serves a connection until its client leaves or asks nothing, until its place is needed,
/// until a response was the last one, or until all are to end.
pub(super) async fn run<H, F>(stream: TcpStream, tls: Option<TlsAcceptor>, handle: H, mut context: Context)
where
    H: Fn(Request<()>, Caller) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Content>> + Send + 'static,
{
    let stream = Patient::new(stream, context.deadlines.progress, Arc::clone(&context.caller.seat));
    let handshake = context.deadlines.handshake;
    let opened = tokio::select! {
        opened = opened(stream, tls, handshake) => opened,
        // Nothing was asked yet, so nobody waits for anything.
        _ = context.end() => None,
    };
    match opened {
        Some((true, stream)) => http2::serve(stream, handle, context).await,
        Some((false, stream)) => http1::serve(stream, handle, context).await,
        None => {}
    }
}

/// The transport, and whether its client speaks HTTP/2.
async fn opened(
    stream: Patient<TcpStream>,
    tls: Option<TlsAcceptor>,
    handshake: Duration,
) -> Option<(bool, Prefixed<Box<dyn Transport>>)> {
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
    Prefixed::detect(stream).await.ok()
}

impl Context {
    /// Runs a connection, and sees to it that it ends: by `shut_down`, which lets it finish
    /// what it is doing, and by force where it does not end by itself.
    pub(super) async fn until_ended<C: Future>(mut self, mut connection: Pin<&mut C>, shut_down: impl Fn(Pin<&mut C>)) {
        let end = tokio::select! {
            _ = connection.as_mut() => return,
            end = self.end() => end,
        };
        if end == End::Overdue {
            return;
        }
        let grace = match end {
            End::Dismissed => self.caller.seat.grace(),
            End::Overdue | End::Leaving => self.deadlines.close_grace,
        };
        shut_down(connection.as_mut());
        let forced = pin!(self.forced(end, grace));
        tokio::select! {
            biased;
            _ = connection => {}
            () = forced => {}
        }
    }

    async fn end(&mut self) -> End {
        tokio::select! {
            () = self.caller.seat.overdue() => End::Overdue,
            () = self.caller.seat.dismissed() => End::Dismissed,
            () = self.last_response.notified() => End::Leaving,
            _ = self.closing.wait_for(|closing| *closing) => End::Leaving,
        }
    }

    /// When a connection that was asked to end is to be ended. What is being answered, waits or
    /// is being sent is not cut off by this.
    async fn forced(&self, end: End, grace: Duration) {
        let seat = &self.caller.seat;
        let nothing_left = async {
            let mut pause = grace;
            loop {
                sleep(pause).await;
                pause = self.deadlines.close_grace;
                let is_over = if end == End::Dismissed { seat.may_go() } else { seat.is_idle() };
                if is_over {
                    return;
                }
            }
        };
        tokio::select! {
            () = seat.overdue() => {}
            () = nothing_left => {}
        }
    }
}

/// Completes the headers of a response, and drops a body that may not be sent: a response to
/// HEAD says what the one to GET would.
pub(super) fn complete(method: &Method, response: &mut Response<Content>) {
    if response.status() == StatusCode::NOT_MODIFIED {
        *response.body_mut() = Content::empty();
    } else {
        let size = response.body().size();
        response.headers_mut().insert(CONTENT_LENGTH, size.into());
    }
    if method == Method::HEAD {
        *response.body_mut() = Content::empty();
    }
    response.headers_mut().insert(DATE, date::now());
}

/// What a response says that is the last one of its connection.
pub(super) const CLOSE: HeaderValue = HeaderValue::from_static("close");
