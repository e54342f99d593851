//! Private keys and secrets that sign.

use aws_lc_rs::{
    error::KeyRejected,
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
        ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding,
        RsaKeyPair,
    },
};

use super::{KeyError, SigningAlgorithm, UnsignableError, algorithm::SigningMethod, pem::PemBlock};
use crate::oci::{Digest, Hasher};

/// A key that signs. It is wiped from memory when it is dropped.
pub(super) enum PrivateKey {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Secret(Box<hmac::Key>),
}

/// The labels of private keys, for a message.
const LABELS: &str = "PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY";
/// A key can't be told from its HMAC over this text.
const FINGERPRINT_TEXT: &[u8] = b"bundlegate: fingerprint of a secret";

impl PrivateKey {
    /// Parses a PEM file (PKCS #8, SEC 1 or PKCS #1), or the file of a secret, for one algorithm.
    ///
    /// # Errors
    /// When the file has no such key, or one that does not fit the algorithm.
    pub(super) fn parse(file: &[u8], algorithm: SigningAlgorithm) -> Result<Self, KeyError> {
        if let SigningMethod::Hmac(hmac) = algorithm.signing() {
            return secret(file, hmac, algorithm);
        }
        let block = PemBlock::first(file, "PRIVATE KEY")?;
        let found = block.label.as_str();
        if !matches!(found, "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY") {
            return Err(KeyError::OtherBlock {
                found: found.to_owned(),
                wanted: LABELS,
            });
        }
        let refused = |error: KeyRejected| refusal(&block, algorithm, error);
        match algorithm.signing() {
            SigningMethod::Ecdsa(curve) => {
                let key = EcdsaKeyPair::from_private_key_der(curve, &block.der);
                key.map(Self::Ecdsa).map_err(refused)
            }
            SigningMethod::Rsa(padding) => {
                let key = rsa(&block).map_err(refused)?;
                Ok(Self::Rsa(key, padding))
            }
            SigningMethod::Hmac(hmac) => secret(file, hmac, algorithm),
        }
    }

    /// Signs a message.
    ///
    /// # Errors
    /// When the key is broken.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, UnsignableError> {
        let failed = |_| UnsignableError::Key("its signature can't be computed");
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa(key) => {
                let signature = key.sign(&random, message).map_err(failed)?;
                Ok(signature.as_ref().to_vec())
            }
            Self::Rsa(key, padding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*padding, &random, message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
            Self::Secret(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
        }
    }

    /// A digest that is equal for equal keys, and does not reveal a secret.
    pub(super) fn fingerprint(&self) -> Digest {
        match self {
            Self::Ecdsa(key) => fingerprint(key.public_key().as_ref()),
            Self::Rsa(key, _) => fingerprint(key.public_key().as_ref()),
            Self::Secret(key) => fingerprint(hmac::sign(key, FINGERPRINT_TEXT).as_ref()),
        }
    }
}

fn fingerprint(public: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(public);
    hasher.finish()
}

/// The fingerprint of a secret that verifies.
pub(super) fn secret_fingerprint(key: &hmac::Key) -> Digest {
    fingerprint(hmac::sign(key, FINGERPRINT_TEXT).as_ref())
}

/// The secret in a file: its content without one line break at the end, which most editors write.
pub(super) fn secret_text(file: &[u8]) -> Result<&[u8], KeyError> {
    let text = file.strip_suffix(b"\n").unwrap_or(file);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Err(KeyError::NoSecret);
    }
    Ok(text)
}

fn secret(
    file: &[u8],
    hmac: hmac::Algorithm,
    algorithm: SigningAlgorithm,
) -> Result<PrivateKey, KeyError> {
    let text = secret_text(file)?;
    let minimum = hmac.digest_algorithm().output_len();
    if text.len() < minimum {
        return Err(KeyError::ShortSecret {
            bytes: text.len(),
            minimum,
            algorithm,
        });
    }
    Ok(PrivateKey::Secret(Box::new(hmac::Key::new(hmac, text))))
}

fn rsa(block: &PemBlock) -> Result<RsaKeyPair, KeyRejected> {
    match block.label.as_str() {
        "RSA PRIVATE KEY" => RsaKeyPair::from_der(&block.der),
        _ => RsaKeyPair::from_pkcs8(&block.der),
    }
}

/// The reason for which a key was rejected: that of the crypto library says little.
fn refusal(block: &PemBlock, algorithm: SigningAlgorithm, error: KeyRejected) -> KeyError {
    let is_too_small = |error: &KeyRejected| error.to_string() == "TooSmall";
    if is_too_small(&error) {
        return KeyError::TooSmall { bits: None };
    }
    let der = &block.der;
    let curves = [
        (&ECDSA_P256_SHA256_FIXED_SIGNING, "an ECDSA key on P-256"),
        (&ECDSA_P384_SHA384_FIXED_SIGNING, "an ECDSA key on P-384"),
        (&ECDSA_P521_SHA512_FIXED_SIGNING, "an ECDSA key on P-521"),
    ];
    let curve = curves
        .into_iter()
        .find(|(curve, _)| EcdsaKeyPair::from_private_key_der(curve, der).is_ok());
    let is_rsa = || rsa(block).map_or_else(|error| is_too_small(&error), |_| true);
    let found = match curve {
        Some((_, curve)) => curve,
        None if is_rsa() => "an RSA key",
        None if Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).is_ok() => "an Ed25519 key",
        None => {
            let label = &block.label;
            return KeyError::Malformed(format!("{label}: it is no ECDSA or RSA key"));
        }
    };
    KeyError::OtherKind { found, algorithm }
}
