//! The store: blobs by digest in memory, on disk or from the registry, and the bundles on disk.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use jiff::Timestamp;
use moka::future::Cache;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_blocking,
    time::{Duration, timeout},
};

use super::{
    Acceptance, LoadedBundle, StoreError, StoredBundle,
    attempts::{Attempt, SetAside},
    check_results::CheckResults,
    commit::Commits,
    disk::Disk,
    error::{DiskError, FolderError},
    health::Health,
    memory::Budget,
    metrics::StoreMetrics,
    record::Record,
    spool::Spool,
};
use crate::{
    oci::{Blob, BlobSpace, Descriptor, Digest},
    registry::{RegistryError, Source},
};

/// Blobs that are not served any more may take `cache.memory` divided by this.
pub(super) const IDLE_MEMORY_DIVISOR: u64 = 4;

/// The time limit of a read from disk, after which the blob is fetched from the registry.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum time that [`Store::close`] waits for pending changes to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Concurrent reads of the disk. A disk that stalls blocks at most that many threads.
const MAX_READERS: usize = 8;
/// Concurrent writes of bundles.
const MAX_WRITERS: usize = 4;

/// The location of blobs and the space that they may take.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cache folder. With `None`, blobs are held in memory and in unlinked files.
    pub directory: Option<PathBuf>,
    /// Bytes that the folder may hold.
    pub disk: u64,
    /// Bytes that blobs in memory may take, published bundles included.
    pub memory: u64,
}

/// The blob store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    disk: Option<Arc<Disk>>,
    folder_error: Option<Arc<FolderError>>,
    health: Health,
    readers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
    commits: Commits,
    spool: Spool,
    blobs: Arc<RwLock<Blobs>>,
    check_results: CheckResults,
    metrics: StoreMetrics,
}

/// Blobs by the identity that received them, and their digest.
type Blobs = Cache<(Arc<str>, Digest), Blob>;

/// A change of the cache folder that is not yet written; see [`Store::flush`].
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Change(u64);

impl Store {
    /// Opens the cache folder. If it can't be used, [`Self::folder_error`] says why, and the store
    /// works in memory. Blocks.
    pub fn open(options: Options, metrics: StoreMetrics) -> Self {
        let opened = options
            .directory
            .map(|path| Disk::open(&path, options.disk, metrics.disk_bytes()));
        let (disk, folder_error) = match opened.transpose() {
            Ok(disk) => (disk.map(Arc::new), None),
            Err(error) => (None, Some(Arc::new(FolderError::from(error)))),
        };
        let health = Health::new(metrics.unavailable.clone());
        if let Some(error) = &folder_error {
            health.set(Some(error.to_string()));
        }
        let budget = Budget::new(options.memory, metrics.memory_bytes());
        let spool = Spool {
            budget,
            folder: disk.as_ref().map(|disk| disk.root().to_owned()),
        };
        let blobs = Arc::new(RwLock::new(idle_blobs(options.memory)));
        let [readers, writers] =
            [MAX_READERS, MAX_WRITERS].map(|count| Arc::new(Semaphore::new(count)));
        let check_results = CheckResults::new(disk.as_ref().map(|disk| disk.root()));
        Self {
            disk,
            folder_error,
            health,
            readers,
            writers,
            commits: Commits::default(),
            spool,
            blobs,
            check_results,
            metrics,
        }
    }

    /// Replaces the sizes of [`Options`]. What is stored beyond lower ones is evicted when something
    /// else is stored.
    pub async fn set_limits(&self, disk: u64, memory: u64) {
        if let Some(folder) = &self.disk {
            folder.set_limit(disk);
        }
        self.spool.budget.set_limit(memory);
        // The capacity of a cache never changes.
        let (before, after) = (self.blobs(), idle_blobs(memory));
        for (key, blob) in &before {
            after.insert(<(Arc<str>, Digest)>::clone(&key), blob).await;
        }
        *self.blobs.write().unwrap_or_else(PoisonError::into_inner) = after;
    }

