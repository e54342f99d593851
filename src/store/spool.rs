//! Turns a stream of bytes into a checked blob. Hashing and writing run on blocking threads.

use std::{fs, io, io::Read, path::PathBuf};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{
    StoreError,
    memory::{Budget, Reservation},
};
use crate::{
    oci::{Blob, BlobMismatch, BlobSpace, BlobWriter, Descriptor, WriteError},
    registry::{BlobStream, RegistryError},
};

/// Bytes that are written at once.
const BATCH_BYTES: usize = 1 << 18;
/// Up to this many bytes are hashed on the async thread, which takes 0.1 ms.
const INLINE_BYTES: usize = 1 << 15;

/// Stores blobs in memory within the budget, and in unlinked files beyond it.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    pub(super) budget: Budget,
    /// The folder of the files; `None` stands for the system's temporary folder.
    pub(super) folder: Option<PathBuf>,
}

struct Sink {
    writer: BlobWriter,
    reservation: Option<Reservation>,
}

enum Progress {
    Complete(Blob),
    Partial(Box<Sink>),
}

impl Spool {
    /// Reads `stream` to the end. No thread waits for the registry: received bytes are written in
    /// batches on blocking threads.
    pub(super) async fn fetch(&self, mut stream: BlobStream) -> Result<Blob, StoreError> {
        let mut sink = self.open_sink(stream.descriptor()).await?;
        loop {
            let (batch, is_last) = next_batch(&mut stream)
                .await
                .map_err(StoreError::Registry)?;
            let length = batch.iter().map(Bytes::len).sum::<usize>();
            let work = move || sink.take(&batch, is_last);
            // Hashing this few bytes takes no longer than handing them to another thread.
            let progress = if length <= INLINE_BYTES {
                work()
            } else {
                blocking(work).await?
            };
            match progress {
                Ok(Progress::Complete(blob)) => return Ok(blob),
                Ok(Progress::Partial(part)) => sink = *part,
                Err(WriteError::Io(error)) => return Err(StoreError::Disk(error)),
                Err(WriteError::Mismatch(mismatch)) => {
                    let again = stream.restart(&mismatch).await;
                    again.map_err(StoreError::Registry)?;
                    sink = self.open_sink(stream.descriptor()).await?;
                }
            }
        }
    }

    async fn open_sink(&self, descriptor: &Descriptor) -> Result<Sink, StoreError> {
        if let Some(sink) = self.in_memory(descriptor) {
            return Ok(sink);
        }
        let (spool, descriptor) = (self.clone(), descriptor.clone());
        let opened = blocking(move || spool.in_file(descriptor)).await?;
        opened.map_err(StoreError::Disk)
    }

    /// Copies `file` to memory or to an unlinked file, which can't change, and checks the copy.
    /// Blocks.
    pub(super) fn load(
        &self,
        descriptor: Descriptor,
        mut file: fs::File,
    ) -> Result<Blob, WriteError> {
        let length = usize::try_from(descriptor.size)
            .unwrap_or(BATCH_BYTES)
            .clamp(1, BATCH_BYTES);
        let mut sink = self.sink(descriptor)?;
        // The buffer is not larger than the blob, because most bundles have a few KiB.
        let mut piece = vec![0; length];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                return Ok(sink.finish()?);
            }
            sink.writer.write(&piece[..read])?;
        }
    }

    fn sink(&self, descriptor: Descriptor) -> io::Result<Sink> {
        self.in_memory(&descriptor)
            .map_or_else(|| self.in_file(descriptor), Ok)
    }

    fn in_memory(&self, descriptor: &Descriptor) -> Option<Sink> {
        let reservation = self.budget.reserve(descriptor.size)?;
        Some(Sink {
            writer: BlobWriter::in_memory(descriptor.clone()),
            reservation: Some(reservation),
        })
    }

    fn in_file(&self, descriptor: Descriptor) -> io::Result<Sink> {
        Ok(Sink {
            writer: BlobWriter::in_file(descriptor, self.file()?),
            reservation: None,
        })
    }
}

impl BlobSpace for Spool {
    fn hold(&self, bytes: Vec<u8>) -> Result<Bytes, Vec<u8>> {
        match self.budget.reserve(bytes.len() as u64) {
            Some(reservation) => Ok(reservation.hold(bytes)),
            None => Err(bytes),
        }
    }

    fn file(&self) -> io::Result<fs::File> {
        match &self.folder {
            Some(folder) => tempfile::tempfile_in(folder),
            None => tempfile::tempfile(),
        }
    }
}

/// The next pieces of the stream, and whether they are the last.
async fn next_batch(stream: &mut BlobStream) -> Result<(Vec<Bytes>, bool), RegistryError> {
    let (mut batch, mut length) = (Vec::new(), 0);
    while length < BATCH_BYTES {
        let Some(piece) = stream.next().await? else {
            return Ok((batch, true));
        };
        length += piece.len();
        batch.push(piece);
    }
    Ok((batch, false))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work)
        .await
        .map_err(|error| StoreError::Disk(io::Error::other(error)))
}

impl Sink {
    fn take(mut self, batch: &[Bytes], is_last: bool) -> Result<Progress, WriteError> {
        batch
            .iter()
            .try_for_each(|piece| self.writer.write(piece))?;
        Ok(if is_last {
            Progress::Complete(self.finish()?)
        } else {
            Progress::Partial(Box::new(self))
        })
    }

    fn finish(self) -> Result<Blob, BlobMismatch> {
        let Self {
            writer,
            reservation,
        } = self;
        writer.finish(|bytes| match reservation {
            Some(reservation) => reservation.hold(bytes),
            None => bytes.into(),
        })
    }
}
