//! The body of a response: bytes in memory, or a file that is read while it is sent.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    delivery::{BodyBytes, Delivery},
    unsent_response::UnsentResponse,
};
use crate::oci::Blob;

/// The body of a response.
#[derive(Debug, Clone)]
pub(super) enum ResponseBody {
    /// Bytes in memory.
    Memory(Bytes),
    /// A blob in a file, which is read while it is sent.
    File(Blob),
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self::Memory(Bytes::new())
    }

    pub(super) fn of(blob: &Blob) -> Self {
        match blob.in_memory() {
            Some(bytes) => Self::Memory(bytes.clone()),
            None => Self::File(blob.clone()),
        }
    }

    /// The size in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(blob) => blob.size(),
        }
    }
}

/// A body for HTTP/1. hyper polls for the next chunk when the socket has accepted all but a few
/// KiB of the last one, and [`super::write_timeout`] enforces progress.
#[derive(Debug)]
pub(super) struct Http1Body {
    content: ResponseBody,
    offset: u64,
    pending_read: Option<JoinHandle<io::Result<Bytes>>>,
    /// `None` for an empty body.
    unsent: Option<UnsentResponse>,
    delivery: Option<Arc<Delivery>>,
}

impl Http1Body {
    pub(super) fn new(
        content: ResponseBody,
        unsent: Option<UnsentResponse>,
        delivery: Option<Arc<Delivery>>,
    ) -> Self {
        Self {
            content,
            offset: 0,
            pending_read: None,
            unsent,
            delivery,
        }
    }

    fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
        unsent: &UnsentResponse,
    ) -> Poll<io::Result<Bytes>> {
        match &self.content {
            ResponseBody::Memory(bytes) => Poll::Ready(Ok(unsent.wrap_shared(bytes.clone()))),
            ResponseBody::File(blob) => {
                let pending_read = self.pending_read.get_or_insert_with(|| {
                    let (blob, offset, length) = (blob.clone(), self.offset, unsent.read_size());
                    spawn_blocking(move || blob.read_at(offset, length))
                });
                let read = ready!(Pin::new(pending_read).poll(context));
                self.pending_read = None;
                Poll::Ready(
                    read.map_err(io::Error::other)
                        .flatten()
                        .map(|bytes| unsent.wrap_read(bytes)),
                )
            }
        }
    }
}

impl Body for Http1Body {
    type Data = BodyBytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<BodyBytes>, io::Error>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let Some(unsent) = self.unsent.clone() else {
            return Poll::Ready(None);
        };
        let chunk = ready!(self.poll_chunk(context, &unsent));
        // After an error hyper closes the connection, so the offset no longer matters.
        self.offset = chunk
            .as_ref()
            .map_or(u64::MAX, |chunk| self.offset + chunk.len() as u64);
        let chunk = chunk.map(|chunk| BodyBytes::new(chunk, self.delivery.clone()));
        Poll::Ready(Some(chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.offset >= self.content.size()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.size().saturating_sub(self.offset))
    }
}
