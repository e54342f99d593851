//! Writes tarballs reproducibly: the same content gives the same bytes.

use std::io::{self, Read};

use flate2::{Compression, GzBuilder, write::GzEncoder};

use crate::oci::{Blob, NewBlob};

/// Writes a gzip tarball.
pub(super) struct TarballWriter {
    builder: tar::Builder<GzEncoder<NewBlob>>,
}

impl TarballWriter {
    pub(super) fn create() -> Self {
        Self {
            builder: tar::Builder::new(gzip_encoder()),
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

    pub(super) fn finish(self) -> io::Result<Blob> {
        Ok(self.builder.into_inner()?.finish()?.finish())
    }
}

/// Compresses a bare tar stream.
pub(super) fn compress(bare: &Blob) -> io::Result<Blob> {
    let mut encoder = gzip_encoder();
    io::copy(&mut bare.reader(), &mut encoder)?;
    Ok(encoder.finish()?.finish())
}

/// A gzip encoder without time and name and with a fixed level, so that its output depends on the
/// content only.
fn gzip_encoder() -> GzEncoder<NewBlob> {
    GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(NewBlob::create(), Compression::new(6))
}

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
            let mut tarball = TarballWriter::create();
            assert!(tarball.add("x", size, &b"hello"[..]).is_err(), "{size}");
        }
        let mut tarball = TarballWriter::create();
        tarball.add("x", 5, &b"hello"[..]).unwrap();
        tarball.add("empty", 0, io::empty()).unwrap();
        assert!(tarball.finish().unwrap().size() > 0);
    }
}
