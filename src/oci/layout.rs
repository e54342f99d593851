//! The OCI image layout: a registry as a folder (image-spec, `image-layout.md`).

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{
    Blob, BlobMismatch, BlobWriter, Descriptor, Digest, Sharing, WriteError, lock_soon, media_type, open_lock,
    open_regular, read_regular,
};

/// The annotation that names an entry of `index.json`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Locked while the index changes; a name that no reader of layouts looks at.
const INDEX_LOCK: &str = ".index.lock";
/// Files on their way to a name start with this.
const TEMPORARY: &str = ".tmp-";
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// What is read of a blob at a time.
const PIECE: usize = 1 << 16;
/// `index.json` longer than this is not read.
const INDEX_LIMIT: u64 = 16 << 20;
/// `oci-layout` longer than this is not read; the specification's has 30 bytes.
const MARKER_LIMIT: u64 = 4096;

/// A folder in the image layout format. Blobs are immutable; `index.json` is replaced
/// whole (temporary file, fsync, rename), so a reader sees the old one or the new one.
///
/// All methods block on the disk: call them off the async threads.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    /// Whether an index or a blob that is a pipe is an error instead of a wait.
    regular_only: bool,
}

/// `index.json`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LayoutIndex {
    schema_version: u32,
    #[serde(default = "index_type")]
    media_type: String,
    /// The entries: manifests, named by an annotation.
    pub manifests: Vec<Descriptor>,
}

