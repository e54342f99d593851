//! HTTP/2, on the frames of the `h2` crate.
//!
//! Not by hyper: there a response goes on by itself once its body was handed over, so that
//! nobody can give up one that its peer does not take, and a body is read before its peer has
//! room for it. Here each response waits for room, reads as much as fits, and is reset alone
//! when it makes no progress: a balancer has many clients behind one connection.

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
    connection::{Caller, Context, Transport, complete},
    drain::Leaving,
    idle_connections::PROGRESS_BYTES,
    response_body::Content,
    unsent_response::Responding,
};

/// Requests at a time on one connection; a balancer sends many long polls over one.
pub(super) const STREAMS: u32 = 1000;
/// Of one request, as RFC 9113 §6.5.2 counts.
const HEADER_LIST_BYTES: u32 = 16 << 10;
/// What waits for the socket, of each response.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// How long one request too many is waited for.
const TOO_MANY: Duration = Duration::from_millis(100);
/// A connection whose client does not answer a ping in time is dead.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// Serves a connection until it ends.
pub(super) async fn serve<S, H, F>(stream: S, handle: H, context: Context)
where
    S: Transport,
    H: Fn(Request<()>, Caller) -> F + Send + Sync,
    F: Future<Output = Response<Content>> + Send + 'static,
{
    context.caller.seat.multiplex();
    let streams = Streams {
        handle,
        caller: context.caller.clone(),
        leaving: context.leaving.clone(),
        last_response: Arc::clone(&context.last_response),
        progress: context.deadlines.progress,
    };
    let shutdown = Notify::new();
    let connection = pin!(async {
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES);
        match builder.handshake(stream).await {
            Ok(connection) => streams.serve(connection, &shutdown).await,
            Err(error) => tracing::debug!(%error, "HTTP/2 preface"),
        }
    });
    context.until_ended(connection, |_| shutdown.notify_one()).await;
}

/// What each stream of a connection needs.
struct Streams<H> {
    handle: H,
    caller: Caller,
    leaving: Leaving,
    /// The connection is to end after what is being answered.
    last_response: Arc<Notify>,
    progress: Duration,
}

impl<H, F> Streams<H>
where
    H: Fn(Request<()>, Caller) -> F + Send + Sync,
    F: Future<Output = Response<Content>> + Send + 'static,
{
    async fn serve<S: Transport>(&self, mut connection: Connection<S, Bytes>, shutdown: &Notify) {
        let mut dead = pin!(dead(connection.ping_pong()));
        // They end with the connection.
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => _ = streams.spawn(self.answer(request, respond)),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "an HTTP/2 connection broke off");
                        return;
                    }
                    None => return,
                },
                Some(_) = streams.join_next() => {}
                () = shutdown.notified() => connection.graceful_shutdown(),
                () = dead.as_mut() => return,
            }
        }
    }

    fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let seat = Arc::clone(&self.caller.seat);
        let busy = seat.busy();
        let stream = seat.stream();
        let caller = Caller { is_too_many: stream.is_none(), ..self.caller.clone() };
        let progress = self.progress;
        let room_within = if stream.is_some() { progress } else { TOO_MANY };
        let (leaving, last_response) = (self.leaving.clone(), Arc::clone(&self.last_response));
        let method = request.method().clone();
        let answer = (self.handle)(request.map(drop), caller);
        async move {
            let _stream = stream;
            let mut response = tokio::select! {
                response = answer => response,
                // The client has lost interest, or is gone.
                _ = poll_fn(|context| respond.poll_reset(context)) => return,
            };
            // HTTP/2 says it in a frame for the whole connection.
            if response.headers_mut().remove(CONNECTION).is_some() || leaving.has_begun() {
                last_response.notify_one();
            }
            complete(&method, &mut response);
            let (head, content) = response.into_parts();
            let is_whole = content.size() == 0;
            let responding = (!is_whole).then(|| seat.respond());
            drop(busy);
            let Ok(stream) = respond.send_response(Response::from_parts(head, ()), is_whole) else { return };
            if let Some(responding) = responding {
                Sender { stream, content, responding, room_within, progress }.send().await;
            }
        }
    }
}

