//! Bytes that match a descriptor, in memory or in an unlinked file.

use std::{
    fmt, fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsRawFd as _, unix::fs::FileExt},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, linkat};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Descriptor, Digest, Hasher};

/// Bytes whose digest **and size** equal a descriptor's. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blob {
    digest: Digest,
    content: Content,
    /// The same bytes in an unlinked file, beside those in memory.
    copy: Option<Arc<FileCopy>>,
}

/// Open copies use disk space that no other limit counts, and a file descriptor each, which
/// connections need as well. All copies of the process have at most 1 GiB and 256 files.
static COPY_UNITS: Semaphore = Semaphore::const_new(256);
/// The size of a unit. Each copy takes at least one.
const COPY_UNIT_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct FileCopy {
    file: fs::File,
    _units: SemaphorePermit<'static>,
}

#[derive(Debug, Clone)]
enum Content {
    Memory(Bytes),
    /// Unlinked, so that its bytes can't change after they were verified.
    File {
        file: Arc<fs::File>,
        size: u64,
    },
}

/// The bytes don't match the descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {actual}")]
pub struct BlobMismatch {
    /// Digest and size of the descriptor.
    pub expected: String,
    /// Digest and size of the bytes.
    pub actual: String,
}

/// Receives bytes, and returns a [`Blob`] if they match a descriptor.
#[derive(Debug)]
pub struct BlobWriter {
    descriptor: Descriptor,
    hasher: Hasher,
    written: u64,
    sink: Sink,
}

/// Receives bytes, and returns a [`Blob`] with their digest. Large content goes to an unlinked
/// file, so that it takes no memory and a crash leaves nothing behind.
#[derive(Debug)]
pub struct NewBlob {
    space: Arc<dyn BlobSpace>,
    sink: Sink,
    hasher: Hasher,
    written: u64,
}

/// Where the bytes of new blobs are kept: the memory that counts for them, and the folder of
/// unlinked files beyond it.
pub trait BlobSpace: fmt::Debug + Send + Sync {
    /// Turns a buffer into shared bytes, and may tie an accounting guard to them.
    ///
    /// # Errors
    /// Returns the buffer if the memory is used up.
    fn hold(&self, bytes: Vec<u8>) -> Result<Bytes, Vec<u8>>;

    /// A new unlinked file, open for reading and writing.
    ///
    /// # Errors
    /// When the folder does not take it.
    fn file(&self) -> io::Result<fs::File>;
}

/// Memory without a limit, and the system's folder for temporary files.
#[derive(Debug)]
struct SystemSpace;

impl BlobSpace for SystemSpace {
    fn hold(&self, bytes: Vec<u8>) -> Result<Bytes, Vec<u8>> {
        Ok(bytes.into())
    }

    fn file(&self) -> io::Result<fs::File> {
        tempfile::tempfile()
    }
}

#[derive(Debug)]
enum Sink {
    Memory(Vec<u8>),
    File(fs::File),
}

impl Blob {
    /// Verifies `bytes` against `descriptor`.
    ///
    /// # Errors
    /// When digest or size differ.
    pub fn check(descriptor: &Descriptor, bytes: Bytes) -> Result<Self, BlobMismatch> {
        let actual = descriptor.digest.recompute(&bytes);
        compare(descriptor, actual, bytes.len() as u64)?;
        Ok(Self {
            digest: descriptor.digest.clone(),
            content: Content::Memory(bytes),
            copy: None,
        })
    }

    /// The digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File { size, .. } => *size,
        }
    }

    /// The bytes, where they are in memory.
    pub fn in_memory(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Memory(bytes) => Some(bytes),
            Content::File { .. } => None,
        }
    }

    /// Gives the unlinked file of the blob a name.
    ///
    /// # Errors
    /// When the blob is in memory, the name exists, or the file can't have it: on another disk, or
    /// without `/proc`.
    pub(super) fn link(&self, path: &Path) -> io::Result<()> {
        let Content::File { file, .. } = &self.content else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// Writes the bytes to an unlinked file as well, so that the kernel can send them without
    /// copying. Does nothing for a blob that is in a file, or if the copies of the process have
    /// reached their limit. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_copy(&mut self, space: &dyn BlobSpace) -> io::Result<()> {
        let Content::Memory(bytes) = &self.content else {
            return Ok(());
        };
        let units = bytes.len().div_ceil(COPY_UNIT_BYTES).max(1);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // It fails while too many are in use.
        if let Ok(_units) = COPY_UNITS.try_acquire_many(units) {
            let mut file = space.file()?;
            file.write_all(bytes)?;
            self.copy = Some(Arc::new(FileCopy { file, _units }));
        }
        Ok(())
    }

    /// The file that [`Self::keep_copy`] has written.
    pub fn copy(&self) -> Option<&fs::File> {
        self.copy.as_ref().map(|copy| &copy.file)
    }

    /// The same blob without the file that [`Self::keep_copy`] has written.
    pub fn without_copy(&self) -> Self {
        Self {
            copy: None,
            ..self.clone()
        }
    }

    /// Reads all bytes from the start; any number of readers at a time.
    pub fn reader(&self) -> Box<dyn BufRead + Send + '_> {
        match &self.content {
            Content::Memory(bytes) => Box::new(&bytes[..]),
            Content::File { file, .. } => Box::new(BufReader::with_capacity(
                1 << 16,
                ReadAt { file, offset: 0 },
            )),
        }
    }

    /// Reads `length` bytes from `offset`; fewer at the end. Blocks on the disk unless the blob is
    /// in memory.
    pub fn range(&self, offset: u64, length: u64) -> impl Read + '_ {
        BlobRange {
            blob: self,
            offset,
            left: length,
        }
    }

    /// At most `length` bytes from `offset`; fewer at the end. Blocks on the disk unless
    /// the blob is in memory.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.size().saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(length);
        match &self.content {
            Content::Memory(bytes) => {
                let start = bytes.len()
                    - usize::try_from(self.size().saturating_sub(offset)).unwrap_or(bytes.len());
                Ok(bytes.slice(start..start + left))
            }
            Content::File { file, .. } => {
                let mut piece = vec![0; left];
                file.read_exact_at(&mut piece, offset)?;
                Ok(piece.into())
            }
        }
    }
}

