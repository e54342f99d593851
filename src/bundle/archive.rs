//! Reads the files of a gzip tarball as OPA does, within limits.

use std::{
    cell::Cell,
    io::{self, BufRead as _, BufReader, Read},
    rc::Rc,
};

use flate2::bufread::MultiGzDecoder;

use super::{
    BundleError, LayerError, Limits,
    document::{Detail, Document, DocumentError},
    paths::base,
    tar_stream::TarReader,
    tarball::TarballWriter,
};
use crate::oci::Blob;

/// The maximum size of a YAML file; parsing takes about thirty times as much memory.
pub(super) const MAX_YAML_BYTES: u64 = 16 << 20;
/// The maximum length of a file's name (Linux's `PATH_MAX`).
const MAX_NAME_BYTES: usize = 4096;

/// One file of a tarball.
pub(super) struct Entry<'a> {
    name: String,
    size: u64,
    content: &'a mut dyn Read,
    limits: &'a Limits,
}

impl Entry<'_> {
    /// The name in the tarball.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Parses a data file. JSON is parsed as a stream, so a large file takes no more memory than
    /// the detail that is kept.
    pub(super) fn document(&mut self, detail: Detail<'_>) -> Result<Document, BundleError> {
        let refused = |reason: String| BundleError::File {
            path: self.name.clone(),
            reason,
        };
        let document = if base(&self.name).ends_with(".json") {
            let mut content = BufReader::with_capacity(1 << 16, &mut self.content);
            let start = content
                .fill_buf()
                .map_err(|error| archive_error(&error, self.limits))?;
            if start.starts_with(b"\xef\xbb\xbf") {
                // OPA skips it in folders, and refuses it in tarballs.
                return Err(refused(
                    "it starts with a byte order mark, which OPA refuses; save it without"
                        .to_owned(),
                ));
            }
            Document::of_json(content, detail)
        } else {
            if self.size > MAX_YAML_BYTES {
                return Err(refused(format!(
                    "YAML of more than {MAX_YAML_BYTES} bytes; write it as data.json"
                )));
            }
            let mut content = Vec::new();
            self.content
                .read_to_end(&mut content)
                .map_err(|error| archive_error(&error, self.limits))?;
            Document::of_yaml(&content, detail)
        };
        document.map_err(|error| match error {
            DocumentError::Io(error) => archive_error(&error, self.limits),
            error => refused(error.to_string()),
        })
    }

    /// Reads at most the first `length` bytes.
    pub(super) fn start(&mut self, length: u64) -> Result<Vec<u8>, BundleError> {
        let mut start = Vec::new();
        let mut content = (&mut self.content).take(length);
        content
            .read_to_end(&mut start)
            .map_err(|error| archive_error(&error, self.limits))?;
        Ok(start)
    }

    /// Reads the whole content.
    pub(super) fn content(&mut self) -> Result<Vec<u8>, BundleError> {
        let mut content = Vec::new();
        self.content
            .read_to_end(&mut content)
            .map_err(|error| archive_error(&error, self.limits))?;
        Ok(content)
    }
}

/// Calls `visit` for every file of a gzip tarball. Stops at the end marker of the archive, as OPA
/// does, and ignores what follows it.
pub(super) fn walk<E: From<BundleError>>(
    blob: &Blob,
    limits: &Limits,
    mut visit: impl FnMut(&mut Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: io::Error| archive_error(&error, limits);
    let left = Rc::new(Cell::new(limits.unpacked));
    let inflated = LimitedReader {
        inner: MultiGzDecoder::new(blob.reader()),
        left: Rc::clone(&left),
    };
    let mut archive = TarReader::new(inflated);
    let mut files = 0;
    while let Some(mut member) = archive.next().map_err(failed)? {
        let name = String::from_utf8_lossy(&member.name).into_owned();
        check_member(member.kind, &name)?;
        // One reader would see content where another sees further files.
        if member.is_ambiguous {
            return Err(BundleError::File {
                path: name,
                reason: "tar readers disagree about its size".into(),
            }
            .into());
        }
        // OPA ignores other members.
        if !member.is_file() {
            continue;
        }
        files += 1;
        if files > limits.files {
            return Err(BundleError::TooManyFiles {
                limit: limits.files,
            }
            .into());
        }
        let size = member.size;
        if member.is_sparse() {
            // Holes are not part of the stream, so they are counted here.
            let rest = left
                .get()
                .checked_sub(size)
                .ok_or(BundleError::UnpacksTooLarge {
                    limit: limits.unpacked,
                })?;
            left.set(rest);
        }
        let mut content = archive.content(&mut member);
        visit(&mut Entry {
            name,
            size,
            content: &mut content,
            limits,
        })?;
        // OPA reads every file to its end, and fails if it is truncated.
        io::copy(&mut content, &mut io::sink()).map_err(failed)?;
    }
    Ok(())
}

/// Refuses members that would let a program that unpacks the tarball write outside its target
/// folder. OPA never unpacks, but other programs read the same bytes.
fn check_member(kind: u8, name: &str) -> Result<(), BundleError> {
    let refused = |reason: &str| {
        let path = name.chars().take(MAX_NAME_BYTES / 16).collect();
        Err(BundleError::File {
            path,
            reason: reason.to_owned(),
        })
    };
    match kind {
        b'1' | b'2' => refused("it is a link"),
        b'3' | b'4' | b'6' => refused("it is a device"),
        _ if name.len() > MAX_NAME_BYTES => refused("its name is longer than 4096 bytes"),
        // A leading slash is allowed: `opa build` writes one in front of every name.
        _ if name.split(['/', '\\']).any(|part| part == "..") => {
            refused("its name leads out of the bundle")
        }
        _ => Ok(()),
    }
}

/// Rewrites a tarball with other names, in the same order. A file for which `rename` returns `None`
/// is dropped.
pub(super) fn repack(
    blob: &Blob,
    limits: &Limits,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<Blob, LayerError> {
    let mut tarball = TarballWriter::create();
    walk(blob, limits, |entry| {
        let Some(name) = rename(entry.name()) else {
            return Ok(());
        };
        let size = entry.size;
        tarball
            .add(&name, size, &mut entry.content)
            .map_err(LayerError::Temporary)
    })?;
    tarball.finish().map_err(LayerError::Temporary)
}

fn archive_error(error: &io::Error, limits: &Limits) -> BundleError {
    match error.kind() {
        io::ErrorKind::QuotaExceeded => BundleError::UnpacksTooLarge {
            limit: limits.unpacked,
        },
        _ => BundleError::Archive {
            reason: error.to_string(),
        },
    }
}

/// Fails with `QuotaExceeded` at the limit, where `Take` would report the end of the stream.
struct LimitedReader<R> {
    inner: R,
    /// The bytes that all readers of one archive together may still read.
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self
            .left
            .get()
            .checked_sub(count as u64)
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        self.left.set(left);
        Ok(count)
    }
}
