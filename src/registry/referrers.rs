//! Referrers of a manifest: the lists that name them, and the index under the referrers tag where
//! the registry has no referrers API (distribution-spec, "Unavailable Referrers API").

use std::collections::HashSet;

use bytes::Bytes;

use super::{error::RegistryError, listing::Listing};
use crate::oci::{Descriptor, Digest, LayoutIndex, Manifest};

/// The referrers of an artifact.
#[derive(Debug, Default)]
pub struct Referrers {
    /// Descriptors of manifests.
    pub entries: Vec<Descriptor>,
    /// One sentence for each list or entry that can't be used.
    pub skipped: Vec<String>,
    /// Why a list or its end is missing: the registry did not deliver it.
    pub failure: Option<RegistryError>,
}

impl Referrers {
    /// Adds the entries that are not there yet.
    pub fn merge(&mut self, other: Self) {
        self.skipped.extend(other.skipped);
        self.failure = self.failure.take().or(other.failure);
        let known = std::mem::take(&mut self.entries);
        // Sizes in lists are not verified, and a wrong one must not hide the right one.
        let mut seen = HashSet::new();
        self.entries = known
            .into_iter()
            .chain(other.entries)
            .filter(|entry| seen.insert((entry.digest.clone(), entry.size)))
            .collect();
    }
}

impl From<Listing> for Referrers {
    fn from(listing: Listing) -> Self {
        Self {
            entries: listing.entries,
            skipped: listing.skipped,
            failure: listing.failure,
        }
    }
}

/// The tag of the index of referrers (distribution-spec, "Referrers Tag Schema").
pub(super) fn referrers_tag(subject: &Digest) -> String {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm(), &hex[..hex.len().min(64)])
}

/// An index of referrers with one more entry; `None` where it has that entry. Everything else in
/// the index is kept.
pub(super) fn with_referrer(
    index: Option<&Manifest>,
    entry: &Descriptor,
) -> Result<Option<Bytes>, serde_json::Error> {
    let mut index: serde_json::Value = match index {
        Some(index) => serde_json::from_slice(index.raw())?,
        None => serde_json::from_slice(&LayoutIndex::default().to_bytes()?)?,
    };
    let Some(entries) = index
        .get_mut("manifests")
        .and_then(serde_json::Value::as_array_mut)
    else {
        return Err(serde::de::Error::custom("it has no list of manifests"));
    };
    if entries.iter().any(|known| {
        known.get("digest").and_then(serde_json::Value::as_str) == Some(entry.digest.as_str())
    }) {
        return Ok(None);
    }
    entries.push(serde_json::to_value(entry)?);
    serde_json::to_vec(&index).map(|bytes| Some(bytes.into()))
}

pub(super) fn not_an_index(tag: &str, host: &str, error: &serde_json::Error) -> RegistryError {
    let reason = format!("{tag} is not an index of referrers: {error}");
    RegistryError::Protocol {
        operation: "attach",
        host: host.to_owned(),
        reason,
    }
}