/// Sends the body of one response.
struct Sender {
    stream: SendStream<Bytes>,
    content: Content,
    responding: Responding,
    /// How long the client may give no room.
    room_within: Duration,
    /// How long the socket may take nothing.
    progress: Duration,
}

impl Sender {
    /// Until the socket has taken all of it, or it is given up.
    async fn send(mut self) {
        let mut offset = 0;
        let size = self.content.size();
        let mut at_hand = Bytes::new();
        let room_within = self.room_within;
        while offset < size {
            let began = offset;
            let sending = async {
                // Less could be taken bit by bit for ever.
                while offset < size && offset - began < PROGRESS_BYTES as u64 {
                    let room = self.room(size - offset).await.ok_or(Reason::CANCEL)?;
                    if at_hand.is_empty() {
                        at_hand = self.read(offset, room).await.map_err(|_| Reason::INTERNAL_ERROR)?;
                    }
                    let piece = at_hand.split_to(room.min(at_hand.len()));
                    offset += piece.len() as u64;
                    self.stream.send_data(piece, offset >= size).map_err(|_| Reason::CANCEL)?;
                }
                Ok(())
            };
            if let Err(reason) = timeout(room_within, sending).await.unwrap_or(Err(Reason::CANCEL)) {
                self.stream.send_reset(reason);
                return;
            }
            self.responding.progressed();
        }
        drop(at_hand);
        // A client may take back the room that it gave.
        if timeout(self.progress, self.responding.sent()).await.is_err() {
            self.stream.send_reset(Reason::CANCEL);
        }
    }

    /// How many bytes the client has room for now, at least one; `None` if it is gone.
    async fn room(&mut self, left: u64) -> Option<usize> {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(SEND_BUFFER_BYTES);
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

    async fn read(&self, offset: u64, room: usize) -> io::Result<Bytes> {
        match &self.content {
            Content::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let end = bytes.len().min(start.saturating_add(room));
                Ok(self.responding.shared(bytes.slice(start..end)))
            }
            Content::File(blob) => {
                // Not one byte after the other, even for a client that wants it so.
                let length = room.max(SMALLEST_READ).min(self.responding.allowance());
                let blob = blob.clone();
                let read = spawn_blocking(move || blob.read_at(offset, length)).await;
                Ok(self.responding.owned(read.map_err(io::Error::other)??))
            }
        }
    }
}

