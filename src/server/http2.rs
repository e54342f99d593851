//! HTTP/2 on the `h2` crate.
//!
//! hyper takes over a body once the response is returned: the server can't reset a response that
//! its client does not read, and the body is read before the client's window has room for it. Here
//! each response waits for window capacity, reads as much as fits, and is reset alone when it makes
//! no progress, because a load balancer sends the requests of many clients over one connection.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason, RecvStream, SendStream,
    server::{Builder, Connection, SendResponse},
};
use hyper::{Request, Response, header::CONNECTION};
use tokio::{
    sync::Notify,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use super::{
    close_signal::CloseReason,
    connection::{ConnectionContext, Peer, Transport, complete_headers},
    drain::DrainSignal,
    idle_connections::PROGRESS_BYTES,
    request_body::RequestBody,
    response_body::ResponseBody,
    service::Service,
    unsent_response::{MIN_READ_BYTES, UnsentResponse},
};

/// Concurrent requests on one connection. A load balancer sends many long polls over one.
pub(super) const MAX_CONCURRENT_STREAMS: u32 = 1000;
/// The headers of a request, counted as in RFC 9113 §6.5.2.
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;
/// Bytes of each response that `h2` buffers for the socket.
const MAX_SEND_BUFFER_BYTES: usize = 64 << 10;
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
    let streams = StreamHandler {
        service,
        peer: context.peer.clone(),
        drain: context.drain.clone(),
        progress_timeout: context.deadlines.progress,
    };
    let shutdown = Notify::new();
    let connection = pin!(async {
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_send_buffer_size(MAX_SEND_BUFFER_BYTES);
        match builder.handshake(stream).await {
            Ok(connection) => streams.serve(connection, &shutdown).await,
            Err(error) => tracing::debug!(%error, "HTTP/2 handshake failed"),
        }
    });
    context
        .run_until_closed(connection, |_| shutdown.notify_one())
        .await;
}

/// Handles the streams of one connection.
struct StreamHandler<V> {
    service: Arc<V>,
    peer: Peer,
    drain: DrainSignal,
    progress_timeout: Duration,
}

impl<V: Service> StreamHandler<V> {
    async fn serve<S: Transport>(&self, mut connection: Connection<S, Bytes>, shutdown: &Notify) {
        let mut ping_failure = pin!(ping_failure(connection.ping_pong()));
        // Dropping the set cancels the streams with their connection.
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, responder))) => _ = streams.spawn(self.handle_stream(request, responder)),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "HTTP/2 connection failed");
                        return;
                    }
                    None => return,
                },
                Some(_) = streams.join_next() => {}
                () = shutdown.notified() => connection.graceful_shutdown(),
                () = ping_failure.as_mut() => return,
            }
        }
    }

    fn handle_stream(
        &self,
        request: Request<RecvStream>,
        mut responder: SendResponse<Bytes>,
    ) -> impl Future<Output = ()> + Send + use<V> {
        let slot = Arc::clone(&self.peer.slot);
        let active = slot.begin_request();
        let stream = slot.begin_stream();
        let peer = Peer {
            is_over_limit: stream.is_none(),
            ..self.peer.clone()
        };
        let progress_timeout = self.progress_timeout;
        let window_timeout = if stream.is_some() {
            progress_timeout
        } else {
            REFUSAL_TIMEOUT
        };
        let drain = self.drain.clone();
        let method = request.method().clone();
        let answer = self.service.answer(request.map(RequestBody::Http2), &peer);
        async move {
            let _stream = stream;
            let mut response = tokio::select! {
                response = answer.get() => response,
                // The client has reset the stream or closed the connection.
                _ = poll_fn(|context| responder.poll_reset(context)) => return,
            };
            // HTTP/2 has no `Connection` header; GOAWAY closes the connection.
            if response.headers_mut().remove(CONNECTION).is_some() || drain.is_draining() {
                slot.close(CloseReason::Shutdown);
            }
            complete_headers(&method, &mut response);
            let (head, content) = response.into_parts();
            let is_empty = content.size() == 0;
            let unsent = (!is_empty).then(|| slot.begin_response());
            drop(active);
            let Ok(stream) = responder.send_response(Response::from_parts(head, ()), is_empty)
            else {
                return;
            };
            if let Some(unsent) = unsent {
                BodySender {
                    stream,
                    content,
                    unsent,
                    window_timeout,
                    progress_timeout,
                }
                .send()
                .await;
            }
        }
    }
}

/// Sends the body of one response.
struct BodySender {
    stream: SendStream<Bytes>,
    content: ResponseBody,
    unsent: UnsentResponse,
    /// Time for the client to open its window for [`PROGRESS_BYTES`].
    window_timeout: Duration,
    /// Time for the socket to accept the last chunks.
    progress_timeout: Duration,
}

