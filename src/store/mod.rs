//! Blobs by digest: memory over disk over the registry, each fetched once however many ask.
//!
//! A blob that one repository delivered is handed out for that repository and credential
//! only: otherwise one tenant's manifest could name another's private layer.

mod check_results;
mod disk;
#[cfg(fuzzing)]
pub mod fuzzing;
mod memory;
mod record;
mod spool;

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use moka::future::Cache;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Duration, timeout},
};

use self::{
    disk::{Disk, DiskError},
    memory::Budget,
    record::Record,
    spool::Spool,
};
pub use check_results::CheckResults;

use crate::{
    metrics::Metrics,
    oci::{Blob, Descriptor, Digest, Manifest},
    registry::{RegistryError, Source},
};

/// The share of memory that may hold blobs which nobody serves any more.
const IDLE_SHARE: u64 = 4;

/// Whoever waits for the disk longer than this asks the registry.
const READING: Duration = Duration::from_secs(5);
/// Blobs being read at a time. A disk that hangs keeps so many threads and no more.
const READERS: usize = 8;

/// Where blobs are kept, and how many.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cache folder; `None` keeps everything in memory and files without a name.
    pub directory: Option<PathBuf>,
    /// Bytes in the folder.
    pub disk: u64,
    /// Bytes in memory, published bundles included.
    pub memory: u64,
}

/// The blob store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    disk: Option<Arc<Disk>>,
    readers: Arc<Semaphore>,
    /// One: changes follow each other anyway, and those that wait should not do so in threads.
    writers: Arc<Semaphore>,
    spool: Spool,
    blobs: Cache<(Arc<str>, Digest), Blob>,
    check_results: CheckResults,
    metrics: Metrics,
}

/// A bundle that is served, with everything that proves it.
#[derive(Debug)]
pub struct Served<'a> {
    /// The bundle's name.
    pub name: &'a str,
    /// The reference as configured.
    pub reference: &'a str,
    /// [`Source::identity`].
    pub identity: &'a str,
    /// What was verified.
    pub manifest: &'a Manifest,
    /// The bundle.
    pub layer: &'a Blob,
    /// The signature material that proved it.
    pub evidence: Bytes,
    /// When the registry last confirmed it; `None` where nobody will ask.
    pub checked: Option<Timestamp>,
    /// By what it was accepted.
    pub accepted: Acceptance,
    /// What the bundle has served so far, this included.
    pub history: Bytes,
}

/// By what a bundle was accepted, for auditors, and for a restart at which trust roots can't
/// be refreshed: no verdict, and nothing is trusted because of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// The policy's revision.
    pub policy: String,
    /// The revisions of the trust roots that it relies on, in order.
    pub roots: Vec<String>,
}

/// What was served before; every byte matches its digest, nothing is verified.
#[derive(Debug)]
pub struct Recalled {
    /// The digest of `manifest`.
    pub digest: Digest,
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The bundle.
    pub layer: Blob,
    /// As given to [`Store::keep`].
    pub evidence: Bytes,
    /// As given to [`Store::keep`] or [`Store::confirm`] last, by whatever the clock said then.
    pub checked: Option<Timestamp>,
    /// As given to [`Store::keep`] or [`Store::confirm`] last.
    pub accepted: Option<Acceptance>,
}

/// Why a blob can't be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The registry did not deliver it.
    #[error(transparent)]
    Registry(RegistryError),
    /// There was no room, in memory or on disk.
    #[error("no room for the blob beyond cache.memory: {0}; raise cache.memory or free disk space")]
    Disk(io::Error),
}

impl StoreError {
    /// The registry's part in it.
    pub fn registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Registry(error) => Some(error),
            Self::Disk(_) => None,
        }
    }
}

impl Store {
    /// Opens the cache folder. One that can't be used costs persistence, not service: the
    /// reason is logged and the store works in memory. Blocks.
    pub fn open(options: Options, metrics: Metrics) -> Self {
        let gauge = |tier| metrics.cache_bytes.with_label_values(&[tier]);
        let disk = options.directory.and_then(|path| match Disk::open(&path, options.disk, gauge("disk")) {
            Ok(disk) => Some(Arc::new(disk)),
            Err(error) => {
                tracing::error!(
                    %error,
                    "cache.directory can't be used: blobs live in memory only, a cold start needs the registry"
                );
                None
            }
        });
        let budget = Budget::new(options.memory, gauge("memory"));
        let spool = Spool { budget, folder: disk.as_ref().map(|disk| disk.root().to_owned()) };
        let blobs = Cache::builder()
            .max_capacity(options.memory / IDLE_SHARE)
            // Those in files without a name weigh as much: each holds a file open and its room
            // on the disk, which nobody could see.
            .weigher(|_, blob: &Blob| u32::try_from(blob.size()).unwrap_or(u32::MAX))
            .build();
        let (readers, writers) = (Arc::new(Semaphore::new(READERS)), Arc::new(Semaphore::new(1)));
        let check_results = CheckResults::new(disk.as_ref().map(|disk| disk.root()));
        Self { disk, readers, writers, spool, blobs, check_results, metrics }
    }

    /// Whether what is served now would survive a restart.
    pub fn is_persistent(&self) -> bool {
        self.disk.is_some()
    }

    /// The results of checks of bundles.
    pub fn check_results(&self) -> &CheckResults {
        &self.check_results
    }