impl BlobWriter {
    /// Keeps the bytes in memory.
    pub fn in_memory(descriptor: Descriptor) -> Self {
        Self::new(descriptor, Sink::Memory(Vec::new()))
    }

    /// Keeps the bytes in `file`, which must be empty, open for reading and writing, and
    /// have no name.
    pub fn in_file(descriptor: Descriptor, file: fs::File) -> Self {
        Self::new(descriptor, Sink::File(file))
    }

    fn new(descriptor: Descriptor, sink: Sink) -> Self {
        Self {
            hasher: descriptor.digest.hasher(),
            descriptor,
            written: 0,
            sink,
        }
    }

    /// Appends bytes. A byte beyond the descriptor's size is refused at once, so that the length of
    /// a hostile body does not matter.
    ///
    /// # Errors
    /// When the disk fails (`Io`) or the size is exceeded.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), WriteError> {
        self.written += piece.len() as u64;
        if self.written > self.descriptor.size {
            return Err(WriteError::Mismatch(BlobMismatch {
                expected: format!("{} bytes", self.descriptor.size),
                actual: "more".to_owned(),
            }));
        }
        self.hasher.update(piece);
        match &mut self.sink {
            Sink::Memory(bytes) => bytes.extend_from_slice(piece),
            Sink::File(file) => file.write_all(piece)?,
        }
        Ok(())
    }

    /// The blob, if the bytes are complete and match. `into_bytes` turns the buffer into shared
    /// bytes, and may tie an accounting guard to them.
    ///
    /// # Errors
    /// When digest or size differ.
    pub fn finish(self, into_bytes: impl FnOnce(Vec<u8>) -> Bytes) -> Result<Blob, BlobMismatch> {
        compare(&self.descriptor, self.hasher.finish(), self.written)?;
        let content = match self.sink {
            Sink::Memory(bytes) => Content::Memory(into_bytes(bytes)),
            Sink::File(file) => Content::File {
                file: Arc::new(file),
                size: self.written,
            },
        };
        Ok(Blob {
            digest: self.descriptor.digest,
            content,
            copy: None,
        })
    }
}

impl NewBlob {
    /// Beyond this the bytes go to an unlinked file.
    const MAX_IN_MEMORY_BYTES: usize = 4 << 20;

    /// An empty blob, whose file is in the system's folder for temporary files.
    pub fn create() -> Self {
        Self::create_in(Self::system_space())
    }

    /// Memory without a limit, and the system's folder for temporary files.
    pub fn system_space() -> Arc<dyn BlobSpace> {
        Arc::new(SystemSpace)
    }

    /// An empty blob in a space of its own.
    pub fn create_in(space: Arc<dyn BlobSpace>) -> Self {
        Self {
            space,
            sink: Sink::Memory(Vec::new()),
            hasher: Hasher::sha256(),
            written: 0,
        }
    }

    /// The blob of all bytes written so far.
    ///
    /// # Errors
    /// When the memory is used up, and the disk fails.
    pub fn finish(self) -> io::Result<Blob> {
        let size = self.written;
        let in_file = |file| Content::File {
            file: Arc::new(file),
            size,
        };
        let content = match self.sink {
            Sink::Memory(bytes) => match self.space.hold(bytes) {
                Ok(bytes) => Content::Memory(bytes),
                Err(bytes) => {
                    let mut file = self.space.file()?;
                    file.write_all(&bytes)?;
                    in_file(file)
                }
            },
            Sink::File(file) => in_file(file),
        };
        Ok(Blob {
            digest: self.hasher.finish(),
            content,
            copy: None,
        })
    }
}

