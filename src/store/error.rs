//! The errors of the blob store and of the cache folder.

use std::{io, path::PathBuf};

use crate::{oci::LayoutError, registry::RegistryError};

/// An error in making a blob available.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The registry did not deliver it.
    #[error(transparent)]
    Registry(RegistryError),
    /// Neither memory nor disk had room for it.
    #[error("no room for the blob beyond cache.memory: {0}; raise cache.memory or free disk space")]
    Disk(io::Error),
}

impl StoreError {
    /// The error of the registry, if it was one.
    pub fn registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Registry(error) => Some(error),
            Self::Disk(_) => None,
        }
    }
}

/// Why the cache folder is not used.
#[derive(Debug, thiserror::Error)]
#[error("cache.directory: {0}")]
pub struct FolderError(#[from] DiskError);

impl FolderError {
    /// Whether it passes without a change of the configuration or of the folder's owner: another
    /// process has locked the folder, or the disk is full.
    pub fn is_temporary(&self) -> bool {
        let is_full = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match &self.0 {
            DiskError::Locked { .. } => true,
            DiskError::Io { source, .. } | DiskError::Layout(LayoutError::Io { source, .. }) => {
                is_full(source)
            }
            DiskError::Foreign { .. }
            | DiskError::NotACache { .. }
            | DiskError::Full { .. }
            | DiskError::IndexTooLong { .. }
            | DiskError::Layout(LayoutError::Malformed { .. }) => false,
        }
    }
}

/// A folder that can't be used, or a failed operation on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("{path} is in use by another process; give each process a cache.directory of its own")]
    Locked { path: PathBuf },
    #[error(
        "{path} belongs to another user; name a folder that does not exist yet, or change its owner"
    )]
    Foreign { path: PathBuf },
    #[error("{path} holds files that are not part of a cache; name a folder for the cache alone")]
    NotACache { path: PathBuf },
    #[error("the cache would hold {size} bytes, and cache.disk allows {limit} bytes; raise it")]
    Full { size: u64, limit: u64 },
    #[error("{path} would have {size} bytes, and at most {limit} bytes can be read again")]
    IndexTooLong {
        path: PathBuf,
        size: u64,
        limit: u64,
    },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl DiskError {
    /// Whether the folder is at fault, and not the size of one bundle.
    pub(super) fn is_of_folder(&self) -> bool {
        !matches!(self, Self::Full { .. } | Self::IndexTooLong { .. })
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_full_disk_and_a_lock_are_temporary_and_nothing_else_is() {
        let path = || PathBuf::from("/cache");
        let io = |errno: Errno| DiskError::Io {
            path: path(),
            source: errno.into(),
        };
        let layout = |errno: Errno| LayoutError::Io {
            operation: "write",
            path: path(),
            source: errno.into(),
        };
        for (error, expected) in [
            (DiskError::Locked { path: path() }, true),
            (io(Errno::NOSPC), true),
            (io(Errno::DQUOT), true),
            (layout(Errno::NOSPC).into(), true),
            (io(Errno::ACCESS), false),
            (io(Errno::ROFS), false),
            (layout(Errno::ROFS).into(), false),
            (DiskError::Foreign { path: path() }, false),
            (DiskError::NotACache { path: path() }, false),
        ] {
            let error = FolderError::from(error);
            assert_eq!(error.is_temporary(), expected, "{error}");
        }
    }
}
