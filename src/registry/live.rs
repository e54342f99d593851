//! Registries whose options are replaced while they are read from.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{options::InvalidOptions, registries::Registries, source::Source};
use crate::oci::Repository;

/// The registries with their current options. Clones share them.
#[derive(Clone)]
pub struct LiveRegistries(Arc<watch::Sender<Arc<Registries>>>);

/// The source of one repository, by the current options of its registry. Clones share it.
#[derive(Debug, Clone)]
pub struct LiveSource {
    registries: LiveRegistries,
    repository: Repository,
    made: Arc<Mutex<Made>>,
}

/// A source, and the registries that are known to agree with it.
#[derive(Debug)]
struct Made {
    registries: Arc<Registries>,
    source: Source,
}

impl LiveRegistries {
    /// The registries now.
    pub fn current(&self) -> Arc<Registries> {
        Arc::clone(&self.0.borrow())
    }

    /// Replaces the registries. Requests under way are finished by the earlier ones.
    pub fn replace(&self, registries: Arc<Registries>) {
        self.0.send_replace(registries);
    }

    /// The source for a repository.
    ///
    /// # Errors
    /// When the options of its host are invalid.
    pub fn source(&self, repository: &Repository) -> Result<LiveSource, InvalidOptions> {
        self.source_by(self.current(), repository)
    }

    /// As [`Self::source`], by registries that are about to be put in force.
    ///
    /// # Errors
    /// As [`Self::source`].
    pub fn source_by(
        &self,
        registries: Arc<Registries>,
        repository: &Repository,
    ) -> Result<LiveSource, InvalidOptions> {
        let source = registries.source(repository)?;
        Ok(LiveSource {
            registries: self.clone(),
            repository: repository.clone(),
            made: Arc::new(Mutex::new(Made { registries, source })),
        })
    }
}

impl LiveSource {
    /// The source by the options as they are now. It is another one only if its own options have
    /// changed, or those of a mirror.
    pub fn current(&self) -> Source {
        let registries = self.registries.current();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&made.registries, &registries) {
            match registries.source(&self.repository) {
                Ok(source) if source.is_interchangeable(&made.source) => {}
                Ok(source) => made.source = source,
                // The options were checked before they were put in force.
                Err(error) => tracing::error!(%error, "the earlier options stay"),
            }
            made.registries = registries;
        }
        made.source.clone()
    }

    /// The registries now, for another repository.
    pub fn registries(&self) -> Arc<Registries> {
        self.registries.current()
    }
}

impl From<Registries> for LiveRegistries {
    fn from(registries: Registries) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(registries))))
    }
}

impl fmt::Debug for LiveRegistries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveRegistries").finish_non_exhaustive()
    }
}