/// Why a layout folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The operating system said no.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// `index.json` or `oci-layout` is not what the specification says.
    #[error("{path} is not an OCI image layout: {reason}")]
    Malformed {
        /// The offending file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A blob on its way into the folder: without a name until it is whole and right, and gone
/// if it is dropped before.
#[derive(Debug)]
pub struct Incoming {
    writer: BlobWriter,
    file: NamedTempFile,
    path: PathBuf,
}

/// Why a blob did not get its name.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// The disk.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Other bytes than the descriptor says.
    #[error(transparent)]
    Mismatch(#[from] BlobMismatch),
}

impl Layout {
    /// Opens a folder that has an `oci-layout` file.
    ///
    /// # Errors
    /// When the marker is missing or of another version.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let layout = Self { root: root.into(), regular_only: false };
        let path = layout.root.join("oci-layout");
        let marker = read_regular(&path, MARKER_LIMIT).map_err(|source| LayoutError::Io {
            operation: "open",
            path: path.clone(),
            source,
        })?;
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        match serde_json::from_slice::<Marker>(&marker) {
            Ok(marker) if marker.image_layout_version.starts_with("1.") => Ok(layout),
            Ok(marker) => {
                Err(LayoutError::Malformed { path, reason: format!("version {:?}", marker.image_layout_version) })
            }
            Err(error) => Err(LayoutError::Malformed { path, reason: error.to_string() }),
        }
    }

    /// Opens a folder, making it an empty layout first where it is not one.
    ///
    /// # Errors
    /// When the folder can't be created or written, or is a layout of another version.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let layout = Self { root: root.into(), regular_only: false };
        let blobs = layout.root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|source| LayoutError::Io { operation: "create", path: blobs, source })?;
        let (index, marker) = (layout.root.join("index.json"), layout.root.join("oci-layout"));
        if !index.exists() || !marker.exists() {
            // Whoever else makes it may already have put something in.
            let _lock = layout.lock()?;
            if !index.exists() {
                layout.write_index(&LayoutIndex::default())?;
            }
            if !marker.exists() {
                layout.replace(&marker, MARKER)?;
            }
        }
        Self::open(layout.root)
    }

    /// The same folder, of which only regular files are read: what is a pipe there is an error
    /// at once. For whoever has nothing else to do while a read hangs.
    #[must_use]
    pub fn regular_only(self) -> Self {
        Self { regular_only: true, ..self }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob lies, present or not.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// Opens a blob for reading; its bytes are as unchecked as any registry's.
    ///
    /// # Errors
    /// With `NotFound` inside where there is none.
    pub fn open_blob(&self, digest: &Digest) -> Result<fs::File, LayoutError> {
        let path = self.blob_path(digest);
        let opened = if self.regular_only { open_regular(&path) } else { fs::File::open(&path) };
        opened.map_err(|source| LayoutError::Io { operation: "open", path, source })
    }

    /// Reads a blob of at most `limit` bytes; `None` where there is none.
    ///
    /// # Errors
    /// When it is longer (`FileTooLarge`) or can't be read.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, LayoutError> {
        self.read_limited(&self.blob_path(digest), limit)
    }

    /// Stores bytes under their SHA-256 and gives the digest.
    ///
    /// # Errors
    /// When the disk refuses; nothing half-written stays under the digest's name.
    pub fn write_blob(&self, bytes: &[u8]) -> Result<Digest, LayoutError> {
        let digest = Digest::sha256(bytes);
        let path = self.blob_path(&digest);
        if !self.has_intact(&digest, bytes.len() as u64) {
            self.replace(&path, bytes)?;
        }
        Ok(digest)
    }

    /// Stores a checked blob under its digest.
    ///
    /// # Errors
    /// When the disk refuses; nothing half-written stays under the digest's name.
    pub fn store_blob(&self, blob: &Blob) -> Result<(), LayoutError> {
        let path = self.blob_path(blob.digest());
        if self.has_intact(blob.digest(), blob.size()) {
            return Ok(());
        }
        self.replace_with(&path, |file| io::copy(&mut blob.reader(), file).map(drop))
    }

    /// Whether a blob is there as it should be: one that a disk has damaged is written anew
    /// by whoever has it.
    fn has_intact(&self, digest: &Digest, size: u64) -> bool {
        let Ok(mut file) = self.open_blob(digest) else { return false };
        if file.metadata().map_or(true, |there| there.len() != size) {
            return false;
        }
        let (mut hasher, mut piece) = (digest.hasher(), vec![0; PIECE]);
        loop {
            match file.read(&mut piece) {
                Ok(0) => return hasher.finish() == *digest,
                Ok(length) => hasher.update(&piece[..length]),
                Err(_) => return false,
            }
        }
    }

    /// Makes room for a blob that comes in pieces.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn receive(&self, descriptor: &Descriptor) -> Result<Incoming, LayoutError> {
        let path = self.blob_path(&descriptor.digest);
        let file = self.temporary(&path)?;
        let writer = file.as_file().try_clone().map_err(|source| failed_to_write(&path, source))?;
        Ok(Incoming { writer: BlobWriter::in_file(descriptor.clone(), writer), file, path })
    }

    /// Removes a blob; one that is not there is fine.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), LayoutError> {
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LayoutError::Io { operation: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Every blob that lies in the folder, with its size. Names that are no digests are
    /// left out.
    ///
    /// # Errors
    /// When a folder can't be read.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64)>, LayoutError> {
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let path = self.root.join("blobs").join(algorithm);
            let failed = |source| LayoutError::Io { operation: "list", path: path.clone(), source };
            let entries = match fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let name = format!("{algorithm}:{}", entry.file_name().to_string_lossy());
                if let Ok(digest) = name.parse() {
                    found.push((digest, entry.metadata().map_err(failed)?.len()));
                }
            }
        }
        Ok(found)
    }

    /// Removes temporary files that a crash left behind. Only for whoever alone may write
    /// to the folder.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn remove_leftovers(&self) -> Result<(), LayoutError> {
        let failed = |source| LayoutError::Io { operation: "clean", path: self.root.clone(), source };
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Reads `index.json`.
    ///
    /// # Errors
    /// When it is missing, too long or malformed.
    pub fn index(&self) -> Result<LayoutIndex, LayoutError> {
        let path = self.root.join("index.json");
        let malformed = |reason: String| LayoutError::Malformed { path: path.clone(), reason };
        let bytes = self.read_limited(&path, INDEX_LIMIT)?.ok_or_else(|| malformed("index.json is missing".into()))?;
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))
    }

    /// Replaces `index.json` in one step.
    ///
    /// # Errors
    /// When the disk refuses; the old one is then still there.
    pub fn write_index(&self, index: &LayoutIndex) -> Result<(), LayoutError> {
        let path = self.root.join("index.json");
        let text = serde_json::to_vec(index)
            .map_err(|error| LayoutError::Malformed { path: path.clone(), reason: error.to_string() })?;
        self.replace(&path, &text)
    }

    /// Changes `index.json` while no other process does: reads it, lets `change` at it, and
    /// replaces it. Waits for whoever else is at it, which takes milliseconds.
    ///
    /// # Errors
    /// When the disk refuses; the old one is then still there.
    pub fn update_index<T>(&self, change: impl FnOnce(&mut LayoutIndex) -> T) -> Result<T, LayoutError> {
        let _lock = self.lock()?;
        let before = self.index()?;
        let mut after = before.clone();
        let answer = change(&mut after);
        if after != before {
            self.write_index(&after)?;
        }
        Ok(answer)
    }

    fn read_limited(&self, path: &Path, limit: u64) -> Result<Option<Bytes>, LayoutError> {
        let read = if self.regular_only { read_regular(path, limit) } else { read_any(path, limit) };
        match read {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LayoutError::Io { operation: "read", path: path.to_owned(), source }),
        }
    }

    fn lock(&self) -> Result<fs::File, LayoutError> {
        let path = self.root.join(INDEX_LOCK);
        let failed = |source| LayoutError::Io { operation: "lock", path: path.clone(), source };
        let lock = open_lock(&path).map_err(failed)?;
        lock_soon(&lock, Sharing::Exclusive).map_err(failed)?;
        Ok(lock)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
        self.replace_with(path, |file| file.write_all(bytes))
    }

    fn replace_with(
        &self,
        path: &Path,
        write: impl FnOnce(&mut fs::File) -> io::Result<()>,
    ) -> Result<(), LayoutError> {
        let mut file = self.temporary(path)?;
        write(file.as_file_mut()).map_err(|source| failed_to_write(path, source))?;
        persist(file, path)
    }

    /// A file that becomes `path`, on the same disk and where sweeping finds what is left of
    /// it.
    fn temporary(&self, path: &Path) -> Result<NamedTempFile, LayoutError> {
        let folder = path.parent().unwrap_or(&self.root);
        // What the user's mask leaves of it: a layout is carried to others, and the folder
        // says who may look into it.
        let mode = fs::Permissions::from_mode(0o666);
        fs::create_dir_all(folder)
            .and_then(|()| tempfile::Builder::new().prefix(TEMPORARY).permissions(mode).tempfile_in(&self.root))
            .map_err(|source| failed_to_write(path, source))
    }
}

