//! The errors of opening a bundle, of assembling one from an artifact, and of packing a folder.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    diagnostic::{Diagnostic, with_position},
    opa_signature::{OpaSignatureError, UnsignableError},
    rego::{RegoError, RegoErrors},
};

/// A defect of a bundle. Every variant is a property of the bytes and the limits, so a retry cannot
/// succeed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The tarball exceeds its limit.
    #[error("bundle of {size} bytes exceeds the limit of {limit} bytes (limits.bundle)")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The tar stream inside exceeds its limit.
    #[error("bundle unpacks to more than {limit} bytes (limits.unpacked)")]
    UnpacksTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The number of files exceeds its limit.
    #[error("bundle holds more than {limit} files (limits.files)")]
    TooManyFiles {
        /// The limit.
        limit: u64,
    },
    /// The `.manifest` exceeds its limit.
    #[error("bundle file {path} exceeds the limit of {limit} bytes (limits.bundle_manifest)")]
    ManifestTooLarge {
        /// The file's name in the tarball.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes are not a gzip stream.
    #[error("not a gzip tarball: it starts with {start:02x?} instead of 1f 8b")]
    NotGzip {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// The gzip or tar stream is malformed.
    #[error("not a gzip tarball: {reason}")]
    Archive {
        /// The reader's error.
        reason: String,
    },
    /// OPA would refuse a file.
    #[error("bundle file {path}: {reason}")]
    File {
        /// The file's name in the tarball.
        path: String,
        /// The reason for which OPA would refuse it.
        reason: String,
    },
    /// The package of a Rego file lies outside the roots.
    #[error("bundle file {path}: package {package} is outside the roots {}", list(.roots))]
    PackageOutside {
        /// The file's name in the tarball.
        path: String,
        /// Its package.
        package: String,
        /// The roots of the bundle.
        roots: Vec<String>,
    },
    /// Data lies outside the roots.
    #[error("bundle file {path}: data at {at:?} is outside the roots {}", list(.roots))]
    DataOutside {
        /// The file's name in the tarball.
        path: String,
        /// The path below `data`, such as `a/b`.
        at: String,
        /// The roots of the bundle.
        roots: Vec<String>,
    },
    /// Two data files set the same path.
    #[error("bundle files {first} and {second} both set {at}")]
    Collision {
        /// The first file's name in the tarball.
        first: String,
        /// The second file's name in the tarball.
        second: String,
        /// The path, such as `data.users`.
        at: String,
    },
    /// A delta bundle, which bypasses OPA's own signature checks before 1.21.3.
    #[error("bundle file {path} makes this a delta bundle; only snapshots are served")]
    Delta {
        /// The patch file's name in the tarball.
        path: String,
    },
}

impl BundleError {
    /// Whether the tar stream itself can't be read.
    pub(super) fn is_in_archive(&self) -> bool {
        matches!(self, Self::UnpacksTooLarge { .. } | Self::Archive { .. })
    }
}

/// A defect of an artifact that should hold a bundle.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// No known tool writes such layers for OPA.
    #[error("no OPA bundle: {0}")]
    Layers(String),
    /// One of the artifact's single files can't be part of a bundle.
    #[error("layer {title:?}: {reason}")]
    File {
        /// The file's name in the artifact.
        title: String,
        /// The reason.
        reason: String,
    },
    /// The layer is not a tarball, or exceeds a limit.
    #[error(transparent)]
    Refused(#[from] BundleError),
    /// The bundle is not signed by one of the configured keys, by OPA's own signature.
    #[error(transparent)]
    OpaSignature(#[from] OpaSignatureError),
    /// The bundle can't be signed for OPA.
    #[error("sign the bundle for OPA: {0}")]
    Unsignable(#[from] UnsignableError),
    /// The assembled bundle could not be written.
    #[error(
        "write the bundle to a temporary file: {0}; free disk space, or name another folder with TMPDIR"
    )]
    Temporary(io::Error),
}

/// An error in packing a folder.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or folder could not be read.
    #[error("read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The bundle could not be written.
    #[error(
        "write the bundle to a temporary file: {0}; free disk space, or name another folder with TMPDIR"
    )]
    Temporary(io::Error),
    /// A thread that checks the bundle can't be started.
    #[error("start a thread: {0}; raise the limit of processes (ulimit -u)")]
    Thread(io::Error),
    /// A path does not exist.
    #[error("{0}: no such file or folder")]
    Missing(PathBuf),
    /// A link leads out of the folder.
    #[error("{link} is a symbolic link that leads out of {folder}; put the file itself there", folder = .folder.display(), link = .link.display())]
    LeadsOut {
        /// The link.
        link: PathBuf,
        /// The folder that holds the link.
        folder: PathBuf,
    },
    /// A link leads to a folder, which OPA would not follow.
    #[error("{0} is a symbolic link to a folder; put the folder itself there, or --ignore it")]
    LinkedFolder(PathBuf),
    /// The path is a pipe, a socket or a device.
    #[error("{0} is not a regular file; remove it, or --ignore it")]
    NotAFile(PathBuf),
    /// The path names a file that OPA would not load.
    #[error(
        "{0}: OPA loads .rego, data.json, data.yaml, policy.wasm and plan.json only; name such a file, or a folder"
    )]
    NotLoaded(PathBuf),
    /// A name is not UTF-8.
    #[error("{0} has a name that is not UTF-8; rename it")]
    Name(PathBuf),
    /// The folder holds no file that OPA would load.
    #[error("{0} holds no .rego, data.json or data.yaml file")]
    Empty(String),
    /// Two files have the same name in the bundle.
    #[error("{first} and {second} would both be {name} in the bundle; rename one")]
    SameName {
        /// The first file.
        first: PathBuf,
        /// The second file.
        second: PathBuf,
        /// Their name in the bundle.
        name: String,
    },
    /// Two data files set the same path.
    #[error("{first} and {second} both set {at}; keep one of the two")]
    Conflict {
        /// The first file.
        first: String,
        /// The second file.
        second: String,
        /// The path, such as `data.users`.
        at: String,
    },
    /// A Rego file can't be parsed.
    #[error("{place}: {reason}")]
    Rego {
        /// `FILE:LINE:COLUMN`.
        place: String,
        /// The parser's message.
        reason: String,
        /// All errors of the file, the first included.
        errors: Vec<Diagnostic>,
    },
    /// A Rego file is not UTF-8.
    #[error("{0} is not UTF-8; save it as UTF-8")]
    NotText(String),
    /// The package of a Rego file lies outside the roots.
    #[error("{place}: package {package} is outside the roots {}; add a root for it to .manifest, or move it", list(.roots))]
    PackageOutside {
        /// The file.
        place: String,
        /// Its package.
        package: String,
        /// The roots of the bundle.
        roots: Vec<String>,
    },
    /// Data lies outside the roots.
    #[error("{place}: data at {at:?} is outside the roots {}; add a root for it to .manifest, or move it", list(.roots))]
    DataOutside {
        /// The file.
        place: String,
        /// The path below `data`, such as `a/b`.
        at: String,
        /// The roots of the bundle.
        roots: Vec<String>,
    },
    /// A rule has the path of data, so OPA does not compile it.
    #[error("{place}: the rule conflicts with data that sets {at}; rename one of the two")]
    RuleOverData {
        /// `FILE:LINE:COLUMN`.
        place: String,
        /// The path, such as `data.authz.allow`.
        at: String,
    },
    /// OPA would refuse a file.
    #[error("{place}: {reason}")]
    File {
        /// The file.
        place: String,
        /// The reason for which OPA would refuse it.
        reason: String,
    },
    /// OPA would refuse the bundle.
    #[error(transparent)]
    Refused(#[from] BundleError),
}

