//! The image store: put, tag, remove and list.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::image::{self, Image};
use crate::{
    bundle::Artifact,
    oci::{
        Descriptor, Digest, Document, Layout, LayoutError, LayoutIndex, LockMode, Manifest,
        NewManifest, Reference, Repository, Selector, lock_with_timeout, open_lock,
    },
};

/// The maximum size of a manifest that is read; registries accept up to 4 MiB.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// The lock file that processes hold shared while they add blobs, and exclusively while they remove
/// them.
const SWEEP_LOCK: &str = ".sweep.lock";

/// The image store of one user. Any number of processes may use it at a time.
///
/// All methods block on the disk; async code calls them on a blocking thread.
#[derive(Debug, Clone)]
pub struct Images {
    layout: Layout,
}

/// While it is held, no process removes blobs from the store. Hold it from the first blob that is
/// put or found until the manifest that needs the blobs has its name.
#[derive(Debug)]
pub struct WriteLease {
    _lock: fs::File,
}

/// A failed operation of the store.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The folder can't be created or opened.
    #[error("image store {path}: {source}; set another with --store or BUNDLEGATE_STORE")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No image has this name.
    #[error("{0}: not in the image store; `bundlegate images` lists its images")]
    NotFound(Reference),
    /// No digest has this prefix.
    #[error(
        "{0}: no digest in the image store begins with it; `bundlegate images` lists its images"
    )]
    NoSuchDigest(String),
    /// Several digests have this prefix.
    #[error(
        "{prefix}: several digests in the image store begin with it, such as {one} and {other}; write more digits"
    )]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// A digest.
        one: Digest,
        /// Another digest.
        other: Digest,
    },
    /// A folder or a bare digest can't name an image.
    #[error("{0}: not a name for the image store; write HOST/REPOSITORY:TAG")]
    InvalidName(Reference),
    /// An image with this tag would count as the signatures of another image.
    #[error("{0}: this tag is reserved for signatures; use another")]
    SignatureTag(Reference),
    /// The layout on disk failed.
    #[error("image store: {0}")]
    Layout(#[from] LayoutError),
}

