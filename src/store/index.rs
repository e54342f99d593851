//! The index of the cache folder in memory: what is kept, which blobs that needs, and what
//! `index.json` says of it. Does no I/O, so its lock is never held for longer than a moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    Acceptance,
    record::{Note, Record},
};
use crate::oci::{Descriptor, Digest, LayoutIndex};

/// Bundle name and reference.
pub(super) type Key = (String, String);

/// What the folder holds, or will hold once it is written.
#[derive(Debug, Default)]
pub(super) struct Index {
    records: Entries<Record>,
    notes: Entries<Note>,
    blobs: HashMap<Digest, Stored>,
    /// Who was given which blob, by how many records.
    possessed: HashMap<(String, Digest), usize>,
    used: u64,
    /// The part of `used` that nothing names any more.
    unused: u64,
    /// Bytes that are being written.
    reserved: u64,
    /// Counts changes.
    generation: u64,
    /// Written, and not certain to survive a power cut.
    unsynced: Vec<Digest>,
    /// Named by nothing any more, but perhaps by the `index.json` on disk.
    garbage: Vec<Digest>,
}

/// A blob that records and notes name.
#[derive(Debug, Default)]
struct Stored {
    references: usize,
    /// 0 where the file is missing.
    size: u64,
}

/// Entries by key, in the order in which they were written.
#[derive(Debug)]
struct Entries<T> {
    by_key: HashMap<Key, u64>,
    in_order: BTreeMap<u64, (T, Arc<str>)>,
    next: u64,
    /// Those that no bundle of this process has asked for.
    unclaimed: BTreeSet<u64>,
}

/// What a write of the folder has to do, in this order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) generation: u64,
    pub(super) unsynced: Vec<Digest>,
    entries: Vec<Arc<str>>,
    pub(super) garbage: Vec<Digest>,
}

/// What there is no room for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// Bytes that the folder would hold.
    pub(super) size: u64,
}

impl Index {
    /// What an `index.json` says, with the sizes of the blobs that are there.
    pub(super) fn new(index: &LayoutIndex, blobs: &[(Digest, u64)]) -> Self {
        let mut new = Self::default();
        for entry in &index.manifests {
            // Of several entries for one bundle the first is meant.
            if let Some(note) = Note::from_entry(entry) {
                if !new.notes.contains(&note.key) {
                    new.set_note(note);
                }
            } else if let Some(record) = Record::from_entry(entry)
                && !new.records.contains(&record.key())
            {
                new.set_record(record);
            }
        }
        new.records.claim_nothing();
        new.notes.claim_nothing();
        new.generation = 0;
        for (digest, size) in blobs {
            if new.blobs.contains_key(digest) {
                new.has_blob(digest, *size);
            }
        }
        new
    }

