//! The registries that the configuration allows.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    client::{MAX_RETRY_WAIT, MAX_RETRY_WAIT_POLLING, RegistryClient},
    destination::Destination,
    discovery,
    error::RegistryError,
    layout::{LayoutReader, SharedLayout, WatchedFolders},
    metrics::RegistryMetrics,
    options::{InvalidOptions, Options, ReadLimits},
    remote::Remote,
    source::Source,
};
use crate::oci::Repository;

/// The registries by host, each with one connection pool for reading, one for writing, and one
/// credential.
#[derive(Debug)]
pub struct Registries {
    options: BTreeMap<String, Options>,
    default: Options,
    limits: ReadLimits,
    metrics: RegistryMetrics,
    /// The longest `Retry-After` that is waited for within an operation.
    max_retry_wait: Duration,
    readers: Mutex<HashMap<String, Arc<RegistryClient>>>,
    writers: Mutex<HashMap<String, Arc<RegistryClient>>>,
    layouts: Mutex<HashMap<PathBuf, Arc<SharedLayout>>>,
    /// The folders of layouts that are watched; `None` for callers that don't wait for changes.
    folders: Option<Arc<WatchedFolders>>,
}

impl Registries {
    /// A registry that is not in `options` is accessed over HTTPS, anonymously.
    pub fn new(
        options: BTreeMap<String, Options>,
        limits: ReadLimits,
        metrics: RegistryMetrics,
    ) -> Self {
        Self {
            options,
            default: Options::default(),
            limits,
            metrics,
            max_retry_wait: MAX_RETRY_WAIT_POLLING,
            readers: Mutex::default(),
            writers: Mutex::default(),
            layouts: Mutex::default(),
            folders: None,
        }
    }

    /// For a caller that does not poll: an operation waits for a `Retry-After` of up to 10
    /// seconds. Otherwise an operation waits for up to one second, and a longer delay is left to
    /// the caller's schedule.
    #[must_use]
    pub fn one_shot(self) -> Self {
        Self {
            max_retry_wait: MAX_RETRY_WAIT,
            ..self
        }
    }

    /// Has [`Source::watch`] report changes of layout folders.
    #[must_use]
    pub fn watching(self) -> Self {
        Self {
            folders: Some(Arc::default()),
            ..self
        }
    }

    /// The options of registries that have none of their own.
    #[must_use]
    pub fn with_default(self, default: Options) -> Self {
        Self { default, ..self }
    }

    /// The source for a repository.
    ///
    /// # Errors
    /// When the options of its host are invalid.
    pub fn source(&self, repository: &Repository) -> Result<Source, InvalidOptions> {
        Ok(match repository {
            Repository::Registry { host, path } => {
                let user = self
                    .options(host)
                    .credentials
                    .as_ref()
                    .map(ToString::to_string);
                let identity =
                    format!("{repository} as {}", user.as_deref().unwrap_or("anonymous"));
                let remote = Remote::reading(self.reader(host)?, path.clone(), self.limits);
                Source::remote(repository.clone(), identity, remote)
            }
            Repository::Layout { path } => {
                let watch = self
                    .folders
                    .as_ref()
                    .map(|folders| (Arc::clone(folders), self.metrics.unwatched_layouts.clone()));
                Source::layout(repository.clone(), self.layout(path), watch)
            }
        })
    }

    /// The destination for a repository.
    ///
    /// # Errors
    /// When the options of its host are invalid.
    pub fn destination(&self, repository: &Repository) -> Result<Destination, InvalidOptions> {
        Ok(match repository {
            Repository::Registry { host, path } => {
                let writer =
                    || RegistryClient::writing(host, self.options(host), self.metrics.clone());
                let client = cached(&self.writers, host, writer)?;
                Destination::remote(
                    repository.clone(),
                    Remote::writing(client, path.clone(), self.limits),
                )
            }
            Repository::Layout { path } => {
                Destination::layout(repository.clone(), path.clone(), self.limits)
            }
        })
    }

    /// Every tag of a repository, sorted.
    ///
    /// # Errors
    /// When the registry does not answer, refuses, or has no such repository.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryError> {
        match repository {
            Repository::Registry { host, path } => {
                discovery::tags(&*self.reader(host)?, path).await
            }
            Repository::Layout { path } => self.layout(path).tags().await,
        }
    }

    /// Every repository of a registry, sorted; `None` where it has no catalog.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub async fn repositories(&self, host: &str) -> Result<Option<Vec<String>>, RegistryError> {
        discovery::repositories(&*self.reader(host)?).await
    }

    /// Checks that a registry accepts the credentials in the options.
    ///
    /// # Errors
    /// When it does not, or does not answer.
    pub async fn check_credentials(&self, host: &str) -> Result<(), RegistryError> {
        discovery::ping(&*self.reader(host)?).await
    }

    fn options(&self, host: &str) -> &Options {
        self.options.get(host).unwrap_or(&self.default)
    }

    fn layout(&self, path: &Path) -> LayoutReader {
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = Arc::clone(layouts.entry(path.to_owned()).or_default());
        LayoutReader::new(path.to_owned(), self.limits, shared)
    }

    fn reader(&self, host: &str) -> Result<Arc<RegistryClient>, InvalidOptions> {
        let reader = || {
            RegistryClient::reading(
                host,
                self.options(host),
                self.metrics.clone(),
                self.max_retry_wait,
            )
        };
        cached(&self.readers, host, reader)
    }
}

fn cached(
    clients: &Mutex<HashMap<String, Arc<RegistryClient>>>,
    host: &str,
    make: impl FnOnce() -> Result<RegistryClient, InvalidOptions>,
) -> Result<Arc<RegistryClient>, InvalidOptions> {
    let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = clients.get(host) {
        return Ok(Arc::clone(client));
    }
    let client = Arc::new(make()?);
    clients.insert(host.to_owned(), Arc::clone(&client));
    Ok(client)
}
