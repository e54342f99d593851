//! Public keys and the signature schemes that each may have been used with.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use sigstore_verify::{
    crypto::{KeyAlgorithm, SigningScheme, VerificationKey},
    types::{DerPublicKey, SignatureBytes},
};

/// A public key that an authority signs with.
#[derive(Clone)]
pub struct PublicKey {
    schemes: Arc<[VerificationKey]>,
    identity: String,
}

/// Why a text is not a usable public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// No PEM public key in it.
    #[error("no PEM public key (-----BEGIN PUBLIC KEY-----) in it: {0}")]
    NotPem(String),
    /// A private key by mistake.
    #[error("it holds a private key; give the public one (cosign public-key --key FILE)")]
    Private,
    /// A kind that is not verified here.
    #[error("unsupported kind of key: {0}; use ECDSA P-256 or P-384, Ed25519 or RSA")]
    Unsupported(String),
}

impl PublicKey {
    /// Reads a PEM public key (SPKI), as cosign writes it.
    ///
    /// # Errors
    /// See [`BadKey`].
    pub fn from_pem(text: &str) -> Result<Self, BadKey> {
        if text.contains("PRIVATE KEY-----") {
            return Err(BadKey::Private);
        }
        let spki = DerPublicKey::from_pem(text.trim()).map_err(|error| BadKey::NotPem(error.to_string()))?;
        let unsupported = |error: sigstore_verify::crypto::Error| BadKey::Unsupported(error.to_string());
        let algorithm = KeyAlgorithm::from_spki(&spki).map_err(unsupported)?;
        let schemes = schemes(algorithm)
            .iter()
            .map(|scheme| VerificationKey::from_spki_with_scheme(&spki, *scheme).map_err(unsupported))
            .collect::<Result<Vec<_>, _>>()?;
        if schemes.is_empty() {
            return Err(BadKey::Unsupported(format!("{algorithm:?}")));
        }
        let identity = Sha256::digest(spki.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(Self { schemes: schemes.into(), identity: format!("sha256:{identity}") })
    }

    /// `sha256:` and the hash of the key's SPKI encoding.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Whether this key made `signature` over `message`, under one of its schemes.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let signature = SignatureBytes::from_bytes(signature);
        self.schemes.iter().any(|key| key.verify(message, &signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&self.identity).finish()
    }
}

/// The schemes are fixed by the key, never taken from a registry. cosign up to 2.5 signed
/// every curve with SHA-256, later ones use the curve's own hash.
fn schemes(algorithm: KeyAlgorithm) -> &'static [SigningScheme] {
    match algorithm {
        KeyAlgorithm::EcdsaP256 => &[SigningScheme::EcdsaP256Sha256],
        KeyAlgorithm::EcdsaP384 => &[SigningScheme::EcdsaP384Sha384, SigningScheme::EcdsaP384Sha256],
        KeyAlgorithm::Ed25519 => &[SigningScheme::Ed25519],
        KeyAlgorithm::Rsa => &[SigningScheme::RsaPkcs1Sha256],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use sigstore_verify::crypto::KeyPair;

    use super::*;

    #[test]
    fn a_key_accepts_its_own_signatures_only() {
        let pair = KeyPair::generate_ecdsa_p256().unwrap();
        let key = PublicKey::from_pem(&pair.public_key_der().unwrap().to_pem()).unwrap();
        let other = KeyPair::generate_ecdsa_p256().unwrap();
        let signature = pair.sign(b"message").unwrap();
        assert!(key.signed(b"message", signature.as_bytes()));
        assert!(!key.signed(b"massage", signature.as_bytes()));
        assert!(!key.signed(b"message", other.sign(b"message").unwrap().as_bytes()));
        assert!(!key.signed(b"message", b""));
    }

    #[test]
    fn what_is_no_public_key_is_refused_with_the_way_out() {
        for (text, expected) in
            [("", "no PEM"), ("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----", "private")]
        {
            let error = PublicKey::from_pem(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
