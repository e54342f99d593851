//! Key pairs.

use std::fmt;

use sha2::{Digest as _, Sha256};
use sigstore::crypto::{SigningScheme, signing_key::SigStoreSigner};

/// A private key and what can be shown of it.
pub struct KeyPair {
    signer: SigStoreSigner,
    public_pem: String,
    public_der: Vec<u8>,
}

/// What kept a signature from being made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key can't be made or used.
    #[error("key: {0}")]
    Key(String),
    /// A document can't be written.
    #[error("signature document: {0}")]
    Document(#[from] serde_json::Error),
}

impl KeyPair {
    /// A new ECDSA P-256 key, the kind that `cosign generate-key-pair` makes.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, SignError> {
        let failed = |error: sigstore::errors::SigstoreError| SignError::Key(error.to_string());
        let signer = SigningScheme::ECDSA_P256_SHA256_ASN1.create_signer().map_err(failed)?;
        let public = signer.to_sigstore_keypair().map_err(failed)?;
        let public_pem = public.public_key_to_pem().map_err(failed)?;
        let public_der = public.public_key_to_der().map_err(failed)?;
        Ok(Self { signer, public_pem, public_der })
    }

    /// The public key in PEM, as cosign writes `cosign.pub`.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// SHA-256 of the public key (SPKI, DER): how a bundle hints at its key.
    pub(super) fn hint(&self) -> [u8; 32] {
        Sha256::digest(&self.public_der).into()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.signer.sign(message).map_err(|error| SignError::Key(error.to_string()))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public_pem", &self.public_pem).finish_non_exhaustive()
    }
}
