//! Why a blob is not available.

use std::io;

use crate::registry::RegistryError;

/// Why a blob is not available.
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
