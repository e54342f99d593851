//! The bundles in the cache.

use bytes::Bytes;
use jiff::Timestamp;

use crate::oci::{Blob, Digest, ManifestPath};

/// A served bundle with everything that proves it, for [`Store::put`](super::Store::put).
#[derive(Debug)]
pub struct StoredBundle<'a> {
    /// The bundle's name.
    pub name: &'a str,
    /// The reference as configured.
    pub reference: &'a str,
    /// [`Source::identity`](crate::registry::Source::identity) of the source that delivered it.
    pub identity: &'a str,
    /// The manifests from the one that the reference names to that of the image.
    pub path: &'a ManifestPath,
    /// The layers that the bundle was made from; at least one.
    pub layers: Vec<Blob>,
    /// The signature material of the first manifests of the path; at least one piece.
    pub evidence: Vec<Bytes>,
    /// When the registry last confirmed the bundle; `None` where that time is not needed.
    pub checked: Option<Timestamp>,
    /// The policy and the trust roots that accepted the manifest.
    pub accepted: Acceptance,
    /// The history of the bundle, this version included.
    pub history: Bytes,
}

/// The policy and the trust roots that accepted a bundle: for auditors, and for a restart at
/// which trust roots can't be refreshed. This is not a verdict, and nothing is trusted because
/// of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// The policy's revision.
    pub policy: String,
    /// The revisions of the trust roots that the policy relies on, in order.
    pub roots: Vec<String>,
}

/// A bundle that was served before, from [`Store::get`](super::Store::get). Every byte matches
/// its digest; nothing is verified.
#[derive(Debug)]
pub struct LoadedBundle {
    /// The digest that the reference named.
    pub digest: Digest,
    /// The bytes of the manifests of [`StoredBundle::path`].
    pub manifests: Vec<Bytes>,
    /// [`StoredBundle::layers`].
    pub layers: Vec<Blob>,
    /// [`StoredBundle::evidence`].
    pub evidence: Vec<Bytes>,
    /// The time last given to [`Store::put`](super::Store::put) or
    /// [`Store::touch`](super::Store::touch), by the clock of that moment.
    pub checked: Option<Timestamp>,
    /// The acceptance last given to [`Store::put`](super::Store::put) or
    /// [`Store::touch`](super::Store::touch).
    pub accepted: Option<Acceptance>,
}
