//! The cache folder on disk; [`super`] describes its format.
//!
//! The index is held in memory and written for many changes at once ([`Disk::write`]), so the cost
//! of a change does not grow with the number of bundles. Everything here blocks.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use prometheus::IntGauge;

use super::{
    Acceptance, LoadedBundle,
    attempts::Attempts,
    error::DiskError,
    folder,
    index::{INDEX_LIMIT, IndexState, Key, NoRoom},
    record::{HistoryEntry, Record},
    spool::Spool,
};
use crate::oci::{Blob, Descriptor, Digest, Layout, LayoutError, LayoutIndex, WriteError};

/// The locked cache folder of this process.
#[derive(Debug)]
pub(super) struct Disk {
    layout: Layout,
    /// Bytes that the folder may hold.
    limit: AtomicU64,
    gauge: IntGauge,
    /// Never locked during I/O: deciding whether to read the disk must not wait for the disk.
    index: Mutex<IndexState>,
    /// Serialises the writes of `index.json`, so that none replaces a newer one.
    writing: Mutex<()>,
    /// Read-locked while blobs are written, write-locked while they are removed: a blob that is
    /// being removed must not be found intact by a write that is about to reference it.
    blobs: RwLock<()>,
    attempts: Arc<Attempts>,
    /// The number of completed reads.
    reads: AtomicU64,
    /// Held open; the lock is released when the process ends, however it ends.
    _lock: fs::File,
}

impl Disk {
    /// Opens or creates the folder, takes the lock, and removes the leftovers of a crash.
    pub(super) fn open(path: &Path, limit: u64, gauge: IntGauge) -> Result<Self, DiskError> {
        let lock = folder::claim(path)?;
        let layout = Layout::create(path)?;
        let index = match layout.index_within(INDEX_LIMIT) {
            Ok(index) if folder::is_cache_index(&index) => index,
            // Sweeping would delete foreign blobs.
            Ok(_) => {
                return Err(DiskError::NotACache {
                    path: path.to_owned(),
                });
            }
            Err(error) if folder::is_marked(path) => {
                // Nothing in a cache justifies a refusal to start.
                tracing::error!(%error, "the cache's index can't be read; starting with an empty one");
                layout.write_index(&LayoutIndex::default())?;
                LayoutIndex::default()
            }
            Err(error) => return Err(error.into()),
        };
        if !folder::is_marked(path) {
            folder::mark(path).map_err(|source| DiskError::Io {
                path: path.to_owned(),
                source,
            })?;
        }
        layout.remove_leftovers()?;
        let blobs = layout.blobs()?;
        let index = IndexState::new(&index, &blobs);
        for (digest, _) in blobs.iter().filter(|(digest, _)| !index.references(digest)) {
            layout.remove_blob(digest)?;
        }
        gauge.set(index.used().cast_signed());
        let attempts = Arc::new(Attempts::open(path));
        let (index, writing, blobs) = (Mutex::new(index), Mutex::default(), RwLock::default());
        let reads = AtomicU64::new(0);
        Ok(Self {
            layout,
            limit: AtomicU64::new(limit),
            gauge,
            index,
            writing,
            blobs,
            attempts,
            reads,
            _lock: lock,
        })
    }

    pub(super) fn root(&self) -> &Path {
        self.layout.root()
    }

    pub(super) fn attempts(&self) -> &Arc<Attempts> {
        &self.attempts
    }

    /// Replaces the bytes that the folder may hold. What is beyond a lower limit is evicted by the next
    /// bundle that is written.
    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The number of completed reads.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub(super) fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of the last change.
    pub(super) fn generation(&self) -> u64 {
        self.lock().generation()
    }

    /// Whether a record proves that `identity` received this blob. Does not block.
    pub(super) fn possesses(&self, identity: &str, digest: &Digest) -> bool {
        self.lock().possesses(identity, digest)
    }