    pub(super) fn names(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// Bytes of the blobs that are named, and of those that were until the last write.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a record proves that `identity` was given this blob.
    pub(super) fn possesses(&self, identity: &str, digest: &Digest) -> bool {
        self.possessed.contains_key(&(identity.to_owned(), digest.clone()))
    }

    /// The record of a bundle, which is not removed to make room from now on.
    pub(super) fn record(&mut self, key: &Key) -> Option<&Record> {
        self.records.claim(key)
    }

    /// The note about a bundle, which is not removed to make room from now on.
    pub(super) fn note(&mut self, key: &Key) -> Option<&Note> {
        self.notes.claim(key)
    }

    /// Enters a record whose blobs have been written. `unsynced` are those that were not there.
    pub(super) fn put(&mut self, record: Record, note: Option<Note>, sizes: &[(Digest, u64)], unsynced: Vec<Digest>) {
        let key = record.key();
        self.set_record(record);
        self.replace_note(&key, note);
        sizes.iter().for_each(|(digest, size)| self.has_blob(digest, *size));
        self.unsynced.extend(unsynced);
    }

    /// Replaces the note about a bundle, or removes it.
    pub(super) fn replace_note(&mut self, key: &Key, note: Option<Note>) {
        match note {
            Some(note) => {
                let (digest, size) = (note.history.clone(), note.size);
                self.set_note(note);
                self.has_blob(&digest, size);
            }
            None => self.remove_note(key),
        }
    }

    /// Says that blobs were written of which nothing is known to be on the disk yet.
    pub(super) fn not_synced(&mut self, digests: Vec<Digest>) {
        self.unsynced.extend(digests);
    }

    /// Removes the record of a bundle.
    pub(super) fn remove(&mut self, key: &Key) {
        self.generation += 1;
        if let Some(record) = self.records.remove(key) {
            self.release(&record);
        }
    }

    /// Changes when and by what a record was last found right, if it is about `manifest`.
    pub(super) fn confirm(&mut self, key: &Key, manifest: &Digest, checked: Option<Timestamp>, accepted: Acceptance) {
        let Some(record) = self.records.get(key).filter(|record| record.manifest == *manifest) else { return };
        let confirmed = Record { checked, accepted: Some(accepted), ..record.clone() };
        if confirmed != *record {
            self.set_record(confirmed);
        }
    }

    /// Reserves `size` bytes for the record of `key`; what has to be removed for them is. Gives
    /// whether the folder has to be written first, so that files go.
    ///
    /// Records that no bundle of this process has asked for go first, oldest first, then the
    /// predecessor, then notes: somebody may bring their bundles back.
    pub(super) fn make_room(&mut self, key: &Key, size: u64, limit: u64) -> Result<bool, NoRoom> {
        let beside = self.reserved.saturating_add(size);
        let mut first = self.used.saturating_add(beside) > limit;
        loop {
            let wanted = (self.used - self.unused).saturating_add(beside);
            if wanted <= limit {
                self.reserved = beside;
                return Ok(first);
            }
            if let Some(victim) = self.records.first_unclaimed() {
                self.remove(&victim);
            } else if self.records.contains(key) {
                self.remove(key);
            } else if let Some(victim) = self.notes.first_unclaimed() {
                self.remove_note(&victim);
            } else {
                return Err(NoRoom { size: wanted });
            }
            first = true;
        }
    }

    /// Gives back what [`Self::make_room`] has reserved.
    pub(super) fn unreserve(&mut self, size: u64) {
        self.reserved = self.reserved.saturating_sub(size);
    }

    /// What is to be written for the disk to be as this is.
    pub(super) fn batch(&mut self) -> Batch {
        Batch {
            generation: self.generation,
            unsynced: std::mem::take(&mut self.unsynced),
            entries: self.records.texts().chain(self.notes.texts()).collect(),
            garbage: std::mem::take(&mut self.garbage),
        }
    }

    /// Takes back a batch that could not be written.
    pub(super) fn not_written(&mut self, batch: Batch) {
        self.unsynced.extend(batch.unsynced);
        self.garbage.extend(batch.garbage);
    }

    /// Forgets a blob of a batch that has been written, unless something names it again.
    pub(super) fn drop_garbage(&mut self, digest: &Digest) -> bool {
        let is_garbage = self.blobs.get(digest).is_some_and(|stored| stored.references == 0);
        if is_garbage && let Some(stored) = self.blobs.remove(digest) {
            self.used -= stored.size;
            self.unused -= stored.size;
        }
        is_garbage
    }

    /// Says that the file of a blob is gone.
    pub(super) fn lost_blob(&mut self, digest: &Digest) {
        if let Some(stored) = self.blobs.get_mut(digest) {
            let size = std::mem::take(&mut stored.size);
            self.used -= size;
            if stored.references == 0 {
                self.unused -= size;
            }
        }
    }

    fn has_blob(&mut self, digest: &Digest, size: u64) {
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
        *self.possessed.entry((record.identity.clone(), record.layer.clone())).or_default() += 1;
        let text = text_of(&record.to_entry());
        if let Some(before) = self.records.set(record.key(), record, text) {
            self.release(&before);
        }
    }

    fn set_note(&mut self, note: Note) {
        self.generation += 1;
        self.reference(&note.history);
        let text = text_of(&note.to_entry());
        if let Some(before) = self.notes.set(note.key.clone(), note, text) {
            self.dereference(&before.history);
        }
    }

    fn remove_note(&mut self, key: &Key) {
        self.generation += 1;
        if let Some(note) = self.notes.remove(key) {
            self.dereference(&note.history);
        }
    }

    fn release(&mut self, record: &Record) {
        record.blobs().into_iter().for_each(|digest| self.dereference(digest));
        let possession = (record.identity.clone(), record.layer.clone());
        if let Some(count) = self.possessed.get_mut(&possession) {
            *count -= 1;
            if *count == 0 {
                self.possessed.remove(&possession);
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
    /// `index.json`.
    pub(super) fn text(&self) -> Vec<u8> {
        let length = self.entries.iter().map(|entry| entry.len() + 1).sum::<usize>();
        let mut text = Vec::with_capacity(length + HEAD.len() + TAIL.len());
        text.extend_from_slice(HEAD);
        for (at, entry) in self.entries.iter().enumerate() {
            if at > 0 {
                text.push(b',');
            }
            text.extend_from_slice(entry.as_bytes());
        }
        text.extend_from_slice(TAIL);
        text
    }
}

const HEAD: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#;
const TAIL: &[u8] = b"]}";

fn text_of(entry: &Descriptor) -> Arc<str> {
    // Strings, numbers and maps of them: there is nothing that JSON does not know.
    serde_json::to_string(entry).unwrap_or_default().into()
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), in_order: BTreeMap::new(), next: 0, unclaimed: BTreeSet::new() }
    }
}

impl<T> Entries<T> {
    fn contains(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    fn get(&self, key: &Key) -> Option<&T> {
        self.in_order.get(self.by_key.get(key)?).map(|(entry, _)| entry)
    }

    fn claim(&mut self, key: &Key) -> Option<&T> {
        if let Some(at) = self.by_key.get(key) {
            self.unclaimed.remove(at);
        }
        self.get(key)
    }

    fn claim_nothing(&mut self) {
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
        self.in_order.values().map(|(_, text)| Arc::clone(text)).filter(|text| !text.is_empty())
    }
}

impl Entries<Record> {
    fn first_unclaimed(&self) -> Option<Key> {
        self.in_order.get(self.unclaimed.first()?).map(|(record, _)| record.key())
    }
}

impl Entries<Note> {
    fn first_unclaimed(&self) -> Option<Key> {
        self.in_order.get(self.unclaimed.first()?).map(|(note, _)| note.key.clone())
    }
}
