//! From a stream of bytes to a checked blob, hashing and writing off the async threads.

use std::{fs, io, io::Read, path::PathBuf};

use bytes::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    StoreError,
    memory::{Budget, Reservation},
};
use crate::{
    oci::{Blob, BlobMismatch, BlobWriter, Descriptor, WriteError},
    registry::BlobStream,
};

/// Pieces on their way between network and disk.
const QUEUE: usize = 8;
const PIECE: usize = 1 << 18;

/// Where blobs come to lie: in memory within the budget, else in files without a name.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    pub(super) budget: Budget,
    /// For the files; the system's temporary folder where there is no cache folder.
    pub(super) folder: Option<PathBuf>,
}

struct Sink {
    writer: BlobWriter,
    reservation: Option<Reservation>,
}

impl Spool {
    /// Takes all of `stream`.
    pub(super) async fn fetch(&self, mut stream: BlobStream) -> Result<Blob, StoreError> {
        let descriptor = stream.descriptor().clone();
        let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        let spool = self.clone();
        let written = spawn_blocking(move || {
            let mut sink = spool.sink(descriptor)?;
            while let Some(piece) = queue.blocking_recv() {
                sink.writer.write(&piece)?;
            }
            Ok::<_, WriteError>(sink.finish()?)
        });
        let mut broken = None;
        loop {
            match stream.next().await {
                // The writer has given up; it says why.
                Ok(Some(piece)) => {
                    if pieces.send(piece).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(pieces);
        let written = written.await.map_err(|error| StoreError::Disk(io::Error::other(error)))?;
        match (broken, written) {
            (Some(error), _) => Err(StoreError::Registry(error)),
            (None, Ok(blob)) => Ok(blob),
            (None, Err(WriteError::Io(error))) => Err(StoreError::Disk(error)),
            (None, Err(WriteError::Mismatch(mismatch))) => Err(StoreError::Registry(stream.mismatch(&mismatch))),
        }
    }

    /// Copies `file` to where it can't change any more, and checks the copy. Blocks.
    pub(super) fn load(&self, descriptor: Descriptor, mut file: fs::File) -> Result<Blob, WriteError> {
        let mut sink = self.sink(descriptor)?;
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                return Ok(sink.finish()?);
            }
            sink.writer.write(&piece[..read])?;
        }
    }

    fn sink(&self, descriptor: Descriptor) -> io::Result<Sink> {
        if let Some(reservation) = self.budget.reserve(descriptor.size) {
            return Ok(Sink { writer: BlobWriter::in_memory(descriptor), reservation: Some(reservation) });
        }
        let file = match &self.folder {
            Some(folder) => tempfile::tempfile_in(folder)?,
            None => tempfile::tempfile()?,
        };
        Ok(Sink { writer: BlobWriter::in_file(descriptor, file), reservation: None })
    }
}

impl Sink {
    fn finish(self) -> Result<Blob, BlobMismatch> {
        let Self { writer, reservation } = self;
        writer.finish(|bytes| match reservation {
            Some(reservation) => reservation.hold(bytes),
            None => bytes.into(),
        })
    }
}
