use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use h2::{Reason, client};
use hyper::StatusCode;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
    },
    sync::watch,
    task::yield_now,
    time::{Instant, advance},
};

use super::*;
use crate::{
    oci::{Blob, BlobWriter, Descriptor},
    server::{
        Deadlines,
        drain::Phase,
        idle_connections::{IdleConnections, Limits, Slot},
        unsent_response::MIN_READ_BYTES,
        write_timeout::WriteTimeout,
    },
};

const LARGE: usize = 1 << 20;

/// A connection that answers every request with `body`, and `/held` after 300 s.
fn connected(body: ResponseBody) -> (DuplexStream, Arc<Slot>, tokio::task::JoinHandle<()>) {
    let (client_end, server_end) = duplex(4 * LARGE);
    let (slot, serving) = serve_in(Phase::Open, server_end, body);
    (client_end, slot, serving)
}

/// Serves a connection as above, in a phase of the drain.
fn serve_in<S>(
    phase: Phase,
    stream: S,
    body: ResponseBody,
) -> (Arc<Slot>, tokio::task::JoinHandle<()>)
where
    WriteTimeout<S>: Transport + 'static,
{
    let deadlines = Deadlines::default();
    let slot = IdleConnections::new(Limits::new(10, 10, deadlines)).register();
    let peer = Peer {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        certificate: None,
        slot: Arc::clone(&slot),
        is_over_limit: false,
    };
    let drain = DrainSignal::new(watch::channel(phase).1);
    let context = ConnectionContext { peer, drain };
    let stream = WriteTimeout::new(stream, deadlines.progress, Arc::clone(&slot));
    let service = Arc::new(move |request: Request<RequestBody>, peer: &Peer| {
        let mut response = Response::new(body.clone());
        if peer.is_over_limit {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        if request.uri().path() != "/held" {
            return Answer::Now(response);
        }
        Answer::later(async move {
            sleep(Duration::from_secs(300)).await;
            response
        })
    });
    (slot, tokio::spawn(serve(stream, service, context)))
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
    let (mut stream, _slot, serving) = connected(ResponseBody::Memory(Bytes::from_static(b"x")));
    // The client sends a preface and one request, and nothing else.
    let request = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84",
    ];
    stream.write_all(&request.concat()).await.unwrap();
    let began = Instant::now();
    serving.await.unwrap();
    assert_eq!(began.elapsed(), PING_INTERVAL + PONG_TIMEOUT);
}

/// Counts the writes to a stream.
struct CountedWrites(DuplexStream, Arc<AtomicUsize>);

impl Transport for WriteTimeout<CountedWrites> {}

