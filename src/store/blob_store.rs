//! Blobs by digest: memory over disk over the registry, each fetched once however many ask.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use moka::future::Cache;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::{Duration, timeout},
};

use super::{
    attempts::{Attempt, SetAside},
    check_results::CheckResults,
    commit::Commits,
    disk::{Disk, DiskError},
    memory::Budget,
    record::Record,
    spool::Spool,
};
use crate::{
    metrics::Metrics,
    oci::{Blob, Descriptor, Digest, Manifest},
    registry::{RegistryError, Source},
};

/// The share of memory that may hold blobs which nobody serves any more.
pub(super) const IDLE_SHARE: u64 = 4;

/// Whoever waits for the disk longer than this asks the registry.
const READING: Duration = Duration::from_secs(5);
/// For what is still to be written when the process ends.
const CLOSING: Duration = Duration::from_secs(2);
/// Blobs being read at a time. A disk that hangs keeps so many threads and no more.
const READERS: usize = 8;
/// Bundles being written at a time.
const WRITERS: usize = 4;

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
    writers: Arc<Semaphore>,
    commits: Commits,
    spool: Spool,
    pub(super) blobs: Cache<(Arc<str>, Digest), Blob>,
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

/// A change of the folder that is to be written ([`Store::flush`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Change(u64);

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
        let [readers, writers] = [READERS, WRITERS].map(|count| Arc::new(Semaphore::new(count)));
        let check_results = CheckResults::new(disk.as_ref().map(|disk| disk.root()));
        Self { disk, readers, writers, commits: Commits::default(), spool, blobs, check_results, metrics }
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
        self.read(move |disk| disk.load(&descriptor, &spool)).await.flatten()
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
        let work = move |disk: &Disk| disk.keep(record, &layer, &manifest, &served.evidence, &served.history);
        let kept = self.write(work).await;
        if !kept {
            // There may be no room for the bundle, but that something older comes back is to be
            // noticed after a restart all the same.
            self.write(move |disk| disk.note_alone(&key, &history)).await;
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
        if let Some(change) = self.confirm_later(name, reference, manifest, checked, accepted) {
            self.flush(change).await;
        }
    }

    /// As [`Self::confirm`], and does not wait: it is on the disk after the next change that
    /// somebody waits for, or [`Self::flush`]. Gives what to flush, if there is a disk.
    pub fn confirm_later(
        &self,
        name: &str,
        reference: &str,
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) -> Option<Change> {
        let disk = self.disk.as_ref()?;
        let key = (name.to_owned(), reference.to_owned());
        Some(Change(disk.confirm(&key, manifest, checked, accepted)))
    }

    /// Waits until a change is on the disk, or could not be written, which is logged.
    pub async fn flush(&self, Change(change): Change) {
        if let Some(disk) = &self.disk {
            self.commits.request(disk, &Handle::current());
            self.commits.is_written(change).await;
        }
    }

    /// What [`Self::keep`] noted last for this bundle, reference and identity. `small`
    /// limits manifest and evidence, in bytes.
    pub async fn recall(&self, name: &str, reference: &str, identity: &str, small: u64) -> Option<Recalled> {
        let (key, identity) = ((name.to_owned(), reference.to_owned()), identity.to_owned());
        let spool = self.spool.clone();
        self.read(move |disk| disk.recall(&key, &identity, small, &spool)).await.flatten()
    }

    /// Makes [`Self::recall`] find nothing for this bundle. Its history is noted still.
    pub async fn forget(&self, name: &str, reference: &str, history: Bytes) {
        let key = (name.to_owned(), reference.to_owned());
        self.write(move |disk| disk.forget(&key, &history)).await;
    }

    /// The history that [`Self::keep`] or [`Self::forget`] noted last for this bundle and
    /// reference, whoever's the credential. `small` limits it, in bytes.
    pub async fn history(&self, name: &str, reference: &str, small: u64) -> Option<Bytes> {
        let key = (name.to_owned(), reference.to_owned());
        self.read(move |disk| disk.history(&key, small)).await.flatten()
    }

    /// Whether the process died twice in a row in the same step of an artifact, under the same
    /// limits and in the same version. `limits` is a word that stands for all limits.
    pub fn set_aside(&self, digest: &Digest, limits: &str) -> Option<SetAside> {
        self.disk.as_ref()?.attempts().set_aside(digest, limits)
    }

    /// Notes on disk that a step of an artifact is about to begin, in case the process does not
    /// survive it. `step` and `limits` are words without spaces. What an earlier process may
    /// have died of is tried alone: then this waits for those that run, ten seconds at most.
    pub async fn attempt(&self, digest: &Digest, step: &str, limits: &str) -> Attempt {
        match &self.disk {
            Some(disk) => disk.attempts().begin(digest, step, limits).await,
            None => Attempt::default(),
        }
    }

    /// Brings what is still to be written to the disk, and notes there that the process ends in
    /// order, so that what it was at is no cause of death. Waits a few seconds at most.
    pub async fn close(&self) {
        if let Some(disk) = &self.disk {
            self.commits.request(disk, &Handle::current());
            if timeout(CLOSING, self.commits.is_written(disk.generation())).await.is_err() {
                tracing::error!("the cache on disk does not answer; what changed last is not on it");
            }
            disk.attempts().end_all().await;
        }
    }

    /// Reads from the disk, and waits for a disk that hangs no longer than [`READING`].
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> Option<T> {
        let disk = self.disk.as_ref()?;
        // Only what hangs is given up, not what waits behind thousands of others.
        let turn = loop {
            let turn = Arc::clone(&self.readers).acquire_owned();
            let before = disk.reads();
            match timeout(READING, turn).await {
                Ok(turn) => break turn.ok()?,
                Err(_) if disk.reads() == before => return hangs(),
                Err(_) => {}
            }
        };
        let reading = self.on_disk("read", turn, |disk| {
            let read = work(disk);
            disk.count_read();
            read
        });
        timeout(READING, reading).await.unwrap_or_else(|_| hangs())
    }

    /// Changes something, and waits until that is on the disk. `false` when it can't be
    /// written.
    async fn write(&self, work: impl FnOnce(&Disk) -> Result<u64, DiskError> + Send + 'static) -> bool {
        let Some(disk) = &self.disk else { return false };
        let Ok(turn) = Arc::clone(&self.writers).acquire_owned().await else { return false };
        let (commits, changed, runtime) = (self.commits.clone(), Arc::clone(disk), Handle::current());
        let change = self.on_disk("written", turn, move |disk| {
            let change = work(disk)?;
            // Here, so that nothing is lost when nobody waits for it any more.
            commits.request(&changed, &runtime);
            Ok(change)
        });
        match change.await {
            Some(change) => self.commits.is_written(change).await,
            None => false,
        }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        action: &'static str,
        turn: OwnedSemaphorePermit,
        work: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> Option<T> {
        let disk = Arc::clone(self.disk.as_ref()?);
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

fn hangs<T>() -> Option<T> {
    tracing::error!("the cache on disk does not answer; asking the registry instead");
    None
}
