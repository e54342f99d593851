//! A bundle as an OCI artifact, in the shape that OPA's own downloader, oras and the policy
//! CLI read: one gzip layer under an image config of `{}`.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Packed;
use crate::oci::{Blob, Descriptor, NewManifest, media_type};

/// A bundle with the manifest that names it.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The manifest's descriptor.
    pub descriptor: Descriptor,
    /// The bundle.
    pub layer: Blob,
}

/// What its author says about an artifact.
#[derive(Debug, Clone)]
pub struct Labels {
    /// When it was made, in RFC 3339. Reproducible builds have no clock: it is the epoch
    /// unless somebody says otherwise.
    pub created: String,
    /// More annotations, on the manifest and on the layer.
    pub annotations: BTreeMap<String, String>,
}

impl Default for Labels {
    fn default() -> Self {
        Self { created: "1970-01-01T00:00:00Z".to_owned(), annotations: BTreeMap::new() }
    }
}

impl Artifact {
    /// The artifact of a packed bundle. Nothing but the bundle and the labels decides its
    /// bytes, so the same bundle has the same digest on every machine and day.
    ///
    /// # Errors
    /// Never in practice: every part is a string or a number.
    pub fn new(packed: &Packed, labels: &Labels) -> Result<Self, serde_json::Error> {
        let layer = packed.bundle.blob().clone();
        let version = if packed.bundle.manifest().rego_version == Some(0) { "rego.v0" } else { "rego.v1" };
        let mut annotations: BTreeMap<String, String> = [
            ("org.opencontainers.image.created", labels.created.as_str()),
            ("org.opencontainers.image.revision", packed.bundle.revision().as_str()),
            ("org.opencontainers.image.title", "bundle.tar.gz"),
            ("org.openpolicyregistry.type", "policy"),
            ("rego.version", version),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        annotations.extend(labels.annotations.clone());
        let mut described = Descriptor::new(media_type::LAYER_TAR_GZIP, layer.digest().clone(), layer.size());
        described.annotations = Some(annotations.clone());
        let manifest = NewManifest::new(media_type::IMAGE_CONFIG, vec![described]).annotated(annotations).to_bytes()?;
        Ok(Self { descriptor: Descriptor::of(media_type::OCI_MANIFEST, &manifest), manifest, layer })
    }
}
