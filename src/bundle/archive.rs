//! Reads the members of a tarball, and the files among them as OPA does, within limits.

use std::{
    cell::Cell,
    io::{self, BufRead as _, BufReader, Read},
    rc::Rc,
};

use flate2::bufread::MultiGzDecoder;

use super::{
    BundleError, LayerError, Limits,
    document::{Detail, Document, DocumentError, FirstValue},
    paths::base,
    tar_stream::TarReader,
};
use crate::oci::Blob;

/// The maximum size of a YAML file; parsing takes about thirty times as much memory.
pub(super) const MAX_YAML_BYTES: u64 = 16 << 20;
/// The maximum length of a file's name (Linux's `PATH_MAX`).
pub(super) const MAX_NAME_BYTES: usize = 4096;

/// One file of a tarball.
pub(super) struct Entry<'a> {
    name: String,
    /// Whether the name is that in the tarball; otherwise it has U+FFFD for what is not UTF-8.
    has_utf8_name: bool,
    size: u64,
    content: &'a mut dyn Read,
    limits: &'a Limits,
}

impl Entry<'_> {
    /// The name in the tarball.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the name in the tarball is UTF-8, so that [`Self::name`] is the whole of it.
    pub(super) fn has_utf8_name(&self) -> bool {
        self.has_utf8_name
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Parses the first JSON value, as a stream.
    pub(super) fn first_value(&mut self, detail: Detail<'_>) -> Result<FirstValue, BundleError> {
        let content = BufReader::with_capacity(1 << 16, &mut self.content);
        Document::of_start(content, detail).map_err(|error| match error {
            DocumentError::Io(error) => archive_error(&error, self.limits),
            error => BundleError::File {
                path: self.name.clone(),
                reason: error.to_string(),
            },
        })
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

    /// Reads the content as a stream.
    pub(super) fn buffered(&mut self) -> BufReader<&mut dyn Read> {
        BufReader::with_capacity(1 << 16, &mut *self.content)
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

    /// Copies the content with `write`, which gets the size and the content.
    ///
    /// # Errors
    /// `Refused` when the archive is at fault, `Temporary` when the output is.
    pub(super) fn copy_to(
        &mut self,
        write: impl FnOnce(u64, &mut dyn Read) -> io::Result<()>,
    ) -> Result<(), LayerError> {
        let mut content = ErrorKeeper {
            inner: &mut self.content,
            error: None,
        };
        let written = write(self.size, &mut content);
        match (written, content.error) {
            (Ok(()), None) => Ok(()),
            (_, Some(error)) => Err(archive_error(&error, self.limits).into()),
            (Err(error), None) => Err(LayerError::Temporary(error)),
        }
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
    visit: impl FnMut(&mut Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    walk_stream(MultiGzDecoder::new(blob.reader()), limits, visit)
}

/// The same for a tar stream.
pub(super) fn walk_stream<E: From<BundleError>>(
    stream: impl Read,
    limits: &Limits,
    mut visit: impl FnMut(&mut Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut files = 0;
    each_member(stream, &Allowance::new(limits), |kind, entry| {
        check_member(kind, entry.name())?;
        // OPA ignores other members.
        if kind != FILE {
            return Ok(());
        }
        files += 1;
        if files > limits.files {
            return Err(BundleError::TooManyFiles {
                limit: limits.files,
            }
            .into());
        }
        visit(entry)
    })
}

/// The type flag of a regular file.
pub(super) const FILE: u8 = b'0';

/// What the streams that share it may still unpack.
pub(super) struct Allowance<'a> {
    limits: &'a Limits,
    /// In bytes.
    left: Rc<Cell<u64>>,
}

impl<'a> Allowance<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            left: Rc::new(Cell::new(limits.unpacked)),
        }
    }

    /// A reader that fails once the allowance is used up.
    pub(super) fn bound<R: Read>(&self, stream: R) -> impl Read + use<R> {
        LimitedReader {
            inner: stream,
            left: Rc::clone(&self.left),
        }
    }

    /// The error of a read that this bounds.
    pub(super) fn error(&self, error: &io::Error) -> BundleError {
        archive_error(error, self.limits)
    }
}

/// Calls `visit` with the type of every member of a tar stream: files, folders, links and others.
/// Only files have content.
pub(super) fn each_member<E: From<BundleError>>(
    stream: impl Read,
    allowance: &Allowance<'_>,
    mut visit: impl FnMut(u8, &mut Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let limits = allowance.limits;
    let failed = |error: io::Error| archive_error(&error, limits);
    let mut archive = TarReader::new(allowance.bound(stream));
    while let Some(mut member) = archive.next().map_err(failed)? {
        let name = String::from_utf8_lossy(&member.name).into_owned();
        let has_utf8_name = name.as_bytes() == member.name;
        // One reader would see content where another sees further files.
        if member.is_ambiguous {
            return Err(BundleError::File {
                path: name,
                reason: "tar readers disagree about its size".into(),
            }
            .into());
        }
        let (kind, size) = (member.kind, member.size);
        if kind != FILE {
            let content = &mut io::empty();
            visit(
                kind,
                &mut Entry {
                    name,
                    has_utf8_name,
                    size,
                    content,
                    limits,
                },
            )?;
            continue;
        }
        if member.is_sparse() {
            // Holes are not part of the stream, so they are counted here.
            let rest =
                allowance
                    .left
                    .get()
                    .checked_sub(size)
                    .ok_or(BundleError::UnpacksTooLarge {
                        limit: limits.unpacked,
                    })?;
            allowance.left.set(rest);
        }
        let mut content = archive.content(&mut member);
        visit(
            kind,
            &mut Entry {
                name,
                has_utf8_name,
                size,
                content: &mut content,
                limits,
            },
        )?;
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

/// Keeps the first error of reading, which a copy can't tell from one of writing.
pub(super) struct ErrorKeeper<R> {
    pub(super) inner: R,
    pub(super) error: Option<io::Error>,
}

impl<R: Read> Read for ErrorKeeper<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            let kind = error.kind();
            self.error.get_or_insert(error);
            kind.into()
        })
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