impl BodySender {
    /// Completes when the socket has accepted the whole body, or the response was reset.
    async fn send(mut self) {
        let mut offset = 0;
        let size = self.content.size();
        let mut buffered = Bytes::new();
        let window_timeout = self.window_timeout;
        while offset < size {
            let start = offset;
            let sending = async {
                // Without a minimum a client could read one byte at a time for ever.
                while offset < size && offset - start < PROGRESS_BYTES as u64 {
                    let capacity = self.capacity(size - offset).await.ok_or(Reason::CANCEL)?;
                    if buffered.is_empty() {
                        buffered = self
                            .read(offset, capacity)
                            .await
                            .map_err(|_| Reason::INTERNAL_ERROR)?;
                    }
                    let chunk = buffered.split_to(capacity.min(buffered.len()));
                    offset += chunk.len() as u64;
                    self.stream
                        .send_data(chunk, offset >= size)
                        .map_err(|_| Reason::CANCEL)?;
                }
                Ok(())
            };
            if let Err(reason) = timeout(window_timeout, sending)
                .await
                .unwrap_or(Err(Reason::CANCEL))
            {
                self.stream.send_reset(reason);
                return;
            }
            self.unsent.record_progress();
        }
        drop(buffered);
        // A client can shrink its window again (RFC 9113 §6.9.2).
        if timeout(self.progress_timeout, self.unsent.wait_until_sent())
            .await
            .is_err()
        {
            self.stream.send_reset(Reason::CANCEL);
        }
    }

    /// Waits for capacity in the window of the client. Returns the bytes, at least one; `None` if
    /// the stream was closed.
    async fn capacity(&mut self, remaining: u64) -> Option<usize> {
        let wanted = usize::try_from(remaining)
            .unwrap_or(usize::MAX)
            .min(MAX_SEND_BUFFER_BYTES);
        self.stream.reserve_capacity(wanted);
        let stream = &mut self.stream;
        poll_fn(|context| {
            while stream.capacity() == 0 {
                if !matches!(ready!(stream.poll_capacity(context)), Some(Ok(_))) {
                    return Poll::Ready(None);
                }
            }
            Poll::Ready(Some(stream.capacity().min(wanted)))
        })
        .await
    }

    async fn read(&self, offset: u64, capacity: usize) -> io::Result<Bytes> {
        match &self.content {
            ResponseBody::Memory(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let end = bytes.len().min(start.saturating_add(capacity));
                Ok(self.unsent.wrap_shared(bytes.slice(start..end)))
            }
            ResponseBody::File(blob) => {
                // A client with a window of one byte must not cause a read for each byte.
                let length = capacity.max(MIN_READ_BYTES).min(self.unsent.read_size());
                let blob = blob.clone();
                let read = spawn_blocking(move || blob.read_at(offset, length)).await;
                Ok(self.unsent.wrap_read(read.map_err(io::Error::other)??))
            }
        }
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
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::atomic::Ordering,
    };

    use h2::client;
    use hyper::StatusCode;
    use tokio::{
        io::{DuplexStream, duplex},
        sync::watch,
        time::{Instant, advance},
    };

    use super::*;
    use crate::{
        oci::{Blob, BlobWriter, Descriptor},
        server::{
            Deadlines,
            drain::Phase,
            idle_connections::{IdleConnections, Limits, Slot},
            service::Answer,
            write_timeout::WriteTimeout,
        },
    };

    const LARGE: usize = 1 << 20;

