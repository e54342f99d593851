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
const EVIDENCE: &str = "dev.bundlegate.evidence";
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
    pub(super) layer: Digest,
    pub(super) layer_size: u64,
    pub(super) evidence: Digest,
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
    pub(super) fn blobs(&self) -> [&Digest; 3] {
        [&self.manifest, &self.layer, &self.evidence]
    }

    pub(super) fn layer_descriptor(&self) -> Descriptor {
        Descriptor::new(
            media_type::LAYER_TAR_GZIP,
            self.layer.clone(),
            self.layer_size,
        )
    }

    pub(super) fn to_entry(&self) -> Descriptor {
        let mut annotations = BTreeMap::from([
            (BUNDLE, self.bundle.clone()),
            (REFERENCE, self.reference.clone()),
            (IDENTITY, self.identity.clone()),
            (LAYER, self.layer.to_string()),
            (LAYER_SIZE, self.layer_size.to_string()),
            (EVIDENCE, self.evidence.to_string()),
        ]);
        if let Some(checked) = self.checked {
            annotations.insert(CHECKED, checked.to_string());
        }
        if let Some(Acceptance { policy, roots }) = &self.accepted {
            annotations.insert(POLICY, policy.clone());
            annotations.insert(ROOTS, roots.join(" "));
        }
        let mut entry = Descriptor::new(
            media_type::OCI_MANIFEST,
            self.manifest.clone(),
            self.manifest_size,
        );
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
            layer: entry.annotation(LAYER)?.parse().ok()?,
            layer_size: entry.annotation(LAYER_SIZE)?.parse().ok()?,
            evidence: entry.annotation(EVIDENCE)?.parse().ok()?,
            checked,
            accepted,
        })
    }
}
