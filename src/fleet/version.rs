//! The versions of a bundle, by their entity tags.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::publish::{TagHash, opaque_tag};

/// The versions that are remembered of a bundle. The one that was used least recently is forgotten; a
/// client that runs it is shown with its tag's hash alone.
const MAX_VERSIONS: usize = 64;
/// A longer tag is cut. Those of this server have 43 bytes.
const MAX_TAG_BYTES: usize = 128;

/// A version of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The entity tag, without quotes.
    pub etag: Box<str>,
    /// The digest of the manifest; `None` for a tag that no replica has served.
    pub manifest: Option<Box<str>>,
    /// The revision in the bundle's manifest, if it has one.
    pub revision: Option<Box<str>>,
    /// The bytes of the tarball.
    pub size: Option<u64>,
}

/// A bundle's name and the versions that its clients run.
#[derive(Debug)]
pub struct BundleVersions {
    name: Arc<str>,
    /// The hashes of the versions that were last recorded by [`Self::record`], the last one first, or zero. They
    /// are two, because two versions are served during a roll-out.
    latest: [AtomicU64; 2],
    /// Whether other replicas don't know all of them.
    is_changed: AtomicBool,
    versions: Mutex<VecDeque<(TagHash, Arc<Version>)>>,
}

impl Version {
    /// The version that a client names by a tag that no replica has served.
    pub fn unknown(tag: &str) -> Self {
        let mut tag = opaque_tag(tag);
        if tag.len() > MAX_TAG_BYTES {
            tag = &tag[..tag.floor_char_boundary(MAX_TAG_BYTES)];
        }
        Self {
            etag: tag.into(),
            manifest: None,
            revision: None,
            size: None,
        }
    }
}

impl BundleVersions {
    /// A bundle without versions.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            latest: [AtomicU64::new(0), AtomicU64::new(0)],
            is_changed: AtomicBool::new(false),
            versions: Mutex::default(),
        }
    }

    /// The bundle's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Records the version that is served. Most calls name the same one as one of the last two.
    pub fn record(&self, tag: TagHash, version: impl FnOnce() -> Version) {
        let [last, before] = &self.latest;
        let is_last = |latest: &AtomicU64| latest.load(Ordering::Relaxed) == tag.number();
        if !is_last(last) && !is_last(before) {
            before.store(last.load(Ordering::Relaxed), Ordering::Relaxed);
            last.store(tag.number(), Ordering::Relaxed);
            self.merge(tag, version());
            self.set_changed();
        }
    }

    /// Records the version that a client names, unless it is known.
    pub fn record_unknown(&self, tag: TagHash, text: &str) {
        let mut versions = self.lock();
        if !versions.iter().any(|(known, _)| *known == tag) {
            push(&mut versions, tag, Version::unknown(text));
            self.set_changed();
        }
    }

    /// Adds a version, or replaces what was known of it. What is known of a version is not lost to one
    /// that only has its tag.
    pub(super) fn merge(&self, tag: TagHash, version: Version) {
        let mut versions = self.lock();
        if let Some(index) = versions.iter().position(|(known, _)| *known == tag) {
            let Some(known) = versions.remove(index) else {
                return;
            };
            if version.manifest.is_none() {
                versions.push_back(known);
                return;
            }
        }
        push(&mut versions, tag, version);
    }

    /// The version with this tag, while it is remembered.
    pub fn get(&self, tag: TagHash) -> Option<Arc<Version>> {
        let versions = self.lock();
        let found = versions.iter().find(|(known, _)| *known == tag);
        found.map(|(_, version)| Arc::clone(version))
    }

    /// The version with this tag, or a placeholder for one that is not remembered.
    pub fn get_or_placeholder(&self, tag: TagHash) -> Arc<Version> {
        self.get(tag)
            .unwrap_or_else(|| Arc::new(Version::unknown(&format!("#{:016x}", tag.number()))))
    }

    /// All versions that are remembered.
    pub fn all(&self) -> Vec<(TagHash, Arc<Version>)> {
        self.lock().iter().cloned().collect()
    }

    /// Records that other replicas don't know all versions.
    pub(super) fn set_changed(&self) {
        self.is_changed.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::set_changed`] was called since the last call.
    pub(super) fn take_changed(&self) -> bool {
        self.is_changed.swap(false, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(TagHash, Arc<Version>)>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(versions: &mut VecDeque<(TagHash, Arc<Version>)>, tag: TagHash, version: Version) {
    if versions.len() >= MAX_VERSIONS {
        // Tags that clients made up go first.
        let unknown = versions
            .iter()
            .position(|(_, version)| version.manifest.is_none());
        versions.remove(unknown.unwrap_or_default());
    }
    versions.push_back((tag, Arc::new(version)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(tag: &str) -> Version {
        Version {
            manifest: Some("sha256:m".into()),
            ..Version::unknown(tag)
        }
    }

    #[test]
    fn a_served_version_is_not_replaced_by_its_tag_alone_and_made_up_tags_go_first() {
        let bundle = BundleVersions::new("authz");
        let tag = TagHash::of("one");
        bundle.record_unknown(tag, "one");
        assert_eq!(*bundle.get(tag).unwrap(), Version::unknown("one"));
        bundle.record(tag, || served("one"));
        bundle.record(tag, || panic!("it is the latest one"));
        bundle.record_unknown(tag, "one");
        bundle.merge(tag, Version::unknown("one"));
        assert_eq!(*bundle.get(tag).unwrap(), served("one"));
        for number in 0..3 * MAX_VERSIONS {
            let made_up = format!("made up {number}");
            bundle.record_unknown(TagHash::of(&made_up), &made_up);
        }
        assert_eq!(bundle.all().len(), MAX_VERSIONS);
        assert_eq!(*bundle.get(tag).unwrap(), served("one"));
        let long = "é".repeat(MAX_TAG_BYTES);
        assert!(Version::unknown(&long).etag.len() <= MAX_TAG_BYTES);
    }
}
