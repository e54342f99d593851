//! Builds a `trusted_root.json` from the parts that a test names.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::PublicKeyData as _;
use serde_json::{Value, json};

use crate::oci::Digest;

/// A root with these parts, each one of `ca`, `log` and `tsa`.
pub(super) fn trusted_root(parts: &[&str]) -> String {
    let part = |name: &str, value: &dyn Fn() -> Value| match parts.contains(&name) {
        true => json!([value()]),
        false => json!([]),
    };
    json!({
        "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
        "tlogs": part("log", &log),
        "certificateAuthorities": part("ca", &authority),
        "timestampAuthorities": part("tsa", &authority),
    })
    .to_string()
}

fn log() -> Value {
    let key = rcgen::KeyPair::generate()
        .unwrap()
        .subject_public_key_info();
    json!({
        "baseUrl": "https://rekor.example.com",
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": BASE64_STANDARD.encode(&key),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": { "start": "2026-01-01T00:00:00Z" },
        },
        "logId": { "keyId": BASE64_STANDARD.encode(hex(Digest::sha256(&key).hex())) },
    })
}

fn authority() -> Value {
    json!({
        "subject": { "organization": "example.com", "commonName": "example" },
        "uri": "https://authority.example.com",
        "certChain": { "certificates": [{ "rawBytes": BASE64_STANDARD.encode(ca().der()) }] },
        "validFor": { "start": "2026-01-01T00:00:00Z" },
    })
}

/// A private certificate authority.
pub(super) fn ca() -> rcgen::Certificate {
    let mut ca = rcgen::CertificateParams::new([]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text
        .chars()
        .map(|char| char.to_digit(16).unwrap() as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
