//! The names in the `index.json` of a layout folder, parsed once for every version of the file.
//!
//! Thousands of bundles can have one folder as their source, and each reads it at each poll. A
//! poll costs two `stat` calls, and not the parsing of an index with all its entries.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::{Semaphore, watch};

use super::watch::{Follower, Version, Watching};
use crate::oci::{Descriptor, Digest, Layout, LayoutError, LayoutIndex};

/// Concurrent reads of one folder: a hanging disk blocks so many threads, and as many as
/// [`MAX_TRANSFERS`] with transfers.
const MAX_READS: usize = 4;
/// Artifacts of one folder that are fetched at a time.
const MAX_TRANSFERS: usize = 8;
/// The resolution of file timestamps: up to 10 ms on Linux, 2 s on some file systems. Of two
/// changes within a step the attributes show the first only.
const TIMESTAMP_STEP: Duration = Duration::from_secs(2);
/// How long an index that changed within the last step is cached.
const RECENT_INDEX_LIFETIME: Duration = Duration::from_millis(100);

/// The state of one layout folder, shared by all its readers.
#[derive(Debug)]
pub(in crate::registry) struct SharedLayout {
    pub(in crate::registry) reads: Arc<Semaphore>,
    pub(in crate::registry) transfers: Arc<Semaphore>,
    cached: Mutex<Option<CachedNames>>,
    /// Started by the first bundle that watches the folder.
    follower: OnceLock<Follower>,
}

#[derive(Debug)]
struct CachedNames {
    stamp: Stamp,
    /// The time of the read, if the file was then so new that it could change undetected.
    recent_at: Option<SystemTime>,
    names: Arc<Names>,
}

/// The attributes that change with the content of `index.json` and `oci-layout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([FileStamp; 2]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The digests of an index by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::registry) struct Names {
    /// By the whole name, and by the tag at the end of a full reference.
    by_name: HashMap<Box<str>, Digest>,
    /// The only artifact that is not a signature.
    only: Option<Digest>,
}

impl Default for SharedLayout {
    fn default() -> Self {
        let [reads, transfers] =
            [MAX_READS, MAX_TRANSFERS].map(|count| Arc::new(Semaphore::new(count)));
        Self {
            reads,
            transfers,
            cached: Mutex::default(),
            follower: OnceLock::new(),
        }
    }
}

impl SharedLayout {
    /// The names in the folder now. Blocks; while one caller parses, others wait for the result.
    ///
    /// # Errors
    /// When the folder is not a layout, or can't be read.
    pub(in crate::registry) fn names(&self, root: &Path) -> Result<Arc<Names>, LayoutError> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        // Taken before the read: if the file is replaced in between, the next call sees another
        // stamp.
        let stamp = Stamp::of(root).ok();
        if let Some(cached) = cached
            .as_ref()
            .filter(|cached| Some(cached.stamp) == stamp && cached.is_current(now))
        {
            return Ok(Arc::clone(&cached.names));
        }
        let names = Arc::new(Names::of(&Layout::open(root)?.index()?));
        *cached = stamp.map(|stamp| {
            let recent_at = stamp.may_change_undetected(now).then_some(now);
            CachedNames {
                stamp,
                recent_at,
                names: Arc::clone(&names),
            }
        });
        Ok(names)
    }
}

impl SharedLayout {
    /// Has the next [`Self::names`] read the index, whatever its attributes say.
    pub(super) fn forget(&self) {
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The versions of the index from now on. Must be called within a runtime.
    pub(super) fn follow(&self, folder: &Watching) -> watch::Receiver<Version> {
        self.follower
            .get_or_init(|| Follower::start(folder))
            .subscribe()
    }
}

impl CachedNames {
    fn is_current(&self, now: SystemTime) -> bool {
        self.recent_at.is_none_or(|read| {
            now.duration_since(read)
                .is_ok_and(|age| age < RECENT_INDEX_LIFETIME)
        })
    }
}

impl Stamp {
    fn of(root: &Path) -> io::Result<Self> {
        let of = |name| fs::metadata(root.join(name)).map(|metadata| FileStamp::of(&metadata));
        Ok(Self([of("index.json")?, of("oci-layout")?]))
    }

    /// Whether the file is so new that another change may leave the stamp as it is. A timestamp in
    /// the future counts as new: the clock of a file server may differ from ours.
    fn may_change_undetected(&self, now: SystemTime) -> bool {
        self.0.iter().any(|file| {
            let changed = SystemTime::UNIX_EPOCH
                + Duration::from_secs(file.changed.0.try_into().unwrap_or(0));
            now.duration_since(changed)
                .is_ok_and(|age| age <= TIMESTAMP_STEP)
                || changed > now
        })
    }
}

impl FileStamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Names {
    fn of(index: &LayoutIndex) -> Self {
        let mut by_name: HashMap<Box<str>, Digest> = HashMap::new();
        for (name, entry) in index.names() {
            // Of several entries with one name the first counts.
            by_name
                .entry(name.into())
                .or_insert_with(|| entry.digest.clone());
            if let Some((front, tag)) = name.rsplit_once(':')
                && front.contains('/')
            {
                by_name
                    .entry(tag.into())
                    .or_insert_with(|| entry.digest.clone());
            }
        }
        Self {
            by_name,
            only: only(index),
        }
    }

