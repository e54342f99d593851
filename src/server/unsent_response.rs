//! A response that is being sent: its progress, and the memory of its unsent chunks.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::idle_connections::{PROGRESS_BYTES, Slot};

/// Bytes that are read from a file at once.
const MAX_READ_BYTES: usize = 64 << 10;
/// Bytes that are read from a file at once above one of the two thresholds below.
pub(super) const MIN_READ_BYTES: usize = 4 << 10;
/// Unsent bytes of one connection from which on its responses are read in small chunks.
const CONNECTION_UNSENT_BYTES: usize = 1 << 20;
/// Unsent bytes of all connections from which on all responses are read in small chunks.
const TOTAL_UNSENT_BYTES: usize = 256 << 20;

/// A response that is being sent. It ends when this value and all its chunks are dropped.
#[derive(Debug, Clone)]
pub(super) struct UnsentResponse(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    slot: Arc<Slot>,
    number: u32,
    /// Chunks that the protocol has taken and not sent yet.
    chunks: AtomicUsize,
    sent: Notify,
}

/// Bytes of a response; dropped once the socket has accepted them.
struct Chunk {
    bytes: Bytes,
    /// Bytes that count as unsent memory.
    counted_bytes: usize,
    response: Arc<Inner>,
}

impl UnsentResponse {
    /// The response that has this number in `slot`.
    pub(super) fn new(slot: Arc<Slot>, number: u32) -> Self {
        Self(Arc::new(Inner {
            slot,
            number,
            chunks: AtomicUsize::new(0),
            sent: Notify::new(),
        }))
    }

    /// Records that the peer opened its window or accepted bytes.
    pub(super) fn record_progress(&self) {
        self.0.slot.record_progress(self.0.number);
    }

    /// A chunk of bytes that are in memory in any case, and so not counted.
    pub(super) fn wrap_shared(&self, bytes: Bytes) -> Bytes {
        self.chunk(bytes, 0)
    }

    /// A chunk of bytes that were read for this response.
    pub(super) fn wrap_read(&self, bytes: Bytes) -> Bytes {
        let counted_bytes = bytes.len();
        self.0
            .slot
            .unsent_bytes()
            .iter()
            .for_each(|unsent| _ = unsent.fetch_add(counted_bytes, Ordering::Relaxed));
        self.chunk(bytes, counted_bytes)
    }

    /// How many bytes to read from a file at once. It is never zero, so that no response waits for
    /// the memory that other responses hold.
    pub(super) fn read_size(&self) -> usize {
        let [connection, all] = self
            .0
            .slot
            .unsent_bytes()
            .map(|unsent| unsent.load(Ordering::Relaxed));
        if connection < CONNECTION_UNSENT_BYTES && all < TOTAL_UNSENT_BYTES {
            MAX_READ_BYTES
        } else {
            MIN_READ_BYTES
        }
    }

    /// Whether all chunks are sent.
    pub(super) fn is_sent(&self) -> bool {
        self.0.chunks.load(Ordering::Acquire) == 0
    }

    /// Completes when all chunks are sent. Cancel-safe.
    pub(super) async fn wait_until_sent(&self) {
        while !self.is_sent() {
            self.0.sent.notified().await;
        }
    }

    fn chunk(&self, bytes: Bytes, counted_bytes: usize) -> Bytes {
        self.0.chunks.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Chunk {
            bytes,
            counted_bytes,
            response: Arc::clone(&self.0),
        })
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.response
            .slot
            .unsent_bytes()
            .iter()
            .for_each(|unsent| _ = unsent.fetch_sub(self.counted_bytes, Ordering::Relaxed));
        self.response.chunks.fetch_sub(1, Ordering::Release);
        if self.bytes.len() >= PROGRESS_BYTES {
            self.response.slot.record_progress(self.response.number);
        }
        self.response.sent.notify_one();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.slot.end_response(self.number);
    }
}