    /// The blobs that are held though they may not be served.
    pub(super) fn blobs(&self) -> Blobs {
        Cache::clone(&self.blobs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where blobs that are made here are kept: in `cache.memory`, and beyond it in unlinked files.
    pub fn space(&self) -> Arc<dyn BlobSpace> {
        Arc::new(self.spool.clone())
    }

    /// Whether bundles survive a restart.
    pub fn is_persistent(&self) -> bool {
        self.disk.is_some()
    }

    /// Why the cache folder was not opened.
    pub fn folder_error(&self) -> Option<&FolderError> {
        self.folder_error.as_deref()
    }

    /// The problem of the cache folder, while there is one: it was not opened, or the last write to
    /// it has failed.
    pub fn problem(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.health.subscribe()
    }

    /// The results of checks of bundles.
    pub fn check_results(&self) -> &CheckResults {
        &self.check_results
    }

    /// A blob of a repository. Concurrent calls for the same blob share one transfer.
    ///
    /// # Errors
    /// When the registry fails or there is no room; the next call tries again.
    pub async fn blob(
        &self,
        source: &Source,
        descriptor: &Descriptor,
    ) -> Result<Blob, Arc<StoreError>> {
        let key = (source.identity().into(), descriptor.digest.clone());
        let entry = self
            .blobs()
            .entry(key)
            .or_try_insert_with(self.find(source, descriptor))
            .await?;
        if !entry.is_fresh() {
            self.metrics.memory_hits.inc();
        }
        let blob = entry.into_value();
        // The cache is keyed by digest alone, so a descriptor that states another size is
        // refused here.
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
            self.metrics.disk_hits.inc();
            return Ok(blob);
        }
        self.metrics.misses.inc();
        let stream = source
            .blob(descriptor)
            .await
            .map_err(StoreError::Registry)?;
        self.spool.fetch(stream).await
    }

    async fn cached_on_disk(&self, source: &Source, descriptor: &Descriptor) -> Option<Blob> {
        if !self
            .disk
            .as_ref()?
            .possesses(source.identity(), &descriptor.digest)
        {
            return None;
        }
        let (descriptor, spool) = (descriptor.clone(), self.spool.clone());
        self.read(move |disk| disk.load(&descriptor, &spool))
            .await
            .flatten()
    }

    /// Writes a served bundle to disk, so that a restart can serve it again. Returns `false`
    /// when it could not be written, which is logged.
    pub async fn put(&self, served: StoredBundle<'_>) -> bool {
        let StoredBundle { path, evidence, .. } = &served;
        let manifests: Vec<_> = path
            .manifests()
            .map(|(_, manifest)| (manifest.digest().clone(), manifest.raw().clone()))
            .collect();
        let root = manifests
            .first()
            .map(|(digest, raw)| (digest.clone(), raw.len() as u64));
        let (manifest, manifest_size) = root.unwrap_or_else(|| (path.digest().clone(), 0));
        let record = Record {
            bundle: served.name.to_owned(),
            reference: served.reference.to_owned(),
            identity: served.identity.to_owned(),
            manifest,
            manifest_size,
            below: manifests
                .iter()
                .skip(1)
                .map(|(digest, _)| digest.clone())
                .collect(),
            layers: served
                .layers
                .iter()
                .map(|layer| (layer.digest().clone(), layer.size()))
                .collect(),
            evidence: evidence.iter().map(|piece| Digest::sha256(piece)).collect(),
            checked: served.checked,
            accepted: Some(served.accepted),
        };
        let (key, history) = (record.key(), served.history.clone());
        let small: Vec<_> = manifests
            .into_iter()
            .chain(record.evidence.iter().cloned().zip(served.evidence))
            .collect();
        let work = move |disk: &Disk| disk.put(record, &served.layers, &small, &served.history);
        let written = self.write(work).await;
        if written {
            self.health.set(None);
        } else {
            // There may be no room for the bundle, but its history has to survive, because it
            // detects a rollback after a restart.
            self.write(move |disk| disk.put_history(&key, &history))
                .await;
        }
        written
    }

    /// Updates the time of the last confirmation and the acceptance of a stored bundle, if its
    /// manifest is still `manifest`.
    pub async fn touch(
        &self,
        name: &str,
        reference: &str,
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) {
        if let Some(change) = self.touch_later(name, reference, manifest, checked, accepted) {
            self.flush(change).await;
        }
    }

    /// As [`Self::touch`], without waiting: the update is written together with the next awaited
    /// change or by [`Self::flush`]. Returns the change to flush, if there is a disk.
    pub fn touch_later(
        &self,
        name: &str,
        reference: &str,
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) -> Option<Change> {
        let disk = self.disk.as_ref()?;
        let key = (name.to_owned(), reference.to_owned());
        Some(Change(disk.touch(&key, manifest, checked, accepted)))
    }

    /// Waits until a change is written, or until writing it has failed, which is logged.
    pub async fn flush(&self, Change(change): Change) {
        if let Some(disk) = &self.disk {
            self.commits.request(disk, &Handle::current());
            self.commits.is_written(change).await;
        }
    }

    /// The bundle last stored by [`Self::put`] under this name, reference and identity.
    /// `max_bytes` limits each manifest and each piece of evidence.
    pub async fn get(
        &self,
        name: &str,
        reference: &str,
        identity: &str,
        max_bytes: u64,
    ) -> Option<LoadedBundle> {
        let (key, identity) = ((name.to_owned(), reference.to_owned()), identity.to_owned());
        let spool = self.spool.clone();
        self.read(move |disk| disk.get(&key, &identity, max_bytes, &spool))
            .await
            .flatten()
    }

    /// Removes a stored bundle, and stores its history.
    pub async fn remove(&self, name: &str, reference: &str, history: Bytes) {
        let key = (name.to_owned(), reference.to_owned());
        self.write(move |disk| disk.remove(&key, &history)).await;
    }

    /// The history last stored by [`Self::put`] or [`Self::remove`] for this name and reference,
    /// regardless of the identity. `max_bytes` limits its size.
    pub async fn history(&self, name: &str, reference: &str, max_bytes: u64) -> Option<Bytes> {
        let key = (name.to_owned(), reference.to_owned());
        self.read(move |disk| disk.history(&key, max_bytes))
            .await
            .flatten()
    }

    /// Whether the process died twice in a row in the same step of an artifact, under the same
    /// limits and in the same version. `limits` is a word that identifies the limits.
    pub fn set_aside(&self, digest: &Digest, limits: &str) -> Option<SetAside> {
        self.disk.as_ref()?.attempts().set_aside(digest, limits)
    }

    /// Records on disk that a step of an artifact is about to begin, in case the process does not
    /// survive it. `step` and `limits` are words without spaces. A step during which an earlier
    /// process died runs alone: this then waits for running steps, at most ten seconds.
    pub async fn attempt(&self, digest: &Digest, step: &str, limits: &str) -> Attempt {
        match &self.disk {
            Some(disk) => disk.attempts().begin(digest, step, limits).await,
            None => Attempt::default(),
        }
    }

    /// Writes pending changes and records an orderly exit, so that steps which are still running
    /// do not count as crashes. Waits a few seconds at most.
    pub async fn close(&self) {
        if let Some(disk) = &self.disk {
            self.commits.request(disk, &Handle::current());
            if timeout(CLOSE_TIMEOUT, self.commits.is_written(disk.generation()))
                .await
                .is_err()
            {
                tracing::error!(
                    "the cache on disk does not respond; the last changes are not written"
                );
            }
            disk.attempts().end_all().await;
        }
    }

    /// Reads from the disk. Gives up on a disk that stalls after [`READ_TIMEOUT`].
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> Option<T> {
        let disk = self.disk.as_ref()?;
        // Give up when no read has ended meanwhile, not when thousands of reads are queued.
        let permit = loop {
            let permit = Arc::clone(&self.readers).acquire_owned();
            let before = disk.reads();
            match timeout(READ_TIMEOUT, permit).await {
                Ok(permit) => break permit.ok()?,
                Err(_) if disk.reads() == before => return stalled(),
                Err(_) => {}
            }
        };
        let reading = self.on_disk("read", permit, |disk| {
            let read = work(disk);
            disk.count_read();
            read
        });
        timeout(READ_TIMEOUT, reading)
            .await
            .unwrap_or_else(|_| stalled())
    }

    /// Changes the folder and waits until the change is written. Returns `false` when it can't be
    /// written.
    async fn write(
        &self,
        work: impl FnOnce(&Disk) -> Result<u64, DiskError> + Send + 'static,
    ) -> bool {
        let Some(disk) = &self.disk else { return false };
        let Ok(permit) = Arc::clone(&self.writers).acquire_owned().await else {
            return false;
        };
        let (commits, changed, runtime) =
            (self.commits.clone(), Arc::clone(disk), Handle::current());
        let change = self.on_disk("written", permit, move |disk| {
            let change = work(disk)?;
            // Requested here, so that the change is written even if the caller was cancelled.
            commits.request(&changed, &runtime);
            Ok(change)
        });
        let Some(change) = change.await else {
            return false;
        };
        let written = self.commits.is_written(change).await;
        if !written {
            let problem = "cache.directory: the index can't be written; the log has the reason";
            self.health.set(Some(problem.to_owned()));
        }
        written
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        action: &'static str,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> Option<T> {
        let disk = Arc::clone(self.disk.as_ref()?);
        let done = spawn_blocking(move || {
            // Held by the work, which continues after the caller was cancelled.
            let _permit = permit;
            work(&disk)
        })
        .await;
        match done {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::error!(%error, "the cache on disk can't be {action}; serving continues from memory");
                if error.is_of_folder() {
                    self.health
                        .set(Some(format!("cache.directory: can't be {action}: {error}")));
                }
                None
            }
            Err(error) => {
                tracing::error!(%error, "a cache task failed; please report this");
                None
            }
        }
    }
}

fn stalled<T>() -> Option<T> {
    tracing::error!("the cache on disk does not respond; fetching from the registry instead");
    None
}

fn idle_blobs(memory: u64) -> Blobs {
    Cache::builder()
        .max_capacity(memory / IDLE_MEMORY_DIVISOR)
        // Blobs in unlinked files weigh as much: each holds a file descriptor and disk space that no
        // listing shows.
        .weigher(|_, blob: &Blob| u32::try_from(blob.size()).unwrap_or(u32::MAX))
        .build()
}
