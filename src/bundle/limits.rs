//! The limits within which a bundle is opened.

/// The maximum sizes of a bundle and its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the tarball as it is served.
    pub bundle: u64,
    /// Bytes of the tar stream inside, the holes of sparse files included.
    pub unpacked: u64,
    /// Number of regular files.
    pub files: u64,
    /// Bytes of its `.manifest`.
    pub bundle_manifest: u64,
}
