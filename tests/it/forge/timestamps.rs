//! A timestamp authority (RFC 3161).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    certificates::{Certified, Content, Sct, TIME_STAMPING, Window},
    der::{self, SEQUENCE, element, explicit, octets, sequence, set},
    keys::Key,
};

const SHA256: &str = "2.16.840.1.101.3.4.2.1";
const SIGNED_DATA: &str = "1.2.840.113549.1.7.2";
const TST_INFO: &str = "1.2.840.113549.1.9.16.1.4";
const CONTENT_TYPE: &str = "1.2.840.113549.1.9.3";
const MESSAGE_DIGEST: &str = "1.2.840.113549.1.9.4";

pub(crate) struct TimestampAuthority {
    pub(crate) root: Certified,
    pub(crate) signer: Certified,
}

impl TimestampAuthority {
    pub(crate) fn new(name: &str, valid: Window) -> Self {
        let ca = Content {
            san: None,
            claims: vec![],
            bare_claims: vec![],
            valid,
            usages: vec![],
            is_ca: true,
        };
        let root = Certified::root(&format!("{name} root"), Key::p384(), &ca);
        let content = Content {
            usages: vec![TIME_STAMPING],
            is_ca: false,
            ..ca
        };
        let signer = root.issue(name, Key::p256(), &content, &Sct::Missing);
        Self { root, signer }
    }

    /// A timestamp of `signature`: a whole `TimeStampResp`, with the signer's certificate inside
    /// as most authorities send it.
    pub(crate) fn stamp(&self, signature: &[u8], time: Timestamp) -> Vec<u8> {
        let digest = sequence(&[der::oid(SHA256)]);
        let info = sequence(&[
            der::integer(&[1]),
            der::oid("1.2.3.4"),
            sequence(&[digest.clone(), octets(&Sha256::digest(signature))]),
            der::integer(&fastrand::u64(1 << 40..1 << 60).to_be_bytes()),
            der::generalized_time(time),
        ]);
        let attribute = |name: &str, value: Vec<u8>| sequence(&[der::oid(name), set(&[value])]);
        let attributes = set(&[
            attribute(CONTENT_TYPE, der::oid(TST_INFO)),
            attribute(MESSAGE_DIGEST, octets(&Sha256::digest(&info))),
        ]);
        // They are signed as a set, and stand in the message under a tag of their own.
        let signed = self.signer.key.sign(&attributes);
        let signer = sequence(&[
            der::integer(&[1]),
            self.signer.issuer_and_serial(),
            digest.clone(),
            [&[0xa0][..], &attributes[1..]].concat(),
            self.signer.key.algorithm(),
            octets(&signed),
        ]);
        let data = sequence(&[
            der::integer(&[3]),
            set(&[digest]),
            sequence(&[der::oid(TST_INFO), explicit(0, &octets(&info))]),
            explicit(0, &self.signer.certificate),
            set(&[signer]),
        ]);
        let token = sequence(&[der::oid(SIGNED_DATA), explicit(0, &data)]);
        element(SEQUENCE, &[sequence(&[der::integer(&[0])]), token].concat())
    }

    /// The entry of the authority in a `trusted_root.json`.
    pub(crate) fn listed(&self, valid_for: &Value) -> Value {
        let certificates: Vec<_> = [&self.signer, &self.root]
            .map(|one| json!({"rawBytes": STANDARD.encode(&one.certificate)}))
            .into();
        json!({
            "subject": {"organization": "forged", "commonName": "tsa"}, "uri": "https://tsa.example",
            "certChain": {"certificates": certificates}, "validFor": valid_for,
        })
    }
}
