//! Reading the files that flags name: each within a limit, and never waiting for ever.

use std::{
    io::{self, Read as _},
    path::Path,
};

use anyhow::{Context as _, anyhow};

use crate::oci::{read_regular, read_regular_or_pipe};

/// Keys, certificates and trusted roots; real ones have a few KiB.
pub(super) const KEY_LIMIT: u64 = 1 << 20;
/// Sigstore bundles.
pub(super) const EVIDENCE_LIMIT: u64 = 16 << 20;
/// Input documents and other files that are held in memory as a whole.
pub(super) const DOCUMENT_LIMIT: u64 = 256 << 20;

/// The bytes of a file or pipe (`<(command)`) of at most `limit` bytes; errors begin with
/// `what`, such as `--key`, and name the file.
pub(super) fn bytes(what: &str, file: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    read_regular_or_pipe(file, limit).with_context(|| format!("{what} {}", file.display()))
}

/// The same as text.
pub(super) fn text(what: &str, file: &Path, limit: u64) -> anyhow::Result<String> {
    let bytes = bytes(what, file, limit)?;
    String::from_utf8(bytes)
        .map_err(|_| anyhow!("{what} {}: it is no text in UTF-8; name the right file", file.display()))
}

/// A regular file alone, for what is looked at beside the way: a pipe would be emptied.
pub(super) fn regular(file: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_regular(file, limit)
}

/// Standard input to its end, at most `limit` bytes, as text.
pub(super) fn stdin(what: &str, limit: u64) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.with_context(|| format!("{what}: standard input"))?;
    if bytes.len() as u64 > limit {
        return Err(anyhow!("{what}: standard input is longer than {} MiB", limit >> 20));
    }
    String::from_utf8(bytes).map_err(|_| anyhow!("{what}: standard input is no text in UTF-8"))
}
