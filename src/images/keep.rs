//! Putting in, naming and taking out.

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
        Descriptor, Digest, Document, Layout, LayoutError, LayoutIndex, Manifest, NewManifest, Reference, Repository,
        Selector, Sharing, lock_soon, open_lock,
    },
};

/// A manifest in the store is not longer than this; registries take 4 MiB.
const MANIFEST_LIMIT: u64 = 16 << 20;
/// Held shared by whoever adds blobs, alone by whoever removes them.
const SWEEP_LOCK: &str = ".sweep.lock";

/// The image store of one user. Any number of processes may use it at a time.
///
/// All methods block on the disk: call them off the async threads.
#[derive(Debug, Clone)]
pub struct Images {
    layout: Layout,
}

/// For as long as it lives, no blob is taken out of the store: hold it from the first blob
/// that is put in, or found there, until the manifest that needs them has its name.
#[derive(Debug)]
pub struct Filling {
    _lock: fs::File,
}

/// Why the store can't do something.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The folder can't be made or opened.
    #[error("image store {path}: {source}; name another with --store or BUNDLEGATE_STORE")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nothing is called that.
    #[error("{0}: not in the image store; `bundlegate images` lists what is")]
    Unknown(Reference),
    /// No digest begins so.
    #[error("{0}: no digest in the image store begins so; `bundlegate images` lists what is there")]
    UnknownDigest(String),
    /// Several do.
    #[error("{prefix}: several digests in the image store begin so, such as {one} and {other}; write more of it")]
    Ambiguous {
        /// What was written.
        prefix: String,
        /// A digest.
        one: Digest,
        /// Another.
        other: Digest,
    },
    /// A folder or a bare digest can't be the name of something in the store.
    #[error("{0}: no name for the image store; write HOST/REPOSITORY:TAG")]
    NotAName(Reference),
    /// An image under such a tag would pass for the signatures of another.
    #[error("{0}: tags like this are those of signatures; name another")]
    OfSignatures(Reference),
    /// The layout on disk.
    #[error("image store: {0}")]
    Layout(#[from] LayoutError),
}

impl Images {
    /// Opens the store, making it first where there is none.
    ///
    /// # Errors
    /// When the folder can't be made, or is something else.
    pub fn open(path: &Path) -> Result<Self, ImagesError> {
        let failed = |source| ImagesError::Folder { path: path.to_owned(), source };
        // Policy may be private; whoever wants to share a store can open it up.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let images = Self { layout: Layout::create(path)? };
        // A store that may only be read is one, too; whoever can't write is told so later.
        if let Ok(Some(_alone)) = images.alone() {
            let _ = images.clean();
        }
        Ok(images)
    }

    /// The layout that the store is, as a place to read from and write to.
    pub fn repository(&self) -> Repository {
        Repository::Layout { path: self.layout.root().to_owned() }
    }

