//! HTTP/2 on the `h2` crate.
//!
//! hyper takes over a body once the response is returned: the server can't reset a response that
//! its client does not read, and the body is read before the client's window has room for it. Here
//! each response waits for window capacity, reads as much as fits, and is reset alone when it makes
//! no progress, because a load balancer sends the requests of many clients over one connection.
//!
//! `h2` writes to the socket each time it is polled. The connection therefore accepts all requests
//! that have arrived, then answers them, and then polls `h2` again: the responses that are ready
//! leave in one write, and only the others take a task.

mod body_sender;

use std::{
    future::poll_fn,
    mem,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use h2::{
    Ping, PingPong, RecvStream,
    server::{Builder, Connection, SendResponse},
};
use hyper::{Method, Request, Response, header::CONNECTION};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};

use self::body_sender::BodySender;
use super::{
    close_signal::CloseReason,
    connection::{ConnectionContext, Peer, Transport, complete_headers},
    delivery::{BodyBytes, Delivery},
    drain::DrainSignal,
    idle_connections::{ActiveRequest, ActiveStream, Slot},
    request_body::RequestBody,
    response_body::ResponseBody,
    service::{Answer, Service},
};

/// Concurrent requests on one connection. A load balancer sends many long polls over one.
pub(super) const MAX_CONCURRENT_STREAMS: u32 = 1000;
/// The headers of a request, counted as in RFC 9113 §6.5.2.
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;
/// Bytes of each response that `h2` buffers for the socket.
const MAX_SEND_BUFFER_BYTES: usize = 64 << 10;
/// Requests that are answered before other connections have their turn.
const MAX_BATCH: usize = 64;
/// Time for the client to accept the response to a request beyond the limit.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(100);
/// Interval of pings, which detect a connection whose client is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Time for the client to acknowledge a ping.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves a connection until it is closed.
pub(super) async fn serve<S: Transport, V: Service>(
    stream: S,
    service: Arc<V>,
    context: ConnectionContext,
) {
    context.peer.slot.set_multiplexed();
    let peer = context.peer.clone();
    let stream_context = Arc::new(StreamContext {
        slot: Arc::clone(&peer.slot),
        drain: context.drain.clone(),
        progress_timeout: peer.slot.deadlines().progress,
    });
    let shutdown = Notify::new();
    let connection = pin!(async {
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_send_buffer_size(MAX_SEND_BUFFER_BYTES);
        match builder.handshake(stream).await {
            Ok(connection) => {
                let streams = Streams {
                    connection,
                    service,
                    peer,
                    context: stream_context,
                    accepted: Vec::new(),
                    queued: Vec::new(),
                    tasks: JoinSet::new(),
                };
                streams.serve(&shutdown).await;
            }
            Err(error) => tracing::debug!(%error, "HTTP/2 handshake failed"),
        }
    });
    context
        .run_until_closed(connection, |_| shutdown.notify_one())
        .await;
}

/// A connection and its streams.
struct Streams<S, V> {
    connection: Connection<S, BodyBytes>,
    service: Arc<V>,
    peer: Peer,
    context: Arc<StreamContext>,
    /// Requests that are not handled yet.
    accepted: Vec<(Request<RecvStream>, SendResponse<BodyBytes>)>,
    /// Bodies that `h2` has taken and not tried to write yet.
    queued: Vec<BodySender>,
    /// The streams that wait: for their response, or for their client. Dropping the set cancels
    /// them with their connection.
    tasks: JoinSet<()>,
}

/// What the streams of a connection share.
struct StreamContext {
    slot: Arc<Slot>,
    drain: DrainSignal,
    progress_timeout: Duration,
}

impl<S: Transport, V: Service> Streams<S, V> {
    async fn serve(mut self, shutdown: &Notify) {
        let mut ping_failure = pin!(ping_failure(self.connection.ping_pong()));
        loop {
            tokio::select! {
                biased;
                () = poll_fn(|context| self.poll(context)) => return,
                () = shutdown.notified() => self.connection.graceful_shutdown(),
                () = ping_failure.as_mut() => return,
            }
        }
    }