impl PackError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// An error in the file at `path`. If `reason` begins with `LINE:COLUMN: `, the position moves
    /// to the place.
    pub(super) fn at(path: &Path, reason: &str) -> Self {
        Self::in_file(&path.display().to_string(), reason)
    }

    /// As [`Self::at`], for a file by the name that messages have for it.
    pub(super) fn in_file(place: &str, reason: &str) -> Self {
        let (place, reason) = with_position(place, reason);
        Self::File { place, reason }
    }
}

impl From<RegoError> for PackError {
    fn from(RegoError { place, reason }: RegoError) -> Self {
        let errors = vec![Diagnostic::new(&place, reason.clone(), "")];
        Self::Rego {
            place,
            reason,
            errors,
        }
    }
}

impl From<RegoErrors> for PackError {
    fn from(RegoErrors(errors): RegoErrors) -> Self {
        let first = errors.first();
        let place = first.map(Diagnostic::place).unwrap_or_default();
        let reason = first.map(|first| first.reason.clone()).unwrap_or_default();
        Self::Rego {
            place,
            reason,
            errors,
        }
    }
}

/// The first items of a list, for a message.
fn list(items: &[String]) -> String {
    const SHOWN: usize = 5;
    match items.len().checked_sub(SHOWN + 1) {
        None => format!("{items:?}"),
        Some(more) => format!("{:?} and {} more", &items[..SHOWN], more + 1),
    }
}
