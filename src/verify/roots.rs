//! Roots of trust: certificate authorities, logs and timestamp authorities.

use std::{fmt, sync::Arc};

use sigstore_verify::{
    Verifier,
    trust_root::{SIGSTORE_PRODUCTION_TRUSTED_ROOT, TrustedRoot},
};

use crate::oci::{Digest, strict_json};

/// A root of trust. Cheap to clone.
#[derive(Clone)]
pub struct TrustRoot {
    name: Arc<str>,
    revision: Digest,
    content: Arc<TrustedRoot>,
    verifier: Arc<Verifier>,
}

/// Why a text is no usable root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no trusted root: {0}")]
pub struct BadRoot(String);

impl TrustRoot {
    /// The public-good instance's, as it was when this program was built.
    ///
    /// # Errors
    /// Never in practice.
    pub fn sigstore() -> Result<Self, BadRoot> {
        Self::from_json("sigstore", SIGSTORE_PRODUCTION_TRUSTED_ROOT)
    }

    /// Reads a `trusted_root.json`.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_json(name: &str, text: &str) -> Result<Self, BadRoot> {
        strict_json(text.as_bytes()).map_err(|error| BadRoot(error.to_string()))?;
        let content = TrustedRoot::from_json(text).map_err(|error| BadRoot(error.to_string()))?;
        let verifier = Verifier::new(&content).map_err(|error| BadRoot(error.to_string()))?;
        Ok(Self {
            name: name.into(),
            revision: Digest::sha256(text.as_bytes()),
            content: Arc::new(content),
            verifier: Arc::new(verifier),
        })
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names its content.
    pub fn revision(&self) -> &Digest {
        &self.revision
    }

    /// Whether certificates have to be in a certificate transparency log.
    pub fn has_ct_logs(&self) -> bool {
        !self.content.ctlogs.is_empty()
    }

    /// Whether it can vouch for a signature's being logged.
    pub fn has_logs(&self) -> bool {
        !self.content.tlogs.is_empty()
    }

    /// Whether it can vouch for the time of a signature.
    pub fn has_timestamp_authorities(&self) -> bool {
        !self.content.timestamp_authorities.is_empty()
    }

    /// Whether it can vouch for a certificate.
    pub fn has_certificate_authorities(&self) -> bool {
        !self.content.certificate_authorities.is_empty()
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Logs and timestamp authorities of this root.
    pub(super) fn content(&self) -> &TrustedRoot {
        &self.content
    }
}

impl fmt::Debug for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TrustRoot").field(&self.name).field(&self.revision.as_str()).finish()
    }
}