    /// Says that blobs are about to come in.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn filling(&self) -> Result<Filling, ImagesError> {
        let (path, lock) = self.sweep_lock()?;
        lock_soon(&lock, Sharing::Shared).map_err(|source| LayoutError::Io { operation: "lock", path, source })?;
        Ok(Filling { _lock: lock })
    }

    /// Whether a new image may be called that.
    ///
    /// # Errors
    /// `NotAName` for a folder or a bare digest, `OfSignatures` for a tag that is theirs.
    pub fn check_name(name: &Reference) -> Result<(), ImagesError> {
        Self::new_name(name).map(drop)
    }

    fn new_name(name: &Reference) -> Result<String, ImagesError> {
        if name.tag().is_some_and(image::is_signature_tag) {
            return Err(ImagesError::OfSignatures(name.clone()));
        }
        image::tag_name_of(name).ok_or_else(|| ImagesError::NotAName(name.clone()))
    }

    /// Puts an artifact in under a name.
    ///
    /// # Errors
    /// When the disk refuses; the name then means what it meant before.
    pub fn put(&self, artifact: &Artifact, name: &Reference) -> Result<(), ImagesError> {
        Self::check_name(name)?;
        let filling = self.filling()?;
        self.layout.store_blob(&artifact.layer)?;
        self.layout.write_blob(NewManifest::CONFIG)?;
        self.layout.write_blob(&artifact.manifest)?;
        self.name(&filling, artifact.descriptor.clone(), name)
    }

    /// Gives a name to a manifest that is in the store with all that it needs, and notes
    /// when.
    ///
    /// # Errors
    /// When the disk refuses; the name then means what it meant before.
    pub fn name(&self, _filling: &Filling, manifest: Descriptor, name: &Reference) -> Result<(), ImagesError> {
        let name = image::name_of(name).ok_or_else(|| ImagesError::NotAName(name.clone()))?;
        Ok(self.layout.update_index(|index| index.set(&name, image::received_now(manifest)))?)
    }

    /// Gives what `from` names a second name, with its signatures.
    ///
    /// # Errors
    /// `Unknown` when `from` names nothing.
    pub fn tag(&self, from: &Reference, to: &Reference) -> Result<Descriptor, ImagesError> {
        let name = Self::new_name(to)?;
        let tagged = self.layout.update_index(|index| {
            let found = image::find(index, from)?.clone();
            index.set(&name, found.clone());
            copy_signatures(index, from.repository(), to.repository(), &found.digest);
            Some(found)
        })?;
        tagged.ok_or_else(|| ImagesError::Unknown(from.clone()))
    }

    /// Takes a name away, and with the last one everything that only it needed. Gives what
    /// it named.
    ///
    /// # Errors
    /// `Unknown` when it names nothing.
    pub fn remove(&self, name: &Reference) -> Result<Descriptor, ImagesError> {
        let removed = self.layout.update_index(|index| unset(index, name))?;
        let removed = removed.ok_or_else(|| ImagesError::Unknown(name.clone()))?;
        self.sweep()?;
        Ok(removed)
    }

    /// The same for many names, of which each is removed or not for itself: the index is
    /// written once, and the store looked through once.
    ///
    /// # Errors
    /// When the disk refuses; `Unknown` of one name is in the list.
    pub fn remove_all(&self, names: &[Reference]) -> Result<Vec<Result<Descriptor, ImagesError>>, ImagesError> {
        let removed = self.layout.update_index(|index| {
            let unset = |name: &Reference| unset(index, name).ok_or_else(|| ImagesError::Unknown(name.clone()));
            names.iter().map(unset).collect::<Vec<_>>()
        })?;
        self.sweep()?;
        Ok(removed)
    }

    /// What `name` means now.
    ///
    /// # Errors
    /// When the store can't be read; that there is no such image is no error.
    pub fn resolve(&self, name: &Reference) -> Result<Option<Descriptor>, ImagesError> {
        Ok(image::find(&self.layout.index()?, name).cloned())
    }

    /// The images whose digest begins with `prefix`, in hexadecimal digits, one for each
    /// repository that has it.
    ///
    /// # Errors
    /// When there is none, or more than one digest begins so.
    pub fn with_prefix(&self, repository: Option<&Repository>, prefix: &str) -> Result<Vec<Reference>, ImagesError> {
        let index = self.layout.index()?;
        let mut found: BTreeMap<&Digest, BTreeSet<Repository>> = BTreeMap::new();
        for (name, entry) in index.names().filter(|(_, entry)| entry.digest.hex().starts_with(prefix)) {
            let Ok(name) = name.parse::<Reference>() else { continue };
            let is_image = !name.tag().is_some_and(image::is_signature_tag) && image::name_of(&name).is_some();
            if is_image && repository.is_none_or(|wanted| wanted == name.repository()) {
                found.entry(&entry.digest).or_default().insert(name.repository().clone());
            }
        }
        let mut digests = found.iter();
        match (digests.next(), digests.next()) {
            (Some((digest, repositories)), None) => {
                let names = repositories.iter().filter_map(|one| format!("{one}@{digest}").parse().ok());
                Ok(names.collect())
            }
            (None, _) => Err(ImagesError::UnknownDigest(prefix.to_owned())),
            (Some((one, _)), Some((other, _))) => {
                Err(ImagesError::Ambiguous { prefix: prefix.to_owned(), one: (*one).clone(), other: (*other).clone() })
            }
        }
    }

    /// Everything that has a name, newest first.
    ///
    /// # Errors
    /// When the store can't be read; an image of which parts are missing is listed as far
    /// as it can be.
    pub fn list(&self) -> Result<Vec<Image>, ImagesError> {
        let index = self.layout.index()?;
        let signed = image::signed(&index);
        let mut images: Vec<_> =
            index.names().filter_map(|(name, entry)| Image::read(&self.layout, &signed, name, entry)).collect();
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.name().cmp(&b.name())));
        Ok(images)
    }

    /// Removes every blob that no entry needs, unless somebody is filling the store: then
    /// the next removal does it.
    fn sweep(&self) -> Result<(), ImagesError> {
        let Some(_alone) = self.alone()? else { return Ok(()) };
        self.clean()?;
        let mut needed = HashSet::new();
        let index = self.layout.index()?;
        for entry in &index.manifests {
            reach(&self.layout, &entry.digest, &mut needed)?;
        }
        for (digest, _) in self.layout.blobs()? {
            if !needed.contains(&digest) {
                self.layout.remove_blob(&digest)?;
            }
        }
        Ok(())
    }

    /// Removes what a crash left of files on their way.
    fn clean(&self) -> Result<(), ImagesError> {
        // The index is on its way, too, while somebody changes it.
        Ok(self.layout.update_index(|_| self.layout.remove_leftovers())??)
    }

    /// The lock of whoever removes, where nobody adds just now.
    fn alone(&self) -> Result<Option<fs::File>, ImagesError> {
        let (path, lock) = self.sweep_lock()?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(LayoutError::Io { operation: "lock", path, source }.into()),
        }
    }

    fn sweep_lock(&self) -> Result<(PathBuf, fs::File), ImagesError> {
        let path = self.layout.root().join(SWEEP_LOCK);
        let lock =
            open_lock(&path).map_err(|source| LayoutError::Io { operation: "lock", path: path.clone(), source })?;
        Ok((path, lock))
    }
}

