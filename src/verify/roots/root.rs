//! Trust roots: certificate authorities, transparency logs and timestamp authorities.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde_json::json;
use sigstore_verify::{
    Verifier,
    trust_root::{SIGSTORE_PRODUCTION_TRUSTED_ROOT, SIGSTORE_STAGING_TRUSTED_ROOT, TrustedRoot},
    types::DerCertificate,
};

use super::{UnusableRoot, freshness::Freshness, limit_validity::limit_validity};
use crate::oci::{Digest, strict_json};

/// The longest text of a root. The public-good instance's has 7 KiB.
pub(super) const MAX_LENGTH: usize = 1 << 20;
/// All versions of the format (protobuf-specs, `sigstore_trustroot.proto`).
const MEDIA_TYPES: [&str; 3] = [
    "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "application/vnd.dev.sigstore.trustedroot.v0.1+json",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
];
/// The content of a root that has not been fetched yet: it trusts nothing.
const EMPTY_ROOT: &str = r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.2+json"}"#;

/// A Sigstore trust root. Cheap to clone.
#[derive(Clone)]
pub struct TrustRoot {
    name: Arc<str>,
    revision: Digest,
    content: Arc<TrustedRoot>,
    verifier: Arc<Verifier>,
    pending: bool,
    freshness: Freshness,
}

/// An error in the text of a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a trusted root: {0}")]
pub struct BadRoot(String);

impl TrustRoot {
    /// The root of the public-good instance, as built into this program. It never expires.
    ///
    /// # Errors
    /// Never in practice: the root is built in.
    pub fn sigstore() -> Result<Self, BadRoot> {
        Self::named_sigstore("sigstore", Freshness::unlimited())
    }

    /// The root of Sigstore's staging instance, for tests of Sigstore itself.
    ///
    /// # Errors
    /// Never in practice: the root is built in.
    pub fn sigstore_staging() -> Result<Self, BadRoot> {
        Self::from_json("staging", SIGSTORE_STAGING_TRUSTED_ROOT)
    }

    /// Reads a `trusted_root.json`. The root never expires.
    ///
    /// # Errors
    /// When the text is not a trusted root.
    pub fn from_json(name: &str, text: &str) -> Result<Self, BadRoot> {
        Self::read(name, text, Freshness::unlimited())
    }

    pub(super) fn named_sigstore(name: &str, freshness: Freshness) -> Result<Self, BadRoot> {
        Self::read(name, SIGSTORE_PRODUCTION_TRUSTED_ROOT, freshness)
    }

    /// A root that its repository has not delivered yet.
    pub(super) fn pending(name: &str) -> Result<Self, BadRoot> {
        Ok(Self {
            pending: true,
            ..Self::from_json(name, EMPTY_ROOT)?
        })
    }

    pub(super) fn read(name: &str, text: &str, freshness: Freshness) -> Result<Self, BadRoot> {
        if text.len() > MAX_LENGTH {
            return Err(BadRoot(format!("{} bytes are too many", text.len())));
        }
        strict_json(text.as_bytes()).map_err(|error| BadRoot(error.to_string()))?;
        let content = TrustedRoot::from_json(text).map_err(|error| BadRoot(error.to_string()))?;
        if !MEDIA_TYPES.contains(&content.media_type.as_str()) {
            return Err(BadRoot(format!(
                "unknown mediaType {:?}",
                content.media_type
            )));
        }
        let content = limit_validity(content).map_err(BadRoot)?;
        let verifier = Verifier::new(&content).map_err(|error| BadRoot(error.to_string()))?;
        Ok(Self {
            name: name.into(),
            revision: Digest::sha256(text.as_bytes()),
            content: Arc::new(content),
            verifier: Arc::new(verifier),
            pending: false,
            freshness,
        })
    }

    /// The name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The digest of its content.
    pub fn revision(&self) -> &Digest {
        &self.revision
    }

    /// Whether it has not been fetched yet: it trusts nothing, and its content is not known.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// The time after which it accepts no new artifact; `None` = never. A refresh that finds the
    /// root unchanged moves it.
    pub fn expires(&self) -> Option<Timestamp> {
        self.freshness.expires()
    }

    /// The reason for which the root must not be used for a new artifact at `now`; `None` if it
    /// may.
    pub fn unusable_reason(&self, now: Timestamp) -> Option<UnusableRoot> {
        let root = || self.name.as_ref().to_owned();
        if self.pending {
            return Some(UnusableRoot::Pending { root: root() });
        }
        self.expires()
            .filter(|at| *at < now)
            .map(|at| UnusableRoot::Expired { root: root(), at })
    }

    /// Whether certificates need a signed certificate timestamp.
    pub fn has_ct_logs(&self) -> bool {
        self.pending || !self.content.ctlogs.is_empty()
    }

    /// Whether it has transparency logs, or may have some after a refresh.
    pub fn has_logs(&self) -> bool {
        self.may_change() || !self.content.tlogs.is_empty()
    }

    /// Whether it has timestamp authorities, or may have some after a refresh.
    pub fn has_timestamp_authorities(&self) -> bool {
        self.may_change() || !self.content.timestamp_authorities.is_empty()
    }

    /// Whether it has certificate authorities, or may have some after a refresh.
    pub fn has_certificate_authorities(&self) -> bool {
        self.may_change() || !self.content.certificate_authorities.is_empty()
    }

    /// Whether a refresh may change its content. If the new content lacks a required part,
    /// verification fails; rejecting the configuration instead would keep the old root in use.
    fn may_change(&self) -> bool {
        self.pending || self.expires().is_some()
    }

    pub(super) fn with_freshness(self, freshness: Freshness) -> Self {
        Self { freshness, ..self }
    }

    pub(super) fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// The same logs and timestamp authorities with other certificate authorities and without
    /// certificate logs. The result never expires: its user checks the expiry of this root first.
    pub(in crate::verify) fn with_certificate_authorities(
        &self,
        roots: &[DerCertificate],
    ) -> Result<Self, String> {
        let authorities = roots.iter().map(|one| {
            json!({ "subject": {}, "uri": "", "certChain": { "certificates": [{ "rawBytes": one.to_base64() }] } })
        });
        let mut content = TrustedRoot::clone(&self.content);
        content.certificate_authorities =
            serde_json::from_value(authorities.collect()).map_err(|error| error.to_string())?;
        content.ctlogs.clear();
        let text = serde_json::to_string(&content).map_err(|error| error.to_string())?;
        Self::from_json(&self.name, &text).map_err(|error| error.to_string())
    }

    pub(in crate::verify) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The content, with limited time ranges.
    #[cfg(test)]
    pub(in crate::verify) fn content(&self) -> &TrustedRoot {
        &self.content
    }
}

impl fmt::Debug for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Policy revisions are computed from this text. Whether the root expires is part of a
        // policy, the exact time is not.
        let expires = self.expires().is_some();
        f.debug_tuple("TrustRoot")
            .field(&self.name)
            .field(&self.revision.as_str())
            .field(&expires)
            .finish()
    }
}
