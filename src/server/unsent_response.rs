//! A response on its way: how far its peer has taken it, and what it keeps in memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::idle_connections::{PROGRESS_BYTES, Seat};

/// The most that is read from a file at once.
const LARGE: usize = 64 << 10;
/// The least; also what one response may have in memory when all together have too much.
const SMALL: usize = 4 << 10;
/// From here on the responses of one connection are read in small pieces …
const CONNECTION_BYTES: usize = 1 << 20;
/// … and from here on those of all connections.
const ALL_BYTES: usize = 256 << 20;

/// A response that is being sent, for as long as this or one of its pieces lives.
#[derive(Debug, Clone)]
pub(super) struct Responding(Arc<Response>);

#[derive(Debug)]
struct Response {
    seat: Arc<Seat>,
    number: u64,
    /// Pieces that were handed on and are not sent yet.
    pieces: AtomicUsize,
    sent: Notify,
}

/// Some bytes of a response; dropped once the socket has taken them.
struct Piece {
    bytes: Bytes,
    /// What it takes of the memory for pieces.
    weight: usize,
    response: Arc<Response>,
}

impl Responding {
    /// The response that `seat` knows by this number.
    pub(super) fn new(seat: Arc<Seat>, number: u64) -> Self {
        Self(Arc::new(Response { seat, number, pieces: AtomicUsize::new(0), sent: Notify::new() }))
    }

    /// The peer has made room, or taken something.
    pub(super) fn progressed(&self) {
        self.0.seat.progressed(self.0.number);
    }

    /// Bytes that are in memory anyway.
    pub(super) fn shared(&self, bytes: Bytes) -> Bytes {
        self.piece(bytes, 0)
    }

    /// Bytes that were read for this response.
    pub(super) fn owned(&self, bytes: Bytes) -> Bytes {
        let weight = bytes.len();
        self.0.seat.unsent().iter().for_each(|unsent| _ = unsent.fetch_add(weight, Ordering::Relaxed));
        self.piece(bytes, weight)
    }

    /// How much may be read from a file for it now; never nothing, so that nobody waits for
    /// what others hold.
    pub(super) fn allowance(&self) -> usize {
        let [connection, all] = self.0.seat.unsent().map(|unsent| unsent.load(Ordering::Relaxed));
        if connection < CONNECTION_BYTES && all < ALL_BYTES { LARGE } else { SMALL }
    }

    /// Until no piece is left. Cancel-safe.
    pub(super) async fn sent(&self) {
        while self.0.pieces.load(Ordering::Acquire) > 0 {
            self.0.sent.notified().await;
        }
    }

    fn piece(&self, bytes: Bytes, weight: usize) -> Bytes {
        self.0.pieces.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Piece { bytes, weight, response: Arc::clone(&self.0) })
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.response.seat.unsent().iter().for_each(|unsent| _ = unsent.fetch_sub(self.weight, Ordering::Relaxed));
        self.response.pieces.fetch_sub(1, Ordering::Release);
        if self.bytes.len() >= PROGRESS_BYTES {
            self.response.seat.progressed(self.response.number);
        }
        self.response.sent.notify_one();
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        self.seat.responded(self.number);
    }
}
