//! The largest reply that is read. The `redis` crate reads replies of any size.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest reply to a call: several times what the largest log or page of records has.
const MAX_REPLY_BYTES: usize = 64 << 20;

/// The bytes that the server may send until the next call. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct ReplyLimit(Arc<AtomicUsize>);

/// A stream whose reads fail beyond a [`ReplyLimit`].
#[derive(Debug)]
pub(super) struct LimitedStream<S> {
    stream: S,
    limit: ReplyLimit,
}

impl ReplyLimit {
    /// Begins a call.
    pub(super) fn reset(&self) {
        self.0.store(MAX_REPLY_BYTES, Ordering::Relaxed);
    }

    /// Limits what is read from a stream.
    pub(super) fn apply<S>(&self, stream: S) -> LimitedStream<S> {
        LimitedStream {
            stream,
            limit: self.clone(),
        }
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        let take = |left: usize| left.checked_sub(bytes);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let too_large = |_| io::Error::other("the reply is larger than 64 MiB");
        taken.map(drop).map_err(too_large)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.limit.take(buf.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_at_the_limit_and_a_call_begins_anew() {
        let limit = ReplyLimit::default();
        let mut stream = limit.apply(tokio::io::repeat(1));
        let mut reply = vec![0; MAX_REPLY_BYTES];
        for _ in 0..2 {
            limit.reset();
            stream.read_exact(&mut reply).await.unwrap();
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.to_string(), "the reply is larger than 64 MiB");
        }
    }
}
