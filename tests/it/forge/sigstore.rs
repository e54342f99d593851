//! A whole Sigstore: certificate authority, certificate log, transparency logs of both
//! generations, timestamp authority, and the `trusted_root.json` that names them all.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::verify::TrustRoot;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    certificates::{CODE_SIGNING, Certified, Content, San, Sct, Window},
    keys::{Key, pem},
    logs::{Entry, Generation, Log, hex},
    signatures::{By, Envelope},
    timestamps::TimestampAuthority,
};

/// The default signer: a release workflow at a code forge.
pub(crate) const SUBJECT: &str =
    "https://github.com/acme/policies/.github/workflows/release.yml@refs/tags/v1";
pub(crate) const ISSUER: &str = "https://token.actions.githubusercontent.com";

pub(crate) struct Sigstore {
    /// When everything is signed: an hour ago, so that a certificate has expired since, as
    /// they always have.
    pub(crate) then: Timestamp,
    /// While its authorities and logs are valid.
    pub(crate) valid: Window,
    pub(crate) root: Certified,
    pub(crate) intermediate: Certified,
    pub(crate) ct: Key,
    pub(crate) rekor: Log,
    pub(crate) rekor2: Log,
    pub(crate) tsa: TimestampAuthority,
}

impl Sigstore {
    pub(crate) fn new() -> Self {
        let then = Timestamp::from_second(Timestamp::now().as_second()).unwrap() - minutes(60);
        let valid = Window::around(then, minutes(60 * 24 * 100), minutes(60 * 24 * 1000));
        let root = Certified::root("forged root", Key::p384(), &ca(valid));
        let intermediate = root.issue(
            "forged intermediate",
            Key::p384(),
            &ca(valid),
            &Sct::Missing,
        );
        Self {
            then,
            valid,
            root,
            intermediate,
            ct: Key::p256(),
            rekor: Log::new("rekor.example - 4242", Generation::V1),
            rekor2: Log::new("log2025.rekor.example", Generation::V2),
            tsa: TimestampAuthority::new("tsa", valid),
        }
    }

    /// The default content of a certificate.
    pub(crate) fn content(&self) -> Content {
        let claim = |number, text: &str| (number, text.to_owned());
        Content {
            san: Some(San::Uri(SUBJECT.into())),
            claims: vec![
                claim(8, ISSUER),
                claim(11, "github-hosted"),
                claim(15, "123456"),
            ],
            bare_claims: vec![claim(1, ISSUER), claim(5, "acme/policies")],
            valid: Window::around(self.then, minutes(1), minutes(9)),
            usages: vec![CODE_SIGNING],
            is_ca: false,
        }
    }

    /// A signer with a good certificate.
    pub(crate) fn signer(&self) -> Certified {
        self.certify(&self.content())
    }

    /// A signer with this certificate.
    pub(crate) fn certify(&self, content: &Content) -> Certified {
        self.intermediate
            .issue("", Key::p256(), content, &Sct::By(&self.ct, self.then))
    }

    /// The entry of a legacy signature in Rekor v1.
    pub(crate) fn log_payload(&self, by: By<'_>, payload: &[u8], signature: &[u8]) -> Entry {
        let body = json!({
            "apiVersion": "0.0.1", "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hex(&Sha256::digest(payload))}},
                "signature": {
                    "content": STANDARD.encode(signature), "publicKey": {"content": STANDARD.encode(by.pem())},
                },
            },
        });
        self.rekor.enter("hashedrekord", "0.0.1", &body, self.then)
    }

    /// The entry of an envelope in Rekor v1.
    pub(crate) fn log_envelope(&self, by: By<'_>, envelope: &Envelope) -> Entry {
        let hash =
            |bytes: &[u8]| json!({"algorithm": "sha256", "value": hex(&Sha256::digest(bytes))});
        let body = json!({
            "apiVersion": "0.0.1", "kind": "dsse",
            "spec": {
                "envelopeHash": hash(envelope.to_json().to_string().as_bytes()),
                "payloadHash": hash(&envelope.payload),
                "signatures": [{
                    "signature": STANDARD.encode(&envelope.signature), "verifier": STANDARD.encode(by.pem()),
                }],
            },
        });
        self.rekor.enter("dsse", "0.0.1", &body, self.then)
    }

    /// The entry of an envelope in Rekor v2.
    pub(crate) fn log2_envelope(&self, by: By<'_>, envelope: &Envelope) -> Entry {
        let verifier = match by {
            By::Key(key) => json!({"publicKey": {"rawBytes": STANDARD.encode(&key.spki)}}),
            By::Certificate(one) => {
                json!({"x509Certificate": {"rawBytes": STANDARD.encode(&one.certificate)}})
            }
        };
        let mut body = json!({
            "apiVersion": "0.0.2", "kind": "hashedrekord",
            "spec": {"hashedRekordV002": {
                "data": {"algorithm": "SHA2_256", "digest": STANDARD.encode(Sha256::digest(envelope.pae()))},
                "signature": {"content": STANDARD.encode(&envelope.signature), "verifier": verifier},
            }},
        });
        body["spec"]["hashedRekordV002"]["signature"]["verifier"]["keyDetails"] =
            by.key().details().into();
        self.rekor2.enter("hashedrekord", "0.0.2", &body, self.then)
    }

    /// A timestamp of a signature.
    pub(crate) fn stamp(&self, signature: &[u8]) -> Vec<u8> {
        self.tsa.stamp(signature, self.then)
    }

    /// The `trusted_root.json` that names all of them.
    pub(crate) fn trusted_root(&self) -> Value {
        let window = window(self.valid);
        let chain: Vec<_> = [&self.intermediate, &self.root]
            .map(|one| json!({"rawBytes": STANDARD.encode(&one.certificate)}))
            .into();
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self.rekor.listed(&window), self.rekor2.listed(&window)],
            "certificateAuthorities": [{
                "subject": {"organization": "forged", "commonName": "ca"}, "uri": "https://fulcio.example",
                "certChain": {"certificates": chain}, "validFor": window,
            }],
            "ctlogs": [{
                "baseUrl": "https://ct.example", "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": STANDARD.encode(&self.ct.spki), "keyDetails": self.ct.details(), "validFor": window,
                },
                "logId": {"keyId": STANDARD.encode(self.ct.id())},
            }],
            "timestampAuthorities": [self.tsa.listed(&window)],
        })
    }

    /// The same, for a policy.
    pub(crate) fn trust(&self) -> TrustRoot {
        trust(&self.trusted_root())
    }
}

pub(crate) fn trust(trusted_root: &Value) -> TrustRoot {
    TrustRoot::from_json("forged", &trusted_root.to_string()).unwrap()
}

/// A period in the format of `trusted_root.json`.
pub(crate) fn window(valid: Window) -> Value {
    json!({"start": valid.from.to_string(), "end": valid.until.to_string()})
}

/// The content of the certificate of a certificate authority.
pub(crate) fn ca(valid: Window) -> Content {
    Content {
        san: None,
        claims: vec![],
        bare_claims: vec![],
        valid,
        usages: vec![CODE_SIGNING],
        is_ca: true,
    }
}

pub(crate) fn minutes(count: i64) -> SignedDuration {
    SignedDuration::from_mins(count)
}

impl By<'_> {
    /// The signer as logs and annotations name it.
    pub(crate) fn pem(&self) -> String {
        match self {
            Self::Key(key) => key.pem(),
            Self::Certificate(one) => pem("CERTIFICATE", &one.certificate),
        }
    }
}
