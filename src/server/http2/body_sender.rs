//! Sends the body of a response as far as the client's window allows.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use tokio::{task::spawn_blocking, time::timeout};

use super::MAX_SEND_BUFFER_BYTES;
use crate::server::{
    delivery::{BodyBytes, Delivery},
    idle_connections::{ActiveStream, PROGRESS_BYTES},
    response_body::ResponseBody,
    unsent_response::{MIN_READ_BYTES, UnsentResponse},
};

/// Sends the body of one response.
pub(super) struct BodySender {
    pub(super) stream: SendStream<BodyBytes>,
    pub(super) content: ResponseBody,
    /// Bytes of the body that `h2` has taken.
    pub(super) offset: u64,
    pub(super) unsent: UnsentResponse,
    pub(super) delivery: Option<Arc<Delivery>>,
    /// Time for the client to open its window for [`PROGRESS_BYTES`].
    pub(super) window_timeout: Duration,
    /// Time for the socket to accept the last chunks.
    pub(super) progress_timeout: Duration,
    /// Counts the stream until its body is sent.
    pub(super) _active: Option<ActiveStream>,
}

impl BodySender {
    /// Passes the whole body to `h2`, if it is in memory and fits the window of the client. Returns
    /// whether it did.
    pub(super) fn queue(&mut self) -> bool {
        let ResponseBody::Memory(bytes) = &self.content else {
            return false;
        };
        if bytes.len() > MAX_SEND_BUFFER_BYTES {
            return false;
        }
        self.stream.reserve_capacity(bytes.len());
        if self.stream.capacity() < bytes.len() {
            return false;
        }
        let chunk = self.unsent.wrap_shared(bytes.clone());
        let chunk = BodyBytes::new(chunk, self.delivery.clone());
        if self.stream.send_data(chunk, true).is_err() {
            return false;
        }
        self.offset = bytes.len() as u64;
        true
    }

    /// Whether the socket has accepted all that `h2` has taken.
    pub(super) fn is_sent(&self) -> bool {
        self.unsent.is_sent()
    }

    /// Completes when the socket has accepted the whole body, or the response was reset.
    pub(super) async fn send(mut self) {
        let mut offset = self.offset;
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
                    let chunk = BodyBytes::new(chunk, self.delivery.clone());
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
