//! The body of a request, which most requests don't have and most handlers drop unread.

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

/// The body of a request over either protocol.
#[derive(Debug)]
pub(super) enum RequestBody {
    Http1(Incoming),
    Http2(RecvStream),
}

/// The beginning of a body whose end has arrived, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) bytes: Bytes,
    /// The body has more, which was discarded.
    pub(super) is_cut: bool,
}

/// Why a body can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It exceeds the limit.
    TooLarge,
    /// It did not arrive in time.
    TimedOut,
    /// The connection or the stream broke.
    Broken,
}

impl RequestBody {
    /// Reads the whole body: at most `limit` bytes, within `deadline`. Cancel-safe in that the body
    /// is lost.
    pub(super) async fn read(self, limit: usize, deadline: Duration) -> Result<Bytes, BodyError> {
        let body = self.read_prefix(limit, limit, deadline).await?;
        Ok(body.bytes)
    }

    /// Reads the whole body as [`RequestBody::read`] does, and keeps its first `kept` bytes. Needs
    /// memory for them and for what arrives at a time.
    pub(super) async fn read_prefix(
        self,
        kept: usize,
        limit: usize,
        deadline: Duration,
    ) -> Result<Prefix, BodyError> {
        let prefix = PrefixBuffer::new(kept, limit);
        let reading = async {
            match self {
                Self::Http1(body) => read_http1(body, prefix).await,
                Self::Http2(stream) => read_http2(stream, prefix).await,
            }
        };
        timeout(deadline, reading)
            .await
            .unwrap_or(Err(BodyError::TimedOut))
    }
}

async fn read_http1(mut body: Incoming, mut prefix: PrefixBuffer) -> Result<Prefix, BodyError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| BodyError::Broken)?;
        if let Some(chunk) = frame.data_ref() {
            prefix.push(chunk)?;
        }
    }
    Ok(prefix.finish())
}

async fn read_http2(mut stream: RecvStream, mut prefix: PrefixBuffer) -> Result<Prefix, BodyError> {
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.map_err(|_| BodyError::Broken)?;
        prefix.push(&chunk)?;
        stream
            .flow_control()
            .release_capacity(chunk.len())
            .map_err(|_| BodyError::Broken)?;
    }
    Ok(prefix.finish())
}

/// Keeps the first bytes of a body, and counts all of them.
struct PrefixBuffer {
    bytes: Vec<u8>,
    /// At most this many bytes are kept.
    kept: usize,
    /// The bytes that have arrived.
    length: usize,
    limit: usize,
}

