//! Public keys and the signature schemes that are accepted for each.

use std::{fmt, sync::Arc};

use aws_lc_rs::signature::{ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA512_ASN1, ParsedPublicKey};
use sha2::{Digest as _, Sha256, Sha512};
use sigstore_verify::{
    crypto::{SigningScheme, VerificationKey},
    types::{DerPublicKey, SignatureBytes},
};
use x509_cert::{
    der::{Decode as _, asn1::ObjectIdentifier},
    spki::SubjectPublicKeyInfoRef,
};

/// A public key of an authority.
#[derive(Clone)]
pub struct PublicKey {
    spki: DerPublicKey,
    /// The schemes that are accepted.
    schemes: Arc<[SchemeVerifier]>,
    /// The other schemes of this kind of key, which only make the error more specific.
    others: Arc<[SchemeVerifier]>,
    identity: String,
}

/// A signature scheme. It is fixed by the configuration and never taken from a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// ECDSA over P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA over P-384 with SHA-384.
    EcdsaP384Sha384,
    /// ECDSA over P-384 with SHA-256, as cosign up to 2.5 signed.
    EcdsaP384Sha256,
    /// ECDSA over P-521 with SHA-512.
    EcdsaP521Sha512,
    /// ECDSA over P-521 with SHA-256, as cosign up to 2.5 signed.
    EcdsaP521Sha256,
    /// Ed25519 (RFC 8032) over the message.
    Ed25519,
    /// Ed25519ph (RFC 8032) over the message's SHA-512, as cosign signs from 2.6 on.
    Ed25519ph,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RsaPkcs1Sha256,
    /// RSA PKCS#1 v1.5 with SHA-384.
    RsaPkcs1Sha384,
    /// RSA PKCS#1 v1.5 with SHA-512.
    RsaPkcs1Sha512,
    /// RSA PSS with SHA-256.
    RsaPssSha256,
    /// RSA PSS with SHA-384.
    RsaPssSha384,
    /// RSA PSS with SHA-512.
    RsaPssSha512,
}

/// The result of matching a signature with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyMatch {
    /// The key made the signature, with a scheme that is declared for it.
    Declared(Scheme),
    /// The key made the signature, with a scheme that is not declared for it.
    Undeclared(Scheme),
    /// The key did not make the signature.
    Unknown,
}

/// An error in the text of a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// There is no PEM public key.
    #[error("no PEM public key (-----BEGIN PUBLIC KEY-----): {0}")]
    NotPem(String),
    /// It is a private key.
    #[error("it holds a private key; give the public one (cosign public-key --key FILE)")]
    Private,
    /// The kind of key is not supported.
    #[error("unsupported kind of key; use ECDSA P-256, P-384 or P-521, Ed25519 or RSA")]
    Unsupported,
    /// The key is of a supported kind, but not a valid key.
    #[error("unusable key: {0}")]
    Broken(String),
    /// A scheme that belongs to another kind of key.
    #[error("this kind of key does not support {scheme}, only: {possible}")]
    OtherScheme {
        /// The declared scheme.
        scheme: Scheme,
        /// The schemes of this kind of key.
        possible: String,
    },
    /// The list of schemes is empty.
    #[error("no scheme is given, so nothing could be verified; omit schemes or name one")]
    NoScheme,
}

/// A key prepared for one scheme.
struct SchemeVerifier {
    scheme: Scheme,
    prepared: Prepared,
}

enum Prepared {
    Sigstore(VerificationKey),
    P521(Box<ParsedPublicKey>),
    Ed25519ph(ed25519_dalek::VerifyingKey),
}

impl PublicKey {
    /// Reads a PEM public key (SPKI), as cosign writes it, with the usual schemes of its kind:
    /// ECDSA with the curve's own hash or SHA-256, Ed25519 over the message, RSA PKCS#1 v1.5 with
    /// SHA-256.
    ///
    /// # Errors
    /// See [`BadKey`].
    pub fn from_pem(text: &str) -> Result<Self, BadKey> {
        Self::read(text, None)
    }

    /// Reads a PEM public key for these schemes and no other.
    ///
    /// # Errors
    /// See [`BadKey`].
    pub fn with_schemes(text: &str, schemes: &[Scheme]) -> Result<Self, BadKey> {
        Self::read(text, Some(schemes))
    }

