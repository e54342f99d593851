//! One image of the store, and how names are written in the index.

use std::collections::HashSet;

use jiff::Timestamp;

use crate::{
    bundle::{Bundle, LayerPlan, Limits},
    oci::{Blob, Descriptor, Digest, Layout, LayoutIndex, Manifest, Reference, Repository, Selector},
};

/// When the store got an image: its own note, beside the reference's name.
const RECEIVED: &str = "io.bundlegate.received";
/// What the artifact's author says of the bundle's revision.
const REVISION: &str = "org.opencontainers.image.revision";
/// Larger bundles are not opened for a list.
const PEEK: Limits = Limits { bundle: 8 << 20, unpacked: 64 << 20, files: 100_000, bundle_manifest: 1 << 20 };
/// A manifest longer than this is not looked into.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// What there is to say about an image at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `HOST/PATH`.
    pub repository: String,
    /// The tag; absent where an image is known by its digest alone.
    pub tag: Option<String>,
    /// Of the manifest.
    pub digest: Digest,
    /// The bundle's revision; may be empty, or unknown without opening a large bundle.
    pub revision: String,
    /// When the store got it.
    pub created: Option<Timestamp>,
    /// Bytes of the layers, which is the bundle.
    pub size: u64,
    /// Whether a signature lies beside it. Whose, and what it is worth, is not said.
    pub signed: bool,
}

impl Image {
    /// The full reference.
    pub fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", self.repository),
            None => format!("{}@{}", self.repository, self.digest),
        }
    }

    /// `None` for entries that are no images of their own, such as signatures.
    pub(super) fn read(layout: &Layout, signed: &HashSet<String>, name: &str, entry: &Descriptor) -> Option<Self> {
        let name: Reference = name.parse().ok()?;
        // Somebody else's layout may call its entries anything.
        name_of(&name)?;
        let tag = name.tag().map(str::to_owned);
        if tag.as_deref().is_some_and(is_signature_tag) {
            return None;
        }
        let raw = layout.read_blob(&entry.digest, MANIFEST_LIMIT).ok().flatten();
        let manifest = raw.and_then(|raw| Manifest::parse(raw, None, MANIFEST_LIMIT).ok());
        let revision = manifest.as_ref().and_then(|manifest| revision(layout, manifest));
        let layers = manifest.as_ref().map(Manifest::layers).unwrap_or_default();
        Some(Self {
            repository: name.repository().to_string(),
            tag,
            digest: entry.digest.clone(),
            revision: revision.unwrap_or_default(),
            created: entry.annotation(RECEIVED).and_then(|text| text.parse().ok()),
            size: Descriptor::total(layers),
            signed: signed.contains(&signature_front(name.repository(), &entry.digest)),
        })
    }
}

/// As the manifest says, or else the bundle itself.
fn revision(layout: &Layout, manifest: &Manifest) -> Option<String> {
    if let Some(said) = manifest.annotations().get(REVISION) {
        return Some(said.clone());
    }
    let plan = LayerPlan::of(manifest, None).ok()?;
    let [layer] = plan.layers() else { return None };
    if !plan.is_copy() || layer.size > PEEK.bundle {
        return None;
    }
    let bytes = layout.read_blob(&layer.digest, PEEK.bundle).ok()??;
    let bundle = Bundle::open(Blob::check(layer, bytes).ok()?, &PEEK).ok()?;
    Some(bundle.revision().to_string())
}

/// The descriptor with the time of day as the time when the store got it.
pub(super) fn received_now(mut manifest: Descriptor) -> Descriptor {
    let now = format!("{:.3}", crate::telemetry::now());
    manifest.annotations = Some([(RECEIVED.to_owned(), now)].into());
    manifest
}

/// What the index calls an image; a layout folder has no name in the store.
pub(super) fn name_of(reference: &Reference) -> Option<String> {
    match (reference.repository(), reference.selector()) {
        (Repository::Registry { .. }, Selector::Digest(digest)) => Some(format!("{}@{digest}", reference.repository())),
        _ => tag_name_of(reference),
    }
}

/// What the index calls an image that has a tag.
pub(super) fn tag_name_of(reference: &Reference) -> Option<String> {
    match (reference.repository(), reference.selector()) {
        (repository @ Repository::Registry { .. }, Selector::Tag(tag)) => Some(format!("{repository}:{tag}")),
        _ => None,
    }
}

/// The entry that a reference means.
pub(super) fn find<'a>(index: &'a LayoutIndex, reference: &Reference) -> Option<&'a Descriptor> {
    match reference.selector() {
        Selector::Digest(digest) => {
            let name = names_of(index, reference.repository(), digest).into_iter().next()?;
            index.named(&name)
        }
        Selector::Tag(_) | Selector::Only => index.named(&tag_name_of(reference)?),
    }
}

/// Every name that a digest has in one repository.
pub(super) fn names_of(index: &LayoutIndex, repository: &Repository, digest: &Digest) -> Vec<String> {
    let repository = repository.to_string();
    let ours = |name: &str| name.strip_prefix(&repository).is_some_and(|rest| rest.starts_with([':', '@']));
    let named = index.names().filter(|(name, entry)| entry.digest == *digest && ours(name));
    named.map(|(name, _)| name.to_owned()).collect()
}

/// What the names of a digest's signatures begin with, up to a dot.
fn signature_front(repository: &Repository, digest: &Digest) -> String {
    format!("{repository}:{}-{}", digest.algorithm(), digest.hex())
}

/// The beginnings of all names of signatures: one look at the index for any number of images.
pub(super) fn signed(index: &LayoutIndex) -> HashSet<String> {
    let names = index.names().filter_map(|(name, _)| {
        let (repository, tag) = name.rsplit_once(':')?;
        let stem = tag.split('.').next().unwrap_or(tag);
        is_signature_tag(tag).then(|| format!("{repository}:{stem}"))
    });
    names.collect()
}

/// The names under which signatures of a digest lie: the referrers' index, cosign's `.sig`
/// and its siblings.
pub(super) fn signature_names(index: &LayoutIndex, repository: &Repository, digest: &Digest) -> Vec<String> {
    let front = signature_front(repository, digest);
    let ours = |name: &str| name.strip_prefix(&front).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    index.names().filter(|(name, _)| ours(name)).map(|(name, _)| name.to_owned()).collect()
}

/// `sha256-<64 hex>` with or without an ending.
pub(super) fn is_signature_tag(tag: &str) -> bool {
    let Some((algorithm, rest)) = tag.split_once('-') else { return false };
    let hex = rest.split('.').next().unwrap_or(rest);
    format!("{algorithm}:{hex}").parse::<Digest>().is_ok()
}