    /// A connection that answers every request with `body`, and `/held` after 300 s.
    fn connected(body: ResponseBody) -> (DuplexStream, Arc<Slot>, tokio::task::JoinHandle<()>) {
        let deadlines = Deadlines::default();
        let slot = IdleConnections::new(Limits::new(10, 10, deadlines)).register();
        let (client_end, server_end) = duplex(4 * LARGE);
        let peer = Peer {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            slot: Arc::clone(&slot),
            is_over_limit: false,
        };
        let drain = DrainSignal::new(watch::channel(Phase::Open).1, Duration::ZERO);
        let context = ConnectionContext {
            peer,
            deadlines,
            drain,
        };
        let server_end = WriteTimeout::new(server_end, deadlines.progress, Arc::clone(&slot));
        let service = Arc::new(move |request: Request<RequestBody>, peer: &Peer| {
            let mut response = Response::new(body.clone());
            if peer.is_over_limit {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            Answer::later(async move {
                if request.uri().path() == "/held" {
                    sleep(Duration::from_secs(300)).await;
                }
                response
            })
        });
        (
            client_end,
            slot,
            tokio::spawn(serve(server_end, service, context)),
        )
    }

    async fn client(stream: DuplexStream, window: u32) -> client::SendRequest<Bytes> {
        let builder = client::Builder::new().initial_window_size(window).clone();
        let (send, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        send
    }

    async fn ask(send: &mut client::SendRequest<Bytes>, path: &str) -> client::ResponseFuture {
        let request = Request::get(format!("http://x{path}")).body(()).unwrap();
        poll_fn(|context| send.poll_ready(context)).await.unwrap();
        send.send_request(request, true).unwrap().0
    }

    fn in_file(bytes: &[u8]) -> Blob {
        let mut writer =
            BlobWriter::in_file(Descriptor::of("x/y", bytes), tempfile::tempfile().unwrap());
        writer.write(bytes).unwrap();
        writer.finish(Bytes::from).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_without_window_is_reset_and_the_others_go_on() {
        for window in [0, 1, 100] {
            let (stream, _slot, _serving) = connected(ResponseBody::Memory(vec![7; LARGE].into()));
            let mut send = client(stream, window).await;
            let held = ask(&mut send, "/held").await;
            let stalled = ask(&mut send, "/").await.await.unwrap();
            let began = Instant::now();
            let mut body = stalled.into_body();
            let error = loop {
                match body.data().await.unwrap() {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(
                (error.reason(), began.elapsed()),
                (Some(Reason::CANCEL), Deadlines::default().progress)
            );
            // A response without a body needs no window.
            assert_eq!(held.await.unwrap().status(), StatusCode::OK);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_read_byte_by_byte_is_reset() {
        let (stream, _slot, _serving) = connected(ResponseBody::Memory(vec![7; LARGE].into()));
        let mut send = client(stream, 1).await;
        let mut body = ask(&mut send, "/").await.await.unwrap().into_body();
        let began = Instant::now();
        let taken = loop {
            match body.data().await.unwrap() {
                Ok(data) => {
                    sleep(Duration::from_secs(1)).await;
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
                Err(error) => break error,
            }
        };
        assert_eq!(taken.reason(), Some(Reason::CANCEL));
        assert!(began.elapsed() <= Deadlines::default().progress + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_that_makes_progress_gets_the_whole_body() {
        let bytes: Vec<u8> = (0..LARGE).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for content in [
            ResponseBody::Memory(bytes.clone().into()),
            ResponseBody::File(in_file(&bytes)),
        ] {
            let (stream, slot, _serving) = connected(content);
            let mut send = client(stream, 65_535).await;
            let mut body = ask(&mut send, "/").await.await.unwrap().into_body();
            let mut taken = Vec::new();
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                taken.extend_from_slice(&data);
                sleep(Duration::from_secs(5)).await;
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            assert!(taken == bytes);
            assert!(slot.is_idle());
        }
    }

    /// Once, 1 000 streams with a window of 1 byte on one connection took 520 MiB.
    #[tokio::test]
    async fn a_file_is_read_only_as_far_as_the_window_allows() {
        let (stream, slot, _serving) = connected(ResponseBody::File(in_file(&vec![7; LARGE])));
        let mut send = client(stream, 1).await;
        let mut bodies = Vec::new();
        for _ in 0..40 {
            let mut body = ask(&mut send, "/").await.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap().len(), 1);
            bodies.push(body);
        }
        let [connection, all] = slot
            .unsent_bytes()
            .map(|unsent| unsent.load(Ordering::Relaxed));
        assert!(
            connection <= 40 * MIN_READ_BYTES && all == connection,
            "{connection} {all}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_beyond_the_limit_is_refused_without_delay() {
        let (stream, _slot, _serving) = connected(ResponseBody::Memory(Bytes::from_static(b"x")));
        let mut send = client(stream, 0).await;
        // The first of the connection, and four times ten more.
        let mut stalled = Vec::new();
        for _ in 0..41 {
            stalled.push(ask(&mut send, "/").await.await.unwrap().into_body());
        }
        let began = Instant::now();
        let response = ask(&mut send, "/").await.await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let error = response.into_body().data().await.unwrap().unwrap_err();
        assert_eq!(
            (error.reason(), began.elapsed()),
            (Some(Reason::CANCEL), REFUSAL_TIMEOUT)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_evicted_connection_closes_whatever_its_client_does() {
        for window in [0, 65_535] {
            let (stream, slot, serving) = connected(ResponseBody::Memory(Bytes::from_static(b"x")));
            let mut send = client(stream, window).await;
            let body = ask(&mut send, "/").await.await.unwrap().into_body();
            advance(Deadlines::default().stalled_response_grace).await;
            let began = Instant::now();
            assert!(slot.evict());
            serving.await.unwrap();
            assert!(
                began.elapsed() <= Deadlines::default().close_grace,
                "{window}: {:?}",
                began.elapsed()
            );
            drop(body);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_pongs_is_closed() {
        let (mut stream, _slot, serving) =
            connected(ResponseBody::Memory(Bytes::from_static(b"x")));
        // The client sends a preface and one request, and nothing else.
        let request = [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
            b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84",
        ];
        tokio::io::AsyncWriteExt::write_all(&mut stream, &request.concat())
            .await
            .unwrap();
        let began = Instant::now();
        serving.await.unwrap();
        assert_eq!(began.elapsed(), PING_INTERVAL + PONG_TIMEOUT);
    }
}