impl PrefixBuffer {
    fn new(kept: usize, limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            kept,
            length: 0,
            limit,
        }
    }

    fn push(&mut self, chunk: &[u8]) -> Result<(), BodyError> {
        self.length = self.length.saturating_add(chunk.len());
        if self.length > self.limit {
            return Err(BodyError::TooLarge);
        }
        let added = chunk.len().min(self.kept - self.bytes.len());
        self.reserve(added);
        self.bytes.extend_from_slice(&chunk[..added]);
        Ok(())
    }

    /// Doubles the capacity as a vector does, but not beyond the bytes that are kept.
    fn reserve(&mut self, added: usize) {
        let needed = self.bytes.len() + added;
        if needed > self.bytes.capacity() {
            let capacity = needed.max(2 * self.bytes.capacity()).min(self.kept);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
    }

    fn finish(self) -> Prefix {
        Prefix {
            is_cut: self.length > self.bytes.len(),
            bytes: self.bytes.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::{pending, poll_fn},
    };

    use http_body_util::Empty;
    use hyper::{Request, Response, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncWriteExt as _, DuplexStream, duplex},
        sync::mpsc,
        time::Instant,
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const MIB: usize = 1 << 20;

    #[derive(Debug, Clone, Copy)]
    enum Protocol {
        Http1,
        Http2,
    }

    /// What follows the bytes that the client sends.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum End {
        Complete,
        Stalled,
        Broken,
    }

    /// Reads a body of `sent` bytes on a connection that carries a few of them at a time.
    async fn read(
        protocol: Protocol,
        (sent, end): (usize, End),
        (kept, limit): (usize, usize),
    ) -> Result<Prefix, BodyError> {
        let (client, server) = duplex(1 << 10);
        let (bodies, mut received) = mpsc::channel(1);
        match protocol {
            Protocol::Http1 => {
                tokio::spawn(serve_http1(server, bodies));
                tokio::spawn(send_http1(client, body(sent), end));
            }
            Protocol::Http2 => {
                tokio::spawn(serve_http2(server, bodies));
                tokio::spawn(send_http2(client, body(sent), end));
            }
        }
        let body = received.recv().await.unwrap();
        body.read_prefix(kept, limit, DEADLINE).await
    }

    fn body(length: usize) -> Bytes {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    async fn serve_http1(stream: DuplexStream, bodies: mpsc::Sender<RequestBody>) {
        let service = service_fn(|request: Request<Incoming>| {
            let bodies = bodies.clone();
            async move {
                let _ = bodies.send(RequestBody::Http1(request.into_body())).await;
                pending::<Result<Response<Empty<Bytes>>, Infallible>>().await
            }
        });
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn serve_http2(stream: DuplexStream, bodies: mpsc::Sender<RequestBody>) {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        // Dropping the sender of the response would reset the stream.
        let mut unanswered = Vec::new();
        while let Some(Ok((request, response))) = connection.accept().await {
            unanswered.push(response);
            let _ = bodies.send(RequestBody::Http2(request.into_body())).await;
        }
    }

    async fn send_http1(mut stream: DuplexStream, body: Bytes, end: End) {
        let length = body.len() + usize::from(end != End::Complete);
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&body).await;
        if end != End::Broken {
            pending::<()>().await;
        }
    }

    async fn send_http2(stream: DuplexStream, mut body: Bytes, end: End) {
        let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://x/").body(()).unwrap();
        let (_response, mut stream) = send.send_request(request, false).unwrap();
        while !body.is_empty() {
            stream.reserve_capacity(body.len());
            let Some(Ok(capacity)) = poll_fn(|context| stream.poll_capacity(context)).await else {
                return;
            };
            let _ = stream.send_data(body.split_to(capacity), false);
        }
        match end {
            End::Complete => _ = stream.send_data(Bytes::new(), true),
            End::Stalled => {}
            End::Broken => stream.send_reset(h2::Reason::INTERNAL_ERROR),
        }
        pending::<()>().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_are_kept_and_the_others_discarded_up_to_the_limit() {
        let too_large = Err(BodyError::TooLarge);
        for (sent, kept, limit, expected) in [
            (0, 10, 20, Ok((0, false))),
            (10, 10, 20, Ok((10, false))),
            (11, 10, 20, Ok((10, true))),
            (20, 10, 20, Ok((10, true))),
            (21, 10, 20, too_large),
            (20, 20, 20, Ok((20, false))),
            (5, 0, 5, Ok((0, true))),
            // More than the window of an HTTP/2 stream.
            (MIB, 100_000, MIB, Ok((100_000, true))),
            (MIB, MIB, MIB, Ok((MIB, false))),
            (MIB + 1, 100_000, MIB, too_large),
        ] {
            for protocol in [Protocol::Http1, Protocol::Http2] {
                let read = read(protocol, (sent, End::Complete), (kept, limit)).await;
                let expected = expected.map(|(length, is_cut)| Prefix {
                    bytes: body(sent).slice(..length),
                    is_cut,
                });
                assert!(read == expected, "{protocol:?}: {sent} of {kept}, {limit}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_an_error() {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            for sent in [0, 100_000] {
                let began = Instant::now();
                let stalled = read(protocol, (sent, End::Stalled), (10, MIB)).await;
                assert_eq!(stalled, Err(BodyError::TimedOut));
                assert_eq!(began.elapsed(), DEADLINE);
                let broken = read(protocol, (sent, End::Broken), (10, MIB)).await;
                assert_eq!(broken, Err(BodyError::Broken));
            }
        }
    }

    #[test]
    fn memory_is_that_of_the_bytes_that_are_kept() {
        let mut buffer = PrefixBuffer::new(10_000, MIB);
        for _ in 0..MIB / 1000 {
            buffer.push(&[0; 1000]).unwrap();
            assert!(buffer.bytes.capacity() <= 10_000);
        }
        assert_eq!(buffer.finish().bytes.len(), 10_000);
    }
}
