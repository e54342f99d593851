//! The transfer of a blob: bounded in size and time, not yet verified.

use std::{io::Read as _, sync::Arc};

use bytes::{Buf as _, Bytes};
use reqwest::header;
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    deadline::Deadline, error::RegistryError, limiter::Permit, payload::UploadBody,
    progress::Progress, remote::Remote, retry, transport::innermost,
};
use crate::oci::{Blob, BlobMismatch, Descriptor};

/// How much of a file is read at a time.
const READ_BYTES: usize = 256 * 1024;
/// How much is passed to a sink at a time.
const WRITE_BYTES: usize = 1 << 20;
/// The number of broken connections after which a transfer has failed.
const MAX_BROKEN: u32 = 4;

/// The bytes of a blob as they arrive. The reader verifies them ([`crate::oci::BlobWriter`]).
#[derive(Debug)]
pub struct BlobStream {
    descriptor: Descriptor,
    host: String,
    remaining: u64,
    deadline: Deadline,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Http(Box<Transfer>),
    File(std::fs::File),
}

/// A transfer over HTTP, which is continued after a broken connection.
#[derive(Debug)]
struct Transfer {
    remote: Remote,
    response: reqwest::Response,
    /// The bytes that `response` repeats, because the registry does not serve ranges.
    repeated: u64,
    /// The number of broken connections so far.
    broken: u32,
    /// Where a connection last fell silent.
    silent_at: Option<u64>,
}

/// A connection that broke, or fell silent for `timeouts.read`.
#[derive(Debug)]
struct Broken {
    reason: String,
    is_silent: bool,
}

impl BlobStream {
    pub(super) fn http(
        descriptor: Descriptor,
        remote: Remote,
        deadline: Deadline,
        response: reqwest::Response,
    ) -> Self {
        let host = remote.client.transport.host().to_owned();
        let transfer = Transfer {
            remote,
            response,
            repeated: 0,
            broken: 0,
            silent_at: None,
        };
        Self {
            remaining: descriptor.size,
            descriptor,
            host,
            deadline,
            origin: Origin::Http(Box::new(transfer)),
        }
    }

    pub(super) fn file(
        descriptor: Descriptor,
        host: String,
        deadline: Deadline,
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

    /// The next bytes; `None` at the end. A transfer whose connection breaks is continued where it
    /// ended, at most four times, and once where it falls silent: the reader verifies the bytes as
    /// a whole.
    ///
    /// # Errors
    /// When the transfer breaks again and again, takes too long, or has more or fewer bytes than
    /// the descriptor says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let piece = loop {
            let next = self.origin.next(self.remaining);
            let piece = self
                .deadline
                .limit(next)
                .await
                .ok_or_else(|| self.unreachable("not done within timeouts.total".to_owned()))?;
            match piece {
                Ok(piece) => break piece,
                Err(broken) => self.resume(broken).await?,
            }
        };
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

    /// Requests the rest after a connection broke.
    async fn resume(&mut self, broken: Broken) -> Result<(), RegistryError> {
        let done = self.descriptor.size - self.remaining;
        let is_silent = broken.is_silent;
        let broken = self.unreachable(broken.reason);
        let Origin::Http(transfer) = &mut self.origin else {
            return Err(broken);
        };
        // Each silence takes `timeouts.read`: another connection that brings no further byte shows
        // that it is not the connection.
        if is_silent && transfer.silent_at.replace(done) == Some(done) {
            return Err(broken);
        }
        if transfer.broken == MAX_BROKEN || self.remaining == 0 {
            return Err(broken);
        }
        transfer.broken += 1;
        // The next request needs a permit of its own.
        transfer.response.extensions_mut().remove::<Permit>();
        let request = async {
            sleep(retry::delay(transfer.broken + 1, None)).await;
            let from = (done > 0).then_some(done);
            let digest = &self.descriptor.digest;
            transfer.remote.send_blob(digest, from).await
        };
        let Some(response) = self.deadline.limit(request).await else {
            return Err(broken);
        };
        let response = match response {
            Ok(response) => response,
            // The range is not satisfiable: the registry has fewer bytes than before.
            Err(RegistryError::Status { status: 416, .. }) => return Err(broken),
            Err(error) => return Err(error),
        };
        transfer.repeated = match response.status().as_u16() {
            206 if starts_at(&response, done) => 0,
            200 => done,
            _ => return Err(broken),
        };
        transfer.response = response;
        Ok(())
    }

    fn unreachable(&self, reason: String) -> RegistryError {
        RegistryError::Unreachable {
            operation: "blob",
            host: self.host.clone(),
            reason,
        }
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

impl Broken {
    fn at(error: &dyn std::error::Error) -> Self {
        Self {
            reason: error.to_string(),
            is_silent: false,
        }
    }
}

impl Transfer {
    /// The next bytes that are not repeated.
    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            let piece = self.response.chunk().await.map_err(|error| Broken {
                reason: innermost(&error),
                is_silent: error.is_timeout(),
            });
            let Some(mut piece) = piece? else {
                return Ok(None);
            };
            let repeated = self.repeated.min(piece.len() as u64);
            self.repeated -= repeated;
            piece.advance(usize::try_from(repeated).unwrap_or(usize::MAX));
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}

/// Whether a partial answer begins at the byte `first` (`Content-Range: bytes FIRST-LAST/SIZE`, RFC
/// 9110 §14.4).
fn starts_at(response: &reqwest::Response, first: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    range
        .and_then(|range| range.to_str().ok()?.trim().strip_prefix("bytes"))
        .and_then(|range| range.trim_start().split_once('-')?.0.parse().ok())
        == Some(first)
}

impl Origin {
    /// Reads at most one byte more than the `remaining` ones, which is enough to detect an
    /// oversized blob.
    async fn next(&mut self, remaining: u64) -> Result<Option<Bytes>, Broken> {
        match self {
            Self::Http(transfer) => transfer.next().await,
            Self::File(file) => {
                let mut file = file.try_clone().map_err(|error| Broken::at(&error))?;
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
                let read = read.await.map_err(|error| Broken::at(&error))?;
                let piece = read.map_err(|error| Broken::at(&error))?;
                Ok((!piece.is_empty()).then(|| piece.into()))
            }
        }
    }
}
