//! The body of a request, or of several that each carry a part: read as it is sent.

use std::{
    fs, io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use tokio::task::spawn_blocking;

use crate::oci::Blob;

/// What is in memory of a blob on disk while it is sent.
const PIECE: u64 = 256 * 1024;

/// Bytes, wherever they are.
#[derive(Debug, Clone)]
pub(super) enum Load {
    Memory(Bytes),
    Blob(Blob),
    /// What nobody has checked yet, for a registry that will.
    File {
        file: Arc<fs::File>,
        size: u64,
    },
}

/// Bytes to send; any number of times, since a redirect or a challenge repeats them.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    load: Load,
    start: u64,
    length: u64,
    media_type: String,
    range: Option<String>,
    sent: Arc<AtomicU64>,
}

impl Payload {
    /// All of it.
    pub(super) fn whole(load: &Load, media_type: &str) -> Self {
        Self {
            start: 0,
            length: load.size(),
            load: load.clone(),
            media_type: media_type.to_owned(),
            range: None,
            sent: Arc::default(),
        }
    }

    /// A chunk, with the `Content-Range` that says which.
    pub(super) fn chunk(load: &Load, start: u64, length: u64) -> Self {
        let range = Some(format!("{start}-{}", (start + length).saturating_sub(1)));
        Self { start, length, range, ..Self::whole(load, OCTETS) }
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
        if let (Some(bytes), None) = (self.load.in_memory(), &self.range) {
            self.sent.store(self.length, Ordering::Relaxed);
            return bytes.clone().into();
        }
        reqwest::Body::wrap_stream(stream::unfold((self.clone(), 0), |(payload, at)| async move {
            let length = PIECE.min(payload.length - at);
            if length == 0 {
                return None;
            }
            let piece = payload.read(payload.start + at, length).await;
            // Asked for more, so what came before is on its way. After the last piece nobody
            // asks: its length was announced.
            let sent = if at + length == payload.length { payload.length } else { at };
            payload.sent.store(sent, Ordering::Relaxed);
            Some((piece, (payload, at + length)))
        }))
    }

    async fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.load.in_memory().is_some() {
            return self.load.read_at(offset, length);
        }
        let load = self.load.clone();
        spawn_blocking(move || load.read_at(offset, length)).await?
    }
}

impl Load {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Blob(blob) => blob.size(),
            Self::File { size, .. } => *size,
        }
    }

    fn in_memory(&self) -> Option<&Bytes> {
        match self {
            Self::Memory(bytes) => Some(bytes),
            Self::Blob(blob) => blob.in_memory(),
            Self::File { .. } => None,
        }
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(start..start.saturating_add(length).min(bytes.len())))
            }
            Self::Blob(blob) => blob.read_at(offset, length),
            Self::File { file, .. } => {
                let mut piece = vec![0; length];
                file.read_exact_at(&mut piece, offset)?;
                Ok(piece.into())
            }
        }
    }
}

/// What every blob is on its way.
pub(super) const OCTETS: &str = "application/octet-stream";
