//! The index of the cache folder in memory: its entries, the blobs that they need, and the text of
//! `index.json`. It does no I/O, so its lock is held briefly.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    Acceptance,
    record::{HistoryEntry, Record},
};
use crate::oci::{Descriptor, Digest, LayoutIndex};

/// The maximum size of `index.json`, enough for about 300 000 bundles.
pub(super) const INDEX_LIMIT: u64 = 256 << 20;

/// Bundle name and reference.
pub(super) type Key = (String, String);

/// The content of the folder once the pending changes are written.
#[derive(Debug, Default)]
pub(super) struct IndexState {
    records: Entries<Record>,
    histories: Entries<HistoryEntry>,
    blobs: HashMap<Digest, BlobUse>,
    /// The number of records that prove that an identity received a blob.
    possessed: HashMap<(String, Digest), usize>,
    used: u64,
    /// The part of `used` that no entry names any more.
    unused: u64,
    /// Bytes of the bundles that are being written.
    reserved: u64,
    /// The number of changes so far.
    generation: u64,
    /// Blobs that are written and not yet synced.
    unsynced: Vec<Digest>,
    /// Blobs that no entry names any more, though the `index.json` on disk may.
    garbage: Vec<Digest>,
}

/// The size of a blob and the number of entries that name it.
#[derive(Debug, Default)]
struct BlobUse {
    references: usize,
    /// 0 if the file is missing.
    size: u64,
}

/// Entries by key, in the order in which they were added.
#[derive(Debug)]
struct Entries<T> {
    by_key: HashMap<Key, u64>,
    in_order: BTreeMap<u64, (T, Arc<str>)>,
    next: u64,
    /// The entries that no bundle of this process has requested.
    unclaimed: BTreeSet<u64>,
}

/// One write of the folder: what to sync, to write and to remove, in this order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) generation: u64,
    pub(super) unsynced: Vec<Digest>,
    entries: Vec<Arc<str>>,
    pub(super) garbage: Vec<Digest>,
}

/// `cache.disk` is too small for a bundle.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// Bytes that the folder would hold.
    pub(super) size: u64,
}

impl IndexState {
    /// The state of an `index.json`, with the sizes of the blobs that exist.
    pub(super) fn new(index: &LayoutIndex, blobs: &[(Digest, u64)]) -> Self {
        let mut new = Self::default();
        for entry in &index.manifests {
            // Of several entries with one key, the first counts.
            if let Some(entry) = HistoryEntry::from_entry(entry) {
                if !new.histories.contains(&entry.key) {
                    new.set_history(entry);
                }
            } else if let Some(record) = Record::from_entry(entry)
                && !new.records.contains(&record.key())
            {
                new.set_record(record);
            }
        }
        new.records.unclaim_all();
        new.histories.unclaim_all();
        new.generation = 0;
        for (digest, size) in blobs {
            if new.blobs.contains_key(digest) {
                new.add_blob(digest, *size);
            }
        }
        new
    }