impl Images {
    /// Opens the store, and creates it where it is missing.
    ///
    /// # Errors
    /// When the folder can't be created, or is not a layout.
    pub fn open(path: &Path) -> Result<Self, ImagesError> {
        let failed = |source| ImagesError::Folder {
            path: path.to_owned(),
            source,
        };
        // Policy may be private. A user can widen the mode to share the store.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let images = Self {
            layout: Layout::create(path)?,
        };
        // A read-only store can be opened; a later write reports the error.
        if let Ok(Some(_lock)) = images.try_exclusive_lock() {
            let _ = images.remove_leftovers();
        }
        Ok(images)
    }

    /// The store as a layout repository, for reading and writing.
    pub fn repository(&self) -> Repository {
        Repository::Layout {
            path: self.layout.root().to_owned(),
        }
    }

    /// Keeps other processes from removing blobs while the lease is held.
    ///
    /// # Errors
    /// When the lock file can't be opened or locked.
    pub fn write_lease(&self) -> Result<WriteLease, ImagesError> {
        let (path, lock) = self.sweep_lock()?;
        lock_with_timeout(&lock, LockMode::Shared).map_err(|source| LayoutError::Io {
            operation: "lock",
            path,
            source,
        })?;
        Ok(WriteLease { _lock: lock })
    }

    /// Checks that a new image may have this name.
    ///
    /// # Errors
    /// `InvalidName` for a folder or a bare digest, `SignatureTag` for a tag of signatures.
    pub fn check_name(name: &Reference) -> Result<(), ImagesError> {
        Self::new_name(name).map(drop)
    }

    fn new_name(name: &Reference) -> Result<String, ImagesError> {
        if name.tag().is_some_and(image::is_signature_tag) {
            return Err(ImagesError::SignatureTag(name.clone()));
        }
        image::tag_name_of(name).ok_or_else(|| ImagesError::InvalidName(name.clone()))
    }

    /// Stores an artifact under a name. Its layer may be moved instead of copied, and must not be
    /// read afterwards.
    ///
    /// # Errors
    /// When the disk fails; the name is then unchanged.
    pub fn put(&self, artifact: &Artifact, name: &Reference) -> Result<(), ImagesError> {
        Self::check_name(name)?;
        let lease = self.write_lease()?;
        self.layout.link_blob_unsynced(&artifact.layer)?;
        self.layout.write_blob_unsynced(NewManifest::CONFIG)?;
        self.layout.write_blob_unsynced(&artifact.manifest)?;
        self.layout.sync_blobs(&[
            artifact.layer.digest().clone(),
            Digest::sha256(NewManifest::CONFIG),
            artifact.descriptor.digest.clone(),
        ])?;
        self.set_name(&lease, artifact.descriptor.clone(), name)
    }

    /// Names a manifest that is in the store with all its blobs, and records the time.
    ///
    /// # Errors
    /// When the disk fails; the name is then unchanged.
    pub fn set_name(
        &self,
        _lease: &WriteLease,
        manifest: Descriptor,
        name: &Reference,
    ) -> Result<(), ImagesError> {
        let name = image::name_of(name).ok_or_else(|| ImagesError::InvalidName(name.clone()))?;
        Ok(self
            .layout
            .update_index(|index| index.set(&name, image::with_received_now(manifest)))?)
    }

    /// Tags the image `from`, and its signatures, as `to`.
    ///
    /// # Errors
    /// `NotFound` when there is no image `from`.
    pub fn tag(&self, from: &Reference, to: &Reference) -> Result<Descriptor, ImagesError> {
        let name = Self::new_name(to)?;
        let tagged = self.layout.update_index(|index| {
            let found = image::find(index, from)?.clone();
            index.set(&name, found.clone());
            copy_signatures(index, from.repository(), to.repository(), &found.digest);
            Some(found)
        })?;
        tagged.ok_or_else(|| ImagesError::NotFound(from.clone()))
    }

    /// Removes a name, and with an image's last name all blobs that no other image needs. Returns
    /// the manifest's descriptor.
    ///
    /// # Errors
    /// `NotFound` when there is no such image.
    pub fn remove(&self, name: &Reference) -> Result<Descriptor, ImagesError> {
        let removed = self.layout.update_index(|index| unset(index, name))?;
        let removed = removed.ok_or_else(|| ImagesError::NotFound(name.clone()))?;
        self.sweep()?;
        Ok(removed)
    }

    /// Removes many names, with a result for each: writes the index once and sweeps the store once.
    ///
    /// # Errors
    /// When the disk fails; `NotFound` for one name is in the list.
    pub fn remove_all(
        &self,
        names: &[Reference],
    ) -> Result<Vec<Result<Descriptor, ImagesError>>, ImagesError> {
        let removed = self.layout.update_index(|index| {
            let unset = |name: &Reference| {
                unset(index, name).ok_or_else(|| ImagesError::NotFound(name.clone()))
            };
            names.iter().map(unset).collect::<Vec<_>>()
        })?;
        self.sweep()?;
        Ok(removed)
    }

    /// The descriptor of the image with this name.
    ///
    /// # Errors
    /// When the store can't be read; a missing image is no error.
    pub fn resolve(&self, name: &Reference) -> Result<Option<Descriptor>, ImagesError> {
        Ok(image::find(&self.layout.index()?, name).cloned())
    }

    /// The image whose digest begins with `prefix` in hexadecimal digits, as one reference for each
    /// repository that has it.
    ///
    /// # Errors
    /// When no digest begins with it, or several do.
    pub fn with_prefix(
        &self,
        repository: Option<&Repository>,
        prefix: &str,
    ) -> Result<Vec<Reference>, ImagesError> {
        let index = self.layout.index()?;
        let mut found: BTreeMap<&Digest, BTreeSet<Repository>> = BTreeMap::new();
        for (name, entry) in index
            .names()
            .filter(|(_, entry)| entry.digest.hex().starts_with(prefix))
        {
            let Ok(name) = name.parse::<Reference>() else {
                continue;
            };
            let is_image =
                !name.tag().is_some_and(image::is_signature_tag) && image::name_of(&name).is_some();
            if is_image && repository.is_none_or(|wanted| wanted == name.repository()) {
                found
                    .entry(&entry.digest)
                    .or_default()
                    .insert(name.repository().clone());
            }
        }
        let mut digests = found.iter();
        match (digests.next(), digests.next()) {
            (Some((digest, repositories)), None) => {
                let names = repositories
                    .iter()
                    .filter_map(|one| format!("{one}@{digest}").parse().ok());
                Ok(names.collect())
            }
            (None, _) => Err(ImagesError::NoSuchDigest(prefix.to_owned())),
            (Some((one, _)), Some((other, _))) => Err(ImagesError::Ambiguous {
                prefix: prefix.to_owned(),
                one: (*one).clone(),
                other: (*other).clone(),
            }),
        }
    }

    /// Every image with a name, newest first. An image with missing parts is listed as far as it
    /// can be read.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn list(&self) -> Result<Vec<Image>, ImagesError> {
        let index = self.layout.index()?;
        let signed = image::signature_prefixes(&index);
        let mut images: Vec<_> = index
            .names()
            .filter_map(|(name, entry)| Image::read(&self.layout, &signed, name, entry))
            .collect();
        images.sort_by(|a, b| {
            b.created
                .cmp(&a.created)
                .then_with(|| a.name().cmp(&b.name()))
        });
        Ok(images)
    }

    /// Removes every blob that no entry needs, unless a process holds a [`WriteLease`]: then the
    /// next removal does it.
    fn sweep(&self) -> Result<(), ImagesError> {
        let Some(_lock) = self.try_exclusive_lock()? else {
            return Ok(());
        };
        self.remove_leftovers()?;
        let mut needed = HashSet::new();
        let index = self.layout.index()?;
        for entry in &index.manifests {
            mark_reachable(&self.layout, &entry.digest, &mut needed)?;
        }
        for (digest, _) in self.layout.blobs()? {
            if !needed.contains(&digest) {
                self.layout.remove_blob(&digest)?;
            }
        }
        Ok(())
    }

    /// Removes temporary files that a crash left behind.
    fn remove_leftovers(&self) -> Result<(), ImagesError> {
        // The lock of the index is held, because its writers have a temporary file, too.
        Ok(self
            .layout
            .update_index(|_| self.layout.remove_leftovers())??)
    }

    /// The exclusive lock, unless a process holds a [`WriteLease`].
    fn try_exclusive_lock(&self) -> Result<Option<fs::File>, ImagesError> {
        let (path, lock) = self.sweep_lock()?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(LayoutError::Io {
                operation: "lock",
                path,
                source,
            }
            .into()),
        }
    }

    fn sweep_lock(&self) -> Result<(PathBuf, fs::File), ImagesError> {
        let path = self.layout.root().join(SWEEP_LOCK);
        let lock = open_lock(&path).map_err(|source| LayoutError::Io {
            operation: "lock",
            path: path.clone(),
            source,
        })?;
        Ok((path, lock))
    }
}

