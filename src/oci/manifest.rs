//! Manifests and descriptors (OCI image-spec 1.1, `manifest.md`, `image-index.md`).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Digest, StrictJsonError, strict_json};

/// The media types that this program reads or writes.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker's manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A gzip-compressed tarball layer.
    pub const LAYER_TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// The config type of OPA's and the policy CLI's artifacts.
    pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// The empty JSON object.
    pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
}

/// A reference to a blob or manifest by media type, digest and size.
///
/// `urls` and `data` are deliberately not read: the first makes a client fetch from any host that
/// a manifest's author chooses, the second bypasses the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
    /// Media type of an artifact's content, where the descriptor points at a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The platform of an index's entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<serde_json::Value>,
}

/// A new image manifest. The order of its members is fixed, so that the same parts have the same
/// digest everywhere.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewManifest {
    schema_version: u32,
    media_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl NewManifest {
    /// A manifest with these layers and the config [`NewManifest::CONFIG`].
    pub fn new(config_type: &str, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST,
            artifact_type: None,
            config: Descriptor::of(config_type, Self::CONFIG),
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The empty config blob.
    pub const CONFIG: &[u8] = b"{}";

    /// Replaces the config, and keeps its media type.
    #[must_use]
    pub fn configured(self, config: &[u8]) -> Self {
        Self {
            config: Descriptor::of(&self.config.media_type, config),
            ..self
        }
    }

    /// Makes it a referrer of `subject`.
    #[must_use]
    pub fn referring(self, artifact_type: &str, subject: Descriptor) -> Self {
        // The annotations are dropped, because they belong to the list in which the descriptor was
        // found.
        let subject = Descriptor::new(&subject.media_type, subject.digest, subject.size);
        Self {
            artifact_type: Some(artifact_type.to_owned()),
            subject: Some(subject),
            ..self
        }
    }

    /// Adds annotations.
    #[must_use]
    pub fn annotated(mut self, annotations: impl IntoIterator<Item = (String, String)>) -> Self {
        self.annotations.extend(annotations);
        self
    }

    /// The manifest's bytes.
    ///
    /// # Errors
    /// Never in practice: every part is a string or a number.
    pub fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(self).map(Bytes::from)
    }
}

