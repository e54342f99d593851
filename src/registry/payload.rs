//! The body of an upload, in one request or in parts, read while it is sent.

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

/// How much of a blob on disk is in memory while it is sent.
const READ_BYTES: u64 = 256 * 1024;

/// The bytes of an upload, in memory or on disk.
#[derive(Debug, Clone)]
pub(super) enum UploadBody {
    Memory(Bytes),
    Blob(Blob),
    /// Bytes that are not verified yet; the registry verifies them.
    File {
        file: Arc<fs::File>,
        size: u64,
    },
}

/// The body of one request: an [`UploadBody`] or a part of it. It can be sent any number of
/// times, as after a redirect or a challenge.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    source: UploadBody,
    start: u64,
    length: u64,
    media_type: String,
    range: Option<String>,
    sent: Arc<AtomicU64>,
}

impl Payload {
    /// All of `body`.
    pub(super) fn whole(body: &UploadBody, media_type: &str) -> Self {
        Self {
            start: 0,
            length: body.size(),
            source: body.clone(),
            media_type: media_type.to_owned(),
            range: None,
            sent: Arc::default(),
        }
    }

    /// A chunk with its `Content-Range`.
    pub(super) fn chunk(body: &UploadBody, start: u64, length: u64) -> Self {
        let range = Some(format!("{start}-{}", (start + length).saturating_sub(1)));
        Self {
            start,
            length,
            range,
            ..Self::whole(body, OCTET_STREAM)
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn media_type(&self) -> &str {
        &self.media_type
    }

    /// `Content-Range` as `start-end`, without a unit (distribution-spec, "Pushing a blob in
    /// chunks").
    pub(super) fn range(&self) -> Option<&str> {
        self.range.as_deref()
    }

    /// The number of bytes that were passed to the network.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn body(&self) -> reqwest::Body {
        self.sent.store(0, Ordering::Relaxed);
        if let (Some(bytes), None) = (self.source.in_memory(), &self.range) {
            self.sent.store(self.length, Ordering::Relaxed);
            return bytes.clone().into();
        }
        reqwest::Body::wrap_stream(stream::unfold(
            (self.clone(), 0),
            |(payload, at)| async move {
                let length = READ_BYTES.min(payload.length - at);
                if length == 0 {
                    return None;
                }
                let piece = payload.read(payload.start + at, length).await;
                // The next piece is requested once the one before was sent. After the last piece
                // there is no request, because `Content-Length` announced its end.
                let sent = if at + length == payload.length {
                    payload.length
                } else {
                    at
                };
                payload.sent.store(sent, Ordering::Relaxed);
                Some((piece, (payload, at + length)))
            },
        ))
    }

    async fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.source.in_memory().is_some() {
            return self.source.read_at(offset, length);
        }
        let source = self.source.clone();
        spawn_blocking(move || source.read_at(offset, length)).await?
    }
}

impl UploadBody {
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
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
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

/// The media type of every blob while it is sent.
pub(super) const OCTET_STREAM: &str = "application/octet-stream";
