//! The body of a request: a blob or a part of one, read as it is sent.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::stream;
use tokio::task::spawn_blocking;

use crate::oci::Blob;

/// What is in memory of a blob on disk while it is sent.
const PIECE: u64 = 256 * 1024;

/// Bytes to send; any number of times, since a redirect or a challenge repeats them.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    blob: Blob,
    start: u64,
    length: u64,
    media_type: String,
    range: Option<String>,
    sent: Arc<AtomicU64>,
}

impl Payload {
    /// All of a blob.
    pub(super) fn whole(blob: &Blob, media_type: &str) -> Self {
        Self {
            start: 0,
            length: blob.size(),
            blob: blob.clone(),
            media_type: media_type.to_owned(),
            range: None,
            sent: Arc::default(),
        }
    }

    /// A chunk of a blob, with the `Content-Range` that says which.
    pub(super) fn chunk(blob: &Blob, start: u64, length: u64) -> Self {
        let range = Some(format!("{start}-{}", (start + length).saturating_sub(1)));
        Self { start, length, range, ..Self::whole(blob, OCTETS) }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn media_type(&self) -> &str {
        &self.media_type
    }

    /// `a-b`, without the unit: distribution-spec, "Pushing a blob in chunks".
    pub(super) fn range(&self) -> Option<&str> {
        self.range.as_deref()
    }

    /// How many bytes the network has taken so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn body(&self) -> reqwest::Body {
        self.sent.store(0, Ordering::Relaxed);
        if let (Some(bytes), None) = (self.blob.in_memory(), &self.range) {
            self.sent.store(self.length, Ordering::Relaxed);
            return bytes.clone().into();
        }
        reqwest::Body::wrap_stream(stream::unfold((self.clone(), 0), |(payload, at)| async move {
            // Asked for more, so what came before is on its way.
            payload.sent.store(at, Ordering::Relaxed);
            let length = PIECE.min(payload.length - at);
            if length == 0 {
                return None;
            }
            let piece = payload.read(payload.start + at, length).await;
            Some((piece, (payload, at + length)))
        }))
    }

    async fn read(&self, offset: u64, length: u64) -> std::io::Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.blob.in_memory().is_some() {
            return self.blob.read_at(offset, length);
        }
        let blob = self.blob.clone();
        spawn_blocking(move || blob.read_at(offset, length)).await?
    }
}

/// What every blob is on its way.
pub(super) const OCTETS: &str = "application/octet-stream";
