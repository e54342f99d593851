//! Keys of everybody who signs something.

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use super::der;

/// A key that signs as its kind of key usually does.
pub(crate) struct Key {
    pair: Pair,
    /// Its public half (SPKI, DER).
    pub(crate) spki: Vec<u8>,
}

enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    pub(crate) fn p256() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        Self {
            spki: spki(&pair),
            pair: Pair::P256(pair),
        }
    }

    pub(crate) fn p384() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
        Self {
            spki: spki(&pair),
            pair: Pair::P384(pair),
        }
    }

    pub(crate) fn ed25519() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
            .unwrap()
            .as_ref()
            .to_vec();
        Self {
            spki,
            pair: Pair::Ed25519(pair),
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::P256(pair) | Pair::P384(pair) => pair
                .sign(&SystemRandom::new(), message)
                .unwrap()
                .as_ref()
                .to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    pub(crate) fn pem(&self) -> String {
        pem("PUBLIC KEY", &self.spki)
    }

    /// SHA-256 of the public half.
    pub(crate) fn id(&self) -> [u8; 32] {
        Sha256::digest(&self.spki).into()
    }

    /// The `AlgorithmIdentifier` of its signatures in X.509.
    pub(crate) fn algorithm(&self) -> Vec<u8> {
        der::sequence(&[der::oid(match &self.pair {
            Pair::P256(_) => "1.2.840.10045.4.3.2",
            Pair::P384(_) => "1.2.840.10045.4.3.3",
            Pair::Ed25519(_) => "1.3.101.112",
        })])
    }

    /// The name of the key type in a `trusted_root.json`.
    pub(crate) fn details(&self) -> &'static str {
        match &self.pair {
            Pair::P256(_) => "PKIX_ECDSA_P256_SHA_256",
            Pair::P384(_) => "PKIX_ECDSA_P384_SHA_384",
            Pair::Ed25519(_) => "PKIX_ED25519",
        }
    }
}

fn spki(pair: &EcdsaKeyPair) -> Vec<u8> {
    AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
        .unwrap()
        .as_ref()
        .to_vec()
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