impl AsyncRead for CountedWrites {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for CountedWrites {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;

/// The HEADERS frame of `GET /`.
fn get(stream: u32) -> Vec<u8> {
    [
        &b"\0\0\x03\x01\x05"[..],
        &stream.to_be_bytes(),
        b"\x82\x86\x84",
    ]
    .concat()
}

/// Reads the next frame: its type, and the stream.
async fn frame(stream: &mut DuplexStream) -> (u8, u32) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let [a, b, c, kind, _, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (kind, u32::from_be_bytes(id))
}

/// Sends the preface and SETTINGS, and reads those of the server and its acknowledgement.
async fn handshake(stream: &mut DuplexStream) {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).await.unwrap();
    for _ in 0..2 {
        assert_eq!(frame(stream).await.0, SETTINGS);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_arrive_together_are_answered_in_one_write() {
    let writes = Arc::new(AtomicUsize::new(0));
    let (mut client, server) = duplex(LARGE);
    let server = CountedWrites(server, Arc::clone(&writes));
    let (_slot, _serving) = serve_in(Phase::Open, server, ResponseBody::empty());
    handshake(&mut client).await;
    for first in [1, 17] {
        let requests = (0..8).map(|n| get(first + 2 * n)).collect::<Vec<_>>();
        let before = writes.load(Ordering::Relaxed);
        client.write_all(&requests.concat()).await.unwrap();
        for n in 0..8 {
            assert_eq!(frame(&mut client).await, (HEADERS, first + 2 * n));
        }
        assert_eq!(writes.load(Ordering::Relaxed), before + 1);
    }
}

/// A lost wake-up would show as time that passes.
#[tokio::test(start_paused = true)]
async fn requests_in_segments_of_any_size_are_all_answered_at_once() {
    for body in [0, 100, 1000] {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut client, server) = duplex(random.usize(64..LARGE));
            let body = ResponseBody::Memory(vec![7; body].into());
            let (slot, _serving) = serve_in(Phase::Open, server, body);
            handshake(&mut client).await;
            let began = Instant::now();
            let requests = (0..300)
                .map(|n| get(2 * n + 1))
                .collect::<Vec<_>>()
                .concat();
            let (mut reading, mut writing) = tokio::io::split(client);
            let reader = tokio::spawn(async move {
                let (mut heads, mut frame_head) = (0, [0; 9]);
                while heads < 300 {
                    reading.read_exact(&mut frame_head).await.unwrap();
                    let [a, b, c, kind, ..] = frame_head;
                    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                    reading.read_exact(&mut payload).await.unwrap();
                    heads += usize::from(kind == HEADERS);
                }
                reading
            });
            let mut rest = &requests[..];
            while !rest.is_empty() {
                let (segment, next) = rest.split_at(random.usize(1..=rest.len().min(4000)));
                writing.write_all(segment).await.unwrap();
                rest = next;
                for _ in 0..random.usize(0..4) {
                    yield_now().await;
                }
            }
            let _reading = reader.await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO, "seed {seed}");
            drop(slot);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_queued_body_counts_as_unsent_until_the_socket_has_accepted_it() {
    let (mut client, server) = duplex(1000);
    let body = ResponseBody::Memory(vec![7; 20_000].into());
    let (slot, _serving) = serve_in(Phase::Open, server, body);
    handshake(&mut client).await;
    client.write_all(&get(1)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(!slot.is_idle());
    for kind in [HEADERS, DATA, DATA] {
        assert_eq!(frame(&mut client).await, (kind, 1));
    }
    sleep(Duration::from_millis(1)).await;
    assert!(slot.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_response_delays_no_other_response() {
    let body = vec![7; 20_000];
    let (stream, slot, _serving) = connected(ResponseBody::Memory(body.clone().into()));
    let mut send = client(stream, 30_000).await;
    // Without release of capacity the window of the connection has room for three bodies.
    let mut stalled = Vec::new();
    for _ in 0..3 {
        stalled.push(ask(&mut send, "/").await.await.unwrap().into_body());
    }
    let began = Instant::now();
    let partial = ask(&mut send, "/").await.await.unwrap().into_body();
    for mut read in stalled {
        let mut taken = Vec::new();
        while let Some(data) = read.data().await {
            taken.extend_from_slice(&data.unwrap());
        }
        assert!(taken == body);
        read.flow_control().release_capacity(taken.len()).unwrap();
    }
    let mut read = partial;
    let mut taken = Vec::new();
    while let Some(data) = read.data().await {
        taken.extend_from_slice(&data.unwrap());
    }
    assert!(taken == body);
    assert_eq!(began.elapsed(), Duration::ZERO);
    sleep(Duration::from_millis(1)).await;
    assert!(slot.is_idle());
}

#[tokio::test(start_paused = true)]
async fn during_the_drain_a_response_at_once_closes_its_connection() {
    for body in [0, 1000, LARGE] {
        let (client_end, server) = duplex(LARGE);
        let content = ResponseBody::Memory(vec![7; body].into());
        let (_slot, serving) = serve_in(Phase::Notice, server, content);
        let mut send = client(client_end, 2 * u32::try_from(LARGE).unwrap()).await;
        let mut read = ask(&mut send, "/").await.await.unwrap().into_body();
        let mut taken = 0;
        while let Some(data) = read.data().await {
            let data = data.unwrap();
            taken += data.len();
            read.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(taken, body);
        drop(read);
        let began = Instant::now();
        serving.await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
