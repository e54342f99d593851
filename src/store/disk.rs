//! The cache folder: an OCI image layout, locked, private, without blobs that nothing names.
//! Its index is held in memory and written for many changes at once ([`Disk::write`]), so that
//! the cost of a change does not grow with what is kept. Everything here blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use prometheus::IntGauge;

use super::{
    Acceptance, Recalled,
    attempts::Attempts,
    folder,
    index::{Index, Key, NoRoom},
    record::{Note, Record},
    spool::Spool,
};
use crate::oci::{Blob, Descriptor, Digest, Layout, LayoutError, LayoutIndex, WriteError};

/// A longer `index.json` is neither read nor written. It holds the entries of about 300 000
/// bundles.
pub(super) const INDEX_LIMIT: u64 = 256 << 20;

/// One process's cache folder.
#[derive(Debug)]
pub(super) struct Disk {
    layout: Layout,
    /// Bytes that the folder may hold.
    limit: u64,
    gauge: IntGauge,
    /// Locked for moments only: whether to ask the disk at all must not wait for the disk.
    index: Mutex<Index>,
    /// One write of `index.json` after the other, so that none goes back in time.
    writing: Mutex<()>,
    /// Shared by those who write blobs, alone for those who remove them: what is being removed
    /// must not be found intact by whoever is about to name it.
    blobs: RwLock<()>,
    attempts: Arc<Attempts>,
    /// How many reads have come to an end.
    reads: AtomicU64,
    /// Held open: the lock goes with the process, however it ends.
    _lock: fs::File,
}