impl Write for NewBlob {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if let Sink::Memory(bytes) = &self.sink
            && bytes.len() + piece.len() > Self::MAX_IN_MEMORY_BYTES
        {
            let mut file = self.space.file()?;
            file.write_all(bytes)?;
            self.sink = Sink::File(file);
        }
        let count = match &mut self.sink {
            Sink::Memory(bytes) => bytes.write(piece)?,
            Sink::File(file) => file.write(piece)?,
        };
        self.hasher.update(&piece[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error in writing to a blob.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There are too many bytes.
    #[error(transparent)]
    Mismatch(#[from] BlobMismatch),
}

fn compare(descriptor: &Descriptor, actual: Digest, size: u64) -> Result<(), BlobMismatch> {
    if actual == descriptor.digest && size == descriptor.size {
        return Ok(());
    }
    Err(BlobMismatch {
        expected: format!("{} of {} bytes", descriptor.digest, descriptor.size),
        actual: format!("{actual} of {size} bytes"),
    })
}

/// A part of a blob.
struct BlobRange<'a> {
    blob: &'a Blob,
    offset: u64,
    left: u64,
}

impl Read for BlobRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let piece = self.blob.read_at(self.offset, wanted)?;
        buffer[..piece.len()].copy_from_slice(&piece);
        self.offset += piece.len() as u64;
        self.left -= piece.len() as u64;
        Ok(piece.len())
    }
}

/// Reads by position, so that readers don't share a cursor.
struct ReadAt<'a> {
    file: &'a fs::File,
    offset: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(bytes: &[u8]) -> Descriptor {
        Descriptor::of("application/octet-stream", bytes)
    }

    #[test]
    fn a_copy_has_the_bytes_and_none_is_made_beyond_the_limit() {
        let bytes = Bytes::from_static(b"hello");
        let descriptor = Descriptor::of("a/b", &bytes);
        let mut blob = Blob::check(&descriptor, bytes).unwrap();
        let all = COPY_UNITS.available_permits();
        let used = COPY_UNITS.try_acquire_many(u32::try_from(all).unwrap());
        blob.keep_copy(&SystemSpace).unwrap();
        assert!(blob.copy().is_none());
        drop(used.unwrap());
        blob.keep_copy(&SystemSpace).unwrap();
        let mut copied = [0; 5];
        blob.copy().unwrap().read_exact_at(&mut copied, 0).unwrap();
        assert_eq!(&copied, b"hello");
    }

    #[test]
    fn only_bytes_with_matching_digest_and_size_become_a_blob() {
        let right = descriptor(b"hello");
        assert!(Blob::check(&right, Bytes::from_static(b"hello")).is_ok());
        assert!(Blob::check(&right, Bytes::from_static(b"hellp")).is_err());
        let lying = Descriptor { size: 6, ..right };
        assert!(Blob::check(&lying, Bytes::from_static(b"hello")).is_err());
    }

    #[test]
    fn a_writer_refuses_one_byte_too_many_at_once() {
        let mut writer = BlobWriter::in_memory(descriptor(b"hello"));
        writer.write(b"hell").unwrap();
        assert!(matches!(writer.write(b"oo"), Err(WriteError::Mismatch(_))));
    }

    #[test]
    fn a_new_blob_has_the_digest_of_its_bytes_in_memory_and_on_disk() {
        for length in [
            11,
            NewBlob::MAX_IN_MEMORY_BYTES,
            NewBlob::MAX_IN_MEMORY_BYTES + 1,
        ] {
            let bytes = vec![7; length];
            let mut new = NewBlob::create();
            bytes
                .chunks(100_000)
                .for_each(|piece| new.write_all(piece).unwrap());
            let blob = new.finish().unwrap();
            assert_eq!(
                (blob.digest(), blob.size()),
                (&Digest::sha256(&bytes), length as u64)
            );
            assert_eq!(blob.read_at(0, length).unwrap(), bytes);
            assert_eq!(
                blob.in_memory().is_some(),
                length <= NewBlob::MAX_IN_MEMORY_BYTES
            );
        }
    }

    #[test]
    fn a_blob_in_a_file_reads_like_one_in_memory() {
        let mut writer =
            BlobWriter::in_file(descriptor(b"hello world"), tempfile::tempfile().unwrap());
        writer.write(b"hello ").unwrap();
        writer.write(b"world").unwrap();
        let filed = writer.finish(Bytes::from).unwrap();
        let held = Blob::check(
            &descriptor(b"hello world"),
            Bytes::from_static(b"hello world"),
        )
        .unwrap();
        for blob in [filed, held] {
            assert_eq!(blob.read_at(6, 3).unwrap(), "wor");
            assert_eq!(blob.read_at(9, 30).unwrap(), "ld");
            assert_eq!(blob.read_at(11, 30).unwrap(), "");
            let mut whole = String::new();
            blob.reader().read_to_string(&mut whole).unwrap();
            assert_eq!(whole, "hello world");
        }
    }
}
