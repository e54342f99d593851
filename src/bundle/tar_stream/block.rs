//! The blocks that a tar archive consists of.

use std::{fmt, io};

/// The size of a block: a header is one block, and content is padded to whole blocks.
pub(super) const BLOCK_BYTES: usize = 512;
/// The maximum size of an extended header, a long name or the map of a sparse file (Go's
/// `maxSpecialFileSize`, which is also libarchive's limit).
pub(super) const MAX_EXTENSION_BYTES: usize = 1 << 20;

pub(super) type Block = [u8; BLOCK_BYTES];

/// A stream of blocks.
pub(super) trait BlockSource {
    /// The next block, or `None` at the end of the stream.
    fn block(&mut self) -> io::Result<Option<Block>>;
}

/// The error for an archive that has `what`.
pub(super) fn malformed(what: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has {what}"))
}
