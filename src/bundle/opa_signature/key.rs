//! Public keys and secrets that verify.

use std::fmt;

use aws_lc_rs::{hmac, signature::ParsedPublicKey};
use x509_cert::{
    Certificate,
    der::{
        Decode as _, Encode as _, Reader as _, SliceReader,
        asn1::{ObjectIdentifier, UintRef},
    },
    spki::SubjectPublicKeyInfoOwned,
};

use super::{
    KeyError, SigningAlgorithm,
    algorithm::{MIN_RSA_BITS, VerificationMethod},
    pem::PemBlock,
    private_key::{secret_fingerprint, secret_text},
};
use crate::oci::Digest;

/// A key that verifies the signatures of one algorithm. Two are equal if they verify the same.
#[derive(Clone)]
pub struct PublicKey {
    algorithm: SigningAlgorithm,
    material: Material,
    fingerprint: Digest,
}

#[derive(Clone)]
enum Material {
    Asymmetric(ParsedPublicKey),
    Secret(Box<hmac::Key>),
}

/// The labels of public keys, for a message.
const LABELS: &str = "PUBLIC KEY, RSA PUBLIC KEY or CERTIFICATE";
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// A public key as it is in its file.
struct Encoded {
    kind: &'static str,
    is_rsa: bool,
    /// The point of an elliptic curve, or an `RSAPublicKey` (RFC 8017).
    bytes: Vec<u8>,
}

impl PublicKey {
    /// Parses a PEM file with a public key or a certificate, or the file of a secret, for one
    /// algorithm. Of a certificate only the key counts, as for OPA: its dates and its issuer do not.
    ///
    /// # Errors
    /// When the file has no such key, or one that does not fit the algorithm.
    pub fn parse(file: &[u8], algorithm: SigningAlgorithm) -> Result<Self, KeyError> {
        let method = algorithm.verification();
        if let VerificationMethod::Hmac(hmac) = method {
            let key = hmac::Key::new(hmac, secret_text(file)?);
            return Ok(Self {
                algorithm,
                fingerprint: secret_fingerprint(&key),
                material: Material::Secret(Box::new(key)),
            });
        }
        let key = Encoded::of(&PemBlock::first(file, "PUBLIC KEY")?)?;
        let other_kind = || KeyError::OtherKind {
            found: key.kind,
            algorithm,
        };
        let verification = match method {
            VerificationMethod::Rsa(verification) if key.is_rsa => {
                let bits = modulus_bits(&key.bytes)
                    .ok_or_else(|| KeyError::Malformed("it is no RSA key".to_owned()))?;
                if bits < MIN_RSA_BITS {
                    return Err(KeyError::TooSmall { bits: Some(bits) });
                }
                verification
            }
            VerificationMethod::Ecdsa(verification) if key.kind == algorithm.needed_key() => {
                verification
            }
            _ => return Err(other_kind()),
        };
        let parsed = ParsedPublicKey::new(verification, &key.bytes)
            .map_err(|_| KeyError::Malformed(format!("it is not {}", key.kind)))?;
        Ok(Self {
            algorithm,
            material: Material::Asymmetric(parsed),
            fingerprint: Digest::sha256(&key.bytes),
        })
    }

    /// The algorithm of the signatures that it verifies.
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// Whether it made the signature of the message.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Asymmetric(key) => key.verify_sig(message, signature).is_ok(),
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

impl Encoded {
    fn of(block: &PemBlock) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed(block.label.clone());
        let info = match block.label.as_str() {
            "RSA PUBLIC KEY" => return Ok(Self::rsa(block.der.to_vec())),
            "PUBLIC KEY" => {
                SubjectPublicKeyInfoOwned::from_der(&block.der).map_err(|_| malformed())?
            }
            "CERTIFICATE" => {
                let certificate = Certificate::from_der(&block.der).map_err(|_| malformed())?;
                certificate.tbs_certificate.subject_public_key_info
            }
            found => {
                return Err(KeyError::OtherBlock {
                    found: found.to_owned(),
                    wanted: LABELS,
                });
            }
        };
        let bytes = info.subject_public_key.raw_bytes().to_vec();
        if info.algorithm.oid == RSA_ENCRYPTION {
            return Ok(Self::rsa(bytes));
        }
        let curve = info
            .algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.to_der().ok())
            .and_then(|der| ObjectIdentifier::from_der(&der).ok());
        let kind = match (info.algorithm.oid, curve) {
            (EC_PUBLIC_KEY, Some(P256)) => "an ECDSA key on P-256",
            (EC_PUBLIC_KEY, Some(P384)) => "an ECDSA key on P-384",
            (EC_PUBLIC_KEY, Some(P521)) => "an ECDSA key on P-521",
            (EC_PUBLIC_KEY, _) => "an ECDSA key on another curve",
            _ => "a key of another kind",
        };
        Ok(Self {
            kind,
            is_rsa: false,
            bytes,
        })
    }

    fn rsa(bytes: Vec<u8>) -> Self {
        Self {
            kind: "an RSA key",
            is_rsa: true,
            bytes,
        }
    }
}

/// The size of the modulus of an `RSAPublicKey`.
fn modulus_bits(der: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(der).ok()?;
    let modulus = reader.sequence(|key| {
        let modulus = UintRef::decode(key)?.as_bytes().to_vec();
        UintRef::decode(key)?;
        Ok(modulus)
    });
    let modulus = modulus.ok()?;
    let zeros = modulus.first().map_or(0, |byte| byte.leading_zeros());
    Some(modulus.len() * 8 - usize::try_from(zeros).ok()?)
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        (self.algorithm, &self.fingerprint) == (other.algorithm, &other.fingerprint)
    }
}

impl Eq for PublicKey {}

// Written by hand: a secret is never printed.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}
