//! The TUF metadata that proved a root last, in memory and in one file.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sigstore_tuf::{MetadataStore, Repository, transport::FetchFuture};

/// The largest file. The public-good instance's metadata has some 100 KiB, and its chain of roots
/// grows by 6 KiB twice a year.
const MAX_FILE: u64 = 16 << 20;
const FORMAT: u32 = 1;

/// Metadata files by name. A refresh works on a copy, so that a failed refresh leaves nothing
/// behind: metadata is only useful as a whole.
#[derive(Debug, Clone, Default)]
pub(super) struct TufStore(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

/// The content of the file. There is only one, since several can't be replaced atomically.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    files: BTreeMap<String, String>,
}

impl TufStore {
    /// An independent copy.
    pub(super) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.with(|files| files.clone()))))
    }

    /// Replaces the content with that of `other`, for all clones of this store.
    pub(super) fn replace_with(&self, other: &Self) {
        let files = other.with(|files| files.clone());
        self.with(|own| *own = files);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.with(|files| files.is_empty())
    }

    /// Reads the file of [`Self::write`], whose content is not trusted before it is verified.
    /// `None` if there is no file. Blocks.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = match crate::oci::open_regular(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let stored: Stored = serde_json::from_slice(&text)?;
        if stored.format != FORMAT {
            return Err(io::Error::other(format!(
                "unknown format {}",
                stored.format
            )));
        }
        let files = stored
            .files
            .into_iter()
            .map(|(name, text)| (name, text.into_bytes()));
        Ok(Some(Self(Arc::new(Mutex::new(files.collect())))))
    }

    /// Replaces the file at `path` atomically. Blocks.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let files = self.with(|files| {
            let kept = files.iter().filter(|(name, _)| !is_numbered_snapshot(name));
            kept.map(|(name, bytes)| Some((name.clone(), String::from_utf8(bytes.clone()).ok()?)))
                .collect()
        });
        let files: Option<BTreeMap<String, String>> = files;
        let files = files.ok_or_else(|| io::Error::other("metadata that is not text"))?;
        let text = serde_json::to_vec(&Stored {
            format: FORMAT,
            files,
        })?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!(
                "{} bytes are too many",
                text.len()
            )));
        }
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(folder)?.sync_all()
    }

    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MetadataStore for TufStore {
    fn load(&self, name: &str) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        Ok(self.with(|files| files.get(name).cloned()))
    }

    fn store(&self, name: &str, bytes: &[u8]) -> sigstore_tuf::Result<()> {
        self.with(|files| files.insert(name.to_owned(), bytes.to_vec()));
        Ok(())
    }
}

/// Offers stored metadata as a repository. The client stores files without the version that it
/// requests them by, and checks the version in the file. It has verified newer roots when the
/// store was attached.
impl Repository for TufStore {
    fn fetch_metadata<'a>(&'a self, name: &'a str, limit: u64) -> FetchFuture<'a> {
        let name = match name.split_once('.') {
            Some((_, "root.json")) => return Box::pin(std::future::ready(Ok(None))),
            Some((version, name)) if version.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => name,
        };
        let kept = self
            .load(name)
            .map(|kept| kept.filter(|bytes| bytes.len() as u64 <= limit));
        Box::pin(std::future::ready(kept))
    }

    fn fetch_target<'a>(&'a self, _: &'a str, _: u64) -> FetchFuture<'a> {
        // The client finds stored targets before it requests them.
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// The client also stores each snapshot under its version, forever, and never reads it.
fn is_numbered_snapshot(name: &str) -> bool {
    name.strip_suffix(".snapshot.json")
        .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(store: &TufStore) -> Vec<String> {
        store.with(|files| files.keys().cloned().collect())
    }

    #[test]
    fn a_written_store_is_read_back_without_old_snapshots() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuf/corp.json");
        assert!(TufStore::read(&path).unwrap().is_none());
        let store = TufStore::default();
        for name in [
            "timestamp.json",
            "snapshot.json",
            "7.snapshot.json",
            "root_history/2.root.json",
        ] {
            store.store(name, name.as_bytes()).unwrap();
        }
        store.write(&path).unwrap();
        let read = TufStore::read(&path).unwrap().unwrap();
        assert_eq!(
            names(&read),
            [
                "root_history/2.root.json",
                "snapshot.json",
                "timestamp.json"
            ]
        );
        assert_eq!(
            read.load("timestamp.json").unwrap().unwrap(),
            b"timestamp.json"
        );
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_copy_is_independent() {
        let store = TufStore::default();
        let copy = store.copy();
        copy.store("timestamp.json", b"new").unwrap();
        assert_eq!(store.load("timestamp.json").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corp.json");
        for text in [
            "",
            "{",
            r#"{"format":2,"files":{}}"#,
            r#"{"format":1,"files":{"a":1}}"#,
        ] {
            fs::write(&path, text).unwrap();
            assert!(TufStore::read(&path).is_err(), "{text}");
        }
    }
}