    /// Loads and hashes a blob. A damaged blob is removed and counts as absent.
    pub(super) fn load(
        &self,
        descriptor: &Descriptor,
        spool: &Spool,
    ) -> Result<Option<Blob>, DiskError> {
        let file = match self.layout.open_blob(&descriptor.digest) {
            Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            file => file?,
        };
        match spool.load(descriptor.clone(), file) {
            Ok(blob) => Ok(Some(blob)),
            Err(WriteError::Io(source)) => Err(DiskError::Io {
                path: self.root().to_owned(),
                source,
            }),
            Err(WriteError::Mismatch(_)) => {
                self.remove_damaged(&descriptor.digest, descriptor.size)?;
                Ok(None)
            }
        }
    }

    /// Writes the blobs of a served bundle and its history, and adds them to the index, which the
    /// next [`Self::write`] writes. A crash before that leaves blobs that no entry names. Returns
    /// the number of the change.
    ///
    /// `small` are its manifests and its evidence, with their digests.
    pub(super) fn put(
        &self,
        record: Record,
        layers: &[Blob],
        small: &[(Digest, Bytes)],
        history: &[u8],
    ) -> Result<u64, DiskError> {
        let sizes: Vec<_> = layers
            .iter()
            .map(|layer| (layer.digest().clone(), layer.size()))
            .chain(
                small
                    .iter()
                    .map(|(digest, bytes)| (digest.clone(), bytes.len() as u64)),
            )
            .collect();
        let size = sizes.iter().map(|(_, size)| size).sum();
        let limit = self.limit.load(Ordering::Relaxed);
        let room = self.lock().make_room(&record.key(), size, limit);
        let is_full = room.map_err(|NoRoom { size }| DiskError::Full { size, limit })?;
        let written = if is_full {
            self.write().map(drop)
        } else {
            Ok(())
        };
        let written = written.and_then(|()| {
            let _shared = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
            let mut unsynced = self.write_blobs(layers, small)?;
            let history = self.write_history(&record.key(), history, &mut unsynced)?;
            let mut index = self.lock();
            index.put(record, history, &sizes, unsynced);
            self.gauge.set(index.used().cast_signed());
            Ok(index.generation())
        });
        self.lock().unreserve(size);
        written
    }

    /// Writes the blobs of a bundle, and returns those that are not synced.
    fn write_blobs(
        &self,
        layers: &[Blob],
        small: &[(Digest, Bytes)],
    ) -> Result<Vec<Digest>, DiskError> {
        let mut unsynced = Vec::new();
        for layer in layers {
            if self.layout.store_blob_unsynced(layer)? {
                unsynced.push(layer.digest().clone());
            }
        }
        for (digest, bytes) in small {
            if self.layout.write_blob_unsynced(bytes)? {
                unsynced.push(digest.clone());
            }
        }
        Ok(unsynced)
    }

    /// Updates the time of the last confirmation and the acceptance of a record, if its manifest
    /// is still this one. As with [`Self::put`], the next [`Self::write`] writes it.
    pub(super) fn touch(
        &self,
        key: &Key,
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) -> u64 {
        let mut index = self.lock();
        index.touch(key, manifest, checked, accepted);
        index.generation()
    }

    /// Loads the bundle last stored under a name and reference, and hashes every blob of it.
    pub(super) fn get(
        &self,
        key: &Key,
        identity: &str,
        max_bytes: u64,
        spool: &Spool,
    ) -> Result<Option<LoadedBundle>, DiskError> {
        let record = self
            .lock()
            .record(key)
            .filter(|record| record.identity == identity)
            .cloned();
        let Some(record) = record else {
            return Ok(None);
        };
        let names = [&record.manifest].into_iter().chain(&record.below);
        let manifests = self.read_all_small(names, max_bytes)?;
        let evidence = self.read_all_small(record.evidence.iter(), max_bytes)?;
        let (Some(manifests), Some(evidence)) = (manifests, evidence) else {
            return Ok(None);
        };
        let mut layers = Vec::new();
        for layer in record.layer_descriptors() {
            let Some(layer) = self.load(&layer, spool)? else {
                return Ok(None);
            };
            layers.push(layer);
        }
        let Record {
            manifest: digest,
            checked,
            accepted,
            ..
        } = record;
        Ok(Some(LoadedBundle {
            digest,
            manifests,
            layers,
            evidence,
            checked,
            accepted,
        }))
    }

