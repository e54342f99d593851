//! Signature material as it came from a registry. Nothing in it is trusted.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{oci::PinnedReference, registry::RegistryError};

/// All signature material for one digest, in a form that can be stored and verified again.
/// Results of verification are never stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Evidence {
    pub(super) legacy: Vec<LegacySignature>,
    pub(super) bundles: Vec<SignatureBundle>,
    /// Notes about material that could not be used.
    #[serde(default)]
    pub(super) skipped: Vec<String>,
    /// The error with which the registry failed to deliver a listed piece, which may be the missing
    /// signature.
    #[serde(skip)]
    pub(super) unavailable: Option<Arc<RegistryError>>,
    /// Whether the referrers API was not asked because of earlier answers.
    #[serde(skip)]
    pub(super) api_assumed_missing: bool,
    /// The artifact beside which a refused tag counted as a missing one.
    #[serde(skip)]
    pub(super) denied_beside: Option<PinnedReference>,
    /// Set where `limits.evidence` left candidates unread.
    #[serde(skip)]
    pub(super) beyond_limit: Option<BeyondLimit>,
}

/// The share of the candidates that `limits.evidence` allowed to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeyondLimit {
    /// The number of candidates that were read.
    pub checked: usize,
    /// The number of candidates in the registry's lists.
    pub listed: usize,
    /// `limits.evidence` in bytes.
    pub limit: u64,
}

impl fmt::Display for BeyondLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            checked,
            listed,
            limit,
        } = self;
        write!(
            f,
            "{checked} of {listed} attached candidates were checked within {limit} bytes; raise \
             limits.evidence, or keep the signatures in a repository of their own \
             (trust.policies.NAME.signatures.repository)"
        )
    }
}

/// A layer of the image at the `.sig` tag (cosign, `specs/SIGNATURE_SPEC.md`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct LegacySignature {
    /// The annotation [`cosign::SIGNATURE`](crate::oci::cosign::SIGNATURE).
    pub(super) signature: String,
    /// The simple signing payload.
    #[serde(with = "base64_bytes")]
    pub(super) payload: Bytes,
    /// The signer's certificate and the others of its chain, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chain: Option<String>,
    /// Rekor's response, JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) log_entry: Option<String>,
    /// The timestamp authority's response, JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timestamp: Option<String>,
}

/// A Sigstore bundle and the manifest that attaches it (cosign, `specs/BUNDLE_SPEC.md`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SignatureBundle {
    #[serde(with = "base64_bytes")]
    pub(super) referrer: Bytes,
    #[serde(with = "base64_bytes")]
    pub(super) bundle: Bytes,
}

/// Stored evidence that can't be parsed.
#[derive(Debug, thiserror::Error)]
#[error("stored evidence: {0}")]
pub struct EvidenceError(String);

impl Evidence {
    /// The number of candidate signatures.
    pub fn len(&self) -> usize {
        self.legacy.len() + self.bundles.len()
    }

    /// Whether there is no candidate signature.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The error because of which the evidence may be incomplete: the registry did not deliver a
    /// listed piece. It matters only if the verification fails.
    pub fn unavailable(&self) -> Option<&RegistryError> {
        self.unavailable.as_deref()
    }

    /// Whether the referrers API was not asked, because earlier answers say that the registry has
    /// none ([`ReferrersApi::AskUnlessMissing`](super::ReferrersApi::AskUnlessMissing)). It must be
    /// asked before a failed verification counts.
    pub fn api_assumed_missing(&self) -> bool {
        self.api_assumed_missing
    }

    /// The artifact, if the registry refused a tag that may have signatures of it (401 or 403),
    /// which counted as a missing tag because the artifact could be read. If it can't be read any
    /// more when a verification fails, the refusal is no fact about the tag.
    pub fn denied_beside(&self) -> Option<&PinnedReference> {
        self.denied_beside.as_ref()
    }

    /// The share of the candidates that was read, where `limits.evidence` left others unread. It
    /// matters only if the verification fails.
    pub fn beyond_limit(&self) -> Option<BeyondLimit> {
        self.beyond_limit
    }

    /// Parses the bytes that [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// When they are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EvidenceError> {
        serde_json::from_slice(bytes).map_err(|error| EvidenceError(error.to_string()))
    }

    /// The evidence as bytes, for storage.
    ///
    /// # Errors
    /// Never in practice: every part is a string.
    pub fn to_bytes(&self) -> Result<Bytes, EvidenceError> {
        serde_json::to_vec(self)
            .map(Bytes::from)
            .map_err(|error| EvidenceError(error.to_string()))
    }
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        bytes: &Bytes,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(text)
            .map(Bytes::from)
            .map_err(de::Error::custom)
    }
}
