//! The cache folder: an OCI image layout, locked, private, collected by mark and sweep.
//! Everything here blocks.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use jiff::Timestamp;
use prometheus::IntGauge;

use super::{
    Acceptance, Recalled,
    record::{Note, Record},
    spool::Spool,
};
use crate::oci::{Blob, Descriptor, Digest, Layout, LayoutError, LayoutIndex, WriteError};

/// One process's cache folder.
#[derive(Debug)]
pub(super) struct Disk {
    layout: Layout,
    /// Bytes that the folder may hold.
    limit: u64,
    gauge: IntGauge,
    /// Serialises changes, and remembers which records are this process's.
    books: Mutex<Books>,
    /// Who was given which blob, by the index. Apart from the books, which are locked for as
    /// long as a change takes: whether to ask the disk at all must not wait for the disk.
    possessed: Mutex<HashSet<(String, Digest)>>,
    /// Held open: the lock goes with the process, however it ends.
    _lock: fs::File,
}

#[derive(Debug, Default)]
struct Books {
    ours: HashSet<(String, String)>,
    used: u64,
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
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Disk {
    /// Opens or makes the folder, takes the lock, and clears away what a crash left.
    pub(super) fn open(path: &Path, limit: u64, gauge: IntGauge) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Io { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        // Before anything in it is changed: `cache.directory: /tmp` must not close /tmp.
        if !path.join(".lock").exists() && !may_become_a_cache(path).map_err(failed)? {
            return Err(DiskError::NotACache { path: path.to_owned() });
        }
        make_private(path)?;
        let lock = fs::File::options().create(true).append(true).open(path.join(".lock")).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => DiskError::Locked { path: path.to_owned() },
            fs::TryLockError::Error(source) => failed(source),
        })?;
        let layout = Layout::create(path)?;
        let index = match layout.index() {
            Ok(index) if is_ours(&index) => index,
            // Sweeping would delete them.
            Ok(_) => return Err(DiskError::NotACache { path: path.to_owned() }),
            Err(error) => {
                // Nothing in a cache is worth refusing to start for.
                tracing::error!(%error, "the cache's index can't be read; starting with an empty one");
                layout.write_index(&LayoutIndex::default())?;
                LayoutIndex::default()
            }
        };
        layout.remove_leftovers()?;
        let possessed = Mutex::new(possessed(&index));
        let disk = Self { layout, limit, gauge, books: Mutex::default(), possessed, _lock: lock };
        disk.sweep(&mut disk.lock())?;
        Ok(disk)
    }

    pub(super) fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Whether a record proves that `identity` was given this blob. Does not block.
    pub(super) fn possesses(&self, identity: &str, digest: &Digest) -> bool {
        let possessed = self.possessed.lock().unwrap_or_else(PoisonError::into_inner);
        possessed.contains(&(identity.to_owned(), digest.clone()))
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
            Err(WriteError::Mismatch(mismatch)) => {
                tracing::error!(digest = %descriptor.digest, %mismatch, "a cached blob is damaged and was removed");
                self.layout.remove_blob(&descriptor.digest)?;
                Ok(None)
            }
        }
    }

    /// Writes a served bundle and everything that proves it, and a note of its history, the
    /// index last: a crash in between leaves blobs that nothing names.
    pub(super) fn keep(
        &self,
        record: &Record,
        layer: &Blob,
        manifest: &[u8],
        evidence: &[u8],
        history: &[u8],
    ) -> Result<(), DiskError> {
        let mut books = self.lock();
        books.ours.insert(record.key());
        let size = layer.size() + (manifest.len() + evidence.len()) as u64;
        self.make_room(&mut books, size, record)?;
        self.layout.store_blob(layer)?;
        self.layout.write_blob(manifest)?;
        self.layout.write_blob(evidence)?;
        let mut index = self.layout.index()?;
        forget(&mut index, &record.key());
        enter(&mut index, record);
        self.note(&mut index, &record.key(), history)?;
        self.write_index(&index)?;
        self.sweep(&mut books)
    }

    /// Changes when and by what a record was last found right, if it still is about this
    /// manifest.
    pub(super) fn confirm(
        &self,
        key: &(String, String),
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) -> Result<(), DiskError> {
        let _books = self.lock();
        let mut index = self.layout.index()?;
        let Some(record) = records(&index).find(|record| record.key() == *key && record.manifest == *manifest) else {
            return Ok(());
        };
        forget(&mut index, key);
        enter(&mut index, &Record { checked, accepted: Some(accepted), ..record });
        self.write_index(&index)
    }

    /// What was last kept under a bundle's name and reference, all of it checked again.
    pub(super) fn recall(
        &self,
        key: &(String, String),
        identity: &str,
        small: u64,
        spool: &Spool,
    ) -> Result<Option<Recalled>, DiskError> {
        let record = {
            let mut books = self.lock();
            books.ours.insert(key.clone());
            let index = self.layout.index()?;
            records(&index).find(|record| record.key() == *key && record.identity == identity)
        };
        let Some(record) = record else { return Ok(None) };
        let Some(manifest) = self.small(&record.manifest, small)? else { return Ok(None) };
        let Some(evidence) = self.small(&record.evidence, small)? else { return Ok(None) };
        let Some(layer) = self.load(&record.layer_descriptor(), spool)? else { return Ok(None) };
        let Record { manifest: digest, checked, accepted, .. } = record;
        Ok(Some(Recalled { digest, manifest, layer, evidence, checked, accepted }))
    }

    /// Drops the record of a bundle, and what only it named; the note of its history stays.
    pub(super) fn forget(&self, key: &(String, String), history: &[u8]) -> Result<(), DiskError> {
        let mut books = self.lock();
        let mut index = self.layout.index()?;
        forget(&mut index, key);
        self.note(&mut index, key, history)?;
        self.write_index(&index)?;
        self.sweep(&mut books)
    }

    /// Writes the note of a bundle's history alone, for want of room for the bundle.
    pub(super) fn note_alone(&self, key: &(String, String), history: &[u8]) -> Result<(), DiskError> {
        let mut books = self.lock();
        let mut index = self.layout.index()?;
        self.note(&mut index, key, history)?;
        self.write_index(&index)?;
        self.sweep(&mut books)
    }

    /// What was noted last of a bundle's history, of at most `small` bytes.
    pub(super) fn history(&self, key: &(String, String), small: u64) -> Result<Option<Bytes>, DiskError> {
        let mut books = self.lock();
        books.ours.insert(key.clone());
        let index = self.layout.index()?;
        let note = notes(&index).find(|note| note.key == *key);
        note.map_or(Ok(None), |note| self.small(&note.history, small))
    }

    /// Replaces a note. It is so small that it counts, but is never what there is no room for.
    fn note(&self, index: &mut LayoutIndex, key: &(String, String), history: &[u8]) -> Result<(), DiskError> {
        index.manifests.retain(|entry| Note::from_entry(entry).is_none_or(|note| note.key != *key));
        if !history.is_empty() {
            self.layout.write_blob(history)?;
            let note = Note { key: key.clone(), history: Digest::sha256(history), size: history.len() as u64 };
            index.manifests.push(note.to_entry());
        }
        Ok(())
    }

    fn small(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, DiskError> {
        let Some(bytes) = self.layout.read_blob(digest, limit)? else { return Ok(None) };
        if digest.recompute(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        tracing::error!(%digest, "a cached blob is damaged and was removed");
        self.layout.remove_blob(digest)?;
        Ok(None)
    }

    /// Drops records that no bundle of this process has asked for, oldest first, while
    /// `size` bytes don't fit.
    fn make_room(&self, books: &mut Books, size: u64, record: &Record) -> Result<(), DiskError> {
        while books.used.saturating_add(size) > self.limit {
            let mut index = self.layout.index()?;
            let abandoned = records(&index).find(|other| !books.ours.contains(&other.key()));
            // The predecessor goes first when the two don't fit side by side.
            let replaced = records(&index).find(|other| other.key() == record.key());
            let note = notes(&index).find(|note| !books.ours.contains(&note.key));
            match (abandoned.or(replaced), note) {
                (Some(victim), _) => forget(&mut index, &victim.key()),
                // Somebody may bring that bundle back, so these come last.
                (None, Some(note)) => self.note(&mut index, &note.key, &[])?,
                (None, None) => {
                    return Err(DiskError::Full { size: books.used.saturating_add(size), limit: self.limit });
                }
            }
            self.write_index(&index)?;
            self.sweep(books)?;
        }
        Ok(())
    }

    /// Removes every blob that no record names.
    fn sweep(&self, books: &mut Books) -> Result<(), DiskError> {
        let index = self.layout.index()?;
        let kept = records(&index).flat_map(|record| [record.manifest, record.layer, record.evidence]);
        let named: HashSet<Digest> = kept.chain(notes(&index).map(|note| note.history)).collect();
        books.used = 0;
        for (digest, size) in self.layout.blobs()? {
            if named.contains(&digest) {
                books.used += size;
            } else {
                self.layout.remove_blob(&digest)?;
            }
        }
        self.gauge.set(books.used.cast_signed());
        Ok(())
    }

    fn write_index(&self, index: &LayoutIndex) -> Result<(), DiskError> {
        self.layout.write_index(index)?;
        *self.possessed.lock().unwrap_or_else(PoisonError::into_inner) = possessed(index);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_ours(index: &LayoutIndex) -> bool {
    index.manifests.iter().all(|entry| Record::from_entry(entry).is_some() || Note::from_entry(entry).is_some())
}

fn notes(index: &LayoutIndex) -> impl Iterator<Item = Note> {
    index.manifests.iter().filter_map(Note::from_entry)
}

fn records(index: &LayoutIndex) -> impl Iterator<Item = Record> {
    index.manifests.iter().filter_map(Record::from_entry)
}

fn possessed(index: &LayoutIndex) -> HashSet<(String, Digest)> {
    records(index).map(|record| (record.identity, record.layer)).collect()
}

/// The newest record, in front of the notes.
fn enter(index: &mut LayoutIndex, record: &Record) {
    let end = index.manifests.iter().position(|entry| Note::from_entry(entry).is_some());
    index.manifests.insert(end.unwrap_or(index.manifests.len()), record.to_entry());
}

fn forget(index: &mut LayoutIndex, key: &(String, String)) {
    index.manifests.retain(|entry| Record::from_entry(entry).is_none_or(|record| record.key() != *key));
}

/// Whether a folder without a lock file is empty, or the copy of a cache.
fn may_become_a_cache(path: &Path) -> io::Result<bool> {
    if let Ok(layout) = Layout::open(path) {
        return Ok(layout.index().is_ok_and(|index| is_ours(&index)));
    }
    for entry in fs::read_dir(path)? {
        // The root of a fresh volume has this one.
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Other users must neither read private policy nor plant their own.
fn make_private(path: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), source };
    let folder = fs::metadata(path).map_err(failed)?;
    // A file of our own tells who we are without asking the system for it.
    let probe = tempfile::tempfile_in(path).and_then(|probe| probe.metadata()).map_err(failed)?;
    if folder.uid() != probe.uid() {
        return Err(DiskError::Foreign { path: path.to_owned() });
    }
    if folder.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}