    /// Removes the record of a bundle and the blobs that only it names. Its history stays.
    pub(super) fn remove(&self, key: &Key, history: &[u8]) -> Result<u64, DiskError> {
        self.lock().remove(key);
        self.put_history(key, history)
    }

    /// Writes the history of a bundle without the bundle. A history is small: it counts against the
    /// limit, but is never refused because of it.
    pub(super) fn put_history(&self, key: &Key, history: &[u8]) -> Result<u64, DiskError> {
        let _shared = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        let mut unsynced = Vec::new();
        let history = self.write_history(key, history, &mut unsynced)?;
        let mut index = self.lock();
        index.replace_history(key, history);
        index.add_unsynced(unsynced);
        Ok(index.generation())
    }

    /// The history last stored for a bundle, of at most `max_bytes` bytes.
    pub(super) fn history(&self, key: &Key, max_bytes: u64) -> Result<Option<Bytes>, DiskError> {
        let history = self.lock().history(key).map(|entry| entry.history.clone());
        history.map_or(Ok(None), |history| self.read_small(&history, max_bytes))
    }

    /// Writes all changes: syncs the blobs, replaces the index, then removes the blobs that no
    /// entry names any more. Returns the number of the last change that is written.
    pub(super) fn write(&self) -> Result<u64, DiskError> {
        let _exclusive = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = self.lock().batch();
        let written = self
            .layout
            .sync_blobs(&batch.unsynced)
            .map_err(DiskError::from);
        if let Err(error) = written.and_then(|()| self.write_index(&batch.text())) {
            self.lock().restore(batch);
            return Err(error);
        }
        self.remove_garbage(&batch.garbage)?;
        Ok(batch.generation)
    }

    fn write_index(&self, text: &[u8]) -> Result<(), DiskError> {
        let size = text.len() as u64;
        if size > INDEX_LIMIT {
            let path = self.root().join("index.json");
            return Err(DiskError::IndexTooLong {
                path,
                size,
                limit: INDEX_LIMIT,
            });
        }
        Ok(self.layout.write_index_text(text)?)
    }

    fn remove_garbage(&self, garbage: &[Digest]) -> Result<(), DiskError> {
        if garbage.is_empty() {
            return Ok(());
        }
        let _exclusive = self.blobs.write().unwrap_or_else(PoisonError::into_inner);
        for digest in garbage {
            if self.lock().drop_garbage(digest) {
                self.layout.remove_blob(digest)?;
            }
        }
        self.gauge.set(self.lock().used().cast_signed());
        Ok(())
    }

    fn write_history(
        &self,
        key: &Key,
        history: &[u8],
        unsynced: &mut Vec<Digest>,
    ) -> Result<Option<HistoryEntry>, DiskError> {
        if history.is_empty() {
            return Ok(None);
        }
        let digest = Digest::sha256(history);
        if self.layout.write_blob_unsynced(history)? {
            unsynced.push(digest.clone());
        }
        Ok(Some(HistoryEntry {
            key: key.clone(),
            history: digest,
            size: history.len() as u64,
        }))
    }

    /// All of these blobs; `None` if one of them is missing.
    fn read_all_small<'a>(
        &self,
        digests: impl Iterator<Item = &'a Digest>,
        limit: u64,
    ) -> Result<Option<Vec<Bytes>>, DiskError> {
        digests
            .map(|digest| self.read_small(digest, limit))
            .collect()
    }

    fn read_small(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, DiskError> {
        let Some(bytes) = self.layout.read_blob(digest, limit)? else {
            return Ok(None);
        };
        if digest.recompute(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        self.remove_damaged(digest, bytes.len() as u64)?;
        Ok(None)
    }

    fn remove_damaged(&self, digest: &Digest, size: u64) -> Result<(), DiskError> {
        let _exclusive = self.blobs.write().unwrap_or_else(PoisonError::into_inner);
        // A concurrent write may have replaced the damaged file meanwhile.
        if !self.layout.is_intact(digest, size) {
            tracing::error!(%digest, "a cached blob is damaged and was removed");
            self.layout.remove_blob(digest)?;
            self.lock().blob_lost(digest);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, IndexState> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
