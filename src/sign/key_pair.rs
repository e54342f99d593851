//! Key pairs.

use std::fmt;

use sha2::{Digest as _, Sha256};
use sigstore::{
    crypto::{
        SigningScheme,
        signing_key::{SigStoreKeyPair, SigStoreSigner, ecdsa::ECDSAKeys},
    },
    errors::SigstoreError,
};

use super::{SignError, key_file};

/// A private key, and its public key.
pub struct KeyPair {
    signer: SigStoreSigner,
    public_pem: String,
    public_der: Vec<u8>,
}

impl KeyPair {
    /// Generates an ECDSA P-256 key, as `cosign generate-key-pair` does.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, SignError> {
        Self::new(
            SigningScheme::ECDSA_P256_SHA256_ASN1
                .create_signer()
                .map_err(failed)?,
        )
    }

    /// Opens a cosign key file: ECDSA P-256 or P-384, Ed25519 or RSA. Blocks for some 100 ms.
    ///
    /// # Errors
    /// `WrongPassword`, or the defect of the file.
    pub fn open(text: &str, password: &[u8]) -> Result<Self, SignError> {
        Self::from_pkcs8(&key_file::open(text, password)?)
    }

    /// Parses the document of a key file.
    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SignError> {
        let keys = SigStoreKeyPair::from_der(pkcs8).map_err(|_| {
            SignError::Key("unsupported kind; use ECDSA P-256 or P-384, Ed25519 or RSA".to_owned())
        })?;
        let scheme = match &keys {
            SigStoreKeyPair::ECDSA(ECDSAKeys::P256(_)) => SigningScheme::ECDSA_P256_SHA256_ASN1,
            SigStoreKeyPair::ECDSA(ECDSAKeys::P384(_)) => SigningScheme::ECDSA_P384_SHA384_ASN1,
            // sigstore-verify, which verifies signatures in logs, lacks P-521.
            SigStoreKeyPair::ECDSA(ECDSAKeys::P521(_)) => {
                return Err(SignError::Key(
                    "ECDSA P-521 is not supported; use P-256 or P-384".to_owned(),
                ));
            }
            SigStoreKeyPair::ED25519(_) => SigningScheme::ED25519,
            // The size is ignored, because the key has its own.
            SigStoreKeyPair::RSA(_) => SigningScheme::RSA_PKCS1_SHA256(0),
        };
        Self::new(keys.to_sigstore_signer(&scheme).map_err(failed)?)
    }

    /// Checks that `text` is a cosign key file; [`Self::open`] needs the password as well.
    ///
    /// # Errors
    /// The defect of the file.
    pub fn check(text: &str) -> Result<(), SignError> {
        key_file::is_key_file(text)
    }

    fn new(signer: SigStoreSigner) -> Result<Self, SignError> {
        let public = signer.to_sigstore_keypair().map_err(failed)?;
        let public_der = public.public_key_to_der().map_err(failed)?;
        let public_pem = key_file::pem("PUBLIC KEY", &public_der);
        Ok(Self {
            signer,
            public_pem,
            public_der,
        })
    }

    /// Encrypts the private key with `password`, as cosign writes `cosign.key`. Blocks for some
    /// 100 ms.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn to_key_file(&self, password: &[u8]) -> Result<String, SignError> {
        let pkcs8 = self
            .signer
            .to_sigstore_keypair()
            .and_then(|keys| keys.private_key_to_der())
            .map_err(failed)?;
        key_file::seal(&pkcs8, password)
    }

    /// The public key in PEM, as cosign writes `cosign.pub`.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// SHA-256 of the public key (SPKI, DER): the key hint in a bundle.
    pub(super) fn hint(&self) -> [u8; 32] {
        Sha256::digest(&self.public_der).into()
    }

    /// `sha256:` and the hash of the key's SPKI encoding, as `verify` names it.
    pub fn identity(&self) -> String {
        format!(
            "sha256:{}",
            self.hint()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        )
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.signer.sign(message).map_err(failed)
    }
}

fn failed(error: SigstoreError) -> SignError {
    SignError::Key(error.to_string())
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("public_pem", &self.public_pem)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use sigstore::crypto::signing_key::ecdsa::ec::EcdsaKeys;

    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_file() {
        let pair = KeyPair::generate().unwrap();
        let again = KeyPair::open(&pair.to_key_file(b"pass").unwrap(), b"pass").unwrap();
        assert_eq!(again.public_pem(), pair.public_pem());
        assert!(
            pair.public_pem()
                .starts_with("-----BEGIN PUBLIC KEY-----\n")
                && pair.identity().len() == 71
        );
    }

    #[test]
    fn a_kind_that_could_not_be_verified_is_refused_by_name() {
        use sigstore::crypto::signing_key::{KeyPair as _, ecdsa::EllipticCurve};
        let pkcs8 = EcdsaKeys::new(EllipticCurve::P521)
            .unwrap()
            .private_key_to_der()
            .unwrap();
        let error = KeyPair::open(&key_file::seal(&pkcs8, b"").unwrap(), b"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("P-521"), "{error}");
        let error = KeyPair::open(&key_file::seal(b"no key", b"").unwrap(), b"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("unsupported kind"), "{error}");
    }
}
