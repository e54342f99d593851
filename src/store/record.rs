//! The entries of the index on disk; [`super`] describes them.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Acceptance;
use crate::oci::{Descriptor, Digest, media_type};

/// The media type of a [`HistoryEntry`].
const HISTORY: &str = "application/vnd.bundlegate.history.v1+json";

const BUNDLE: &str = "dev.bundlegate.bundle";
const REFERENCE: &str = "dev.bundlegate.reference";
const IDENTITY: &str = "dev.bundlegate.identity";
const LAYER: &str = "dev.bundlegate.layer";
const LAYER_SIZE: &str = "dev.bundlegate.layer.size";
const LAYERS: &str = "dev.bundlegate.layers";
const MANIFESTS: &str = "dev.bundlegate.manifests";
const EVIDENCE: &str = "dev.bundlegate.evidence";
const EVIDENCES: &str = "dev.bundlegate.evidences";
const CHECKED: &str = "dev.bundlegate.checked";
const POLICY: &str = "dev.bundlegate.policy";
const ROOTS: &str = "dev.bundlegate.roots";

/// The entry of a served bundle: a manifest with annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) bundle: String,
    pub(super) reference: String,
    /// The repository and credential that delivered it.
    pub(super) identity: String,
    pub(super) manifest: Digest,
    pub(super) manifest_size: u64,
    /// The manifests to which an index leads, that of the image last; empty if `manifest` is that
    /// of the image.
    pub(super) below: Vec<Digest>,
    /// The layers that the bundle was made from, each with its size; at least one.
    pub(super) layers: Vec<(Digest, u64)>,
    /// The signature material of `manifest` and of those below it; at least one piece.
    pub(super) evidence: Vec<Digest>,
    /// When the registry last confirmed it, if that is recorded.
    pub(super) checked: Option<Timestamp>,
    /// The policy and trust roots that accepted it; absent in the records of older versions.
    pub(super) accepted: Option<Acceptance>,
}

/// The entry of a bundle's history, which outlives its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HistoryEntry {
    /// [`Record::key`].
    pub(super) key: (String, String),
    pub(super) history: Digest,
    pub(super) size: u64,
}

impl HistoryEntry {
    pub(super) fn to_entry(&self) -> Descriptor {
        let (bundle, reference) = self.key.clone();
        let mut entry = Descriptor::new(HISTORY, self.history.clone(), self.size);
        entry.annotations = Some(BTreeMap::from([
            (BUNDLE.to_owned(), bundle),
            (REFERENCE.to_owned(), reference),
        ]));
        entry
    }

    pub(super) fn from_entry(entry: &Descriptor) -> Option<Self> {
        if entry.media_type != HISTORY {
            return None;
        }
        let key = (
            entry.annotation(BUNDLE)?.to_owned(),
            entry.annotation(REFERENCE)?.to_owned(),
        );
        Some(Self {
            key,
            history: entry.digest.clone(),
            size: entry.size,
        })
    }
}

impl Record {
    /// Bundle and reference: a changed reference does not find the old record.
    pub(super) fn key(&self) -> (String, String) {
        (self.bundle.clone(), self.reference.clone())
    }

    /// The blobs that the entry names.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        [&self.manifest]
            .into_iter()
            .chain(&self.below)
            .chain(self.layers.iter().map(|(layer, _)| layer))
            .chain(&self.evidence)
    }

    /// The layers, to load them.
    pub(super) fn layer_descriptors(&self) -> impl Iterator<Item = Descriptor> {
        self.layers
            .iter()
            .map(|(layer, size)| Descriptor::new(media_type::LAYER_TAR_GZIP, layer.clone(), *size))
    }

    pub(super) fn to_entry(&self) -> Descriptor {
        let mut annotations = BTreeMap::from([
            (BUNDLE, self.bundle.clone()),
            (REFERENCE, self.reference.clone()),
            (IDENTITY, self.identity.clone()),
        ]);
        if let Some((layer, size)) = self.layers.first() {
            annotations.insert(LAYER, layer.to_string());
            annotations.insert(LAYER_SIZE, size.to_string());
        }
        annotations.extend(
            self.evidence
                .first()
                .map(|first| (EVIDENCE, first.to_string())),
        );
        if self.layers.len() > 1 {
            let layers = self
                .layers
                .iter()
                .map(|(layer, size)| format!("{layer} {size}"));
            annotations.insert(LAYERS, layers.collect::<Vec<_>>().join(" "));
        }
        if self.evidence.len() > 1 {
            annotations.insert(EVIDENCES, joined(&self.evidence));
        }
        if !self.below.is_empty() {
            annotations.insert(MANIFESTS, joined(&self.below));
        }
        if let Some(checked) = self.checked {
            annotations.insert(CHECKED, checked.to_string());
        }
        if let Some(Acceptance { policy, roots }) = &self.accepted {
            annotations.insert(POLICY, policy.clone());
            annotations.insert(ROOTS, roots.join(" "));
        }
        let kind = if self.below.is_empty() {
            media_type::OCI_MANIFEST
        } else {
            media_type::OCI_INDEX
        };
        let mut entry = Descriptor::new(kind, self.manifest.clone(), self.manifest_size);
        entry.annotations = Some(
            annotations
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        );
        entry
    }

    /// `None` for an entry that a cache does not write.
    pub(super) fn from_entry(entry: &Descriptor) -> Option<Self> {
        let checked = match entry.annotation(CHECKED) {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        let accepted = entry.annotation(POLICY).zip(entry.annotation(ROOTS));
        let accepted = accepted.map(|(policy, roots)| Acceptance {
            policy: policy.to_owned(),
            roots: roots.split_whitespace().map(str::to_owned).collect(),
        });
        Some(Self {
            bundle: entry.annotation(BUNDLE)?.to_owned(),
            reference: entry.annotation(REFERENCE)?.to_owned(),
            identity: entry.annotation(IDENTITY)?.to_owned(),
            manifest: entry.digest.clone(),
            manifest_size: entry.size,
            below: match entry.annotation(MANIFESTS) {
                Some(below) => digests(below)?,
                None => Vec::new(),
            },
            layers: layers(entry)?,
            evidence: evidence(entry)?,
            checked,
            accepted,
        })
    }
}

fn layers(entry: &Descriptor) -> Option<Vec<(Digest, u64)>> {
    let first = (
        entry.annotation(LAYER)?.parse().ok()?,
        entry.annotation(LAYER_SIZE)?.parse().ok()?,
    );
    let Some(all) = entry.annotation(LAYERS) else {
        return Some(vec![first]);
    };
    let words: Vec<_> = all.split_whitespace().collect();
    let layers = words.chunks(2).map(|layer| match layer {
        [digest, size] => Some((digest.parse().ok()?, size.parse().ok()?)),
        _ => None,
    });
    layers
        .collect::<Option<Vec<_>>>()
        .filter(|layers| layers.first() == Some(&first))
}

fn evidence(entry: &Descriptor) -> Option<Vec<Digest>> {
    let first = entry.annotation(EVIDENCE)?.parse().ok()?;
    match entry.annotation(EVIDENCES) {
        Some(all) => digests(all).filter(|all| all.first() == Some(&first)),
        None => Some(vec![first]),
    }
}

fn digests(text: &str) -> Option<Vec<Digest>> {
    text.split_whitespace()
        .map(|digest| digest.parse().ok())
        .collect()
}

fn joined(digests: &[Digest]) -> String {
    let texts: Vec<_> = digests.iter().map(Digest::as_str).collect();
    texts.join(" ")
}