    fn read(text: &str, declared: Option<&[Scheme]>) -> Result<Self, BadKey> {
        if text.contains("PRIVATE KEY-----") {
            return Err(BadKey::Private);
        }
        let spki = DerPublicKey::from_pem(text.trim())
            .map_err(|error| BadKey::NotPem(error.to_string()))?;
        let kind = kind_of(&spki)?;
        let possible = kind.possible();
        let declared = declared.unwrap_or_else(|| kind.usual());
        if declared.is_empty() {
            return Err(BadKey::NoScheme);
        }
        if let Some(scheme) = declared.iter().find(|scheme| !possible.contains(scheme)) {
            let possible: Vec<_> = possible.iter().map(|scheme| scheme.name()).collect();
            return Err(BadKey::OtherScheme {
                scheme: *scheme,
                possible: possible.join(", "),
            });
        }
        let prepare = |scheme: &Scheme| SchemeVerifier::new(&spki, *scheme);
        let schemes = declared
            .iter()
            .map(prepare)
            .collect::<Result<Vec<_>, _>>()?;
        let others = possible
            .iter()
            .filter(|scheme| !declared.contains(scheme))
            .map(prepare);
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let identity = fingerprint(spki.as_bytes());
        Ok(Self {
            spki,
            schemes: schemes.into(),
            others: others.into(),
            identity,
        })
    }

    /// `sha256:` and the hash of the key's SPKI encoding.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Whether this key made `signature` over `message`.
    pub(super) fn match_signature(&self, message: &[u8], signature: &[u8]) -> KeyMatch {
        let made = |verifiers: &[SchemeVerifier]| {
            let made = verifiers
                .iter()
                .find(|verifier| verifier.verifies(message, signature))?;
            Some(made.scheme)
        };
        match made(&self.schemes) {
            Some(scheme) => KeyMatch::Declared(scheme),
            None => made(&self.others).map_or(KeyMatch::Unknown, KeyMatch::Undeclared),
        }
    }

    /// Whether any of its signatures can be verified against a log entry.
    pub(super) fn supports_tlog(&self) -> bool {
        self.schemes
            .iter()
            .any(|verifier| verifier.scheme.supports_tlog())
    }

    pub(super) fn spki(&self) -> &DerPublicKey {
        &self.spki
    }
}

/// `sha256:` and the hash of an SPKI encoding.
pub(super) fn fingerprint(spki: &[u8]) -> String {
    let hash = Sha256::digest(spki)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    format!("sha256:{hash}")
}

impl SchemeVerifier {
    fn new(spki: &DerPublicKey, scheme: Scheme) -> Result<Self, BadKey> {
        let prepared = match scheme {
            Scheme::EcdsaP521Sha512 => p521(&ECDSA_P521_SHA512_ASN1, spki)?,
            Scheme::EcdsaP521Sha256 => p521(&ECDSA_P521_SHA256_ASN1, spki)?,
            Scheme::Ed25519ph => ed25519ph(spki)?,
            other => {
                let Some(sigstore) = other.sigstore() else {
                    return Err(BadKey::Unsupported);
                };
                let key = VerificationKey::from_spki_with_scheme(spki, sigstore);
                Prepared::Sigstore(key.map_err(|error| BadKey::Broken(error.to_string()))?)
            }
        };
        Ok(Self { scheme, prepared })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.prepared {
            Prepared::Sigstore(key) => key
                .verify(message, &SignatureBytes::from_bytes(signature))
                .is_ok(),
            Prepared::P521(key) => key.verify_sig(message, signature).is_ok(),
            Prepared::Ed25519ph(key) => {
                let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else {
                    return false;
                };
                // Strict verification: no key of small order, no second encoding of a signature.
                key.verify_prehashed_strict(Sha512::new_with_prefix(message), None, &signature)
                    .is_ok()
            }
        }
    }
}

fn p521(
    algorithm: &'static aws_lc_rs::signature::EcdsaVerificationAlgorithm,
    spki: &DerPublicKey,
) -> Result<Prepared, BadKey> {
    let key = ParsedPublicKey::new(algorithm, spki.as_bytes());
    key.map(|key| Prepared::P521(Box::new(key)))
        .map_err(|error| BadKey::Broken(error.to_string()))
}

fn ed25519ph(spki: &DerPublicKey) -> Result<Prepared, BadKey> {
    let raw = info(spki)?.subject_public_key.raw_bytes();
    let raw = raw
        .try_into()
        .map_err(|_| BadKey::Broken(format!("{} bytes instead of 32", raw.len())))?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(raw);
    key.map(Prepared::Ed25519ph)
        .map_err(|error| BadKey::Broken(error.to_string()))
}

