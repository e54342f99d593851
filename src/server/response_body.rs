//! The body of a response: bytes in memory, or a file that is read while it is sent.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use super::unsent_response::Responding;
use crate::oci::Blob;

/// What a response consists of beside its headers.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Memory(Bytes),
    File(Blob),
}

impl Content {
    pub(super) fn empty() -> Self {
        Self::Memory(Bytes::new())
    }

    pub(super) fn of(blob: &Blob) -> Self {
        match blob.in_memory() {
            Some(bytes) => Self::Memory(bytes.clone()),
            None => Self::File(blob.clone()),
        }
    }

    /// In bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(blob) => blob.size(),
        }
    }
}

/// A body for HTTP/1. hyper asks for the next piece when the socket has taken the last one but
/// for a few KiB, and the socket's own deadline ([`super::write_timeout`]) sees to progress.
#[derive(Debug)]
pub(super) struct Sending {
    content: Content,
    offset: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// None for a body without bytes.
    responding: Option<Responding>,
}

impl Sending {
    pub(super) fn new(content: Content, responding: Option<Responding>) -> Self {
        Self { content, offset: 0, reading: None, responding }
    }

    fn next(&mut self, context: &mut Context<'_>, responding: &Responding) -> Poll<io::Result<Bytes>> {
        match &self.content {
            Content::Memory(bytes) => Poll::Ready(Ok(responding.shared(bytes.clone()))),
            Content::File(blob) => {
                let reading = self.reading.get_or_insert_with(|| {
                    let (blob, offset, length) = (blob.clone(), self.offset, responding.allowance());
                    spawn_blocking(move || blob.read_at(offset, length))
                });
                let read = ready!(Pin::new(reading).poll(context));
                self.reading = None;
                Poll::Ready(read.map_err(io::Error::other).flatten().map(|bytes| responding.owned(bytes)))
            }
        }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let Some(responding) = self.responding.clone() else { return Poll::Ready(None) };
        let piece = ready!(self.next(context, &responding));
        // After an error the connection breaks off, so the position does not matter.
        self.offset = piece.as_ref().map_or(u64::MAX, |piece| self.offset + piece.len() as u64);
        Poll::Ready(Some(piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.offset >= self.content.size()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.size().saturating_sub(self.offset))
    }
}
