//! Signing bundles as OPA does.

use std::fmt;

use serde_json::json;

use super::{
    KeyError, SigningAlgorithm, UnsignableError,
    private_key::PrivateKey,
    token::{Claims, FileClaim, Header, compact, message},
};
use crate::oci::Digest;

/// A key that signs bundles for OPA, with the name and the scope that OPA's configuration has for
/// it. Two are equal if an OPA can't tell their signatures apart.
pub struct Signer {
    key: PrivateKey,
    algorithm: SigningAlgorithm,
    kid: String,
    scope: String,
    fingerprint: Digest,
}

impl Signer {
    /// Reads the key from the content of its file: PEM (PKCS #8, SEC 1 or PKCS #1), or a secret for
    /// the HS algorithms. `scope` is empty where OPA's configuration has none.
    ///
    /// # Errors
    /// When the file has no such key, or one that does not fit the algorithm.
    pub fn new(
        file: &[u8],
        algorithm: SigningAlgorithm,
        kid: impl Into<String>,
        scope: impl Into<String>,
    ) -> Result<Self, KeyError> {
        let key = PrivateKey::parse(file, algorithm)?;
        Ok(Self {
            fingerprint: key.fingerprint(),
            key,
            algorithm,
            kid: kid.into(),
            scope: scope.into(),
        })
    }

    /// The algorithm.
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// The name of the key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What signatures by this signer depend on, beside the files. Signatures by ECDSA and PSS have
    /// other bytes each time, so the key stands for them.
    pub(in crate::bundle) fn parameters(&self) -> Vec<String> {
        vec![
            self.algorithm.name().to_owned(),
            self.kid.clone(),
            self.scope.clone(),
            self.fingerprint.to_string(),
        ]
    }

    /// The content of `.signatures.json` for these files.
    ///
    /// # Errors
    /// When the key is broken.
    pub(super) fn signature_file(&self, files: Vec<FileClaim>) -> Result<String, UnsignableError> {
        let header = Header {
            alg: self.algorithm.name(),
            kid: &self.kid,
        };
        let claims = Claims {
            files,
            scope: self.scope.clone(),
            ..Claims::default()
        };
        let message = message(&header, &claims);
        let signature = self.key.sign(message.as_bytes())?;
        Ok(json!({ "signatures": [compact(message, &signature)] }).to_string())
    }
}

impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        self.parameters() == other.parameters()
    }
}

impl Eq for Signer {}

// Written by hand: a key is never printed.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}
