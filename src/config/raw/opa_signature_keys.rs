//! The keys of OPA's own signatures.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    bundle::SigningAlgorithm,
    config::{opa_signature, schema},
};

/// A key that signs bundles for OPA.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Resign {
    /// The private key in PEM, not encrypted, or a secret for the HS algorithms.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) key: PathBuf,
    /// The name of the key in OPA's `keys`.
    #[schemars(length(min = 1, max = opa_signature::MAX_KID_BYTES))]
    pub(in crate::config) kid: String,
    /// The algorithm of the signatures; it must be that in OPA's `keys`.
    #[schemars(extend(
        "enum" = schema::words(&SigningAlgorithm::ALL),
        "default" = schema::words(&SigningAlgorithm::ALL)[0],
    ))]
    pub(in crate::config) algorithm: Option<String>,
    /// The scope of the signatures; it must be that in OPA's configuration. Absent: none.
    pub(in crate::config) scope: Option<String>,
}

/// A key by which OPA's own signature is verified.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct OpaKey {
    /// The public key or a certificate in PEM, or a secret for the HS algorithms.
    #[schemars(regex(pattern = schema::PATH))]
    pub(in crate::config) file: PathBuf,
    /// The name of the key in signatures.
    #[schemars(length(min = 1, max = opa_signature::MAX_KID_BYTES))]
    pub(in crate::config) kid: String,
    /// The algorithm of its signatures, whatever a signature says.
    #[schemars(extend(
        "enum" = schema::words(&SigningAlgorithm::ALL),
        "default" = schema::words(&SigningAlgorithm::ALL)[0],
    ))]
    pub(in crate::config) algorithm: Option<String>,
    /// The scope that its signatures must have. Absent: none.
    pub(in crate::config) scope: Option<String>,
}