/// The kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    P521,
    Ed25519,
    Rsa,
}

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const SECP521R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

fn info(spki: &DerPublicKey) -> Result<SubjectPublicKeyInfoRef<'_>, BadKey> {
    SubjectPublicKeyInfoRef::from_der(spki.as_bytes())
        .map_err(|error| BadKey::NotPem(error.to_string()))
}

fn kind_of(spki: &DerPublicKey) -> Result<Kind, BadKey> {
    let algorithm = info(spki)?.algorithm;
    match (algorithm.oid, algorithm.parameters_oid().ok()) {
        (EC_PUBLIC_KEY, Some(SECP256R1)) => Ok(Kind::P256),
        (EC_PUBLIC_KEY, Some(SECP384R1)) => Ok(Kind::P384),
        (EC_PUBLIC_KEY, Some(SECP521R1)) => Ok(Kind::P521),
        (ED25519, _) => Ok(Kind::Ed25519),
        (RSA_ENCRYPTION, _) => Ok(Kind::Rsa),
        _ => Err(BadKey::Unsupported),
    }
}

impl Kind {
    /// The usual schemes. cosign up to 2.5 signed on every curve with SHA-256, later versions
    /// with the curve's own hash.
    fn usual(self) -> &'static [Scheme] {
        match self {
            Self::P256 => &[Scheme::EcdsaP256Sha256],
            Self::P384 => &[Scheme::EcdsaP384Sha384, Scheme::EcdsaP384Sha256],
            Self::P521 => &[Scheme::EcdsaP521Sha512, Scheme::EcdsaP521Sha256],
            Self::Ed25519 => &[Scheme::Ed25519],
            Self::Rsa => &[Scheme::RsaPkcs1Sha256],
        }
    }

    fn possible(self) -> &'static [Scheme] {
        match self {
            Self::P256 | Self::P384 | Self::P521 => self.usual(),
            Self::Ed25519 => &[Scheme::Ed25519, Scheme::Ed25519ph],
            Self::Rsa => &[
                Scheme::RsaPkcs1Sha256,
                Scheme::RsaPkcs1Sha384,
                Scheme::RsaPkcs1Sha512,
                Scheme::RsaPssSha256,
                Scheme::RsaPssSha384,
                Scheme::RsaPssSha512,
            ],
        }
    }
}