/// Ends when the client does not answer pings any more.
async fn dead(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING_EVERY).await;
        if !matches!(timeout(PONG_WITHIN, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

const SMALLEST_READ: usize = 4 << 10;

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
            idle_connections::{Idle, Limits, Seat},
            write_timeout::Patient,
        },
    };

    const LARGE: usize = 1 << 20;

    /// A connection on which everybody gets the same, but for whoever asks for `/held`.
    fn connected(content: Content) -> (DuplexStream, Arc<Seat>, tokio::task::JoinHandle<()>) {
        let deadlines = Deadlines::default();
        let seat = Idle::new(Limits::new(10, 10, deadlines)).seat();
        let (far, near) = duplex(4 * LARGE);
        let caller = Caller { address: IpAddr::V4(Ipv4Addr::LOCALHOST), seat: Arc::clone(&seat), is_too_many: false };
        let leaving = Leaving::new(watch::channel(Phase::Open).1, Duration::ZERO);
        let (open, closing) = watch::channel(false);
        let context = Context { caller, deadlines, leaving, closing, last_response: Arc::default() };
        let near = Patient::new(near, deadlines.progress, Arc::clone(&seat));
        let handle = move |request: Request<()>, caller: Caller| {
            let _ = &open;
            let mut response = Response::new(content.clone());
            if caller.is_too_many {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            async move {
                if request.uri().path() == "/held" {
                    sleep(Duration::from_secs(300)).await;
                }
                response
            }
        };
        (far, seat, tokio::spawn(serve(near, handle, context)))
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
        let mut writer = BlobWriter::in_file(Descriptor::of("x/y", bytes), tempfile::tempfile().unwrap());
        writer.write(bytes).unwrap();
        writer.finish(Bytes::from).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_whose_client_gives_no_room_is_reset_and_the_others_go_on() {
        for window in [0, 1, 100] {
            let (stream, _seat, _serving) = connected(Content::Memory(vec![7; LARGE].into()));
            let mut send = client(stream, window).await;
            let held = ask(&mut send, "/held").await;
            let stuck = ask(&mut send, "/").await.await.unwrap();
            let began = Instant::now();
            let mut body = stuck.into_body();
            let error = loop {
                match body.data().await.unwrap() {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!((error.reason(), began.elapsed()), (Some(Reason::CANCEL), Deadlines::default().progress));
            // With room for it, that is.
            assert_eq!(held.await.unwrap().status(), StatusCode::OK);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_byte_now_and_then_is_not_one_that_takes_its_response() {
        let (stream, _seat, _serving) = connected(Content::Memory(vec![7; LARGE].into()));
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
    async fn who_is_slow_but_steady_gets_all_of_it_from_memory_and_from_a_file() {
        let bytes: Vec<u8> = (0..LARGE).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for content in [Content::Memory(bytes.clone().into()), Content::File(in_file(&bytes))] {
            let (stream, seat, _serving) = connected(content);
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
            assert!(seat.is_idle());
        }
    }

    /// 1 000 streams with a window of 1 byte on one connection cost 520 MiB once.
    #[tokio::test]
    async fn a_file_is_read_only_as_far_as_its_clients_have_room() {
        let (stream, seat, _serving) = connected(Content::File(in_file(&vec![7; LARGE])));
        let mut send = client(stream, 1).await;
        let mut bodies = Vec::new();
        for _ in 0..40 {
            let mut body = ask(&mut send, "/").await.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap().len(), 1);
            bodies.push(body);
        }
        let [connection, all] = seat.unsent().map(|unsent| unsent.load(Ordering::Relaxed));
        assert!(connection <= 40 * SMALLEST_READ && all == connection, "{connection} {all}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_too_many_is_turned_away_and_waits_for_nobody() {
        let (stream, _seat, _serving) = connected(Content::Memory(Bytes::from_static(b"x")));
        let mut send = client(stream, 0).await;
        // The first of the connection, and four times ten more.
        let mut stuck = Vec::new();
        for _ in 0..41 {
            stuck.push(ask(&mut send, "/").await.await.unwrap().into_body());
        }
        let began = Instant::now();
        let response = ask(&mut send, "/").await.await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let error = response.into_body().data().await.unwrap().unwrap_err();
        assert_eq!((error.reason(), began.elapsed()), (Some(Reason::CANCEL), TOO_MANY));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dismissed_connection_ends_whatever_its_client_does() {
        for window in [0, 65_535] {
            let (stream, seat, serving) = connected(Content::Memory(Bytes::from_static(b"x")));
            let mut send = client(stream, window).await;
            let body = ask(&mut send, "/").await.await.unwrap().into_body();
            advance(Deadlines::default().stalled).await;
            let began = Instant::now();
            assert!(seat.dismiss());
            serving.await.unwrap();
            assert!(began.elapsed() <= Deadlines::default().close_grace, "{window}: {:?}", began.elapsed());
            drop(body);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_no_ping_is_gone() {
        let (mut stream, _seat, serving) = connected(Content::Memory(Bytes::from_static(b"x")));
        // It sends a preface and one request, and nothing any more.
        let request =
            [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84"];
        tokio::io::AsyncWriteExt::write_all(&mut stream, &request.concat()).await.unwrap();
        let began = Instant::now();
        serving.await.unwrap();
        assert_eq!(began.elapsed(), PING_EVERY + PONG_WITHIN);
    }
}