    pub(super) fn references(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// Bytes of the blobs that entries name, or named until the last write.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a record proves that `identity` received this blob.
    pub(super) fn possesses(&self, identity: &str, digest: &Digest) -> bool {
        self.possessed
            .contains_key(&(identity.to_owned(), digest.clone()))
    }

    /// The record of a bundle; from now on it is not evicted for others.
    pub(super) fn record(&mut self, key: &Key) -> Option<&Record> {
        self.records.claim(key)
    }

    /// The history entry of a bundle; from now on it is not evicted for others.
    pub(super) fn history(&mut self, key: &Key) -> Option<&HistoryEntry> {
        self.histories.claim(key)
    }

    /// Adds a record whose blobs have been written. `unsynced` are the blobs that are new.
    pub(super) fn put(
        &mut self,
        record: Record,
        entry: Option<HistoryEntry>,
        sizes: &[(Digest, u64)],
        unsynced: Vec<Digest>,
    ) {
        let key = record.key();
        self.set_record(record);
        self.replace_history(&key, entry);
        sizes
            .iter()
            .for_each(|(digest, size)| self.add_blob(digest, *size));
        self.unsynced.extend(unsynced);
    }

    /// Replaces or removes the history entry of a bundle.
    pub(super) fn replace_history(&mut self, key: &Key, entry: Option<HistoryEntry>) {
        match entry {
            Some(entry) => {
                let (digest, size) = (entry.history.clone(), entry.size);
                self.set_history(entry);
                self.add_blob(&digest, size);
            }
            None => self.remove_history(key),
        }
    }

    /// Adds blobs that are written and not yet synced.
    pub(super) fn add_unsynced(&mut self, digests: Vec<Digest>) {
        self.unsynced.extend(digests);
    }

    /// Removes the record of a bundle.
    pub(super) fn remove(&mut self, key: &Key) {
        self.generation += 1;
        if let Some(record) = self.records.remove(key) {
            self.release(&record);
        }
    }

    /// Updates the time of the last confirmation and the acceptance of a record, if its manifest
    /// is `manifest`.
    pub(super) fn touch(
        &mut self,
        key: &Key,
        manifest: &Digest,
        checked: Option<Timestamp>,
        accepted: Acceptance,
    ) {
        let Some(record) = self
            .records
            .get(key)
            .filter(|record| record.manifest == *manifest)
        else {
            return;
        };
        let confirmed = Record {
            checked,
            accepted: Some(accepted),
            ..record.clone()
        };
        if confirmed != *record {
            self.set_record(confirmed);
        }
    }

    /// Reserves `size` bytes for the record of `key`, and evicts entries to make room for them.
    /// Returns whether the folder has to be written first, so that files are removed.
    ///
    /// The eviction order is: records that no bundle of this process has requested, oldest first;
    /// the record of `key` itself; histories that no bundle has requested. Histories come last
    /// because their bundles may be configured again.
    pub(super) fn make_room(&mut self, key: &Key, size: u64, limit: u64) -> Result<bool, NoRoom> {
        let reserved = self.reserved.saturating_add(size);
        let mut must_write = self.used.saturating_add(reserved) > limit;
        loop {
            let wanted = (self.used - self.unused).saturating_add(reserved);
            if wanted <= limit {
                self.reserved = reserved;
                return Ok(must_write);
            }
            if let Some(oldest) = self.records.first_unclaimed() {
                self.remove(&oldest);
            } else if self.records.contains(key) {
                self.remove(key);
            } else if let Some(oldest) = self.histories.first_unclaimed() {
                self.remove_history(&oldest);
            } else {
                return Err(NoRoom { size: wanted });
            }
            must_write = true;
        }
    }

    /// Releases a reservation of [`Self::make_room`].
    pub(super) fn unreserve(&mut self, size: u64) {
        self.reserved = self.reserved.saturating_sub(size);
    }

    /// The write that brings the disk to this state.
    pub(super) fn batch(&mut self) -> Batch {
        Batch {
            generation: self.generation,
            unsynced: std::mem::take(&mut self.unsynced),
            entries: self.records.texts().chain(self.histories.texts()).collect(),
            garbage: std::mem::take(&mut self.garbage),
        }
    }

    /// Restores a batch that could not be written.
    pub(super) fn restore(&mut self, batch: Batch) {
        self.unsynced.extend(batch.unsynced);
        self.garbage.extend(batch.garbage);
    }

    /// Drops a blob of a written batch, unless an entry names it again. Returns whether its file
    /// can be removed.
    pub(super) fn drop_garbage(&mut self, digest: &Digest) -> bool {
        let is_garbage = self
            .blobs
            .get(digest)
            .is_some_and(|stored| stored.references == 0);
        if is_garbage && let Some(stored) = self.blobs.remove(digest) {
            self.used -= stored.size;
            self.unused -= stored.size;
        }
        is_garbage
    }

    /// Records that the file of a blob is gone.
    pub(super) fn blob_lost(&mut self, digest: &Digest) {
        if let Some(stored) = self.blobs.get_mut(digest) {
            let size = std::mem::take(&mut stored.size);
            self.used -= size;
            if stored.references == 0 {
                self.unused -= size;
            }
        }
    }

    fn add_blob(&mut self, digest: &Digest, size: u64) {
        let stored = self.blobs.entry(digest.clone()).or_default();
        if stored.size == 0 {
            stored.size = size;
            self.used += size;
        }
    }

    fn set_record(&mut self, record: Record) {
        self.generation += 1;
        for digest in record.blobs() {
            self.reference(digest);
        }
        for possession in possessions(&record) {
            *self.possessed.entry(possession).or_default() += 1;
        }
        let text = text_of(&record.to_entry());
        if let Some(before) = self.records.set(record.key(), record, text) {
            self.release(&before);
        }
    }

    fn set_history(&mut self, entry: HistoryEntry) {
        self.generation += 1;
        self.reference(&entry.history);
        let text = text_of(&entry.to_entry());
        if let Some(before) = self.histories.set(entry.key.clone(), entry, text) {
            self.dereference(&before.history);
        }
    }

    fn remove_history(&mut self, key: &Key) {
        self.generation += 1;
        if let Some(entry) = self.histories.remove(key) {
            self.dereference(&entry.history);
        }
    }

    fn release(&mut self, record: &Record) {
        record.blobs().for_each(|digest| self.dereference(digest));
        for possession in possessions(record) {
            if let Some(count) = self.possessed.get_mut(&possession) {
                *count -= 1;
                if *count == 0 {
                    self.possessed.remove(&possession);
                }
            }
        }
    }

    fn reference(&mut self, digest: &Digest) {
        let stored = self.blobs.entry(digest.clone()).or_default();
        if stored.references == 0 {
            self.unused -= stored.size;
        }
        stored.references += 1;
    }

    fn dereference(&mut self, digest: &Digest) {
        if let Some(stored) = self.blobs.get_mut(digest) {
            stored.references -= 1;
            if stored.references == 0 {
                self.unused += stored.size;
                self.garbage.push(digest.clone());
            }
        }
    }
}

impl Batch {
    /// The text of `index.json`.
    pub(super) fn text(&self) -> Vec<u8> {
        let length = self
            .entries
            .iter()
            .map(|entry| entry.len() + 1)
            .sum::<usize>();
        let mut text = Vec::with_capacity(length + INDEX_HEAD.len() + INDEX_TAIL.len());
        text.extend_from_slice(INDEX_HEAD);
        for (at, entry) in self.entries.iter().enumerate() {
            if at > 0 {
                text.push(b',');
            }
            text.extend_from_slice(entry.as_bytes());
        }
        text.extend_from_slice(INDEX_TAIL);
        text
    }
}

/// The layers that a record proves to have been received, each with the identity that received it.
fn possessions(record: &Record) -> impl Iterator<Item = (String, Digest)> {
    let layers = record.layers.iter();
    layers.map(|(layer, _)| (record.identity.clone(), layer.clone()))
}

const INDEX_HEAD: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#;
const INDEX_TAIL: &[u8] = b"]}";

fn text_of(entry: &Descriptor) -> Arc<str> {
    // Never fails: a descriptor consists of strings, numbers and maps of them.
    serde_json::to_string(entry).unwrap_or_default().into()
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            in_order: BTreeMap::new(),
            next: 0,
            unclaimed: BTreeSet::new(),
        }
    }
}