    /// Answers the requests that have arrived. Completes when the connection is closed.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some(_)) = self.tasks.poll_join_next(context) {}
        // A response that is queued wakes the task that polled `h2` last. Those below are sent
        // without that, so the task is made known to `h2` only afterwards.
        if self
            .poll_accept(&mut Context::from_waker(Waker::noop()))
            .is_ready()
        {
            return Poll::Ready(());
        }
        let mut answered = 0;
        while answered < MAX_BATCH {
            let accepted = mem::take(&mut self.accepted);
            answered += accepted.len();
            for (request, responder) in accepted {
                self.answer(request, responder);
            }
            let closed = self.poll_accept(context);
            self.spawn_unsent();
            if closed.is_ready() || self.accepted.is_empty() {
                return closed;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Accepts requests until there is none, and sends what is queued. Completes when the
    /// connection is closed.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.accepted.len() < MAX_BATCH {
            match self.connection.poll_accept(context) {
                Poll::Ready(Some(Ok(request))) => self.accepted.push(request),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "HTTP/2 connection failed");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn answer(&mut self, request: Request<RecvStream>, responder: SendResponse<BodyBytes>) {
        let exchange = Exchange::begin(&self.context, request.method().clone(), responder);
        let peer = Peer {
            is_over_limit: exchange.stream.is_none(),
            ..self.peer.clone()
        };
        match self.service.answer(request.map(RequestBody::Http2), &peer) {
            Answer::Now(response) => {
                let Some(mut sender) = exchange.respond(response) else {
                    return;
                };
                if sender.queue() {
                    self.queued.push(sender);
                } else {
                    self.tasks.spawn(sender.send());
                }
            }
            Answer::Later(response) => _ = self.tasks.spawn(exchange.finish(response)),
        }
    }

    /// Leaves each queued body that the socket has not accepted to a task.
    fn spawn_unsent(&mut self) {
        for sender in self.queued.drain(..) {
            if !sender.is_sent() {
                self.tasks.spawn(sender.send());
            }
        }
    }
}

/// A request that is being answered.
struct Exchange {
    context: Arc<StreamContext>,
    method: Method,
    responder: SendResponse<BodyBytes>,
    active: ActiveRequest,
    /// `None` for a request beyond the limit, which is refused.
    stream: Option<ActiveStream>,
}

impl Exchange {
    fn begin(
        context: &Arc<StreamContext>,
        method: Method,
        responder: SendResponse<BodyBytes>,
    ) -> Self {
        let active = context.slot.begin_request();
        let stream = context.slot.begin_stream();
        Self {
            context: Arc::clone(context),
            method,
            responder,
            active,
            stream,
        }
    }

    /// Waits for the response, and sends it.
    async fn finish(mut self, response: impl Future<Output = Response<ResponseBody>>) {
        let response = tokio::select! {
            response = response => response,
            // The client has reset the stream or closed the connection.
            _ = poll_fn(|context| self.responder.poll_reset(context)) => return,
        };
        if let Some(sender) = self.respond(response) {
            sender.send().await;
        }
    }

    /// Sends the headers. Returns what sends the body; `None` if there is no body, or if the stream
    /// is closed.
    fn respond(mut self, mut response: Response<ResponseBody>) -> Option<BodySender> {
        let context = &self.context;
        // HTTP/2 has no `Connection` header; GOAWAY closes the connection.
        if response.headers_mut().remove(CONNECTION).is_some() || context.drain.is_draining() {
            context.slot.close(CloseReason::Shutdown);
        }
        complete_headers(&self.method, &mut response);
        let delivery = Delivery::take(&mut response);
        let (head, content) = response.into_parts();
        let is_empty = content.size() == 0;
        let unsent = (!is_empty).then(|| context.slot.begin_response());
        drop(self.active);
        let stream = self
            .responder
            .send_response(Response::from_parts(head, ()), is_empty)
            .ok()?;
        let window_timeout = if self.stream.is_some() {
            context.progress_timeout
        } else {
            REFUSAL_TIMEOUT
        };
        Some(BodySender {
            stream,
            content,
            offset: 0,
            unsent: unsent?,
            delivery,
            window_timeout,
            progress_timeout: context.progress_timeout,
            _active: self.stream,
        })
    }
}

/// Completes when the client no longer acknowledges pings.
async fn ping_failure(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(PING_INTERVAL).await;
        if !matches!(
            timeout(PONG_TIMEOUT, pings.ping(Ping::opaque())).await,
            Ok(Ok(_))
        ) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
