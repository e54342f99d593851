//! The transfer of a blob: bounded in size and time, not yet verified.

use std::{io::Read as _, sync::Arc};

use bytes::{Buf as _, Bytes};
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    blob_hosts::{BlobHosts, Delivery, begin},
    deadline::Deadline,
    error::RegistryError,
    hosts::record,
    limiter::{self, Permit},
    payload::UploadBody,
    progress::Progress,
    remote::Remote,
    retry,
    transport::innermost,
};
use crate::oci::{Blob, BlobMismatch, Descriptor};

/// How much of a file is read at a time.
const READ_BYTES: usize = 256 * 1024;
/// How much is passed to a sink at a time.
const WRITE_BYTES: usize = 1 << 20;
/// The number of broken connections after which a transfer has failed.
const MAX_BROKEN: u32 = 4;
/// As [`MAX_BROKEN`], for a mirror: the next host continues the transfer.
const MAX_BROKEN_MIRROR: u32 = 1;

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
    /// The hosts that continue it when `remote` fails.
    others: BlobHosts,
    response: reqwest::Response,
    /// The bytes that `response` repeats, because the registry does not serve ranges.
    repeated: u64,
    /// The number of broken connections to `remote` so far.
    broken: u32,
    /// Where a connection to `remote` last fell silent.
    silent_at: Option<u64>,
    /// The first byte that came from `remote`.
    first: u64,
}

/// A connection that broke, or fell silent for `timeouts.read`.
#[derive(Debug)]
struct Broken {
    reason: String,
    is_silent: bool,
}