fn persist(file: NamedTempFile, path: &Path) -> Result<(), LayoutError> {
    let failed = |source| failed_to_write(path, source);
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    // Without this the rename itself can be lost with the power.
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn failed_to_write(path: &Path, source: io::Error) -> LayoutError {
    LayoutError::Io { operation: "write", path: path.to_owned(), source }
}

impl Incoming {
    /// Takes the next bytes. More than the descriptor's size is refused right away.
    ///
    /// # Errors
    /// When the disk refuses, or the size is exceeded.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), IncomingError> {
        self.writer.write(piece).map_err(|error| match error {
            WriteError::Io(source) => failed_to_write(&self.path, source).into(),
            WriteError::Mismatch(mismatch) => mismatch.into(),
        })
    }

    /// Gives the blob its name, if all of it came and is right.
    ///
    /// # Errors
    /// When the bytes are others, or the disk refuses; there is no such blob then.
    pub fn finish(self) -> Result<(), IncomingError> {
        self.writer.finish(Bytes::from)?;
        Ok(persist(self.file, &self.path)?)
    }
}

impl LayoutIndex {
    /// The entry that `tag` names, as a bare tag or as the end of a full reference.
    pub fn find(&self, tag: &str) -> Option<&Descriptor> {
        self.manifests.iter().find(|entry| {
            entry.annotation(REF_NAME).is_some_and(|name| {
                name == tag || name.strip_suffix(tag).is_some_and(|front| front.ends_with(':') && front.contains('/'))
            })
        })
    }

    /// Its bytes: those of `index.json`, and of any other image index.
    ///
    /// # Errors
    /// Never in practice: every part is a string or a number.
    pub fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }

    /// The entry that is called `name`, to the letter.
    pub fn named(&self, name: &str) -> Option<&Descriptor> {
        self.manifests.iter().find(|entry| entry.annotation(REF_NAME) == Some(name))
    }

    /// Every entry that has a name, with it.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Descriptor)> {
        self.manifests.iter().filter_map(|entry| Some((entry.annotation(REF_NAME)?, entry)))
    }

    /// Makes `name` point at nothing.
    pub fn unset(&mut self, name: &str) {
        self.manifests.retain(|entry| entry.annotation(REF_NAME) != Some(name));
    }

    /// Makes `name` point at `entry`, and at nothing else.
    pub fn set(&mut self, name: &str, mut entry: Descriptor) {
        self.unset(name);
        entry.annotations.get_or_insert_default().insert(REF_NAME.to_owned(), name.to_owned());
        self.manifests.push(entry);
    }
}

impl Default for LayoutIndex {
    fn default() -> Self {
        Self { schema_version: 2, media_type: index_type(), manifests: Vec::new() }
    }
}

fn index_type() -> String {
    media_type::OCI_INDEX.to_owned()
}