    /// A blob of a repository. Any number of callers at a time share one transfer.
    ///
    /// # Errors
    /// When the registry fails or there is no room; the next call tries again.
    pub async fn blob(&self, source: &Source, descriptor: &Descriptor) -> Result<Blob, Arc<StoreError>> {
        let key = (source.identity().into(), descriptor.digest.clone());
        let entry = self.blobs.entry(key).or_try_insert_with(self.find(source, descriptor)).await?;
        if !entry.is_fresh() {
            self.metrics.cache_hits.with_label_values(&["memory"]).inc();
        }
        let blob = entry.into_value();
        // The cache knows digests only; a descriptor that lies about the size is refused
        // whichever came first.
        if blob.size() == descriptor.size {
            return Ok(blob);
        }
        Err(Arc::new(StoreError::Registry(RegistryError::Mismatch {
            what: "blob",
            expected: format!("{} of {} bytes", descriptor.digest, descriptor.size),
            actual: format!("{} bytes", blob.size()),
        })))
    }

    async fn find(&self, source: &Source, descriptor: &Descriptor) -> Result<Blob, StoreError> {
        if let Some(blob) = self.cached_on_disk(source, descriptor).await {
            self.metrics.cache_hits.with_label_values(&["disk"]).inc();
            return Ok(blob);
        }
        self.metrics.cache_misses.inc();
        let stream = source.blob(descriptor).await.map_err(StoreError::Registry)?;
        self.spool.fetch(stream).await
    }

    async fn cached_on_disk(&self, source: &Source, descriptor: &Descriptor) -> Option<Blob> {
        if !self.disk.as_ref()?.possesses(source.identity(), &descriptor.digest) {
            return None;
        }
        let (descriptor, spool) = (descriptor.clone(), self.spool.clone());
        let reading = self.on_disk("read", &self.readers, move |disk| disk.load(&descriptor, &spool));
        let Ok(found) = timeout(READING, reading).await else {
            tracing::error!("the cache on disk does not answer; asking the registry instead");
            return None;
        };
        found.flatten()
    }

    /// Notes on disk what is served, so that a restart can serve it again. `false` when it
    /// could not be written, which is logged and costs nothing but that.
    pub async fn keep(&self, served: Served<'_>) -> bool {
        let record = Record {
            bundle: served.name.to_owned(),
            reference: served.reference.to_owned(),
            identity: served.identity.to_owned(),
            manifest: served.manifest.digest().clone(),
            manifest_size: served.manifest.raw().len() as u64,
            layer: served.layer.digest().clone(),
            layer_size: served.layer.size(),
            evidence: Digest::sha256(&served.evidence),
            checked: served.checked,
            accepted: Some(served.accepted),
        };
        let (layer, manifest) = (served.layer.clone(), served.manifest.raw().clone());
        let (key, history) = (record.key(), served.history.clone());
        let work = move |disk: &Disk| disk.keep(&record, &layer, &manifest, &served.evidence, &served.history);
        let kept = self.on_disk("written", &self.writers, work).await.is_some();
        if !kept {
            // There may be no room for the bundle, but that something older comes back is to be
            // noticed after a restart all the same.
            self.on_disk("written", &self.writers, move |disk| disk.note_alone(&key, &history)).await;
        }
        kept
    }

    /// Changes when and by what a bundle was last found right in what [`Self::keep`] noted, if
    /// that still is about `manifest`.
    pub async fn confirm(
        &self,
        name: &str,
        reference: &str,
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) {
        let (key, manifest) = ((name.to_owned(), reference.to_owned()), manifest.clone());
        self.on_disk("written", &self.writers, move |disk| disk.confirm(&key, &manifest, checked, accepted)).await;
    }

    /// What [`Self::keep`] noted last for this bundle, reference and identity. `small`
    /// limits manifest and evidence, in bytes.
    pub async fn recall(&self, name: &str, reference: &str, identity: &str, small: u64) -> Option<Recalled> {
        let (key, identity) = ((name.to_owned(), reference.to_owned()), identity.to_owned());
        let spool = self.spool.clone();
        let found = self.on_disk("read", &self.readers, move |disk| disk.recall(&key, &identity, small, &spool)).await;
        found.flatten()
    }

    /// Makes [`Self::recall`] find nothing for this bundle. Its history is noted still.
    pub async fn forget(&self, name: &str, reference: &str, history: Bytes) {
        let key = (name.to_owned(), reference.to_owned());
        self.on_disk("written", &self.writers, move |disk| disk.forget(&key, &history)).await;
    }

    /// The history that [`Self::keep`] or [`Self::forget`] noted last for this bundle and
    /// reference, whoever's the credential. `small` limits it, in bytes.
    pub async fn history(&self, name: &str, reference: &str, small: u64) -> Option<Bytes> {
        let key = (name.to_owned(), reference.to_owned());
        self.on_disk("read", &self.readers, move |disk| disk.history(&key, small)).await.flatten()
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        action: &'static str,
        turns: &Arc<Semaphore>,
        work: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> Option<T> {
        let disk = Arc::clone(self.disk.as_ref()?);
        let turn = Arc::clone(turns).acquire_owned().await.ok()?;
        let done = spawn_blocking(move || {
            // Goes with the work, which goes on when nobody waits for it any more.
            let _turn = turn;
            work(&disk)
        })
        .await;
        match done {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::error!(%error, "the cache on disk can't be {action}; serving goes on from memory");
                None
            }
            Err(error) => {
                tracing::error!(%error, "a task of the cache broke off; please report this");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