impl BlobStream {
    /// Starts the transfer from the first of `hosts` that delivers it; `None` when the last one
    /// does not have the blob.
    pub(super) async fn open(
        descriptor: Descriptor,
        mut hosts: BlobHosts,
    ) -> Result<Option<Self>, RegistryError> {
        let Some(delivery) = hosts.request(&descriptor, 0).await? else {
            return Ok(None);
        };
        Ok(Some(Self {
            remaining: descriptor.size,
            host: delivery.remote.client.transport.host().to_owned(),
            deadline: delivery.deadline.clone(),
            origin: Origin::Http(Box::new(Transfer::new(delivery, hosts, 0))),
            descriptor,
        }))
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
    /// ended: at the registry at most four times, and once where it falls silent; at a mirror once,
    /// and then at the next host. The reader verifies the bytes as a whole.
    ///
    /// # Errors
    /// When the transfer breaks again and again, takes too long, or has more or fewer bytes than
    /// the descriptor says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        // What a mirror sends beyond the size is not read: other hosts may send less.
        if self.is_from_mirror() && self.remaining == 0 {
            return Ok(None);
        }
        let piece = loop {
            let next = self.origin.next(self.remaining);
            match self.deadline.limit(next).await {
                Some(Ok(None)) if self.is_from_mirror() => {
                    let reason = "the mirror's answer is cut short".to_owned();
                    let is_silent = false;
                    self.resume(Broken { reason, is_silent }).await?
                }
                Some(Ok(piece)) => break piece,
                Some(Err(broken)) => self.resume(broken).await?,
                None => {
                    let reason = if self.is_from_mirror() {
                        "the mirror is too slow"
                    } else {
                        "not done within timeouts.total"
                    };
                    let late = self.unreachable(reason.to_owned());
                    self.continue_elsewhere(late).await?
                }
            }
        };
        let Some(mut piece) = piece else {
            return self.end();
        };
        if self.is_from_mirror() {
            piece.truncate(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        }
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

    /// Requests the rest after a connection broke: from the same host, then from the next one, and
    /// if no other host delivers it from the same one again.
    async fn resume(&mut self, broken: Broken) -> Result<(), RegistryError> {
        let mut error = self.unreachable(broken.reason);
        if self.remaining == 0 {
            return Err(error);
        }
        let is_stuck = broken.is_silent && self.fell_silent_here_before();
        if is_stuck || self.broken() >= self.max_broken() {
            match self.continue_elsewhere(error).await {
                Err(other) if !is_stuck && self.broken() < MAX_BROKEN => error = other,
                continued => return continued,
            }
        }
        match self.request_again(error).await {
            Err(error) => self.continue_elsewhere(error).await,
            Ok(()) => Ok(()),
        }
    }

    /// Records that the present host fell silent. Each silence takes `timeouts.read`: another
    /// connection that brings no further byte shows that it is not the connection.
    fn fell_silent_here_before(&mut self) -> bool {
        let done = self.descriptor.size - self.remaining;
        match &mut self.origin {
            Origin::Http(transfer) => transfer.silent_at.replace(done) == Some(done),
            Origin::File(_) => true,
        }
    }

    /// Requests the rest from the same host, after its connection broke with `broken`.
    async fn request_again(&mut self, broken: RegistryError) -> Result<(), RegistryError> {
        let done = self.descriptor.size - self.remaining;
        let Origin::Http(transfer) = &mut self.origin else {
            return Err(broken);
        };
        transfer.broken += 1;
        transfer.release_permit();
        let request = async {
            sleep(retry::delay(transfer.broken + 1, None)).await;
            begin(&transfer.remote, &self.descriptor, done).await
        };
        match self.deadline.limit(request).await {
            Some(Ok(Some((response, repeated)))) => {
                (transfer.response, transfer.repeated) = (response, repeated);
                Ok(())
            }
            // The range is not satisfiable: the registry has fewer bytes than before.
            Some(Err(RegistryError::Status { status: 416, .. }) | Ok(None)) | None => Err(broken),
            Some(Err(error)) => Err(error),
        }
    }

    /// Requests the rest from the next host, after the present one failed with `error`.
    async fn continue_elsewhere(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let done = self.descriptor.size - self.remaining;
        let Origin::Http(transfer) = &mut self.origin else {
            return Err(error);
        };
        record(&transfer.remote, Some(&error));
        transfer.release_permit();
        match transfer.others.request(&self.descriptor, done).await? {
            Some(delivery) => {
                self.receive_from(delivery, done);
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Starts again from the first byte, after all bytes arrived and don't match the descriptor:
    /// from the same host if some of them came from another, else from the next one.
    ///
    /// # Errors
    /// When no other host delivers the blob.
    pub async fn restart(&mut self, mismatch: &BlobMismatch) -> Result<(), RegistryError> {
        let error = self.mismatch(mismatch);
        let Origin::Http(transfer) = &mut self.origin else {
            return Err(error);
        };
        record(&transfer.remote, Some(&error));
        transfer.release_permit();
        if transfer.first > 0 {
            transfer.others.ask_again(transfer.remote.clone());
        }
        match transfer.others.request(&self.descriptor, 0).await? {
            Some(delivery) => {
                self.receive_from(delivery, 0);
                Ok(())
            }
            None => Err(error),
        }
    }

    fn receive_from(&mut self, delivery: Delivery, first: u64) {
        self.host = delivery.remote.client.transport.host().to_owned();
        self.deadline = delivery.deadline.clone();
        self.remaining = self.descriptor.size - first;
        if let Origin::Http(transfer) = &mut self.origin {
            transfer.receive_from(delivery, first);
        }
    }

    /// The number of broken connections to the present host.
    fn broken(&self) -> u32 {
        match &self.origin {
            Origin::Http(transfer) => transfer.broken,
            Origin::File(_) => MAX_BROKEN,
        }
    }

    /// The number of broken connections after which the next host is asked.
    fn max_broken(&self) -> u32 {
        if self.is_from_mirror() {
            MAX_BROKEN_MIRROR
        } else {
            MAX_BROKEN
        }
    }

    fn is_from_mirror(&self) -> bool {
        matches!(&self.origin, Origin::Http(transfer) if transfer.remote.is_mirror())
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
        let mut batch: Vec<Bytes> = Vec::new();
        loop {
            let written = self.descriptor.size - self.remaining;
            let writing = spawn_blocking(move || {
                batch
                    .iter()
                    .try_for_each(|piece| write(&mut sink, piece))
                    .map(|()| sink)
            });
            // The next bytes arrive while these are written.
            let (next, ended) = tokio::join!(self.batch(), writing);
            sink = match ended {
                Ok(Ok(sink)) => sink,
                Ok(Err(error)) => return Ok(Err(error)),
                Err(ended) => std::panic::resume_unwind(ended.into_panic()),
            };
            progress.update(&self.descriptor, written);
            batch = next?;
            if batch.is_empty() {
                return Ok(Ok(sink));
            }
        }
    }

    /// The next bytes, at least [`WRITE_BYTES`] unless they are the last ones; none at the end.
    async fn batch(&mut self) -> Result<Vec<Bytes>, RegistryError> {
        let (mut batch, mut size) = (Vec::new(), 0);
        while size < WRITE_BYTES
            && let Some(piece) = self.next().await?
        {
            size += piece.len();
            batch.push(piece);
        }
        Ok(batch)
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
        loop {
            let mut bytes = bytes::BytesMut::new();
            while let Some(piece) = self.next().await? {
                bytes.extend_from_slice(&piece);
            }
            match Blob::check(&self.descriptor, bytes.freeze()) {
                Ok(blob) => return Ok(blob),
                Err(mismatch) => self.restart(&mismatch).await?,
            }
        }
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
    /// Before another request, which needs a permit of its own.
    fn release_permit(&mut self) {
        self.response.extensions_mut().remove::<Permit>();
    }

    fn new(delivery: Delivery, others: BlobHosts, first: u64) -> Self {
        let Delivery {
            remote,
            response,
            repeated,
            ..
        } = delivery;
        Self {
            remote,
            others,
            response,
            repeated,
            broken: 0,
            silent_at: None,
            first,
        }
    }

    fn receive_from(&mut self, delivery: Delivery, first: u64) {
        (self.remote, self.response) = (delivery.remote, delivery.response);
        (self.repeated, self.broken, self.first) = (delivery.repeated, 0, first);
        self.silent_at = None;
    }

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
            limiter::record_answer(&self.response);
            let repeated = self.repeated.min(piece.len() as u64);
            self.repeated -= repeated;
            piece.advance(usize::try_from(repeated).unwrap_or(usize::MAX));
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
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