/// Takes a name out of the index, and with an image's last name in its repository those of its
/// signatures.
fn unset(index: &mut LayoutIndex, name: &Reference) -> Option<Descriptor> {
    let found = image::find(index, name)?.clone();
    match name.selector() {
        Selector::Tag(_) | Selector::Only => {
            image::name_of(name).iter().for_each(|name| index.unset(name));
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

/// Marks a manifest and everything below it.
fn reach(layout: &Layout, digest: &Digest, needed: &mut HashSet<Digest>) -> Result<(), LayoutError> {
    if !needed.insert(digest.clone()) {
        return Ok(());
    }
    // Too long, or not JSON, is not a manifest: old stores of the policy CLI name a layer.
    let raw = match layout.read_blob(digest, MANIFEST_LIMIT) {
        Ok(Some(raw)) => raw,
        Ok(None) => return Ok(()),
        Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::FileTooLarge => return Ok(()),
        Err(error) => return Err(error),
    };
    let Ok(manifest) = Manifest::parse(raw, None, MANIFEST_LIMIT) else { return Ok(()) };
    match manifest.document() {
        Document::Image { config, layers, .. } => {
            needed.insert(config.digest.clone());
            needed.extend(layers.iter().map(|layer| layer.digest.clone()));
            Ok(())
        }
        Document::Index { manifests } => manifests.iter().try_for_each(|entry| reach(layout, &entry.digest, needed)),
    }
}

fn copy_signatures(index: &mut LayoutIndex, from: &Repository, to: &Repository, digest: &Digest) {
    if from == to {
        return;
    }
    for name in image::signature_names(index, from, digest) {
        let Some(entry) = index.named(&name).cloned() else { continue };
        let moved = name.replacen(&from.to_string(), &to.to_string(), 1);
        index.set(&moved, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{self, Annotations, Limits};

    const LIMITS: Limits = Limits { bundle: 1 << 20, unpacked: 1 << 20, files: 100, bundle_manifest: 1 << 20 };

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
            let artifact = Artifact::new(&bundle::pack(&policies, &LIMITS).unwrap(), &Annotations::default()).unwrap();
            self.images.put(&artifact, &reference(name)).unwrap();
            artifact.descriptor.digest
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = self.images.list().unwrap().iter().map(Image::name).collect();
            names.sort();
            names
        }

        fn blobs(&self) -> usize {
            self.images.layout.blobs().unwrap().len()
        }

        fn resolve(&self, name: &str) -> Option<Digest> {
            self.images.resolve(&reference(name)).unwrap().map(|found| found.digest)
        }
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_put_is_found_by_tag_and_by_digest_in_its_repository_only() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        assert_eq!(store.resolve("r.example/a:v1"), Some(digest.clone()));
        assert_eq!(store.resolve(&format!("r.example/a@{digest}")), Some(digest.clone()));
        assert_eq!(store.resolve(&format!("r.example/a:old@{digest}")), Some(digest.clone()));
        assert_eq!(store.resolve(&format!("r.example/b@{digest}")), None);
        // A tag that ends the same is another one.
        assert_eq!(store.resolve("example.r.example/a:v1"), None);
    }

    #[test]
    fn the_beginning_of_a_digest_is_one_image_or_none() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        store.images.tag(&reference("r.example/a:v1"), &reference("r.example/b:v1")).unwrap();
        let with = |repository: Option<&Repository>, prefix: &str| {
            let found = store.images.with_prefix(repository, prefix)?;
            Ok::<_, ImagesError>(found.iter().map(Reference::to_string).collect::<Vec<_>>())
        };
        let both = [format!("r.example/a@{digest}"), format!("r.example/b@{digest}")];
        assert_eq!(with(None, &digest.hex()[..6]).unwrap(), both);
        let (a, c) = (reference("r.example/a:x"), reference("r.example/c:x"));
        assert_eq!(with(Some(a.repository()), &digest.hex()[..6]).unwrap(), both[..1]);
        assert!(matches!(with(Some(c.repository()), &digest.hex()[..6]), Err(ImagesError::UnknownDigest(_))));
        // One that differs in its last digit, and signatures that are no image.
        let last = if digest.hex().ends_with('0') { '1' } else { '0' };
        let alike: Digest = format!("sha256:{}{last}", &digest.hex()[..63]).parse().unwrap();
        let entry = |digest: &Digest| Descriptor::new("application/json", digest.clone(), 1);
        let set = |name: &str| store.images.layout.update_index(|index| index.set(name, entry(&alike))).unwrap();
        set(&format!("r.example/a:sha256-{}", digest.hex()));
        assert_eq!(with(None, &digest.hex()[..6]).unwrap(), both);
        set("r.example/a:v2");
        assert!(matches!(with(None, &digest.hex()[..6]), Err(ImagesError::Ambiguous { .. })));
        assert_eq!(with(None, digest.hex()).unwrap(), both);
    }

    #[test]
    fn entries_that_nobody_could_ask_for_by_name_are_not_listed() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        let entry = || Descriptor::new("", digest.clone(), 1);
        let foreign = ["oci-layout:a:v1", "v1", "a:v1", "r.example/a:\u{443}"];
        let add = |index: &mut LayoutIndex| foreign.iter().for_each(|name| index.set(name, entry()));
        store.images.layout.update_index(add).unwrap();
        assert_eq!(store.names(), ["r.example/a:v1"]);
    }

    #[test]
    fn a_store_that_may_only_be_read_opens() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        let root = store.images.layout.root().to_owned();
        // What a superuser is refused as well: the lock can't be opened.
        fs::remove_file(root.join(SWEEP_LOCK)).unwrap();
        fs::create_dir(root.join(SWEEP_LOCK)).unwrap();
        assert_eq!(Images::open(&root).unwrap().list().unwrap().len(), 1);
        assert!(store.images.filling().is_err());
    }

    #[test]
    fn no_image_passes_for_a_signature() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        for ending in ["", ".sig"] {
            let name = reference(&format!("r.example/a:sha256-{}{ending}", digest.hex()));
            let told = store.images.tag(&reference("r.example/a:v1"), &name).unwrap_err();
            assert!(matches!(told, ImagesError::OfSignatures(_)), "{told}");
            assert!(Images::check_name(&name).is_err());
        }
        assert!(!store.images.list().unwrap()[0].signed);
    }

    #[test]
    fn a_name_moves_and_the_blobs_of_the_last_one_go() {
        let store = Store::new();
        let one = store.put("package a\n", "r.example/a:v1");
        store.images.tag(&reference("r.example/a:v1"), &reference("r.example/b:v2")).unwrap();
        let two = store.put("package b\n", "r.example/a:v1");
        assert_eq!((store.resolve("r.example/a:v1"), store.resolve("r.example/b:v2")), (Some(two), Some(one)));
        assert_eq!(store.blobs(), 5, "two manifests, two layers, one config");
        store.images.remove(&reference("r.example/b:v2")).unwrap();
        assert_eq!(store.blobs(), 3);
        store.images.remove(&reference("r.example/a:v1")).unwrap();
        assert_eq!((store.blobs(), store.names().len()), (0, 0));
        let unknown = store.images.remove(&reference("r.example/a:v1")).unwrap_err();
        assert!(matches!(unknown, ImagesError::Unknown(_)));
    }

    #[test]
    fn nothing_is_swept_while_somebody_fills_the_store() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        let filling = store.images.filling().unwrap();
        store.images.remove(&reference("r.example/a:v1")).unwrap();
        assert_eq!(store.blobs(), 3);
        drop(filling);
        store.put("package b\n", "r.example/a:v2");
        store.images.remove(&reference("r.example/a:v2")).unwrap();
        assert_eq!(store.blobs(), 0);
    }

    #[test]
    fn what_a_crash_left_goes_when_the_store_is_opened_alone() {
        let store = Store::new();
        let leftover = store.folder.path().join("store/.tmp-x");
        fs::write(&leftover, "half").unwrap();
        let filling = store.images.filling().unwrap();
        Images::open(&store.folder.path().join("store")).unwrap();
        assert!(leftover.exists(), "it may be somebody's who is at it");
        drop(filling);
        Images::open(&store.folder.path().join("store")).unwrap();
        assert!(!leftover.exists());
    }

    #[test]
    fn signatures_are_no_images_follow_the_tag_and_go_with_the_image() {
        let store = Store::new();
        let digest = store.put("package a\n", "r.example/a:v1");
        // As sign and pull put them in.
        let signatures = store.put("package signatures\n", "r.example/x:v1");
        let entry = store.images.resolve(&reference("r.example/x:v1")).unwrap().unwrap();
        let filling = store.images.filling().unwrap();
        let name = reference(&format!("r.example/a:sha256-{}", digest.hex()));
        store.images.name(&filling, entry, &name).unwrap();
        drop(filling);
        store.images.remove(&reference("r.example/x:v1")).unwrap();
        assert_eq!(store.names(), ["r.example/a:v1"]);
        assert!(store.images.list().unwrap()[0].signed);
        store.images.tag(&reference("r.example/a:v1"), &reference("r.example/b:v1")).unwrap();
        assert_eq!(store.resolve(&format!("r.example/b:sha256-{}", digest.hex())), Some(signatures));
        store.images.remove(&reference("r.example/a:v1")).unwrap();
        assert!(store.resolve(&format!("r.example/a:sha256-{}", digest.hex())).is_none());
        assert!(store.images.list().unwrap()[0].signed);
        store.images.remove(&reference("r.example/b:v1")).unwrap();
        assert_eq!(store.blobs(), 0);
    }

    #[test]
    fn an_image_tells_size_revision_and_when_it_came() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        let image = store.images.list().unwrap().remove(0);
        assert_eq!((image.repository.as_str(), image.tag.as_deref()), ("r.example/a", Some("v1")));
        assert!(image.size > 0 && !image.revision.is_empty() && !image.signed, "{image:?}");
        let age = crate::telemetry::now().duration_since(image.created.unwrap());
        assert!(age.as_secs() < 600, "{image:?}");
    }

    #[test]
    fn folders_are_no_names() {
        let store = Store::new();
        store.put("package a\n", "r.example/a:v1");
        for to in ["oci-layout:x:v1", &format!("r.example/a@{}", Digest::sha256(b""))] {
            let error = store.images.tag(&reference("r.example/a:v1"), &reference(to)).unwrap_err();
            assert!(matches!(error, ImagesError::NotAName(_)), "{error}");
        }
    }
}