impl Scheme {
    const ALL: [Self; 13] = [
        Self::EcdsaP256Sha256,
        Self::EcdsaP384Sha384,
        Self::EcdsaP384Sha256,
        Self::EcdsaP521Sha512,
        Self::EcdsaP521Sha256,
        Self::Ed25519,
        Self::Ed25519ph,
        Self::RsaPkcs1Sha256,
        Self::RsaPkcs1Sha384,
        Self::RsaPkcs1Sha512,
        Self::RsaPssSha256,
        Self::RsaPssSha384,
        Self::RsaPssSha512,
    ];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256Sha256 => "ecdsa_p256_sha256",
            Self::EcdsaP384Sha384 => "ecdsa_p384_sha384",
            Self::EcdsaP384Sha256 => "ecdsa_p384_sha256",
            Self::EcdsaP521Sha512 => "ecdsa_p521_sha512",
            Self::EcdsaP521Sha256 => "ecdsa_p521_sha256",
            Self::Ed25519 => "ed25519",
            Self::Ed25519ph => "ed25519ph",
            Self::RsaPkcs1Sha256 => "rsa_pkcs1_sha256",
            Self::RsaPkcs1Sha384 => "rsa_pkcs1_sha384",
            Self::RsaPkcs1Sha512 => "rsa_pkcs1_sha512",
            Self::RsaPssSha256 => "rsa_pss_sha256",
            Self::RsaPssSha384 => "rsa_pss_sha384",
            Self::RsaPssSha512 => "rsa_pss_sha512",
        }
    }

    /// The scheme with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.name() == name)
    }

    /// The names of all schemes.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        Self::ALL.into_iter().map(Self::name)
    }

    /// Whether sigstore-verify can verify a signature of this scheme together with a log entry or
    /// a timestamp: it supports only the usual scheme of a key.
    pub(super) fn supports_tlog(self) -> bool {
        matches!(
            self,
            Self::EcdsaP256Sha256
                | Self::EcdsaP384Sha384
                | Self::EcdsaP384Sha256
                | Self::Ed25519
                | Self::RsaPkcs1Sha256
        )
    }

    /// The same scheme in sigstore-verify, which lacks P-521 and Ed25519ph.
    fn sigstore(self) -> Option<SigningScheme> {
        match self {
            Self::EcdsaP256Sha256 => Some(SigningScheme::EcdsaP256Sha256),
            Self::EcdsaP384Sha384 => Some(SigningScheme::EcdsaP384Sha384),
            Self::EcdsaP384Sha256 => Some(SigningScheme::EcdsaP384Sha256),
            Self::Ed25519 => Some(SigningScheme::Ed25519),
            Self::RsaPkcs1Sha256 => Some(SigningScheme::RsaPkcs1Sha256),
            Self::RsaPkcs1Sha384 => Some(SigningScheme::RsaPkcs1Sha384),
            Self::RsaPkcs1Sha512 => Some(SigningScheme::RsaPkcs1Sha512),
            Self::RsaPssSha256 => Some(SigningScheme::RsaPssSha256),
            Self::RsaPssSha384 => Some(SigningScheme::RsaPssSha384),
            Self::RsaPssSha512 => Some(SigningScheme::RsaPssSha512),
            Self::EcdsaP521Sha512 | Self::EcdsaP521Sha256 | Self::Ed25519ph => None,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schemes: Vec<_> = self
            .schemes
            .iter()
            .map(|verifier| verifier.scheme)
            .collect();
        f.debug_tuple("PublicKey")
            .field(&self.identity)
            .field(&schemes)
            .finish()
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
        assert_eq!(
            key.match_signature(b"message", signature.as_bytes()),
            KeyMatch::Declared(Scheme::EcdsaP256Sha256)
        );
        assert_eq!(
            key.match_signature(b"massage", signature.as_bytes()),
            KeyMatch::Unknown
        );
        assert_eq!(
            key.match_signature(b"message", other.sign(b"message").unwrap().as_bytes()),
            KeyMatch::Unknown
        );
        assert_eq!(key.match_signature(b"message", b""), KeyMatch::Unknown);
    }

    #[test]
    fn an_invalid_public_key_is_rejected_with_the_way_out() {
        for (text, expected) in [
            ("", "no PEM"),
            (
                "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----",
                "private",
            ),
        ] {
            let error = PublicKey::from_pem(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_scheme_counts_where_it_is_declared() {
        let signing = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        // RFC 8410: the fixed head of an Ed25519 SPKI, followed by the key.
        let head = [
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        let spki = [&head[..], signing.verifying_key().as_bytes()].concat();
        let pem = DerPublicKey::new(spki).to_pem();
        let hashed = Sha512::new_with_prefix(b"message");
        let ph = signing.sign_prehashed(hashed, None).unwrap().to_bytes();
        let pure = ed25519_dalek::Signer::sign(&signing, b"message").to_bytes();

        let usual = PublicKey::from_pem(&pem).unwrap();
        assert_eq!(
            usual.match_signature(b"message", &pure),
            KeyMatch::Declared(Scheme::Ed25519)
        );
        assert_eq!(
            usual.match_signature(b"message", &ph),
            KeyMatch::Undeclared(Scheme::Ed25519ph)
        );
        let declared = PublicKey::with_schemes(&pem, &[Scheme::Ed25519ph]).unwrap();
        assert_eq!(
            declared.match_signature(b"message", &ph),
            KeyMatch::Declared(Scheme::Ed25519ph)
        );
        assert_eq!(
            declared.match_signature(b"message", &pure),
            KeyMatch::Undeclared(Scheme::Ed25519)
        );
        assert_eq!(declared.match_signature(b"massage", &ph), KeyMatch::Unknown);
        assert!(matches!(
            PublicKey::with_schemes(&pem, &[Scheme::RsaPssSha256]).unwrap_err(),
            BadKey::OtherScheme { .. }
        ));
        assert_eq!(
            PublicKey::with_schemes(&pem, &[]).unwrap_err(),
            BadKey::NoScheme
        );
    }

    #[test]
    fn every_scheme_is_found_by_its_name() {
        for scheme in Scheme::ALL {
            assert_eq!(Scheme::named(scheme.name()), Some(scheme));
        }
    }
}
