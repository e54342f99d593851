//! A blob on its way: bounded in size and time, not yet checked.

use std::{io::Read as _, sync::Arc};

use bytes::Bytes;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{client::innermost, destination::Progress, error::RegistryError, payload::Load};
use crate::oci::{Blob, BlobMismatch, Descriptor};

const PIECE: usize = 256 * 1024;
/// What is written at a time.
const BATCH: usize = 1 << 20;

/// The bytes of a blob as they come. Whoever collects them checks them
/// ([`crate::oci::BlobWriter`]).
#[derive(Debug)]
pub struct BlobStream {
    descriptor: Descriptor,
    host: String,
    left: u64,
    deadline: Instant,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Http(reqwest::Response),
    File(std::fs::File),
}

impl BlobStream {
    pub(super) fn http(descriptor: Descriptor, host: String, deadline: Instant, response: reqwest::Response) -> Self {
        Self { left: descriptor.size, descriptor, host, deadline, origin: Origin::Http(response) }
    }

    pub(super) fn file(descriptor: Descriptor, host: String, deadline: Instant, file: std::fs::File) -> Self {
        Self { left: descriptor.size, descriptor, host, deadline, origin: Origin::File(file) }
    }

    /// What is expected to come.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the transfer breaks, takes too long, or brings more or less than the descriptor
    /// says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let piece = timeout_at(self.deadline, self.origin.next(self.left))
            .await
            .unwrap_or_else(|_| Err("not done within timeouts.total".to_owned()))
            .map_err(|reason| RegistryError::Unreachable { operation: "blob", host: self.host.clone(), reason })?;
        let Some(piece) = piece else { return self.end() };
        self.left = self.left.checked_sub(piece.len() as u64).ok_or_else(|| {
            self.mismatch(&BlobMismatch {
                expected: format!("{} of {} bytes", self.descriptor.digest, self.descriptor.size),
                actual: "more bytes".to_owned(),
            })
        })?;
        Ok(Some(piece))
    }

    fn end(&self) -> Result<Option<Bytes>, RegistryError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Descriptor { digest, size, .. } = &self.descriptor;
        Err(RegistryError::Truncated { digest: digest.clone(), expected: *size, actual: size - self.left })
    }

    /// Gives everything that comes to `write`, off the async threads, and says how far it is.
    ///
    /// # Errors
    /// As [`Self::next`]; inside, what `write` says.
    pub async fn pour<S: Send + 'static, E: Send + 'static>(
        &mut self,
        mut sink: S,
        write: fn(&mut S, &[u8]) -> Result<(), E>,
        progress: &dyn Progress,
    ) -> Result<Result<S, E>, RegistryError> {
        let mut ended = false;
        while !ended {
            let mut batch = Vec::new();
            while !ended && batch.iter().map(Bytes::len).sum::<usize>() < BATCH {
                match self.next().await? {
                    Some(piece) => batch.push(piece),
                    None => ended = true,
                }
            }
            let written =
                spawn_blocking(move || batch.iter().try_for_each(|piece| write(&mut sink, piece)).map(|()| sink));
            sink = match written.await {
                Ok(Ok(sink)) => sink,
                Ok(Err(error)) => return Ok(Err(error)),
                Err(ended) => std::panic::resume_unwind(ended.into_panic()),
            };
            progress.at(&self.descriptor, self.descriptor.size - self.left);
        }
        Ok(Ok(sink))
    }

    /// The file that it comes from, for whoever checks the bytes himself; the stream where
    /// it comes from elsewhere.
    pub(super) async fn into_file(self) -> Result<Result<Load, Self>, RegistryError> {
        let Self { origin: Origin::File(file), descriptor, host, .. } = self else { return Ok(Err(self)) };
        let (file, size) = spawn_blocking(move || file.metadata().map(|metadata| (file, metadata.len())))
            .await
            .unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()))
            .map_err(|error| RegistryError::Unreachable { operation: "blob", host, reason: error.to_string() })?;
        if size != descriptor.size {
            let Descriptor { digest, size: expected, .. } = descriptor;
            return Err(RegistryError::Truncated { digest, expected, actual: size });
        }
        Ok(Ok(Load::File { file: Arc::new(file), size }))
    }

    /// The error for bytes that came and are not those that were asked for.
    pub fn mismatch(&self, mismatch: &BlobMismatch) -> RegistryError {
        RegistryError::Mismatch { what: "blob", expected: mismatch.expected.clone(), actual: mismatch.actual.clone() }
    }

    /// Reads all of a small blob into memory and checks it. The caller has looked at
    /// `descriptor().size`.
    ///
    /// # Errors
    /// As [`Self::next`], and when the bytes are not the blob's.
    pub async fn collect(mut self) -> Result<Blob, RegistryError> {
        let mut bytes = bytes::BytesMut::new();
        while let Some(piece) = self.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Blob::check(&self.descriptor, bytes.freeze()).map_err(|error| self.mismatch(&error))
    }
}

impl Origin {
    /// `left` bytes are expected, and one more would be too many.
    async fn next(&mut self, left: u64) -> Result<Option<Bytes>, String> {
        match self {
            Self::Http(response) => response.chunk().await.map_err(|error| innermost(&error)),
            Self::File(file) => {
                let mut file = file.try_clone().map_err(|error| error.to_string())?;
                let length = usize::try_from(left.saturating_add(1)).unwrap_or(PIECE).min(PIECE);
                let read = spawn_blocking(move || {
                    let mut piece = vec![0; length];
                    file.read(&mut piece).map(|count| {
                        piece.truncate(count);
                        piece
                    })
                });
                let piece = read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
                Ok((!piece.is_empty()).then(|| piece.into()))
            }
        }
    }
}