/// The whole of a file of at most `limit` bytes, whatever it is.
fn read_any(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_layout_opens_again_with_its_entries() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path().join("new")).unwrap();
        let digest = layout.write_blob(b"hello").unwrap();
        let mut index = layout.index().unwrap();
        index.set("v1", Descriptor::of(media_type::OCI_MANIFEST, b"hello"));
        index.set("v1", Descriptor::of(media_type::OCI_MANIFEST, b"hello"));
        layout.write_index(&index).unwrap();
        let again = Layout::open(folder.path().join("new")).unwrap();
        assert_eq!(again.index().unwrap().manifests.len(), 1);
        assert_eq!(again.index().unwrap().find("v1").unwrap().digest, digest);
        assert_eq!(again.read_blob(&digest, 5).unwrap().unwrap(), &b"hello"[..]);
        assert!(again.read_blob(&digest, 4).is_err());
        assert!(again.read_blob(&Digest::sha256(b"none"), 4).unwrap().is_none());
    }

    #[test]
    fn a_damaged_blob_is_written_anew_by_whoever_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let digest = layout.write_blob(b"hello").unwrap();
        let blob = Blob::check(&Descriptor::of("", b"hello"), Bytes::from_static(b"hello")).unwrap();
        for damage in ["hellp", "hel"] {
            fs::write(layout.blob_path(&digest), damage).unwrap();
            layout.write_blob(b"hello").unwrap();
            assert_eq!(layout.read_blob(&digest, 9).unwrap().unwrap(), "hello");
            fs::write(layout.blob_path(&digest), damage).unwrap();
            layout.store_blob(&blob).unwrap();
            assert_eq!(layout.read_blob(&digest, 9).unwrap().unwrap(), "hello");
        }
    }

    #[test]
    fn a_blob_in_pieces_has_its_name_only_when_it_is_whole_and_right() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let descriptor = Descriptor::of("text/plain", b"hello");
        for pieces in [&[&b"hel"[..], b"l"][..], &[b"hellp"], &[b"hello", b"!"]] {
            let mut incoming = layout.receive(&descriptor).unwrap();
            let written = pieces.iter().try_for_each(|piece| incoming.write(piece));
            assert!(matches!(written.and_then(|()| incoming.finish()), Err(IncomingError::Mismatch(_))));
        }
        assert!(layout.blobs().unwrap().is_empty());
        let mut incoming = layout.receive(&descriptor).unwrap();
        incoming.write(b"hel").unwrap();
        incoming.write(b"lo").unwrap();
        incoming.finish().unwrap();
        assert_eq!(layout.read_blob(&descriptor.digest, 9).unwrap().unwrap(), "hello");
        let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(TEMPORARY)));
    }

    #[test]
    fn an_entry_is_found_by_tag_or_by_full_reference() {
        let mut index = LayoutIndex::default();
        index.set("ghcr.io/acme/authz:v1", Descriptor::of(media_type::OCI_MANIFEST, b""));
        assert!(index.find("v1").is_some());
        assert!(index.find("ghcr.io/acme/authz:v1").is_some());
        assert!(index.find("1").is_none());
        assert!(index.find("authz:v1").is_none());
    }

    #[test]
    fn changes_of_the_index_follow_each_other_and_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let layout = &layout;
                scope.spawn(move || {
                    for turn in 0..8 {
                        let entry = Descriptor::of(media_type::OCI_MANIFEST, b"x");
                        layout.update_index(|index| index.set(&format!("{writer}-{turn}"), entry)).unwrap();
                    }
                });
            }
        });
        assert_eq!(layout.index().unwrap().names().count(), 64);
    }

    #[test]
    fn those_who_make_a_layout_at_once_make_one() {
        for _ in 0..8 {
            let folder = tempfile::tempdir().unwrap();
            std::thread::scope(|scope| {
                for name in 0..8 {
                    let root = folder.path();
                    scope.spawn(move || {
                        let entry = Descriptor::of(media_type::OCI_MANIFEST, b"x");
                        let layout = Layout::create(root).unwrap();
                        layout.update_index(|index| index.set(&name.to_string(), entry)).unwrap();
                    });
                }
            });
            assert_eq!(Layout::open(folder.path()).unwrap().index().unwrap().names().count(), 8);
        }
    }

    #[test]
    fn a_layout_is_as_readable_as_any_file_of_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let digest = layout.write_blob(b"hello").unwrap();
        fs::write(folder.path().join("any"), "").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        for path in [layout.blob_path(&digest), folder.path().join("index.json"), folder.path().join("oci-layout")] {
            assert_eq!(mode(&path), mode(&folder.path().join("any")), "{}", path.display());
        }
    }

    #[test]
    fn a_folder_without_the_marker_is_not_a_layout() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Layout::open(folder.path()).is_err());
        fs::write(folder.path().join("oci-layout"), "{}").unwrap();
        assert!(matches!(Layout::open(folder.path()), Err(LayoutError::Malformed { .. })));
    }
}