/// Removes a name from the index, and with an image's last name in its repository the names of its
/// signatures.
fn unset(index: &mut LayoutIndex, name: &Reference) -> Option<Descriptor> {
    let found = image::find(index, name)?.clone();
    match name.selector() {
        Selector::Tag(_) | Selector::Only | Selector::Rule(_) => {
            image::name_of(name)
                .iter()
                .for_each(|name| index.unset(name));
        }
        Selector::Digest(digest) => {
            for name in image::names_of(index, name.repository(), digest) {
                index.unset(&name);
            }
        }
    }
    if image::names_of(index, name.repository(), &found.digest).is_empty() {
        for signatures in image::signature_names(index, name.repository(), &found.digest) {
            index.unset(&signatures);
        }
    }
    Some(found)
}

/// Adds a manifest and everything that it references to `needed`.
fn mark_reachable(
    layout: &Layout,
    digest: &Digest,
    needed: &mut HashSet<Digest>,
) -> Result<(), LayoutError> {
    if !needed.insert(digest.clone()) {
        return Ok(());
    }
    // Content that is too long or not JSON is not a manifest: old stores of the policy CLI name a
    // layer.
    let raw = match layout.read_blob(digest, MAX_MANIFEST_BYTES) {
        Ok(Some(raw)) => raw,
        Ok(None) => return Ok(()),
        Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let Ok(manifest) = Manifest::parse(raw, None, MAX_MANIFEST_BYTES) else {
        return Ok(());
    };
    match manifest.document() {
        Document::Image { config, layers, .. } => {
            needed.insert(config.digest.clone());
            needed.extend(layers.iter().map(|layer| layer.digest.clone()));
            Ok(())
        }
        Document::Index { manifests } => manifests
            .iter()
            .try_for_each(|entry| mark_reachable(layout, &entry.digest, needed)),
    }
}

fn copy_signatures(index: &mut LayoutIndex, from: &Repository, to: &Repository, digest: &Digest) {
    if from == to {
        return;
    }
    for name in image::signature_names(index, from, digest) {
        let Some(entry) = index.named(&name).cloned() else {
            continue;
        };
        let moved = name.replacen(&from.to_string(), &to.to_string(), 1);
        index.set(&moved, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{self, Annotations, Limits};

    const LIMITS: Limits = Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 100,
        bundle_manifest: 1 << 20,
    };

    struct Store {
        folder: tempfile::TempDir,
        images: Images,
    }

    impl Store {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let images = Images::open(&folder.path().join("store")).unwrap();
            Self { folder, images }
        }

        fn put(&self, policy: &str, name: &str) -> Digest {
            let policies = self.folder.path().join("policy");
            fs::create_dir_all(&policies).unwrap();
            fs::write(policies.join("p.rego"), policy).unwrap();
            let artifact = Artifact::new(
                &bundle::pack(&policies, &LIMITS).unwrap(),
                &Annotations::default(),
            )
            .unwrap();
            self.images.put(&artifact, &reference(name)).unwrap();
            artifact.descriptor.digest
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = self
                .images
                .list()
                .unwrap()
                .iter()
                .map(Image::name)
                .collect();
            names.sort();
            names
        }

        fn blobs(&self) -> usize {
            self.images.layout.blobs().unwrap().len()
        }

        fn resolve_entry(&self, name: &str) -> Descriptor {
            self.images.resolve(&reference(name)).unwrap().unwrap()
        }

        fn resolve(&self, name: &str) -> Option<Digest> {
            self.images
                .resolve(&reference(name))
                .unwrap()
                .map(|found| found.digest)
        }
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn an_image_is_found_by_tag_and_by_digest_in_its_repository_only() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        assert_eq!(store.resolve("r.example/a:v1"), Some(digest.clone()));
        assert_eq!(
            store.resolve(&format!("r.example/a@{digest}")),
            Some(digest.clone())
        );
        assert_eq!(
            store.resolve(&format!("r.example/a:old@{digest}")),
            Some(digest.clone())
        );
        assert_eq!(store.resolve(&format!("r.example/b@{digest}")), None);
        // A tag with the same ending is a different tag.
        assert_eq!(store.resolve("example.r.example/a:v1"), None);
    }

    #[test]
    fn a_digest_prefix_finds_one_image_or_none() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        store
            .images
            .tag(&reference("r.example/a:v1"), &reference("r.example/b:v1"))
            .unwrap();
        let with = |repository: Option<&Repository>, prefix: &str| {
            let found = store.images.with_prefix(repository, prefix)?;
            Ok::<_, ImagesError>(found.iter().map(Reference::to_string).collect::<Vec<_>>())
        };
        let both = [
            format!("r.example/a@{digest}"),
            format!("r.example/b@{digest}"),
        ];
        assert_eq!(with(None, &digest.hex()[..6]).unwrap(), both);
        let (a, c) = (reference("r.example/a:x"), reference("r.example/c:x"));
        assert_eq!(
            with(Some(a.repository()), &digest.hex()[..6]).unwrap(),
            both[..1]
        );
        assert!(matches!(
            with(Some(c.repository()), &digest.hex()[..6]),
            Err(ImagesError::NoSuchDigest(_))
        ));
        // A digest that differs in its last digit, and signatures, which are not images.
        let last = if digest.hex().ends_with('0') {
            '1'
        } else {
            '0'
        };
        let alike: Digest = format!("sha256:{}{last}", &digest.hex()[..63])
            .parse()
            .unwrap();
        let entry = |digest: &Digest| Descriptor::new("application/json", digest.clone(), 1);
        let set = |name: &str| {
            store
                .images
                .layout
                .update_index(|index| index.set(name, entry(&alike)))
                .unwrap()
        };
        set(&format!("r.example/a:sha256-{}", digest.hex()));
        assert_eq!(with(None, &digest.hex()[..6]).unwrap(), both);
        set("r.example/a:v2");
        assert!(matches!(
            with(None, &digest.hex()[..6]),
            Err(ImagesError::Ambiguous { .. })
        ));
        assert_eq!(with(None, digest.hex()).unwrap(), both);
    }

    #[test]
    fn entries_without_a_valid_name_are_not_listed() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        let entry = || Descriptor::new("", digest.clone(), 1);
        let foreign = ["oci-layout:a:v1", "v1", "a:v1", "r.example/a:\u{443}"];
        let add =
            |index: &mut LayoutIndex| foreign.iter().for_each(|name| index.set(name, entry()));
        store.images.layout.update_index(add).unwrap();
        assert_eq!(store.names(), ["r.example/a:v1"]);
    }

    #[test]
    fn a_read_only_store_opens() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        let root = store.images.layout.root().to_owned();
        // This stops a superuser as well: the lock can't be opened.
        fs::remove_file(root.join(SWEEP_LOCK)).unwrap();
        fs::create_dir(root.join(SWEEP_LOCK)).unwrap();
        assert_eq!(Images::open(&root).unwrap().list().unwrap().len(), 1);
        assert!(store.images.write_lease().is_err());
    }

    #[test]
    fn an_image_can_not_have_the_tag_of_signatures() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        for ending in ["", ".sig"] {
            let name = reference(&format!("r.example/a:sha256-{}{ending}", digest.hex()));
            let error = store
                .images
                .tag(&reference("r.example/a:v1"), &name)
                .unwrap_err();
            assert!(matches!(error, ImagesError::SignatureTag(_)), "{error}");
            assert!(Images::check_name(&name).is_err());
        }
        assert!(!store.images.list().unwrap()[0].signed);
    }

    #[test]
    fn the_blobs_of_an_image_are_removed_with_its_last_name() {
        let store = Store::new();
        let one = store.put("package a\n", "r.example/a:v1");
        store
            .images
            .tag(&reference("r.example/a:v1"), &reference("r.example/b:v2"))
            .unwrap();
        let two = store.put("package b\n", "r.example/a:v1");
        assert_eq!(
            (
                store.resolve("r.example/a:v1"),
                store.resolve("r.example/b:v2")
            ),
            (Some(two), Some(one))
        );
        assert_eq!(store.blobs(), 5, "two manifests, two layers, one config");
        store.images.remove(&reference("r.example/b:v2")).unwrap();
        assert_eq!(store.blobs(), 3);
        store.images.remove(&reference("r.example/a:v1")).unwrap();
        assert_eq!((store.blobs(), store.names().len()), (0, 0));
        let unknown = store
            .images
            .remove(&reference("r.example/a:v1"))
            .unwrap_err();
        assert!(matches!(unknown, ImagesError::NotFound(_)));
    }

    #[test]
    fn no_blob_is_removed_while_a_write_lease_is_held() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        let lease = store.images.write_lease().unwrap();
        store.images.remove(&reference("r.example/a:v1")).unwrap();
        assert_eq!(store.blobs(), 3);
        drop(lease);
        store.put("package b\n", "r.example/a:v2");
        store.images.remove(&reference("r.example/a:v2")).unwrap();
        assert_eq!(store.blobs(), 0);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_at_open_unless_a_write_lease_is_held() {
        let store = Store::new();
        let leftover = store.folder.path().join("store/.tmp-x");
        fs::write(&leftover, "half").unwrap();
        let lease = store.images.write_lease().unwrap();
        Images::open(&store.folder.path().join("store")).unwrap();
        assert!(leftover.exists(), "it may belong to a running writer");
        drop(lease);
        Images::open(&store.folder.path().join("store")).unwrap();
        assert!(!leftover.exists());
    }

    #[test]
    fn signatures_are_not_listed_and_are_tagged_and_removed_with_their_image() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        // `sign` and `pull` store signatures under these names.
        let signatures = store.put("package signatures\n", "r.example/x:v1");
        let entry = store
            .images
            .resolve(&reference("r.example/x:v1"))
            .unwrap()
            .unwrap();
        let lease = store.images.write_lease().unwrap();
        let name = reference(&format!("r.example/a:sha256-{}", digest.hex()));
        store.images.set_name(&lease, entry, &name).unwrap();
        drop(lease);
        store.images.remove(&reference("r.example/x:v1")).unwrap();
        assert_eq!(store.names(), ["r.example/a:v1"]);
        assert!(store.images.list().unwrap()[0].signed);
        store
            .images
            .tag(&reference("r.example/a:v1"), &reference("r.example/b:v1"))
            .unwrap();
        assert_eq!(
            store.resolve(&format!("r.example/b:sha256-{}", digest.hex())),
            Some(signatures)
        );
        store.images.remove(&reference("r.example/a:v1")).unwrap();
        assert!(
            store
                .resolve(&format!("r.example/a:sha256-{}", digest.hex()))
                .is_none()
        );
        assert!(store.images.list().unwrap()[0].signed);
        store.images.remove(&reference("r.example/b:v1")).unwrap();
        assert_eq!(store.blobs(), 0);
    }

    #[test]
    fn an_image_has_its_size_its_revision_and_the_time_of_its_arrival() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        let image = store.images.list().unwrap().remove(0);
        assert_eq!(
            (image.repository.as_str(), image.tag.as_deref()),
            ("r.example/a", Some("v1"))
        );
        assert!(
            image.size > 0 && !image.revision.is_empty() && !image.signed,
            "{image:?}"
        );
        let age = crate::telemetry::now().duration_since(image.created.unwrap());
        assert!(age.as_secs() < 600, "{image:?}");
    }

    #[test]
    fn the_time_of_arrival_is_read_under_its_former_key_and_written_under_the_new_one() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        let entry = store.resolve_entry("r.example/a:v1");
        assert!(
            entry.annotation("dev.bundlegate.received").is_some(),
            "{entry:?}"
        );
        assert_eq!(entry.annotation("io.bundlegate.received"), None);
        let time = "2025-01-02T03:04:05.678Z";
        let mut former = Descriptor::new("", digest, 1);
        former.annotations = Some([("io.bundlegate.received".to_owned(), time.to_owned())].into());
        store
            .images
            .layout
            .update_index(|index| index.set("r.example/a:v1", former))
            .unwrap();
        assert_eq!(
            store.images.list().unwrap()[0].created,
            Some(time.parse().unwrap())
        );
    }

    #[test]
    fn a_folder_is_not_a_name() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        for to in [
            "oci-layout:x:v1",
            &format!("r.example/a@{}", Digest::sha256(b"")),
        ] {
            let error = store
                .images
                .tag(&reference("r.example/a:v1"), &reference(to))
                .unwrap_err();
            assert!(matches!(error, ImagesError::InvalidName(_)), "{error}");
        }
    }
}
