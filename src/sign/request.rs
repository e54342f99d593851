//! The request to sign an artifact.

use std::collections::BTreeMap;

use crate::oci::Descriptor;

/// The artifact to sign and the annotations that the signature covers.
#[derive(Debug, Clone)]
pub struct SigningRequest {
    /// The artifact's manifest.
    pub subject: Descriptor,
    /// Free text that is signed with the digest.
    pub annotations: BTreeMap<String, String>,
}

impl SigningRequest {
    /// A request for a signature without annotations.
    pub fn of(subject: Descriptor) -> Self {
        Self {
            subject,
            annotations: BTreeMap::new(),
        }
    }
}