impl Descriptor {
    /// The descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::sha256(bytes), bytes.len() as u64)
    }

    /// A descriptor with the three required fields.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self {
            media_type,
            digest,
            size,
            artifact_type: None,
            annotations: None,
            platform: None,
        }
    }

    /// The sum of the sizes, saturating: a manifest may state any number.
    pub fn total(all: &[Self]) -> u64 {
        all.iter().fold(0, |sum, one| one.size.saturating_add(sum))
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// A manifest or index with its original bytes.
///
/// The digest is computed from the bytes, never taken from a header.
#[derive(Debug, Clone)]
pub struct Manifest {
    raw: Bytes,
    digest: Digest,
    document: Document,
    media_type: Option<String>,
    artifact_type: Option<String>,
    annotations: BTreeMap<String, String>,
}

/// The two kinds of manifest.
#[derive(Debug, Clone)]
pub enum Document {
    /// An image manifest (or Docker schema 2).
    Image {
        /// The config blob.
        config: Box<Descriptor>,
        /// The layers, in order.
        layers: Vec<Descriptor>,
        /// The manifest that this one refers to.
        subject: Option<Box<Descriptor>>,
    },
    /// An image index (or Docker manifest list).
    Index {
        /// The entries, in order.
        manifests: Vec<Descriptor>,
    },
}

/// An error in the bytes of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than the configured limit.
    #[error("manifest of {size} bytes exceeds the limit of {limit} bytes (limits.manifest)")]
    TooLarge {
        /// The length of the bytes, or the size in the descriptor.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Duplicate keys, trailing data, nested too deep, or not JSON.
    #[error("manifest: {0}")]
    NotStrict(#[from] StrictJsonError),
    /// The document does not have the members of a manifest.
    #[error("manifest: {0}")]
    Shape(String),
    /// The document has both `layers` and `manifests`, so two readers may use different content
    /// (CVE-2021-41190).
    #[error("manifest has both layers and manifests")]
    Ambiguous,
    /// `mediaType` contradicts `Content-Type`.
    #[error("manifest has mediaType {field}, but the registry sent Content-Type {header}")]
    MediaType {
        /// The `mediaType` field.
        field: String,
        /// The `Content-Type` header.
        header: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// Parses `raw` as a manifest of at most `limit` bytes. A `content_type` that names a type
    /// must not contradict the `mediaType` field or the kind of manifest (distribution-spec,
    /// "Pulling manifests").
    ///
    /// # Errors
    /// See [`ManifestError`]; every error but `MediaType` is a property of the bytes, so final for
    /// them.
    pub fn parse(
        raw: Bytes,
        content_type: Option<&str>,
        limit: u64,
    ) -> Result<Self, ManifestError> {
        let size = raw.len() as u64;
        if size > limit {
            return Err(ManifestError::TooLarge { size, limit });
        }
        strict_json(&raw)?;
        let parsed: Raw = serde_json::from_slice(&raw)
            .map_err(|error| ManifestError::Shape(error.to_string()))?;
        if parsed.schema_version != 2 {
            return Err(ManifestError::Shape(format!(
                "schemaVersion is {}, not 2",
                parsed.schema_version
            )));
        }
        check_media_type(parsed.media_type.as_deref(), content_type)?;
        let document = match (parsed.layers, parsed.manifests) {
            (Some(_), Some(_)) => return Err(ManifestError::Ambiguous),
            (None, Some(manifests)) => Document::Index { manifests },
            (layers, None) => {
                let config = parsed
                    .config
                    .ok_or_else(|| ManifestError::Shape("neither config nor manifests".into()))?;
                Document::Image {
                    config: Box::new(config),
                    layers: layers.unwrap_or_default(),
                    subject: parsed.subject.map(Box::new),
                }
            }
        };
        check_kind(parsed.media_type.as_deref(), &document)?;
        check_untyped(parsed.media_type.as_deref(), content_type, &document)?;
        Ok(Self {
            digest: Digest::sha256(&raw),
            raw,
            document,
            media_type: parsed.media_type,
            artifact_type: parsed.artifact_type,
            annotations: parsed.annotations.unwrap_or_default(),
        })
    }

    /// The original bytes.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// SHA-256 of [`Self::raw`].
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The `mediaType` field, or where it is missing the OCI type of this kind of manifest.
    pub fn media_type(&self) -> &str {
        let default = match &self.document {
            Document::Image { .. } => media_type::OCI_MANIFEST,
            Document::Index { .. } => media_type::OCI_INDEX,
        };
        self.media_type.as_deref().unwrap_or(default)
    }

    /// The descriptor of this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type(),
            self.digest.clone(),
            self.raw.len() as u64,
        )
    }

    /// The descriptor of this manifest in an index of referrers, with its artifact type and its
    /// annotations (distribution-spec, "Listing Referrers").
    pub fn as_referrer(&self) -> Descriptor {
        let config_type = match &self.document {
            Document::Image { config, .. } => Some(config.media_type.clone()),
            Document::Index { .. } => None,
        };
        Descriptor {
            artifact_type: self.artifact_type.clone().or(config_type),
            annotations: (!self.annotations.is_empty()).then(|| self.annotations.clone()),
            ..self.descriptor()
        }
    }

    /// The kind of manifest, with its descriptors.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// The layers of an image manifest; an index has none.
    pub fn layers(&self) -> &[Descriptor] {
        match &self.document {
            Document::Image { layers, .. } => layers,
            Document::Index { .. } => &[],
        }
    }

    /// The manifest that this one refers to, if it is a referrer.
    pub fn subject(&self) -> Option<&Descriptor> {
        match &self.document {
            Document::Image { subject, .. } => subject.as_deref(),
            Document::Index { .. } => None,
        }
    }

    /// `artifactType`, where present.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// The manifest's own annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }
}

fn check_media_type(field: Option<&str>, content_type: Option<&str>) -> Result<(), ManifestError> {
    let (Some(field), Some(header)) = (field, content_type) else {
        return Ok(());
    };
    if media_types_agree(field, header) {
        return Ok(());
    }
    Err(ManifestError::MediaType {
        field: field.to_owned(),
        header: header.to_owned(),
    })
}

/// Whether a `Content-Type` agrees with a `mediaType`. Parameters and the case of letters don't
/// matter (RFC 9110 §8.3.1). A generic type agrees with any other: registries and object stores
/// that lost the type send one.
pub(crate) fn media_types_agree(field: &str, header: &str) -> bool {
    let header = header.split(';').next().unwrap_or_default().trim();
    let generic = [
        "",
        "application/json",
        "application/octet-stream",
        "binary/octet-stream",
        "text/plain",
    ];
    let same = |other: &str| other.eq_ignore_ascii_case(header);
    same(field) || generic.into_iter().any(same)
}

/// Checks that the `Content-Type` of a document without `mediaType` does not name the other kind
/// of manifest.
fn check_untyped(
    field: Option<&str>,
    content_type: Option<&str>,
    document: &Document,
) -> Result<(), ManifestError> {
    let (None, Some(header)) = (field, content_type) else {
        return Ok(());
    };
    let (kind, others) = match document {
        Document::Image { .. } => (
            media_type::OCI_MANIFEST,
            [media_type::OCI_INDEX, media_type::DOCKER_LIST],
        ),
        Document::Index { .. } => (
            media_type::OCI_INDEX,
            [media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST],
        ),
    };
    let named = header.split(';').next().unwrap_or_default().trim();
    if others.iter().any(|other| other.eq_ignore_ascii_case(named)) {
        return Err(ManifestError::MediaType {
            field: kind.to_owned(),
            header: header.to_owned(),
        });
    }
    Ok(())
}

/// Checks that the `mediaType` field names the kind of manifest that the members form.
fn check_kind(field: Option<&str>, document: &Document) -> Result<(), ManifestError> {
    let fits = match (field, document) {
        (None, _) => true,
        (Some(field), Document::Image { .. }) => {
            [media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST].contains(&field)
        }
        (Some(field), Document::Index { .. }) => {
            [media_type::OCI_INDEX, media_type::DOCKER_LIST].contains(&field)
        }
    };
    if fits {
        return Ok(());
    }
    Err(ManifestError::Shape(format!(
        "mediaType {:?} does not fit its members",
        field.unwrap_or_default()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn image() -> String {
        let layer =
            serde_json::to_string(&Descriptor::of(media_type::LAYER_TAR_GZIP, b"x")).unwrap();
        let config =
            serde_json::to_string(&Descriptor::of(media_type::IMAGE_CONFIG, b"{}")).unwrap();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{layer}]}}"#,
            media_type::OCI_MANIFEST
        )
    }

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(text.to_owned().into(), None, LIMIT)
    }

    #[test]
    fn the_digest_is_that_of_the_bytes() {
        let text = image();
        let manifest = parse(&text).unwrap();
        assert_eq!(manifest.digest(), &Digest::sha256(text.as_bytes()));
        assert_eq!(manifest.layers().len(), 1);
        assert_eq!(manifest.raw(), text.as_bytes());
    }

    #[test]
    fn an_index_is_distinguished_from_an_image() {
        let manifest = parse(r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        assert!(
            matches!(manifest.document(), Document::Index { manifests } if manifests.is_empty())
        );
    }

    #[test]
    fn confusion_between_kinds_is_refused() {
        let both = image().replacen("\"layers\"", "\"manifests\":[],\"layers\"", 1);
        assert_eq!(parse(&both).unwrap_err(), ManifestError::Ambiguous);
        let wrong = image().replacen(media_type::OCI_MANIFEST, media_type::OCI_INDEX, 1);
        assert!(matches!(
            parse(&wrong).unwrap_err(),
            ManifestError::Shape(_)
        ));
        let other = Manifest::parse(image().into(), Some(media_type::DOCKER_MANIFEST), LIMIT);
        assert!(matches!(
            other.unwrap_err(),
            ManifestError::MediaType { .. }
        ));
        let untyped = r#"{"schemaVersion":2,"manifests":[]}"#;
        for other in [
            media_type::OCI_MANIFEST,
            "Application/VND.docker.distribution.manifest.v2+json",
        ] {
            let error = Manifest::parse(untyped.into(), Some(other), LIMIT).unwrap_err();
            assert!(matches!(error, ManifestError::MediaType { .. }), "{error}");
        }
        Manifest::parse(untyped.into(), Some(media_type::DOCKER_LIST), LIMIT).unwrap();
    }

    #[test]
    fn a_content_type_in_another_spelling_or_a_generic_one_contradicts_nothing() {
        for header in [
            "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
            "Application/VND.OCI.image.Manifest.v1+JSON",
            " application/vnd.oci.image.manifest.v1+json ;q=1",
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/octet-stream",
            "binary/octet-stream",
            "text/plain; charset=utf-8",
            "",
        ] {
            Manifest::parse(image().into(), Some(header), LIMIT).unwrap();
        }
        for header in [media_type::OCI_INDEX, "text/html", "application/vnd.oci"] {
            let error = Manifest::parse(image().into(), Some(header), LIMIT).unwrap_err();
            assert!(matches!(error, ManifestError::MediaType { .. }), "{error}");
        }
    }

    #[test]
    fn limits_duplicates_and_schema_one_are_refused() {
        let text = image();
        let error = Manifest::parse(text.clone().into(), None, text.len() as u64 - 1).unwrap_err();
        assert!(matches!(error, ManifestError::TooLarge { .. }));
        let twice = text.replacen(
            "\"schemaVersion\":2",
            "\"schemaVersion\":2,\"schemaVersion\":2",
            1,
        );
        assert!(matches!(
            parse(&twice).unwrap_err(),
            ManifestError::NotStrict(_)
        ));
        assert!(matches!(
            parse(r#"{"schemaVersion":1,"manifests":[]}"#).unwrap_err(),
            ManifestError::Shape(_)
        ));
    }

    #[test]
    fn the_sum_of_sizes_does_not_overflow() {
        let of = |size| Descriptor {
            size,
            ..Descriptor::of("", b"")
        };
        assert_eq!(Descriptor::total(&[of(3), of(4)]), 7);
        assert_eq!(Descriptor::total(&[of(u64::MAX), of(2)]), u64::MAX);
    }
}
