//! Reads files named by flags, within a size limit and with a timeout for pipes.

use std::{
    io::{self, Read as _},
    path::Path,
};

use anyhow::{Context as _, anyhow};

use crate::oci::{read_regular, read_regular_or_pipe};

/// Limit of keys, certificates and trusted roots, in bytes; real ones have a few KiB.
pub(super) const KEY_LIMIT: u64 = 1 << 20;
/// Limit of Sigstore bundles, in bytes.
pub(super) const EVIDENCE_LIMIT: u64 = 16 << 20;
/// Limit of input documents and other files that are read into memory, in bytes.
pub(super) const DOCUMENT_LIMIT: u64 = 256 << 20;

/// Reads a file or pipe (`<(command)`) of at most `limit` bytes. Errors begin with `what`, such as
/// `--key`, and name the file.
pub(super) fn bytes(what: &str, file: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    read_regular_or_pipe(file, limit).with_context(|| format!("{what} {}", file.display()))
}

/// Reads a file or pipe as text; see [`bytes`].
pub(super) fn text(what: &str, file: &Path, limit: u64) -> anyhow::Result<String> {
    let bytes = bytes(what, file, limit)?;
    String::from_utf8(bytes).map_err(|_| {
        anyhow!(
            "{what} {}: not UTF-8 text; name the right file",
            file.display()
        )
    })
}

/// Reads a regular file that was read before; a pipe would have no content left.
pub(super) fn regular(file: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_regular(file, limit)
}

/// Reads all of standard input as text of at most `limit` bytes.
pub(super) fn stdin(what: &str, limit: u64) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let read = io::stdin()
        .lock()
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes);
    read.with_context(|| format!("{what}: standard input"))?;
    if bytes.len() as u64 > limit {
        return Err(anyhow!(
            "{what}: standard input is longer than {} MiB",
            limit >> 20
        ));
    }
    String::from_utf8(bytes).map_err(|_| anyhow!("{what}: standard input is not UTF-8 text"))
}