    /// The digest that a bare tag or a full reference names.
    pub(in crate::registry) fn find(&self, name: &str) -> Option<&Digest> {
        self.by_name.get(name)
    }

    /// The only artifact; signatures that were copied with it don't count.
    pub(in crate::registry) fn only(&self) -> Option<&Digest> {
        self.only.as_ref()
    }
}

fn only(index: &LayoutIndex) -> Option<Digest> {
    let artifacts = index
        .manifests
        .iter()
        .filter(|entry| !names_a_signature(entry));
    let mut digests = artifacts.map(|entry| &entry.digest);
    let first = digests.next();
    first
        .filter(|first| digests.all(|other| other == *first))
        .cloned()
}

fn names_a_signature(entry: &Descriptor) -> bool {
    entry
        .annotation(LayoutIndex::REF_NAME)
        .is_some_and(is_signature)
}

/// The part of a name after the repository.
pub(in crate::registry) fn tag_of(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, tag)| tag)
}

/// `sha256-<hex>`, with or without a suffix such as `.sig`.
fn is_signature(name: &str) -> bool {
    let stem = tag_of(name).split('.').next().unwrap_or_default();
    stem.split_once('-')
        .is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::oci::media_type;

    fn layout(names: &[(&str, &[u8])]) -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        name(&layout, names);
        (folder, layout)
    }

    fn name(layout: &Layout, names: &[(&str, &[u8])]) {
        let set = |index: &mut LayoutIndex| {
            names.iter().for_each(|(name, bytes)| {
                index.set(name, Descriptor::of(media_type::OCI_MANIFEST, bytes))
            });
        };
        layout.update_index(set).unwrap();
    }

    #[test]
    fn names_are_found_as_in_the_index() {
        let (_folder, layout) = layout(&[
            ("v1", b"bare"),
            ("ghcr.io/acme/authz:v1", b"full"),
            ("ghcr.io/acme/authz:v2", b"two"),
            ("localhost:5000", b"port"),
        ]);
        let index = layout.index().unwrap();
        let names = Names::of(&index);
        for name in [
            "v1",
            "v2",
            "ghcr.io/acme/authz:v1",
            "ghcr.io/acme/authz:v2",
            "authz:v1",
            "5000",
            "none",
            "",
        ] {
            assert_eq!(
                names.find(name),
                index.find(name).map(|entry| &entry.digest),
                "{name}"
            );
        }
        let full = "ghcr.io/acme/authz:v1";
        assert_eq!(
            names.find(full),
            index.named(full).map(|entry| &entry.digest)
        );
        assert_eq!(names.only(), None);
    }

    #[test]
    fn an_unchanged_index_is_read_once() {
        let (folder, layout) = layout(&[("v1", b"one")]);
        let shared = SharedLayout::default();
        let first = shared.names(folder.path()).unwrap();
        assert!(Arc::ptr_eq(&first, &shared.names(folder.path()).unwrap()));
        name(&layout, &[("v1", b"two")]);
        let second = shared.names(folder.path()).unwrap();
        assert_eq!(second.find("v1"), Some(&Digest::sha256(b"two")));
    }

    #[test]
    fn a_recent_index_is_cached_briefly() {
        let (folder, _layout) = layout(&[]);
        let (stamp, now) = (Stamp::of(folder.path()).unwrap(), SystemTime::now());
        assert!(stamp.may_change_undetected(now));
        assert!(
            stamp.may_change_undetected(now - Duration::from_secs(3600)),
            "the file server's clock is ahead"
        );
        assert!(!stamp.may_change_undetected(now + Duration::from_secs(4)));
        let cached = CachedNames {
            stamp,
            recent_at: Some(now),
            names: Arc::default(),
        };
        assert!(cached.is_current(now) && !cached.is_current(now + RECENT_INDEX_LIFETIME));
        assert!(
            !cached.is_current(now - RECENT_INDEX_LIFETIME),
            "the clock was set back"
        );
    }

    #[test]
    fn no_file_of_a_layout_blocks_a_reader_or_fills_its_memory() {
        for file in ["index.json", "oci-layout"] {
            let (folder, _layout) = layout(&[("v1", b"one")]);
            let (path, aside) = (folder.path().join(file), folder.path().join("aside"));
            let shared = SharedLayout::default();
            shared.names(folder.path()).unwrap();
            fs::rename(&path, &aside).unwrap();
            assert!(
                Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            );
            let refused = shared.names(folder.path()).unwrap_err().to_string();
            assert!(
                refused.contains(file) && refused.contains("not a regular file"),
                "{refused}"
            );
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            let refused = shared.names(folder.path()).unwrap_err().to_string();
            assert!(refused.contains("not a regular file"), "{refused}");
            fs::remove_file(&path).unwrap();
            let endless = fs::File::create(&path).unwrap();
            endless.set_len(1 << 40).unwrap();
            assert!(
                shared
                    .names(folder.path())
                    .unwrap_err()
                    .to_string()
                    .contains("larger than")
            );
            fs::rename(&aside, &path).unwrap();
            assert!(
                shared.names(folder.path()).is_ok(),
                "{file} is in order again"
            );
        }
    }
}
