//! A bundle as an OCI artifact: one gzip layer under an image config of `{}`, which OPA's own
//! downloader, oras and the policy CLI can read.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Packed;
use crate::oci::{Blob, Descriptor, NewManifest, media_type};

/// A bundle and the manifest that refers to it.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The manifest's descriptor.
    pub descriptor: Descriptor,
    /// The bundle.
    pub layer: Blob,
}

/// The annotations of an artifact that its author chooses.
#[derive(Debug, Clone)]
pub struct Annotations {
    /// The time of creation, in RFC 3339. The default is the epoch, because a reproducible build
    /// has no clock.
    pub created: String,
    /// Further annotations, set on the manifest and on the layer.
    pub further: BTreeMap<String, String>,
}

impl Default for Annotations {
    fn default() -> Self {
        Self {
            created: "1970-01-01T00:00:00Z".to_owned(),
            further: BTreeMap::new(),
        }
    }
}

impl Artifact {
    /// Makes the artifact of a packed bundle. Its bytes depend on the bundle and the annotations
    /// only, so the same bundle has the same digest on every machine and day.
    ///
    /// # Errors
    /// Never in practice: every part is a string or a number.
    pub fn new(packed: &Packed, chosen: &Annotations) -> Result<Self, serde_json::Error> {
        let layer = packed.bundle.blob().clone();
        let version = if packed.bundle.manifest().rego_version == Some(0) {
            "rego.v0"
        } else {
            "rego.v1"
        };
        let mut annotations: BTreeMap<String, String> = [
            ("org.opencontainers.image.created", chosen.created.as_str()),
            (
                "org.opencontainers.image.revision",
                packed.bundle.revision().as_str(),
            ),
            ("org.opencontainers.image.title", "bundle.tar.gz"),
            ("org.openpolicyregistry.type", "policy"),
            ("rego.version", version),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        annotations.extend(chosen.further.clone());
        let mut described = Descriptor::new(
            media_type::LAYER_TAR_GZIP,
            layer.digest().clone(),
            layer.size(),
        );
        described.annotations = Some(annotations.clone());
        let manifest = NewManifest::new(media_type::IMAGE_CONFIG, vec![described])
            .annotated(annotations)
            .to_bytes()?;
        Ok(Self {
            descriptor: Descriptor::of(media_type::OCI_MANIFEST, &manifest),
            manifest,
            layer,
        })
    }
}
