//! The transfer of a blob: bounded in size and time, not yet verified.

use std::{io::Read as _, sync::Arc};

use bytes::Bytes;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{error::RegistryError, payload::UploadBody, progress::Progress, transport::innermost};
use crate::oci::{Blob, BlobMismatch, Descriptor};

/// How much of a file is read at a time.
const READ_BYTES: usize = 256 * 1024;
/// How much is passed to a sink at a time.
const WRITE_BYTES: usize = 1 << 20;

/// The bytes of a blob as they arrive. The reader verifies them ([`crate::oci::BlobWriter`]).
#[derive(Debug)]
pub struct BlobStream {
    descriptor: Descriptor,
    host: String,
    remaining: u64,
    deadline: Instant,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Http(reqwest::Response),
    File(std::fs::File),
}

impl BlobStream {
    pub(super) fn http(
        descriptor: Descriptor,
        host: String,
        deadline: Instant,
        response: reqwest::Response,
    ) -> Self {
        Self {
            remaining: descriptor.size,
            descriptor,
            host,
            deadline,
            origin: Origin::Http(response),
        }
    }

    pub(super) fn file(
        descriptor: Descriptor,
        host: String,
        deadline: Instant,
        file: std::fs::File,
    ) -> Self {
        Self {
            remaining: descriptor.size,
            descriptor,
            host,
            deadline,
            origin: Origin::File(file),
        }
    }

    /// The descriptor of the blob.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the transfer breaks, takes too long, or has more or fewer bytes than the descriptor
    /// says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let piece = timeout_at(self.deadline, self.origin.next(self.remaining))
            .await
            .unwrap_or_else(|_| Err("not done within timeouts.total".to_owned()))
            .map_err(|reason| RegistryError::Unreachable {
                operation: "blob",
                host: self.host.clone(),
                reason,
            })?;
        let Some(piece) = piece else {
            return self.end();
        };
        self.remaining = self
            .remaining
            .checked_sub(piece.len() as u64)
            .ok_or_else(|| {
                self.mismatch(&BlobMismatch {
                    expected: format!(
                        "{} of {} bytes",
                        self.descriptor.digest, self.descriptor.size
                    ),
                    actual: "more bytes".to_owned(),
                })
            })?;
        Ok(Some(piece))
    }

    fn end(&self) -> Result<Option<Bytes>, RegistryError> {
        if self.remaining == 0 {
            return Ok(None);
        }
        let Descriptor { digest, size, .. } = &self.descriptor;
        Err(RegistryError::Truncated {
            digest: digest.clone(),
            expected: *size,
            actual: size - self.remaining,
        })
    }

    /// Writes all bytes to `sink` with `write`, off the async threads, and reports the progress.
    ///
    /// # Errors
    /// As [`Self::next`]; the inner result holds an error of `write`.
    pub async fn copy_to<S: Send + 'static, E: Send + 'static>(
        &mut self,
        mut sink: S,
        write: fn(&mut S, &[u8]) -> Result<(), E>,
        progress: &dyn Progress,
    ) -> Result<Result<S, E>, RegistryError> {
        let mut ended = false;
        while !ended {
            let mut batch = Vec::new();
            while !ended && batch.iter().map(Bytes::len).sum::<usize>() < WRITE_BYTES {
                match self.next().await? {
                    Some(piece) => batch.push(piece),
                    None => ended = true,
                }
            }
            let written = spawn_blocking(move || {
                batch
                    .iter()
                    .try_for_each(|piece| write(&mut sink, piece))
                    .map(|()| sink)
            });
            sink = match written.await {
                Ok(Ok(sink)) => sink,
                Ok(Err(error)) => return Ok(Err(error)),
                Err(ended) => std::panic::resume_unwind(ended.into_panic()),
            };
            progress.update(&self.descriptor, self.descriptor.size - self.remaining);
        }
        Ok(Ok(sink))
    }

    /// The source file, for a receiver that verifies the bytes itself; the stream again where the
    /// source is not a file.
    pub(super) async fn into_file(self) -> Result<Result<UploadBody, Self>, RegistryError> {
        let Self {
            origin: Origin::File(file),
            descriptor,
            host,
            ..
        } = self
        else {
            return Ok(Err(self));
        };
        let (file, size) =
            spawn_blocking(move || file.metadata().map(|metadata| (file, metadata.len())))
                .await
                .unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()))
                .map_err(|error| RegistryError::Unreachable {
                    operation: "blob",
                    host,
                    reason: error.to_string(),
                })?;
        if size != descriptor.size {
            let Descriptor {
                digest,
                size: expected,
                ..
            } = descriptor;
            return Err(RegistryError::Truncated {
                digest,
                expected,
                actual: size,
            });
        }
        Ok(Ok(UploadBody::File {
            file: Arc::new(file),
            size,
        }))
    }

    /// The error for received bytes that don't match the descriptor.
    pub fn mismatch(&self, mismatch: &BlobMismatch) -> RegistryError {
        RegistryError::Mismatch {
            what: "blob",
            expected: mismatch.expected.clone(),
            actual: mismatch.actual.clone(),
        }
    }

    /// Reads a small blob into memory and verifies it. The caller has checked
    /// `descriptor().size`.
    ///
    /// # Errors
    /// As [`Self::next`], and when the bytes don't match the descriptor.
    pub async fn collect(mut self) -> Result<Blob, RegistryError> {
        let mut bytes = bytes::BytesMut::new();
        while let Some(piece) = self.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Blob::check(&self.descriptor, bytes.freeze()).map_err(|error| self.mismatch(&error))
    }
}

impl Origin {
    /// Reads at most one byte more than the `remaining` ones, which is enough to detect an
    /// oversized blob.
    async fn next(&mut self, remaining: u64) -> Result<Option<Bytes>, String> {
        match self {
            Self::Http(response) => response.chunk().await.map_err(|error| innermost(&error)),
            Self::File(file) => {
                let mut file = file.try_clone().map_err(|error| error.to_string())?;
                let length = usize::try_from(remaining.saturating_add(1))
                    .unwrap_or(READ_BYTES)
                    .min(READ_BYTES);
                let read = spawn_blocking(move || {
                    let mut piece = vec![0; length];
                    file.read(&mut piece).map(|count| {
                        piece.truncate(count);
                        piece
                    })
                });
                let piece = read
                    .await
                    .map_err(|error| error.to_string())?
                    .map_err(|error| error.to_string())?;
                Ok((!piece.is_empty()).then(|| piece.into()))
            }
        }
    }
}
