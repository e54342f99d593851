//! Signatures in the formats of cosign, and registries that hold them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::oci::Digest;
use serde_json::{Value, json};
use sigstore_verify::types::dsse::pae;

use super::{certificates::Certified, keys::Key, logs::Entry};

pub(crate) const LEGACY: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub(crate) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
pub(crate) const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
pub(crate) const IN_TOTO: &str = "application/vnd.in-toto+json";

/// The verification material: how a signature names its signer.
#[derive(Clone, Copy)]
pub(crate) enum By<'a> {
    Key(&'a Key),
    Certificate(&'a Certified),
}

impl By<'_> {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Key(key) => key,
            Self::Certificate(one) => &one.key,
        }
    }

    fn material(&self) -> Value {
        match self {
            Self::Key(key) => json!({"publicKey": {"hint": STANDARD.encode(key.id())}}),
            Self::Certificate(one) => {
                json!({"certificate": {"rawBytes": STANDARD.encode(&one.certificate)}})
            }
        }
    }
}

/// A signed DSSE envelope.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    pub(crate) payload_type: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

impl Envelope {
    pub(crate) fn sign(key: &Key, statement: &Value) -> Self {
        Self::sign_as(key, IN_TOTO, statement.to_string().as_bytes())
    }

    pub(crate) fn sign_as(key: &Key, payload_type: &str, payload: &[u8]) -> Self {
        let signature = key.sign(&pae(payload_type, payload));
        Self {
            payload_type: payload_type.into(),
            payload: payload.into(),
            signature,
        }
    }

    pub(crate) fn pae(&self) -> Vec<u8> {
        pae(&self.payload_type, &self.payload)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "payload": STANDARD.encode(&self.payload), "payloadType": self.payload_type,
            "signatures": [{"sig": STANDARD.encode(&self.signature)}],
        })
    }

    /// A bundle of version 0.3 around it.
    pub(crate) fn bundle(&self, by: By<'_>, entries: &[Entry], stamps: &[Vec<u8>]) -> Value {
        let mut material = by.material();
        if !entries.is_empty() {
            material["tlogEntries"] = entries.iter().map(Entry::in_bundle).collect();
        }
        if !stamps.is_empty() {
            let stamps: Vec<_> = stamps
                .iter()
                .map(|one| json!({"signedTimestamp": STANDARD.encode(one)}))
                .collect();
            material["timestampVerificationData"] = json!({"rfc3161Timestamps": stamps});
        }
        json!({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": self.to_json()})
    }
}

/// The statement that cosign signs in the bundle format.
pub(crate) fn statement(digest: &Digest) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": digest.hex()}}],
        "predicateType": SIGN, "predicate": {},
    })
}

/// The payload that cosign signs in the legacy format.
pub(crate) fn payload(digest: &Digest, repository: &str) -> Value {
    json!({
        "critical": {
            "identity": {"docker-reference": repository}, "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
}

/// A layer under a `.sig` tag.
#[derive(Debug, Clone)]
pub(crate) struct Legacy {
    pub(crate) payload: Vec<u8>,
    pub(crate) annotations: BTreeMap<&'static str, String>,
}

pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
pub(crate) const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
pub(crate) const CHAIN: &str = "dev.sigstore.cosign/chain";
pub(crate) const LOGGED: &str = "dev.sigstore.cosign/bundle";
pub(crate) const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

impl Legacy {
    pub(crate) fn sign(key: &Key, payload: &Value) -> Self {
        let payload = payload.to_string().into_bytes();
        let signature = STANDARD.encode(key.sign(&payload));
        Self {
            payload,
            annotations: [(SIGNATURE, signature)].into(),
        }
    }

    pub(crate) fn signature(&self) -> Vec<u8> {
        STANDARD.decode(&self.annotations[SIGNATURE]).unwrap()
    }

    pub(crate) fn with(mut self, annotation: &'static str, value: impl Into<String>) -> Self {
        self.annotations.insert(annotation, value.into());
        self
    }

    pub(crate) fn certified(self, by: &Certified) -> Self {
        self.with(CERTIFICATE, by.pem())
    }

    pub(crate) fn logged(self, entry: &Entry) -> Self {
        self.with(LOGGED, entry.in_annotation().to_string())
    }

    pub(crate) fn stamped(self, response: &[u8]) -> Self {
        self.with(
            TIMESTAMP,
            json!({"SignedRFC3161Timestamp": STANDARD.encode(response)}).to_string(),
        )
    }
}