impl<T> Entries<T> {
    fn contains(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    fn get(&self, key: &Key) -> Option<&T> {
        self.in_order
            .get(self.by_key.get(key)?)
            .map(|(entry, _)| entry)
    }

    fn claim(&mut self, key: &Key) -> Option<&T> {
        if let Some(at) = self.by_key.get(key) {
            self.unclaimed.remove(at);
        }
        self.get(key)
    }

    fn unclaim_all(&mut self) {
        self.unclaimed = self.in_order.keys().copied().collect();
    }

    fn set(&mut self, key: Key, entry: T, text: Arc<str>) -> Option<T> {
        let before = self.remove(&key);
        self.by_key.insert(key, self.next);
        self.in_order.insert(self.next, (entry, text));
        self.next += 1;
        before
    }

    fn remove(&mut self, key: &Key) -> Option<T> {
        let at = self.by_key.remove(key)?;
        self.unclaimed.remove(&at);
        self.in_order.remove(&at).map(|(entry, _)| entry)
    }

    fn texts(&self) -> impl Iterator<Item = Arc<str>> {
        self.in_order
            .values()
            .map(|(_, text)| Arc::clone(text))
            .filter(|text| !text.is_empty())
    }
}

impl Entries<Record> {
    fn first_unclaimed(&self) -> Option<Key> {
        self.in_order
            .get(self.unclaimed.first()?)
            .map(|(record, _)| record.key())
    }
}

impl Entries<HistoryEntry> {
    fn first_unclaimed(&self) -> Option<Key> {
        self.in_order
            .get(self.unclaimed.first()?)
            .map(|(entry, _)| entry.key.clone())
    }
}
