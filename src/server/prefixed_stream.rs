//! A stream that first returns bytes that were read from it before.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// The client connection preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that are read at once. The parser then sees a request as it has arrived.
const READ_BYTES: usize = 16 << 10;

/// Returns `prefix`, then the rest of `stream`.
#[derive(Debug)]
pub(super) struct PrefixedStream<S> {
    prefix: Bytes,
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> PrefixedStream<S> {
    pub(super) fn new(prefix: Bytes, stream: S) -> Self {
        Self { prefix, stream }
    }

    /// Reads as many bytes as it takes to detect HTTP/2 by its preface. The stream returns them
    /// again.
    ///
    /// # Errors
    /// When reading fails.
    pub(super) async fn detect_http2(&mut self) -> io::Result<bool> {
        if self.prefix.len() >= PREFACE.len() || !PREFACE.starts_with(&self.prefix) {
            return Ok(self.prefix.starts_with(PREFACE));
        }
        let mut read = BytesMut::with_capacity(READ_BYTES);
        read.extend_from_slice(&self.prefix);
        while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
            if self.stream.read_buf(&mut read).await? == 0 {
                break;
            }
        }
        self.prefix = read.freeze();
        Ok(self.prefix.starts_with(PREFACE))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefixedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefixedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    // Without these two methods hyper copies every body into one buffer.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncWriteExt as _, duplex},
        time::sleep,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn http_2_is_detected_by_its_preface_and_no_byte_is_lost() {
        for (sent, is_http2) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"[..], true),
            (b"GET / HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", false),
            (b"PRI", false),
            (b"", false),
        ] {
            let (near, mut far) = duplex(64);
            tokio::spawn(async move {
                for byte in sent {
                    far.write_all(&[*byte]).await.unwrap();
                    sleep(Duration::from_millis(1)).await;
                }
            });
            let mut stream = PrefixedStream::new(Bytes::new(), near);
            let found = stream.detect_http2().await.unwrap();
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            assert_eq!((found, read), (is_http2, sent.to_vec()));
        }
    }
}