/// Why the folder can't be used, or not now.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("{path} is in use by another process; give each process a cache.directory of its own")]
    Locked { path: PathBuf },
    #[error("{path} belongs to another user; name a folder that does not exist yet, or change its owner")]
    Foreign { path: PathBuf },
    #[error("{path} holds what this cache did not put there; name a folder for the cache alone")]
    NotACache { path: PathBuf },
    #[error("{size} bytes don't fit: cache.disk allows {limit} bytes; raise it")]
    Full { size: u64, limit: u64 },
    #[error("{path} would have {size} bytes, more than the {limit} bytes that can be read again")]
    IndexTooLong { path: PathBuf, size: u64, limit: u64 },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Disk {
    /// Opens or makes the folder, takes the lock, and clears away what a crash left.
    pub(super) fn open(path: &Path, limit: u64, gauge: IntGauge) -> Result<Self, DiskError> {
        let lock = folder::claim(path)?;
        let layout = Layout::create(path)?;
        let index = match layout.index_within(INDEX_LIMIT) {
            Ok(index) if folder::is_ours(&index) => index,
            // Sweeping would delete them.
            Ok(_) => return Err(DiskError::NotACache { path: path.to_owned() }),
            Err(error) if folder::is_marked(path) => {
                // Nothing in a cache is worth refusing to start for.
                tracing::error!(%error, "the cache's index can't be read; starting with an empty one");
                layout.write_index(&LayoutIndex::default())?;
                LayoutIndex::default()
            }
            Err(error) => return Err(error.into()),
        };
        if !folder::is_marked(path) {
            folder::mark(path).map_err(|source| DiskError::Io { path: path.to_owned(), source })?;
        }
        layout.remove_leftovers()?;
        let blobs = layout.blobs()?;
        let index = Index::new(&index, &blobs);
        for (digest, _) in blobs.iter().filter(|(digest, _)| !index.names(digest)) {
            layout.remove_blob(digest)?;
        }
        gauge.set(index.used().cast_signed());
        let attempts = Arc::new(Attempts::open(path));
        let (index, writing, blobs) = (Mutex::new(index), Mutex::default(), RwLock::default());
        let reads = AtomicU64::new(0);
        Ok(Self { layout, limit, gauge, index, writing, blobs, attempts, reads, _lock: lock })
    }

    pub(super) fn root(&self) -> &Path {
        self.layout.root()
    }

    pub(super) fn attempts(&self) -> &Arc<Attempts> {
        &self.attempts
    }

    /// How many reads have come to an end.
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

    /// Whether a record proves that `identity` was given this blob. Does not block.
    pub(super) fn possesses(&self, identity: &str, digest: &Digest) -> bool {
        self.lock().possesses(identity, digest)
    }

    /// A blob, checked again; a damaged one is removed and counts as absent.
    pub(super) fn load(&self, descriptor: &Descriptor, spool: &Spool) -> Result<Option<Blob>, DiskError> {
        let file = match self.layout.open_blob(&descriptor.digest) {
            Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match spool.load(descriptor.clone(), file) {
            Ok(blob) => Ok(Some(blob)),
            Err(WriteError::Io(source)) => Err(DiskError::Io { path: self.root().to_owned(), source }),
            Err(WriteError::Mismatch(_)) => {
                self.remove_damaged(&descriptor.digest, descriptor.size)?;
                Ok(None)
            }
        }
    }

    /// Takes in a served bundle and everything that proves it, and a note of its history. The
    /// folder says so after the next [`Self::write`]; a crash before leaves blobs that nothing
    /// names.
    pub(super) fn keep(
        &self,
        record: Record,
        layer: &Blob,
        manifest: &[u8],
        evidence: &[u8],
        history: &[u8],
    ) -> Result<u64, DiskError> {
        let size = layer.size() + (manifest.len() + evidence.len()) as u64;
        let room = self.lock().make_room(&record.key(), size, self.limit);
        let is_full = room.map_err(|NoRoom { size }| DiskError::Full { size, limit: self.limit })?;
        let kept = if is_full { self.write().map(drop) } else { Ok(()) }
            .and_then(|()| self.put(record, layer, manifest, evidence, history));
        self.lock().unreserve(size);
        kept
    }

    fn put(
        &self,
        record: Record,
        layer: &Blob,
        manifest: &[u8],
        evidence: &[u8],
        history: &[u8],
    ) -> Result<u64, DiskError> {
        let _shared = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        let mut unsynced = Vec::new();
        if self.layout.store_blob_unsynced(layer)? {
            unsynced.push(layer.digest().clone());
        }
        for (digest, bytes) in [(&record.manifest, manifest), (&record.evidence, evidence)] {
            if self.layout.write_blob_unsynced(bytes)? {
                unsynced.push(digest.clone());
            }
        }
        let note = self.write_note(&record.key(), history, &mut unsynced)?;
        let sizes = [
            (record.layer.clone(), layer.size()),
            (record.manifest.clone(), manifest.len() as u64),
            (record.evidence.clone(), evidence.len() as u64),
        ];
        let mut index = self.lock();
        index.put(record, note, &sizes, unsynced);
        self.gauge.set(index.used().cast_signed());
        Ok(index.generation())
    }

    /// Changes when and by what a record was last found right, if it still is about this
    /// manifest. As with [`Self::keep`], the folder says so after the next [`Self::write`].
    pub(super) fn confirm(
        &self,
        key: &Key,
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) -> u64 {
        let mut index = self.lock();
        index.confirm(key, manifest, checked, accepted);
        index.generation()
    }

    /// What was last kept under a bundle's name and reference, all of it checked again.
    pub(super) fn recall(
        &self,
        key: &Key,
        identity: &str,
        small: u64,
        spool: &Spool,
    ) -> Result<Option<Recalled>, DiskError> {
        let record = self.lock().record(key).filter(|record| record.identity == identity).cloned();
        let Some(record) = record else { return Ok(None) };
        let Some(manifest) = self.small(&record.manifest, small)? else { return Ok(None) };
        let Some(evidence) = self.small(&record.evidence, small)? else { return Ok(None) };
        let Some(layer) = self.load(&record.layer_descriptor(), spool)? else { return Ok(None) };
        let Record { manifest: digest, checked, accepted, .. } = record;
        Ok(Some(Recalled { digest, manifest, layer, evidence, checked, accepted }))
    }

    /// Drops the record of a bundle, and what only it named; the note of its history stays.
    pub(super) fn forget(&self, key: &Key, history: &[u8]) -> Result<u64, DiskError> {
        self.lock().remove(key);
        self.note_alone(key, history)
    }

    /// Takes in the note of a bundle's history alone, for want of room for the bundle. It is so
    /// small that it counts, but is never what there is no room for.
    pub(super) fn note_alone(&self, key: &Key, history: &[u8]) -> Result<u64, DiskError> {
        let _shared = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        let mut unsynced = Vec::new();
        let note = self.write_note(key, history, &mut unsynced)?;
        let mut index = self.lock();
        index.replace_note(key, note);
        index.not_synced(unsynced);
        Ok(index.generation())
    }

    /// What was noted last of a bundle's history, of at most `small` bytes.
    pub(super) fn history(&self, key: &Key, small: u64) -> Result<Option<Bytes>, DiskError> {
        let history = self.lock().note(key).map(|note| note.history.clone());
        history.map_or(Ok(None), |history| self.small(&history, small))
    }

    /// Brings everything that was changed to the disk, the index after the blobs that it names,
    /// and removes the files that nothing names any more. Gives the last change that is
    /// there now.
    pub(super) fn write(&self) -> Result<u64, DiskError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = self.lock().batch();
        let written = self.layout.sync_blobs(&batch.unsynced).map_err(DiskError::from);
        if let Err(error) = written.and_then(|()| self.write_index(&batch.text())) {
            self.lock().not_written(batch);
            return Err(error);
        }
        self.remove_garbage(&batch.garbage)?;
        Ok(batch.generation)
    }

    fn write_index(&self, text: &[u8]) -> Result<(), DiskError> {
        let size = text.len() as u64;
        if size > INDEX_LIMIT {
            let path = self.root().join("index.json");
            return Err(DiskError::IndexTooLong { path, size, limit: INDEX_LIMIT });
        }
        Ok(self.layout.write_index_text(text)?)
    }

    fn remove_garbage(&self, garbage: &[Digest]) -> Result<(), DiskError> {
        if garbage.is_empty() {
            return Ok(());
        }
        let _alone = self.blobs.write().unwrap_or_else(PoisonError::into_inner);
        for digest in garbage {
            if self.lock().drop_garbage(digest) {
                self.layout.remove_blob(digest)?;
            }
        }
        self.gauge.set(self.lock().used().cast_signed());
        Ok(())
    }

    fn write_note(&self, key: &Key, history: &[u8], unsynced: &mut Vec<Digest>) -> Result<Option<Note>, DiskError> {
        if history.is_empty() {
            return Ok(None);
        }
        let digest = Digest::sha256(history);
        if self.layout.write_blob_unsynced(history)? {
            unsynced.push(digest.clone());
        }
        Ok(Some(Note { key: key.clone(), history: digest, size: history.len() as u64 }))
    }

    fn small(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, DiskError> {
        let Some(bytes) = self.layout.read_blob(digest, limit)? else { return Ok(None) };
        if digest.recompute(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        self.remove_damaged(digest, bytes.len() as u64)?;
        Ok(None)
    }

    fn remove_damaged(&self, digest: &Digest, size: u64) -> Result<(), DiskError> {
        let _alone = self.blobs.write().unwrap_or_else(PoisonError::into_inner);
        // Whoever has the right bytes may have written them meanwhile.
        if !self.layout.is_intact(digest, size) {
            tracing::error!(%digest, "a cached blob is damaged and was removed");
            self.layout.remove_blob(digest)?;
            self.lock().lost_blob(digest);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
