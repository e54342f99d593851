//! One image of the store, and the names of images and signatures in the index.

use std::collections::HashSet;

use jiff::Timestamp;

use crate::{
    bundle::{Bundle, LayerPlan, Limits},
    oci::{
        Blob, Descriptor, Digest, Layout, LayoutIndex, Manifest, Reference, Repository, Selector,
    },
};

/// The annotation of an index entry with the time at which the store got the image.
const RECEIVED: &str = "dev.bundlegate.received";
/// The former key of [`RECEIVED`], which is still read.
const RECEIVED_FORMERLY: &str = "io.bundlegate.received";
/// The annotation of a manifest with the bundle's revision.
const REVISION: &str = "org.opencontainers.image.revision";
/// Larger bundles are not opened for a list.
const LIST_LIMITS: Limits = Limits {
    bundle: 8 << 20,
    unpacked: 64 << 20,
    files: 100_000,
    bundle_manifest: 1 << 20,
};
/// The maximum size of a manifest that is read.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `HOST/PATH`.
    pub repository: String,
    /// The tag; `None` for an image that has a digest only.
    pub tag: Option<String>,
    /// The digest of the manifest.
    pub digest: Digest,
    /// The bundle's revision; empty if it has none, or if the bundle is too large to be opened.
    pub revision: String,
    /// When the store got the image.
    pub created: Option<Timestamp>,
    /// The size of the layers in bytes, which is that of the bundle.
    pub size: u64,
    /// Whether the store has signatures of the image; they are not verified.
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

    /// The image of an index entry; `None` for an entry that is not an image, such as signatures.
    pub(super) fn read(
        layout: &Layout,
        signed: &HashSet<String>,
        name: &str,
        entry: &Descriptor,
    ) -> Option<Self> {
        let name: Reference = name.parse().ok()?;
        // A layout of another program may have entries with any name.
        name_of(&name)?;
        let tag = name.tag().map(str::to_owned);
        if tag.as_deref().is_some_and(is_signature_tag) {
            return None;
        }
        let raw = layout
            .read_blob(&entry.digest, MAX_MANIFEST_BYTES)
            .ok()
            .flatten();
        let manifest = raw.and_then(|raw| Manifest::parse(raw, None, MAX_MANIFEST_BYTES).ok());
        let revision = manifest
            .as_ref()
            .and_then(|manifest| revision(layout, manifest));
        let layers = manifest.as_ref().map(Manifest::layers).unwrap_or_default();
        Some(Self {
            repository: name.repository().to_string(),
            tag,
            digest: entry.digest.clone(),
            revision: revision.unwrap_or_default(),
            created: entry
                .annotation(RECEIVED)
                .or_else(|| entry.annotation(RECEIVED_FORMERLY))
                .and_then(|text| text.parse().ok()),
            size: Descriptor::total(layers),
            signed: signed.contains(&signature_prefix(name.repository(), &entry.digest)),
        })
    }
}

/// The revision from the manifest's annotation, else from the bundle.
fn revision(layout: &Layout, manifest: &Manifest) -> Option<String> {
    if let Some(annotated) = manifest.annotations().get(REVISION) {
        return Some(annotated.clone());
    }
    let plan = LayerPlan::of(manifest, None).ok()?;
    let [layer] = plan.layers() else { return None };
    if !plan.is_copy() || layer.size > LIST_LIMITS.bundle {
        return None;
    }
    let bytes = layout.read_blob(&layer.digest, LIST_LIMITS.bundle).ok()??;
    let bundle = Bundle::open(Blob::check(layer, bytes).ok()?, &LIST_LIMITS).ok()?;
    Some(bundle.revision().to_string())
}

/// The descriptor with the current time as [`RECEIVED`].
pub(super) fn with_received_now(mut manifest: Descriptor) -> Descriptor {
    let now = format!("{:.3}", crate::telemetry::now());
    manifest.annotations = Some([(RECEIVED.to_owned(), now)].into());
    manifest
}

/// The name of an image in the index; `None` for a layout folder.
pub(super) fn name_of(reference: &Reference) -> Option<String> {
    match (reference.repository(), reference.selector()) {
        (Repository::Registry { .. }, Selector::Digest(digest)) => {
            Some(format!("{}@{digest}", reference.repository()))
        }
        _ => tag_name_of(reference),
    }
}

/// The name of an image with a tag in the index.
pub(super) fn tag_name_of(reference: &Reference) -> Option<String> {
    match (reference.repository(), reference.selector()) {
        (repository @ Repository::Registry { .. }, Selector::Tag(tag)) => {
            Some(format!("{repository}:{tag}"))
        }
        _ => None,
    }
}

/// The entry with this reference.
pub(super) fn find<'a>(index: &'a LayoutIndex, reference: &Reference) -> Option<&'a Descriptor> {
    match reference.selector() {
        Selector::Digest(digest) => {
            let name = names_of(index, reference.repository(), digest)
                .into_iter()
                .next()?;
            index.named(&name)
        }
        Selector::Tag(_) | Selector::Only | Selector::Rule(_) => {
            index.named(&tag_name_of(reference)?)
        }
    }
}

/// Every name that a digest has in one repository.
pub(super) fn names_of(
    index: &LayoutIndex,
    repository: &Repository,
    digest: &Digest,
) -> Vec<String> {
    let repository = repository.to_string();
    let ours = |name: &str| {
        name.strip_prefix(&repository)
            .is_some_and(|rest| rest.starts_with([':', '@']))
    };
    let named = index
        .names()
        .filter(|(name, entry)| entry.digest == *digest && ours(name));
    named.map(|(name, _)| name.to_owned()).collect()
}

/// The name of a digest's signatures, without a suffix such as `.sig`.
fn signature_prefix(repository: &Repository, digest: &Digest) -> String {
    format!("{repository}:{}-{}", digest.algorithm(), digest.hex())
}

/// The names of all signatures in the index without their suffixes: one pass for any number of
/// images.
pub(super) fn signature_prefixes(index: &LayoutIndex) -> HashSet<String> {
    let names = index.names().filter_map(|(name, _)| {
        let (repository, tag) = name.rsplit_once(':')?;
        let stem = tag.split('.').next().unwrap_or(tag);
        is_signature_tag(tag).then(|| format!("{repository}:{stem}"))
    });
    names.collect()
}

/// The names of a digest's signatures: the index of referrers, cosign's `.sig` and the like.
pub(super) fn signature_names(
    index: &LayoutIndex,
    repository: &Repository,
    digest: &Digest,
) -> Vec<String> {
    let prefix = signature_prefix(repository, digest);
    let ours = |name: &str| {
        name.strip_prefix(&prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    index
        .names()
        .filter(|(name, _)| ours(name))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Whether a tag is `sha256-<64 hex>`, with or without a suffix.
pub(super) fn is_signature_tag(tag: &str) -> bool {
    let Some((algorithm, rest)) = tag.split_once('-') else {
        return false;
    };
    let hex = rest.split('.').next().unwrap_or(rest);
    format!("{algorithm}:{hex}").parse::<Digest>().is_ok()
}
