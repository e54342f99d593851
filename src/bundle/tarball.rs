//! Writes tarballs reproducibly: the same content gives the same bytes.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use flate2::{Compression, GzBuilder, write::GzEncoder};

use super::paths::relative_path;
use crate::oci::{Blob, BlobSpace, NewBlob};

/// How a bundle that is made of an artifact is written. The level is part of no entity tag.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) space: Arc<dyn BlobSpace>,
    pub(super) level: Compression,
}

impl Output {
    pub(super) fn to(space: Arc<dyn BlobSpace>) -> Self {
        Self {
            space,
            level: LEVEL,
        }
    }

    pub(super) fn tarball(&self) -> TarballWriter<GzEncoder<NewBlob>> {
        TarballWriter::new(self.compress())
    }

    /// Compresses a tar stream, and leaves the stream itself as it is.
    pub(super) fn compress(&self) -> GzEncoder<NewBlob> {
        gzip_encoder(self.blob(), self.level)
    }

    /// A blob for uncompressed content.
    pub(super) fn blob(&self) -> NewBlob {
        NewBlob::create_in(Arc::clone(&self.space))
    }
}

/// Writes a tarball.
pub(super) struct TarballWriter<W: Write> {
    builder: tar::Builder<W>,
}

impl<W: Write> TarballWriter<W> {
    /// Writes the tar stream to `compressor`.
    pub(super) fn new(compressor: W) -> Self {
        Self {
            builder: tar::Builder::new(compressor),
        }
    }

    /// Adds a file. Fails unless `content` has exactly `size` bytes.
    pub(super) fn add(&mut self, name: &str, size: u64, content: impl Read) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        let mut content = ExactReader {
            inner: content,
            left: size,
        };
        self.builder.append_data(&mut header, name, &mut content)?;
        content.end()
    }

    /// As [`Self::add`], under exactly this name, which may begin with `/` or `./`: OPA's signatures
    /// compare names as they are, and the tar library normalises them.
    pub(super) fn add_exactly(
        &mut self,
        name: &str,
        size: u64,
        content: impl Read,
    ) -> io::Result<()> {
        if relative_path(name).as_deref() == Some(name) {
            return self.add(name, size, content);
        }
        self.builder
            .append_pax_extensions([("path", name.as_bytes())])?;
        let mut header = tar::Header::new_ustar();
        // For readers that ignore the extension; all that matter here read it.
        header.set_path("file")?;
        // Without a type, a name that ends in a slash would be that of a folder.
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_cksum();
        let mut content = ExactReader {
            inner: content,
            left: size,
        };
        self.builder.append(&header, &mut content)?;
        content.end()
    }

    /// Ends the tar stream, and returns the compressor.
    pub(super) fn end(self) -> io::Result<W> {
        self.builder.into_inner()
    }
}

impl TarballWriter<GzEncoder<NewBlob>> {
    pub(super) fn finish(self) -> io::Result<Blob> {
        self.end()?.finish()?.finish()
    }
}

/// A gzip encoder without time and name and with a fixed level, so that its output depends on the
/// content and on the compressor only.
fn gzip_encoder(into: NewBlob, level: Compression) -> GzEncoder<NewBlob> {
    GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(into, level)
}

/// The compression level of every bundle that is written. Another one changes the digests of
/// builds. Measured on Rego and JSON: level 2 is 1.4 to 4 times as fast, but its output is 5 to
/// 27 % longer, and a bundle is built once and downloaded by many; level 9 takes 1.7 to 3.3 times
/// as long, and its output is between 4 % shorter and 7 % longer.
pub(super) const LEVEL: Compression = Compression::new(6);

/// Fails if a file is longer or shorter than its header states, which would corrupt the archive.
struct ExactReader<R> {
    inner: R,
    left: u64,
}

impl<R: Read> ExactReader<R> {
    fn end(mut self) -> io::Result<()> {
        match self.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(size_changed()),
        }
    }
}

impl<R: Read> Read for ExactReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(size_changed());
        }
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(size_changed)?;
        Ok(count)
    }
}

fn size_changed() -> io::Error {
    io::Error::other("its size changed while it was read; try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_size_than_stated_is_refused() {
        for size in [0, 4, 6, 10_000] {
            let mut tarball = Output::to(NewBlob::system_space()).tarball();
            assert!(tarball.add("x", size, &b"hello"[..]).is_err(), "{size}");
        }
        let mut tarball = Output::to(NewBlob::system_space()).tarball();
        tarball.add("x", 5, &b"hello"[..]).unwrap();
        tarball.add("empty", 0, io::empty()).unwrap();
        assert!(tarball.finish().unwrap().size() > 0);
    }
}
